"""References: numbered lists, yes and no, rows with their positions, labels from a bibliography, recorded results."""

import json
import math

import pytest

from workbench.methods.confidence.hallucinated_references.recorded import RecordedScores, expert_agreement
from workbench.methods.confidence.hallucinated_references.references import (
    Bibliography,
    ReferenceFile,
    comparable,
    read_titles,
    read_yes,
    references,
    topics,
)

ROW = {"ref_id": "a", "topic": "T", "gen_title": "Notes on Tools", "list_text": "1. X\n2. Notes on Tools."}
ROW |= {"position": 2}


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('1. "A Title."\n2. “B Title”.\n3. C: d, e\n', [(1, "A Title"), (2, "B Title"), (3, "C: d, e")]),
        ("Here you are:\n\n1) A\n 2. *B*\nThat is all", [(1, "A"), (2, "B")]),
        ("1. A\n2. \n3. NOTHING\n4. D", [(1, "A"), (4, "D")]),  # the numbers of what is left stay
        ("1. A\n1. B\n1. C", [(1, "A"), (2, "B"), (3, "C")]),
        ("NOTHING", []),
        ("", []),
        ("no numbers here.", []),
        ("\n".join(f"{i}. T{i}" for i in range(1, 8)), [(i, f"T{i}") for i in range(1, 8)]),  # more than asked: kept
    ],
)
def test_titles_of_a_list(text, titles):
    assert read_titles(text) == titles


@pytest.mark.parametrize(
    ("text", "official", "strict"),
    [
        ("Yes.", 1, 1),
        ("**yes**, it does", 1, 1),
        ("No", 0, 0),
        ("I cannot say yes", 1, math.nan),
        ("No, and yes", 1, 0),
        ("", 0, math.nan),
        ("Yes and no", 1, 1),
        ("Eyes", 1, math.nan),
        ("Not sure", 0, math.nan),
    ],
)
def test_yes_and_no(text, official, strict):
    assert read_yes(text, official=True) == official
    assert read_yes(text) == pytest.approx(strict, nan_ok=True)


def test_rows_keep_their_positions_and_duplicates_are_flagged():
    rows = [
        ROW,
        {**ROW, "ref_id": "b", "gen_title": "notes on tools!", "grounded": True},
        {**ROW, "ref_id": "c", "gen_title": "Else", "list_text": ""},
    ]
    table = references(rows, "m")
    assert table["position"].tolist() == [2, 2, 2]
    assert table["duplicate_of"].tolist() == ["", "a", ""]
    assert table["grounded"].isna().tolist() == [True, False, True]
    assert table["grounded"][1] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gen_title": "  "}, "row 1, column 'gen_title': text is needed; got '  '; found ref_id, topic"),
        ({"topic": None}, "row 1, column 'topic': text is needed; got None"),
        ({"ref_id": "a"}, "row 1, column 'ref_id': 'a' stands in row 0 too"),
        ({"position": 0}, "row 1, column 'position': the title's number in its list is needed, from 1; got 0"),
        ({"position": "2"}, "row 1, column 'position': .*got '2'"),
        (
            {"position": 1},
            "row 1, column 'position': entry 1 of list_text is 'X', not 'Notes on Tools'; store the number",
        ),
        ({"grounded": 2}, r"row 1, column 'grounded': 1 \(exists\), 0 \(invented\) or null is needed; got 2"),
    ],
)
def test_bad_rows(change, message):
    with pytest.raises(ValueError, match=message):
        references([ROW, {**ROW, "ref_id": "b", **change}])


def test_topics():
    assert topics([{"topic": " A "}, {"topic": "B"}]) == ["A", "B"]
    with pytest.raises(ValueError, match="row 1, column 'topic': 'A' stands in row 0 too"):
        topics([{"topic": "A"}, {"topic": "A"}])
    with pytest.raises(ValueError, match="row 0, column 'topic': text is needed; found title"):
        topics([{"title": "A"}])


def test_labels_from_a_bibliography(tmp_path):
    path = tmp_path / "titles.txt"
    path.write_text("The Théory of Tools\n\nNotes, on: Robots\n")
    labels = Bibliography(path)
    assert [labels[title] for title in ("the theory of tools", "Notes on Robots.", "Notes")] == [1, 1, 0]
    assert len(labels) == 2
    assert comparable("A\u00a0b—C") == "a b c"
    path.write_text("\n")
    with pytest.raises(ValueError, match="holds no titles; one title a line is needed"):
        Bibliography(path)


def test_a_list_that_is_asked_about_must_be_there(tmp_path):
    path = tmp_path / "refs.jsonl"
    path.write_text(json.dumps({**ROW, "list_text": ""}) + "\n")
    with pytest.raises(ValueError, match=r"row 0, column 'list_text': DQ3 shows the list .* leave DQ3 out"):
        ReferenceFile.load(str(path), model="m", device="cpu")
    task = ReferenceFile.load(str(path), model="m", device="cpu", direct=["DQ1"])
    assert task.references is not None
    assert task.direct == ("DQ1",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": []}, "recorded results need an object `models`"),
        ([], "recorded results need an object `models`"),
        (
            {"models": {"m": {"grounded": [1], "IQ": [0.5, 1], "topic_index": [0]}}},
            "columns grounded, IQ, topic_index of one length .* m has",
        ),
        ({"models": {"m": {"grounded": [1], "topic_index": [0]}}}, "columns grounded, IQ, topic_index"),
    ],
)
def test_a_broken_record(tmp_path, content, message):
    path = tmp_path / "r.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        RecordedScores.load(str(path))


def test_rounded_means_become_fractions_again(tmp_path):
    path = tmp_path / "r.json"
    content = {"grounded": [1] * 4, "IQ": [0.0833, 0.3056, 0.6857, 1.0], "topic_index": [0] * 4}
    path.write_text(json.dumps({"models": {"m": content}}))
    found = RecordedScores.load(str(path)).tables["m"]["IQ"].tolist()
    assert found == pytest.approx([1 / 12, 11 / 36, 0.6857, 1.0], abs=1e-12)


def test_experts_are_missing_where_none_are_recorded():
    assert expert_agreement(None) is None
