"""PRO: first loss by hand and what breaks it, selection by dev reward, real lists, verdicts, browser, sabotage."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, save_judge, save_policy

from workbench import methods, objectives
from workbench.kernels import Group
from workbench.methods.align.pro import hindsight
from workbench.methods.align.pro import lists as ranked_lists
from workbench.methods.align.pro import method as pro
from workbench.methods.align.pro.experiment import claims
from workbench.methods.align.pro.lists import as_lists, list_step, rank_rows
from workbench.methods.align.pro.view import ListBrowser, bleu_figure, rewards_figure
from workbench.methods.experiment import Results, run_seed
from workbench.runs.run import Run
from workbench.training.checkpoints import load_weights
from workbench.worlds.target_and_distractor import TargetAndDistractor

WORLD = {"numbers": 5, "symbols": 12, "shortest": 4, "longest": 8, "start_steps": 5}
WORLD |= {"n_rows": 40, "draws": 1, "width": 16}


def config(**changes):
    settings = {"world": WORLD, "max_steps": 3, "batch_size": 6, "max_new_tokens": 10}
    return pro.Config.at("smoke", **{**settings, "select_every": 0, "candidates_at_once": 0, **changes})


@pytest.fixture
def task(root):
    return pro.open_task(config())


@pytest.fixture
def arms(root):
    """Trains arms of a configuration in a folder of its own."""

    def train(*names, **changes):
        settings = config(arms=list(names), **changes)
        run = Run(root / f"arms-{names[0]}-{len(list(root.iterdir()))}")
        return run, run_seed(pro, pro.open_task(settings), settings, 0, run)["arms"]

    return train


# ---------------------------------------------------------------------------------------------- the first loss by hand
def by_hand(task, seed, n, weight=0.05):
    """Mean loss of the first batch, from the log-probs of the start and the formula of the paper."""
    lists, _ = as_lists(task.rankings("train", seed), n=n)
    policy, order = task.start(seed), np.random.default_rng([seed * 1000, 0]).permutation(len(lists))[:6]
    losses = []
    for row in [lists[i] for i in order]:
        groups = [policy.group(row["prompt"], [text]) for text in row["responses"]]
        sums = [pro_logps(policy, group) for group in groups]
        s = [total / len(g.responses_ids[0]) for total, g in zip(sums, groups, strict=True)]
        rewards, loss = row["scores"], -weight * (len(s) - 1) ** 2 * sums[0]
        for k in range(len(s) - 1):
            gaps = [rewards[k] - rewards[i] for i in range(k + 1, len(s))]
            negatives = sum(math.exp(s[k + 1 + i] * gap) for i, gap in enumerate(gaps))
            loss += math.log(1e-10 + math.exp(s[k] * max(gaps)) + negatives) - s[k] * max(gaps)
        losses.append(loss)
    return np.mean(losses)


def pro_logps(policy, group):
    """log p of a group's only response, from the model's own logits."""
    ids = torch.tensor([group.prompt_ids + group.responses_ids[0]])
    with torch.no_grad():
        logps = policy.model(input_ids=ids).logits.log_softmax(-1)[0]
    start = len(group.prompt_ids)
    return float(logps[range(start - 1, ids.shape[1] - 1), ids[0, start:]].sum())


def first_loss(arms, name="pro_5", **changes):
    run, _ = arms(name, **changes)
    return Run(run.folder / name / "round-1").metrics()[0]


def test_first_loss_and_what_is_logged(arms, task):
    logged = first_loss(arms)
    assert logged["loss"] == pytest.approx(by_hand(task, 0, 5), rel=1e-4)
    assert {"rank_1", "rank_2", "rank_3", "rank_4", "sft_nll", "agreement"} <= set(logged)
    assert first_loss(arms, "pro_2")["loss"] == pytest.approx(by_hand(task, 0, 2), rel=1e-4)
    assert first_loss(arms, "no_sft_5")["loss"] == pytest.approx(by_hand(task, 0, 5, weight=0.0), rel=1e-4)


def looped(mistake):
    """The objective as loops over answers, with one mistake."""

    def objective(logps, lengths, scores, *, sft_weight, temperature, eps):
        losses = []
        for sums, sizes, rewards in zip(logps, lengths, scores.tolist(), strict=True):
            n = int((sizes > 0).sum())
            s = sums if mistake == "not normalised by length" else sums / sizes
            sft = -sums[0] / (sizes[0] if mistake == "mean in the SFT term" else 1)
            loss = sft_weight * (1 if mistake == "weight does not grow" else (n - 1) ** 2) * sft
            for k in range(n - 1):
                others = [i for i in range(n) if i > k or (mistake == "better answers are negatives" and i != k)]
                gaps = {i: rewards[k] - rewards[i] for i in others}
                widest = min(gaps.values()) if mistake == "smallest gap for the positive" else max(gaps.values())
                if mistake == "temperatures the wrong way":
                    gaps, widest = {i: 1 / (gap + 1e-3) for i, gap in gaps.items()}, 1 / (widest + 1e-3)
                exponents = [s[k] * widest, *(s[i] * gap for i, gap in gaps.items())]
                exponents += [s[k] * widest] * (mistake == "positive counted twice")
                loss = (
                    loss
                    + torch.logaddexp(torch.logsumexp(torch.stack(exponents), 0), sums.new_tensor(math.log(eps)))
                    - s[k] * widest
                )
            losses.append(loss)
        none = torch.zeros(len(logps))
        return torch.stack(losses), {"rank_1": none, "sft_nll": none, "agreement": none}

    return objective


MISTAKES = (
    *("not normalised by length", "mean in the SFT term", "weight does not grow", "better answers are negatives"),
    *("smallest gap for the positive", "temperatures the wrong way", "positive counted twice"),
)


def test_mistakes_in_the_objective_change_the_first_loss(arms, task, monkeypatch):
    """Without a mistake the loops give the loss of the running method; with any one they do not."""
    monkeypatch.setattr(TargetAndDistractor, "evaluate", lambda *a: {})
    wanted = by_hand(task, 0, 5)
    for mistake in ("", *MISTAKES):
        monkeypatch.setattr(objectives, "pro", looped(mistake))
        loss = first_loss(arms, max_steps=1)["loss"]
        assert (loss == pytest.approx(wanted, rel=1e-3)) == (not mistake), mistake


def test_a_reversed_sort_is_refused_while_training(arms, monkeypatch):
    true = pro.as_lists

    def backwards(rows, **options):
        lists, counts = true(rows, **options)
        return [{**r, "responses": r["responses"][::-1], "scores": r["scores"][::-1]} for r in lists], counts

    monkeypatch.setattr(pro, "as_lists", backwards)
    with pytest.raises(ValueError, match="the scores rise from one response to the next"):
        arms("pro_5")


# --------------------------------------------------------------------------------------------------- rows and memory
def test_every_answer_ends_with_one_scored_eos_token(task):
    lists, _ = as_lists(task.rankings("train", 0))
    policy = task.start(0)
    for row in rank_rows(policy, lists[:20], max_length=64, answer_room=10):
        ends = [ids.count(policy.tokenizer.eos_token_id) for ids in row.group.responses_ids]
        assert set(ends) == {1}
        assert all(ids[-1] == policy.tokenizer.eos_token_id for ids in row.group.responses_ids)


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_answers_in_chunks_give_the_same_gradient(task, at_once):
    """Lists of two to five answers, a part of each list at a time: the same losses, logged numbers and gradients."""
    lists, _ = as_lists(task.rankings("train", 0))
    policy = task.start(0)
    rows = rank_rows(policy, lists[:6], max_length=64, answer_room=10)
    rows = [
        row._replace(
            group=Group(row.group.prompt_ids, row.group.responses_ids[: 2 + i % 3]), scores=row.scores[: 2 + i % 3]
        )
        for i, row in enumerate(rows)
    ]
    found = []
    for k in (0, at_once):
        losses, logged = list_step(objectives.pro, n=5, at_once=k)(policy, rows)
        policy.model.zero_grad()
        losses.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in policy.model.parameters()])
        found.append((losses.detach(), torch.stack(list(logged.values())), gradient))
        assert list(logged) == ["rank_1", "rank_2", "rank_3", "rank_4", "sft_nll", "agreement"]
    for whole, parts in zip(*found, strict=True):
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_long_prompts_are_cut_on_the_left_and_answers_without_room_are_named(task):
    policy = task.start(0)
    rows = [{"prompt": list(range(3, 40)), "responses": ["t1 t2", "t3"], "scores": [1.0, 0.0]}]
    (row,) = rank_rows(policy, rows, max_length=20, answer_room=10)
    assert row.group.prompt_ids == list(range(30, 40))
    assert policy.counts["prompts_cut"] == 1
    with pytest.raises(ValueError, match="list 0: max_length=20 leaves no room for a response behind 20 prompt tokens"):
        rank_rows(policy, rows, max_length=20, answer_room=0)


def test_relabelled_lists():
    lists = [{"prompt": "p", "responses": ["a", "b", "c"], "scores": [2.0, 1.0, -1.0]}] * 200
    (first, *_) = ranked_lists.relabelled(lists, "reversed", 0)
    assert (first["responses"], first["scores"]) == (["c", "b", "a"], [1.0, -1.0, -2.0])
    shuffled = ranked_lists.relabelled(lists, "shuffled", 0)
    assert all(row["scores"] == [2.0, 1.0, -1.0] for row in shuffled)
    assert 0.2 < np.mean([row["responses"][0] == "a" for row in shuffled]) < 0.47


def test_chain_of_hindsight_asks_by_name_in_both_orders(task):
    lists, _ = as_lists(task.rankings("train", 0), n=2)
    policy = task.start(0)
    rows = hindsight.chains(policy, lists, task.hints, 0, max_length=64)
    first, second = rows[:2]
    texts = [policy.tokenizer.decode(g.prompt_ids) for g in (first, second)]
    assert len(rows) == 2 * len(lists)
    hint = "good" if "good assistant" in texts[0] else "bad"
    best, worst = lists[0]["responses"][0], lists[0]["responses"][-1]
    assert policy.decode(first.responses_ids[0]) == (best if hint == "good" else worst)
    assert texts[1].endswith(f"user {'bad' if hint == 'good' else 'good'} assistant")
    assert policy.decode(first.responses_ids[0]) in texts[1]


# ------------------------------------------------------------------------------------------------ resume and selection
def test_results_and_tables(arms):
    run, result = arms("pro_5", "rrhf_5", "coh_2")
    for start, end in result.values():
        assert {"quality", "greedy", "agreement", "bleu_words", "bleu_characters"} <= set(start) == set(end)
    table = pd.read_parquet(run.folder / "pro_5" / "held_out_lists.parquet")
    assert list(table) == ["list", "prompt", "response", "score", "before", "after"]
    assert (table["before"] != table["after"]).any()
    assert json.loads((run.folder / "pro_5" / "counts.json").read_text())["lists"] > 0


def test_killed_between_two_looks_at_the_dev_reward(arms, monkeypatch):
    options = {"max_steps": 4, "checkpoint_every": 1, "select_every": 1}
    settings = config(arms=["pro_2"], **options)
    task, (whole, expected) = pro.open_task(settings), arms("pro_2", **options)
    run, real, calls = Run(whole.folder.parent / "killed"), pro.keep_best, []

    def dies(policy, step, **rest):
        calls.append(step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(policy, step, **rest)

    monkeypatch.setattr(pro, "keep_best", dies)
    with pytest.raises(KeyboardInterrupt):
        run_seed(pro, task, settings, 0, run)
    assert run_seed(pro, task, settings, 0, run)["arms"] == expected
    assert calls == [1, 2, 3, 3, 4]
    best = [Run(r.folder / "pro_2" / "round-1").folder / "best.safetensors" for r in (whole, run)]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_the_best_dev_reward_is_kept(arms, monkeypatch):
    """Rewards 0, 3, 1 at steps 1, 2, 3: what is evaluated and stored is the policy after step 2."""
    rewards, stored = iter([0.0, 3.0, 1.0]), {}
    true = TargetAndDistractor.score

    def score(self, prompts, responses):
        dev = list(prompts) == self.prompts("validation", 0)
        return np.full(len(prompts), next(rewards)) if dev else true(self, prompts, responses)

    monkeypatch.setattr(TargetAndDistractor, "score", score)
    keep = pro.keep_best

    def watched(policy, step, **rest):
        stored[step] = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
        keep(policy, step, **rest)

    monkeypatch.setattr(pro, "keep_best", watched)
    run, _ = arms("pro_2", select_every=1)
    part = run.folder / "pro_2" / "round-1"
    found = [json.loads(line)["reward"] for line in (part / "dev_rewards.jsonl").read_text().splitlines()]
    assert found == pytest.approx([0.5, 1 / (1 + math.exp(-3)), 1 / (1 + math.exp(-1))])
    policy = pro.open_task(config()).start(0)
    load_weights(policy.model, part / "weights.safetensors")
    for name, p in policy.model.named_parameters():
        torch.testing.assert_close(p, stored[2][name])


# --------------------------------------------------------------------------------------------------------- bad input
def test_bad_settings():
    with pytest.raises(ValueError, match="answer_room=64 leaves no token of 64 for a prompt"):
        pro.Config.at("tiny", max_length=64, answer_room=64)
    said = r"select_every=600 keeps the checkpoint .* give judge .* or set select_every=0"
    with pytest.raises(ValueError, match=said):
        pro.open_task(pro.Config.at("full"), dataset="x.jsonl", model="m")


def test_strict_refuses_unsorted_lists(arms):
    with pytest.raises(ValueError, match="not in falling order"):
        arms("pro_5", strict=True)


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def on_text(tmp_path_factory):
    """A small random policy and two small random reward models in the hub's format."""
    folder, said = tmp_path_factory.mktemp("text"), "How many apples are left? Give three tips."
    save_policy(folder / "model", said, max_length=600)
    for seed, name in enumerate(("judge", "larger")):
        save_judge(folder / name, said, max_length=600, layers=1 + seed, seed=seed)
    return folder


def test_real_rankings_end_to_end(shared, on_text, root):
    """Four models' graded solutions, scored anew by one reward model, dev rewards by it, evaluation by another."""
    overrides = {"judge": str(on_text / "judge"), "evaluation_judge": str(on_text / "larger"), "select_every": 1}
    overrides |= {"n_lists": 6, "test_size": 4, "dev_size": 3, "max_new_tokens": 4, "max_length": 200}
    overrides |= {"answer_room": 100, "learning_rate": 1e-3, "arms": ["pro", "shuffled"]}
    given = {"model": str(on_text / "model"), "dataset": str(shared / "data/gsm8k/example_model_solutions.jsonl")}
    given |= {"overrides": overrides, "output": str(root / "text")}
    experiment = methods.Experiment("pro", scale="smoke", seeds=[0], **given)
    results = experiment.results(workers=1)
    start, end = results[0]["arms"]["pro"]
    assert {"quality", "token_nll", "bleu_characters", "bleu_words", "agreement"} <= set(end)
    assert 0 < end["quality"] < 100
    assert end["token_nll"] != start["token_nll"]
    metrics = experiment.run.child("seed-0").child("pro").child("round-1").metrics()
    assert len(metrics) == 2
    assert "rank_3" in metrics[0]
    verdicts = claims(experiment, results).verdicts()
    assert verdicts.pop("H1") == "smoke run, no verdict"
    assert set(verdicts.values()) == {"needs full scale"}


def test_real_pairs_without_a_judge(shared, on_text, root):
    overrides = {"n_lists": 4, "test_size": 3, "dev_size": 2, "max_length": 120, "answer_room": 60, "max_steps": 1}
    given = {"model": str(on_text / "model"), "dataset": str(shared / "data/alpaca_eval/pairs.jsonl.gz")}
    given |= {"overrides": overrides | {"arms": ["pro"]}, "output": str(root / "pairs")}
    experiment = methods.Experiment("pro", scale="smoke", seeds=[0], **given)
    start, end = experiment.results(workers=1)[0]["arms"]["pro"]
    assert set(end) == {"quality", "token_nll", "agreement"}
    assert end["quality"] != start["quality"]


# ---------------------------------------------------------------------------------------------------------- verdicts
QUALITY = {"pro_2": 0.3, "pro_3": 0.35, "pro_5": 0.4, "sft_2": -0.4, "bon_5": 0.0, "rrhf_2": -0.2, "rrhf_5": 0.1}
QUALITY |= {"coh_2": -0.2, "plain_5": 0.2, "no_sft_5": 0.2, "reversed_5": -1.8}
QUALITY |= dict.fromkeys(("shuffled_2", "shuffled_3", "shuffled_5"), -0.6)


def told(**changes):
    rng = np.random.default_rng(2)

    def arm(name, value):
        noise = rng.normal(0, 0.01)
        order = {"pro": 0.9, "shu": 0.3, "rev": 0.02}.get(name[:3], 0.5)
        numbers = {"quality": value + noise, "greedy": value + noise, "agreement": order + noise}
        numbers |= {"bleu_characters": -value, "bleu_words": -value, "bleu_right": value}
        return [{**numbers, "quality": -0.85, "agreement": 0.05}, numbers]

    values = {**QUALITY, **changes}
    return Results({"arms": {name: arm(name, value) for name, value in values.items()}} for _ in Told.seeds)


def test_verdicts_of_a_method_that_works():
    verdicts = claims(Told(), told()).verdicts()
    assert {id for id, verdict in verdicts.items() if verdict == "needs full scale"} == {"C3", "C5", "C6"}
    assert {id for id, verdict in verdicts.items() if verdict == "not shown"} == set()
    tested = "C1,C1 rrhf,C1 coh,C2,C2 rrhf,C4,C7,C8 sft,C8 temperature,W1,W2,W3"
    assert set(tested.split(",")) <= set(verdicts)


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"pro_2": -0.4}, "C1"),
        ({"shuffled_2": 0.3}, "C1"),  # the order of the scores does not matter
        ({"pro_5": 0.0}, "C2"),
        ({"plain_5": 0.4}, "C8 temperature"),
        ({"pro_5": 0.2}, "C7"),
        ({"reversed_5": -0.8}, "W3"),
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert claims(Told(), told(**broken)).verdicts()[lost] == "not shown"


# ----------------------------------------------------------------------------------------------------------- browser
LISTS = pd.DataFrame(
    {"list": [0, 0, 0, 1, 1], "prompt": ["<b>a3</b>"] * 3 + ["a4"] * 2}
    | {"response": ["<script>alert(1)</script>", "t1", "t2", "t3", "t4"], "score": [2.0, 0.0, 0.0, 1.0, -1.0]}
    | {"before": [-3.0, -1.0, -2.0, -1.0, -1.5], "after": [-1.0, -2.0, -3.0, -1.0, -1.5]}
)


def test_positions_by_hand():
    rows = ListBrowser(LISTS).positions(0)
    assert rows["before_position"].tolist() == [3, 1, 2]
    assert rows["after_position"].tolist() == [1, 2, 3]
    assert rows["score_position"].tolist() == [1, 2.5, 2.5]  # equal scores share a position


def test_text_is_escaped_everywhere():
    view = ListBrowser(LISTS)
    bundle = view._repr_mimebundle_()
    for text in (view.html(0), bundle["text/html"], view.figure(0).to_json()):
        assert "<script>" not in text.replace("\\u003c", "<")
        assert "<b>a3</b>" not in text.replace("\\u003c", "<")


def test_slider_moves_table_and_chart():
    view = ListBrowser(LISTS)
    slider, text, chart = view.widget().children
    first = chart.outputs[0]["data"]["application/vnd.plotly.v1+json"]
    slider.value = 1
    assert text.value == view.html(1)
    assert chart.outputs[0]["data"]["application/vnd.plotly.v1+json"] != first
    assert "1 of 2" in view._repr_mimebundle_()["text/html"]


def test_no_lists_is_an_error():
    with pytest.raises(ValueError, match="no lists to show"):
        ListBrowser(LISTS.iloc[:0])


def test_curves_of_a_run_without_bleu():
    table = pd.DataFrame(
        {"arm": ["pro", "pro", "bon", "bon"], "seed": 0, "round": [0, 1] * 2}
        | {"quality": [-2.0, -1.0, -2.0, -1.5], "agreement": [0.5, 0.7, 0.5, 0.6]}
    )
    drawn = rewards_figure(SimpleNamespace(config=config()), table)
    assert "ends at -1.00, SFT on the best answer at -1.50" in drawn.figure().layout.title.text
    assert "evaluation_judge" in bleu_figure(None, table)


# ---------------------------------------------------------------------------------------------------------- sabotage
@pytest.mark.slow
def test_a_reversed_sort_in_the_world(arms, monkeypatch):
    """One seed of the world: PRO gains a reward and orders planted qualities; with the sort reversed it does not."""
    options = {"world": {"draws": 10}, "max_steps": 60, "batch_size": 16, "max_new_tokens": 8, "learning_rate": 1e-3}
    _, sound = arms("pro_2", **options)
    start, end = sound["pro_2"]
    assert end["quality"] > start["quality"] + 0.5
    assert end["agreement"] > 0.7
    true = pro.as_lists

    def backwards(rows, **rest):
        lists, counts = true([{**row, "scores": [-s for s in row["scores"]]} for row in rows], **rest)
        return lists, counts

    monkeypatch.setattr(pro, "as_lists", lambda rows, **rest: (backwards if "n" in rest else true)(rows, **rest))
    _, broken = arms("pro_2", **options)
    start, end = broken["pro_2"]
    assert end["quality"] < start["quality"] - 0.3
    assert end["agreement"] < 0.2
