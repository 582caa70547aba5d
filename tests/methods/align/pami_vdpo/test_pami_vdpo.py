"""PaMi-VDPO: one response under two clips, selection, weights, real text, verdicts, the view, sabotage."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, play, save_policy

from workbench import methods, objectives
from workbench.methods.align.pami_vdpo import alterations, bags
from workbench.methods.align.pami_vdpo import method as pami_vdpo
from workbench.methods.align.pami_vdpo.alterations import Candidate
from workbench.methods.align.pami_vdpo.experiment import ARMS, claims
from workbench.methods.align.pami_vdpo.view import ClipBags, accuracy_figure, likelihood
from workbench.methods.align.pami_vdpo.world import Clips
from workbench.methods.experiment import Results, run_seed
from workbench.runs.run import Run


def config(**changes):
    return pami_vdpo.Config.at("micro", **{"arms": ["pami"], **changes})


@pytest.fixture(scope="module")
def played(root):
    return play(pami_vdpo, config(), 0, root)


def samples_of(task, policy, n=24):
    return bags.samples_of(task, policy, task.triples("train", 0)[:n])


def selection_of(task, policy, settings, arm="pami", n=24, frozen=None):
    drawn = bags.Bags(task, samples_of(task, policy, n), 0)
    return pami_vdpo.Selection(settings, ARMS[arm], drawn, frozen or policy.copy())


def rates_of(policy, selection):
    return bags.rates_of(selection.bags.table(lambda batch: selection(policy, batch)))


def oracle_divergence(task, selection, noise=0.01):
    """Divergences as a model that sees would have them: large where the truth changes, nearly 0 elsewhere."""
    clips, real = {}, selection.bags.groups

    def remember(policy, sample, bag, prompt=""):
        made = real(policy, sample, bag, prompt)
        clips.update({tuple(group.prompt_ids): (sample.row, one) for one, group in zip(bag, made, strict=True)})
        return made

    def moved(group):
        row, one = clips[tuple(group.prompt_ids)]
        return task.truth(one.evidence, row["prompt"]) != task.truth(row["evidence"], row["prompt"])

    selection.bags.groups, rng = remember, np.random.default_rng(0)
    return lambda policy, originals, altered: [
        [0.6 * moved(group) + noise * rng.random() for group in others] for others in altered
    ]


# ---------------------------------------------------------------------------------------------------------- selection
@pytest.fixture(scope="module")
def world(played):
    task = Clips(n_triples=120, n_test=20, grounded_steps=5, habit_steps=3, width=16)
    return task, task.untrained(0)


def rates(world, monkeypatch, arm="pami"):
    task, policy = world
    selection = selection_of(task, policy, config(), arm, n=120)
    monkeypatch.setattr(pami_vdpo, "divergences", oracle_divergence(task, selection))
    return rates_of(policy, selection)


def test_selection_by_a_model_that_sees_makes_fewer_false_rejections(world, monkeypatch):
    """And argmin, another sabotage, makes more than chance."""
    found, random, near = (rates(world, monkeypatch, arm) for arm in ("pami", "random", "near"))
    assert found["false_rejections"] < 0.75 * random["false_rejections"]
    assert near["false_rejections"] > random["false_rejections"]
    assert set(found["by_question"]) == {"HAS", "EARLY"}
    assert set(found["by_kind"]) <= {"shuffle", "reverse", "crop", "mix"}


def test_an_untrained_selector_chooses_at_random(world):
    task, policy = world
    blind, random = (
        rates_of(policy, selection_of(task, policy, config(), arm, 120)) for arm in ("untrained", "random")
    )
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
    for arm in ("promptless", "pami"):
        selection = selection_of(task, policy, config(), arm, 4)
        samples = selection.bags.samples
        asked.clear()
        selection(policy, samples)
        assert set(asked) == ({" "} if arm == "promptless" else {sample.row["prompt"] for sample in samples})


def test_the_rejected_clip_keeps_its_own_question(world):
    task, policy = world
    drawn = selection_of(task, policy, config(), n=4).bags
    sample = drawn.samples[0]
    (group,) = drawn.groups(policy, sample, [Candidate("reverse", sample.row["evidence"][::-1])])
    words = policy.decode(group.prompt_ids).split()
    assert " ".join(words[-2:]) == sample.row["prompt"]
    assert group.responses_ids == sample.group.responses_ids


def test_blank_clips_fail_the_close_filter_and_the_fallback_is_counted(world):
    task, policy = world
    selection = selection_of(task, policy, config(kinds=["shuffle", "blank"], n_candidates=2))
    for choice in selection(policy, selection.bags.samples):
        picked = [one.kind for one, w in zip(choice.candidates, choice.weights, strict=True) if w > 0]
        assert picked == ["shuffle"]
        assert not choice.fell_back
    only = selection_of(task, policy, config(kinds=["blank", "mix"], n_candidates=2, tau_close=0.9, tau_close_end=0.9))
    choices = only(policy, only.bags.samples)
    assert all(choice.fell_back for choice in choices)
    assert all(
        one.kind == "mix" for choice in choices for one, w in zip(choice.candidates, choice.weights, strict=True) if w
    )
    assert rates_of(policy, only)["fell_back"] == len(only.bags.samples)


def test_the_filter_falls_over_training(world):
    task, policy = world
    selection = selection_of(task, policy, config(tau_close=0.8, tau_close_end=0.2, max_steps=10))
    taus = []
    for number in (0, 5, 10, 12):
        selection.bags.count_step(policy, number)
        taus.append(selection.tau_close())
    assert taus == pytest.approx([0.8, 0.5, 0.2, 0.2])


def test_weights_switch_bags_off_that_hold_no_rejection(world, monkeypatch):
    task, policy = world
    for values, hard in (([0.05, 0.02], 0.5), ([0.0, 0.0], 0.0), ([0.3, 0.1], 1.0)):
        monkeypatch.setattr(
            pami_vdpo, "divergences", lambda p, o, altered, v=values: [v[: len(others)] for others in altered]
        )
        options = {"kinds": ["shuffle", "reverse"], "n_candidates": 2}
        for weighting in ("hard", "soft", "none"):
            selection = selection_of(task, policy, config(weighting=weighting, **options), n=3)
            (choice, *_) = selection(policy, selection.bags.samples)
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
    samples = bags.samples_of(task, policy, [row, *task.triples("train", 0)[:3]])
    settings = config(kinds=["reverse"], n_candidates=2, tau_close=-1.0, tau_close_end=-1.0)
    selection = pami_vdpo.Selection(settings, ARMS["pami"], bags.Bags(task, samples, 0), policy)
    choice = selection(policy, samples)[0]
    assert (choice.candidates, choice.weights, choice.identical) == ([], [], 2)
    step = pami_vdpo.vdpo_step(settings, ARMS["pami"], selection)
    losses, logged = step(policy, samples)
    assert losses[0].item() == 0.0
    assert logged["identical"][0].item() == 2


# ----------------------------------------------------------------------------------------------------------- the step
def test_losses_are_those_of_one_response_under_two_clips(world):
    from workbench.kernels import score

    task, policy = world
    settings = config(n_candidates=1, kinds=["reverse"], beta=0.7)
    frozen = task.untrained(7)
    selection = selection_of(task, policy, settings, n=5, frozen=frozen)
    samples = selection.bags.samples
    losses, logged = pami_vdpo.vdpo_step(settings, ARMS["pami"], selection)(policy, samples)
    pairs = [
        (s.group, task.group(policy, s.row["evidence"][::-1], s.row["prompt"], s.row["response"])) for s in samples
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
        pami_vdpo.train_arm(task, settings, ARMS["random"], 0, Run(tmp_path / "wrong"))
    monkeypatch.setattr(objectives, "vdpo", real)
    pami_vdpo.train_arm(task, settings, ARMS["random"], 0, Run(tmp_path / "right"))


def test_no_gradient_flows_through_the_selection(world, monkeypatch):
    task, policy = world
    settings = config(selector="policy", weighting="soft")
    selection = selection_of(task, policy, settings)
    hidden, real = [], alterations._predicting

    def spied(*arguments):
        found = real(*arguments)
        hidden.append(found[0].requires_grad)
        return found

    monkeypatch.setattr(alterations, "_predicting", spied)
    pami_vdpo.vdpo_step(settings, ARMS["pami"], selection)(policy, selection.bags.samples[:4])
    assert hidden == [False]


def test_exchanged_clips_turn_the_gradient_around(world):
    task, policy = world
    gradients = {}
    for arm in ("pami", "inverted"):
        selection = selection_of(task, policy, config(), arm, 6)
        losses, _ = pami_vdpo.vdpo_step(config(), ARMS[arm], selection)(policy, selection.bags.samples)
        policy.model.zero_grad()
        losses.sum().backward()
        gradients[arm] = policy.model.lm_head.weight.grad.clone()
    policy.model.zero_grad()
    torch.testing.assert_close(gradients["pami"], -gradients["inverted"], rtol=1e-4, atol=1e-6)


def test_every_arm_of_the_table_takes_a_step(world):
    task, policy = world
    for name, arm in ARMS.items():
        if arm.learns != "answers":
            selection = selection_of(task, policy, config(), name, 6)
            losses, _ = pami_vdpo.vdpo_step(config(), arm, selection)(policy, selection.bags.samples)
            assert torch.isfinite(losses).all(), name
    rows = bags.annotated(policy, samples_of(task, policy, 4))
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


def test_unknown_alterations_and_a_missing_untrained_model():
    with pytest.raises(ValueError, match=r"unknown kinds \['spin'\]; known: shuffle"):
        config(kinds=["spin"])
    with pytest.raises(ValueError, match=r"real rows have no untrained model; leave out .*: \['untrained'\]"):
        pami_vdpo.open_task(config(arms=["pami", "untrained"]), model="m", dataset="rows.jsonl")


# ----------------------------------------------------------------------------------------------------------- real text
def test_real_passages_are_trained_on_end_to_end(shared, tmp_path, runs_root):
    lines = (shared / "data/gsm8k/test.jsonl").read_text().splitlines()[:24]
    rows = [{"prompt": json.loads(line)["question"], "completion": json.loads(line)["answer"][:40]} for line in lines]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    model = save_policy(tmp_path / "model", "She sells eggs. How many are left? Answer: 12.")
    given = {"scale": "smoke", "model": model, "dataset": str(tmp_path / "rows.jsonl"), "seeds": [0, 1, 2]}
    given |= {"overrides": {"arms": ["pami", "shuffled"], "max_steps": 3}}
    experiment = methods.Experiment("pami_vdpo", **given)
    seed = experiment.run.child("seed-0")
    results = Results([run_seed(pami_vdpo, experiment.task, experiment.config, 0, seed)] * 3)
    before, after = results[0]["arms"]["pami"]
    assert after["evidence_nats"] != before["evidence_nats"]
    assert math.isnan(results[0]["selection"]["pami"]["false_rejections"])  # nobody knows the truth here
    assert set(claims(experiment, results).verdicts()) == {"C1 evidence", "C2", "C7"}


# --------------------------------------------------------------------------------------------------------------- claims
TOLD = Told(config=config())
GOOD = {"pami": (0.85, 0.99, 0.6), "random": (0.7, 0.95, 0.4), "shuffle": (0.55, 0.97, 0.3), "sft": (0.5, 1.0, 0.2)}
GOOD |= {
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
    selection = {arm: {"false_rejections": jitter(v)} for arm, v in false.items()}
    return {"arms": arms, "selection": selection, "grounded": grounded}


def verdicts(good=None, false=None, grounded=(1.0,) * 5):
    results = [told(seed, {**GOOD, **(good or {})}, {**FALSE, **(false or {})}, g) for seed, g in enumerate(grounded)]
    return claims(TOLD, Results(results)).verdicts()


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
    found = claims(TOLD, Results(told(seed, GOOD, FALSE, 0.7 if seed == 1 else 1.0) for seed in range(5)))
    assert found.seeds == [0, 2, 3, 4]
    assert "seeds [1] left out: their start was not grounded" in found.records()[0]["note"]


# ---------------------------------------------------------------------------------------------------------------- view
def table():
    shared = {"question": "HAS", "prompt": "<b>HAS</b> o1", "response": "<i>yes</i>", "identical": 0}
    shared |= {"fell_back": False}
    shared |= {"evidence": ["o1", "<script>x</script>"], "altered": ["-", "o1"], "close": 0.5}
    rows = [
        {**shared, "sample": n, "candidate": kind, "far": far, "weight": weight, "is_false": float(not weight)}
        for n in (3, 8)
        for kind, far, weight in (("reverse", 0.01, 0.0), ("crop", 0.4, 1.0))
    ]
    return pd.DataFrame(rows)


def test_text_is_escaped_and_the_selected_clip_is_marked():
    answers = pd.DataFrame([{"sample": 3, "k": k, "p_before": 0.5, "p_after": 0.9 - 0.2 * k} for k in (-1, 0, 1)])
    view = ClipBags(table(), answers=answers)
    text = view.html(0)
    assert "<script>" not in text
    assert "<b>HAS" not in text
    assert "<i>" not in text
    lines = text.split("<tr")
    assert [("&#9664;" in line) for line in lines[2:]] == [False, False, True]
    assert "reverse (same right answer)" in text
    assert "0.400" in text
    assert "0.50, 0.70" in text
    assert "background:#fff;" in lines[3]  # a blank frame
    raw = view.figure().to_json().replace("\\u003c", "<")
    assert "<b>HAS" not in raw
    assert view.figure().layout.title.text == "0% of what is rejected has the same right answer"


def test_buttons_move_it():
    view = ClipBags(table())
    bar, text = view.widget().children
    back, slider, forth = bar.children
    forth.click()
    forth.click()
    assert (slider.value, text.value) == (1, view.html(1))
    back.click()
    assert text.value == view.html(0)
    assert view._repr_mimebundle_()["text/html"].count('class="clip-bag"') == 2
    assert len(view.frame()) == 4
    with pytest.raises(ValueError, match="no candidates to show"):
        ClipBags(table().head(0))


def test_figures_state_their_finding():
    names = {"HAS against": 0.5, "EARLY against": 0.5, "with": 1.0, "yes_bias": 0.0, "quality": 0.5}
    rows = pd.DataFrame(
        [
            {"arm": arm, "seed": seed, "round": t, "paired": 0.2 + 0.4 * t, "chosen_logp": -0.1 * t, **names}
            for arm in ("pami", "sft")
            for seed in (0, 1)
            for t in (0, 1)
        ]
    )
    drawn = accuracy_figure(TOLD, rows).figure()
    assert drawn.layout.title.text == "PaMi-VDPO answers 60% of question pairs right, from 20%"
    assert likelihood(TOLD, rows).loc["PaMi-VDPO", "after"] == pytest.approx(-0.1)
