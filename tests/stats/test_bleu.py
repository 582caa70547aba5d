"""Sentence BLEU by hand, and why BLEU by characters is another number."""

import math

import pytest

from workbench.stats.text_overlap import bleu


def test_by_hand():
    """5 of 6 words, 3 of 5 pairs, 1 of 4 triples, no run of four: 0; the same text: 1."""
    text, reference = list("abcxef"), list("abcdef")
    assert bleu(reference, reference) == 1.0
    assert bleu(text, reference) == 0.0
    assert bleu(text, reference, n=2) == pytest.approx(math.sqrt(5 / 6 * 3 / 5))


def test_brevity_and_repetition():
    assert bleu(list("abcd"), list("abcdef")) == pytest.approx(math.exp(1 - 6 / 4))
    assert bleu(["a"] * 4, ["a", "b"], n=1) == pytest.approx(1 / 4)  # each word of the reference counts once
    assert bleu([], ["a"]) == 0.0


def test_a_string_is_a_list_of_characters():
    assert bleu("no idea at all", "no idea at last") > bleu(["no", "idea", "at", "all"], ["no", "idea", "at", "last"])
