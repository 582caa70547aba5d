"""Time travel: the planted truth comes back, broken methods are noticed, bad input is refused, killed runs go on."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small import save_policy

from workbench.feedback import chat
from workbench.feedback.simulated import SimulatedModel
from workbench.methods.confidence.time_travel import completions
from workbench.methods.confidence.time_travel import method as tt
from workbench.methods.confidence.time_travel import verdicts as partition_tests
from workbench.methods.confidence.time_travel import view as look
from workbench.methods.confidence.time_travel.experiment import CLAIMS, claims
from workbench.methods.confidence.time_travel.partitions import RecordedScores
from workbench.methods.confidence.time_travel.verdicts import (
    by_truth,
    error_rates,
    found_by,
    gap_auroc,
    gap_by_copies,
    n_false,
    n_right,
)
from workbench.runs.run import Run
from workbench.stats import bootstrap

SEEDS = [0, 1, 2]
QUICK = {"learner": "simulated", "bootstrap": 300, "simulations": 20, "metrics": ["rougeL"]}


def run_seeds(folder, config=None, seeds=SEEDS, task=None):
    """All seeds in this process, and what `claims` needs of an experiment."""
    config = config or tt.Config(**QUICK)
    task = task or tt.open_task(config)
    results = [tt.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    experiment = SimpleNamespace(task=task, config=config, seeds=seeds, scale="tiny", run=Run(folder))
    return experiment, json.loads(json.dumps(results))


@pytest.fixture(scope="module", autouse=True)
def no_simulation():
    """The error rates have their own test; here they would only take time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tt, "error_rates", lambda partitions, rule: [])
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("time-travel")
    return folder, *run_seeds(folder)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"min_p": 80.0}, "min_p must not be above max_p; got 80 and 70"),
        ({"instructions": ["general"]}, "instructions needs 'guided'"),
    ],
)
def test_settings_that_do_not_go_together(overrides, message):
    with pytest.raises(ValueError, match=message):
        tt.Config.at("tiny", **overrides)


# ---- the planted truth
def test_counting_and_the_paired_test_find_what_was_planted(world):
    """Bounds of our pilot, on the simulated learner, whose memory of one copy is a coin."""
    _, experiment, results = world
    total = {
        m: sum(n_right(r, "planted", m) for r in results) for m in ("matcher", "judge", "rougeL", "rougeL_unpaired")
    }
    assert total["matcher"] >= 22
    assert total["judge"] >= 20
    assert total["rougeL"] >= 19
    assert sum(n_false(r, "clean", "matcher") for r in results) <= 2
    gaps = gap_by_copies(results, "planted")
    assert list(gaps) == [0, 1, 4, 16]
    assert gaps[0] < 0.05 < gaps[1] < gaps[4]
    assert min(gap_auroc(result, "planted") for result in results) > 0.95
    found = claims(experiment, results).verdicts()
    assert found["C1"] == found["C4"] == "shown in small"
    assert found["C3"] == "needs full scale"
    assert set(found) == set(CLAIMS)


def test_controls_find_nothing(world):
    _, _, results = world
    for result in results:
        for arm in ("planted", "clean"):
            assert not any(row["contaminated"] for row in found_by(result, arm, "rougeL_itself").values())
            assert not any(row["contaminated"] for row in found_by(result, arm, "matcher_on_general").values())


def test_broken_replies_are_counted_and_never_a_no(world):
    _, _, results = world
    rows = [row for result in results for arm in result["arms"] for row in found_by(result, arm, "judge").values()]
    assert 0 < sum(row["n_unparsed"] for row in rows) < 0.1 * 10 * len(rows)
    assert all(row["n_exact"] + row["n_near"] + row["n_unparsed"] <= 10 for row in rows)


def test_tables_of_the_run_folder(world):
    folder = world[0] / "seed-1" / "planted"
    tables = {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}
    assert set(tables) == {"instances", "rejected", "completions", "overlap", "matches", "verdicts"}
    assert list(tables["instances"]) == completions.COLUMNS
    assert list(tables["completions"])[:5] == ["instance_id", "instruction", "text", "model", "seed"]
    assert tables["completions"]["template"].str.match(r"(guided|general)-(cls|nli|sum)-[0-9a-f]{8}$").all()
    assert list(tables["overlap"]) == ["instance_id", "instruction", "metric", "score"]
    assert (tables["overlap"]["score"] * 100).round(6).mod(1).eq(0).all()  # two decimals, before any test
    wanted = {"dataset", "split", "model", "method", "statistic", "p_value", "n_exact", "n_near", "contaminated"}
    assert wanted <= set(tables["verdicts"])
    assert len(tables["instances"]) == 80


def test_holm_is_over_the_partitions_of_a_method(world):
    _, _, results = world
    rows = list(found_by(results[0], "planted", "rougeL").values())
    smallest = min(rows, key=lambda row: row["p_value"])
    assert smallest["p_holm"] == pytest.approx(8 * smallest["p_value"])
    assert all(row["p_holm"] >= row["p_value"] for row in rows)


# ---- resume
def test_a_second_run_asks_nothing_and_gives_the_same(world, tmp_path, monkeypatch):
    folder, _, results = world
    monkeypatch.setattr(SimulatedModel, "ask", lambda *a: pytest.fail("asked again"))
    for name in ("planted", "clean"):
        for path in (folder / "seed-0" / name).glob("*.parquet"):
            path.unlink()  # scoring again needs the transcript alone
    assert run_seeds(folder, seeds=[0])[1] == results[:1]


# ---- views: tables agree with the results, text is escaped
def test_verdicts_hold_one_row_a_partition(world):
    table = look.verdicts(world[2])
    assert len(table) == 8
    columns = "truth|gap|p paired|p unpaired|p sign flips|exact|near-exact|counting, by rule"
    assert set(columns.split("|")) <= set(table)
    rows = found_by(world[2][0], "planted", "rougeL")
    assert table["gap"].tolist() == [round(row["statistic"], 3) for row in rows.values()]
    assert "exact" in look.verdicts(world[2], "clean")


def test_gaps_are_drawn_with_their_intervals(world):
    display = look.gaps(world[2])
    assert len(display.frame()) == 24
    assert (display.frame()["lower"] <= display.frame()["upper"]).all()
    bar = display.figure().data[0]
    assert list(bar.x) == display.frame()["gap"].tolist()
    assert {trace.name for trace in display.figure().data[1:]} == {"contaminated", "clean"}
    with pytest.raises(ValueError, match="no overlap scores of 'bleurt'"):
        look.gaps(world[2], metric="bleurt")


def test_pairs_are_joined_by_lines(world):
    display = look.pairs(world[1], seed=0)
    assert len(display.figure().data) == len(display.frame()) == 80
    first = display.frame().iloc[0]
    assert list(display.figure().data[0].y) == [first["general"], first["guided"]]
    with pytest.raises(ValueError, match="no overlap of seed 9, arm 'planted' in this run; seeds: "):
        look.pairs(world[1], seed=9)


def test_agreement_is_symmetric_and_right_of_the_truth(world):
    table = look.agreement(world[2]).frame()
    assert (table.to_numpy() == table.to_numpy().T).all()
    right = sum(n_right(result, "planted", "matcher") for result in world[2])
    assert table.loc["counting, by rule", "truth"] == right / 24


def test_checks_count_over_seeds(world):
    table = look.checks(world[2])
    assert table.loc["completions", "planted"] == 3 * 160
    assert table.loc["right: counting, by rule", "clean"] == 24
    assert table.loc["AUROC of the gap, mean", "planted"] > 0.9
    assert table.loc["AUROC of the gap, mean", "clean"] == ""  # one class only


def test_rates_stand_beside_those_of_the_pilot():
    table = look.rates([{"statistics": error_rates(20, partition_tests.Rule(rounds=200, seed=0))}])
    row = table[(table["instances"] == 10) & (table["correlation"] == 0.4) & (table["test"] == "paired")]
    assert row.set_index("rate").loc["power", "pilot"] == "0.45"
    assert table["here"].between(0, 1).all()


def test_the_browser_escapes_text_and_marks_what_is_shared(world):
    view = look.completions(world[1], seed=0)
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
    view = look.completions(world[1], seed=1, arm="clean", partition="cedar/test")
    assert view.n_pages == 10
    assert "cedar/test" in view.html(9)
    with pytest.raises(ValueError, match="no instance of partition 'cedar'; it is written as data set/split"):
        look.completions(world[1], seed=1, partition="cedar")


def test_marked_words_are_those_of_the_original_in_order():
    text = look.marked("The Ferry sank, cars left <br>", "the ferry left cars.")
    assert text.count("<mark") == 3
    assert "sank,</mark>" not in text
    assert text.endswith("&lt;br&gt;")


# ---- sabotage: the method is broken, and a claim or a number falls
def test_scoring_the_first_piece_too_is_noticed(world, tmp_path, monkeypatch):
    """The gap of contaminated partitions halves, and chance overlap is high."""
    right = tt.overlap

    def whole(df, metric, scorer=""):
        joined = {name: df["first_piece"] + " " + df[name] for name in ("second_piece", "text")}
        return right(df.assign(**joined), metric, scorer)

    monkeypatch.setattr(tt, "overlap", whole)
    _, broken = run_seeds(tmp_path)
    gap = {
        name: np.mean([by_truth(result, "planted", "rougeL")[0].mean() for result in results])
        for name, results in (("right", world[2]), ("broken", broken))
    }
    assert gap["broken"] < 0.6 * gap["right"]
    chance = [row["general"] for row in found_by(broken[0], "clean", "rougeL").values()]
    assert min(chance) > 0.45 > 0.3 > max(row["general"] for row in found_by(world[2][0], "clean", "rougeL").values())


def test_a_general_prompt_that_names_the_data_set_is_noticed(tmp_path, monkeypatch):
    for task in completions.TASKS:
        monkeypatch.setitem(completions.INSTRUCTIONS, ("general", task), completions.INSTRUCTIONS["guided", task])
    experiment, results = run_seeds(tmp_path)
    assert max(gap_by_copies(results, "planted").values()) == 0
    found = claims(experiment, results).verdicts()
    assert found["C1"] == found["C4"] == "not shown"  # the control counts as many matches as the method


def test_guided_compared_with_itself_is_noticed(tmp_path, monkeypatch):
    right = partition_tests.overlap_test
    monkeypatch.setattr(partition_tests, "overlap_test", lambda general, guided, *a: right(guided, guided, *a))
    experiment, results = run_seeds(tmp_path)
    assert sum(n_right(r, "planted", "rougeL") for r in results) == 12  # nothing is found: half of 24
    assert claims(experiment, results).verdicts()["C4"] == "not shown"


def test_at_least_instead_of_above_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(bootstrap, "bootstrap_p", lambda resampled: float(1 - np.mean(resampled >= 0)))
    _, results = run_seeds(tmp_path, seeds=[0])
    assert all(row["contaminated"] for row in found_by(results[0], "clean", "rougeL_itself").values())


def test_a_second_piece_in_the_prompt_is_noticed(tmp_path, monkeypatch):
    """Everything looks contaminated, in the clean run too."""
    right = completions.request

    def leaks(row, instruction, max_new_tokens):
        return right({**row, "first_piece": f"{row['first_piece']} {row['second_piece']}"}, instruction, max_new_tokens)

    monkeypatch.setattr(completions, "request", leaks)
    experiment, results = run_seeds(tmp_path)
    assert sum(n_false(r, "clean", "matcher") for r in results) == 24
    found = claims(experiment, results)
    assert found.verdicts()["C1"] == "not shown"
    assert any("24 of 24 flagged" in name for name in next(c for c in found.decided() if c.id == "C1").conditions)


def test_matches_counted_on_general_completions_are_noticed(tmp_path, monkeypatch):
    right = tt.match_judge

    def swapped(df, *a, **options):
        table = right(df, *a, **options)
        other = {"guided": "general", "general": "guided"}
        return table.assign(instruction=table["instruction"].map(other))

    monkeypatch.setattr(tt, "match_judge", swapped)
    experiment, results = run_seeds(tmp_path)
    assert sum(n_right(r, "planted", "matcher") for r in results) == 12
    assert claims(experiment, results).verdicts()["C1"] == "not shown"


# ---- bad input through the method
def prompts(path, texts, **columns):
    path.write_text("".join(json.dumps({"text": text, **columns}) + "\n" for text in texts))
    return str(path)


class Silent:
    """A model that says the same whatever it is asked."""

    def __init__(self, text="", room=10**6):
        self.name, self.text, self.room = f"silent {room}", text, room

    def ask(self, requests):
        return [chat.Reply(self.text) for _ in requests]

    def fits(self, request):
        return len(request.messages[0]["content"]) < self.room


@pytest.fixture
def silent(monkeypatch):
    """Partitions of a file with a model that needs no weights."""

    def opened(path, model=None, **changes):
        config = tt.Config(**{**QUICK, **changes})
        task = tt.open_task(config, model="m", dataset=path, device="cpu")
        monkeypatch.setattr(type(task), "subject", lambda self, arm, seed: model or Silent())
        return config, task

    return opened


TEXTS = [f"Sentence {i} says this. And {i} says that." for i in range(12)]


def test_empty_completions_score_zero_and_are_no_evidence(tmp_path, silent):
    config, task = silent(prompts(tmp_path / "d.jsonl", TEXTS))
    experiment, results = run_seeds(tmp_path / "run", config, [0], task)
    (row,) = found_by(results[0], "partitions", "rougeL").values()
    assert (row["general"], row["guided"], row["p_value"], row["contaminated"]) == (0, 0, 1, False)
    assert results[0]["arms"]["partitions"]["counts"]["empty"] == 20
    assert set(claims(experiment, results).verdicts().values()) == {"needs full scale"}


def test_guided_completions_alone_leave_method_two(tmp_path, silent):
    config, task = silent(prompts(tmp_path / "d.jsonl", TEXTS), Silent("And 3 says that."), instructions=["guided"])
    _, results = run_seeds(tmp_path / "run", config, [0], task)
    assert {row["method"] for row in results[0]["arms"]["partitions"]["verdicts"]} == {"matcher"}
    with pytest.raises(ValueError, match=r"method 1 compares .* there are only guided ones; use method 2"):
        partition_tests.overlap_test([], [0.1])


def test_too_long_instances_are_skipped_and_counted(tmp_path, silent):
    texts = [*TEXTS, "very long " * 400]
    config, task = silent(prompts(tmp_path / "d.jsonl", texts), Silent("x", room=1_000), n_instances=13)
    _, results = run_seeds(tmp_path / "run", config, [0], task)
    assert results[0]["arms"]["partitions"]["counts"]["too_long"] == 1
    config, task = silent(prompts(tmp_path / "d.jsonl", texts), Silent("x", room=10))
    with pytest.raises(ValueError, match="no instance fits into the context of silent 10"):
        run_seeds(tmp_path / "none", config, [0], task)


def test_a_repeated_first_piece_is_counted(tmp_path, silent):
    pieces = [{"first_piece": "It rains.", "second_piece": f"Then {i}."} for i in range(10)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in pieces))
    config, task = silent(str(path), Silent("It rains. Then 4."), split=False)
    _, results = run_seeds(tmp_path / "run", config, [0], task)
    assert results[0]["arms"]["partitions"]["counts"]["repeated_first_piece"] == 20
    (row,) = found_by(results[0], "partitions", "matcher").values()
    assert (row["n_exact"], row["contaminated"]) == (1, True)


@pytest.mark.parametrize(
    ("texts", "columns", "changes", "message"),
    [
        (
            ["one", "two", "", *TEXTS[:4], TEXTS[0]],
            {},
            {},
            r"d/train has 4 usable instances, .*d/train/2: empty text; .*: duplicate",
        ),
        (TEXTS, {}, {"split": False}, "column 'first_piece', 'second_piece' is missing"),
    ],
)
def test_bad_partitions(tmp_path, silent, texts, columns, changes, message):
    config, task = silent(prompts(tmp_path / "d.jsonl", texts, **columns), **changes)
    with pytest.raises(ValueError, match=message):
        run_seeds(tmp_path / "run", config, [0], task)


# ---- released scores
@pytest.fixture(scope="module")
def released(tmp_path_factory, golden_path):
    config = tt.Config(bootstrap=4_000, simulations=20)
    task = tt.open_task(config, dataset=str(golden_path("real_time_travel.json")))
    return run_seeds(tmp_path_factory.mktemp("released"), config, [0], task)


def test_claims_are_derived_again_from_released_scores(released):
    assert set(claims(*released).verdicts().values()) == {"follows from the published data"}
    assert released[1][0]["replies"] == 0


def test_released_scores_with_a_judge_that_sees_matches_everywhere_do_not_follow(tmp_path, released):
    task = released[0].task
    wrong = RecordedScores([{**part, "icl_label": [2] * part["n"]} for part in task.partitions])
    found = claims(*run_seeds(tmp_path, tt.Config(bootstrap=500), [0], wrong)).verdicts()
    assert found["C1"] == found["C2"] == "does not follow"
    split = RecordedScores([{**part, "human1": [2] * part["n"]} for part in task.partitions])
    with pytest.raises(ValueError, match="the two human annotators disagree on a partition"):
        run_seeds(tmp_path / "split", tt.Config(bootstrap=500), [0], split)


def test_released_scores_stand_beside_the_published_figures(released, world):
    table = look.published(released[1])
    assert len(table) == 16
    gains = table[table["what"].str.startswith("gain")]
    assert (gains["here"] - gains["published"]).abs().max() <= 0.005 + 1e-9
    assert look.published(world[2]).startswith("Only the released scores")
    assert len(look.gaps(released[1]).frame()) == 14  # seeds share the scores: each partition once
    assert look.verdicts(released[1], "gpt3.5").shape[0] == 14
    assert look.completions(released[0], seed=0).startswith("The released scores come without their texts")
    assert len(look.pairs(released[0], seed=0).frame()) == 140
    assert look.agreement(released[1], "gpt4").frame().loc["counting, by a judge", "truth"] == 1
    assert look.checks(released[1]).loc["right: counting, by a judge", "gpt3.5"] == 13


# ---- error rates, a real model, and the transformer
@pytest.mark.slow
def test_error_rates_lie_in_the_bands_of_the_pilot(monkeypatch):
    """400 partitions of ten instances, half with an effect: within 0.04 of the pilot."""
    monkeypatch.setattr(partition_tests, "SETTINGS", ((10, 0.0), (10, 0.4), (10, 0.7)))
    rows = [error_rates(400, partition_tests.Rule(seed=seed)) for seed in (0, 1)]
    none, some, much = (
        {name: np.mean([row[place][name] for row in rows]) for name in rows[0][place]} for place in range(3)
    )
    assert none["unpaired_false"] == pytest.approx(0.06, abs=0.04)
    assert some["paired_false"] == pytest.approx(0.0775, abs=0.04)
    assert much["unpaired_false"] == pytest.approx(0.004, abs=0.04)
    assert some["paired_power"] == pytest.approx(0.45, abs=0.04)
    assert some["unpaired_power"] == pytest.approx(0.31, abs=0.04)
    assert np.mean([part["permutation_false"] for part in (none, some, much)]) <= 0.06


@pytest.mark.slow
def test_a_real_model_and_real_rows(tmp_path, shared):
    """A random Llama in the hub's format over rows of GSM8K: nothing is found, and everything is written."""
    rows = (shared / "data" / "gsm8k" / "test.jsonl").read_text().splitlines()[:8]
    (tmp_path / "gsm8k.jsonl").write_text("\n".join(rows) + "\n")
    model = save_policy(tmp_path / "tiny", [json.loads(row)["question"] for row in rows], vocab_size=400)
    config = tt.Config(**QUICK, max_new_tokens=6, n_instances=5, partition="test", judge=model)
    task = tt.open_task(config, model=model, dataset=str(tmp_path / "gsm8k.jsonl"), device="cpu")
    experiment, results = run_seeds(tmp_path / "run", config, [0], task)
    table = found_by(results[0], "partitions", "rougeL")
    assert list(table) == ["gsm8k/test"]
    assert table["gsm8k/test"]["n"] == 5
    assert not found_by(results[0], "partitions", "matcher")["gsm8k/test"]["contaminated"]
    assert found_by(results[0], "partitions", "judge")["gsm8k/test"]["n_unparsed"] > 0  # a random model is no judge
    record = json.loads((tmp_path / "run" / "seed-0" / "transcript.jsonl").read_text().splitlines()[0])
    assert "test split of the gsm8k data set" in record["request"][0]["content"]
    assert set(claims(experiment, results).verdicts().values()) == {"needs full scale"}


@pytest.mark.slow
def test_a_small_transformer_tells_the_named_continuation_from_the_others(tmp_path, runs_root):
    """The world, smaller: instances that were read 4 or 16 times come back when named, and only then."""
    world = {"steps": 300, "width": 64, "batch_size": 32, "n_unnamed": 100, "n_named": 3, "learning_rate": 3e-3}
    world |= {"arms": ("planted",)}
    config = tt.Config(n_instances=5, bootstrap=300, simulations=20, world=world)
    _, (result,) = run_seeds(tmp_path, config, [0])
    copies = result["arms"]["planted"]["truth"]
    matches = found_by(result, "planted", "matcher")
    assert all(matches[name]["contaminated"] for name, n in copies.items() if n >= 4)
    assert not any(matches[name]["contaminated"] for name, n in copies.items() if n == 0)
    assert sum(row["statistic"] for row in found_by(result, "planted", "matcher_on_general").values()) <= 2
    assert not math.isnan(gap_auroc(result, "planted"))
