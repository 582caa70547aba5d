"""Real problems: a reasoning task from a data set, a starting model, a checker and a reward model."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Self

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.feedback.chat import ChatModel
from workbench.feedback.open_model import open_model
from workbench.kernels import sample
from workbench.models import Policy
from workbench.tasks.real import RealRows
from workbench.tasks.reasoning.answers import final_answer, same_answer
from workbench.tasks.reasoning.process_reward import Scores, open_prm
from workbench.tasks.reasoning.solution_steps import (
    COLUMNS,
    OPENING,
    Located,
    as_step_pairs,
    ask_checker,
    split_labelled,
)
from workbench.training.reference import reference_logps

log = logging.getLogger(__name__)

BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."  # the "qwen2-boxed" prompt style


@dataclass
class TextVerifier:
    """Checks real solutions: final answers by value, steps by a checker in words, scores by a process reward model.

    Attributes:
        answers: prompt -> right answer.
        references: prompt -> reference solution, for the checker.
        checker, prm: made when first needed.
    """

    answers: Mapping[str, str]
    references: Mapping[str, str]
    checker: Callable[[], ChatModel] | None = None
    prm: Callable[[], Scores] | None = None
    is_oracle: bool = False

    def split(self, text: str) -> list[str]:
        return split_labelled(text)

    def is_right(self, prompt: str, text: str) -> bool:
        """An answer that is missing, unreadable or not comparable is not right."""
        return self.judge(prompt, text) is True

    def judge(self, prompt: str, text: str) -> bool | None:
        """As `is_right`; None where there is a final answer but the two cannot be compared."""
        answer = final_answer(text)
        return False if answer is None else same_answer(answer, self.answers[prompt])

    def first_wrong(self, prompt: str, steps: Sequence[str]) -> int | None:
        return self._ask([(prompt, list(steps))])[0][0].step

    def locate(self, solutions: Sequence[tuple[str, str]]) -> tuple[list[Located], list[str]]:
        return self._ask([(prompt, self.split(text)) for prompt, text in solutions])

    def _ask(self, items: Sequence[tuple[str, list[str]]]) -> tuple[list[Located], list[str]]:
        if self.checker is None:
            raise ValueError(
                "no checker: set `checker` to a folder or hub id of a model that can point at the first wrong step, or "
                f"give a data set of step pairs with the columns {', '.join(COLUMNS)}"
            )
        return ask_checker(self.checker().ask, [(p.removesuffix(BOXED), self.references[p], s) for p, s in items])

    def scores(self, prompt: str, steps: Sequence[str]) -> list[float]:
        if self.prm is None:
            raise ValueError("no process reward model: set `prm` to a folder or hub id of a token-classification model")
        return self.prm()(prompt.removesuffix(BOXED), steps)


@dataclass
class ProblemTask(RealRows):
    """Problems with final answers, or ready step pairs, and a starting model.

    The data set has rows `prompt` (or question, ...) and `answer`, or the columns of xinlai/Math-Step-DPO-10K.

    Attributes:
        small_model: hub id or folder; a smaller model of the same family.
        checker, prm: make the model that points at first wrong steps and the process reward model, when first needed.
    """

    small_model: str = ""
    checker: Callable[[], ChatModel] | None = None
    prm: Callable[[], Scores] | None = None
    max_new_tokens: int = 2048
    name: str = "problems"
    opening: str = OPENING
    delimiters: tuple[str, ...] = ("\n\n", "\nStep")

    @classmethod
    def of(cls, config: Any, dataset: str, model: str, *, device: str = "auto", **changes: Any) -> Self:
        """As `RealRows.of`; the configuration's `checker` and `prm` are the names of models."""
        openers = {"checker": _open_checker, "prm": open_prm}
        named = {name: getattr(config, name, "") for name in openers}
        opened = {name: partial(openers[name], source, device) if source else None for name, source in named.items()}
        return super().of(config, dataset, model, device=device, **opened | changes)

    def small(self, seed: int) -> Policy:
        if not self.small_model:
            raise ValueError("no smaller model: set `small_model` to a folder or hub id of the same family")
        return Policy.load(self.small_model, device=self.device, precision=self.precision)

    def band(self, prompt: str) -> str:
        """How hard a problem is: nothing is known of that here."""
        return "all"

    # -- rows
    @property
    def rows(self) -> list[Row]:
        if not self._rows:
            self._rows.extend(self.read())
        return self._rows

    def read(self) -> list[Row]:
        """Problems with a readable answer, in the project's columns.

        Raises:
            ValueError: a row without problem or answer (named), or no readable answer at all.
        """
        problems, unread = [], []
        for index, row in enumerate(data.load(self.dataset)):
            prompt = next((row[name] for name in ("prompt", *data.ALIASES["prompt"], "problem") if row.get(name)), None)
            answer = next((row[name] for name in ("answer", "solution", "completion") if row.get(name)), None)
            if not isinstance(prompt, str) or answer is None:
                raise ValueError(
                    f"row {index}: columns 'prompt' and 'answer' are needed, since solutions are sorted by their final"
                    f" answer; found {', '.join(map(str, row))}"
                )
            answer = str(answer)
            if right := final_answer(answer) or (answer if len(answer) < 60 else ""):
                problems.append({**row, "prompt": prompt + BOXED, "answer": right, "reference": answer})
            else:
                unread.append(index)
        if unread:
            log.warning("%d problems without a readable answer are set aside: rows %s", len(unread), unread[:10])
        if not problems:
            raise ValueError(f"{self.dataset}: no row has a readable final answer (\\boxed{{}}, ####, or a short text)")
        return problems

    def problems(self, split: str, seed: int) -> list[Row]:
        train, test = data.held_out(self.rows, test_size=min(self.test_size, len(self.rows) - 1))
        if split in ("test", "validation"):
            return test
        order = np.random.default_rng(seed).permutation(len(train))[: self.train_size or None]
        return [train[i] for i in order]

    @property
    def is_step_pairs(self) -> bool:
        return all(column in self.rows[0] for column in COLUMNS)

    def step_pairs(self, split: str, seed: int) -> list[Row]:
        """Ready pairs of the data set with `full_chosen` and `full_rejected` ("" where it has none); [] for problems.

        Raises:
            ValueError: some columns of step pairs are there and others are missing; the row is named.
        """
        if not {"initial_reason_steps", "chosen", "rejected"} & set(self.rows[0]):
            return []
        kept: list[Row] = []
        mended: Counter[str] = Counter()
        for row in self.problems(split, seed):
            pair, changed = as_step_pairs([row])
            mended += changed
            full = {side: row.get(side, "") for side in ("full_chosen", "full_rejected")}
            kept += [{**sides, **full} for sides in pair]
        if mended:
            log.warning("step pairs, %s: %s", split, ", ".join(f"{what} {n}" for what, n in sorted(mended.items())))
        return kept

    def has_answers(self, n_answers: int) -> bool:
        """Whether pairs of whole answers can be had."""
        return "full_chosen" in self.rows[0] if self.is_step_pairs else n_answers > 0

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        return [row["prompt"] for row in self.problems(split, seed)][part::parts]

    # -- checks
    @cached_property
    def verifier(self) -> TextVerifier:
        answers = {row["prompt"]: row["answer"] for row in self.rows}
        references = {row["prompt"]: row["reference"] for row in self.rows}
        return TextVerifier(answers, references, self.checker, self.prm)

    def correction(self, prompt: str, wrong: str) -> str:
        return (
            f"{prompt}\n\nHere is an attempt that ends in a wrong answer:\n{wrong}\n\nLook back at its reasoning, say"
            " where it went wrong, and then solve the problem again step by step, with the final answer in the usual"
            " format."
        )

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """`quality`: share of right final answers, greedy; `closes`: share with a final answer that can be read; and
        the negative log-likelihood a token of held-out chosen steps where there are step pairs."""
        prompts = self.prompts("test", seed)
        texts = [t[0] for t in sample(policy, prompts, temperature=0.0, max_new_tokens=self.max_new_tokens).texts]
        numbers = {
            "quality": np.mean([self.verifier.is_right(*pair) for pair in zip(prompts, texts, strict=True)]),
            "closes": np.mean([final_answer(text) is not None for text in texts]),
            "not_comparable": np.mean(
                [self.verifier.judge(*pair) is None for pair in zip(prompts, texts, strict=True)]
            ),
        }
        if pairs := self.step_pairs("test", seed):
            groups = [
                policy.group(
                    [*policy.encode_prompt(row["prompt"]), *policy.encode_part(row["prefix"])],
                    [policy.encode_part(row["chosen"])],
                )
                for row in pairs
            ]
            numbers["step_nll"] = -reference_logps(policy, groups).sum() / sum(len(g.responses_ids[0]) for g in groups)
        return {name: float(value) for name, value in numbers.items()}


@lru_cache(maxsize=1)
def _open_checker(source: str, device: str) -> ChatModel:
    return open_model(source, device=device)
