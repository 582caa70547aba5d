"""FLR: what is trained on, mining by hand, resume, bad input, real text, and what sabotage does to the numbers."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench import methods
from workbench.methods.reward.flr import follow_ups, reward
from workbench.methods.reward.flr import method as flr
from workbench.methods.reward.flr.follow_ups import FollowUps, Scored
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run
from workbench.training.steps import SupervisedStep
from workbench.worlds.target_and_distractor import Listener

WORLD = {"start_steps": 5, "feedback_steps": 2, "n_pairs": 20, "repetitions": 1, "draws": 2, "width": 16}


def config(**changes):
    return flr.Config.at("smoke", **{"world": WORLD, "max_steps": 2, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A runs folder that all tests of this file share, so that a start is made once."""
    folder = tmp_path_factory.mktemp("flr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def played(root):
    settings = config(arms=["ranking", "dpo_flr", "dpo_inverted", "sft_tuned", "kto_flr"])
    task, run = flr.open_task(settings), Run(root / "played")
    return task, settings, run, flr.run(task, settings, 0, run)


# ------------------------------------------------------------------------------------------------------------- mining
def scored(values):
    """FLR values as scores of one phrase of each polarity."""
    follow = FollowUps.of({"d": {"positive": ["x"], "negative": ["y"]}})
    return Scored(follow, np.array([[v, 0.0] for v in values]), "key")


def drawn(*texts):
    return (SimpleNamespace(prompt="p"), {text: [i] for i, text in enumerate(texts)})


def test_best_and_worst_by_hand():
    """Values 1, 3, 2: the second against the first, margin 2; one text, equal scores and a small margin are counted."""
    found = [drawn("a", "b", "c"), drawn("a"), drawn("a", "b"), drawn("a", "b")]
    pairs, counts = flr.best_worst_pairs(found, scored([1, 3, 2, 5, 1, 1, 0.1, 0.2]), 0.5)
    (pair,) = pairs
    assert (pair["chosen"], pair["rejected"], pair["margin"], pair["key"]) == ("b", "a", 2.0, "key")
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([1], [0])
    assert counts == {"samples all the same": 1, "scores all the same": 1, "margin too small": 1}


def test_pairs_carry_margin_and_key_and_the_report_looks_at_length(played):
    _, _, run, _ = played
    pairs = pd.read_parquet(run.folder / "shared" / "pairs-flr" / "pairs.parquet")
    np.testing.assert_allclose(pairs["margin"], pairs["chosen_score"] - pairs["rejected_score"])
    assert (pairs["margin"] > 0).all()
    assert pairs["key"].nunique() == 1
    other = pd.read_parquet(run.folder / "shared" / "pairs-tuned" / "pairs.parquet")
    assert set(other["key"]).isdisjoint(pairs["key"])
    report = json.loads((run.folder / "shared" / "pairs-flr" / "report.json").read_text())
    assert {"prompts", "pairs", "length_correlation", "chosen_is_longer", "mean_words"} <= set(report)


def test_all_samples_the_same_is_an_error_that_says_so(root, monkeypatch):
    settings = config(arms=["dpo_flr"])
    task = flr.open_task(settings)
    same = pd.DataFrame({"prompt": ["a1 b1"], "responses": [["t1", "t1", ""]], "responses_ids": [[[1], [1], []]]})
    monkeypatch.setattr(flr, "draw_samples", lambda *a, **o: same)
    with pytest.raises(
        ValueError, match=r"no pair is left of 36 prompts \(\{'samples all the same': 1\}\); raise temperature"
    ):
        flr.run(task, settings, 0, Run(root / "same"))


# ----------------------------------------------------------------------------------------------------------- training
def test_first_losses_and_what_is_told(played):
    _, _, run, result = played
    for arm, loss in (("dpo_flr", math.log(2)), ("kto_flr", 1.0), ("dpo_inverted", math.log(2))):
        assert Run(run.folder / arm / "round-1").metrics()[0]["loss"] == pytest.approx(loss, abs=1e-5)
    start, end = result["arms"]["dpo_flr"]
    assert {"quality", "greedy", "flr", "flr_deaf"} == set(start) == set(end)
    (ranking,) = result["arms"]["ranking"]
    for name in (
        "flr",
        "deaf",
        "tuned",
        "mistuned",
        "own_likelihood",
        "length",
        "flr_positive",
        "flr_one_phrase",
        "flr_sum",
        "flr_official_raw_logit",
        "flr_spearman",
        "flr_half_phrases_sd",
    ):
        assert -1 <= ranking[name] <= 1
    assert (run.folder / "sft_tuned" / "round-1" / "weights.safetensors").is_file()
    table = pd.read_parquet(run.folder / "ranking" / "scores-flr.parquet")
    assert len(table) == 2 * WORLD["n_pairs"]
    assert len(table["likelihoods"][0]) == len(json.loads((run.folder / "ranking" / "phrases.json").read_text())) == 10


def test_inverted_is_the_same_pairs_the_other_way_round(root, monkeypatch):
    seen = {}
    true = flr.pair_rows

    def watched(policy, ids, groups):
        seen[len(seen)] = groups
        return true(policy, ids, groups)

    monkeypatch.setattr(flr, "pair_rows", watched)
    monkeypatch.setattr(flr, "iterate", lambda policy, n, make_round, *a, **o: [len(make_round(policy, 0).rows)])
    settings = config(arms=["dpo_flr", "dpo_inverted", "dpo_shuffled"])
    flr.run(flr.open_task(settings), settings, 0, Run(root / "inverted"))
    true_, inverted, shuffled = seen.values()
    assert [g.responses_ids for g in inverted] == [g.responses_ids[::-1] for g in true_]
    swapped = np.mean([a.responses_ids != b.responses_ids for a, b in zip(true_, shuffled, strict=True)])
    assert 0.2 < swapped < 0.8


@pytest.mark.parametrize("layout", ["swapped", "next_turn"])
def test_only_the_feedback_is_learned(root, monkeypatch, layout):
    seen = []
    monkeypatch.setattr(reward, "train", lambda policy, rows, step, *a, **o: seen.append((rows, step)))
    settings = config(tuned_layout=layout)
    task = flr.open_task(settings)
    policy = reward.tuned(task, settings, 0, Run(root / layout), "tuned")
    rows, step = seen[0]
    assert isinstance(step, SupervisedStep)
    said = task.feedback(0)[0]
    assert policy.decode(rows[0].responses_ids[0]) == said["feedback"]
    before = policy.tokenizer.decode(rows[0].prompt_ids)
    turns = f"user {said['prompt']} assistant {said['response']} </s> user"
    swapped = f"user pose assistant {said['prompt']} </s> user {said['response']} assistant"
    assert before == f"<s> {swapped if layout == 'swapped' else turns}"


def test_a_second_call_computes_nothing(played, monkeypatch):
    task, settings, run, result = played
    monkeypatch.setattr(flr, "play", lambda *a: pytest.fail("played again"))
    assert flr.run(task, settings, 0, run) == result


def test_a_killed_arm_goes_on_with_the_same_numbers(played, root, monkeypatch):
    task, settings, _, result = played
    run, true, calls = Run(root / "killed"), flr.score_rows, []

    def dies(*args, **options):
        calls.append(args[2])
        if len(calls) == 4:
            raise KeyboardInterrupt
        return true(*args, **options)

    monkeypatch.setattr(flr, "score_rows", dies)
    with pytest.raises(KeyboardInterrupt):
        flr.run_arm(task, settings, "dpo_flr", 0, run)
    assert (run.folder / "shared" / "pairs-flr" / "pairs.parquet").is_file()
    monkeypatch.setattr(flr, "draw_samples", lambda *a, **o: pytest.fail("drawn again"))
    assert flr.run_arm(task, settings, "dpo_flr", 0, run) == result["arms"]["dpo_flr"]


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": ["flr"]}, r"unknown arms \['flr'\]; known: ranking, dpo_flr"),
        ({"samples": 1}, "samples = 1: Input should be greater than or equal to 2"),
        ({"statistic": "median"}, "statistic = 'median'"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        flr.Config.at("tiny", **changes)


def test_bad_task():
    with pytest.raises(ValueError, match="give both for real text, or neither for the embedded world"):
        flr.open_task(flr.Config.at("tiny"), dataset="x.jsonl")
    with pytest.raises(ValueError, match=r"arms \['dpo_tuned', .* need a scorer tuned on feedback in words"):
        flr.open_task(flr.Config.at("tiny"), dataset="x.jsonl", model="m")


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "model"
    tokenizer = bpe_tokenizer(["How many apples are left? Give three tips for a good day."] * 3, vocab_size=300)
    Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=500, seed=0), tokenizer).save(folder)
    return folder


def test_real_pairs_end_to_end(shared, model, root):
    overrides = {
        "max_new_tokens": 5,
        "max_length": 500,
        "samples": 2,
        "n_prompts": 3,
        "test_size": 60,
        "learning_rate": 1e-3,
    }
    experiment = methods.Experiment(
        "flr",
        scale="smoke",
        model=str(model),
        dataset=str(shared / "data/alpaca_eval/pairs.jsonl.gz"),
        seeds=[0],
        overrides=overrides,
        output=str(root / "text"),
    )
    results = experiment.results()
    (ranking,) = results[0]["arms"]["ranking"]
    assert {"flr", "own_likelihood", "length", "flr_official_raw_logit"} <= set(ranking)
    assert "tuned" not in ranking
    assert 0 < ranking["pairs"] < 60  # the others have responses that do not fit
    start, end = results[0]["arms"]["dpo_flr"]
    assert {"quality", "token_nll", "flr"} == set(end)
    assert end["token_nll"] != start["token_nll"]
    verdicts = flr.claims(experiment, results).verdicts()
    assert {verdicts.pop("H1"), verdicts.pop("H2")} == {"smoke run, no verdict"}
    assert set(verdicts.values()) == {"needs full scale"}


def test_real_questions_with_feedback_in_aligned_files(shared, model, root, tmp_path):
    """Real questions and solutions as accept and reject files, and a scorer tuned on feedback with swapped roles."""
    with open(shared / "data/gsm8k/example_model_solutions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(8)]
    sides = {"accept": "ground_truth", "reject": ""}
    for side, column in sides.items():
        texts = [[r["question"][:80], (r[column] if column else r["6b_finetuning"]["solution"])[:60]] for r in rows]
        (tmp_path / f"maths_{side}.json").write_text(json.dumps(texts))
    told = [
        {"prompt": r["question"][:80], "response": r["6b_finetuning"]["solution"][:60], "feedback": "That is wrong."}
        for r in rows
    ]
    (tmp_path / "feedback.jsonl").write_text("\n".join(map(json.dumps, told)))
    overrides = {
        "max_new_tokens": 4,
        "max_length": 300,
        "samples": 2,
        "n_prompts": 2,
        "test_size": 3,
        "arms": ["ranking", "dpo_tuned"],
        "feedback": str(tmp_path / "feedback.jsonl"),
        "tuning_rate": 1e-3,
    }
    experiment = methods.Experiment(
        "flr",
        scale="smoke",
        model=str(model),
        dataset=str(tmp_path / "maths_accept.json"),
        seeds=[0],
        overrides=overrides,
        output=str(root / "aligned"),
    )
    results = experiment.results()
    assert {"flr", "tuned", "mistuned"} <= set(results[0]["arms"]["ranking"][0])
    assert len(results[0]["arms"]["dpo_tuned"]) == 2


# ------------------------------------------------------------------------------------------------------------ claims
class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


QUALITY = {
    "dpo_flr": 0.6,
    "dpo_tuned": 0.7,
    "sft_flr": 0.58,
    "sft_tuned": 0.65,
    "kto_flr": 0.57,
    "dpo_fast": 0.45,
    "dpo_inverted": 0.2,
    "dpo_shuffled": 0.38,
    "dpo_mistuned": 0.37,
}
RANKING = {
    "flr": 0.8,
    "deaf": 0.5,
    "tuned": 0.95,
    "mistuned": 0.6,
    "own_likelihood": 0.3,
    "flr_one_phrase": 0.7,
    "deaf_one_phrase": 0.5,
    "flr_positive": 0.75,
    "flr_official_raw_logit": 0.6,
    "tuned_official_raw_logit": 0.9,
    "flr_half_phrases_sd": 0.01,
    "flr_one_phrase_sd": 0.03,
}


def told(ranking=(), **quality):
    rng = np.random.default_rng(4)
    noise = lambda: rng.normal(0, 0.005)  # noqa: E731

    def result():
        arms = {
            "ranking": [
                {name: value + (0 if "sd" in name else noise()) for name, value in {**RANKING, **dict(ranking)}.items()}
            ]
        }
        for arm, value in {**QUALITY, **quality}.items():
            before = {"quality": 0.37 + noise(), "flr": 0.0, "flr_deaf": noise()}
            arms[arm] = [before, {"quality": value + noise(), "flr": value - 0.37, "flr_deaf": noise()}]
        return {"arms": arms}

    return [result() for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    verdicts = flr.claims(Told(), told()).verdicts()
    assert verdicts.pop("C2") == "needs full scale"
    assert set(verdicts) == {"C1", "C3", "C4", "C4 policy", "C5", "C6", "W1", "W2"}
    assert set(verdicts.values()) == {"shown in small"}


@pytest.mark.parametrize(
    ("ranking", "quality", "lost"),
    [
        ({"flr": 0.6}, {}, "C1"),
        ({"own_likelihood": 0.85}, {}, "C1"),
        ({"deaf": 0.8}, {}, "C1"),
        ({"deaf": 0.8}, {}, "W1"),
        ({"tuned": 0.84}, {}, "C4"),
        ({"flr_one_phrase": 0.8}, {}, "C6"),
        ({"flr_half_phrases_sd": 0.05}, {}, "C6"),
        ({}, {"dpo_flr": 0.4}, "C3"),
        ({}, {"dpo_tuned": 0.6}, "C4 policy"),
        ({}, {"dpo_inverted": 0.4}, "W2"),
    ],
)
def test_verdicts_of_a_broken_method(ranking, quality, lost):
    assert flr.claims(Told(), told(ranking, **quality)).verdicts()[lost] == "not shown"


# ---------------------------------------------------------------------------------------------------------- sabotage
@pytest.mark.slow
def test_sabotage_in_the_world(root, monkeypatch):
    """The world's start, one seed. The intact reward ranks, its pairs raise the policy, and each mistake is seen in a
    number."""
    monkeypatch.delattr(Listener, "deaf")  # not needed here, and not trained then
    settings = flr.Config.at("tiny", world={"draws": 10}, max_steps=40, arms=["dpo_flr"])
    task = flr.open_task(settings)
    pairs = task.preferences("test", 0)
    rows = [{"prompt": row["prompt"], "response": row[side]} for side in ("chosen", "rejected") for row in pairs]
    start, phrases = task.start(0), FollowUps.of(task.follow_ups)

    def accuracy():
        values = follow_ups.follow_up_scores(start, rows, phrases).flr
        return follow_ups.pairwise_accuracy(values[: len(pairs)], values[len(pairs) :])

    def gain(name):
        before, after = flr.run(task, settings, 0, Run(root / name))["arms"]["dpo_flr"]
        return after["quality"] - before["quality"]

    assert accuracy() > 0.65
    assert gain("sound") > 0.08
    true_groups, true_best, true_weights = follow_ups.follow_up_groups, flr.best_and_worst, FollowUps.weights

    def response_too(policy, rows, *args, **options):
        """The response's words are scored with the follow-up."""
        groups, n_cut = true_groups(policy, rows, *args, **options)
        moved = [
            g._replace(prompt_ids=g.prompt_ids[:-6], responses_ids=[g.prompt_ids[-6:] + r for r in g.responses_ids])
            for g in groups
        ]
        return moved, n_cut

    def prompt_alone(policy, rows, *args, **options):
        """The follow-up does not see the response."""
        return true_groups(policy, [{**row, "response": "t0"} for row in rows], *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(follow_ups, "follow_up_groups", response_too)
        patch.setattr(FollowUps, "weights", lambda self, *a: np.full(len(self.phrases), 1 / len(self.phrases)))
        assert accuracy() < 0.5  # drifts to the model's own likelihood
    with monkeypatch.context() as patch:
        patch.setattr(follow_ups, "follow_up_groups", prompt_alone)
        assert accuracy() == pytest.approx(0.5)
    with monkeypatch.context() as patch:  # best and worst exchanged: every margin is negative
        patch.setattr(flr, "best_and_worst", lambda scores: true_best(scores)[::-1])
        with pytest.raises(ValueError, match="'margin too small': 216"):
            gain("exchanged")
    with monkeypatch.context() as patch:  # the sign of the score
        patch.setattr(FollowUps, "weights", lambda self, *a: -true_weights(self, *a))
        assert accuracy() < 0.35
        assert gain("negated") < -0.03
