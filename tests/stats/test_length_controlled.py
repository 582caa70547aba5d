"""length_controlled.py: the fit is stationary, is that of a general optimiser, and counts an instruction twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from workbench.stats import length_controlled


@st.composite
def grids(draw):
    """Small tables of preference and length with missing cells; every model and instruction is seen."""
    shape = draw(st.integers(2, 4)), draw(st.integers(3, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    length = length_controlled.bounded_length(rng.integers(0, 200, shape) - 50.0)
    preference = rng.choice([0.0, 0.02, 0.5, 0.9, 1.0], shape)
    preference[1:, 1:][rng.random((shape[0] - 1, shape[1] - 1)) >= 0.8] = np.nan
    return preference, np.where(np.isnan(preference), 0.0, length)


@settings(max_examples=25)
@given(grids(), st.sampled_from([0.01, 1.0]), st.sampled_from([0.1, 1.0]))
def test_length_fit_is_stationary(grid, l2_length, l2_difficulty):
    preference, length = grid
    n, weight = len(preference), np.arange(preference.shape[1]) % 3 + 1.0
    found = np.concatenate(length_controlled.fit(preference, length, l2_length, l2_difficulty, weight))

    def objective(x):
        level, effect, difficulty = x[:n], x[n : 2 * n], x[2 * n :]
        logit = level[:, None] + effect[:, None] * length + difficulty
        loss = np.nan_to_num(np.logaddexp(0, logit) - preference * logit)
        ridge = length_controlled.RIDGE * (x[: 2 * n] ** 2).sum()
        penalty = l2_length * ((effect - effect.mean()) ** 2).sum() + l2_difficulty * (weight * difficulty**2).sum()
        return (weight * loss).sum() + penalty + ridge

    slope = [(objective(found + step) - objective(found - step)) / 2e-5 for step in 1e-5 * np.eye(len(found))]
    assert np.abs(slope).max() < 1e-4
    if l2_length == 1.0:
        best = minimize(objective, np.zeros(len(found)), method="BFGS", options={"gtol": 1e-7}).x
        assert objective(found) <= objective(best) + 1e-7


def test_weight_counts_an_instruction_twice():
    rng = np.random.default_rng(0)
    grid = rng.random((3, 12)), rng.uniform(-1, 1, (3, 12))
    once = length_controlled.fit(*grid, 0.5, 0.1, np.full(12, 2.0))
    twice = length_controlled.fit(*(np.tile(part, 2) for part in grid), 0.5, 0.1, np.ones(24))
    for first, second in zip(once[:2], twice[:2], strict=True):
        assert first == pytest.approx(second, abs=1e-6)
