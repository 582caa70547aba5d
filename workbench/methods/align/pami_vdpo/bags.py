"""Bags: the altered versions of one sample's evidence, and which of them is rejected. Close first, then far."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench.data import Row
from workbench.kernels import Group
from workbench.methods.align.pami_vdpo.alterations import Candidate, candidates, closeness, divergences
from workbench.models import Policy
from workbench.tasks.protocols import EvidenceTask
from workbench.training.reference import reference_logps

SHARD = 32  # samples whose candidates are drawn together for a table
SHOWN = 8  # samples whose answers are kept for the view


@dataclass(frozen=True)
class Rule:
    """How a candidate is chosen.

    Attributes:
        kinds, n: alterations, and how many are drawn for a sample.
        choice: "far", the largest divergence; "near", the smallest; "random"; or one alteration, always taken.
        tau_close: least closeness at the first and at the last of `total` steps.
        weighting: "none"; "hard", min(1, d/d_0); "soft", softmax(d / tau_w) over the bag.
        promptless: divergences without the prompt.
    """

    kinds: Sequence[str]
    n: int
    choice: str
    tau_close: tuple[float, float]
    total: int
    weighting: Literal["none", "hard", "soft"]
    d_0: float
    tau_w: float
    promptless: bool = False


class Sample(NamedTuple):
    """A triple and its tokens; `number` is its place among the training rows."""

    id: str
    number: int
    row: Row
    group: Group


class Choice(NamedTuple):
    """The bag of one sample: its candidates with closeness and divergence, and their weights (they sum to w)."""

    candidates: list[Candidate]
    close: list[float]
    far: list[float]
    weights: list[float]
    identical: int
    fell_back: bool


class Chooser:
    """Draws and selects candidates. Draws are a function of seed and batch, so that a resumed training repeats them."""

    def __init__(
        self, task: EvidenceTask, rule: Rule, samples: Sequence[Sample], seed: int, judge: Callable[[Policy], Policy]
    ):
        self.task, self.rule, self.samples, self.seed, self.judge = task, rule, samples, seed, judge
        self.taken = 0  # optimiser steps so far

    def tick(self, policy: Policy, number: int) -> None:
        self.taken = number

    @property
    def tau_close(self) -> float:
        start, end = self.rule.tau_close
        return start + (end - start) * min(1.0, self.taken / max(1, self.rule.total))

    def groups(self, policy: Policy, sample: Sample, found: Sequence[Candidate]) -> list[Group]:
        row = sample.row
        return [self.task.group(policy, one.evidence, row["prompt"], row["response"]) for one in found]

    def choose(self, policy: Policy, batch: Sequence[Sample]) -> list[Choice]:
        rng = np.random.default_rng([self.seed, 9, *(sample.number for sample in batch)])
        fixed = self.rule.choice not in ("far", "near", "random")
        kinds, n = ([self.rule.choice], 1) if fixed else (self.rule.kinds, self.rule.n)
        drawn = []
        for sample in batch:
            other = self.samples[
                int(sample.number + 1 + rng.integers(max(1, len(self.samples) - 1))) % len(self.samples)
            ]
            drawn.append(candidates(sample.row, kinds, n, rng, other=other.row["evidence"], blank=self.task.blank))
        bags = [found for found, _ in drawn]
        close = [self._close(policy, sample, bag) for sample, bag in zip(batch, bags, strict=True)]
        far = self._far(policy, batch, bags)
        choices = []
        for (bag, identical), c, d in zip(drawn, close, far, strict=True):
            kept = [i for i, value in enumerate(c) if fixed or value >= self.tau_close]
            fell_back = bool(bag) and not kept
            kept = kept or ([int(np.argmax(c))] if bag else [])
            choices.append(Choice(bag, c, d, self._weights(d, kept, len(bag), rng), identical, fell_back))
        return choices

    def _close(self, policy: Policy, sample: Sample, bag: Sequence[Candidate]) -> list[float]:
        original = self.task.embed(policy, sample.row["evidence"])
        return [closeness(original, self.task.embed(policy, one.evidence)) for one in bag]

    def _far(self, policy: Policy, batch: Sequence[Sample], bags: Sequence[Sequence[Candidate]]) -> list[list[float]]:
        judge = self.judge(policy)
        originals, altered = (
            [s.group for s in batch],
            [self.groups(judge, s, bag) for s, bag in zip(batch, bags, strict=True)],
        )
        if self.rule.promptless:
            bare = [(s.row["evidence"], *(one.evidence for one in bag)) for s, bag in zip(batch, bags, strict=True)]
            asked = [
                [self.task.group(judge, e, " ", s.row["response"]) for e in row]
                for s, row in zip(batch, bare, strict=True)
            ]
            originals, altered = [row[0] for row in asked], [row[1:] for row in asked]
        return divergences(judge, originals, altered)

    def _weights(self, far: Sequence[float], kept: Sequence[int], n: int, rng: np.random.Generator) -> list[float]:
        found = np.zeros(n)
        if not kept:
            return []
        rule = self.rule
        values = np.array([far[i] for i in kept])
        if rule.weighting == "soft" and rule.choice == "far":
            shares = np.exp((values - values.max()) / rule.tau_w)
            found[list(kept)] = shares / shares.sum()
            return found.tolist()
        picked = {"far": int(values.argmax()), "near": int(values.argmin())}.get(
            rule.choice, int(rng.integers(len(kept)))
        )
        found[kept[picked]] = min(1.0, values[picked] / rule.d_0) if rule.weighting == "hard" else 1.0
        return found.tolist()

    def table(self, policy: Policy) -> pd.DataFrame:
        """All candidates of one fresh draw for every sample, as they are selected now."""
        rows = []
        for start in range(0, len(self.samples), SHARD):
            batch = self.samples[start : start + SHARD]
            for sample, choice in zip(batch, self.choose(policy, batch), strict=True):
                is_false = false_rejections(self.task, sample, choice)
                for k, one in enumerate(choice.candidates):
                    rows.append(
                        {
                            "sample": sample.number,
                            "question": sample.row.get("kind", ""),
                            "prompt": sample.row["prompt"],
                            "response": sample.row["response"],
                            "evidence": [str(f) for f in sample.row["evidence"]],
                            "candidate": one.kind,
                            "altered": [str(f) for f in one.evidence],
                            "close": choice.close[k],
                            "far": choice.far[k],
                            "weight": choice.weights[k],
                            "is_false": is_false[k],
                            "identical": choice.identical,
                            "fell_back": choice.fell_back,
                        }
                    )
        return pd.DataFrame(rows)


def answer_probabilities(chooser: Chooser, start: Policy, policy: Policy) -> pd.DataFrame:
    """p(response) under the clip (k = -1) and each of the first samples' candidates, of the start and of the policy."""
    batch, rows = chooser.samples[:SHARD], []
    for sample, choice in zip(batch[:SHOWN], chooser.choose(policy, batch)[:SHOWN], strict=True):
        groups = [sample.group, *chooser.groups(policy, sample, choice.candidates)]
        before, after = (np.exp(reference_logps(one, groups)[:, 0]) for one in (start, policy))
        for k, (p, q) in enumerate(zip(before, after, strict=True), start=-1):
            rows.append({"sample": sample.number, "k": k, "p_before": float(p), "p_after": float(q)})
    return pd.DataFrame(rows)


def false_rejections(task: EvidenceTask, sample: Sample, choice: Choice) -> list[float]:
    """1 where the oracle answers an altered clip as it answers the original, 0 where not; NaN without an oracle."""
    truth = getattr(task, "truth", None)
    if truth is None:
        return [math.nan] * len(choice.candidates)
    prompt = sample.row["prompt"]
    right = truth(sample.row["evidence"], prompt)
    return [float(truth(one.evidence, prompt) == right) for one in choice.candidates]


def selection_rates(table: pd.DataFrame) -> dict[str, Any]:
    """What was selected: false rejections in all, by question and by kind; closeness, divergence, weight; what was left
    out."""
    if table.empty:
        return {}
    picked: Any = table[table["weight"] > 0]
    samples: Any = table.groupby("sample")[["fell_back", "identical"]].first().sum()
    means: Any = picked[["is_false", "far", "close", "weight"]].mean()
    found = {
        "false_rejections": float(means["is_false"]),
        "far": float(means["far"]),
        "close": float(means["close"]),
        "weight": float(means["weight"]),
        "fell_back": int(samples["fell_back"]),
        "identical": int(samples["identical"]),
        "n": len(picked),
    }
    for name, column in (("by_question", "question"), ("by_kind", "candidate")):
        found[name] = {str(key): float(value) for key, value in picked.groupby(column)["is_false"].mean().items()}
    return found
