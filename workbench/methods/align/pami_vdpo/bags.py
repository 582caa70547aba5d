"""Bags: the altered versions of one sample's evidence, what is known of each, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.data import Row
from workbench.kernels import Group
from workbench.methods.align.pami_vdpo.alterations import Candidate, candidates, closeness
from workbench.models import Policy
from workbench.tasks.protocols import EvidenceTask, PlantedEvidence
from workbench.training.reference import PairRow, pair_rows, reference_logps

SHARD = 32  # samples whose candidates are drawn together for a table
SHOWN = 8  # samples whose answers are kept for the view


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


Choose = Callable[[Sequence[Sample]], list[Choice]]


def samples_of(task: EvidenceTask, policy: Policy, rows: Sequence[Row]) -> list[Sample]:
    groups = [task.group(policy, row["evidence"], row["prompt"], row["response"]) for row in rows]
    return [Sample(f"row {i}", i, row, group) for i, (row, group) in enumerate(zip(rows, groups, strict=True))]


@dataclass
class Bags:
    """The bags of a seed's training samples. What is drawn is a function of seed and batch, so that a resumed training
    draws the same.

    Attributes:
        steps_taken: optimiser steps so far.
    """

    task: EvidenceTask
    samples: Sequence[Sample]
    seed: int
    steps_taken: int = 0

    def count_step(self, policy: Policy, number: int) -> None:
        self.steps_taken = number

    @cached_property
    def untrained(self) -> Policy:
        task: Any = self.task
        return task.untrained(self.seed)

    def draw(
        self, batch: Sequence[Sample], kinds: Sequence[str], n: int
    ) -> tuple[np.random.Generator, list[tuple[list[Candidate], int]]]:
        """A generator for choices, the bag of each sample, see `candidates`; another sample's evidence is mixed in."""
        rng = np.random.default_rng([self.seed, 9, *(sample.number for sample in batch)])
        drawn, total = [], len(self.samples)
        for sample in batch:
            other = self.samples[int(sample.number + 1 + rng.integers(max(1, total - 1))) % total]
            drawn.append(candidates(sample.row, kinds, n, rng, other=other.row["evidence"], blank=self.task.blank))
        return rng, drawn

    def closeness(
        self, policy: Policy, batch: Sequence[Sample], clips: Sequence[Sequence[Candidate]]
    ) -> list[list[float]]:
        """How near each candidate is to its original, without the prompt."""

        def near(sample: Sample, bag: Sequence[Candidate]) -> list[float]:
            original = self.task.embed(policy, sample.row["evidence"])
            return [closeness(original, self.task.embed(policy, clip.evidence)) for clip in bag]

        return [near(sample, bag) for sample, bag in zip(batch, clips, strict=True)]

    def groups(self, policy: Policy, sample: Sample, bag: Sequence[Candidate], prompt: str = "") -> list[Group]:
        """The sample's response under each candidate, behind its own prompt or the one given."""
        row = sample.row
        return [self.task.group(policy, clip.evidence, prompt or row["prompt"], row["response"]) for clip in bag]

    def inputs(
        self,
        policy: Policy,
        batch: Sequence[Sample],
        clips: Sequence[Sequence[Candidate]],
        *,
        promptless: bool = False,
    ) -> tuple[list[Group], list[list[Group]]]:
        """What a selector reads: the original of each sample, and its candidates; without the prompt for a control."""
        prompt = " " if promptless else ""
        originals = [Candidate("", sample.row["evidence"]) for sample in batch]
        bags = [[original, *bag] for original, bag in zip(originals, clips, strict=True)]
        groups = [self.groups(policy, sample, bag, prompt) for sample, bag in zip(batch, bags, strict=True)]
        return [row[0] for row in groups], [row[1:] for row in groups]

    def rejected(
        self, policy: Policy, batch: Sequence[Sample], choices: Sequence[Choice]
    ) -> tuple[torch.Tensor, torch.Tensor, list[Group]]:
        """Of each candidate that has a weight: its sample's place in the batch, its weight, and its tokens."""
        taken = [(i, k) for i, choice in enumerate(choices) for k, w in enumerate(choice.weights) if w > 0]
        owner = torch.tensor([i for i, _ in taken], device=policy.device, dtype=torch.long)
        weights = torch.tensor([choices[i].weights[k] for i, k in taken], device=policy.device)
        return owner, weights, [self.groups(policy, batch[i], [choices[i].candidates[k]])[0] for i, k in taken]

    def drawn_below(self, share: float, batch: Sequence[Sample], owner: torch.Tensor) -> torch.Tensor:
        """A draw for each pair that is the same in every step, [pair]."""
        numbers = [batch[i].number for i in owner.tolist()]
        drawn = [np.random.default_rng([self.seed, 5, number]).random() < share for number in numbers]
        return torch.tensor(drawn, device=owner.device)

    def table(self, choose: Choose) -> pd.DataFrame:
        """All candidates of one fresh draw for every sample, as they are selected now."""
        rows = []
        for start in range(0, len(self.samples), SHARD):
            batch = self.samples[start : start + SHARD]
            for sample, choice in zip(batch, choose(batch), strict=True):
                row: dict[str, Any] = {"sample": sample.number, "question": sample.row.get("kind", "")}
                row |= {"prompt": sample.row["prompt"], "response": sample.row["response"]}
                row |= {"evidence": [str(f) for f in sample.row["evidence"]]}
                row |= {"identical": choice.identical, "fell_back": choice.fell_back}
                is_false = false_rejections(self.task, sample, choice)
                both = zip(choice.candidates, choice.close, choice.far, choice.weights, is_false, strict=True)
                rows += [
                    {**row, "candidate": clip.kind, "altered": [str(f) for f in clip.evidence]}
                    | {"close": close, "far": far, "weight": weight, "is_false": false}
                    for clip, close, far, weight, false in both
                ]
        return pd.DataFrame(rows)

    def answers(self, choose: Choose, start: Policy, policy: Policy) -> pd.DataFrame:
        """p(response) under the clip (k = -1) and each candidate of the first samples, by the start and the policy."""
        batch, rows = self.samples[:SHARD], []
        for sample, choice in zip(batch[:SHOWN], choose(batch)[:SHOWN], strict=True):
            seen = [sample.group, *self.groups(policy, sample, choice.candidates)]
            before, after = (np.exp(reference_logps(model, seen)[:, 0]) for model in (start, policy))
            for k, (p, q) in enumerate(zip(before, after, strict=True), start=-1):
                rows.append({"sample": sample.number, "k": k, "p_before": float(p), "p_after": float(q)})
        return pd.DataFrame(rows)


def logged_of(choices: Sequence[Choice]) -> dict[str, list[float]]:
    """What a training step logs of its bags, [sample]."""
    return {
        "divergence": [max(choice.far, default=0.0) for choice in choices],
        "weight": [float(sum(choice.weights)) for choice in choices],
        "fell_back": [float(choice.fell_back) for choice in choices],
        "identical": [float(choice.identical) for choice in choices],
    }


def annotated(policy: Policy, samples: Sequence[Sample]) -> list[PairRow]:
    """For the DPO baseline: pairs of the right answer and the other one of yes and no, under the real clip."""
    other = {"yes": "no", "no": "yes"}
    if bad := {sample.row["response"] for sample in samples} - set(other):
        raise ValueError(f"the arm of annotated answers needs answers yes or no; got {sorted(bad)[:3]}")
    groups = [
        s.group._replace(responses_ids=[*s.group.responses_ids, policy.encode_part(other[s.row["response"]])])
        for s in samples
    ]
    return pair_rows(policy, [sample.id for sample in samples], groups)


def false_rejections(task: EvidenceTask, sample: Sample, choice: Choice) -> list[float]:
    """1 where the oracle answers an altered clip as it answers the original, 0 where not; NaN without an oracle."""
    if not isinstance(task, PlantedEvidence):
        return [math.nan] * len(choice.candidates)
    prompt = sample.row["prompt"]
    right = task.truth(sample.row["evidence"], prompt)
    return [float(task.truth(clip.evidence, prompt) == right) for clip in choice.candidates]


def rates_of(table: pd.DataFrame) -> dict[str, Any]:
    """What was selected: false rejections in all, by question and by kind; closeness, divergence, weight; what was left
    out."""
    if table.empty:
        return {}
    picked: Any = table[table["weight"] > 0]
    samples: Any = table.groupby("sample")[["fell_back", "identical"]].first().sum()
    means: Any = picked[["is_false", "far", "close", "weight"]].mean().rename({"is_false": "false_rejections"})
    rates: dict[str, Any] = {name: float(value) for name, value in means.items()}
    rates |= {name: int(value) for name, value in samples.items()} | {"n": len(picked)}
    for name, column in (("by_question", "question"), ("by_kind", "candidate")):
        rates[name] = {str(key): float(value) for key, value in picked.groupby(column)["is_false"].mean().items()}
    return rates
