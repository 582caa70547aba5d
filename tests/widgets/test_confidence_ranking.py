"""The ranking inspector's faces for scripts, and its bad input. The view itself is driven in tests/browser."""

import json

import numpy as np
import pandas as pd
import pytest

from workbench import metrics
from workbench.widgets import scripted
from workbench.widgets.confidence_ranking import ConfidenceRanking


def answers(n=6, **columns):
    table = {"qid": [f"q{i}" for i in range(n)], "question": [f"why {i}?" for i in range(n)], "answer": ["so"] * n}
    return pd.DataFrame({**table, "correct": [1, 0, None, 1, 0, 1][:n], **columns})


SCORES = {"bt": [0.3, -1.0, 2.0, 0.3, 0.0, 1.0], "direct": [0.9] * 6}
MATCHUPS = pd.DataFrame({"left": ["q0", "q2"], "right": ["q1", "q5"], "outcome": [1.0, 0.5]})


def test_frame_is_in_order_with_shared_ranks():
    table = ConfidenceRanking(answers(), SCORES, intervals={"bt": (np.zeros(6), np.ones(6))}).frame()
    assert table["qid"].tolist() == ["q2", "q5", "q0", "q3", "q4", "q1"]
    assert table["rank"].tolist() == [1, 2, 3, 3, 5, 6]
    assert table["upper"].tolist() == [1.0] * 6
    assert ConfidenceRanking(answers(), SCORES).frame("direct")["rank"].tolist() == [1] * 6


def test_above_takes_ties_whole():
    ranking = ConfidenceRanking(answers(), SCORES)
    assert ranking.above(share=0.5)["qid"].tolist() == ["q2", "q5", "q0", "q3"]
    assert ranking.above(score=1.0)["qid"].tolist() == ["q2", "q5"]
    assert len(ranking.above(share=0.0)) == 0
    assert len(ranking.above(share=0.1, scorer="direct")) == 6
    for wrong in ({}, {"score": 1.0, "share": 0.1}):
        with pytest.raises(ValueError, match="give either score or share"):
            ranking.above(**wrong)
    with pytest.raises(ValueError, match="share is a number from 0 to 1; got 40"):
        ranking.above(share=40)


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_export_round_trip(tmp_path, name):
    path = ConfidenceRanking(answers(), SCORES).export(tmp_path / name, share=0.5)
    back = pd.read_csv(path) if name.endswith("csv") else pd.read_parquet(path)
    assert back["qid"].tolist() == ["q2", "q5", "q0", "q3"]
    with pytest.raises(ValueError, match=r"must end in .csv or .parquet; got 'r.xlsx'"):
        ConfidenceRanking(answers(), SCORES).export(tmp_path / "r.xlsx")


def test_figure_is_the_expected_curve():
    ranking = ConfidenceRanking(answers(), SCORES, labels={"bt": "<b>"})
    (trace,) = ranking.figure("bt").data
    known = answers()["correct"].notna()
    expected = metrics.accuracy_coverage(np.array(SCORES["bt"])[known], answers()["correct"][known].astype(float))
    np.testing.assert_allclose(trace.y, expected.accuracy)
    assert trace.name == "&lt;b&gt;"
    assert len(ranking.figure().data) == 2


def test_the_bundle_is_plain_json_for_page_and_notebook():
    bundle = ConfidenceRanking(answers(), SCORES, matchups=MATCHUPS)._repr_mimebundle_()
    view = json.loads(json.dumps(bundle[scripted.VIEW_MIME], allow_nan=False))
    assert (view["view"], view["state"]["kept"]) == ("ranking", 3)
    data = view["state"]["data"]
    assert data["answers"]["correct"] == [1, 0, None, 1, 0, 1]
    assert data["matches"]["left"] == [0, 2]
    assert data["matches"]["status"] == ["ok", "tie"]
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_parquet_from_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ranking, sent = ConfidenceRanking(answers(), SCORES), []
    widget = ranking.widget()
    monkeypatch.setattr(widget, "send", sent.append)
    ranking._on_message(widget, {"kind": "parquet", "qids": ["q2", "q5"], "scorer": "bt"})
    assert pd.read_parquet(tmp_path / "ranking-kept.parquet")["qid"].tolist() == ["q2", "q5"]
    assert sent[0]["text"].startswith("2 answers are in ")


def test_of_run_reads_what_a_method_left(tmp_path):
    table = pd.concat(
        answers().assign(
            method=name, score=values, lower=0.0 if name == "bt" else None, upper=9.0 if name == "bt" else None
        )
        for name, values in SCORES.items()
    )
    table.to_parquet(tmp_path / "scores.parquet")
    MATCHUPS.to_parquet(tmp_path / "matchups.parquet")
    ranking = ConfidenceRanking.of_run(tmp_path, first="direct")
    assert list(ranking.scores) == ["direct", "bt"]
    assert list(ranking.intervals) == ["bt"]
    assert len(ranking.matchups) == 2
    with pytest.raises(FileNotFoundError, match=r"no scores.parquet in .*; name the folder of one data set"):
        ConfidenceRanking.of_run(tmp_path / "none")


@pytest.mark.parametrize(
    ("table", "scores", "matchups", "message"),
    [
        (answers().drop(columns="answer"), SCORES, None, "answers lacks the columns answer; it has qid"),
        (
            answers(qid=["a", "b", "a", "c", "d", "e"]),
            SCORES,
            None,
            "answers row 2, column 'qid': 'a' stands there twice",
        ),
        (
            answers(correct=[1, 0, 2, 1, 0, 1]),
            SCORES,
            None,
            "answers row 2, column 'correct': 1, 0 or nothing is needed; got 2",
        ),
        (answers(), {}, None, "scores needs at least one scorer"),
        (answers(), {"bt": [1.0]}, None, r"scores\['bt'\] has 1 values for 6 answers"),
        (answers(), {"bt": [1, 2, np.nan, 3, 4, 5]}, None, r"scores\['bt'\] of 'q2' \(row 2\) is nan"),
        (
            answers(),
            SCORES,
            MATCHUPS.assign(right=["q1", "zz"]),
            "matchups row 1, column 'right': 'zz' is none of the 6",
        ),
        (
            answers(),
            SCORES,
            MATCHUPS.assign(outcome=[1.0, 0.7]),
            "matchups row 1, column 'outcome': 0, 0.5 or 1 is needed; got 0.7",
        ),
    ],
)
def test_bad_input(table, scores, matchups, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceRanking(table, scores, matchups=matchups)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown scorer 'elo'; known: bt, direct"):
        ConfidenceRanking(answers(), SCORES).frame("elo")
    with pytest.raises(ValueError, match=r"no view '../../x'; known: .*ranking"):
        scripted.source("../../x", "js")


def test_an_empty_table_is_drawn_as_one():
    ranking = ConfidenceRanking(answers().head(0), {"bt": []})
    assert len(ranking.frame()) == 0
    assert ranking.data()["scorers"][0]["score"] == []
