"""Relative confidence: its run, its views, real questions, the planted world, and what fails where it is broken."""

import json
import math
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from small import save_policy

from workbench import metrics
from workbench.feedback.simulated import SimulatedModel
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.relative_confidence import method as rc
from workbench.methods.confidence.relative_confidence import view as look
from workbench.methods.confidence.relative_confidence.experiment import claims, values
from workbench.methods.confidence.relative_confidence.measures import calibration, measure
from workbench.methods.confidence.relative_confidence.opponents import to_matches
from workbench.methods.confidence.relative_confidence.prompts import compare_request
from workbench.runs.run import Run
from workbench.tasks.questions import QuestionFile

SEEDS = list(range(20))  # as many as the published run: its control is noisy


def run_seeds(folder, config, seeds=SEEDS, task=None):
    """All seeds in this process, and what `claims` needs of an experiment."""
    task = task or rc.open_task(config)
    results = [rc.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    experiment = SimpleNamespace(task=task, config=config, seeds=seeds, scale="tiny", run=Run(folder))
    return experiment, json.loads(json.dumps(results))


def test_a_run_without_a_smaller_budget_is_refused():
    with pytest.raises(ValueError, match="budgets needs at least one number"):
        rc.Config.at("tiny", budgets=[])


# ---- prompts
LEFT = {"qid": "a", "question": "Which is left? " + "l" * 300, "choices": ["red", "blue" * 30], "answer": 1}
RIGHT = {"qid": "b", "question": "Which is right? " + "r" * 300, "choices": [], "answer": "seven"}


class Narrow:
    """A model whose context holds so many characters."""

    def __init__(self, characters):
        self.name, self.characters = "narrow", characters

    def fits(self, request):
        return len(request.messages[0]["content"]) <= self.characters


def shown(characters, cot=False):
    return compare_request(LEFT, RIGHT, Narrow(characters), cot=cot, max_tokens=64).messages[0]["content"]


def test_both_questions_are_shown_in_order_with_the_models_own_answers():
    text = shown(10**6)
    assert text.index(LEFT["question"]) < text.index("Your answer: B. bluebl") < text.index(RIGHT["question"])
    assert text.index(RIGHT["question"]) < text.index("Your answer: seven") < text.index("More confident: 1")
    assert "Give no reasons" in text
    assert "explain" in shown(10**6, cot=True)


def test_a_long_prompt_loses_text_first_options_last_and_answers_never():
    texts = [shown(size) for size in (900, 700, 550)]
    assert [LEFT["question"] in text for text in texts] == [False] * 3
    assert ["\nB. " + LEFT["choices"][1] + "\n" in text for text in texts] == [True, True, False]
    assert all(f"Your answer: B. {LEFT['choices'][1]}" in text for text in texts)
    assert len(texts[0]) > len(texts[1]) > len(texts[2])
    with pytest.raises(ValueError, match="questions 'a' and 'b' are too long for the context of narrow"):
        shown(300)


# ---- the run
REGIMES_ALONE = {"compare_active": False, "facts": False, "grid": False}  # what the sabotage does not touch costs most
SMALL = {"n_questions": 24, "opponents": 6, "budgets": [2, 4], "shuffles": 2}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(tmp_path_factory.mktemp("facts")))
        return folder, *run_seeds(folder, rc.Config(**SMALL), [0, 1])


def test_scoring_again_needs_the_transcript_alone(small, tmp_path, monkeypatch):
    folder, experiment, results = small
    config = replace(experiment.config, facts=False)
    (tmp_path / "seed-0").mkdir()
    shutil.copy(folder / "seed-0" / "transcript.jsonl", tmp_path / "seed-0" / "transcript.jsonl")
    monkeypatch.setattr(Transcript, "_append", lambda *a: pytest.fail("asked again"))
    (again,) = run_seeds(tmp_path, config, [0])[1]
    assert again["arms"] == {arm: results[0]["arms"][arm] for arm in "RSZ"}


def test_tables_of_the_run_folder(small):
    (folder,) = (small[0] / "seed-0" / "R").iterdir()
    matchups, scores = pd.read_parquet(folder / "matchups.parquet"), pd.read_parquet(folder / "scores.parquet")
    columns = "match_id round host left right outcome raw_text parse_status model seed"
    assert " ".join(matchups) == columns
    assert (matchups["left"] != matchups["right"]).all()
    assert set(matchups["parse_status"]) <= {"ok", "tie", "unparsed"}
    assert set(scores["method"]) == set(rc.SCORERS) - {"option_logp"}  # the simulated model shows no log-probabilities
    bt = scores[scores["method"] == "bt"]
    assert (bt["lower"] < bt["score"]).all()
    assert (bt["score"] < bt["upper"]).all()
    assert bt["n_matches"].min() >= 6
    assert bt["n_matches"].sum() == 2 * len(matchups)
    assert bt.sort_values("score", ascending=False)["rank"].tolist() == list(range(1, len(bt) + 1))


@pytest.mark.parametrize(("schedule", "calls"), [("round_robin", 23 / 2), ("both_orders", 12)])
def test_other_schedules_give_self_consistency_as_many_calls(tmp_path, schedule, calls):
    _, results = run_seeds(tmp_path, rc.Config(**SMALL, **REGIMES_ALONE, schedule=schedule, garbled=0.0), [0])
    part = results[0]["arms"]["R"]["known_questions"]
    assert part["n_judgments"] == 24 * calls
    assert part["n_samples"] == 24 * math.ceil(calls)


def test_the_judge_may_think_aloud(tmp_path):
    _, results = run_seeds(tmp_path, rc.Config(**SMALL, **REGIMES_ALONE, cot=True, garbled=0.0), [0])
    part = results[0]["arms"]["R"]["known_questions"]
    assert (part["unparsed_judgments"], part["ties"]) == (0, 0)


def test_too_many_unread_judgments_stop_the_run(tmp_path):
    said = r"judgments of .* could not be read, more than max_unparsed = 0\.05 allows; see raw_text"
    with pytest.raises(ValueError, match=said):
        run_seeds(tmp_path, rc.Config(**SMALL, **REGIMES_ALONE, garbled=0.3), [0])
    _, results = run_seeds(
        tmp_path / "allowed", rc.Config(**SMALL, **REGIMES_ALONE, garbled=0.3, max_unparsed=1.0), [0]
    )
    part = results[0]["arms"]["R"]["known_questions"]
    assert part["unparsed_judgments"] > 0.1 * part["n_judgments"]
    assert part["dropped"]


def test_every_score_is_finite_when_confidences_are_garbled(tmp_path):
    _, results = run_seeds(tmp_path, rc.Config(**SMALL, **REGIMES_ALONE, garbled=0.1, max_unparsed=1.0), [0, 1])
    for result in results:
        for part in (part for arm in result["arms"].values() for part in arm.values()):
            assert np.isfinite(list(part["auc"].values())).all()


# ---- views: the tables behind the figures, and text of a model that must not become HTML
def test_every_scorer_and_control_is_shown_in_every_regime(small):
    results = small[2]
    table = look.auc_by_method(results).frame()
    assert len(table) == 3 * (len(look.SCORER_LOOKS) - 1)  # the simulated model shows no log-probabilities
    assert set(table["n"]) == {2}
    bt = table[(table["panel"] == "R") & (table["arm"] == "bt")].iloc[0]
    assert bt["mean"] == pytest.approx(values(results, "R", "auc", "bt").mean())
    assert bt["lower"] < bt["mean"] < bt["upper"]


def test_curves_end_at_the_accuracy(small):
    results = small[2]
    display = look.coverage_curves(results)
    table = display.frame()
    for arm in "RSZ":
        ends = table[(table["panel"] == arm) & (table["coverage"] == 1.0)]["mean"]
        np.testing.assert_allclose(ends, values(results, arm, "accuracy").mean())
    assert "Bradley-Terry trusts" in display.figure().layout.title.text


def test_calls_are_the_budgets_and_all_opponents(small):
    _, experiment, results = small
    display = look.auc_by_calls(experiment, results)
    assert sorted(set(display.frame()["calls"])) == [2, 4, 6]
    assert display.figure().layout.xaxis.tickvals == (2, 4, 6)


def test_a_larger_update_depends_more_on_the_order(small):
    table = look.elo_order(small[2]).frame()
    sd = table.groupby("arm")["mean"].mean()
    assert sd["elo_k400"] > sd["elo"] > 0


def test_the_ranking_is_in_order_and_its_text_is_escaped(small):
    experiment = small[1]
    path = next((experiment.run.folder / "seed-0" / "R").glob("*/scores.parquet"))
    scores = pd.read_parquet(path)
    scores.assign(answer="<img src=x onerror=alert(1)>").to_parquet(path)
    display = look.ranking(experiment, seed=0)
    assert display.frame()["rank"].is_monotonic_increasing
    assert display.frame()["score"].is_monotonic_decreasing
    assert "<img" not in display.figure().to_json()
    shown = sum(len(trace.x) for trace in display.figure().data)
    assert shown == len(display.frame()) == scores["qid"].nunique()


def test_an_unknown_seed_names_the_known_ones(small):
    with pytest.raises(ValueError, match=r"no scores of seed 9, regime 'R'; seeds of this run: \[0, 1\]"):
        look.ranking(small[1], seed=9)


def test_tables_have_a_column_for_each_regime(small):
    _, experiment, results = small
    means, checks = look.means(results), look.checks(experiment, results)
    assert list(checks) == ["R", "S", "Z", "F", "FT"]
    assert "lean to the first question, logits" in checks.index
    assert means.loc["Bradley-Terry"].iloc[0] == pytest.approx(values(results, "R", "auc", "bt").mean(), abs=5e-4)


def test_the_trained_model_is_shown_with_its_raw_probability(small):
    table = look.facts(small[2]).frame()
    assert set(table["panel"]) == {"F", "FT"}
    raw = table[(table["panel"] == "F") & (table["arm"] == "option_logp")]["mean"].item()
    assert raw == pytest.approx(values(small[2], "F", "auc", "option_logp").mean())


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


def test_rounds_grid_and_inspector(small):
    _, experiment, results = small
    rounds = look.active_rounds(results).frame()
    assert set(rounds["arm"]) == {"random", "active"}
    assert rounds["judgments"].max() == 6
    assert set(look.sensitivity(results).frame()["panel"]) >= {"opponents", "judge noise", "share of ties", "Elo K"}
    inspector = look.inspect(experiment, seed=1)
    assert next(iter(inspector.scores)) == "bt"
    assert len(inspector.matchups) == 24 * 6


# ---- real questions: the same code with a file and another model
def write_questions(path, n=30, gold=True):
    rows = [
        {"qid": f"{name}{i}", "question": f"{name}: how much is {i} + {i}?", "dataset": name}
        | {"choices": [] if name == "open" else [str(2 * i), "other"]}
        | {"gold": None if not gold else 2 * i if name == "open" else 0}
        for name in ("open", "closed")
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def adder(prompt, temperature, noise):
    """Adds rightly while the numbers are small, and knows it."""
    numbers = [int(number) for number in re.findall(r"how much is (\d+) \+", prompt)]
    if len(numbers) == 2:
        return f"More confident: {1 if numbers[0] + 4 * noise.logistic() < numbers[1] else 2}"
    (number,) = numbers
    right = noise.uniform() > number / 40
    answer = (
        ("A" if right else "B") if "Options" in prompt or "A. " in prompt else (2 * number if right else 2 * number + 1)
    )
    return f"Answer: {answer}\nConfidence: 0.9"


@pytest.fixture
def real(monkeypatch):
    monkeypatch.setattr(QuestionFile, "subject", lambda self, arm, seed: SimulatedModel("adder", adder, seed=seed))


def test_a_question_file_is_ranked_within_each_data_set(tmp_path, real):
    config = rc.Config(n_questions=25, opponents=8, budgets=[3, 5], shuffles=2, compare_active=False)
    task = rc.open_task(config, model="m", dataset=write_questions(tmp_path / "q.jsonl"), device="cpu")
    experiment, results = run_seeds(tmp_path, config, SEEDS, task)
    parts = results[0]["arms"]["questions"]
    assert {name: part["n"] for name, part in parts.items()} == {"open": 25, "closed": 25}
    assert all(part["n_judgments"] == 200 for part in parts.values())
    assert parts["open"]["auc"]["direct"] == pytest.approx(parts["open"]["accuracy"])  # 0.9 everywhere: no order at all
    verdicts = claims(experiment, results).verdicts()
    assert verdicts["C1"] == "shown in small"
    assert verdicts["C3"] == verdicts["C4"] == "needs full scale"
    assert "C2" in verdicts
    record = json.loads((tmp_path / "seed-0" / "transcript.jsonl").read_text().splitlines()[0])
    assert "how much is" in record["request"][0]["content"]  # what a real model was asked can be read


def test_without_gold_there_is_a_ranking_and_no_claim(tmp_path, real):
    config = rc.Config(n_questions=9, opponents=4, budgets=[2], shuffles=2)
    task = rc.open_task(config, model="m", dataset=write_questions(tmp_path / "q.jsonl", 9, gold=False), device="cpu")
    experiment, results = run_seeds(tmp_path, config, [0], task)
    assert len(list(tmp_path.glob("seed-0/questions/*/scores.parquet"))) == 2
    with pytest.raises(ValueError, match="no question has a gold answer"):
        claims(experiment, results)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong(right):
    """AUC is 1 or 0 whatever the order; AUROC does not exist."""
    rng = np.random.default_rng(0)
    scores = {name: np.array([0.3, 0.2, 0.1]) for name in rc.SCORERS}
    with pytest.warns(UserWarning, match="AUROC is undefined"):
        part = measure(scores, np.full(3, right), rng, curves=["bt"], calibrated=["bt"], against=["direct"], main="bt")
    assert set(part["auc"].values()) == {right}
    assert np.isnan(list(part["auroc"].values())).all()


def test_labels_make_strengths_probabilities():
    y = np.array([0, 0, 1, 0, 1, 1, 0, 1] * 5, dtype=float)
    calibrated = calibration(np.arange(40.0), y, np.random.default_rng(0))
    assert 0 <= calibrated["brier"] <= 0.3
    assert 0 <= calibrated["ece"] <= 0.5


def test_a_tiny_real_model_without_answers_says_so(tmp_path):
    """A random Llama: its text holds no answer, and the run stops with the questions' names."""
    model = save_policy(tmp_path / "tiny", "Answer: B\nConfidence: 0.8")
    config = rc.Config.at("full", n_questions=3, max_tokens=8)
    dataset = write_questions(tmp_path / "q.jsonl", 3)
    task = rc.open_task(config, model=model, dataset=dataset, device="cpu")
    with pytest.raises(ValueError, match=r"no answer could be read for 3 of 3 questions \(open0, open1, open2\)"):
        rc.run(task, config, 0, Run(tmp_path / "run"))


# ---- what must hold in the planted world, and what must fail when the method is broken
@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The three regimes of the tiny preset; sabotaged runs start from their transcripts, so they ask nothing."""
    folder = tmp_path_factory.mktemp("base")
    return folder, *run_seeds(folder, rc.Config.at("tiny", shuffles=2, **REGIMES_ALONE))


def again(base, folder, seeds=SEEDS):
    """Scores the replies of `base` again, into a folder of its own."""
    for seed in seeds:
        (folder / f"seed-{seed}").mkdir(parents=True)
        shutil.copy(base[0] / f"seed-{seed}" / "transcript.jsonl", folder / f"seed-{seed}" / "transcript.jsonl")
    experiment, results = run_seeds(folder, base[1].config, seeds)
    return claims(experiment, results).verdicts(), results


@pytest.mark.slow
def test_the_planted_truth_comes_back(base):
    """Bounds from our pilot."""
    _, experiment, results = base
    names = results[0]["arms"]["R"]["known_questions"]["auc"]
    auc = {arm: {name: values(results, arm, "auc", name).mean() for name in names} for arm in "RSZ"}
    for arm in "RSZ":
        assert values(results, arm, "sensed_correlation").min() > 0.9
        assert auc[arm]["bt_shuffled"] == pytest.approx(values(results, arm, "accuracy").mean(), abs=0.04)
    assert abs(values(results, "R", "position").mean() - 0.43) < 0.1
    assert auc["R"]["direct"] < auc["R"]["bt"] > auc["R"]["hybrid_sc"]
    assert auc["R"]["elo_k400"] < auc["R"]["elo"] < auc["R"]["bt"] > auc["R"]["bt_n5"]
    assert abs(auc["R"]["bt"] - auc["R"]["trueskill"]) < 0.005
    assert auc["S"]["hybrid_sc"] > auc["S"]["bt"]
    assert auc["R"]["bt_negated"] < values(results, "R", "accuracy").mean() - 0.1
    verdicts = claims(experiment, results).verdicts()
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C6"] == "shown in small"
    assert verdicts["C2"] == verdicts["C4"] == "needs full scale"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_outcomes_credited_to_the_host_are_noticed(base, tmp_path, monkeypatch):
    def by_host(table, qids):
        other = np.where(table["host"] == table["left"], table["right"], table["left"])
        return to_matches(table.assign(left=table["host"], right=other), qids)

    monkeypatch.setattr(rc, "to_matches", by_host)
    verdicts, results = again(base, tmp_path)
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C7"] == "not shown"
    gap = values(results, "R", "auc", "bt").mean() - values(results, "R", "accuracy").mean()
    assert abs(gap) < 0.05  # no order is left


@pytest.mark.slow
def test_a_flipped_sign_is_noticed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        rc, "to_matches", lambda table, qids: to_matches(table.assign(outcome=1 - table["outcome"]), qids)
    )
    verdicts, results = again(base, tmp_path)
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C7"] == "not shown"
    assert values(results, "R", "auc", "bt").mean() < 0.5


@pytest.mark.slow
@pytest.mark.exhaustive
def test_ties_broken_by_the_file_are_noticed(base, tmp_path, monkeypatch):
    """A file with its right answers first and a stable sort: the coarse stated numbers look as good as a ranking."""

    def file_order(confidence, correct):
        order = np.lexsort((-np.asarray(correct), -np.asarray(confidence)))
        return float((np.cumsum(np.asarray(correct)[order]) / np.arange(1, len(order) + 1)).mean())

    monkeypatch.setattr(metrics, "accuracy_coverage_auc", file_order)
    assert again(base, tmp_path)[0]["C1"] == "not shown"


@pytest.mark.slow
@pytest.mark.exhaustive
def test_leaked_correctness_is_noticed(base, tmp_path, monkeypatch):
    """Judgments that know the truth beat everything, in the regime without signal too: the control says so."""
    truth = {}

    def remember(players, *args, **options):
        truth.update({p["qid"]: p["correct"] for p in players})
        return judge(players, *args, **options)

    def leaked(table, qids):
        right = table["left"].map(truth).to_numpy(dtype=float) - table["right"].map(truth).to_numpy(dtype=float)
        return to_matches(table.assign(outcome=np.where(right == 0, table["outcome"], right > 0)), qids)

    judge = rc.ask_judgments
    monkeypatch.setattr(rc, "ask_judgments", remember)
    monkeypatch.setattr(rc, "to_matches", leaked)
    verdicts, _ = again(base, tmp_path)
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C7"] == "not shown"
