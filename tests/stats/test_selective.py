"""ROC, false discovery curves, their cluster bootstrap: another implementation, by hand, bad input."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from workbench import metrics
from workbench.stats import selective

rows = st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.3, 1.0])), min_size=2, max_size=40)


def columns(pairs):
    return np.array([h for h, _ in pairs], dtype=float), np.array([s for _, s in pairs])


@given(rows)
def test_auroc_and_roc_are_those_of_scikit_learn_with_invented_as_positive(pairs):
    h, s = columns(pairs)
    if len(set(h)) == 1:
        assert math.isnan(selective.auroc(h, s)[0])
        return
    assert selective.auroc(h, s)[0] == pytest.approx(roc_auc_score(h, -s))
    fpr, tpr, _ = roc_curve(h, -s, drop_intermediate=False)
    np.testing.assert_allclose(selective.roc(h, s), [fpr, tpr])


@given(rows, st.randoms(use_true_random=False))
def test_the_order_of_rows_and_any_rising_map_of_scores_change_nothing(pairs, random):
    h, s = columns(pairs)
    order = list(range(len(h)))
    random.shuffle(order)
    for moved in ((h[order], s[order]), (h, np.exp(3 * s))):
        np.testing.assert_allclose(selective.auroc(*moved), selective.auroc(h, s))
        np.testing.assert_allclose(selective.fdr_at(*moved, [0.05, 0.5, 1]), selective.fdr_at(h, s, [0.05, 0.5, 1]))


@given(rows)
def test_the_expected_false_discovery_rate_is_one_less_accuracy_at_coverage(pairs):
    h, s = columns(pairs)
    curve = metrics.accuracy_coverage(s, 1 - h)
    np.testing.assert_allclose(selective.fdr_at(h, s, curve.coverage)[0], 1 - curve.accuracy, atol=1e-9)


def test_a_weight_is_a_repeated_row():
    h, s, w = np.array([1, 0, 1, 0.0]), np.array([0.1, 0.5, 0.5, 0.9]), np.array([2, 0, 1, 3])
    repeated = np.repeat(h, w), np.repeat(s, w)
    np.testing.assert_allclose(selective.auroc(h, s, w[None].astype(float)), selective.auroc(*repeated))
    weighted = selective.fdr_at(h, s, [0.3, 0.7], w[None].astype(float))
    np.testing.assert_allclose(weighted, selective.fdr_at(*repeated, [0.3, 0.7]))


def test_fdr_curve_by_hand():
    """Strictly above the threshold; nothing left is NaN; 0.1 + 0.2 is 0.3."""
    curve = selective.fdr_curve([1, 1, 0, 0], [0.1 + 0.2, 0.5, 0.5, 1.0], [-0.05, 0.3, 0.5, 1.0])
    assert curve.kept.tolist() == [4, 3, 1, 0]
    assert curve.fraction.tolist() == [1, 0.75, 0.25, 0]
    np.testing.assert_allclose(curve.fdr, [0.5, 1 / 3, 0, math.nan])
    assert len(selective.fdr_curve([1], [0.2]).threshold) == 50
    assert selective.THRESHOLDS[0] == -0.05
    assert selective.THRESHOLDS[-1] == 0.99


def test_below_the_smallest_group_the_curve_is_that_groups_rate():
    h, s = [1, 0, 0, 0, 1, 1], [1, 1, 1, 1, 0.5, 0.2]
    np.testing.assert_allclose(selective.fdr_at(h, s, [0.01, 0.2, 4 / 6, 1.0])[0], [0.25, 0.25, 0.25, 0.5])


def test_clusters_make_the_interval_wider_when_their_rows_are_copies():
    rng = np.random.default_rng(0)
    h, s = rng.integers(2, size=60), rng.random(60)
    copied, topic = (np.repeat(column, 5) for column in (h, s)), np.repeat(np.arange(60), 5)
    h5, s5 = copied
    together = selective.roc_ci(h5, s5, topic, seed=1)
    apart = selective.roc_ci(h5, s5, range(300), seed=1)
    assert together.value == pytest.approx(apart.value)
    ratio = (together.upper - together.lower) / (apart.upper - apart.lower)
    assert ratio == pytest.approx(math.sqrt(5), rel=0.2)
    assert selective.roc_ci(h5, s5, topic, seed=1) == together


def test_gains_draw_the_same_rows_for_both_scores():
    rng = np.random.default_rng(0)
    h, s = rng.integers(2, size=100), rng.random(100)
    gains = selective.gains_ci(h, {"a": s, "b": s, "c": -s}, [("a", "b"), ("a", "c")], range(100))
    assert gains["a", "b"] == (0, 0, 0)
    assert gains["a", "c"].value == pytest.approx(2 * selective.auroc(h, s)[0] - 1)


def test_the_interval_covers_about_as_often_as_it_says():
    """300 draws of 100 clusters of 4, true area 0.76: covered in about 95 % (with 40 clusters: 91 %)."""
    from scipy.stats import norm

    truth, hits = norm.cdf(1 / math.sqrt(2)), 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        h = np.tile([1, 1, 0, 0], 100)
        s = rng.normal(size=400) - h
        low, high = selective.roc_ci(h, s, np.repeat(range(100), 4), rounds=200, seed=5_000 + seed)[1:]
        hits += low <= truth <= high
    assert 0.91 <= hits / 300 <= 0.98


def test_mean_ci():
    value, low, high = selective.mean_ci([1, 1, 0, 0] * 50, range(200))
    assert value == 0.5
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(200), rel=0.15)


def test_fleiss_kappa_by_hand():
    """Fleiss 1971, table of 10 subjects and 14 raters: 0.21."""
    counts = [
        [0, 0, 0, 0, 14],
        [0, 2, 6, 4, 2],
        [0, 0, 3, 5, 6],
        [0, 3, 9, 2, 0],
        [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0],
        [3, 2, 6, 3, 0],
        [2, 5, 3, 2, 2],
        [6, 5, 2, 1, 0],
        [0, 2, 2, 3, 7],
    ]
    assert selective.fleiss_kappa([np.repeat(range(5), row) for row in counts]) == pytest.approx(0.2099, abs=1e-4)
    assert math.isnan(selective.fleiss_kappa([[1, 1], [1, 1]]))


def test_one_class_has_no_auroc():
    with pytest.warns(UserWarning, match="AUROC is undefined: all 3 labels are the same"):
        assert math.isnan(selective.roc_ci([1, 1, 1], [0, 0.5, 1], range(3)).value)


@pytest.mark.parametrize(
    ("h", "s", "message"),
    [
        ([1, 0, 1], [0.1, math.nan, math.nan], "score is nan in 2 rows: b, c; leave them out and count them"),
        ([1, 0.5, 1], [0.1, 0.2, 0.3], "label is not 0 or 1 in 1 rows: b"),
        ([1, 0], [0.1], "lists of the same length"),
        ([], [], "at least 1"),
    ],
)
def test_bad_rows_are_named(h, s, message):
    for function in (selective.auroc, selective.roc, selective.fdr_curve):
        with pytest.raises(ValueError, match=message):
            function(h, s, ids=["a", "b", "c"])
