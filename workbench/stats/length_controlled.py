"""Length-controlled win rates: what a judge would say if every answer were as long as the baseline's.

Penalised logistic regression on soft preferences [model, instruction], NaN where not judged, all models at once:

    logit P(model m wins on x) = level_m + effect_m length_m(x) + difficulty_x

with `length` the tanh of the standardised length difference; the penalty is l2_length sum (effect_m - mean effect)^2
+ l2_difficulty sum difficulty_x^2. The rate is the mean over x of sigma(level_m + difficulty_x).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy.special import expit

RIDGE = 1e-6  # on a model's level, only to keep a model that never wins finite

Fit = tuple[np.ndarray, np.ndarray, np.ndarray]


def bounded_length(gap: np.ndarray) -> np.ndarray:
    """tanh of length differences in their own standard deviations; all lengths equal: 0."""
    return np.tanh(gap / (float(np.std(gap)) or 1.0))


def fit(preference: np.ndarray, length: np.ndarray, l2_length: float, l2_difficulty: float, weight: np.ndarray) -> Fit:
    """Levels, length effects [model] and difficulties [instruction] by damped Newton, in nats.

    `weight` [instruction] counts an instruction several times, with its penalty, as a bootstrap round does.
    Difficulties touch each other only through the models, so they are eliminated first (Schur complement).
    """
    n = len(preference)
    y, t, w = np.nan_to_num(preference), length, ~np.isnan(preference) * weight
    pull = RIDGE * np.eye(2 * n)  # penalty matrix of (level, effect)
    pull[n:, n:] = l2_length * (np.eye(n) - 1 / n) + RIDGE * np.eye(n)
    own = l2_difficulty * np.where(weight > 0, weight, 1.0)
    x, d = np.zeros(2 * n), np.zeros(len(weight))

    def loss(x: np.ndarray, d: np.ndarray) -> float:
        logit = x[:n, None] + x[n:, None] * t + d
        return float((w * (np.logaddexp(0, logit) - y * logit)).sum() + x @ pull @ x + own @ d**2)

    value = loss(x, d)
    for _ in range(100):
        p = expit(x[:n, None] + x[n:, None] * t + d)
        residual, h = w * (p - y), w * p * (1 - p)
        slope = np.r_[residual.sum(1), (residual * t).sum(1)] + 2 * pull @ x
        slope_d = residual.sum(0) + 2 * own * d
        if max(np.abs(slope).max(), np.abs(slope_d).max()) < 1e-8:
            break
        cross, diagonal = np.r_[h, h * t], h.sum(0) + 2 * own
        hessian = np.diag(np.r_[h.sum(1), (h * t * t).sum(1)]) + 2 * pull
        hessian[np.arange(n), n + np.arange(n)] = hessian[n + np.arange(n), np.arange(n)] = (h * t).sum(1)
        step = np.linalg.solve(hessian - (cross / diagonal) @ cross.T, slope - cross @ (slope_d / diagonal))
        step_d, size = (slope_d - cross.T @ step) / diagonal, 1.0
        while (trial := loss(x - size * step, d - size * step_d)) > value + 1e-12 * abs(value) and size > 1e-6:
            size /= 2
        x, d, value = x - size * step, d - size * step_d, trial
    return x[:n], x[n:], d


def rates(
    preference: np.ndarray, length: np.ndarray, penalties: tuple[float, float], *, rounds: int, confidence=0.95, seed=0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Rate [model] in percent, lower and upper end of its percentile interval, and length effect (nats).

    The interval is a bootstrap of `rounds` over instructions; without rounds it is NaN.
    """
    count = preference.shape[1]
    level, effect, difficulty = fit(preference, length, *penalties, np.ones(count))
    rate = 100 * expit(level[:, None] + difficulty).mean(1)
    boot, rng = np.full((max(rounds, 1), len(rate)), np.nan), np.random.default_rng(seed)
    for row in boot[:rounds]:
        weight = np.bincount(rng.integers(count, size=count), minlength=count).astype(float)
        a, _, d = fit(preference, length, *penalties, weight)
        row[:] = 100 * expit(a[:, None] + d) @ weight / weight.sum()
    lower, upper = np.quantile(boot, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return rate, lower, upper, effect


def held_out_losses(
    preference: np.ndarray, length: np.ndarray, pairs: Sequence[tuple[float, float]], *, folds: int, seed: int
) -> np.ndarray:
    """Loss [pair of penalties, instruction], nats, summed over models; a fold is predicted by a fit to the others."""
    seen, fold = ~np.isnan(preference), np.random.default_rng(seed).integers(folds, size=preference.shape)
    everyone: np.ndarray = np.ones(preference.shape[1])
    losses: np.ndarray = np.zeros((len(pairs), *preference.shape))
    for (place, pair), number in product(enumerate(pairs), range(folds)):
        level, effect, difficulty = fit(np.where(fold != number, preference, np.nan), length, *pair, everyone)
        logit = level[:, None] + effect[:, None] * length + difficulty
        held_out = seen & (fold == number)
        losses[place][held_out] = (np.logaddexp(0, logit) - preference * logit)[held_out]
    return losses.sum(1)
