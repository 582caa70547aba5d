"""The bootstrap: draws with replacement, of rows or of whole clusters, and the percentile interval of what they give;
and two small samples compared by it and by the exact sign-flip permutation.

Sums are compared with a slack of 1e-9, so that rounding never decides which of two equal means is larger.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

SLACK = 1e-9
_EXACT = 20  # pairs up to which all 2^n sign flips are counted
_FLIPS = 10_000  # drawn where there are more


class GapTest(NamedTuple):
    """Whether `guided` is higher than `general` in the mean.

    Attributes:
        p: share of resamples in which it is not strictly higher.
        gap, lower, upper: difference of the means, with the 95 % percentile interval of the same resamples.
        p_permutation: exact for up to 20 pairs; NaN where the samples are not paired.
    """

    p: float
    mean_general: float
    mean_guided: float
    gap: float
    lower: float
    upper: float
    p_permutation: float


def draws(n: int, rounds: int, seed: int | list[int] | np.random.Generator) -> np.ndarray:
    """Places [round, n], with replacement."""
    return np.random.default_rng(seed).integers(n, size=(rounds, n))


def cluster_counts(cluster: Sequence[object], rounds: int, seed: int) -> np.ndarray:
    """How often each row is drawn in each of `rounds` samples of whole clusters: [rounds, n]."""
    _, member = np.unique(np.asarray(cluster), return_inverse=True)
    n = int(member.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    return counts[:, member].astype(np.float64)


def middle(resampled: ArrayLike, confidence: float = 0.95) -> tuple[Any, Any]:
    """Percentile interval of numbers [rounds, ...], over the rounds in which they are defined (a round may have drawn a
    single class); NaN where there is none."""
    values = np.asarray(resampled, dtype=float)
    values = np.where(np.isfinite(values), values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # "All-NaN slice": that is what NaN says
        low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def gaps(general: np.ndarray, guided: np.ndarray, for_general: np.ndarray, for_guided: np.ndarray) -> np.ndarray:
    """Mean of `guided` minus mean of `general` in every round; paired where both draws are the same array."""
    return guided[for_guided].mean(1) - general[for_general].mean(1)


def bootstrap_p(resampled: np.ndarray) -> float:
    """1 minus the share of rounds whose gap is strictly above 0: two equal constant samples have p = 1, not 0."""
    return float(1 - np.mean(resampled > SLACK))


def sign_flip_p(differences: np.ndarray, *, seed: int = 0) -> float:
    """P(mean of randomly flipped differences >= the observed mean): exact for up to 20 pairs, else 10,000 draws.

    The observed flip counts as one of them, so the p-value is never 0, and it is 1 where all differences are 0.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) > _EXACT:
        signs = np.random.default_rng(seed).choice((-1.0, 1.0), (_FLIPS, len(values)))
        return float((1 + np.sum(signs @ values >= values.sum() - SLACK)) / (1 + _FLIPS))
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums + value, sums - value])
    return float(np.mean(sums >= values.sum() - SLACK))


def gap_test(
    general: np.ndarray, guided: np.ndarray, *, rounds: int = 10_000, paired: bool = True, seed: int = 0
) -> GapTest:
    """The bootstrap test of two samples, the same items on both sides where `paired`.

    Raises:
        ValueError: no scores, another number on one side of pairs, or a score that is NaN (its place is named).
    """
    one, two = np.asarray(general, dtype=float), np.asarray(guided, dtype=float)
    for name, values in (("general", one), ("guided", two)):
        if values.ndim != 1 or not len(values):
            raise ValueError(f"{name} needs a list with at least one score; got shape {list(values.shape)}")
        if np.isnan(values).any():
            what = f"{name} score {int(np.argmax(np.isnan(values)))} is nan"
            raise ValueError(f"{what}; an empty completion scores 0, so look where this comes from")
    if paired and len(one) != len(two):
        got = f"{len(one)} general and {len(two)} guided ones"
        raise ValueError(f"a paired test needs both scores of every instance; got {got}")
    places = draws(len(one), rounds, [seed, 0])
    resampled = gaps(one, two, places, places if paired else draws(len(two), rounds, [seed, 1]))
    low, high = middle(resampled)
    permutation = sign_flip_p(two - one, seed=seed) if paired else float("nan")
    means = float(one.mean()), float(two.mean())
    return GapTest(bootstrap_p(resampled), *means, means[1] - means[0], float(low), float(high), permutation)
