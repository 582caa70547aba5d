"""Splits of preference pairs by the margin that a reward model gives them: easy, hard, in conflict with the label."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import runs
from workbench.data import Row
from workbench.models import Policy
from workbench.training.loop import TrainConfig
from workbench.training.reference import model_key
from workbench.training.reward_model import RewardModel, train_reward_model

log = logging.getLogger(__name__)


class Split(NamedTuple):
    """Which part each pair is in ("easy", "hard", "conflict"), its margin, and the threshold."""

    part: np.ndarray
    margin: np.ndarray
    gamma: float

    def pairs(self, name: str) -> np.ndarray:
        """Pairs whose labels a stage of this name trains on: pairs in conflict only with "all"."""
        return self.part == name if name != "all" else np.full(len(self.part), True)

    def prompts(self, name: str) -> np.ndarray:
        """Pairs whose prompts a stage of this name uses: those in conflict go with the hard ones."""
        return self.pairs(name) | ((self.part == "conflict") & (name == "hard"))


def out_of_fold_margins(
    start: Policy, rows: list[Row], training: TrainConfig, *, folds: int, seed: int, max_length: int
) -> np.ndarray:
    """r(chosen) - r(rejected) of every pair, by a reward model of the other folds, [pair]; 1 fold scores its own."""
    key = {"kind": "margins", "code": runs.code_hash(__name__), "seed": seed, "rows": rows, "start": model_key(start)}
    key |= {"training": asdict(training), "folds": folds, "max_length": max_length}

    def build(folder: Path) -> None:
        fold = np.random.default_rng([seed, 6]).permutation(len(rows)) % folds
        margins = np.zeros(len(rows))
        for number in range(folds):
            inside = np.flatnonzero(fold == number)
            others = [rows[i] for i in np.flatnonzero(fold != number)] if folds > 1 else rows
            model, _ = train_reward_model(start, others, training, seed=seed, max_length=max_length)
            prompts = [rows[i]["prompt"] for i in inside]
            chosen, rejected = (
                model.score(prompts, [rows[i][side] for i in inside]) for side in ("chosen", "rejected")
            )
            margins[inside] = chosen - rejected
        runs.write_json(folder / "margins.json", margins.tolist())

    return np.array(runs.read_json(runs.cached_folder(key, build) / "margins.json"))


def split_pairs(
    margin: np.ndarray,
    *,
    gamma: float = 0.0,
    quantile: float = 0.5,
    conflict: str = "apart",
    shuffle: int | None = None,
) -> Split:
    """Easy, hard and in conflict with the label, by the margin.

    Args:
        gamma: the threshold; 0 takes the `quantile` of |margin|.
        conflict: "apart", or "abs": a large margin against the label is easy too, with the label as given.
        shuffle: a seed that deals the parts out at random, in the same sizes; None keeps them.

    Raises:
        ValueError: NaN margins, or a threshold that leaves no pair on one side.
    """
    if len(bad := np.flatnonzero(~np.isfinite(margin))):
        raise ValueError(f"the margins of pairs {bad[:10].tolist()} are NaN or infinite; look at these rows")
    gamma = gamma or float(np.quantile(np.abs(margin), quantile))
    part = np.where(np.abs(margin) <= gamma, "hard", np.where(margin > gamma, "easy", "conflict"))
    if conflict == "abs":
        part = np.where(part == "conflict", "easy", part)
    for name in ("easy", "hard"):
        share = float(np.mean(part == name))
        if share == 0:
            raise ValueError(
                f"gamma={gamma:.3g} leaves no {name} pair among {len(part)}; choose another gamma or quantile"
            )
        if share < 0.05:
            log.warning("gamma=%.3g leaves only %.1f %% of the pairs %s", gamma, 100 * share, name)
    if shuffle is not None:
        part = np.random.default_rng([shuffle, 7]).permutation(part)
    return Split(part, margin, gamma)


def split_table(rows: Sequence[Row], split: Split, score: Any = None) -> pd.DataFrame:
    """Pairs with their margin and part; where the true reward is known, also the true gap (negative: a wrong label)."""
    table = pd.DataFrame({name: [row[name] for row in rows] for name in ("chosen", "rejected")})
    table = table.assign(prompt=[str(row["prompt"]) for row in rows], margin=split.margin, part=split.part)
    if score is not None:
        asked = [row["prompt"] for row in rows]
        table["true_gap"] = score(asked, [r["chosen"] for r in rows]) - score(asked, [r["rejected"] for r in rows])
    return table


def check_reward_model(model: RewardModel, accuracy: float, test: Sequence[Row], *, strict: bool) -> None:
    """A split is as good as the reward model; `strict` False (labels shuffled on purpose) only looks at the scale."""
    scores = model.score([row["prompt"] for row in test], [row["chosen"] for row in test])
    if scores.std() < 1e-6:
        raise ValueError(
            f"the reward model did not learn: the rewards of {len(scores)} responses are all {scores[0]:.3g}"
        )
    if strict and accuracy < 0.5:
        raise ValueError(
            f"the reward model's accuracy on held-out pairs is {accuracy:.2f}, below a coin's: a split by its margins"
            " means nothing; look at the labels, or train it longer (reward_epochs, reward_learning_rate)"
        )
    if strict and accuracy < 0.6:
        log.warning("the reward model's accuracy on held-out pairs is %.2f: the split is not meaningful", accuracy)
