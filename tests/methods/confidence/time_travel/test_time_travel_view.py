"""Views of contamination: tables agree with the results, text is escaped, released scores are shown without texts."""

import json
from types import SimpleNamespace

import pytest

from workbench.methods.confidence.time_travel import method as tt
from workbench.methods.confidence.time_travel import view as look
from workbench.runs.run import Run


def play(folder, task, config, seeds):
    results = [tt.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    experiment = SimpleNamespace(task=task, config=config, seeds=seeds, scale="tiny", run=Run(folder))
    return experiment, json.loads(json.dumps(results))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    config = tt.Config(learner="simulated", bootstrap=200, simulations=20)
    return play(tmp_path_factory.mktemp("world"), tt.open_task(config), config, [0, 1])


@pytest.fixture(scope="module")
def released(tmp_path_factory, golden_folder):
    config = tt.Config(bootstrap=500, simulations=20)
    task = tt.open_task(config, dataset=str(golden_folder / "real_time_travel.json"))
    return play(tmp_path_factory.mktemp("released"), task, config, [0, 1])


def test_verdicts_hold_one_row_a_partition(world):
    table = look.verdicts(world[1][0])
    assert len(table) == 8
    assert {
        "truth",
        "gap",
        "p paired",
        "p unpaired",
        "p sign flips",
        "exact",
        "near-exact",
        "counting, by rule",
    } <= set(table)
    rows = tt.found_by(world[1][0], "planted", "rougeL")
    assert table["gap"].tolist() == [round(row["statistic"], 3) for row in rows.values()]
    assert "exact" in look.verdicts(world[1][0], "clean")


def test_gaps_are_drawn_with_their_intervals(world):
    display = look.gaps(world[1])
    assert len(display.frame()) == 16
    assert (display.frame()["lower"] <= display.frame()["upper"]).all()
    bar = display.figure().data[0]
    assert list(bar.x) == display.frame()["gap"].tolist()
    assert {trace.name for trace in display.figure().data[1:]} == {"contaminated", "clean"}
    with pytest.raises(ValueError, match="no overlap scores of 'bleurt'"):
        look.gaps(world[1], metric="bleurt")


def test_pairs_are_joined_by_lines(world):
    display = look.pairs(world[0], seed=0)
    assert len(display.figure().data) == len(display.frame()) == 80
    first = display.frame().iloc[0]
    assert list(display.figure().data[0].y) == [first["general"], first["guided"]]
    with pytest.raises(ValueError, match="no overlap of seed 9, arm 'planted' in this run; seeds: "):
        look.pairs(world[0], seed=9)


def test_agreement_is_symmetric_and_right_of_the_truth(world):
    table = look.agreement(world[1]).frame()
    assert (table.to_numpy() == table.to_numpy().T).all()
    right = sum(tt.n_right(result, "planted", "matcher") for result in world[1])
    assert table.loc["counting, by rule", "truth"] == right / 16


def test_checks_count_over_seeds(world):
    table = look.checks(world[1])
    assert table.loc["completions", "planted"] == 2 * 160
    assert table.loc["right: counting, by rule", "clean"] == 16
    assert table.loc["AUROC of the gap, mean", "planted"] > 0.9
    assert table.loc["AUROC of the gap, mean", "clean"] == ""  # one class only


def test_rates_stand_beside_those_of_the_specification(world):
    table = look.rates(world[1])
    row = table[(table["instances"] == 10) & (table["correlation"] == 0.4) & (table["test"] == "paired")]
    assert row.set_index("rate").loc["power", "specification"] == "0.45"
    assert table["here"].between(0, 1).all()


def test_released_scores_stand_beside_the_published_figures(released, world):
    table = look.published(released[1])
    assert len(table) == 16
    gains = table[table["what"].str.startswith("gain")]
    assert (gains["here"] - gains["published"]).abs().max() <= 0.005 + 1e-9
    assert look.published(world[1]).startswith("Only the released scores")
    assert len(look.gaps(released[1]).frame()) == 14  # seeds share the scores: each partition once
    assert look.verdicts(released[1][0], "gpt3.5").shape[0] == 14
    assert look.completions(released[0], seed=0).startswith("The released scores come without their texts")
    assert len(look.pairs(released[0], seed=0).frame()) == 140
    assert look.agreement(released[1], "gpt4").frame().loc["counting, by a judge", "truth"] == 1
    assert look.checks(released[1]).loc["right: counting, by a judge", "gpt3.5"] == 13


def test_the_browser_escapes_text_and_marks_what_is_shared(world):
    view = look.completions(world[0], seed=0)
    assert isinstance(view, look.Completions)
    assert view.n_pages == 80
    assert view.frame()["gap"].is_monotonic_decreasing
    assert "guided, 1.00" in view.html(0)
    assert "match: exact" in view.html(0)
    view.table.loc[0, ["guided", "first_piece", "label"]] = ["<script>x</script> & more", "<b>hi</b>", "<i>"]
    page = view.html(0)
    assert "<script>" not in page
    assert "<b>hi" not in page
    assert "<i>" not in page
    assert "&lt;script&gt;" in page
    bundle = view._repr_mimebundle_()
    assert bundle["text/html"].count("original") == view.shown


def test_one_partition_alone(world):
    view = look.completions(world[0], seed=1, arm="clean", partition="cedar/test")
    assert view.n_pages == 10
    assert "cedar/test" in view.html(9)
    with pytest.raises(ValueError, match="no instance of partition 'cedar'; it is written as data set/split"):
        look.completions(world[0], seed=1, partition="cedar")


def test_marked_words_are_those_of_the_original_in_order():
    text = look.marked("The Ferry sank, cars left <br>", "the ferry left cars.")
    assert text.count("<mark") == 3
    assert "sank,</mark>" not in text
    assert text.endswith("&lt;br&gt;")
