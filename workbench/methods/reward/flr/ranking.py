"""The ranking test: how often the reward, and what it is compared with, puts held-out pairs in the right order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from workbench.data import Row
from workbench.runs.run import Run
from workbench.tasks.protocols import DeafTask, FollowUpTask
from workbench.training.reference import reference_logps

log = logging.getLogger(__name__)


def pairwise_accuracy(margins: np.ndarray) -> float:
    """Share of pairs in which the better response has the higher score; ties count half.

    Args:
        margins: score of the better response minus that of the worse one, [pair].
    """
    return float(np.mean(0.5 + 0.5 * np.sign(margins)))


def rating_agreement(values: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
    """Correlations of a score with ratings, by rank (Spearman, Kendall's tau b) and linear (Pearson)."""
    tests: dict[str, Any] = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    return {name: float(test(values, ratings).statistic) for name, test in tests.items()}


def length_bias(values: np.ndarray, responses: Sequence[str]) -> dict[str, float]:
    """How a score follows length: Spearman's correlation with the number of words; 0 where either is constant."""
    lengths = np.array([len(text.split()) for text in responses])
    varied = np.ptp(lengths) > 0 and np.ptp(values) > 0
    test: Any = stats.spearmanr(values, lengths) if varied else None
    return {"length_correlation": float(test.statistic) if test else 0.0, "mean_words": float(lengths.mean())}


def ranking_test(
    task: FollowUpTask, rewards: Mapping[str, Callable[[], Any]], seed: int, run: Run, *, max_length: int
) -> dict[str, float]:
    """Pairwise accuracy of the reward and of its controls on held-out pairs; ties count half.

    Args:
        rewards: opens each scorer's `Reward`; they are opened one after the other, as they may be large.
    """
    start, reward = task.start(seed), rewards["flr"]()
    pairs = _that_fit(reward, task.preferences("test", seed))
    rows = [{"prompt": row["prompt"], "response": row[side]} for side in ("chosen", "rejected") for row in pairs]

    def accuracy(values: np.ndarray) -> float:
        return pairwise_accuracy(values[: len(pairs)] - values[len(pairs) :])

    groups = [start.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=max_length) for row in pairs]
    own = reference_logps(start, groups) / [[len(ids) for ids in group.responses_ids] for group in groups]
    numbers = {
        "pairs": len(pairs),
        "own_likelihood": pairwise_accuracy(own[:, 0] - own[:, 1]),
        "length": accuracy(np.array([len(row["response"].split()) for row in rows], float)),
    }
    run.cached("phrases", lambda: reward.follow_ups.table)
    for name, opened in rewards.items():
        reward = reward if name == "flr" else opened()
        for statistic in reward.statistics:
            scored = replace(reward, statistic=statistic)(rows)
            numbers[f"{name}_{statistic}"] = accuracy(scored.flr)
            if statistic != reward.statistic:
                continue
            numbers |= {name: accuracy(scored.flr), f"{name}_positive": accuracy(scored.positive)}
            few = min(len(phrases) for both in scored.follow_ups.sets.values() for phrases in both.values())
            ones = [accuracy(scored.of_phrases([i])) for i in range(few)]
            some = [accuracy(scored.of_phrases([(i + k) % few for k in range(max(few // 2, 1))])) for i in range(few)]
            numbers |= {f"{name}_one_phrase": float(np.mean(ones)), f"{name}_one_phrase_sd": float(np.std(ones))}
            numbers[f"{name}_half_phrases_sd"] = float(np.std(some))
            if isinstance(task, DeafTask):
                truth = task.score([row["prompt"] for row in rows], [row["response"] for row in rows])
                numbers |= {f"{name}_{test}": value for test, value in rating_agreement(scored.flr, truth).items()}
            if name in ("flr", "tuned"):
                run.table(f"scores-{name}", partial(_table, rows, len(pairs), scored))
    return numbers


def _that_fit(reward: Any, pairs: Sequence[Row]) -> list[Row]:
    """Pairs whose responses can be scored whole in either layout; the others are left out and counted.

    Raises:
        ValueError: none is left.
    """
    placed = [replace(reward, layout=layout) for layout in ("next_turn", "swapped")]
    fine = [
        row
        for row in pairs
        if all(p.fits({**row, "response": row[side]}) for side in ("chosen", "rejected") for p in placed)
    ]
    if not fine:
        window = reward.max_length or reward.scorer.max_length
        raise ValueError(f"none of {len(pairs)} pairs fits into max_length={window} with its follow-ups")
    if left := len(pairs) - len(fine):
        log.warning("%d of %d pairs have a response too long to be scored whole: left out", left, len(pairs))
    return fine


def _table(rows: Sequence[Row], n: int, scored: Any) -> pd.DataFrame:
    """Every scored response with the likelihoods of all its phrases, in the order of the set."""
    table = {"prompt": [str(row["prompt"]) for row in rows], "response": [row["response"] for row in rows]}
    table["side"] = ["chosen"] * n + ["rejected"] * (len(rows) - n)
    table |= {"flr": scored.flr, "key": scored.key, "likelihoods": scored.likelihoods.tolist()}
    return pd.DataFrame(table)
