"""Opponents: schedules, the matchups as matches; the information of a match, batches without repeats, their worth."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import expit

from workbench import ranking
from workbench.methods.confidence.relative_confidence import opponents
from workbench.methods.confidence.relative_confidence.opponents import information, next_pairs, schedule, to_matches


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 0.3), (-3.0, 4.0)])
def test_information_against_quadrature_by_adaptive_integration(mean, variance):
    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log1p(-p)

    law = stats.norm(mean, np.sqrt(variance))
    p = integrate.quad(lambda d: expit(d) * law.pdf(d), -20, 20)[0]
    h = integrate.quad(lambda d: entropy(expit(d)) * law.pdf(d), -20, 20)[0]
    assert information(np.array([mean]), np.array([variance]))[0] == pytest.approx(entropy(p) - h, abs=1e-4)


@given(mean=st.floats(-4, 4), variance=st.floats(0.01, 10))
def test_information_grows_with_doubt_and_falls_with_distance(mean, variance):
    mean, variance = abs(mean), np.array([variance])
    gain = information(np.array([mean]), variance)[0]
    assert 0 <= gain <= np.log(2)
    assert information(np.array([mean]), 1.5 * variance)[0] >= gain - 1e-4
    assert information(np.array([mean + 1]), variance)[0] <= gain + 1e-4
    assert information(np.array([-mean]), variance)[0] == pytest.approx(gain, abs=1e-12)


@settings(deadline=None, max_examples=25)
@given(n=st.integers(2, 13), seed=st.integers(0, 10**6))
def test_batches_are_disjoint_never_repeat_and_end_with_every_pair(n, seed):
    rng = np.random.default_rng(seed)
    matches = np.empty((0, 3))
    while len(pairs := next_pairs(matches, n, rng)):
        assert len(np.unique(pairs)) == 2 * len(pairs) <= n
        matches = np.vstack([matches, np.column_stack([pairs, rng.integers(0, 2, len(pairs))])])
    met = {tuple(sorted(pair)) for pair in matches[:, :2].astype(int).tolist()}
    assert len(met) == len(matches) == n * (n - 1) // 2


def test_large_sets_take_drawn_candidates_and_the_diagonal():
    rng = np.random.default_rng(0)
    n = opponents.DENSE + 1
    first = next_pairs(np.empty((0, 3)), n, rng)
    matches = np.column_stack([first, rng.integers(0, 2, len(first))])
    second = next_pairs(matches, n, rng)
    assert len(second) > 0.45 * n
    assert not {tuple(sorted(p)) for p in first.tolist()} & {tuple(sorted(p)) for p in second.tolist()}


def test_bad_input():
    with pytest.raises(ValueError, match="active matchups need a posterior, so l2 > 0; got l2=0"):
        next_pairs(np.empty((0, 3)), 4, np.random.default_rng(0), l2=0)
    with pytest.raises(ValueError, match="unknown player"):
        next_pairs(np.array([[0, 9, 1.0]]), 4, np.random.default_rng(0))


def recovered(choose, n=60, rounds=5, seeds=range(20)):
    """Correlation of strengths with the truth after `rounds` judgments a player."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(seed)
        truth, matches = rng.normal(0, 2, n), np.empty((0, 3))
        for _ in range(2 * rounds):
            pairs = choose(matches, n, rng)
            won = rng.random(len(pairs)) < expit(truth[pairs[:, 0]] - truth[pairs[:, 1]])
            matches = np.vstack([matches, np.column_stack([pairs, won])])
        found.append(np.corrcoef(ranking.bradley_terry(matches, n, intervals="none").scores, truth)[0, 1])
    return np.array(found)


def test_chosen_matches_tell_more_than_drawn_ones_and_the_least_telling_less(monkeypatch):
    """Sabotage: with the sign of the information turned the advantage becomes a loss."""
    drawn = recovered(lambda matches, n, rng: rng.permutation(n).reshape(-1, 2))
    chosen = recovered(next_pairs)
    assert stats.wilcoxon(chosen - drawn, alternative="greater").pvalue < 0.01
    monkeypatch.setattr(opponents, "information", lambda mean, variance: -information(mean, variance))
    assert stats.wilcoxon(recovered(next_pairs) - drawn, alternative="less").pvalue < 0.01


# ---- schedules and matches
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
