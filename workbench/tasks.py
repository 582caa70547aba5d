"""Tasks: where prompts, demonstrations, preferences and evaluations come from.

What may live here: the protocols that methods are written against, and `TextTask`, which fills them from a real data
set and a real model. What may not: planted worlds (`worlds/`), methods.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from workbench import data
from workbench.data import Row
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


@dataclass
class TextTask:
    """Real rows and a real model: fills a protocol from a data set and a starting model.

    Attributes:
        dataset: hub id, folder or file.
        model: hub id or folder.
        kind: "demonstration" or "preference", what the rows are.
        test_size: rows held out; the split follows a hash of the prompt and is the same for every seed.
        train_size: training rows taken, a different draw for every seed; 0 takes all.
        lora: options of a LoRA adapter; None trains all weights, which are then held in float32.
        precision: "bf16" computes under autocast, see `Policy`.
    """

    dataset: str
    model: str
    kind: str = "demonstration"
    device: str = "auto"
    test_size: int = 200
    train_size: int = 0
    max_new_tokens: int = 256
    max_length: int = 0
    lora: dict | None = None
    precision: str = "no"
    name: str = "text"
    _rows: list[Row] = field(default_factory=list, repr=False)

    def start(self, seed: int) -> Policy:
        dtype = "auto" if self.lora else "float32"
        return Policy.load(self.model, device=self.device, dtype=dtype, precision=self.precision, lora=self.lora)

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        return self._split(split, seed)

    def preferences(self, split: str, seed: int) -> list[Row]:
        return self._split(split, seed)

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Held-out negative log-likelihood a token of the human (or chosen) answers, nats; `quality` is its negative.

        What a benchmark or a judge would say about new text is not measured here.
        """
        answer = "completion" if self.kind == "demonstration" else "chosen"
        rows = self._split("test", seed)
        groups = [policy.group(row["prompt"], [row[answer]], max_length=self.max_length) for row in rows]
        nll = -reference_logps(policy, groups).sum() / sum(len(group.responses_ids[0]) for group in groups)
        return {"quality": -float(nll), "token_nll": float(nll)}

    def _split(self, split: str, seed: int) -> list[Row]:
        if not self._rows:
            convert = {"demonstration": data.as_demonstrations, "preference": data.as_preferences}[self.kind]
            self._rows.extend(convert(data.load(self.dataset)))
        train, test = data.held_out(self._rows, test_size=self.test_size)
        if split == "test":
            return test
        if not self.train_size or self.train_size >= len(train):
            return train
        order = np.random.default_rng(seed).permutation(len(train))[: self.train_size]
        return [train[i] for i in order]
