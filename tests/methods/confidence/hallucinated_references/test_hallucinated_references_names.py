"""Author lists: the table of rules that make two spellings one name, overlaps, refusals, and the official parser."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.methods.confidence.hallucinated_references import names as name_lists
from workbench.methods.confidence.hallucinated_references.names import (
    author_overlap,
    author_overlaps,
    overlap_percent,
    read_names,
    read_percent,
)

SAME = [  # rule, two spellings of the same list
    ("case", "AUTHORS: Ana Rossi, Bo Lund", "authors: ANA ROSSI, bo lund"),
    ("accents", "Ána Rossí, Bø Lünd", "Ana Rossi, Bo Lund"),
    ("accents as two characters", "Ana Ross\u0069\u0301", "Ana Rossí"),
    ("initials", "A. Rossi, B. Lund", "Ana Rossi, Bo Lund"),
    ("middle names and initials", "Ana M. Rossi, Bo Karl Lund", "Ana Rossi, B. Lund"),
    ("order of the list", "Bo Lund, Ana Rossi", "Ana Rossi, Bo Lund"),
    ("and, ampersand, semicolon", "Ana Rossi and Bo Lund & Cy Ito; Di Poe", "Ana Rossi, Bo Lund, Cy Ito, Di Poe"),
    ("et al.", "Ana Rossi et al.", "Ana Rossi"),
    ("line breaks", "AUTHORS: Ana Rossi,\nBo Lund\nCy Ito", "Ana Rossi, Bo Lund, Cy Ito"),
    ("numbering and bullets", "1. Ana Rossi\n2. Bo Lund", "- Ana Rossi\n- Bo Lund"),
    ("titles", "Dr. Ana Rossi, Prof. Bo Lund Jr., Cy Ito III", "Ana Rossi, Bo Lund, Cy Ito"),
    ("last name first, with initials", "Rossi, A., Lund, B.", "Ana Rossi, Bo Lund"),
    ("initials behind", "Rossi A, Lund B", "A Rossi, B Lund"),
    ("hyphens and apostrophes", "Ana O'Neil, Bo Smith-Jones", "Ana ONeil, Bo SmithJones"),
    ("marks", '**AUTHORS:** "Ana Rossi", *Bo Lund*', "Ana Rossi, Bo Lund"),
    ("words before the label", "Sure, here they are.\nAUTHORS: Ana Rossi", "Ana Rossi"),
]


@pytest.mark.parametrize(("first", "second"), [pair[1:] for pair in SAME], ids=[pair[0] for pair in SAME])
@pytest.mark.parametrize("method", ["jaccard", "containment"])
def test_spellings_that_are_one_list(first, second, method):
    assert read_names(first) is not None
    assert author_overlap(first, second, method) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "AUTHORS:",
        "I'm sorry, I cannot help.",
        "Unknown",
        "AUTHORS: I don't know",
        "N/A",
        "NOTHING",
        "As an AI language model I have no such information.",
        "1975",
        "---",
    ],
)
def test_what_is_no_list_is_missing_and_not_zero(text):
    assert read_names(text) is None
    assert math.isnan(author_overlap(text, "Ana Rossi"))
    assert author_overlaps([(text, "Ana Rossi")], official=True)[0].value == 0.0


def test_different_people_differ():
    assert author_overlap("Ana Rossi", "Bo Rossi") == author_overlap("Ana Rossi", "Ana Lund") == 0
    assert author_overlap("Rossi", "Ana Rossi") == 0  # without a first name nobody knows which Rossi


def test_overlaps_by_hand():
    """One of two names shared: Jaccard 1/2, containment (1/2 + 1) / 2; a judge may well say 67 %, between them."""
    a, b = "Ana Rossi, Bo Lund", "Ana Rossi"
    assert author_overlap(a, b, "jaccard") == 0.5
    assert author_overlap(a, b, "containment") == 0.75
    assert author_overlap(a, "Cy Ito") == 0


names = st.lists(st.sampled_from(["Ana Rossi", "Bo Lund", "Cy Ito", "D. Poe", "", "I'm sorry"]), max_size=5).map(
    ", ".join
)


@given(names, names)
def test_overlap_is_symmetric_and_a_share(a, b):
    for method in ("jaccard", "containment", "judge"):
        one, other = (author_overlap(*pair, method, judge) for pair in ((a, b), (b, a)))
        assert one == other or (math.isnan(one) and math.isnan(other))
        assert math.isnan(one) or 0 <= one <= 1


def judge(pairs):
    return [f"ANS: {len(a) * 7 % 101 if a < b else 50}" for a, b in pairs]


def test_a_judge_sees_cut_lists_on_one_line_and_never_a_refusal():
    seen = []

    def watch(pairs):
        seen.extend(pairs)
        return ["ANS: 40% JUSTIFICATION: x"] * len(pairs)

    long = "AUTHORS: " + ",\n".join(f"Ana Rossi{letter}" for letter in "abcdefghijklm")
    found = author_overlaps([(long, "Bo Lund"), ("I'm sorry", "Bo Lund")], "judge", watch)
    (pair,) = seen
    assert all("\n" not in text and len(text) <= 100 for text in pair)
    assert pair[0].startswith("Ana Rossia")  # in alphabetical order, without its label
    assert found[0] == (0.4, "ANS: 40% JUSTIFICATION: x")
    assert math.isnan(found[1].value)


def test_unclear_judgments_are_left_out_with_a_warning():
    pairs = [("Ana Rossi", "Bo Lund")] * 2
    with pytest.warns(
        UserWarning, match=r"1 of 2 judgments are a number in \(0, 1\] with a decimal point and no %.*left out"
    ):
        found = author_overlaps(pairs, "judge", lambda pairs: ["ANS: 0.5", "no idea"])
    assert all(math.isnan(overlap.value) for overlap in found)
    with pytest.warns(UserWarning, match="read as a percentage"):
        official = author_overlaps(pairs, "judge", lambda pairs: ["ANS: 0.5", "no idea"], official=True)
    assert [overlap.value for overlap in official] == [0.005, 0.0]


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("ANS: 250", 1.0, 1.0),
        ("ANSWER: 33.3%", 0.333, 0.333),
        ("0.5%", 0.005, 0.005),
        ("1", 0.01, 0.01),
        ("ANS: 0", 0.0, 0.0),
        ("ANS: none", 0.0, math.nan),
        ("ANS: 0.5", 0.005, math.nan),
        ("JUSTIFICATION: 3 of 4", 0.0, math.nan),
    ],
)
def test_percentages(text, official, strict):
    assert overlap_percent(text) == pytest.approx(official)
    assert read_percent(text) == pytest.approx(strict, nan_ok=True)


@pytest.mark.parametrize(("method", "judge"), [("judge", None), ("bleu", None)])
def test_a_method_that_cannot_be(method, judge):
    with pytest.raises(ValueError, match="method must be jaccard, containment, or judge with a judge to ask; got"):
        name_lists.author_overlap("a b", "c d", method, judge)
