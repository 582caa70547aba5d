"""Judges in words: both orders, unread replies counted, six numbers or none."""

import numpy as np
import pytest

from workbench.feedback.judges import ChatJudge, as_text, read_points, rubric_prompt
from workbench.feedback.simulated import SimulatedModel


def longer(text, temperature, noise):
    """Prefers the longer answer and says so."""
    first, second = (text.split(f"Answer {i}: ")[1].split("\n")[0] for i in (1, 2))
    return f"Hm.\nBetter: {1 if len(first) > len(second) else 2 if len(first) < len(second) else 'tie'}"


def first_one(text, temperature, noise):
    return "Better: 1"


def silent(text, temperature, noise):
    return "I would rather not say."


def test_pairwise_judge_asks_in_both_orders():
    judge = ChatJudge(SimulatedModel("longer", longer))
    np.testing.assert_array_equal(judge.prefer(["q"] * 3, ["aaa", "a", "aa"], ["a", "aaa", "bb"]), [1.0, 0.0, 0.5])
    assert judge.counts["asked"] == 6
    np.testing.assert_array_equal(
        ChatJudge(SimulatedModel("first", first_one)).prefer(["q"], ["a"], ["b"]), [0.5]
    )  # pure bias


def test_unread_replies_are_counted_and_never_a_tie():
    judge = ChatJudge(SimulatedModel("silent", silent))
    assert np.isnan(judge.prefer(["q"], ["a"], ["b"])).all()
    assert judge.counts["unparsed"] == 2


def test_one_readable_order_is_enough():
    def half(text, temperature, noise):
        return "Better: 1" if "Answer 1: a" in text else "no idea"

    judge = ChatJudge(SimulatedModel("half", half))
    np.testing.assert_array_equal(judge.prefer(["q"], ["a"], ["b"]), [1.0])


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("fine\nPoints A: 6\nPoints B: 0", [6, 0]),
        ("Points A: 1\n**Points A:** 5/6\nPoints B: 3.", [5, 3]),  # the last one counts
        ("Points A: 6", None),  # fewer
        ("Points A: 6\nPoints B: 2\nPoints C: 1", None),  # more
        ("Points A: 7\nPoints B: 2", None),  # out of range
        ("Points A: -1\nPoints B: 2", None),
        ("Points A: five\nPoints B: 2", None),
        ("", None),
    ],
)
def test_points_are_read_all_or_not_at_all(text, points):
    assert read_points(text, 2) == points


def test_rate_asks_again_and_then_drops():
    def shy(text, temperature, noise):
        return "Points A: 4\nPoints B: 5" if temperature or "easy" in text else "Points A: 4"

    judge = ChatJudge(SimulatedModel("shy", shy))
    assert judge.rate(["easy", "hard"], [["a", "b"], ["c", "d"]]) == [[4, 5], [4, 5]]
    assert (judge.counts["retried"], judge.counts["dropped"], judge.counts["unparsed"]) == (1, 0, 1)
    judge = ChatJudge(SimulatedModel("silent", silent), retries=1)
    assert judge.rate(["q"], [["a", "b"]]) == [None]
    assert (judge.counts["retried"], judge.counts["dropped"], judge.counts["asked"]) == (1, 1, 2)


def test_rubric_shows_all_candidates_and_the_form():
    text = rubric_prompt([{"role": "user", "content": "Why?"}], ["one", "two", "three"])
    assert "user: Why?" in text
    assert "Answer C: three" in text
    assert text.endswith("Points A: <0 to 6>\nPoints B: <0 to 6>\nPoints C: <0 to 6>")
    assert as_text("plain") == "plain"
