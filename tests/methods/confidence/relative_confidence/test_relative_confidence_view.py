"""Figures of the confidence ranking: the tables behind them, and text of a model that must not become HTML."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.methods.confidence.relative_confidence import method as rc
from workbench.methods.confidence.relative_confidence import view as look
from workbench.runs.run import Run

SEEDS = [0, 1, 2]


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    config = rc.Config(n_questions=24, opponents=6, budgets=[2, 4], shuffles=2)
    folder, task = tmp_path_factory.mktemp("run"), rc.open_task(config)
    results = [rc.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in SEEDS]
    return SimpleNamespace(task=task, config=config, seeds=SEEDS, run=Run(folder)), results


def test_every_scorer_and_control_is_shown_in_every_regime(played):
    _, results = played
    table = look.auc_by_method(results).frame()
    assert len(table) == 3 * (len(look.SCORER_NAMES) - 1)  # the simulated model shows no log-probabilities
    assert set(table["n"]) == {3}
    bt = table[(table["panel"] == "R") & (table["arm"] == "bt")].iloc[0]
    assert bt["mean"] == pytest.approx(rc.values(results, "R", "auc", "bt").mean())
    assert bt["lower"] < bt["mean"] < bt["upper"]


def test_curves_end_at_the_accuracy(played):
    _, results = played
    display = look.coverage_curves(results)
    table = display.frame()
    for arm in "RSZ":
        ends = table[(table["panel"] == arm) & (table["coverage"] == 1.0)]["mean"]
        np.testing.assert_allclose(ends, rc.values(results, arm, "accuracy").mean())
    assert "Bradley-Terry trusts" in display.figure().layout.title.text


def test_calls_are_the_budgets_and_all_opponents(played):
    experiment, results = played
    display = look.auc_by_calls(experiment, results)
    assert sorted(set(display.frame()["calls"])) == [2, 4, 6]
    assert display.figure().layout.xaxis.tickvals == (2, 4, 6)


def test_a_larger_update_depends_more_on_the_order(played):
    table = look.elo_order(played[1]).frame()
    sd = table.groupby("arm")["mean"].mean()
    assert sd["elo_k400"] > sd["elo"] > 0


def test_the_ranking_is_in_order_and_its_text_is_escaped(played):
    experiment, _ = played
    path = next((experiment.run.folder / "seed-0" / "R").glob("*/scores.parquet"))
    scores = pd.read_parquet(path)
    scores.assign(answer="<img src=x onerror=alert(1)>").to_parquet(path)
    display = look.ranking(experiment, seed=0)
    assert display.frame()["rank"].is_monotonic_increasing
    assert display.frame()["score"].is_monotonic_decreasing
    assert "<img" not in display.figure().to_json()
    shown = sum(len(trace.x) for trace in display.figure().data)
    assert shown == len(display.frame()) == scores["qid"].nunique()


def test_an_unknown_seed_names_the_known_ones(played):
    with pytest.raises(ValueError, match=r"no scores of seed 9, regime 'R'; seeds of this run: \[0, 1, 2\]"):
        look.ranking(played[0], seed=9)


def test_tables_have_a_column_for_each_regime(played):
    experiment, results = played
    means, checks = look.means(results), look.checks(experiment, results)
    assert list(checks) == ["R", "S", "Z", "F", "FT"]
    assert "lean to the first question, logits" in checks.index
    assert means.loc["Bradley-Terry"].iloc[0] == pytest.approx(rc.values(results, "R", "auc", "bt").mean(), abs=5e-4)


def test_the_trained_model_is_shown_with_its_raw_probability(played):
    table = look.facts(played[1]).frame()
    assert set(table["panel"]) == {"F", "FT"}
    raw = table[(table["panel"] == "F") & (table["arm"] == "option_logp")]["mean"].item()
    assert raw == pytest.approx(rc.values(played[1], "F", "auc", "option_logp").mean())


def test_judgments_that_a_choice_saves():
    """Planted curves: chosen opponents reach in 3 rounds, half-way to 4, what random ones reach in 5 and in all 10."""

    def result(drawn, chosen):
        rounds = {"random": {"auc": drawn, "sensed": chosen}, "active": {"auc": chosen, "sensed": drawn}}
        return {"arms": {"R": {"d": {"n_labelled": 1, "by_rounds": rounds}}}}

    drawn = [0.5, 0.52, 0.54, 0.56, 0.6, 0.6, 0.6, 0.6, 0.6, 0.6]
    chosen = [0.5, 0.52, 0.58, 0.62, 0.62, 0.62, 0.62, 0.62, 0.62, 0.62]
    saved = look.judgments_saved([result(drawn, chosen)] * 3)
    assert saved["random"].tolist() == [5, 10]
    assert saved[["active", "95 % from", "to"]].to_numpy().tolist() == [["3.5"] * 3] * 2
    assert (
        look.judgments_saved([result(drawn, chosen)] * 3, measure="sensed")["active"].tolist() == ["more than 10"] * 2
    )
    none = look.judgments_saved([result(chosen, drawn)] * 3)
    assert none["active"].tolist() == ["more than 10"] * 2


def test_rounds_grid_and_inspector(played):
    experiment, results = played
    rounds = look.active_rounds(results).frame()
    assert set(rounds["arm"]) == {"random", "active"}
    assert rounds["judgments"].max() == 6
    assert set(look.sensitivity(results).frame()["panel"]) >= {"opponents", "judge noise", "share of ties", "Elo K"}
    inspector = look.inspect(experiment, seed=1)
    assert next(iter(inspector.scores)) == "bt"
    assert len(inspector.matchups) == 24 * 6
    with pytest.raises(ValueError, match="no scores of seed 9 in 'R'"):
        look.inspect(experiment, seed=9)
