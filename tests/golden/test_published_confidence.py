"""The paper's own tables of relative confidence: every average, count and order that the claims quote."""

import copy
import json

import numpy as np
import pytest

from workbench.claims import Claims
from workbench.methods.confidence.relative_confidence import published as published


@pytest.fixture
def tables(golden):
    return golden("published_relative_confidence.json")


def verdicts(tables):
    claims = Claims("relative_confidence", "tiny", [0])
    published.rederive(claims, tables)
    return claims


def test_every_claim_follows(tables):
    found = verdicts(tables)
    assert set(found.verdicts().values()) == {"follows from the published data"}
    assert len(found.verdicts()) == 7
    assert "p = 0.048" in next(c.note for c in found.decided() if c.id == "C2 tables")


def test_averages_are_those_the_paper_prints(tables):
    for model, table in tables["tables"].items():
        for method, printed in table["average_as_published"].items():
            mean = np.mean([row[method] for row in table["auc"].values()])
            assert mean == pytest.approx(printed, abs=published.TWICE), (model, method)
    for method, printed in tables["auroc_average_as_published"].items():
        assert np.mean([row[method] for row in tables["auroc"].values()]) == pytest.approx(printed, abs=published.TWICE)


@pytest.mark.parametrize(
    ("claim", "change"),
    [
        (
            "C1 tables",
            lambda t: [
                row.update({"TrueSkill": row["Direct"]}) for m in t["tables"].values() for row in m["auc"].values()
            ],
        ),
        (
            "C2 tables",
            lambda t: [
                row.update({"Hybrid SC": row["Direct"]}) for m in t["tables"].values() for row in m["auc"].values()
            ],
        ),
        ("C3 tables", lambda t: t["categories"].update({"STEM": t["categories"]["Commonsense Reasoning"]})),
        ("C4 tables", lambda t: t["tables"]["Claude 3.5 Sonnet"]["auc"]["GPQA"].update({"TrueSkill": 1.0})),
        ("C5 tables", lambda t: t["gain_over_self_consistency_by_calls"].update({"GPT-4o": [0.03, 0.02, 0.01]})),
        (
            "C6 tables",
            lambda t: [row.update({"Elo Rating": 0.5}) for m in t["tables"].values() for row in m["auc"].values()],
        ),
        ("C7 tables", lambda t: [row.update({"Direct": 0.9}) for row in t["auroc"].values()]),
    ],
)
def test_other_numbers_would_be_seen(tables, claim, change):
    other = copy.deepcopy(tables)
    change(other)
    assert verdicts(other).verdicts()[claim] == "does not follow"


def test_a_file_that_is_none_of_these_tables(tmp_path, tables):
    with pytest.raises(FileNotFoundError, match=r"no file .nothing\.json. with published tables"):
        published.load("nothing.json")
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"tables": {}}))
    with pytest.raises(ValueError, match="has no 'categories'; it holds tables"):
        published.load(str(path))
    broken = copy.deepcopy(tables)
    broken["tables"]["GPT-4"]["auc"]["Law"]["TrueSkill"] = "high"
    path.write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="auc of GPT-4, Law, TrueSkill is 'high', not a number"):
        published.load(str(path))
