"""What a score per answer is worth: areas, accuracies of what is kept, calibration, and their errors over questions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from workbench import metrics, ranking
from workbench.stats import bootstrap

COVERAGE = np.arange(1, 21) / 20  # where the accuracy-coverage curve is kept


def measure(
    scores: Mapping[str, np.ndarray],
    correct: np.ndarray,
    rng: np.random.Generator,
    *,
    curves: Sequence[str],
    calibrated: Sequence[str],
    against: Sequence[str],
    main: str = "bt",
) -> dict[str, Any]:
    """What the scores are worth on the answers that are known to be right (1) or wrong (0).

    Args:
        scores: scorer -> [answers], higher is surer.
        correct: [answers], NaN where nobody knows.
        curves: scorers whose accuracy-coverage curve is kept.
        calibrated: scorers that are calibrated on labels, and read as probabilities.
        against: scorers that `main` is compared with, with an error over questions.
    """
    known = np.isfinite(correct)
    y, kept = correct[known], {name: values[known] for name, values in scores.items()}
    if not len(y):
        return {"n": len(correct), "n_labelled": 0}

    def each(metric: Callable, names: Sequence[str] = tuple(kept), **options: Any) -> dict[str, Any]:
        return {name: metric(kept[name], y, **options) for name in names}

    return {
        "n": len(correct),
        "n_labelled": len(y),
        "accuracy": float(y.mean()),
        "oracle": metrics.oracle_auc(y),
        "auc": each(metrics.accuracy_coverage_auc),
        "auroc": each(metrics.auroc),
        "accuracy_at_0.5": each(metrics.accuracy_at_coverage, coverage=0.5),
        "accuracy_at_0.8": each(metrics.accuracy_at_coverage, coverage=0.8),
        "curves": each(curve, curves),
        "calibration": each(calibration, calibrated, rng=rng),
        "gain_se": each(partial(gain_se, kept[main]), against, rng=rng),
    }


def curve(scores: np.ndarray, y: np.ndarray) -> list[float]:
    """Accuracy of the most trusted answers at each `COVERAGE`."""
    return [metrics.accuracy_at_coverage(scores, y, coverage) for coverage in COVERAGE]


def calibration(scores: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """ECE and Brier score after isotonic regression, fitted on one half of the labels and read on the other, both ways.

    Scores as they come, stated numbers or strengths, are no probabilities; labels can make them some.
    """
    from sklearn.isotonic import IsotonicRegression

    first, p = rng.permutation(len(y)) < (len(y) + 1) // 2, np.zeros(len(y))
    for fit in (first, ~first) if len(y) > 1 else ():
        p[~fit] = IsotonicRegression(out_of_bounds="clip").fit(scores[fit], y[fit]).predict(scores[~fit])
    return {"ece": metrics.expected_calibration_error(p, y), "brier": metrics.brier(p, y)}


def gain_se(scores: np.ndarray, baseline: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """Standard error over questions of the difference in AUC: paired bootstrap, 100 rounds."""
    auc, draws = metrics.accuracy_coverage_auc, bootstrap.draws(len(y), 100, rng)
    return float(np.std([auc(scores[rows], y[rows]) - auc(baseline[rows], y[rows]) for rows in draws], ddof=1))


def strengths(matches: np.ndarray, n: int, l2: float) -> np.ndarray:
    """Bradley-Terry's, without intervals."""
    return ranking.bradley_terry(matches, n, l2=l2, intervals="none").scores


def controls(
    matches: np.ndarray,
    rounds: np.ndarray,
    n: int,
    rng: np.random.Generator,
    *,
    budgets: Sequence[int],
    l2: float,
    elo: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """Scores that must carry no signal (outcomes shuffled over the matches) or the opposite one (outcomes negated)."""
    shuffled, negated = matches.copy(), matches.copy()
    shuffled[:, 2], negated[:, 2] = rng.permutation(matches[:, 2]), 1 - matches[:, 2]
    return {
        **{f"bt_shuffled_n{few}": strengths(shuffled[rounds < few], n, l2) for few in budgets},
        "bt_shuffled": strengths(shuffled, n, l2),
        "bt_negated": strengths(negated, n, l2),
        "elo_shuffled": ranking.elo(shuffled, n, **elo, intervals="none").scores,
    }


def score_table(
    answers: pd.DataFrame, scores: Mapping[str, np.ndarray], ratings: Mapping[str, ranking.Ratings]
) -> pd.DataFrame:
    """The answers once for each scorer, with `method`, `score`, `rank` (1: surest), `lower`, `upper`, `n_matches`."""
    unknown, parts = np.full(len(answers), math.nan), []
    for method, values in scores.items():
        rated = ratings.get(method)
        rank = (-pd.Series(values).round(9)).rank(method="min").astype(int).to_numpy()
        lower, upper, n = (rated.lower, rated.upper, rated.n_matches) if rated else (unknown, unknown, 0)
        parts.append(answers.assign(method=method, score=values, rank=rank, lower=lower, upper=upper, n_matches=n))
    return pd.concat(parts, ignore_index=True)


def over_rounds(
    matches: np.ndarray, rounds: ArrayLike, correct: np.ndarray, felt: np.ndarray, *, l2: float
) -> dict[str, list[float]]:
    """Bradley-Terry after 1, 2, ... judgments a question: AUC, and correlation with what the model senses."""
    rounds, known, found = np.asarray(rounds), np.isfinite(correct), {"auc": [], "sensed": []}
    with warnings.catch_warnings():  # after one round the match graph can fall apart
        warnings.filterwarnings("ignore", message="the match graph has")
        for few in range(1, int(rounds.max()) + 2):
            scores = strengths(matches[rounds < few], len(correct), l2)
            if known.any():
                found["auc"].append(metrics.accuracy_coverage_auc(scores[known], correct[known]))
            if len(felt):
                found["sensed"].append(float(np.corrcoef(felt, scores)[0, 1]))
    return found


def elo_orders(
    matches: np.ndarray,
    correct: np.ndarray,
    rng: np.random.Generator,
    *,
    ks: Mapping[str, float],
    passes: int,
    orders: int,
) -> dict[str, list[float]]:
    """Elo's AUC with the same matches in `orders` random orders, for each update size in `ks`."""
    known = np.isfinite(correct)

    def reordered(k: float) -> list[float]:
        elo = partial(ranking.elo, n_players=len(correct), k=k, passes=passes, intervals="none")
        drawn = [elo(rng.permutation(matches)).scores[known] for _ in range(orders)]
        return [metrics.accuracy_coverage_auc(scores, correct[known]) for scores in drawn]

    return {name: reordered(k) for name, k in ks.items()} if known.any() else {}
