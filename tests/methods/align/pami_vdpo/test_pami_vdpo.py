"""PaMi-VDPO: one response under two clips, selection close then far, weights, resuming, bad input, real text, pictures,
sabotage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from workbench import methods, objectives
from workbench.methods.align.pami_vdpo import alterations, bags
from workbench.methods.align.pami_vdpo import method as pami_vdpo
from workbench.methods.align.pami_vdpo.alterations import Candidate
from workbench.methods.align.pami_vdpo.world import Clips, Pictures
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run


def config(**changes):
    return pami_vdpo.Config.at("smoke", **{"arms": ["pami"], **changes})


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pami")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        settings = config()
        task = pami_vdpo.open_task(settings)
        run = Run(folder / "seed-0")
        yield task, settings, run, pami_vdpo.run(task, settings, 0, run)


def samples_of(task, policy, n=24, seed=0):
    return [
        bags.Sample(f"row {i}", i, row, task.group(policy, row["evidence"], row["prompt"], row["response"]))
        for i, row in enumerate(task.triples("train", seed)[:n])
    ]


def oracle_divergence(task, samples, chooser, noise=0.0):
    """Divergences as a model that sees would have them: log 2 where the truth changes, nearly 0 elsewhere."""
    groups = {}

    def remember(policy, sample, found, real=chooser.groups):
        made = real(policy, sample, found)
        for one, group in zip(found, made, strict=True):
            groups[tuple(group.prompt_ids)] = (sample, one)
        return made

    chooser.groups = remember

    def far(policy, originals, altered):
        rng = np.random.default_rng(0)
        found = []
        for others in altered:
            found.append([])
            for group in others:
                sample, one = groups[tuple(group.prompt_ids)]
                prompt = sample.row["prompt"]
                moved = task.truth(one.evidence, prompt) != task.truth(sample.row["evidence"], prompt)
                found[-1].append(0.6 * moved + noise * rng.random())
        return found

    return far


def chooser_of(task, policy, settings, arm="pami", n=24):
    return pami_vdpo.make_chooser(task, settings, pami_vdpo.ARMS[arm], policy.copy(), samples_of(task, policy, n), 0)


# ---------------------------------------------------------------------------------------------------------- selection
@pytest.fixture(scope="module")
def world(played):
    task = Clips(n_triples=200, n_test=20, grounded_steps=5, habit_steps=3, width=16)
    return task, task.untrained(0)


def rates(world, monkeypatch, arm="pami", **changes):
    task, policy = world
    chooser = chooser_of(task, policy, config(**changes), arm, n=200)
    monkeypatch.setattr(bags, "divergences", oracle_divergence(task, None, chooser, noise=0.01))
    return bags.selection_rates(chooser.table(policy))


def test_selection_by_a_model_that_sees_makes_fewer_false_rejections(world, monkeypatch):
    """And argmin, another sabotage, makes more than chance."""
    pami, random, near = (rates(world, monkeypatch, arm)["false_rejections"] for arm in ("pami", "random", "near"))
    assert pami < 0.75 * random
    assert near > random
    found = rates(world, monkeypatch)
    assert set(found["by_question"]) == {"HAS", "EARLY"}
    assert set(found["by_kind"]) <= {"shuffle", "reverse", "crop", "mix"}


def test_an_untrained_selector_chooses_at_random(world):
    task, policy = world
    blind = bags.selection_rates(chooser_of(task, policy, config(), "untrained", 200).table(policy))
    random = bags.selection_rates(chooser_of(task, policy, config(), "random", 200).table(policy))
    assert blind["false_rejections"] == pytest.approx(random["false_rejections"], abs=0.15)


def test_without_the_prompt_all_questions_get_the_same_choice(world, monkeypatch):
    """The divergence then cannot know HAS from EARLY: groups are made with an empty prompt."""
    task, policy = world
    asked = []
    monkeypatch.setattr(
        Clips,
        "group",
        lambda self, p, e, prompt, r, real=Clips.group: (asked.append(prompt), real(self, p, e, prompt, r))[1],
    )
    chooser = chooser_of(task, policy, config(), "promptless", 4)
    asked.clear()
    chooser.choose(policy, chooser.samples[:4])
    assert " " in set(asked)
    chooser = chooser_of(task, policy, config(), "pami", 4)
    asked.clear()
    chooser.choose(policy, chooser.samples[:4])
    assert set(asked) == {sample.row["prompt"] for sample in chooser.samples[:4]}


def test_the_rejected_clip_keeps_its_own_question(world):
    """Sabotage: another row's prompt under the altered clip would be another group."""
    task, policy = world
    chooser = chooser_of(task, policy, config(), n=4)
    sample = chooser.samples[0]
    (group,) = chooser.groups(policy, sample, [Candidate("reverse", sample.row["evidence"][::-1])])
    words = policy.decode(group.prompt_ids).split()
    assert " ".join(words[-2:]) == sample.row["prompt"]
    assert group.responses_ids == sample.group.responses_ids


def test_blank_clips_fail_the_close_filter_and_the_fallback_is_counted(world):
    task, policy = world
    chooser = chooser_of(task, policy, config(kinds=["shuffle", "blank"], n_candidates=2))
    for choice in chooser.choose(policy, chooser.samples):
        picked = [one.kind for one, w in zip(choice.candidates, choice.weights, strict=True) if w > 0]
        assert picked == ["shuffle"]
        assert not choice.fell_back
    only = chooser_of(task, policy, config(kinds=["blank", "mix"], n_candidates=2, tau_close=0.9, tau_close_end=0.9))
    choices = only.choose(policy, only.samples)
    assert all(choice.fell_back for choice in choices)
    assert all(
        one.kind == "mix" for choice in choices for one, w in zip(choice.candidates, choice.weights, strict=True) if w
    )
    table = only.table(policy)
    assert bags.selection_rates(table)["fell_back"] == len(only.samples)


def test_the_filter_falls_over_training(world):
    task, policy = world
    chooser = chooser_of(task, policy, config(tau_close=0.8, tau_close_end=0.2, max_steps=10))
    taus = []
    for number in (0, 5, 10, 12):
        chooser.tick(policy, number)
        taus.append(chooser.tau_close)
    assert taus == pytest.approx([0.8, 0.5, 0.2, 0.2])


def test_weights_switch_bags_off_that_hold_no_rejection(world, monkeypatch):
    task, policy = world
    for values, hard in (([0.05, 0.02], 0.5), ([0.0, 0.0], 0.0), ([0.3, 0.1], 1.0)):
        monkeypatch.setattr(
            bags, "divergences", lambda p, o, altered, v=values: [v[: len(others)] for others in altered]
        )
        options = {"kinds": ["shuffle", "reverse"], "n_candidates": 2}
        for weighting in ("hard", "soft", "none"):
            chooser = chooser_of(task, policy, config(weighting=weighting, **options), n=3)
            (choice, *_) = chooser.choose(policy, chooser.samples)
            total = {"hard": hard, "soft": 1.0, "none": 1.0}[weighting]
            assert sum(choice.weights) == pytest.approx(total)
            if weighting == "soft":
                expected = np.exp(np.array(values) / 0.1)
                assert choice.weights == pytest.approx((expected / expected.sum()).tolist())
            elif hard:
                assert int(np.argmax(choice.weights)) == 0


def test_identical_clips_have_no_weight(world):
    task, policy = world
    row = {"evidence": ["o1", "o2", "o2", "o1"], "prompt": "HAS o1", "response": "yes", "kind": "HAS"}
    samples = [
        bags.Sample("row 0", 0, row, task.group(policy, row["evidence"], row["prompt"], "yes")),
        *samples_of(task, policy, 3),
    ]
    rule = bags.Rule(["reverse"], 2, "far", (-1.0, -1.0), 1, "none", 0.1, 0.1)
    chooser = bags.Chooser(task, rule, samples, 0, lambda p: p)
    choice = chooser.choose(policy, samples)[0]
    assert (choice.candidates, choice.weights, choice.identical) == ([], [], 2)
    step = pami_vdpo.vdpo_step(config(), pami_vdpo.ARMS["pami"], chooser, policy.copy())
    losses, logged = step(policy, samples)
    assert losses[0].item() == 0.0
    assert logged["identical"][0].item() == 2


# ----------------------------------------------------------------------------------------------------------- the step
def test_losses_are_those_of_one_response_under_two_clips(world):
    from workbench.kernels import score

    task, policy = world
    settings = config(n_candidates=1, kinds=["reverse"], beta=0.7)
    frozen = task.untrained(7)
    chooser = pami_vdpo.make_chooser(task, settings, pami_vdpo.ARMS["pami"], frozen, samples_of(task, policy, 5), 0)
    losses, logged = pami_vdpo.vdpo_step(settings, pami_vdpo.ARMS["pami"], chooser, frozen)(policy, chooser.samples)
    pairs = [
        (s.group, task.group(policy, s.row["evidence"][::-1], s.row["prompt"], s.row["response"]))
        for s in chooser.samples
    ]
    four = [
        score(who, [pair[side] for pair in pairs], route="padded").sums[:, 0]
        for who in (policy, frozen)
        for side in (0, 1)
    ]
    expected = -torch.nn.functional.logsigmoid(0.7 * ((four[0] - four[2]) - (four[1] - four[3])))
    torch.testing.assert_close(losses, expected)
    wrong = -torch.nn.functional.logsigmoid(0.7 * ((four[0] - four[2]) - (four[1] - four[2])))
    assert not torch.allclose(losses, wrong)  # the reference on the original clip for both sides
    assert set(logged) >= {"chosen_rewards", "rejected_rewards", "divergence", "weight", "chosen_logps"}


def test_a_reference_on_the_original_clip_alone_fails_the_step_0_check(played, tmp_path, monkeypatch):
    """Sabotage: the loss then does not start at log 2."""
    _, settings, *_ = played

    class Sharp(Clips):
        def start(self, seed):
            policy = self.untrained(seed)
            with torch.no_grad():  # answers that differ visibly between clips
                policy.model.lm_head.weight.mul_(100)
            return policy

        def grounded(self, seed):
            return 1.0

    task = Sharp(n_triples=16, n_test=4, width=16)
    real = objectives.vdpo
    monkeypatch.setattr(objectives, "vdpo", lambda p, q, r, s, **k: real(p, q, r, r, **k))
    with pytest.raises(RuntimeError, match="step-0 check"):
        pami_vdpo.run_arm(task, settings, "random", 0, Run(tmp_path / "wrong"))
    monkeypatch.setattr(objectives, "vdpo", real)
    pami_vdpo.run_arm(task, settings, "random", 0, Run(tmp_path / "right"))


def test_no_gradient_flows_through_the_selection(world, monkeypatch):
    task, policy = world
    settings = config(selector="policy", weighting="soft")
    chooser = chooser_of(task, policy, settings)
    hidden, real = [], alterations._predicting

    def spied(*arguments):
        found = real(*arguments)
        hidden.append(found[0].requires_grad)
        return found

    monkeypatch.setattr(alterations, "_predicting", spied)
    pami_vdpo.vdpo_step(settings, pami_vdpo.ARMS["pami"], chooser, policy.copy())(policy, chooser.samples[:4])
    assert hidden == [False]


def test_exchanged_clips_turn_the_gradient_around(world):
    task, policy = world
    gradients = {}
    for arm in ("pami", "inverted"):
        chooser = chooser_of(task, policy, config(), arm, 6)
        losses, _ = pami_vdpo.vdpo_step(config(), pami_vdpo.ARMS[arm], chooser, policy.copy())(policy, chooser.samples)
        policy.model.zero_grad()
        losses.sum().backward()
        gradients[arm] = policy.model.lm_head.weight.grad.clone()
    policy.model.zero_grad()
    torch.testing.assert_close(gradients["pami"], -gradients["inverted"], rtol=1e-4, atol=1e-6)


def test_every_arm_of_the_table_takes_a_step(world):
    task, policy = world
    for name, arm in pami_vdpo.ARMS.items():
        if arm.learns != "answers":
            chooser = chooser_of(task, policy, config(), name, 6)
            losses, _ = pami_vdpo.vdpo_step(config(), arm, chooser, policy.copy())(policy, chooser.samples)
            assert torch.isfinite(losses).all(), name
    rows = pami_vdpo.annotated(policy, samples_of(task, policy, 4))
    assert all(len(row.group.responses_ids) == 2 for row in rows)


# ------------------------------------------------------------------------------------------------------------ the run
def test_the_run_leaves_what_the_views_need(played):
    _, settings, run, result = played
    metrics = Run(run.folder / "pami" / "round-1").metrics()
    assert len(metrics) == settings.max_steps
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    before, after = result["arms"]["pami"]
    assert {"paired", "yes_bias", "HAS against", "EARLY with", "chosen_logp"} <= set(after)
    assert before["chosen_logp"] != after["chosen_logp"]
    answers = pd.read_parquet(run.folder / "pami" / "answers.parquet")
    assert (answers["p_before"] != answers["p_after"]).any()
    assert (run.folder / "pami" / "round-1" / "weights.safetensors").is_file()
    assert set(result["selection"]["pami"]) >= {"false_rejections", "by_question", "by_kind", "fell_back", "identical"}


def test_a_second_call_computes_nothing(played, monkeypatch):
    task, settings, run, result = played
    monkeypatch.setattr(pami_vdpo, "play", lambda *a: pytest.fail("played again"))
    assert pami_vdpo.run(task, settings, 0, run) == result


def test_killed_in_training_it_goes_on_with_the_same_numbers(played, tmp_path, monkeypatch):
    task, _, _, result = played
    settings = config(checkpoint_every=1)
    real, calls = objectives.vdpo, []

    def dies(*a, **k):
        calls.append(1)
        if len(calls) == 3:  # the step-0 check is the first
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(objectives, "vdpo", dies)
    with pytest.raises(KeyboardInterrupt):
        pami_vdpo.run_arm(task, settings, "pami", 0, Run(tmp_path))
    monkeypatch.setattr(objectives, "vdpo", real)
    assert pami_vdpo.run_arm(task, settings, "pami", 0, Run(tmp_path)) == result["arms"]["pami"]


# ---------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_candidates": 0}, "n_candidates = 0: Input should be greater than or equal to 1"),
        ({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"),
        ({"tau_close": 1.5}, "tau_close = 1.5: Input should be less than or equal to 1"),
        ({"kinds": ["spin"]}, r"unknown kinds \['spin'\]; known: shuffle"),
        ({"arms": ["spin"]}, r"unknown arms \['spin'\]; known: pami"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        pami_vdpo.Config.at("tiny", **changes)


def test_one_of_model_and_dataset_is_not_enough():
    with pytest.raises(ValueError, match="give both for real text, or neither for the world"):
        pami_vdpo.open_task(config(), model="m")


# ----------------------------------------------------------------------------------------------- pictures and real text
def test_a_vision_language_model_is_trained_by_the_same_code(tmp_path, runs_root):
    """A real Llava with a small CLIP tower: some optimiser steps on frames as pixels; the tower does not move."""
    settings = config(max_steps=4, n_rows=8)
    task = Pictures(n_triples=8, n_test=4, width=16)
    tower = [p.clone() for name, p in task.start(0).model.named_parameters() if "vision_tower" in name]
    before, after = pami_vdpo.play(task, settings, pami_vdpo.ARMS["pami"], 0, Run(tmp_path))
    metrics = Run(tmp_path / "round-1").metrics()
    assert len(metrics) == 4
    assert metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert metrics[-1]["loss"] != metrics[0]["loss"]
    assert before["chosen_logp"] != after["chosen_logp"]
    kept = [p for name, p in task.start(0).model.named_parameters() if "vision_tower" in name]
    assert all(torch.equal(a, b) for a, b in zip(tower, kept, strict=True))


def test_real_passages_are_trained_on_end_to_end(shared, tmp_path, runs_root):
    tokenizer = bpe_tokenizer(["She sells eggs. How many are left? Answer: 12."] * 3, vocab_size=300)
    Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=1024, seed=0), tokenizer).save(
        tmp_path / "model"
    )
    lines = (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:24]
    rows = [{"prompt": json.loads(line)["question"], "completion": json.loads(line)["answer"][:40]} for line in lines]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    experiment = methods.Experiment(
        "pami_vdpo",
        scale="smoke",
        model=str(tmp_path / "model"),
        dataset=str(tmp_path / "rows.jsonl"),
        seeds=[0, 1, 2],
        overrides={"arms": ["pami", "shuffled"], "max_steps": 3},
    )
    results = [pami_vdpo.run(experiment.task, experiment.config, 0, experiment.run.child("seed-0"))] * 3
    before, after = results[0]["arms"]["pami"]
    assert after["evidence_nats"] != before["evidence_nats"]
    assert math.isnan(results[0]["selection"]["pami"]["false_rejections"])  # nobody knows the truth here
    assert set(pami_vdpo.claims(experiment, results).verdicts()) == {"C1 evidence", "C2", "C7"}
    settings = pami_vdpo.Config.at("smoke", True, arms=["untrained"])
    with pytest.raises(ValueError, match="passages has no untrained model"):
        pami_vdpo.run(experiment.task, settings, 0, Run(tmp_path / "other"))


# --------------------------------------------------------------------------------------------------------------- claims
class Told:
    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


GOOD = {
    "pami": (0.85, 0.99, 0.6),
    "random": (0.7, 0.95, 0.4),
    "shuffle": (0.55, 0.97, 0.3),
    "sft": (0.5, 1.0, 0.2),
    "untrained": (0.68, 0.9, 0.4),
    "shuffled": (0.5, 1.0, 0.2),
    "inverted": (0.1, 1.0, 0.0),
    "dpo": (0.5, 1.0, 0.2),
}
FALSE = {"pami": 0.4, "random": 0.7, "untrained": 0.7}


def told(seed, good, false, grounded=1.0):
    rng = np.random.default_rng(seed)
    jitter = lambda value: float(value + rng.normal(0, 0.01))  # noqa: E731
    start = {"HAS against": 0.5, "with": 1.0, "paired": 0.2}
    arms = {
        arm: [start, {"HAS against": jitter(a), "with": float(w + rng.normal(0, 0.002)), "paired": jitter(p)}]
        for arm, (a, w, p) in good.items()
    }
    return {
        "arms": arms,
        "selection": {arm: {"false_rejections": jitter(v)} for arm, v in false.items()},
        "grounded": grounded,
    }


def verdicts(good=None, false=None, grounded=(1.0,) * 5):
    results = [told(seed, {**GOOD, **(good or {})}, {**FALSE, **(false or {})}, g) for seed, g in enumerate(grounded)]
    return pami_vdpo.claims(Told(), results).verdicts()


def test_claims_that_hold_are_shown():
    found = verdicts()
    assert {found.pop("C2"), found.pop("C7")} == {"needs full scale"}
    assert set(found) == {"C1", "C3", "C4", "C4 fixed", "C4 SFT", "C5", "C6"}
    assert set(found.values()) == {"shown in small"}, found


@pytest.mark.parametrize(
    ("good", "false", "claim"),
    [
        ({"pami": (0.7, 0.99, 0.4)}, {}, "C4"),
        ({"pami": (0.85, 0.9, 0.6)}, {}, "C3"),
        ({"inverted": (0.7, 1.0, 0.0)}, {}, "C1"),
        ({}, {"pami": 0.6}, "C5"),
        ({}, {"untrained": 0.5}, "C5"),
        ({"dpo": (0.9, 1.0, 0.2)}, {}, "C6"),
    ],
)
def test_claims_that_fail_are_not_shown(good, false, claim):
    assert verdicts(good, false)[claim] == "not shown"


def test_seeds_that_do_not_see_are_left_out():
    results = [told(seed, GOOD, FALSE, 0.7 if seed == 1 else 1.0) for seed in range(5)]
    claims = pami_vdpo.claims(Told(), results)
    assert claims.seeds == [0, 2, 3, 4]
    assert "seeds [1] left out: their start was not grounded" in claims.records()[0]["note"]
