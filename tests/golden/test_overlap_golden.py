"""Golden numbers of ROUGE, of the bootstrap of method 1, and of released contamination scores: every field, every case.

Left out: the stemmed half of `rouge.json`. The method scores without a stemmer, and no library here stems as that one.
"""

import numpy as np
import pytest

from workbench.methods.confidence.time_travel.partitions import LABEL_NAMES, RecordedScores
from workbench.methods.confidence.time_travel.verdicts import Rule, found_by, n_right, overlap_test, verdict_table
from workbench.stats.bootstrap import bootstrap_p, gap_test, gaps
from workbench.stats.text_overlap import rouge_l, rouge_l_sum, rouge_n

NOT_OURS = {"stem"}


def test_rouge_without_stemmer(golden):
    content = golden("rouge.json")
    assert set(content) == {"about", "pairs"}
    ours = {"rouge1": lambda r, c: rouge_n(r, c, 1), "rouge2": lambda r, c: rouge_n(r, c, 2), "rougeL": rouge_l}
    ours |= {"rougeLsum": rouge_l_sum}
    for pair in content["pairs"]:
        assert set(pair) == {"reference", "candidate", "no_stem"} | NOT_OURS
        assert set(pair["no_stem"]) == set(ours)
        for name, expected in pair["no_stem"].items():
            np.testing.assert_allclose(
                ours[name](pair["reference"], pair["candidate"]), expected, atol=1e-7, err_msg=f"{name} {pair}"
            )


def test_bootstrap_with_given_draws(golden):
    content = golden("bootstrap_significance.json")
    assert set(content) == {"about", "cases"}
    for case in content["cases"]:
        where = case["name"]
        assert set(case) == {"name", "general", "guided", "resample_general", "resample_guided", "expected"}
        general, guided = np.array(case["general"]), np.array(case["guided"])
        one, two = np.array(case["resample_general"]), np.array(case["resample_guided"])
        expected = dict(case["expected"])
        unpaired = bootstrap_p(gaps(general, guided, one, two))
        assert unpaired == pytest.approx(expected.pop("p_unpaired_independent_resampling"), abs=1e-9), where
        paired = bootstrap_p(gaps(general, guided, one, one))
        assert paired == pytest.approx(expected.pop("p_paired_same_indices_as_general"), abs=1e-9), where
        assert (unpaired <= 0.05) == expected.pop("significant_at_0.05"), where
        means = gap_test(general, guided, rounds=50)
        assert means.mean_general == pytest.approx(expected.pop("mean_general")), where
        assert means.mean_guided == pytest.approx(expected.pop("mean_guided")), where
        assert not expected, f"{where}: fields that no check reads: {set(expected)}"


@pytest.fixture(scope="module")
def released(golden):
    """The content of the file, and the verdicts of one run over it."""
    content = golden("real_time_travel.json")
    task = RecordedScores(content["partitions"])
    arms = {}
    for arm in task.arms:
        table = verdict_table(*task.evidence(arm), arm, Rule(rounds=20_000, seed=3))
        verdicts = {"arms": {arm: {"verdicts": table.to_dict("records")}}}
        humans = {name: float(row["contaminated"]) for name, row in found_by(verdicts, arm, "human1").items()}
        arms[arm] = {"verdicts": table.to_dict("records"), "truth": humans}
    return content, {"arms": arms}


def test_released_scores_give_the_stored_verdicts(released):
    content, result = released
    assert set(content) == {"about", "partitions", "expected"}
    for model, expected in content["expected"].items():
        assert set(expected) == {"partitions", "correct_partitions"}
        for name, fields in expected["partitions"].items():
            fields = dict(fields)
            for metric, ours in (("rouge", "rougeL"), ("bleurt", "bleurt")):
                for way, method in (("paired", ours), ("unpaired", f"{ours}_unpaired"), ("stored", ours)):
                    p = found_by(result, model, method)[name]["p_value"]
                    assert p == pytest.approx(fields.pop(f"{metric}_p_{way}"), abs=0.02), (
                        f"{model} {name} {metric} {way}"
                    )
            assert found_by(result, model, "judge")[name]["contaminated"] == fields.pop("icl_contaminated")
            human = fields.pop("human_contaminated")
            assert found_by(result, model, "human1")[name]["contaminated"] == human
            assert found_by(result, model, "human2")[name]["contaminated"] == human
            assert not fields, f"{model} {name}: fields that no check reads: {set(fields)}"
        counts = dict(expected["correct_partitions"])
        assert len(found_by(result, model, "judge")) == counts.pop("of")
        names = {"rouge": "rougeL", "bleurt": "bleurt"}
        for key, right in counts.items():
            metric, _, way = key.partition("_")
            method = "judge" if metric == "icl" else names[metric] + ("" if way == "paired" else f"_{way}")
            assert n_right(result, model, method) == right, f"{model} {key}"


def test_every_partition_is_read_whole(released):
    content, result = released
    for part in content["partitions"]:
        model, name = part["model"], f"{part['dataset']}/{part['split']}"
        row = found_by(result, model, "rougeL")[name]
        assert row["n"] == part["n"]
        test = overlap_test(part["rouge_general"], part["rouge_guided"], 20_000, True, 3)
        assert (row["p_value"], row["statistic"]) == (test.p, test.gap)
        assert found_by(result, model, "bleurt")[name]["guided"] == pytest.approx(np.mean(part["bleurt_guided"]))
        assert found_by(result, model, "bleurt")[name]["general"] == pytest.approx(np.mean(part["bleurt_general"]))
        for judge, column in (("judge", "icl_label"), ("human1", "human1"), ("human2", "human2")):
            labels = [LABEL_NAMES[label] for label in part[column]]
            found = found_by(result, model, judge)[name]
            assert (found["n_exact"], found["n_near"]) == (labels.count("exact"), labels.count("near-exact"))
