"""Questions a model asks itself: the parser and the filters, with replies that are garbled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.methods.align.longpo.pairs import INSTRUCTION, LEAD_INS, is_refusal, is_repetitive, parse_questions

GOOD = "1: Who hid it?\n2: Why?\n3: When did Ada leave?\n4: What links both?"


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        (GOOD, 4),
        (GOOD.replace(":", "."), 4),
        (f"Here they are:\n\n{GOOD}\n", 4),
        (GOOD.replace("\n4: What links both?", ""), None),  # fewer
        (GOOD + "\n5: Where?", None),  # more
        (GOOD.replace("3:", "2:"), None),  # numbers repeat
        ("I cannot write questions.", None),
        ("", None),
    ],
)
def test_exactly_as_many_as_asked(reply, found):
    questions = parse_questions(reply)
    assert (questions and len(questions)) == found
    if found:
        assert questions[0] == "Who hid it?"


def test_prompts_and_refusals():
    assert '"1:" to "4:"' in INSTRUCTION.format(n=4)
    assert len(set(LEAD_INS)) == 20
    assert is_refusal("I\u2019m sorry, but the text does not say.")
    assert is_refusal("As an AI I have no opinion")
    assert not is_refusal("She said: I cannot stay.")


def test_repetition():
    assert is_repetitive("The ship left. " * 5)
    assert is_repetitive("It begins well. " + "and then he said so " * 6)
    assert not is_repetitive("no no no no")  # too short to tell
    assert not is_repetitive("She had lost her ship, and nobody on the island would lend her another one.")


@given(st.text("abcdefgh ", min_size=8, max_size=20), st.integers(4, 6))
def test_copies_of_a_piece_are_found(piece, copies):
    if piece.strip():
        assert is_repetitive("start of it; " + piece.strip().ljust(8, "x") * copies)
