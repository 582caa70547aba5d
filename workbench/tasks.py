"""Tasks: where prompts, demonstrations, preferences and evaluations come from.

What may live here: the protocols that methods are written against, and `TextTask`, which fills them from a real data
set and a real model. What may not: planted worlds (`worlds/`), methods.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.feedback.steps import StepVerifier
from workbench.models import Policy
from workbench.training import reference_logps


class DemonstrationTask(Protocol):
    """Policies to align from (prompt, human answer) pairs alone."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy:
        """The supervised starting point."""
        ...

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt` and `completion`; `split` is "train" or "test"."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Numbers that say how good the policy is; the key `quality` is higher for better."""
        ...


class PreferenceTask(Protocol):
    """Policies to align from pairs of a chosen and a rejected response."""

    name: str

    def start(self, seed: int) -> Policy: ...

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt`, `chosen`, `rejected`."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class RewardedTask(Protocol):
    """Policies to align by a reward that can be computed for any response: the world's truth, not a model of it."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; with `parts` above 1, parts without a prompt in common."""
        ...

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """The true reward of each response, [n]; higher is better."""
        ...

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """References: rows with `prompt` and `completion`."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class ReasoningTask(Protocol):
    """Policies to align on problems whose solutions are written step by step and whose steps can be checked.

    Optional, asked for by `hasattr`: `opening` (text that every solution begins with), `correction(prompt, wrong)` (the
    prompt that asks for another try), `outside(step)` (a step as another writer would put it).
    """

    name: str
    max_new_tokens: int
    verifier: StepVerifier

    def problems(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt` and `answer`; `split` is "train", "validation" or "test"."""
        ...

    def start(self, seed: int) -> Policy: ...

    def small(self, seed: int) -> Policy:
        """A smaller model of the same family."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class JudgedTask(Protocol):
    """Policies to align by a judge that compares two responses; its preferences may go round in a circle.

    A task may also have `teacher(prompts, seed)`, one strong answer a prompt (None where there is none), and
    `rate(prompts, candidates)`, whole numbers 0 to 6 for all candidates of a prompt side by side (None where unread).
    """

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; with `parts` above 1, parts without a prompt in common."""
        ...

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row, in [0, 1]; NaN where the judge gave no readable answer."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class RankingTask(Protocol):
    """Policies to align from lists of two or more scored responses."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def rankings(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt`, `responses`, `scores`; `split` is "train" or "test"."""
        ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; `split` is "train", "validation" or "test"."""
        ...

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """A reward of each response, [n]; higher is better."""
        ...

    def evaluate(self, policy: Policy, seed: int, ask: Callable[[Any], Any] = ...) -> dict[str, float]:
        """Numbers of the policy's answers; `ask` makes of a prompt what is really asked."""
        ...


class DocumentTask(Protocol):
    """Policies to align on documents with questions, whose reference answers serve measurements and chunk scores alone.

    Optional, asked for by `hasattr`: `evidence(row, rng)` (three contexts: all that a question needs, a part, nothing),
    `misaligned(seed)` (a start that finds and does not tell), `needles(policy)` (accuracy by length and depth),
    `longer(n)` (the task with documents of another length).
    """

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def documents(self, split: str, seed: int) -> list[Row]:
        """Rows `chunks` (texts that make the document, in order), `questions`, `answers`, and `chunk_of`, which says
        for each question in which chunk its answer stands."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class FollowUpTask(Protocol):
    """Policies to align by what a user would say next.

    Optional, asked for by `hasattr`: `follow_ups` (phrases by dimension and polarity), `pose` (what asks for a
    question), `feedback(seed, shuffled=False)` (rows with `prompt`, `response` and `feedback` in words), `deaf(seed)`
    (the start, had what users say been independent of the response), `score(prompts, responses)` (the truth).
    """

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list: ...

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs with known order, to test a reward on."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


@runtime_checkable
class EnumeratedTask(Protocol):
    """A judged task whose responses can all be listed, so that policies are tables and games between them are exact."""

    def table(self, policy: Policy) -> np.ndarray:
        """Probability of every response to every prompt, [prompt, response]."""
        ...

    def measure(self, table: np.ndarray) -> dict[str, float]:
        """What `evaluate` says of a policy with this table."""
        ...

    def win_rate(self, table: np.ndarray, opponent: np.ndarray, *, outside_judge: bool = False) -> float:
        """P(a response of one policy beats one of the other), by the judge or by a second one that trained nothing."""
        ...

    def win_rates(self, table: np.ndarray, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """P(response beats a response of the policy with this table) for each row."""
        ...


class TranslationTask(Protocol):
    """Policies to align on pairs of translations that are written while the source is still being read.

    `quality_is` names the aspect that is compared; `counts_end` says whether the end token counts as a word in
    latencies.
    """

    name: str
    max_new_tokens: int
    counts_end: bool
    quality_is: str

    def start(self, seed: int) -> Policy: ...

    def pairs(self, split: str, seed: int) -> list[Row]:
        """Rows with `source`, `chosen`, `rejected`; optional `alignment`, `key_items`, `n_clauses`."""
        ...

    def prompt(self, words: Sequence[str]) -> Any:
        """What the model sees of the source after these words."""
        ...

    def aspects(self, row: Row, translation: str) -> Any:
        """What listeners prefer in the text, measured aspect by aspect, as a named tuple of numbers."""
        ...


class EvidenceTask(Protocol):
    """Policies to align on responses to a prompt about evidence, which is a sequence of frames of any kind.

    Optional, asked for by `hasattr`: `truth(evidence, prompt)`, the oracle's response to any evidence;
    `untrained(seed)`, a model of the start's class that knows nothing.
    """

    name: str
    blank: Any

    def start(self, seed: int) -> Policy: ...

    def triples(self, split: str, seed: int) -> list[Row]:
        """Rows with `evidence`, `prompt`, `response`; optional `kind` of the question."""
        ...

    def group(self, policy: Policy, evidence: Sequence, prompt: str, response: str) -> Any:
        """Tokens (and features of pictures) of a prompt with one response."""
        ...

    def embed(self, policy: Policy, evidence: Sequence) -> np.ndarray:
        """Features of each frame, [frame, d], that know no prompt."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


@dataclass
class RealRows:
    """Rows of a data set and a model to start from: what every task on real data shares. A task says how it reads its
    rows.

    Attributes:
        dataset: hub id, folder or file.
        model: hub id or folder.
        test_size: rows held out; the split follows a hash of the prompt and is the same for every seed.
        train_size: training rows taken, a different draw for every seed; 0 takes all.
        lora: options of a LoRA adapter; None trains all weights, which are then held in float32.
        precision: "bf16" computes under autocast, see `Policy`.
    """

    dataset: str
    model: str
    device: str = "auto"
    test_size: int = 200
    train_size: int = 0
    lora: dict | None = None
    precision: str = "no"
    _rows: list[Row] = field(default_factory=list, repr=False)

    def start(self, seed: int) -> Policy:
        dtype = "auto" if self.lora else "float32"
        return Policy.load(self.model, device=self.device, dtype=dtype, precision=self.precision, lora=self.lora)

    def read(self) -> list[Row]:
        """The checked rows, each with a `prompt`; asked for once."""
        raise NotImplementedError

    def part(self, split: str, seed: int) -> list[Row]:
        """Rows of a split: "test", or a draw of the training rows."""
        if not self._rows:
            self._rows.extend(self.read())
        train, test = data.held_out(self._rows, test_size=self.test_size)
        if split == "test":
            return test
        if not self.train_size or self.train_size >= len(train):
            return train
        order = np.random.default_rng(seed).permutation(len(train))[: self.train_size]
        return [train[i] for i in order]


@dataclass
class TextTask(RealRows):
    """Real rows and a real model: fills a protocol from a data set and a starting model.

    Attributes:
        kind: "demonstration", "preference" or "prompt", what the rows are.
        judge: folder or hub id of what compares responses; loaded when it is first asked.
        judge_kind: "reward", a sequence-classification model, P(a better) = sigma(score a - score b); "chat", a model
            that is asked in words, in both orders.
    """

    kind: str = "demonstration"
    max_new_tokens: int = 256
    max_length: int = 0
    name: str = "text"
    judge: str = ""
    judge_kind: str = "reward"
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False)

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        return self.part(split, seed)

    def preferences(self, split: str, seed: int) -> list[Row]:
        return self.part(split, seed)

    # -- a judge
    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts of a split without repetition, or every `parts`-th of them from `part` on."""
        different = {json.dumps(row["prompt"]): row["prompt"] for row in self.part(split, seed)}
        return list(different.values())[part::parts]

    def teacher(self, prompts: Sequence, seed: int) -> list[str | None]:
        """The data set's own answers; None where it has none."""
        if self.kind != "demonstration":
            return [None] * len(prompts)
        self.part("test", seed)  # reads the rows
        answers = {json.dumps(row["prompt"]): row["completion"] for row in self._rows}
        return [answers.get(json.dumps(prompt)) for prompt in prompts]

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """The reward model's score of each response, [n].

        Raises:
            ValueError: there is no judge, or it is not a reward model.
        """
        if not self.judge or self.judge_kind != "reward":
            raise ValueError(
                f"judge={self.judge!r}, judge_kind={self.judge_kind!r}: scores need a reward model; give the folder or"
                " hub id of a sequence-classification model with one label as judge"
            )
        if "judge" not in self._loaded:
            from workbench.feedback.reward_model import RewardModel

            self._loaded["judge"] = RewardModel.load(self.judge, device=self.device)
        return self._loaded["judge"].score(prompts, responses)

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row; NaN where a chat judge could not be read in either order."""
        if self.judge_kind == "reward":
            scores = self.score([*prompts, *prompts], [*a, *b])
            return 1 / (1 + np.exp(np.clip(scores[len(a) :] - scores[: len(a)], -500, 500)))
        return self._chat_judge().prefer(prompts, a, b)

    def rate(self, prompts: Sequence, candidates: Sequence[Sequence[str]]) -> list[list[int] | None] | None:
        """The chat judge's points, 0 to 6, for all candidates of a prompt side by side; None for a reward model."""
        return self._chat_judge().rate(prompts, candidates) if self.judge_kind == "chat" else None

    def _chat_judge(self):
        if "judge" not in self._loaded:
            from workbench.feedback.judges import ChatJudge
            from workbench.feedback.local import LocalModel

            self._loaded["judge"] = ChatJudge(LocalModel(self.judge, device=self.device))
        return self._loaded["judge"]

    def _judged(self, policy: Policy, seed: int) -> dict[str, float]:
        """How often the judge prefers the policy's answers to held-out prompts to those of the start."""
        from workbench.kernels import sample

        prompts = self.prompts("test", seed)
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": 10_000 + seed}
        if f"start {seed}" not in self._loaded:
            self._loaded[f"start {seed}"] = sample(self.start(seed), prompts, **options).texts
        theirs = [texts[0] for texts in self._loaded[f"start {seed}"]]
        ours = [texts[0] for texts in sample(policy, prompts, **options).texts]
        wins = self.prefer(prompts, ours, theirs)
        return {"quality": float(np.nanmean(wins)), "mean_length": float(np.mean([len(text) for text in ours]))}

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """With a judge: its preference for the policy's answers to held-out prompts over the start's (`quality`), and
        their mean length in characters. Without: held-out negative log-likelihood a token of the human (or chosen)
        answers, nats; `quality` is its negative.
        """
        if self.judge:
            return self._judged(policy, seed)
        answer = "completion" if self.kind == "demonstration" else "chosen"
        rows = self.part("test", seed)
        groups = [policy.group(row["prompt"], [row[answer]], max_length=self.max_length) for row in rows]
        nll = -reference_logps(policy, groups).sum() / sum(len(group.responses_ids[0]) for group in groups)
        return {"quality": -float(nll), "token_nll": float(nll)}

    def read(self) -> list[Row]:
        convert = {
            "demonstration": data.as_demonstrations,
            "preference": data.as_preferences,
            "prompt": data.as_prompts,
        }[self.kind]
        return convert(data.load(self.dataset))
