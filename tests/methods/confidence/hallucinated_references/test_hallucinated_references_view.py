"""Views of references: the tables behind the figures, escaped text, and faces without a kernel."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.methods.confidence.hallucinated_references import method as hr
from workbench.methods.confidence.hallucinated_references import view as look
from workbench.runs.run import Run

BAD = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = hr.Config(n_topics=6, book_seeds=[], bootstrap=20, curve_bootstrap=20, overlaps=["jaccard", "containment"])
    task = hr.open_task(config)
    results = [hr.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in (0, 1)]
    return SimpleNamespace(task=task, config=config, seeds=[0, 1], run=Run(folder)), json.loads(json.dumps(results))


@pytest.fixture(scope="module")
def recorded(tmp_path_factory, golden_folder):
    folder = tmp_path_factory.mktemp("recorded")
    config = hr.Config(bootstrap=20, curve_bootstrap=20)
    task = hr.open_task(config, dataset=str(golden_folder / "real_hallucinated_references.json"))
    return SimpleNamespace(seeds=[0], run=Run(folder)), [
        json.loads(json.dumps(hr.run(task, config, 0, Run(folder / "seed-0"))))
    ]


def test_every_score_has_a_dot_and_the_title_names_the_best(played):
    display = look.ensembles(played[1])
    table = display.frame()
    assert set(table["arm"]) == set(played[1][0]["arms"]["simulated"]["auroc"])
    areas = [result["arms"]["simulated"]["auroc"]["IQ"][0] for result in played[1]]
    assert table.loc[table["arm"] == "IQ", "mean"].item() == pytest.approx(np.mean(areas))
    assert "Best score: " in display.figure().layout.title.text


def test_curves_end_where_everything_is_kept(played):
    rate = np.mean([r["arms"]["simulated"]["rate"][0] for r in played[1]])
    table = look.fdr_curves(played[1]).frame()
    np.testing.assert_allclose(table[table["kept"] == 1.0]["mean"], rate)
    roc = look.roc_curves(played[1]).frame()
    assert (roc[roc["false"] == 1.0]["mean"] == 1.0).all()


def test_tables(played):
    experiment, results = played
    assert look.means(results)["score"].tolist()[0] == look.NAMES["IQ"]
    checks = look.checks(results)
    assert checks.loc["references"].item() == sum(r["arms"]["simulated"]["n"] for r in results)
    assert look.over_topics(results)["topics"].unique().tolist() == [6]
    assert look.exposure(experiment).startswith("No seed of this run trains a transformer")
    assert look.published(results).startswith("Nothing was recorded")
    assert look.experts(results).startswith("The labels of experts are in the recorded results")


def test_exposure(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        folder = tmp_path / f"seed-{seed}" / "transformer"
        folder.mkdir(parents=True)
        pd.DataFrame({"exposure": [0, 1, 16] * 4, "IQ": rng.random(12), "DQ1": [0.7, 0.8, 0.9] * 4}).to_parquet(
            folder / "scores.parquet"
        )
    display = look.exposure(SimpleNamespace(seeds=[0, 1, 2], run=Run(tmp_path)))
    assert "DQ1 0.70 to 0.90" in display.figure().layout.title.text
    assert display.figure().layout.xaxis.ticktext == ("0", "1", "16")


def test_cards_show_sessions_overlaps_and_yes_and_escape_all_text(played):
    cards = look.cards(played[0])
    assert cards.frame()["IQ"].dropna().is_monotonic_decreasing
    page = cards.html(0)
    assert page.count("authors, session") == 3
    assert "overlap by jaccard" in page
    assert "1 and 2: " in page
    assert "yes " in page
    for name in ("samples", "scores"):
        cards.tables[name]["text" if name == "samples" else "gen_title"] = BAD
    cards.scores = cards.scores.assign(gen_title=BAD, topic=BAD, list_text=BAD, duplicate_of=BAD)
    bundle = cards._repr_mimebundle_()
    for text in (cards.html(1), bundle["text/html"], cards.figure().to_json()):
        assert "<img" not in text.replace("\\u003c", "<")
    assert bundle["text/html"].count("reference-card") == 4


def test_what_is_missing_is_said(played):
    cards = look.cards(played[0])
    ref = cards.scores["ref_id"][0]
    samples = cards.tables["samples"]
    samples.loc[(samples["ref_id"] == ref) & (samples["sample_index"] == 0), "value"] = np.nan
    agreements = cards.tables["agreements"]
    agreements.loc[agreements["ref_id"] == ref, "overlap"] = np.nan
    cards.scores.loc[0, ["IQ", "IQ_DQ"]] = np.nan
    page = cards.html(0)
    assert "no names: left out" in page
    assert "1 and 2: missing" in page
    assert "1 with neither left out" in page
    assert "IQ missing" in page


def test_buttons_move_the_cards(played):
    view = look.cards(played[0])
    bar, text = view.widget().children
    bar.children[2].click()
    assert text.value == view.html(1)


def test_nothing_to_show(played):
    view = look.cards(played[0])
    with pytest.raises(ValueError, match="no references to show"):
        look.ReferenceCards({**view.tables, "scores": view.tables["scores"].head(0)})


def test_without_labels_the_views_say_so():
    results = [{"arms": {"references": {"n_measured": 0}}, "replies": 5}]
    for view in (look.ensembles, look.roc_curves, look.fdr_curves, look.means, look.over_topics):
        assert view(results) == look.NO_LABELS


def test_recorded_results_have_bands_over_topics_and_published_figures(recorded):
    experiment, results = recorded
    display = look.fdr_curves(results)
    assert {"low", "high"} <= set(display.frame())
    assert sum(trace.fill == "toself" and len(trace.x) == 100 for trace in display.figure().data) >= 12
    table = look.published(results)
    assert (table["paper"] - table["again"]).abs().max() < 1e-3
    assert len(table) == 21
    assert look.experts(results).iloc[:, 1].between(0.97, 1).all()
    assert look.cards(experiment).startswith("Recorded results have scores alone")
    assert look.checks(results).startswith("Recorded results")


def test_the_ranking_orders_titles_and_says_so_where_there_are_none(played, recorded):
    ranking = look.ranking(played[0], seed=0)
    assert next(iter(ranking.scores)) == "IQ_DQ"
    assert set(ranking.answers["correct"].dropna()) == {0.0, 1.0}
    assert look.ranking(recorded[0], seed=0).startswith("The recorded results hold no titles")
