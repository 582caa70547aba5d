"""Tasks on the user's own rows and model: what fills the protocols where no truth is planted."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.feedback.judges import RealJudge, open_judge

if TYPE_CHECKING:  # torch loads with the first weights, not before
    from workbench.models import Policy


def open_task(
    config: Any,
    *,
    model: str,
    dataset: str,
    world: Callable[[], Any],
    real: Callable[[], Any],
    needs: Sequence[str] = (),
) -> Any:
    """The embedded world where nothing is named, else the user's rows and model: one rule for every system.

    Args:
        world: makes the embedded world.
        real: makes the task on real rows.
        needs: fields of the configuration that real rows need as well, a judge for example.

    Raises:
        ValueError: some of model, dataset and `needs` without the others.
    """
    if not dataset and not model:
        return world()
    given = {"model": model, "dataset": dataset, **{name: getattr(config, name) for name in needs}}
    if not all(given.values()):
        named = ", ".join(f"{name}={value!r}" for name, value in given.items())
        how = f" (overrides={{{', '.join(f'{name!r}: ...' for name in needs)}}})" if needs else ""
        raise ValueError(
            f"{named}: give {'all of them' if needs else 'both'}{how} for real text, or none for the embedded world"
        )
    return real()


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

    @classmethod
    def of(cls, config: Any, dataset: str, model: str, *, device: str = "auto", **changes: Any) -> Self:
        """The fields that a method's configuration shares with this task, its judge opened, and `changes`."""
        shared: dict[str, Any] = {
            f.name: getattr(config, f.name) for f in dataclasses.fields(cls) if hasattr(config, f.name)
        }
        if "judge" in shared:
            shared["judge"] = open_judge(config.judge, config.judge_kind, device=device) if config.judge else None
        return cls(dataset, model, device, **shared | changes)

    def start(self, seed: int) -> Policy:
        from workbench.models import Policy

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
        judge: what compares responses; None where nothing does.
    """

    kind: str = "demonstration"
    max_new_tokens: int = 256
    max_length: int = 0
    name: str = "text"
    judge: RealJudge | None = None
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
        if self.judge is None:
            raise ValueError("scores need a reward model; give the folder or hub id of one as judge")
        return self.judge.score(prompts, responses)

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row; NaN where a chat judge could not be read in either order."""
        if self.judge is None:
            raise ValueError("comparisons need a judge; give the folder or hub id of one as judge")
        return self.judge.prefer(prompts, a, b)

    def rate(self, prompts: Sequence, candidates: Sequence[Sequence[str]]) -> list[list[int] | None] | None:
        """The chat judge's points, 0 to 6, for all candidates of a prompt side by side; None for a reward model."""
        return self.judge.rate(prompts, candidates) if self.judge else None

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
        from workbench.training.reference import reference_logps

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
