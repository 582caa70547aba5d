"""DNO: candidates and their points, pairs and their rules, replay, bad input, real text, verdicts, sabotage."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, save_judge, save_policy

from workbench import methods
from workbench.methods.align.dno import method as dno
from workbench.methods.align.dno.candidates import Candidate, gather, judge
from workbench.methods.align.dno.experiment import ARMS, claims
from workbench.methods.align.dno.pairs import with_replay
from workbench.methods.align.dno.view import pair_counts
from workbench.methods.align.self_play import stored_table
from workbench.methods.experiment import Results, run_seed
from workbench.models import Policy, new_llama
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.training import reference
from workbench.worlds.language import word_tokenizer

QUICK = {"rounds": 2, "epochs": 1, "prompt_repeats": 1, "max_pairs": 96, "world": {"start_steps": 60}}


def config(**changes):
    return dno.Config.at("tiny", **{**QUICK, **changes})


@pytest.fixture(scope="module")
def trained(root):
    settings = config(arms=["dno", "noisy"])
    task, run = dno.open_task(settings), Run(root / "seed-3")
    return task, settings, run, run_seed(dno, task, settings, 3, run)


def train(trained, root, name, arm, **changes):
    task, settings, _, _ = trained
    run = Run(root / name)
    return run, dno.train_arm(task, replace(settings, **changes), ARMS[arm], 3, run)


# ------------------------------------------------------------------------------------------------------- what it does
def test_pairs_obey_the_margin_rule_with_points_from_exact_win_rates(trained):
    task, _, run, _ = trained
    part = run.folder / "dno"
    pairs = pd.read_parquet(part / "round-1" / "pairs.parquet")
    table = stored_table(Run(part), 0)
    rates = task.win_rates(table, pairs.prompt.tolist(), pairs.chosen.tolist())
    np.testing.assert_allclose(pairs.rate_chosen, rates)
    np.testing.assert_allclose(pairs.score_chosen, np.clip(np.floor(6 * rates + 1.5), 0, 6))
    assert pairs.score_chosen.min() >= 5
    gaps = pairs.score_chosen - pairs.score_rejected
    assert gaps[pairs.kind == "T>S"].min() >= 2
    assert gaps[pairs.kind != "T>S"].min() >= 1
    assert set(pairs.kind) == {"T>S", "S>T", "S>S"}
    counts = read_json(part / "round-1" / "counts.json")
    assert counts["sign_accuracy"] == 1.0


def test_later_rounds_replay_at_most_thirty_percent(trained, root):
    _, settings, run, _ = trained
    part = Run(run.folder / "noisy")
    new = pd.read_parquet(part.folder / "round-2" / "pairs.parquet")
    mixed = with_replay(new, part, 1, seed=3, share=settings.replay)
    assert len(mixed) == len(new) + int(0.3 * len(new) / 0.7)
    assert (mixed.iteration == 0).mean() <= 0.3
    assert len(with_replay(new, part, 0, seed=3, share=0.3)) == len(new)


def test_replay_halves_further_back(tmp_path):
    run = Run(tmp_path)
    for t in range(3):
        run.child(f"round-{t + 1}").table("pairs", lambda t=t: pd.DataFrame({"iteration": [t] * 1_000}))
    mixed = with_replay(pd.DataFrame({"iteration": [3] * 1_000}), run, 3, seed=0, share=0.3)
    shares = mixed.iteration.value_counts(normalize=True)
    np.testing.assert_allclose(shares[[2, 1, 0]], [0.3, 0.15, 0.075], atol=0.002)


def test_every_round_starts_at_log_two_and_leaves_its_numbers(trained):
    """The reference of round t is the policy at its start, for replayed pairs too."""
    _, _, run, result = trained
    for t in (1, 2):
        assert Run(run.folder / "noisy" / f"round-{t}").metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)
    start, *after = result["arms"]["dno"]
    assert {"win_against_gold", "exploitability", "average_exploitability", "leak", "quality"} <= set(start)
    wanted = {"win_against_last", "kl_to_last", "student_over_teacher", "pairs T>S", "pairs S>T", "pairs S>S"}
    assert all(wanted <= set(numbers) for numbers in after)
    assert after[0]["win_against_last"] > 0.5
    assert (run.folder / "dno" / "round-2" / "weights.safetensors").is_file()


def test_offline_trains_on_the_pairs_of_round_one_only(trained, root):
    run, after = train(trained, root, "offline", "offline")
    tables = [pd.read_parquet(run.folder / f"round-{t}" / "pairs.parquet") for t in (1, 2)]
    assert tables[0].chosen.tolist() == tables[1].chosen.tolist()
    assert not (run.folder / "round-2" / "samples.parquet").exists()
    assert len(Run(run.folder / "round-2").metrics()) == len(Run(run.folder / "round-1").metrics())
    gaps = [numbers["winner_moved"] - numbers["loser_moved"] for numbers in after[1:]]
    assert 0 < gaps[1] < gaps[0]  # the second round finds less that is new


@pytest.mark.parametrize(
    ("arm", "kinds"),
    [("spin", {"T>S"}), ("sft", {"T>S", "S>T", "S>S"}), ("soft_scaled", {"S>S"}), ("sppo", {"S>S"})],
)
def test_every_loss_trains_a_round(trained, root, arm, kinds):
    run, after = train(trained, root, arm, arm, rounds=1)
    assert set(pd.read_parquet(run.folder / "round-1" / "pairs.parquet").kind) == kinds
    assert np.isfinite(after[1]["win_against_gold"])


def gradient_at_the_target(arm, **changes):
    """Of the arm's loss on one pair whose log-ratios are r / eta, as those of pi_t exp(r / eta) are."""
    objective, options = dno.objective_of(ARMS[arm], config())
    rates = torch.tensor([0.8, 0.3], dtype=torch.float64)
    logps, zero = (rates / config().soft_eta).requires_grad_(), torch.zeros(1, dtype=torch.float64)
    targets = {"first_win_rate": rates[:1], "second_win_rate": rates[1:]}
    losses, _ = objective(logps[:1], logps[1:], zero, zero, **targets, **{**options, **changes})
    losses.sum().backward()
    return logps.grad.abs().max()


@pytest.mark.parametrize("arm", ["soft", "soft_scaled"])
def test_soft_dno_rests_at_its_target_and_with_hard_labels_does_not(arm):
    assert gradient_at_the_target(arm) == pytest.approx(0, abs=1e-12)
    assert gradient_at_the_target(arm, reward_scale=1e3) > 0.01


def test_margins_leave_fewer_wrong_pairs_of_noisy_judgements(trained, root):
    """The first step of C3, on the same samples."""
    task, settings, run, _ = trained
    accuracy, start = {}, stored_table(Run(run.folder / "dno"), 0)
    for arm in ("noisy", "noisy_all"):
        signs = Run(root / f"signs-{arm}")
        signs.child("round-0").table("policy", lambda: pd.DataFrame(start).rename(columns=str))
        dno.build_pairs(task, task.start(3), replace(settings, prompt_repeats=4), ARMS[arm], 3, 0, signs)
        accuracy[arm] = read_json(signs.folder / "round-1" / "counts.json")["sign_accuracy"]
    assert accuracy["noisy_all"] < accuracy["noisy"] < 1


def test_pair_counts_are_means_over_seeds():
    rows = [
        {"arm": "dno", "seed": seed, "round": t, "pairs T>S": 30 - 10 * t, "pairs S>T": 10 * t, "pairs S>S": 5 + seed}
        for seed in (0, 1)
        for t in (1, 2)
    ]
    shown = pair_counts(pd.DataFrame(rows))
    assert shown.frame()["pairs S>S"].tolist() == [5.5, 5.5]
    said = "Student over teacher: 33% of the teacher's pairs in round 1, 67% in round 2"
    assert shown.figure().layout.title.text == said


# ------------------------------------------------------------------------------------------------- rules of the arms
MEMBERS = [Candidate("gold", [1], True, False)] + [Candidate(f"s{i}", [i], False, False) for i in range(3)]
RATES, POINTS = [0.6, 0.9, 0.3, 0.3], [5.0, 6.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("dno", [(0, 2, "T>S"), (0, 3, "T>S"), (1, 0, "S>T"), (1, 2, "S>S"), (1, 3, "S>S")]),
        ("restrictive", [(0, 2, "T>S"), (0, 3, "T>S")]),
        ("spin", [(0, 1, "T>S"), (0, 2, "T>S"), (0, 3, "T>S")]),
        ("soft", [(1, 2, "S>S"), (1, 3, "S>S"), (2, 3, "S>S")]),
        ("sppo", [(1, 2, "S>S")]),
        ("noisy_all", [(0, 2, "T>S"), (0, 3, "T>S"), (1, 0, "S>T"), (1, 2, "S>S"), (1, 3, "S>S")]),
    ],
)
def test_rules_by_hand(arm, expected):
    assert dno.pairs_of(MEMBERS, RATES, POINTS, config(), ARMS[arm]) == expected


@pytest.mark.parametrize(("student_gap", "expected"), [(1, [(0, 2, "T>S"), (1, 2, "S>S")]), (2, [(0, 2, "T>S")])])
def test_a_chosen_student_needs_a_smaller_margin(student_gap, expected):
    assert dno.pairs_of(MEMBERS[:3], [], [6.0, 5.0, 4.0], config(student_gap=student_gap), ARMS["dno"]) == expected


# --------------------------------------------------------------------------------------- candidates and their points
@pytest.fixture(scope="module")
def policy():
    tokenizer = word_tokenizer([f"s{i}" for i in range(6)])
    return Policy(new_llama(tokenizer, width=8, layers=1, heads=2, max_length=16, seed=0), tokenizer)


def students(*texts, stuck=()):
    return [Candidate(text, [i], False, i in stuck) for i, text in enumerate(texts)]


class Judge:
    """P(a beats b) from a table of strengths; "garbled" cannot be read."""

    def __init__(self, **p):
        self.p, self.asked = p, 0

    def prefer(self, prompts, a, b):
        self.asked += len(a)
        said = [self.p.get(f"{x}{y}", 1 - self.p.get(f"{y}{x}", 0.5)) for x, y in zip(a, b, strict=True)]
        unread = ["garbled" in both for both in zip(a, b, strict=True)]
        return np.where(unread, np.nan, said)


def test_duplicates_are_one_candidate_and_the_teachers_words_stay_the_teachers(policy):
    found = gather(policy, ["s1 s2", "s1 s2 ", "s3"], [[3, 4], [3, 4], [5]], "s3", max_new_tokens=3)
    assert [(c.text, c.is_teacher) for c in found] == [("s3", True), ("s1 s2", False)]
    assert found[1].ids == [3, 4]


def test_the_teachers_answer_is_cut_to_what_the_student_may_write(policy):
    (teacher,) = gather(policy, [], [], "s0 s1 s2 s3", max_new_tokens=3)
    assert teacher.ids == policy.encode_response("s0 s1 s2 s3")[:3]


def test_win_rates_are_means_over_the_others():
    (judged,) = judge(Judge(ab=1.0, ac=0.5, bc=0.0), ["q"], [students("a", "b", "c")], table=None)
    rates, points = judged
    np.testing.assert_allclose(rates, [0.75, 0.0, 0.75])
    assert points == [6.0, 1.0, 6.0]  # round(6 * 0.75 + 1) = 5.5 -> 6, half up


@pytest.mark.parametrize(("p", "expected"), [(0.5, 4), (0.6, 5), (0.0, 1), (1.0, 6)])
def test_points_by_hand(p, expected):
    """clip(round(6 r + 1), 0, 6)."""
    ((_, points),) = judge(Judge(ab=p), ["q"], [students("a", "b")], table=None)
    assert points[0] == expected


def test_noise_makes_single_draws_with_the_right_mean():
    noise = np.random.default_rng(0)
    judged = judge(Judge(ab=0.8), ["q"] * 2_000, [students("a", "b")] * 2_000, table=None, noise=noise)
    first = np.array([rates[0] for rates, _ in judged])
    assert set(first) == {0.0, 1.0}
    assert first.mean() == pytest.approx(0.8, abs=0.03)


def test_stuck_answers_have_nothing_and_unreadable_prompts_are_none():
    ((rates, points),) = judge(Judge(ab=1.0), ["q"], [students("a", "b", stuck=(0,))], table=None)
    assert (rates[0], points[0]) == (0, 0)
    unread, read = judge(Judge(), ["q", "q"], [students("a", "garbled"), students("a", "b")], table=None)
    assert unread is None
    assert read is not None


def test_points_in_words_come_before_win_rates():
    class Rater(Judge):
        def rate(self, prompts, candidates):
            return [[6, 2, 2], None]

    task = Rater()
    first, second = judge(task, ["q", "q"], [students("a", "b", "c"), students("a", "b")], table=None)
    assert first == ([1.0, 0.25, 0.25], [6.0, 2.0, 2.0])
    assert second is None
    assert task.asked == 0


# --------------------------------------------------------------------------------------------------------- bad input
def test_numbers_outside_0_and_1_are_refused():
    with pytest.raises(ValueError, match=r"prompt 1: win rates in .0, 1. are needed; the judge gave 1.5"):
        judge(Judge(ab=1.5), ["q", "q"], [students("a", "c"), students("a", "b")], table=None)
    with pytest.raises(ValueError, match="win rates in"):
        judge(Judge(ab=-0.1), ["q"], [students("a", "b")], table=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta = 0.0: Input should be greater than 0"),
        ({"soft_eta": -1.0}, "soft_eta = -1.0: Input should be greater than 0"),
        ({"replay": 0.5}, "replay = 0.5: Input should be less than 0.5"),
        ({"alpha": 0.005}, "alpha = 0.005: Unexpected keyword argument"),  # named in the paper, defined nowhere
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_missing_teacher_skips_its_pairs(trained, root):
    run, after = train(trained, root, "no-teacher", "dno", rounds=1, with_teacher=False)
    assert set(pd.read_parquet(run.folder / "round-1" / "pairs.parquet").kind) == {"S>S"}
    assert after[1]["prompts without a teacher"] == 144


def test_a_judge_that_likes_nothing_is_warned_of_and_leaves_no_pair(trained, root, caplog):
    nothing = r"round 0: no pair is left of 144 prompts .*; lower floor or gap"
    with caplog.at_level(logging.WARNING), pytest.raises(ValueError, match=nothing):
        train(trained, root, "strict", "dno", floor=7)
    assert "no candidate of 100 % of the prompts reaches 7 points: judge too strict or model too weak" in caplog.text


def test_a_later_round_without_pairs_leaves_the_policy_as_it_is(trained, root, monkeypatch, caplog):
    real = dno.build_pairs

    def none_later(task, policy, config, arm, seed, t, run):
        return real(task, policy, replace(config, floor=7) if t else config, arm, seed, t, run)

    monkeypatch.setattr(dno, "build_pairs", none_later)
    with caplog.at_level(logging.INFO):
        _, after = train(trained, root, "later", "restrictive")
    assert "round 1 has nothing to train on" in caplog.text
    assert after[2]["quality"] == after[1]["quality"]
    assert after[2]["win_against_last"] == pytest.approx(0.5)


def test_stuck_and_empty_samples_are_never_chosen(trained, root, monkeypatch):
    task, settings, _, _ = trained
    rows = pd.DataFrame(
        {
            "prompt": ["p0 p0"] * 2,
            "responses": [["", "s0 s1 s2", "s0 s1 s3"], ["a a a a a a a a a a", "s0 s1 s2", "s0 s0 s0"]],
            "responses_ids": [[[3], [4], [5]]] * 2,
        }
    )
    monkeypatch.setattr(dno, "draw_samples", lambda *a, **k: rows)
    monkeypatch.setattr(dno, "prompts_of_round", lambda *a, **k: ["p0 p0"] * 2)
    run, easy = Run(root / "stuck"), replace(settings, floor=0, student_gap=0.01, gap=0.01)
    run.child("round-0").table("policy", lambda: pd.DataFrame(task.nash.astype(np.float32)).rename(columns=str))
    pairs = dno.build_pairs(task, task.start(3), easy, ARMS["dno"], 0, 0, run)
    assert not pairs.chosen.isin(["", "a a a a a a a a a a"]).any()
    assert pairs.rejected.isin(["", "a a a a a a a a a a"]).any()
    assert read_json(run.folder / "round-1" / "counts.json")["samples degenerate"] == 2


def test_sabotage_a_stale_reference_is_stopped(trained, root, monkeypatch):
    first = trained[0].start(3)
    monkeypatch.setattr(dno, "pair_rows", lambda _, ids, groups: reference.pair_rows(first, ids, groups))
    with pytest.raises(RuntimeError, match=r"step-0 check: the loss should be 0.693147"):
        train(trained, root, "stale", "noisy")


# ---------------------------------------------------------------------------------------------------------- verdicts
TOLD = Told(config=config())


def told(**changes):
    """Five made-up seeds of four rounds: wins against gold (last), against the last round, S>T share, signs."""
    rng = np.random.default_rng(1)
    arms = {
        "dno": (0.7, 0.55, [0.2, 0.4, 0.6, 0.8], 1.0),
        "restrictive": (0.55, 0.52, [0.0] * 4, 1.0),
        "spin": (0.5, 0.52, [0.0] * 4, 0.6),
        "offline": (0.6, 0.51, [0.2] * 4, 1.0),
        "sft": (0.5, 0.53, [0.2] * 4, 1.0),
        "shuffled": (0.4, 0.5, [0.2, 0.21, 0.19, 0.2], 1.0),
        "noisy": (0.7, 0.54, [0.3, 0.4, 0.6, 0.8], 0.65),
        "noisy_all": (0.6, 0.54, [0.3] * 4, 0.6),
        "noisy_restrictive": (0.55, 0.5, [0.0] * 4, 0.6),
        "noisy_shuffled": (0.4, 0.5, [0.3, 0.31, 0.29, 0.3], 0.65),
        "soft": (0.6, 0.56, [0.0] * 4, 1.0),
    }

    def evaluations(gold, last, shares, signs):
        for t in range(5):
            noise = rng.normal(0, 0.004)
            built = {"student_over_teacher": shares[t - 1] + noise, "sign_accuracy": signs + noise} if t else {}
            built |= {"sign_accuracy_kept": signs + rng.normal(0, 0.004)} if t else {}
            against = {"win_against_gold": gold + noise, "win_against_last": last + noise if t else 0.5}
            yield {**against, "kl_to_last": 0.1 if t else 0.0, "average_exploitability": 0.2, **built}

    return Results(
        {"arms": {arm: list(evaluations(*values)) for arm, values in {**arms, **changes}.items()}} for _ in Told.seeds
    )


def test_verdicts_of_a_method_that_works():
    verdicts = claims(TOLD, told()).verdicts()
    shown = {"C1", "C2", "C3", "C4", "C4 sampled", "C5", "C5 sampled", "C6", "C10"}
    assert {id for id, verdict in verdicts.items() if verdict == "shown in small"} == shown
    assert {id for id, verdict in verdicts.items() if verdict == "needs full scale"} == {"C7", "C8", "C9"}


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"dno": (0.7, 0.5, [0.2, 0.4, 0.6, 0.8], 1.0)}, "C1"),  # fixed reference: the gains vanish
        ({"offline": (0.7, 0.5, [0.2] * 4, 1.0)}, "C2"),
        ({"noisy": (0.7, 0.54, [0.3, 0.4, 0.6, 0.8], 0.6)}, "C3"),  # the margin filters nothing
        ({"dno": (0.5, 0.55, [0.0] * 4, 1.0)}, "C4"),  # teacher always chosen
        ({"dno": (0.5, 0.55, [0.0] * 4, 1.0)}, "C5"),
        ({"sft": (0.62, 0.5, [0.2] * 4, 1.0)}, "C6"),
        ({"soft": (0.6, 0.51, [0.0] * 4, 1.0)}, "C10"),  # a step too small for its divergence
        ({"shuffled": (0.4, 0.55, [0.2] * 4, 1.0)}, "C1"),  # the labels do not matter
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert claims(TOLD, told(**broken)).verdicts()[lost] == "not shown"


# --------------------------------------------------------------------------------------------------------- real text
def test_real_answers_as_the_teacher_and_a_reward_model_as_judge(shared, root):
    judge = save_judge(root / "judge", max_length=160, opinion=200)
    overrides = {"n_prompts": 6, "samples": 3, "batch_size": 3, "test_size": 6, "learning_rate": 1e-3}
    overrides |= {"max_new_tokens": 6, "max_length": 120, "max_prompt_length": 100}
    overrides |= {"judge": judge, "judge_kind": "reward", "arms": ["dno", "shuffled"]}
    real = {"model": save_policy(root / "model", max_length=160), "dataset": str(shared / "data/gsm8k/train.jsonl")}
    experiment = methods.Experiment(
        "dno", scale="smoke", **real, seeds=[0], overrides=overrides, output=str(root / "text")
    )
    results = experiment.results(workers=1)
    start, after = results[0]["arms"]["dno"]
    assert start["quality"] == pytest.approx(0.5)
    assert after["prompts without a teacher"] == 0
    assert after["n_pairs"] > 0
    assert len(experiment.run.child("seed-0").child("dno").child("round-1").metrics()) >= 1
    assert set(claims(experiment, results).verdicts().values()) == {"needs full scale", "smoke run, no verdict"}
