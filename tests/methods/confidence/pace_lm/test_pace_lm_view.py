"""The views of PACE-LM: figures say what the tables say, text is escaped, the static face needs no kernel."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.methods.confidence.pace_lm import method as pl
from workbench.methods.confidence.pace_lm import view as look
from workbench.runs.run import Run

CONFIG = pl.Config(
    n_history=80,
    n_calibration=100,
    n_test=30,
    n_analyses=1,
    n_answers=2,
    neighbours=[3],
    bootstrap=20,
    max_missing=0.5,
    max_unparsed=0.1,
)


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    run, task = Run(tmp_path_factory.mktemp("view")), pl.open_task(CONFIG)
    results = [pl.run(task, CONFIG, seed, run.child(f"seed-{seed}")) for seed in (0, 1)]
    return SimpleNamespace(run=run, task=task, config=CONFIG, seeds=[0, 1], scale="smoke"), results


def test_the_reliability_diagram_counts_every_case_once(played):
    experiment, results = played
    display = look.reliability_diagram(experiment)
    table = display.frame()
    n = sum(result["arms"][pl.MAIN]["n"] for result in results)
    assert table.groupby("score")["count"].sum().tolist() == [n] * 3
    assert {"bin", "count", "confidence", "accuracy", "lower", "upper"} <= set(table)
    assert "rating (rce), raw" in display.figure().layout.title.text
    experiment.task = SimpleNamespace(is_simulated=False)  # real seeds share their cases
    once = look.reliability_diagram(experiment).frame().groupby("score")["count"].sum()
    experiment.task = pl.open_task(CONFIG)
    assert once.tolist() == [results[0]["arms"][pl.MAIN]["n"]] * 3


def test_figures_and_tables_state_what_was_measured(played):
    experiment, results = played
    ece = pl.values(results, "random", "logistic", "ece").mean()
    assert f"random references have ECE {ece:.3f}" in look.by_references(results).figure().layout.title.text
    assert set(look.by_references(results).frame()["arm"]) == set(results[0]["arms"])
    assert "base rate" in look.by_score(results).figure().layout.title.text
    assert set(look.transfer_figure(results).frame()["panel"]) == {"weak", "strong"}
    assert look.transfer_figure([{**r, "transfer": {}} for r in results]).startswith(
        "The cases come from one predictor"
    )
    means = look.means(results)
    assert means.loc["rating (rce), raw", "auroc"] == pytest.approx(
        pl.values(results, pl.MAIN, "raw_rce", "auroc").mean(), abs=1e-3
    )
    checks = look.checks(experiment, results)
    assert checks.loc["test cases compared", "mean"] == np.mean([r["arms"][pl.MAIN]["n"] for r in results])
    assert "coe and the proposal at equal evidence, correlation" in checks.index


def test_a_case_shows_references_samples_proposal_and_scores(played):
    view = look.CaseView(played[0], seed=1, shown=2)
    text = view.html(0)
    for part in ("incident", "proposed cause", "reference 1, similarity", "samples, coe", "samples, rce", "confidence"):
        assert part in text
    assert view._repr_mimebundle_()["text/html"].count("case-view") == 2
    assert view.frame()["split"].eq("test").all()
    bar, shown = view.widget().children
    bar.children[2].click()
    assert shown.value == view.html(1)


def test_text_of_models_and_cases_is_escaped(played):
    view = look.CaseView(played[0])
    first = view.table["case_id"][0]
    view.table.loc[0, ["summary", "predicted_root_cause"]] = "<script>alert(1)</script>"
    view.references[first] = view.references[first].assign(root_cause="<b>x</b>")
    view.samples[first] = view.samples[first].assign(raw_text="<i>y</i>", parse_status="unparsed")
    text = view.html(0)
    assert not any(tag in text for tag in ("<script>", "<b>x</b>", "<i>y</i>"))
    assert "&lt;script&gt;" in text
    assert "[unread]" in text


def test_what_is_not_there_is_named(played):
    with pytest.raises(ValueError, match=r"no table 'scores' of seed 9; seeds of this run: \[0, 1\]"):
        look.CaseView(played[0], seed=9)
    with pytest.raises(ValueError, match="no case of split 'later' to show; splits: calibration, fresh, test"):
        look.CaseView(played[0], split="later")
    assert pd.api.types.is_float_dtype(look.means(played[1])["ece"])


def test_the_ranking_holds_every_measured_case(played):
    experiment, results = played
    ranking = look.ranking(experiment, seed=1)
    assert len(ranking.answers) == results[1]["arms"][pl.MAIN]["n"]
    assert next(iter(ranking.scores)) == "chosen"
    assert ranking.frame()["score"].is_monotonic_decreasing
    assert look.ranking(experiment, seed=9).startswith("No labelled test cases")
