"""FLR: what is trained on, mining by hand, real text, the browser, and what sabotage does to the numbers."""

import json

import numpy as np
import pandas as pd
import pytest
from small import Told, play, save_policy

from workbench import methods
from workbench.methods.experiment import Results, run_seed
from workbench.methods.reward.flr import method as flr
from workbench.methods.reward.flr import pairs as mining
from workbench.methods.reward.flr.conversations import as_feedback, read_accept_reject
from workbench.methods.reward.flr.experiment import ARMS, claims
from workbench.methods.reward.flr.follow_ups import FollowUps, PlacedFollowUps
from workbench.methods.reward.flr.pairs import best_worst_pairs, candidates_of
from workbench.methods.reward.flr.ranking import pairwise_accuracy
from workbench.methods.reward.flr.view import FollowUpBrowser
from workbench.runs.run import Run
from workbench.training.steps import SupervisedStep
from workbench.worlds.target_and_distractor import Listener


def config(**changes):
    return flr.Config.at("micro", **changes)


@pytest.fixture(scope="module")
def played(root):
    return play(flr, config(arms=["ranking", "sft_tuned", "kto_flr"]), 0, root)


# ------------------------------------------------------------------------------------------------------------- mining
def test_best_and_worst_by_hand():
    """Values 1, 3, 2: the second against the first, margin 2; one text, equal scores and a small margin are counted."""
    texts = [["a", "b", "c"], ["a", "a", " "], ["a", "b"], ["a", "b"]]
    drawn = pd.DataFrame({"responses": texts, "responses_ids": [[[i] for i, _ in enumerate(row)] for row in texts]})
    candidates = candidates_of(drawn)
    assert [list(row) for row in candidates] == [["a", "b", "c"], ["a"], ["a", "b"], ["a", "b"]]
    phrases = FollowUps.of({"d": {"positive": ["x"], "negative": ["y"]}})
    scored = flr.Scored(phrases, np.array([[v, 0.0] for v in (1, 3, 2, 5, 1, 1, 0.1, 0.2)]), "key")
    (pair,), report = best_worst_pairs("pppp", candidates, scored, 0.5)
    assert (pair["chosen"], pair["rejected"], pair["margin"], pair["key"]) == ("b", "a", 2.0, "key")
    assert (pair["chosen_ids"], pair["rejected_ids"]) == ([1], [0])
    assert (report["prompts"], report["pairs"]) == (4, 1)
    assert [report[f"{why}"] for why in ("samples all the same", "scores all the same", "margin too small")] == [1] * 3


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
    said = r"no pair is left of 36 prompts .*'samples all the same': 1.*; raise temperature"
    with pytest.raises(ValueError, match=said):
        run_seed(flr, task, settings, 0, Run(root / "same"))


# ----------------------------------------------------------------------------------------------------------- training
def test_what_is_told(played):
    _, settings, run, result = played
    start, end = result["arms"]["kto_flr"]
    assert {"quality", "greedy", "flr", "flr_deaf"} == set(start) == set(end)
    (ranking,) = result["arms"]["ranking"]
    names = "flr deaf tuned mistuned own_likelihood length flr_positive flr_one_phrase flr_sum flr_official_raw_logit"
    for name in (*names.split(), "flr_spearman", "flr_half_phrases_sd"):
        assert -1 <= ranking[name] <= 1
    table = pd.read_parquet(run.folder / "ranking" / "scores-flr.parquet")
    assert len(table) == 2 * settings.world["n_pairs"]
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
    run_seed(flr, flr.open_task(settings), settings, 0, Run(root / "inverted"))
    true_, inverted, shuffled = seen.values()
    assert [g.responses_ids for g in inverted] == [g.responses_ids[::-1] for g in true_]
    swapped = np.mean([a.responses_ids != b.responses_ids for a, b in zip(true_, shuffled, strict=True)])
    assert 0.2 < swapped < 0.8


@pytest.mark.parametrize("layout", ["swapped", "next_turn"])
def test_only_the_feedback_is_learned(root, monkeypatch, layout):
    seen = []
    monkeypatch.setattr(flr, "train", lambda policy, rows, step, *a, **o: seen.append((rows, step)))
    settings = config(tuned_layout=layout)
    task = flr.open_task(settings)
    policy = flr.open_reward(task, settings, "tuned", 0, Run(root / layout)).scorer
    rows, step = seen[0]
    assert isinstance(step, SupervisedStep)
    said = task.feedback(0)[0]
    assert policy.decode(rows[0].responses_ids[0]) == said["feedback"]
    before = policy.tokenizer.decode(rows[0].prompt_ids)
    turns = f"user {said['prompt']} assistant {said['response']} </s> user"
    swapped = f"user pose assistant {said['prompt']} </s> user {said['response']} assistant"
    assert before == f"<s> {swapped if layout == 'swapped' else turns}"


def test_a_tuned_scorer_needs_feedback():
    settings = flr.Config.at("tiny", arms=["ranking", "dpo_tuned"])
    with pytest.raises(ValueError, match=r"arms \['dpo_tuned'\] need a scorer tuned on feedback in words"):
        flr.open_task(settings, dataset="x.jsonl", model="m")


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("text") / "model", max_length=500)


def test_real_pairs_end_to_end(shared, model, root):
    overrides = {
        **{"max_new_tokens": 5, "max_length": 500, "samples": 2, "n_prompts": 3, "test_size": 60},
        "learning_rate": 1e-3,
    }
    given = {"scale": "smoke", "model": str(model), "dataset": str(shared / "data/alpaca_eval/pairs.jsonl.gz")}
    given |= {"seeds": [0], "overrides": overrides, "output": str(root / "text")}
    experiment = methods.Experiment("flr", **given)
    results = experiment.results(workers=1)
    (ranking,) = results[0]["arms"]["ranking"]
    assert {"flr", "own_likelihood", "length", "flr_official_raw_logit"} <= set(ranking)
    assert "tuned" not in ranking
    assert 0 < ranking["pairs"] < 60  # the others have responses that do not fit
    start, end = results[0]["arms"]["dpo_flr"]
    assert {"quality", "token_nll", "flr"} == set(end)
    assert end["token_nll"] != start["token_nll"]
    verdicts = claims(experiment, results).verdicts()
    assert {verdicts.pop("H1"), verdicts.pop("H2")} == {"smoke run, no verdict"}
    assert set(verdicts.values()) == {"needs full scale"}


def test_real_questions_with_feedback_in_aligned_files(shared, model, root, tmp_path):
    """Real questions and solutions as accept and reject files, and a scorer tuned on feedback with swapped roles."""
    with open(shared / "data/gsm8k/example_model_solutions.jsonl", encoding="utf-8") as file:
        rows = [json.loads(next(file)) for _ in range(8)]
    texts = [(r["question"][:80], r["ground_truth"][:60], r["6b_finetuning"]["solution"][:60]) for r in rows]
    for side, answer in (("accept", 1), ("reject", 2)):
        (tmp_path / f"maths_{side}.json").write_text(json.dumps([[row[0], row[answer]] for row in texts]))
    told = [{"prompt": q, "response": wrong, "feedback": "That is wrong."} for q, _, wrong in texts]
    (tmp_path / "feedback.jsonl").write_text("\n".join(map(json.dumps, told)))
    overrides = {**{"max_new_tokens": 4, "max_length": 300, "samples": 2, "n_prompts": 2, "test_size": 3}}
    overrides |= {"arms": ["ranking", "dpo_tuned"], "feedback": str(tmp_path / "feedback.jsonl")}
    overrides |= {"tuning_learning_rate": 1e-3}
    given = {"scale": "smoke", "model": str(model), "dataset": str(tmp_path / "maths_accept.json"), "seeds": [0]}
    given |= {"overrides": overrides, "output": str(root / "aligned")}
    experiment = methods.Experiment("flr", **given)
    results = experiment.results(workers=1)
    assert {"flr", "tuned", "mistuned"} <= set(results[0]["arms"]["ranking"][0])
    assert len(results[0]["arms"]["dpo_tuned"]) == 2


def files(folder, accept, reject):
    (folder / "set_accept.json").write_text(json.dumps(accept))
    (folder / "set_reject.json").write_text(json.dumps(reject))
    return folder / "set_accept.json"


def test_aligned_files(tmp_path):
    (row,) = read_accept_reject(files(tmp_path, [["q", "a", "r", "good"]], [["q", "a", "r", "bad"]]))
    assert [turn["role"] for turn in row["prompt"]] == ["user", "assistant", "user"]
    assert (row["chosen"], row["rejected"]) == ("good", "bad")


@pytest.mark.parametrize(
    ("accept", "reject", "message"),
    [
        ([["q", "a"]] * 2, [["q", "b"]], "set_accept.json has 2 conversations and set_reject.json 1"),
        ([["q", "a"]], [["p", "b"]], "row 0: the two files have different prompts"),
        ([["q", "a", "b"]], [["q", "a", "b"]], "set_accept.json, row 0: .* the number of utterances is even; got 3"),
        ([["q", ""]], [["q", "b"]], "set_accept.json, row 0: utterance 1 is empty"),
    ],
)
def test_bad_files(tmp_path, accept, reject, message):
    with pytest.raises(ValueError, match=message):
        read_accept_reject(files(tmp_path, accept, reject))


def test_feedback_rows():
    assert as_feedback([{"prompt": "q", "completion": "a", "feedback": "Good."}]) == [
        {"prompt": "q", "response": "a", "feedback": "Good."}
    ]
    with pytest.raises(ValueError, match="row 0, column 'feedback': it is missing or empty"):
        as_feedback([{"prompt": "q", "response": "a"}])


# ------------------------------------------------------------------------------------------------------------ claims
QUALITY = {"dpo_flr": 0.6, "dpo_tuned": 0.7, "sft_flr": 0.58, "sft_tuned": 0.65, "kto_flr": 0.57, "dpo_fast": 0.45}
QUALITY |= {"dpo_inverted": 0.2, "dpo_shuffled": 0.38, "dpo_mistuned": 0.37}
RANKING = {"flr": 0.8, "deaf": 0.5, "tuned": 0.95, "mistuned": 0.6, "own_likelihood": 0.3}
RANKING |= {"flr_one_phrase": 0.7, "deaf_one_phrase": 0.5, "flr_positive": 0.75, "flr_official_raw_logit": 0.6}
RANKING |= {"tuned_official_raw_logit": 0.9, "flr_half_phrases_sd": 0.01, "flr_one_phrase_sd": 0.03}


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

    return Results(result() for _ in Told.seeds)


def test_verdicts_of_a_method_that_works():
    verdicts = claims(Told(), told()).verdicts()
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
    assert claims(Told(), told(ranking, **quality)).verdicts()[lost] == "not shown"


# ---------------------------------------------------------------------------------------------------------- sabotage
@pytest.mark.slow
def test_sabotage_in_the_world(root, monkeypatch):
    """One seed: the intact reward ranks, its pairs raise the policy, and each mistake is seen in a number."""
    monkeypatch.setattr(Listener, "deaf", Listener.start)  # not needed here, and not trained then
    settings = flr.Config.at("tiny", world={"draws": 10, "start_steps": 500}, max_steps=40, arms=["dpo_flr"])
    task = flr.open_task(settings)
    pairs = task.preferences("test", 0)
    rows = [{"prompt": row["prompt"], "response": row[side]} for side in ("chosen", "rejected") for row in pairs]
    start, phrases = task.start(0), FollowUps.of(task.follow_ups)

    def accuracy():
        values = flr.Reward(start, phrases)(rows).flr
        return pairwise_accuracy(values[: len(pairs)] - values[len(pairs) :])

    def gain(name):
        before, after = flr.train_arm(task, settings, ARMS["dpo_flr"], 0, Run(root / name / "dpo_flr"))
        return after["quality"] - before["quality"]

    assert accuracy() > 0.65
    assert gain("sound") > 0.08
    true_groups, true_best, true_side = PlacedFollowUps.groups, mining.best_and_worst, flr.Scored.side

    def response_too(self, rows):
        """The response's words are scored with the follow-up."""
        groups, n_cut = true_groups(self, rows)
        moved = [
            g._replace(prompt_ids=g.prompt_ids[:-6], responses_ids=[g.prompt_ids[-6:] + r for r in g.responses_ids])
            for g in groups
        ]
        return moved, n_cut

    def prompt_alone(self, rows):
        """The follow-up does not see the response."""
        return true_groups(self, [{**row, "response": "t0"} for row in rows])

    with monkeypatch.context() as patch:
        patch.setattr(PlacedFollowUps, "groups", response_too)
        patch.setattr(flr.Scored, "flr", property(lambda self: self.likelihoods.mean(1)))
        assert accuracy() < 0.5  # drifts to the model's own likelihood
    with monkeypatch.context() as patch:
        patch.setattr(PlacedFollowUps, "groups", prompt_alone)
        assert accuracy() == pytest.approx(0.5)
    with monkeypatch.context() as patch:  # best and worst exchanged: every margin is negative
        patch.setattr(mining, "best_and_worst", lambda scores: true_best(scores)[::-1])
        with pytest.raises(ValueError, match="'margin too small': 216"):
            gain("exchanged")
    with monkeypatch.context() as patch:  # the sign of the score
        patch.setattr(flr.Scored, "side", lambda *arguments: -true_side(*arguments))
        assert accuracy() < 0.35
        assert gain("negated") < -0.03


# ------------------------------------------------------------------------------------------------------------- browser
PHRASES = [("d", "positive", "Good <i>x</i>"), ("d", "positive", "Fine"), ("d", "negative", "Bad")]
TABLE = pd.DataFrame(
    {"prompt": ["<b>q</b>", "q2", "q2"], "response": ["<script>alert(1)</script>", "two words", "two words"]}
    | {"side": ["chosen", "rejected", "rejected"], "flr": [0.5, -0.5, -0.5]}
    | {"likelihoods": [[-1.0, -2.0, -2.0], [-3.0, -2.0, -2.0], [-3.0, -2.0, -2.0]]}
)


def test_text_is_escaped_everywhere():
    view = FollowUpBrowser(TABLE, PHRASES)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure(0).to_json(), view.length_figure().figure().to_json()):
        text = text.replace("\\u003c", "<")
        assert "<script>" not in text
        assert "<b>q</b>" not in text
        assert "<i>x</i>" not in text


def test_phrases_and_list():
    view = FollowUpBrowser(TABLE, PHRASES)
    assert len(view.table) == 2  # the same response once
    assert view.frame().groupby("polarity").size().to_dict() == {"positive": 4, "negative": 2}
    assert [len(trace.x) for trace in view.figure(1).data] == [2, 1]
    pick, text = view.widget().children
    pick.value = 1
    assert text.value == view.html(1)
    assert view.html(1).index("Fine") < view.html(1).index("Good")  # the likeliest first
    assert view.length_figure().frame()["words"].tolist() == [1, 2]


def test_other_phrases_and_empty_tables_are_refused():
    with pytest.raises(ValueError, match="not the set they were scored with"):
        FollowUpBrowser(TABLE, PHRASES[:2])
    with pytest.raises(ValueError, match="no scored responses"):
        FollowUpBrowser(TABLE.iloc[:0], PHRASES)
