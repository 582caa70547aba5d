"""Samples and teacher side by side: duplicates, points from win rates, judges of three kinds, stuck answers."""

import numpy as np
import pytest

from workbench.methods.align.dno.candidates import Candidate, gather, judge, teacher_answers
from workbench.models import Policy, new_llama
from workbench.worlds.language import word_tokenizer


@pytest.fixture(scope="module")
def policy():
    tokenizer = word_tokenizer([f"s{i}" for i in range(6)])
    return Policy(new_llama(tokenizer, width=8, layers=1, heads=2, max_length=16, seed=0), tokenizer)


def students(*texts, stuck=()):
    return [Candidate(text, [i], False, i in stuck) for i, text in enumerate(texts)]


class Judge:
    """P(a beats b) from a table of strengths; "garbled" cannot be read."""

    def __init__(self, **p):
        self.p, self.asked = p, 0

    def prefer(self, prompts, a, b):
        self.asked += len(a)
        said = [self.p.get(f"{x}{y}", 1 - self.p.get(f"{y}{x}", 0.5)) for x, y in zip(a, b, strict=True)]
        unread = ["garbled" in both for both in zip(a, b, strict=True)]
        return np.where(unread, np.nan, said)


def test_duplicates_are_one_candidate_and_the_teachers_words_stay_the_teachers(policy):
    found = gather(policy, ["s1 s2", "s1 s2 ", "s3"], [[3, 4], [3, 4], [5]], "s3", room=3, stuck=[False] * 3)
    assert [(c.text, c.is_teacher) for c in found] == [("s3", True), ("s1 s2", False)]
    assert found[1].ids == [3, 4]


def test_the_teachers_answer_is_cut_to_what_the_student_may_write(policy):
    (teacher,) = gather(policy, [], [], "s0 s1 s2 s3", room=3, stuck=[])
    assert teacher.ids == policy.encode_response("s0 s1 s2 s3")[:3]


def test_missing_teacher(policy):
    assert [c.is_teacher for c in gather(policy, ["s1"], [[3]], None, room=3, stuck=[False])] == [False]
    assert teacher_answers(object(), ["x", "y"], 0) == [None, None]


def test_win_rates_are_means_over_the_others():
    (judged,) = judge(Judge(ab=1.0, ac=0.5, bc=0.0), ["q"], [students("a", "b", "c")], table=None)
    rates, points = judged
    np.testing.assert_allclose(rates, [0.75, 0.0, 0.75])
    assert points == [6.0, 1.0, 6.0]  # round(6 * 0.75 + 1) = 5.5 -> 6, half up


def test_points_by_hand():
    """clip(round(6 r + 1), 0, 6): r = 1/2 is 4 points, 0.6 is 5, 0 is 1, 1 is 6."""
    for p, expected in ((0.5, 4), (0.6, 5), (0.0, 1), (1.0, 6)):
        ((_, points),) = judge(Judge(ab=p), ["q"], [students("a", "b")], table=None)
        assert points[0] == expected


def test_noise_makes_single_draws_with_the_right_mean():
    judged = judge(
        Judge(ab=0.8), ["q"] * 2_000, [students("a", "b")] * 2_000, table=None, noise=np.random.default_rng(0)
    )
    first = np.array([rates[0] for rates, _ in judged])
    assert set(first) == {0.0, 1.0}
    assert first.mean() == pytest.approx(0.8, abs=0.03)


def test_stuck_answers_have_nothing():
    ((rates, points),) = judge(Judge(ab=1.0), ["q"], [students("a", "b", stuck=(0,))], table=None)
    assert (rates[0], points[0]) == (0, 0)


def test_unreadable_prompts_are_none_and_others_are_not():
    assert judge(Judge(), ["q", "q"], [students("a", "garbled"), students("a", "b")], table=None)[0] is None
    assert judge(Judge(), ["q", "q"], [students("a", "garbled"), students("a", "b")], table=None)[1] is not None


def test_points_in_words_come_before_win_rates():
    class Rater(Judge):
        def rate(self, prompts, candidates):
            return [[6, 2, 2], None]

    task = Rater()
    first, second = judge(task, ["q", "q"], [students("a", "b", "c"), students("a", "b")], table=None)
    assert first == ([1.0, 0.25, 0.25], [6.0, 2.0, 2.0])
    assert second is None
    assert task.asked == 0


def test_numbers_outside_0_and_1_are_refused():
    with pytest.raises(ValueError, match=r"prompt 1: win rates in .0, 1. are needed; the judge gave 1.5"):
        judge(Judge(ab=1.5), ["q", "q"], [students("a", "c"), students("a", "b")], table=None)
    with pytest.raises(ValueError, match="win rates in"):
        judge(Judge(ab=-0.1), ["q"], [students("a", "b")], table=None)
