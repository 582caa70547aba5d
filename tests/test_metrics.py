"""metrics.py: hand-worked numbers, and the properties that hold for any scores."""

import warnings
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import metrics

RANKING = [metrics.accuracy_coverage_auc, metrics.auroc, metrics.average_precision]
CALIBRATION = [
    metrics.brier,
    metrics.negative_log_likelihood,
    metrics.expected_calibration_error,
    metrics.maximum_calibration_error,
]


@st.composite
def answers(draw, max_size=30, both=True):
    """Coarse scores, so that ties are common, with labels of both classes."""
    n = draw(st.integers(2, max_size))
    scores = draw(st.lists(st.integers(0, 10), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, 1), min_size=n, max_size=n))
    if both:
        labels[0], labels[-1] = 0, 1
    return np.array(scores) / 10, np.array(labels)


def test_worked_example():
    """Scores .9 .9 .5 with labels 1 0 1: the tied pair counts one half each, then 2 of 3 right."""
    curve = metrics.accuracy_coverage([0.9, 0.5, 0.9], [1, 1, 0])
    np.testing.assert_allclose(curve.coverage, [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(curve.accuracy, [1 / 2, 1 / 2, 2 / 3])
    assert metrics.accuracy_coverage_auc([0.9, 0.5, 0.9], [1, 1, 0]) == pytest.approx(5 / 9)
    assert metrics.auroc([0.9, 0.5, 0.9], [1, 1, 0]) == pytest.approx(1 / 4)
    assert metrics.average_precision([0.9, 0.5, 0.9], [1, 1, 0]) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.oracle_auc([1, 1, 0]) == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert metrics.brier([0.9, 0.5], [1, 0]) == pytest.approx((0.01 + 0.25) / 2)
    assert metrics.expected_calibration_error([0.9, 0.5], [1, 0]) == pytest.approx((0.1 + 0.5) / 2)


@given(answers(), st.randoms())
def test_order_metrics_ignore_scale_and_row_order(pair, random):
    scores, labels = pair
    rows = list(range(len(scores)))
    random.shuffle(rows)
    for metric in RANKING:
        value = metric(scores, labels)
        assert metric(scores[rows], labels[rows]) == pytest.approx(value, abs=1e-12)
        assert metric(1000 + 300 * scores**3, labels) == pytest.approx(value, abs=1e-12)


@given(answers(), st.randoms())
def test_calibration_metrics_ignore_row_order(pair, random):
    scores, labels = pair
    rows = list(range(len(scores)))
    random.shuffle(rows)
    for metric in CALIBRATION:
        assert metric(scores[rows], labels[rows]) == pytest.approx(metric(scores, labels), abs=1e-12)


@settings(max_examples=15)
@given(answers(max_size=6, both=False))
def test_tie_rule_is_the_mean_over_all_orders(pair):
    scores, labels = pair
    areas = []
    for rows in permutations(range(len(scores))):
        rows = sorted(rows, key=lambda row: -scores[row])  # stable: the permutation decides inside a tie group
        areas.append(np.mean(np.cumsum(labels[rows]) / np.arange(1, len(rows) + 1)))
    assert metrics.accuracy_coverage_auc(scores, labels) == pytest.approx(np.mean(areas))


def test_ties_hold_to_nine_digits():
    assert metrics.accuracy_coverage_auc([0.3, 0.1 + 0.2], [0, 1]) == 0.5
    assert metrics.auroc([0.3, 0.1 + 0.2], [0, 1]) == 0.5
    assert metrics.auroc([0.3, 0.3 + 1e-8], [0, 1]) == 1


def test_random_order_gives_the_accuracy_in_expectation():
    rng = np.random.default_rng(0)
    labels = (np.arange(40) < 26).astype(int)
    areas = [metrics.accuracy_coverage_auc(rng.random(40), labels) for _ in range(2000)]
    assert np.mean(areas) == pytest.approx(26 / 40, abs=4 * np.std(areas) / np.sqrt(2000))
    assert metrics.accuracy_coverage_auc(np.ones(40), labels) == pytest.approx(26 / 40)


@given(answers())
def test_oracle_bounds_every_order(pair):
    scores, labels = pair
    n, right = len(labels), labels.sum()
    assert metrics.oracle_auc(labels) == pytest.approx(np.mean(np.minimum(1, right / np.arange(1, n + 1))))
    assert metrics.accuracy_coverage_auc(scores, labels) <= metrics.oracle_auc(labels) + 1e-12
    assert metrics.auroc(scores, labels) == pytest.approx(1 - metrics.auroc(-scores, labels))
    assert metrics.accuracy_at_coverage(scores, labels, 1.0) == pytest.approx(labels.mean())


@given(answers(max_size=12))
def test_auroc_counts_pairs(pair):
    scores, labels = pair
    gap = scores[labels == 1][:, None] - scores[labels == 0]
    assert metrics.auroc(scores, labels) == pytest.approx(np.mean((gap > 0) + 0.5 * (gap == 0)))


@given(answers())
def test_calibration_error_lies_below_its_maximum(pair):
    for binning in ("left_closed", "right_closed", "equal_mass"):
        expected = metrics.expected_calibration_error(*pair, binning=binning)
        assert abs(pair[0].mean() - pair[1].mean()) - 1e-12 <= expected
        assert expected <= metrics.maximum_calibration_error(*pair, binning=binning) + 1e-12
    assert metrics.reliability(*pair, bins=7).count.sum() == len(pair[0])


def test_bin_edges():
    at_edge = [0.5]
    assert metrics.reliability(at_edge, [1], bins=2).bin == 1
    assert metrics.reliability(at_edge, [1], bins=2, binning="right_closed").bin == 0
    assert list(metrics.reliability([0.0, 1.0], [0, 1], bins=2).bin) == [0, 1]
    assert list(metrics.reliability([0.0, 1.0], [0, 1], bins=2, binning="right_closed").bin) == [0, 1]
    assert list(metrics.reliability([0.1, 0.2, 0.3], [0, 1, 1], bins=2, binning="equal_mass").count) == [2, 1]


def test_accuracy_at_coverage_takes_the_ceiling():
    scores, labels = np.linspace(1, 0, 100), (np.arange(100) % 7 == 0).astype(int)
    for coverage, kept in ((0.07, 7), (0.071, 8), (0.001, 1), (1.0, 100)):  # 0.07 * 100 is 7.000000000000001
        assert metrics.accuracy_at_coverage(scores, labels, coverage) == pytest.approx(labels[:kept].mean())
    with pytest.raises(ValueError, match=r"coverage must be in \(0, 1\]; got 0"):
        metrics.accuracy_at_coverage(scores, labels, 0)


def test_one_class_is_nan_with_a_message():
    with pytest.warns(UserWarning, match="AUROC is undefined: all 2 answers are right"):
        assert np.isnan(metrics.auroc([0.1, 0.2], [1, 1]))
    with pytest.warns(UserWarning, match="average precision is undefined: all 2 answers are wrong"):
        assert np.isnan(metrics.average_precision([0.1, 0.2], [0, 0]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.accuracy_coverage_auc([0.1, 0.2], [1, 1]) == 1
        assert metrics.accuracy_coverage_auc([0.1, 0.2], [0, 0]) == 0


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.1, 0.2], [1], r"same length; got shapes \[2\] and \[1\]"),
        ([], [], "empty"),
        ([0.1, np.nan], [0, 1], "confidence row 1 is nan"),
        ([0.1, 0.2], [0, 2], "correct row 1: a label must be 0 .* got 2"),
        ([0.1, 0.2], [0, np.nan], "correct row 1: a label must be 0"),
    ],
)
def test_bad_rows_are_named(confidence, correct, message):
    for metric in RANKING + CALIBRATION:
        with pytest.raises(ValueError, match=message):
            metric(confidence, correct)


def test_calibration_refuses_ratings():
    for metric in CALIBRATION:
        with pytest.raises(ValueError, match=r"confidence row 1 is 1016\. Ratings .* must first be normalised"):
            metric([0.5, 1016], [0, 1])


def test_option_errors():
    with pytest.raises(ValueError, match="bins must be at least 1; got 0"):
        metrics.reliability([0.5], [1], bins=0)
    with pytest.raises(ValueError, match="binning must be 'left_closed', 'right_closed' or 'equal_mass'; got 'x'"):
        metrics.reliability([0.5], [1], binning="x")
    with pytest.raises(ValueError, match=r"clip must be inside \(0, 0.5\)"):
        metrics.negative_log_likelihood([1.0], [0], clip=0)


def test_win_rate():
    rate, error = metrics.win_rate([1, 0, 0.5, 0.5])
    assert rate == 50
    assert error == pytest.approx(100 * np.sqrt(0.5 / 3) / 2)
    rate, error = metrics.win_rate([0.25])
    assert rate == 25
    assert np.isnan(error)
    with pytest.raises(ValueError, match=r"preference row 1 must be a number in \[0, 1\]; got nan"):
        metrics.win_rate([0.5, np.nan])
    with pytest.raises(ValueError, match=r"preference row 0 .* got 50"):
        metrics.win_rate([50, 0.5])
    with pytest.raises(ValueError, match="at least one value"):
        metrics.win_rate([])


@given(st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_win_rate_of_the_other_side(preference):
    rate, error = metrics.win_rate(preference)
    other, other_error = metrics.win_rate(1 - np.array(preference))
    assert rate + other == pytest.approx(100)
    assert error == pytest.approx(other_error, abs=1e-9)
