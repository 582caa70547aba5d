"""Schedules, and the matchups table as matches."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.methods.confidence.relative_confidence.opponents import schedule, to_matches


@given(st.integers(2, 20), st.data(), st.integers(0, 5))
def test_every_host_meets_distinct_others(n, data, seed):
    k = data.draw(st.integers(1, n - 1))
    pairs = schedule(n, k, "random_opponents", np.random.default_rng(seed))
    assert len(pairs) == n * k
    other = np.where(pairs["host"] == pairs["left"], pairs["right"], pairs["left"])
    assert ((pairs["host"] == pairs["left"]) | (pairs["host"] == pairs["right"])).all()
    assert (other != pairs["host"]).all()
    assert len({*zip(pairs["host"], other, strict=True)}) == n * k
    assert pairs.groupby("host")["round"].apply(sorted).tolist() == [list(range(k))] * n


@given(st.integers(2, 20))
def test_round_robin_lets_every_pair_meet_once(n):
    pairs = schedule(n, 1, "round_robin", np.random.default_rng(0))
    met = {frozenset(pair) for pair in zip(pairs["left"], pairs["right"], strict=True)}
    assert len(pairs) == len(met) == n * (n - 1) // 2


def test_both_orders_swaps_the_sides_of_every_pair():
    pairs = schedule(10, 3, "both_orders", np.random.default_rng(0))
    seen = sorted(zip(pairs["host"], pairs["round"], pairs["left"], pairs["right"], strict=True))
    swapped = sorted(zip(pairs["host"], pairs["round"], pairs["right"], pairs["left"], strict=True))
    assert len(pairs) == 60
    assert seen == swapped


def test_sides_are_fair_and_opponents_uniform():
    pairs = schedule(100, 30, "random_opponents", np.random.default_rng(0))
    assert (pairs["host"] == pairs["left"]).mean() == pytest.approx(0.5, abs=0.03)
    games = np.bincount([*pairs["left"], *pairs["right"]], minlength=100)
    assert games.min() >= 30
    assert games.mean() == 60


def test_too_many_opponents_are_reduced_with_a_warning():
    with pytest.warns(UserWarning, match="4 players have 3 opponents each: opponents=15 was reduced"):
        assert len(schedule(4, 15, "random_opponents", np.random.default_rng(0))) == 12


def test_matches_credit_the_left_side():
    table = pd.DataFrame({"host": ["b", "b"], "left": ["a", "b"], "right": ["b", "c"], "outcome": [1.0, 0.5]})
    np.testing.assert_array_equal(to_matches(table, ["a", "b", "c"]), [[0, 1, 1], [1, 2, 0.5]])


def test_an_unknown_player_is_named():
    table = pd.DataFrame({"left": ["a", "a"], "right": ["b", "z"], "outcome": [1.0, 1.0]})
    with pytest.raises(ValueError, match="matchups row 1, column 'right': 'z' is none of the 2 players"):
        to_matches(table, ["a", "b"])
