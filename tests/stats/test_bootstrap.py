"""Bootstrap and sign flips: closed forms, brute force, ties, pairing, and what bad scores say."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.stats.bootstrap import bootstrap_p, cluster_counts, draws, gap_test, gaps, middle, sign_flip_p

SCORES = st.lists(st.integers(0, 100).map(lambda i: i / 100), min_size=1, max_size=8)


@given(SCORES)
def test_sign_flips_by_brute_force(differences):
    flips = [np.dot(signs, differences) for signs in itertools.product((1, -1), repeat=len(differences))]
    assert sign_flip_p(np.array(differences)) == pytest.approx(np.mean(np.array(flips) >= sum(differences) - 1e-9))


def test_sign_flips_by_hand():
    """Ten positive differences: one flip of 1,024 is as large."""
    assert sign_flip_p(np.full(10, 0.3)) == 2**-10
    assert sign_flip_p(np.zeros(10)) == 1
    assert sign_flip_p(np.full(30, 0.3)) == pytest.approx(1 / 10_001, abs=1e-9)  # drawn, never 0


@settings(max_examples=30, deadline=None)
@given(SCORES, SCORES, st.booleans())
def test_bounds_and_means(one, two, paired):
    n = min(len(one), len(two))
    test = gap_test(one[:n], two[:n], rounds=200, paired=paired)
    assert 0 <= test.p <= 1
    assert test.lower - 1e-9 <= test.gap <= test.upper + 1e-9 or n < 4  # few items: percentiles are coarse
    assert test.gap == pytest.approx(np.mean(two[:n]) - np.mean(one[:n]))
    assert np.isnan(test.p_permutation) == (not paired)
    assert gap_test(two[:n], two[:n], rounds=50).p == 1  # compared with itself


@pytest.mark.parametrize("paired", [True, False])
def test_equal_constants_are_no_evidence(paired):
    """0.3 summed ten times rounds; p must be 1 all the same."""
    test = gap_test([0.3] * 10, [0.3] * 10, paired=paired)
    assert (test.p, test.gap) == (1.0, 0.0)
    assert gap_test([0.1 + 0.2] * 10, [0.3] * 10, paired=paired).p == 1


def test_pairing_uses_the_same_items_on_both_sides():
    """Guided is 0.01 higher in every item of very different height: certain when paired, lost when not."""
    general = np.linspace(0, 0.9, 10)
    assert gap_test(general, general + 0.01).p == 0
    assert gap_test(general, general + 0.01, paired=False).p > 0.3
    assert gap_test(general + 0.01, general).p == 1


def test_draws_are_given_or_seeded():
    places = draws(4, 3, 7)
    assert (places == draws(4, 3, 7)).all()
    found = gaps(np.array([0.0, 1.0]), np.array([1.0, 1.0]), np.array([[0, 0], [1, 1]]), np.array([[0, 1], [0, 1]]))
    assert found.tolist() == [1.0, 0.0]
    assert bootstrap_p(found) == 0.5


@pytest.mark.parametrize(
    ("general", "guided", "paired", "message"),
    [
        ([0.1, float("nan")], [0.1, 0.2], True, "general score 1 is nan; an empty completion scores 0"),
        ([0.1], [0.1, 0.2], True, "a paired test needs both scores of every instance; got 1 general and 2 guided"),
        ([0.1], [], False, r"guided needs a list with at least one score; got shape \[0\]"),
    ],
)
def test_bad_scores(general, guided, paired, message):
    with pytest.raises(ValueError, match=message):
        gap_test(general, guided, paired=paired)


def test_whole_clusters_are_drawn_and_undefined_rounds_do_not_count():
    counts = cluster_counts(["a", "b", "a", "c"], 50, 0)
    assert (counts[:, 0] == counts[:, 2]).all()
    assert (counts[:, [0, 1, 3]].sum(1) == 3).all()
    assert middle([*range(101), np.nan, np.inf]) == pytest.approx((2.5, 97.5))
    assert middle([*range(101)], 0.9) == pytest.approx((5, 95))
    assert np.isnan(middle([np.nan, np.nan])).all()
    assert np.shape(middle(np.zeros((9, 3)))) == (2, 3)
