"""Verdicts, letters and thoughts: what is read of a reply, and what never becomes a number."""

import numpy as np
import pytest

from workbench.feedback.chat import Reply
from workbench.feedback.judges import ChatJudge
from workbench.feedback.replies import account, choice, preference, readable
from workbench.tasks.questions import ask_answers, comparable


@pytest.mark.parametrize(
    ("text", "outcome", "status"),
    [
        ("Better: 2 (answer 1 invents a date)", 0.0, "ok"),
        ("Better: Answer 1, because 2 is wrong", 1.0, "ok"),
        ("**Better:** 1.", 1.0, "ok"),
        ("Better: tie (1 and 2 say the same)", 0.5, "tie"),
        ("Better: 1 and 2", 0.5, "tie"),
        ("Better: both", 0.5, "tie"),
        ("Better: the second", 0.5, "unparsed"),
        ("2", 0.5, "unparsed"),
    ],
)
def test_a_verdict_may_go_on_with_its_reason(text, outcome, status):
    assert preference(text, "Better") == (outcome, status)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Answer: A quick check shows it is C", 2),
        ("Answer: I think it is B", 1),
        ("Answer: B because A is not one", 1),
        ("Answer: (D)", 3),
        ("Answer: A", 0),
        ("Answer: A.", 0),
        ("Answer: a) blue", 0),
        ("Answer: either B or C", None),
        ("Answer: maybe C, maybe D", None),
        ("Answer: A quick guess", None),
        ("Answer: E", None),
    ],
)
def test_a_letter_is_no_article(text, index):
    assert choice(text, 4) == index


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (Reply("<think>A or B?</think>\nAnswer: B"), "\nAnswer: B"),
        (Reply("so it is B.</think>Answer: B"), "Answer: B"),
        (Reply("<think>Answer: B, or no,"), ""),
        (Reply("Answer: B", finish="length"), ""),
        (Reply("I cannot", finish="refused"), ""),
        (Reply("", finish="empty"), ""),
        (Reply("Answer: B"), "Answer: B"),
    ],
)
def test_only_what_was_said_to_the_end_and_behind_thoughts_is_read(reply, text):
    assert readable(reply) == text


def test_numbers_are_compared_as_numbers():
    assert comparable("3.50") == comparable("$3.5") == comparable("+3.5") == "3.5"
    assert comparable("1,200.0") == comparable("1200") == "1200"
    assert comparable("-0") == comparable("0.00") == "0"
    assert comparable("v3.50") == "v3.50"


def test_what_became_of_replies_is_told():
    replies = [Reply("Answer: A"), Reply("Well, I", finish="length"), Reply("", finish="empty"), Reply("no idea")]
    said = account(replies, [True, False, False, False])
    assert said == ("1 of 4 read, 1 cut at max_tokens, 1 empty, 1 unread; the first of the others says 'Well, I'")
    questions = [{"qid": str(i), "question": "?", "choices": ["x", "y"], "gold": 0, "dataset": "d"} for i in range(2)]
    with pytest.raises(ValueError, match=r"a larger max_tokens lets cut ones end: 0 of 2 read, 2 cut .* says 'Well'"):
        ask_answers(questions, lambda asked: [Reply("Well", finish="length") for _ in asked], max_tokens=8)


class Says:
    """Gives one verdict after the other."""

    name = "planted"

    def __init__(self, *verdicts):
        self.verdicts = verdicts

    def ask(self, requests):
        return [Reply(self.verdicts[i % len(self.verdicts)]) for i, _ in enumerate(requests)]


def test_a_judge_that_is_only_position_labels_nothing():
    texts = ["x"] * 10
    with pytest.raises(ValueError, match="judge planted named the first answer in all 20 verdicts"):
        ChatJudge(Says("Better: 1")).prefer(texts, texts, texts)
    with pytest.raises(ValueError, match="named the second answer"):
        ChatJudge(Says("Better: 2")).prefer(texts, texts, texts)
    few = ChatJudge(Says("Better: 1")).prefer(texts[:5], texts[:5], texts[:5])
    np.testing.assert_allclose(few, 0.5)


def test_a_judge_says_how_much_is_position(caplog):
    texts = ["x"] * 10
    with caplog.at_level("INFO"):
        ChatJudge(Says("Better: 1", "Better: 2", "Better: 1", "Better: tie", "hm")).prefer(texts, texts, texts)
    assert "the first answer won 67 % of 12 decided verdicts, 100 % of pairs flip" in caplog.text
    assert "20 % unread" in caplog.text
