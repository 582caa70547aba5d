"""Translations: aspects by hand, pairs that are refused or left out, and rewriting with refusals and noise."""

import logging
import math

import pytest

from workbench.feedback.simulated import SimulatedModel
from workbench.feedback.transcript import Transcript
from workbench.methods.align.simulpl.translations import (
    aspects,
    check_pairs,
    chrf,
    key_points,
    monotonicity,
    parse_rewrite,
    rewrite,
    usable,
)

ROW = {"source": "wir haben gestern im haus den brief gefunden"}
ROW |= {"chosen": "we yesterday in the house found the letter"}
ROW |= {"rejected": "we found the letter in the house yesterday", "lang": "de-en"}
ROW |= {"alignment": [[0, 0], [2, 1], [4, 4], [6, 7], [7, 5]], "key_items": ["yesterday", "house", "letter"]}


def test_aspects_of_the_preferred_and_of_the_offline_text():
    best, offline = aspects(ROW, ROW["chosen"]), aspects(ROW, ROW["rejected"])
    assert (best.exact, best.chrf, best.key_points, best.words) == (1, 1, 1, 8)
    assert offline.exact == 0
    assert 0 < offline.chrf < 1
    assert offline.monotonicity < best.monotonicity == pytest.approx(9 / 10)  # found before letter
    assert aspects({**ROW, "n_clauses": 2}, ROW["chosen"]).words_per_clause == 4
    assert aspects(ROW, "we found it, yesterday, at home.").words_per_clause == 2


def test_order_follows_the_links():
    assert monotonicity(ROW, ["yesterday", "we"]) == 0.0
    assert math.isnan(monotonicity(ROW, ["we"]))
    assert math.isnan(monotonicity({**ROW, "alignment": None}, ["we", "yesterday"]))


def test_links_outside_the_texts_leave_their_metric_alone(caplog):
    row = {**ROW, "alignment": [[0, 0], [9, 1]], "key_items": ["boat", "house"]}
    with caplog.at_level(logging.WARNING):
        found = aspects(row, ROW["chosen"])
    assert "points outside its 8 and 8 words: left out of monotonicity" in caplog.text
    assert "key items ['boat'] are not in the preferred translation" in caplog.text
    assert math.isnan(found.monotonicity)
    assert found.key_points == 1.0  # of the one that can be found
    assert math.isnan(key_points({**ROW, "key_items": ["boat"]}, "x"))


def test_an_empty_translation_has_aspects():
    found = aspects(ROW, "")
    assert (found.exact, found.chrf, found.key_points, found.words) == (0, 0, 0, 0)


def test_chrf_by_hand():
    assert chrf("ab", "ab") == 1.0
    assert chrf("abc", "abd") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert chrf("xyz", "abc") == 0.0


def test_pairs_that_are_refused_and_left_out(caplog):
    assert check_pairs([ROW], "de-en") == [ROW]
    with pytest.raises(ValueError, match="row 1, column 'rejected': text is needed; got 3"):
        check_pairs([ROW, {**ROW, "rejected": 3}])
    with pytest.raises(ValueError, match="row 0, column 'lang': 'de-en' is not the direction 'zh-en'"):
        check_pairs([ROW], "zh-en")
    rows = [
        ROW,
        {**ROW, "rejected": ROW["chosen"]},
        {**ROW, "source": "wir"},
        {**ROW, "chosen": " "},
        {**ROW, "source": ""},
    ]
    with caplog.at_level(logging.WARNING):
        kept, lost = usable(rows)
    assert kept == [ROW]
    assert lost == {"chosen and rejected are the same": 1, "a source of one word": 1, "an empty text": 2}
    assert "4 of 5 pairs are not trained on" in caplog.text


# ---------------------------------------------------------------------------------------------------------- rewriting
@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("we yesterday found it", ("we yesterday found it", "")),
        ('Translation: "we found it"', ("we found it", "")),
        ("\n  we found it \n", ("we found it", "")),
        ("I'm sorry, I cannot help with that.", ("", "refused")),
        ("Here it is:\nwe found it", ("", "more than one line")),
        ("", ("", "empty")),
        ('""', ("", "empty")),
        ("word " * 60, ("", "far too long")),
    ],
)
def test_replies(text, found):
    assert parse_rewrite(text, "we found it") == found


def test_a_sorry_in_the_source_is_no_refusal():
    assert parse_rewrite("I'm sorry we came late", "I'm sorry that we came late") == ("I'm sorry we came late", "")


def test_rewriting_counts_what_it_leaves_out(tmp_path):
    """A planted model: it rewrites, refuses, repeats or forgets, by the source's first word."""

    def respond(prompt, temperature, noise):
        assert "Simplicity" in prompt
        assert "atency" not in prompt  # latency is a term of training
        source, reference = (prompt.split(f"{name}: ")[1].split("\n")[0] for name in ("Source", "Translation"))
        return {"gut": reference[::-1], "nein": "I cannot do that.", "gleich": reference, "kurz": "x y"}[
            source.split()[0]
        ]

    rows = [
        {"source": f"{word} a b", "reference": f"one two {word}", "key_items": ["two"] if word == "kurz" else []}
        for word in ("gut", "nein", "gleich", "kurz")
    ]
    transcript = Transcript(tmp_path / "log.jsonl")
    kept, lost = rewrite(SimulatedModel("planted", respond), rows, transcript)
    assert [(row["chosen"], row["rejected"]) for row in kept] == [("tug owt eno", "one two gut")]
    assert lost == {"refused": 1, "unchanged": 1, "key items lost": 1}
    rewrite(SimulatedModel("planted", respond), rows, transcript)
    assert (transcript.calls, transcript.reused) == (4, 4)
