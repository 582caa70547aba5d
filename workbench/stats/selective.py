"""Which claims to keep: ROC of a score that should be low for invented claims, and their share among those kept.

Equal means equal to nine digits, and rows of equal score count as their expectation over random orders, so the order
of a file decides nothing.

Conventions: `h` [n] is 1 for invented (the positive class) and 0 for real; `s` [n], higher looks more real.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from workbench.stats.bootstrap import cluster_counts, middle

THRESHOLDS = np.linspace(-0.05, 0.99, 50)  # the paper's
DIGITS = 9


class Interval(NamedTuple):
    """A number and its 95 % interval over clusters; NaN where it is undefined."""

    value: float
    lower: float
    upper: float


class FdrCurve(NamedTuple):
    """For each threshold: rows kept (score above it), their share of all, and the share of invented rows among them."""

    threshold: np.ndarray
    kept: np.ndarray
    fraction: np.ndarray
    fdr: np.ndarray


def _checked(h: ArrayLike, s: ArrayLike, ids: Sequence[object] | None) -> tuple[np.ndarray, np.ndarray]:
    labels, scores = np.asarray(h, dtype=np.float64), np.asarray(s, dtype=np.float64)
    if labels.ndim != 1 or labels.shape != scores.shape or not len(labels):
        got = f"{labels.shape} and {scores.shape}"
        raise ValueError(f"labels and scores must be lists of the same length, at least 1; got {got}")
    for what, wrong in (("score is nan", np.isnan(scores)), ("label is not 0 or 1", (labels != 0) & (labels != 1))):
        if wrong.any():
            rows = np.flatnonzero(wrong)[:10]
            named = ", ".join(str(row if ids is None else ids[row]) for row in rows)
            raise ValueError(f"{what} in {wrong.sum()} rows: {named}; leave them out and count them, or mend them")
    return labels, scores.round(DIGITS)


def _by_score(scores: np.ndarray, *columns: np.ndarray) -> Iterator[np.ndarray]:
    """Sums [rounds, group] of columns [rounds, n] over rows of equal score, the lowest score first."""
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    return (np.add.reduceat(column[:, order], starts, axis=1) for column in columns)


def roc(h: ArrayLike, s: ArrayLike, *, ids: Sequence[object] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates of "invented where s <= tau", from (0, 0) to (1, 1); a tie is one straight line."""
    labels, scores = _checked(h, s, ids)
    _, group = np.unique(scores, return_inverse=True)
    hit, miss = np.bincount(group, labels), np.bincount(group, 1 - labels)
    with np.errstate(invalid="ignore"):
        return tuple(np.concatenate([[0.0], np.cumsum(part) / part.sum()]) for part in (miss, hit))  # type: ignore[return-value]


def auroc(
    h: ArrayLike, s: ArrayLike, weights: np.ndarray | None = None, *, ids: Sequence[object] | None = None
) -> np.ndarray:
    """P(an invented row scores below a real one) + half P(equal), a row of `weights` [rounds, n]; NaN for one class."""
    labels, scores = _checked(h, s, ids)
    weights = np.ones((1, len(labels))) if weights is None else weights
    hit, miss = _by_score(scores, weights * labels, weights * (1 - labels))
    above = miss.sum(1, keepdims=True) - np.cumsum(miss, axis=1)  # real rows with a higher score
    pairs = hit.sum(1) * miss.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(pairs > 0, (hit * (above + miss / 2)).sum(1) / pairs, math.nan)


def roc_ci(
    h: ArrayLike,
    s: ArrayLike,
    cluster: Sequence[object],
    *,
    rounds: int = 1_000,
    seed: int = 0,
    ids: Sequence[object] | None = None,
) -> Interval:
    """AUROC for invented rows with score -s, and its interval over clusters.

    Args:
        cluster: [n], which rows belong together.
        ids: names of the rows, for messages.

    Raises:
        ValueError: a score is NaN or a label not 0 or 1; the rows are named.
    """
    value = float(auroc(h, s, ids=ids)[0])
    if math.isnan(value):
        warnings.warn(f"AUROC is undefined: all {len(np.asarray(h))} labels are the same", stacklevel=2)
        return Interval(math.nan, math.nan, math.nan)
    return Interval(value, *middle(auroc(h, s, cluster_counts(cluster, rounds, seed))))


def gains_ci(
    h: ArrayLike,
    scores: Mapping[str, ArrayLike],
    pairs: Sequence[tuple[str, str]],
    cluster: Sequence[object],
    *,
    rounds: int = 1_000,
    seed: int = 0,
) -> dict[tuple[str, str], Interval]:
    """AUROC of the first score minus that of the second, for each pair of names, both from the same drawn rows."""
    draws = cluster_counts(cluster, rounds, seed)
    every = {name: (float(auroc(h, scores[name])[0]), auroc(h, scores[name], draws)) for pair in pairs for name in pair}
    return {(a, b): Interval(every[a][0] - every[b][0], *middle(every[a][1] - every[b][1])) for a, b in pairs}


def mean_ci(values: ArrayLike, cluster: Sequence[object], *, rounds: int = 1_000, seed: int = 0) -> Interval:
    """Mean of a column (the share of invented rows, say) and its interval over clusters."""
    draws, column = cluster_counts(cluster, rounds, seed), np.asarray(values, dtype=np.float64)
    return Interval(float(column.mean()), *middle(draws @ column / draws.sum(1)))


def fdr_curve(
    h: ArrayLike, s: ArrayLike, thresholds: ArrayLike = THRESHOLDS, *, ids: Sequence[object] | None = None
) -> FdrCurve:
    """What is left when only rows with s > tau are kept, for each tau; the FDR of an empty list is NaN."""
    labels, scores = _checked(h, s, ids)
    taus = np.asarray(thresholds, dtype=np.float64)
    above = scores[None, :] > taus.round(DIGITS)[:, None]
    kept = above.sum(1)
    return FdrCurve(taus, kept, kept / len(labels), np.where(kept > 0, above @ labels / np.maximum(kept, 1), math.nan))


def fdr_at(
    h: ArrayLike,
    s: ArrayLike,
    fractions: ArrayLike,
    weights: np.ndarray | None = None,
    *,
    ids: Sequence[object] | None = None,
) -> np.ndarray:
    """Expected share of invented rows among the best-scored `fractions` (0 to 1), for each row of `weights`: [rounds,
    fractions].

    Inside a tie a random part is kept. Below the smallest group that a threshold can keep, the value is that group's.
    """
    labels, scores = _checked(h, s, ids)
    weights = np.ones((1, len(labels))) if weights is None else weights
    size, hit = _by_score(-scores, weights, weights * labels)
    wanted = np.asarray(fractions, dtype=np.float64)
    found = np.empty((len(weights), len(wanted)))
    for i in range(len(weights)):
        some = size[i] > 0
        n, invented = (np.concatenate([[0.0], np.cumsum(part[i][some])]) for part in (size, hit))
        # Within equal scores the order is random, so the expected count is linear in between. At least 1e-9 is kept, so
        # that the smallest coverage is the rate among the highest scores and not 0/0.
        rows = np.maximum(wanted * n[-1], 1e-9)
        found[i] = np.interp(rows, n, invented) / rows
    return found


def fleiss_kappa(ratings: ArrayLike) -> float:
    """Chance-corrected agreement of several raters on one another's rows: `ratings` [row, rater], whole numbers."""
    table = np.asarray(ratings, dtype=np.int64)
    counts = (table[:, :, None] == np.unique(table)).sum(1)
    raters = table.shape[1]
    observed = float(np.mean(((counts**2).sum(1) - raters) / (raters * (raters - 1))))
    by_chance = float(((counts.sum(0) / counts.sum()) ** 2).sum())
    return (observed - by_chance) / (1 - by_chance) if by_chance < 1 else math.nan
