"""Cases and their store: columns, checks that name table, row and column, and both forms of files."""

import json

import pandas as pd
import pytest

from workbench.methods.confidence.pace_lm.cases import CaseFile, check_cases, check_history, has_prediction

CASE = {"case_id": "c1", "title": "t", "summary": "s", "predicted_root_cause": "x", "created": "2024-05-01"}
CASE |= {"correct": 1, "split": "test"}
PAST = {"incident_id": "h1", "summary": "s", "root_cause": "x", "created": "2024-04-01"}


def test_good_rows_get_the_projects_columns():
    cases = check_cases([CASE, {**CASE, "case_id": 2, "correct": None, "split": None, "predicted_root_cause": None}])
    assert cases["case_id"].tolist() == ["c1", "2"]
    assert cases["split"].tolist() == ["test", "test"]
    assert cases["correct"].isna().tolist() == [False, True]
    assert has_prediction(cases).tolist() == [True, False]
    assert check_history([PAST])["created"][0] == pd.Timestamp("2024-04-01")


@pytest.mark.parametrize("proposed", ["", " ", "Unknown", "unknown "])
def test_an_empty_or_unknown_prediction_is_none(proposed):
    assert not has_prediction(check_cases([{**CASE, "predicted_root_cause": proposed}]))[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"case_id": None}, "cases row 1, column 'case_id': text is needed; got None; found case_id, title"),
        ({"summary": " "}, "cases row 1, column 'summary': text is needed"),
        ({"case_id": "c1"}, "cases row 1, column 'case_id': 'c1' stands in row 0 too"),
        ({"correct": 2}, "cases row 1, column 'correct': 0, 1 or null is needed; got 2"),
        ({"correct": "yes"}, "cases row 1, column 'correct': 0, 1 or null is needed; got 'yes'"),
        ({"split": "train"}, "cases row 1, column 'split': one of calibration, test, fresh is needed; got 'train'"),
        ({"created": "soon"}, "cases row 1, column 'created': a date such as 2024-05-31 is needed"),
        ({"created": None}, "cases row 1, column 'created': a date"),
    ],
)
def test_bad_cases_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        check_cases([CASE, {**CASE, "case_id": "c2", **change}])


def test_bad_history_is_named():
    with pytest.raises(ValueError, match="history row 1, column 'root_cause': text is needed; got ''"):
        check_history([PAST, {**PAST, "incident_id": "h2", "root_cause": ""}])
    with pytest.raises(ValueError, match=r"table history has no rows; give a folder with cases\.jsonl"):
        check_history([])


def test_both_forms_of_files_and_what_is_missing(tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "cases.jsonl").write_text(json.dumps(CASE))
    with pytest.raises(FileNotFoundError, match=r"has no history\.jsonl; give a folder"):
        CaseFile.load(str(folder), model="m", device="cpu")
    (folder / "history.jsonl").write_text(json.dumps(PAST))
    one = tmp_path / "both.jsonl"
    one.write_text("\n".join(json.dumps(r) for r in ({**CASE, "table": "case"}, {**PAST, "table": "history"})))
    for source in (folder, one):
        cases, history = CaseFile.load(str(source), model="m", device="cpu").tables(0)
        assert (len(cases), len(history)) == (1, 1)
    one.write_text(json.dumps(CASE))
    with pytest.raises(ValueError, match="row 0, column 'table': got None; give a folder"):
        CaseFile.load(str(one), model="m", device="cpu")
