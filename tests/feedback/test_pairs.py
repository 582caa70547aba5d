"""Win rates, selection, margins and sound pairs by hand; every bad input names its row."""

from collections import Counter

import numpy as np
import pytest

from workbench.feedback import pairs


def matrix(a, b, c):
    """P(1 beats 2), P(1 beats 3), P(2 beats 3)."""
    return [[0.5, a, b], [1 - a, 0.5, c], [1 - b, 1 - c, 0.5]]


def test_win_rates_count_the_self_comparison():
    rates = pairs.win_rates(pairs.check_matrix([matrix(1.0, 1.0, 0.5)]))
    np.testing.assert_allclose(rates, [[2.5 / 3, 1 / 3, 1 / 3]])
    assert rates.max() <= 1 - 1 / 6 + 1e-12


def test_a_cycle_survives_as_a_matrix_and_not_as_scores():
    cycle = pairs.check_matrix([matrix(0.85, 0.15, 0.85)])
    np.testing.assert_allclose(pairs.win_rates(cycle), 0.5)
    chain = pairs.from_scores(np.array([[2.0, 1.0, 0.0]]))
    assert chain[0, 0, 1] > 0.5
    assert chain[0, 1, 2] > 0.5
    assert chain[0, 0, 2] > chain[0, 0, 1]  # always transitive
    assert pairs.from_scores(np.array([[1e4, -1e4]]))[0, 0, 1] == 1.0


def test_symmetrise_averages_both_orders():
    skewed = [[[0.5, 0.9], [0.3, 0.5]]]
    np.testing.assert_allclose(pairs.check_matrix(skewed, symmetrise=True), [[[0.5, 0.8], [0.2, 0.5]]])


@pytest.mark.parametrize(
    ("matrices", "message"),
    [
        (
            [matrix(0.5, 0.5, 0.5), matrix(1.2, 0.5, 0.5)],
            "row 1, column 'probability': numbers in [0, 1] are needed; got 1.2",
        ),
        ([matrix(float("nan"), 0.5, 0.5)], "row 0, column 'probability': numbers in [0, 1] are needed; got nan"),
        ([[[0.5, 0.9], [0.3, 0.5]]], "row 0, column 'probability': P(i beats j) + P(j beats i) is off 1 by 0.2"),
        ([[[0.4, 0.5], [0.5, 0.5]]], "row 0, column 'probability': a response beats itself with probability 0.5"),
        ([[[0.5]]], "need at least 2 responses a prompt to compare; got 1"),
        ([matrix(0.5, 0.5, 0.5), [[0.5, 0.5], [0.5, 0.5]]], "every prompt needs the same number of responses"),
        ([[0.5, 0.5]], "preference matrices must be [prompt, K, K]"),
    ],
)
def test_bad_matrices(matrices, message):
    with pytest.raises(ValueError, match=r".") as error:
        pairs.check_matrix(matrices)
    assert message in str(error.value)


def test_bad_scores():
    with pytest.raises(ValueError, match="scores must be finite; got nan in row 1"):
        pairs.from_scores(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match="row 1: a score is NaN"):
        pairs.best_and_worst(np.array([[0.0, 1.0], [np.nan, 1.0]]))
    with pytest.raises(ValueError, match="need at least 2 responses a prompt"):
        pairs.best_and_worst(np.array([[1.0]]))


def test_first_one_wins_a_tie():
    best, worst = pairs.best_and_worst(np.array([[1.0, 1.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]]))
    assert (best.tolist(), worst.tolist()) == ([0, 0], [2, 0])


def test_keep_sound_counts_by_reason():
    rows = [{"chosen": a, "rejected": b} for a, b in (("x", "y"), ("x ", " x"), ("", "y"), ("x", " "), ("", ""))]
    kept, dropped = pairs.keep_sound(rows)
    assert kept == rows[:1]
    assert dropped == Counter({"identical": 2, "empty chosen": 1, "empty rejected": 1})
    kept, dropped = pairs.keep_sound(rows, may_be_empty=("rejected",))
    assert kept == [rows[0], rows[3]]


SCORES, TEACHER = [6, 5, 4, 4, 3], [True, False, False, False, False]


def test_margin_pairs_by_hand():
    """Teacher 6 takes what is 2 lower; student 5 takes what is 1 lower; nobody below 5 is chosen."""
    found = pairs.margin_pairs(SCORES, TEACHER)
    assert found == [(0, 2, "T>S"), (0, 3, "T>S"), (0, 4, "T>S"), (1, 2, "S>S"), (1, 3, "S>S"), (1, 4, "S>S")]
    assert pairs.margin_pairs([4, 6], [True, False]) == [(1, 0, "S>T")]
    assert pairs.margin_pairs([4, 3], [True, False]) == []  # no candidate reaches 5


def test_the_same_margin_for_teacher_and_student_gives_other_counts():
    assert len(pairs.margin_pairs(SCORES, TEACHER, student_gap=2)) == 4
    assert len(pairs.margin_pairs(SCORES, TEACHER, gap=1)) == 7


def test_repeats():
    assert pairs.repeats("so it goes on " * 6)
    assert not pairs.repeats("so it goes on " * 5)
    assert not pairs.repeats("")
    assert pairs.repeats("a a a a a", n=1, limit=4)
