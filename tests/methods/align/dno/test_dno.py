"""DNO: pairs and their rules, replay, noise, bad input, resume, real text, and what sabotage does to the verdicts."""

import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from workbench import methods
from workbench.methods.align import self_play
from workbench.methods.align.dno import method as dno
from workbench.methods.align.dno.candidates import Candidate
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.training import reference
from workbench.training.reward_model import RewardModel

QUICK = {"rounds": 2, "epochs": 1, "prompt_repeats": 1, "max_pairs": 144, "world": {"start_steps": 60}}


def config(**changes):
    return dno.Config.at("tiny", **{**QUICK, **changes})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A runs folder that all tests of this file share, so that the start is made once."""
    folder = tmp_path_factory.mktemp("dno")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(folder / "runs"))
        yield folder


@pytest.fixture(scope="module")
def played(root):
    settings = config(arms=["dno", "noisy"])
    task = dno.open_task(settings)
    run = Run(root / "seed-3")
    return task, settings, run, dno.run(task, settings, 3, run)


def play(played, root, name, arm, **changes):
    task, settings, _, _ = played
    run = Run(root / name)
    return run, dno.play(task, replace(settings, **changes), dno.ARMS[arm] if isinstance(arm, str) else arm, 3, run)


# ------------------------------------------------------------------------------------------------------- what it does
def test_pairs_obey_the_margin_rule_with_points_from_exact_win_rates(played):
    task, _, run, _ = played
    part = run.folder / "dno"
    pairs = pd.read_parquet(part / "round-1" / "pairs.parquet")
    table = self_play.stored_table(Run(part), 0)
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


def test_later_rounds_replay_at_most_thirty_percent(played, root):
    _, settings, run, _ = played
    part = Run(run.folder / "noisy")
    new = pd.read_parquet(part.folder / "round-2" / "pairs.parquet")
    mixed = self_play.with_replay(new, part, 1, seed=3, share=settings.replay)
    assert len(mixed) == len(new) + int(0.3 * len(new) / 0.7)
    assert (mixed.iteration == 0).mean() <= 0.3
    assert self_play.with_replay(new, part, 0, seed=3, share=0.3) is not new
    assert len(self_play.with_replay(new, part, 0, seed=3, share=0.3)) == len(new)


def test_replay_halves_further_back(tmp_path):
    run = Run(tmp_path)
    for t in range(3):
        run.child(f"round-{t + 1}").table("pairs", lambda t=t: pd.DataFrame({"iteration": [t] * 1_000}))
    mixed = self_play.with_replay(pd.DataFrame({"iteration": [3] * 1_000}), run, 3, seed=0, share=0.3)
    shares = mixed.iteration.value_counts(normalize=True)
    np.testing.assert_allclose(shares[[2, 1, 0]], [0.3, 0.15, 0.075], atol=0.002)


def test_every_round_starts_at_log_two(played):
    """The reference of round t is the policy at its start, for replayed pairs too."""
    for t in (1, 2):
        assert Run(played[2].folder / "noisy" / f"round-{t}").metrics()[0]["loss"] == pytest.approx(np.log(2), abs=1e-4)


def test_numbers_are_there(played):
    start, *after = played[3]["arms"]["dno"]
    assert {"win_against_gold", "exploitability", "average_exploitability", "leak", "quality"} <= set(start)
    for numbers in after:
        assert {"win_against_last", "kl_to_last", "student_over_teacher", "pairs T>S", "pairs S>T", "pairs S>S"} <= set(
            numbers
        )
    assert after[0]["win_against_last"] > 0.5
    assert (played[2].folder / "dno" / "round-2" / "weights.safetensors").is_file()


def test_a_second_call_computes_nothing(played, monkeypatch):
    task, settings, run, result = played
    monkeypatch.setattr(dno, "play", lambda *a: pytest.fail("played again"))
    assert dno.run(task, settings, 3, run) == result


def test_killed_in_round_two_goes_on_with_the_same_numbers(played, monkeypatch):
    task, settings, run, result = played
    broken, real, calls = Run(run.folder.parent / "killed"), self_play.with_replay, []

    def dies(*a, **k):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*a, **k)

    monkeypatch.setattr(self_play, "with_replay", dies)
    with pytest.raises(KeyboardInterrupt):
        dno.run(task, settings, 3, broken)
    assert dno.run(task, settings, 3, broken) == result


def test_offline_trains_on_the_pairs_of_round_one_only(played, root):
    run, after = play(played, root, "offline", "offline")
    tables = [pd.read_parquet(run.folder / f"round-{t}" / "pairs.parquet") for t in (1, 2)]
    assert tables[0].chosen.tolist() == tables[1].chosen.tolist()
    assert not (run.folder / "round-2" / "samples.parquet").exists()
    assert len(Run(run.folder / "round-2").metrics()) == len(Run(run.folder / "round-1").metrics())
    gaps = [numbers["winner_moved"] - numbers["loser_moved"] for numbers in after[1:]]
    assert 0 < gaps[1] < gaps[0]  # the second round finds less that is new


@pytest.mark.parametrize("arm", ["spin", "sft", "soft_scaled", "sppo"])
def test_every_arm_runs_a_round(played, root, arm):
    run, after = play(played, root, arm, arm, rounds=1)
    kinds = set(pd.read_parquet(run.folder / "round-1" / "pairs.parquet").kind)
    assert kinds == (
        {"T>S"} if arm == "spin" else {"S>S"} if arm.startswith("s") and arm != "sft" else {"T>S", "S>T", "S>S"}
    )
    assert np.isfinite(after[1]["win_against_gold"])


def test_scaling_rewards_and_eta_together_keeps_the_target(played):
    for arm in ("soft", "soft_scaled"):
        _, options = dno.objective_of(dno.ARMS[arm], played[1])
        assert options["reward_scale"] / options["eta"] == pytest.approx(1 / played[1].soft_eta)


@pytest.mark.slow
def test_margins_leave_fewer_wrong_pairs_of_noisy_judgements(played, root):
    """The first step of C3, on the same samples."""
    accuracy = {}
    for arm in ("noisy", "noisy_all"):
        run, _ = play(played, root, f"signs-{arm}", arm, rounds=1, prompt_repeats=4)
        accuracy[arm] = read_json(run.folder / "round-1" / "counts.json")["sign_accuracy"]
    assert accuracy["noisy_all"] < accuracy["noisy"] < 1


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
    assert dno.pairs_of(MEMBERS, RATES, POINTS, config(), dno.ARMS[arm]) == expected


def test_sabotage_teacher_always_chosen_has_no_student_over_teacher():
    """Gold treated as always chosen: the pair counts fall to SPIN's, and the share of C5 to 0."""
    wrong = [pair for pair in dno.pairs_of(MEMBERS, RATES, POINTS, config(), dno.ARMS["spin"]) if pair[2] == "S>T"]
    right = [pair for pair in dno.pairs_of(MEMBERS, RATES, POINTS, config(), dno.ARMS["dno"]) if pair[2] == "S>T"]
    assert (len(wrong), len(right)) == (0, 1)


def test_sabotage_one_margin_for_all_changes_the_counts():
    same = config(student_gap=2)
    members, points = MEMBERS[:3], [6.0, 5.0, 4.0]
    assert len(dno.pairs_of(members, RATES[:3], points, config(), dno.ARMS["dno"])) == 2
    assert len(dno.pairs_of(members, RATES[:3], points, same, dno.ARMS["dno"])) == 1


def test_sabotage_a_stale_reference_is_stopped(played, root, monkeypatch):
    task = played[0]
    first = task.start(3)
    monkeypatch.setattr(dno, "pair_rows", lambda _, ids, groups: reference.pair_rows(first, ids, groups))
    with pytest.raises(RuntimeError, match=r"step-0 check: the loss should be 0.693147"):
        play(played, root, "stale", "noisy")


@pytest.mark.slow
def test_sabotage_hard_labels_under_the_name_of_soft(played, root, monkeypatch):
    """Targets of 1 push the log-ratios on where the soft ones stay near their win rates."""
    _, soft = play(played, root, "soft-own", "soft", rounds=1, epochs=20)
    real = dno.objective_of
    monkeypatch.setattr(dno, "objective_of", lambda arm, c: (real(arm, c)[0], {**real(arm, c)[1], "reward_scale": 1e3}))
    _, hard = play(played, root, "soft-hard", "soft", rounds=1, epochs=20)
    gap = {name: run[1]["winner_moved"] - run[1]["loser_moved"] for name, run in (("soft", soft), ("hard", hard))}
    assert gap["hard"] > 2 * gap["soft"]


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta = 0.0: Input should be greater than 0"),
        ({"soft_eta": -1.0}, "soft_eta = -1.0: Input should be greater than 0"),
        ({"replay": 0.5}, "replay = 0.5: Input should be less than 0.5"),
        ({"arms": ["dpo"]}, r"unknown arms \['dpo'\]; known: dno, restrictive"),
        ({"alpha": 0.005}, "alpha = 0.005: Unexpected keyword argument"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_missing_teacher_skips_its_pairs(played, root):
    run, after = play(played, root, "no-teacher", "dno", rounds=1, with_teacher=False)
    assert set(pd.read_parquet(run.folder / "round-1" / "pairs.parquet").kind) == {"S>S"}
    assert after[1]["prompts without a teacher"] == 144


def test_a_judge_that_likes_nothing_is_warned_of_and_leaves_no_pair(played, root, caplog):
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(ValueError, match=r"round 0: no pair is left of 144 prompts .*; lower floor or gap"),
    ):
        play(played, root, "strict", "dno", floor=7)
    assert "no candidate of 100 % of the prompts reaches 7 points: judge too strict or model too weak" in caplog.text


def test_a_later_round_without_pairs_leaves_the_policy_as_it_is(played, root, monkeypatch, caplog):
    real = dno.build_pairs

    def none_later(task, policy, config, arm, seed, t, run):
        return real(task, policy, replace(config, floor=7) if t else config, arm, seed, t, run)

    monkeypatch.setattr(dno, "build_pairs", none_later)
    with caplog.at_level(logging.INFO):
        _, after = play(played, root, "later", "restrictive")
    assert "round 1 has nothing to train on" in caplog.text
    assert after[2]["quality"] == after[1]["quality"]
    assert after[2]["win_against_last"] == pytest.approx(0.5)


def test_stuck_and_empty_samples_are_never_chosen(played, root, monkeypatch):
    task, settings, _, _ = played
    rows = pd.DataFrame(
        {
            "prompt": ["p0 p0"] * 2,
            "responses": [["", "s0 s1 s2", "s0 s1 s3"], ["a a a a a a a a a a", "s0 s1 s2", "s0 s0 s0"]],
            "responses_ids": [[[3], [4], [5]]] * 2,
        }
    )
    monkeypatch.setattr(dno, "draw_samples", lambda *a, **k: rows)
    monkeypatch.setattr(dno, "prompts_of_round", lambda *a, **k: ["p0 p0"] * 2)
    run = Run(root / "stuck")
    run.child("round-0").table("policy", lambda: pd.DataFrame(task.nash.astype(np.float32)).rename(columns=str))
    pairs = dno.build_pairs(
        task, task.start(3), replace(settings, floor=0, student_gap=0.01, gap=0.01), dno.ARMS["dno"], 0, 0, run
    )
    assert not pairs.chosen.isin(["", "a a a a a a a a a a"]).any()
    assert pairs.rejected.isin(["", "a a a a a a a a a a"]).any()
    assert read_json(run.folder / "round-1" / "counts.json")["samples degenerate"] == 2


def test_model_dataset_and_judge_come_together():
    with pytest.raises(ValueError, match="give all three for real text"):
        dno.open_task(dno.Config.at("tiny"), dataset="x.jsonl", model="m")


# ---------------------------------------------------------------------------------------------------------- verdicts
class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""
    config = config()


def told(**changes):
    """Made-up results of five seeds over four rounds: wins against gold (last), against the last round, S>T share,
    signs."""
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
            built = (
                {
                    "student_over_teacher": shares[t - 1] + noise,
                    "sign_accuracy": signs + noise,
                    "sign_accuracy_kept": signs + rng.normal(0, 0.004),
                }
                if t
                else {}
            )
            yield {
                "win_against_gold": gold + noise,
                "win_against_last": last + noise if t else 0.5,
                "kl_to_last": 0.1 if t else 0.0,
                "average_exploitability": 0.2,
                **built,
            }

    return [
        {"arms": {arm: list(evaluations(*values)) for arm, values in {**arms, **changes}.items()}} for _ in Told.seeds
    ]


def test_verdicts_of_a_method_that_works():
    found = dno.claims(Told(), told()).verdicts()
    assert {id for id, verdict in found.items() if verdict == "shown in small"} == {
        "C1",
        "C2",
        "C3",
        "C4",
        "C4 sampled",
        "C5",
        "C5 sampled",
        "C6",
        "C10",
    }
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C7", "C8", "C9"}


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
    assert dno.claims(Told(), told(**broken)).verdicts()[lost] == "not shown"


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def on_text(tmp_path_factory):
    """Model and reward model of the same small text, in the hub's format."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("text")
    tokenizer = bpe_tokenizer(["How many apples are left? Give three tips for a good day."] * 3, vocab_size=300)
    Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=160, seed=0), tokenizer).save(folder / "model")
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=160,
        pad_token_id=tokenizer.pad_token_id,
    )
    shape.num_labels = 1
    judge = LlamaForSequenceClassification(shape)
    judge.score.weight.data *= 200  # a judge with opinions
    RewardModel(judge, tokenizer).save(folder / "judge")
    return folder


def test_real_answers_as_the_teacher_and_a_reward_model_as_judge(shared, on_text, root):
    overrides = {
        "rounds": 2,
        "n_prompts": 6,
        "samples": 3,
        "batch_size": 3,
        "max_new_tokens": 6,
        "max_length": 120,
        "max_prompt_length": 100,
        "test_size": 6,
        "judge": str(on_text / "judge"),
        "judge_kind": "reward",
        "arms": ["dno", "shuffled"],
        "learning_rate": 1e-3,
    }
    experiment = methods.Experiment(
        "dno",
        scale="smoke",
        model=str(on_text / "model"),
        dataset=str(shared / "data/gsm8k/train.jsonl"),
        seeds=[0],
        overrides=overrides,
        output=str(root / "text"),
    )
    results = experiment.results()
    start, *after = results[0]["arms"]["dno"]
    assert start["quality"] == pytest.approx(0.5)
    assert after[0]["prompts without a teacher"] == 0
    assert after[0]["n_pairs"] > 0
    assert len(experiment.run.child("seed-0").child("dno").child("round-1").metrics()) >= 1
    assert set(dno.claims(experiment, results).verdicts().values()) == {"needs full scale", "smoke run, no verdict"}
