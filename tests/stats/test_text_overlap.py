"""Overlap of two texts: hand-worked cases, properties, the deterministic judge, and clean-up of completions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.stats.text_overlap import (
    bleu,
    edit_similarity,
    match,
    rouge_l,
    rouge_l_sum,
    rouge_n,
    tokens,
    without_repetition,
)

TEXTS = st.text(st.sampled_from("ab c.D\n'é7"), max_size=30)


def test_rouge_l_by_hand():
    """Five reference tokens, four candidate tokens, three in common in order: P 3/4, R 3/5, F1 2/3."""
    overlap = rouge_l("the cat sat on mats", "the dog sat on")
    assert overlap == pytest.approx((3 / 4, 3 / 5, 2 / 3))


@given(TEXTS, TEXTS)
def test_rouge_swaps_with_its_texts_and_stays_in_bounds(one, two):
    for there, back in ((rouge_l(one, two), rouge_l(two, one)), (rouge_n(one, two, 2), rouge_n(two, one, 2))):
        assert (there.precision, there.recall, there.f1) == pytest.approx((back.recall, back.precision, back.f1))
        assert all(0 <= value <= 1 for value in there)
    assert rouge_l_sum(one, two).f1 >= 0
    assert rouge_l(one, two).f1 <= rouge_n(one, two, 1).f1 + 1e-12


@given(TEXTS)
def test_a_text_matches_itself_if_it_has_a_word(text):
    assert match(text, text) == ("exact" if tokens(text) else "no")
    assert edit_similarity(text, text) == 1
    assert rouge_l(text, text).f1 == (1 if tokens(text) else 0)


REFERENCE = "the old ferry left the harbour at nine with forty cars"


@pytest.mark.parametrize(
    ("candidate", "label"),
    [
        ("The old ferry left the harbour at nine, with forty cars!", "exact"),  # case and marks do not count
        (REFERENCE + " and nobody waved", "near-exact"),  # recall 1
        ("the old ferry left a harbour at nine with forty cars", "near-exact"),  # recall 10/11 = .909
        ("teh olde fery left the harbur at nine with fortty cars", "near-exact"),  # few edits of characters
        ("the old ferry left the harbour", "no"),
        ("passengers waved from the deck", "no"),
        ("", "no"),
    ],
)
def test_the_deterministic_judge(candidate, label):
    assert match(REFERENCE, candidate) == label


@pytest.mark.parametrize(
    ("completion", "text", "repeated"),
    [
        ("It carried forty cars.", "It carried forty cars.", False),
        ("The ferry left  at NINE. It carried forty cars.", "It carried forty cars.", True),
        ('"It carried forty cars."', "It carried forty cars.", False),
        ('The ferry left at nine. "It carried."', "It carried.", True),
        ("“The ferry left at nine. It carried.”", "It carried.", True),
        ('"No," he said. "Yes."', '"No," he said. "Yes."', False),  # two quotations are not one pair around the text
        ("The ferry left at nine. The ferry left at nine. On.", "The ferry left at nine. On.", True),  # once
        ("The ferry left at nine.", "", True),
        ("  ", "", False),
    ],
)
def test_completions_are_cleaned_once(completion, text, repeated):
    assert without_repetition(completion, "The ferry left at nine.") == (text, repeated)


def test_a_first_piece_inside_a_longer_word_stays():
    assert without_repetition("cars go", "car") == ("cars go", False)
    assert without_repetition("a (b)* c", "a (b)*") == ("c", True)  # no pattern, however it looks


def test_bleu_by_hand():
    """5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no run of four: 0; the same text: 1."""
    text, reference = list("abcxef"), list("abcdef")
    assert bleu(reference, reference) == 1.0
    assert bleu(text, reference) == 0.0
    assert bleu(text, reference, n=2) == pytest.approx(math.sqrt(5 / 6 * 3 / 5))


def test_bleu_of_brevity_and_repetition():
    assert bleu(list("abcd"), list("abcdef")) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu(["a"] * 4, ["a", "b"], n=1) == pytest.approx(1 / 4)  # each word of the reference counts once
    assert bleu([], ["a"]) == 0.0


def test_bleu_of_a_string_is_a_list_of_characters():
    assert bleu("no idea at all", "no idea at last") > bleu(["no", "idea", "at", "all"], ["no", "idea", "at", "last"])
