"""Golden numbers of hallucinated references: every field of the recorded results, and two parsers' tables.

The recorded IQ has four digits; the figures beside it were computed from more, with rounding errors of sums deciding a
few ties. AUROC, means and rates agree to 1e-4. A count of references above a threshold may differ by those whose score
is the threshold to nine digits, and by no others.
"""

import numpy as np
import pytest

from workbench.methods.confidence.hallucinated_references.names import overlap_percent
from workbench.methods.confidence.hallucinated_references.recorded import RecordedScores, expert_agreement
from workbench.methods.confidence.hallucinated_references.references import yes_share
from workbench.methods.confidence.hallucinated_references.scores import THRESHOLDS, combined
from workbench.stats import selective

FILE = "real_hallucinated_references.json"
NOT_BUILT_YET = {"arena_verdict", "two_game_scores", "dilemma_action"}  # parsers of other systems


def test_recorded_results(golden, golden_path):
    content = golden(FILE)
    assert set(content) == {"about", "models", "expected", "experts", "experts_expected"}
    recorded = RecordedScores.load(str(golden_path(FILE)))
    assert set(recorded.tables) == set(content["models"])
    for model, columns in content["models"].items():
        assert set(columns) == {"grounded", "IQ", "DQ1", "DQ2", "DQ3", "topic_index"}
        table = recorded.tables[model]
        for name, values in columns.items():
            np.testing.assert_allclose(table["topic" if name == "topic_index" else name], values, atol=6e-5)
    for model, expected in content["expected"].items():
        table = combined(recorded.tables[model])
        h = 1 - table["grounded"].to_numpy(dtype=float)
        assert set(expected) == {
            *("hallucination_rate", "n", "n_topics", "auroc_hallucination", "fdr_threshold_kept_fraction_fdr"),
            "mean_score_grounded_hallucinated",
        }
        assert (len(table), table["topic"].nunique()) == (expected["n"], expected["n_topics"])
        assert selective.mean_ci(h, table["topic"]).value == pytest.approx(expected["hallucination_rate"], abs=1e-9)
        for name, area in expected["auroc_hallucination"].items():
            ours = selective.roc_ci(h, table[name.replace("+", "_")], table["topic"], rounds=20)
            assert ours.value == pytest.approx(area, abs=1e-4), (model, name)
        for name, means in expected["mean_score_grounded_hallucinated"].items():
            score = table[name]
            assert [score[h == 0].mean(), score[h == 1].mean()] == pytest.approx(means, abs=1e-4), (model, name)
        for name, rows in expected["fdr_threshold_kept_fraction_fdr"].items():
            score = table[name.replace("+", "_")].to_numpy()
            curve = selective.fdr_curve(h, score, [row[0] for row in rows])
            assert curve.threshold.tolist() == list(THRESHOLDS)
            for i, (tau, kept, fraction, fdr) in enumerate(rows):
                at_threshold = int((np.abs(score - tau) < 1e-9).sum())
                assert 0 <= kept - curve.kept[i] <= at_threshold, (model, name, tau)
                assert fraction == kept / len(table)
                assert curve.fraction[i] == pytest.approx(fraction, abs=at_threshold / len(table) + 1e-9)
                assert curve.fdr[i] == pytest.approx(fdr, abs=1e-4), (model, name, tau)


def test_recorded_experts(golden, golden_path):
    content = golden(FILE)
    assert set(content["experts"]) == {"search_label_hallucinated", "A", "B", "C", "D"}
    assert set(content["experts_expected"]) == {"agreement_with_search", "fleiss_input"}
    found = expert_agreement(RecordedScores.load(str(golden_path(FILE))).experts)
    assert found is not None
    assert found["with_search"] == pytest.approx(content["experts_expected"]["agreement_with_search"], abs=1e-9)
    assert content["experts_expected"]["fleiss_input"] == f"4 raters x {found['n']}"
    assert found["pairwise"] == [0.98, 1.0]
    assert round(found["fleiss_kappa"], 2) == 0.98


def test_parsers(golden):
    content = golden("parser_cases_confidence.json")
    assert set(content) - NOT_BUILT_YET == {"about", "overlap_percent", "yes_share"}
    for case in content["overlap_percent"]:
        assert set(case) == {"text", "value"}
        assert overlap_percent(case["text"]) == pytest.approx(case["value"], abs=1e-9), case
    for case in content["yes_share"]:
        assert set(case) == {"replies", "value"}
        assert yes_share(case["replies"]) == pytest.approx(case["value"], abs=1e-9), case
