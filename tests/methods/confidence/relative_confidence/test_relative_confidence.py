"""Relative confidence: what must hold in the planted world, what must fail when the method is broken, bad input."""

import json
import math
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench import metrics
from workbench.feedback.simulated import SimulatedModel
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.relative_confidence import method as rc
from workbench.methods.confidence.relative_confidence.measures import calibration, measure
from workbench.methods.confidence.relative_confidence.opponents import to_matches
from workbench.runs.run import Run
from workbench.tasks.questions import QuestionFile, check_questions

SEEDS = list(range(20))  # as many as the published run: its control is noisy


def play(folder, config, seeds=SEEDS, task=None):
    """All seeds in this process, and what `claims` needs of an experiment."""
    task = task or rc.open_task(config)
    results = [rc.run(task, config, seed, Run(folder / f"seed-{seed}")) for seed in seeds]
    return SimpleNamespace(task=task, config=config, seeds=seeds, scale="tiny"), json.loads(json.dumps(results))


# ---- configuration
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"oponents": 3}, "oponents = 3: .*Fields: n_questions, opponents"),
        ({"opponents": "15"}, "opponents = '15': Input should be a valid integer"),
        ({"opponents": 0}, "opponents = 0: .*greater than or equal to 1"),
        ({"l2": math.nan}, "l2 = nan: .*finite"),
        ({"schedule": "all"}, "schedule = 'all'"),
        ({"budgets": []}, "budgets needs at least one number"),
    ],
)
def test_a_wrong_parameter_fails_in_one_line(overrides, message):
    with pytest.raises(ValueError, match=message) as caught:
        rc.Config.at("tiny", **overrides)
    assert "\n" not in str(caught.value)


def test_presets():
    assert rc.Config.at("tiny") == rc.Config()
    assert (rc.Config.at("smoke").n_questions, rc.Config.at("full").n_questions) == (40, 250)
    assert (rc.Config.at("tiny").on_missing, rc.Config.at("full").on_missing) == ("drop", "stop")


@pytest.mark.parametrize("given", [{"model": "m"}, {"dataset": "d.jsonl"}])
def test_model_and_questions_come_together(given):
    with pytest.raises(ValueError, match="give both for real questions, or neither for the embedded world"):
        rc.open_task(rc.Config(), **given)


# ---- prompts
LEFT = {"qid": "a", "question": "Which is left? " + "l" * 300, "choices": ["red", "blue" * 30], "answer": 1}
RIGHT = {"qid": "b", "question": "Which is right? " + "r" * 300, "choices": [], "answer": "seven"}


class Narrow:
    """A model whose context holds so many characters."""

    def __init__(self, characters):
        self.name, self.characters = "narrow", characters

    def fits(self, request):
        return len(request.messages[0]["content"]) <= self.characters


def test_both_questions_are_shown_in_order_with_the_models_own_answers():
    text = rc.compare_request(LEFT, RIGHT, Narrow(10**6), rc.Config()).messages[0]["content"]
    assert text.index(LEFT["question"]) < text.index("Your answer: B. bluebl") < text.index(RIGHT["question"])
    assert text.index(RIGHT["question"]) < text.index("Your answer: seven") < text.index("More confident: 1")
    assert "Give no reasons" in text
    assert "explain" in rc.compare_request(LEFT, RIGHT, Narrow(10**6), rc.Config(cot=True)).messages[0]["content"]


def test_a_long_prompt_loses_text_first_options_last_and_answers_never():
    texts = [
        rc.compare_request(LEFT, RIGHT, Narrow(size), rc.Config()).messages[0]["content"] for size in (900, 700, 550)
    ]
    assert [LEFT["question"] in text for text in texts] == [False] * 3
    assert ["\nB. " + LEFT["choices"][1] + "\n" in text for text in texts] == [True, True, False]
    assert all(f"Your answer: B. {LEFT['choices'][1]}" in text for text in texts)
    assert len(texts[0]) > len(texts[1]) > len(texts[2])
    with pytest.raises(ValueError, match="questions 'a' and 'b' are too long for the context of narrow"):
        rc.compare_request(LEFT, RIGHT, Narrow(300), rc.Config())


# ---- the run
REGIMES_ALONE = {"compare_active": False, "facts": False, "grid": False}  # what the sabotage does not touch costs most
SMALL = {"n_questions": 24, "opponents": 6, "budgets": [2, 4], "shuffles": 2}


def test_a_run_gives_the_same_numbers_again_and_asks_nothing(tmp_path):
    config = rc.Config(**SMALL)
    _, first = play(tmp_path / "a", config, [0])
    _, second = play(tmp_path / "b", config, [0])
    assert first == second
    shutil.rmtree(tmp_path / "a" / "seed-0" / "R")  # scoring again needs the transcript alone
    log = (tmp_path / "a" / "seed-0" / "transcript.jsonl").read_bytes()
    assert play(tmp_path / "a", config, [0])[1] == first
    assert (tmp_path / "a" / "seed-0" / "transcript.jsonl").read_bytes() == log


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    """SIGKILL in the middle of regime S; the second call asks only what is missing."""
    code = f"""
import os, signal
from pathlib import Path
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence import relative_confidence as rc
from workbench.runs import Run
append = Transcript._append
def dying(self, records):
    append(self, records)
    if len(self) > 700: os.kill(os.getpid(), signal.SIGKILL)
Transcript._append = dying
config = rc.Config(**{SMALL})
rc.run(rc.open_task(config), config, 0, Run(Path({str(tmp_path / "killed" / "seed-0")!r})))
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    kept = len(Transcript(tmp_path / "killed" / "seed-0" / "transcript.jsonl"))
    _, whole = play(tmp_path / "whole", rc.Config(**SMALL), [0])
    assert 700 < kept < whole[0]["replies"]
    assert play(tmp_path / "killed", rc.Config(**SMALL), [0])[1] == whole


def test_tables_of_the_run_folder(tmp_path):
    play(tmp_path, rc.Config(**SMALL), [0])
    (folder,) = (tmp_path / "seed-0" / "R").iterdir()
    matchups, scores = pd.read_parquet(folder / "matchups.parquet"), pd.read_parquet(folder / "scores.parquet")
    assert list(matchups) == [
        "match_id",
        "round",
        "host",
        "left",
        "right",
        "outcome",
        "raw_text",
        "parse_status",
        "model",
        "seed",
    ]
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
    _, results = play(tmp_path, rc.Config(**SMALL, schedule=schedule, garbled=0.0), [0])
    part = results[0]["arms"]["R"]["known_questions"]
    assert part["n_judgments"] == 24 * calls
    assert part["n_samples"] == 24 * math.ceil(calls)


def test_the_judge_may_think_aloud(tmp_path):
    _, results = play(tmp_path, rc.Config(**SMALL, cot=True, garbled=0.0), [0])
    part = results[0]["arms"]["R"]["known_questions"]
    assert (part["unparsed_judgments"], part["ties"]) == (0, 0)


def test_too_many_unread_judgments_stop_the_run(tmp_path):
    with pytest.raises(
        ValueError, match=r"judgments of .* could not be read, more than max_unparsed = 0\.05 allows; see raw_text"
    ):
        play(tmp_path, rc.Config(**SMALL, garbled=0.3), [0])
    _, results = play(tmp_path / "allowed", rc.Config(**SMALL, garbled=0.3, max_unparsed=1.0), [0])
    part = results[0]["arms"]["R"]["known_questions"]
    assert part["unparsed_judgments"] > 0.1 * part["n_judgments"]
    assert part["dropped"]


def test_every_score_is_finite_when_confidences_are_garbled(tmp_path):
    _, results = play(tmp_path, rc.Config(**SMALL, garbled=0.1, max_unparsed=1.0), [0, 1])
    for result in results:
        for part in (part for arm in result["arms"].values() for part in arm.values()):
            assert np.isfinite(list(part["auc"].values())).all()


# ---- real questions: the same code with a file and another model
def write_questions(path, n=30, gold=True):
    rows = [
        {
            "qid": f"{name}{i}",
            "question": f"{name}: how much is {i} + {i}?",
            "dataset": name,
            "choices": [] if name == "open" else [str(2 * i), "other"],
            "gold": None if not gold else 2 * i if name == "open" else 0,
        }
        for name in ("open", "closed")
        for i in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def adder(prompt, temperature, noise):
    """Adds rightly while the numbers are small, and knows it."""
    import re

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
    config = rc.Config(n_questions=25, opponents=8, budgets=[3, 5], shuffles=2)
    task = rc.open_task(config, model="m", dataset=write_questions(tmp_path / "q.jsonl"), device="cpu")
    experiment, results = play(tmp_path, config, SEEDS, task)
    parts = results[0]["arms"]["questions"]
    assert {name: part["n"] for name, part in parts.items()} == {"open": 25, "closed": 25}
    assert all(part["n_judgments"] == 200 for part in parts.values())
    assert parts["open"]["auc"]["direct"] == pytest.approx(parts["open"]["accuracy"])  # 0.9 everywhere: no order at all
    claims = rc.claims(experiment, results)
    assert claims.verdicts()["C1"] == "shown in small"
    assert claims.verdicts()["C3"] == claims.verdicts()["C4"] == "needs full scale"
    assert "C2" in claims.verdicts()
    record = json.loads((tmp_path / "seed-0" / "transcript.jsonl").read_text().splitlines()[0])
    assert "how much is" in record["request"][0]["content"]  # what a real model was asked can be read


def test_without_gold_there_is_a_ranking_and_no_claim(tmp_path, real):
    config = rc.Config(n_questions=9, opponents=4, budgets=[2], shuffles=2)
    task = rc.open_task(config, model="m", dataset=write_questions(tmp_path / "q.jsonl", 9, gold=False), device="cpu")
    experiment, results = play(tmp_path, config, [0], task)
    assert len(list(tmp_path.glob("seed-0/questions/*/scores.parquet"))) == 2
    with pytest.raises(ValueError, match="no question has a gold answer"):
        rc.claims(experiment, results)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_right_or_all_wrong(right):
    """AUC is 1 or 0 whatever the order; AUROC does not exist."""
    rng = np.random.default_rng(0)
    scores = {name: np.array([0.3, 0.2, 0.1]) for name in rc.SCORERS}
    with pytest.warns(UserWarning, match="AUROC is undefined"):
        part = measure(scores, np.full(3, right), rng, curves=["bt"], calibrated=["bt"], against=["direct"], main="bt")
    assert set(part["auc"].values()) == {right}
    assert np.isnan(list(part["auroc"].values())).all()


def test_raw_strengths_are_no_probabilities():
    with pytest.raises(ValueError, match=r"Ratings .* must first be normalised"):
        metrics.expected_calibration_error([1.3, -0.2], [1, 0])
    y = np.array([0, 0, 1, 0, 1, 1, 0, 1] * 5, dtype=float)
    calibrated = calibration(np.arange(40.0), y, np.random.default_rng(0))
    assert 0 <= calibrated["brier"] <= 0.3
    assert 0 <= calibrated["ece"] <= 0.5


def test_a_tiny_real_model_without_answers_says_so(tmp_path):
    """A random Llama: its text holds no answer, and the run stops with the questions' names."""
    from workbench.models import Policy, bpe_tokenizer, new_llama

    tokenizer = bpe_tokenizer(["Answer: B\nConfidence: 0.8"] * 3, vocab_size=300)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=1024, seed=0)
    Policy(model, tokenizer).save(tmp_path / "tiny")
    config = rc.Config.at("full", n_questions=3, max_tokens=8)
    dataset = write_questions(tmp_path / "q.jsonl", 3)
    task = rc.open_task(config, model=str(tmp_path / "tiny"), dataset=dataset, device="cpu")
    with pytest.raises(ValueError, match=r"no answer could be read for 3 of 3 questions \(open0, open1, open2\)"):
        rc.run(task, config, 0, Run(tmp_path / "run"))


# ---- what must hold in the planted world, and what must fail when the method is broken
@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The three regimes of the tiny preset; sabotaged runs start from their transcripts, so they ask nothing."""
    folder = tmp_path_factory.mktemp("base")
    return folder, *play(folder, rc.Config.at("tiny", shuffles=2, **REGIMES_ALONE))


def again(base, folder, seeds=SEEDS):
    """Scores the replies of `base` again, into a folder of its own."""
    for seed in seeds:
        (folder / f"seed-{seed}").mkdir(parents=True)
        shutil.copy(base[0] / f"seed-{seed}" / "transcript.jsonl", folder / f"seed-{seed}" / "transcript.jsonl")
    experiment, results = play(folder, base[1].config, seeds)
    return rc.claims(experiment, results).verdicts(), results


@pytest.mark.slow
def test_the_planted_truth_comes_back(base):
    """Bounds from the specification: what its prototype says must hold."""
    _, experiment, results = base
    names = results[0]["arms"]["R"]["known_questions"]["auc"]
    auc = {arm: {name: rc.values(results, arm, "auc", name).mean() for name in names} for arm in "RSZ"}
    for arm in "RSZ":
        assert rc.values(results, arm, "sensed_correlation").min() > 0.9
        assert auc[arm]["bt_shuffled"] == pytest.approx(rc.values(results, arm, "accuracy").mean(), abs=0.04)
    assert abs(rc.values(results, "R", "position").mean() - 0.43) < 0.1
    assert auc["R"]["direct"] < auc["R"]["bt"] > auc["R"]["hybrid_sc"]
    assert auc["R"]["elo_k400"] < auc["R"]["elo"] < auc["R"]["bt"] > auc["R"]["bt_n5"]
    assert abs(auc["R"]["bt"] - auc["R"]["trueskill"]) < 0.005
    assert auc["S"]["hybrid_sc"] > auc["S"]["bt"]
    assert auc["R"]["bt_negated"] < rc.values(results, "R", "accuracy").mean() - 0.1
    verdicts = rc.claims(experiment, results).verdicts()
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C6"] == "shown in small"
    assert verdicts["C2"] == verdicts["C4"] == "needs full scale"


@pytest.mark.slow
def test_scoring_again_changes_nothing(base, tmp_path):
    assert again(base, tmp_path, SEEDS[:4])[1] == base[2][:4]


@pytest.mark.slow
def test_outcomes_credited_to_the_host_are_noticed(base, tmp_path, monkeypatch):
    def by_host(table, qids):
        other = np.where(table["host"] == table["left"], table["right"], table["left"])
        return to_matches(table.assign(left=table["host"], right=other), qids)

    monkeypatch.setattr(rc, "to_matches", by_host)
    verdicts, results = again(base, tmp_path)
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C7"] == "not shown"
    gap = rc.values(results, "R", "auc", "bt").mean() - rc.values(results, "R", "accuracy").mean()
    assert abs(gap) < 0.05  # no order is left


@pytest.mark.slow
def test_a_flipped_sign_is_noticed(base, tmp_path, monkeypatch):
    monkeypatch.setattr(
        rc, "to_matches", lambda table, qids: to_matches(table.assign(outcome=1 - table["outcome"]), qids)
    )
    verdicts, results = again(base, tmp_path)
    assert verdicts["C1"] == verdicts["C3"] == verdicts["C7"] == "not shown"
    assert rc.values(results, "R", "auc", "bt").mean() < 0.5


@pytest.mark.slow
def test_ties_broken_by_the_file_are_noticed(base, tmp_path, monkeypatch):
    """A file with its right answers first and a stable sort: the coarse stated numbers look as good as a ranking."""

    def file_order(confidence, correct):
        order = np.lexsort((-np.asarray(correct), -np.asarray(confidence)))
        return float((np.cumsum(np.asarray(correct)[order]) / np.arange(1, len(order) + 1)).mean())

    monkeypatch.setattr(metrics, "accuracy_coverage_auc", file_order)
    assert again(base, tmp_path)[0]["C1"] == "not shown"


@pytest.mark.slow
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


def test_questions_are_checked_through_the_method(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"qid": "a", "question": "x", "choices": ["1", "2"], "gold": 5}\n')
    with pytest.raises(ValueError, match="row 0, column 'gold'"):
        rc.open_task(rc.Config(), model="m", dataset=str(path))
    assert check_questions([{"qid": "a", "question": "x"}])[0]["gold"] is None
