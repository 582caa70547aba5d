"""Trends over rounds: slopes, rank correlations, the weakest round; arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np


def slopes(values: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row against its index; 0 for a single value."""
    rounds = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    return values @ rounds / (rounds @ rounds) if values.shape[1] > 1 else np.zeros(len(values))


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row with its index; 0 for a single value or values that are all the same."""
    from scipy import stats

    def correlation(row: np.ndarray) -> float:
        found: Any = stats.spearmanr(np.arange(len(row)), row)
        return float(found.statistic)

    return np.array([correlation(row) if len(row) > 1 and np.ptp(row) > 0 else 0.0 for row in values])


def weakest_round(values: np.ndarray) -> int:
    """All rounds must pass, so the one with the smallest mean over standard error speaks for them [seed, round]."""
    return int(np.argmin(values.mean(0) / (values.std(0, ddof=min(1, len(values) - 1)) + 1e-9)))
