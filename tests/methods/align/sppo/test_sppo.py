"""SPPO: a round on the enumerable world, bad input, resume, real text, and what sabotage does to the verdicts."""

import json
import logging
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from small import Told, play, save_judge, save_policy

from workbench import methods
from workbench.feedback import samples
from workbench.methods.align.sppo import method as sppo
from workbench.methods.align.sppo.experiment import ARMS, claims
from workbench.methods.experiment import Results, run_seed
from workbench.runs.run import Run
from workbench.training import reference, steps
from workbench.worlds.cyclic_judge import CyclicJudge

QUICK = {"rounds": 2, "epochs": 2, "prompt_repeats": 1, "world": {"start_steps": 60}}


def config(**changes):
    return sppo.Config.at("tiny", **{**QUICK, **changes})


@pytest.fixture(scope="module")
def played(root):
    return play(sppo, config(arms=["sppo"]), 3, root)


# ------------------------------------------------------------------------------------------------------- what it does
def test_pairs_hold_the_win_rates_of_their_samples(played):
    """Winner and loser are the best and the worst of five, by win rates that count the self-comparison."""
    task, _, run, _ = played
    part = run.folder / "sppo" / "round-1"
    drawn, pairs = pd.read_parquet(part / "samples.parquet"), pd.read_parquet(part / "pairs.parquet")
    for row in pairs[:30].itertuples():
        (texts,) = [list(r.responses) for r in drawn.itertuples() if r.prompt == row.prompt]
        rates = {a: np.mean([task.prefer([row.prompt], [a], [b])[0] for b in texts]) for a in texts}
        assert row.prob_win == pytest.approx(max(rates.values())) == pytest.approx(rates[row.chosen])
        assert row.prob_lose == pytest.approx(min(rates.values())) == pytest.approx(rates[row.rejected])
        assert row.prob_pair == pytest.approx(task.prefer([row.prompt], [row.chosen], [row.rejected])[0])
    assert (pairs.chosen != pairs.rejected).all()


def test_every_round_starts_at_the_exact_loss(played):
    """eta^2/2 [(p_w - 1/2)^2 + (p_l - 1/2)^2] before any update, in every round: each has its own reference."""
    _, settings, run, _ = played
    for t in (1, 2):
        part = Run(run.folder / "sppo" / f"round-{t}")
        pairs = pd.read_parquet(part.folder / "pairs.parquet")
        exact = settings.eta**2 / 2 * ((pairs.prob_win - 0.5) ** 2 + (pairs.prob_lose - 0.5) ** 2)
        order = np.random.default_rng([3 * 1000 + t - 1, 0]).permutation(len(pairs))[: settings.batch_size]
        assert part.metrics()[0]["loss"] == pytest.approx(exact.iloc[order].mean(), rel=1e-4)


def test_winners_rise_losers_fall_and_the_numbers_are_there(played):
    start, *rounds = played[3]["arms"]["sppo"]
    assert start["win_against_start"] == pytest.approx(0.5)
    for numbers in rounds:
        assert numbers["winner_moved"] > 0 > numbers["loser_moved"]
        assert numbers["win_against_last"] > 0.5
        assert {"exploitability", "average_exploitability", "leak", "quality", "outside_win_against_start"} <= set(
            numbers
        )
    assert rounds[0]["average_exploitability"] == pytest.approx(rounds[0]["exploitability"])  # one policy so far


def test_averages_are_those_of_the_rounds_without_the_start(played):
    task, _, run, result = played
    tables = [pd.read_parquet(run.folder / "sppo" / f"round-{t}" / "policy.parquet").to_numpy(float) for t in (1, 2)]
    assert result["arms"]["sppo"][2]["average_exploitability"] == pytest.approx(
        task.measure(np.mean(tables, axis=0))["exploitability"]
    )


def test_last_weights_are_where_the_contract_says(played):
    assert (played[2].folder / "sppo" / "round-2" / "weights.safetensors").is_file()


def test_killed_in_round_two_goes_on_with_the_same_numbers(played, monkeypatch):
    task, settings, run, result = played
    broken, real = Run(run.folder.parent / "killed"), sppo.judged_pairs
    calls = []

    def dies(task, policy, config, arm, seed, t, part):
        calls.append(t)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(task, policy, config, arm, seed, t, part)

    monkeypatch.setattr(sppo, "judged_pairs", dies)
    with pytest.raises(KeyboardInterrupt):
        run_seed(sppo, task, settings, 3, broken)
    assert run_seed(sppo, task, settings, 3, broken) == result
    assert calls == [0, 1, 1]


@pytest.mark.slow
def test_arms_see_the_same_first_samples(played, root):
    task, settings, run, _ = played
    other = Run(root / "other")
    one = replace(settings, rounds=1, epochs=1)
    sppo.train_arm(task, one, ARMS["dpo_1"], 3, other)
    mine, theirs = (pd.read_parquet(f / "round-1" / "samples.parquet") for f in (run.folder / "sppo", other.folder))
    assert mine.responses.map(list).tolist() == theirs.responses.map(list).tolist()
    two = Run(root / "two")
    sppo.train_arm(task, one, ARMS["k2"], 3, two)
    assert [list(r) for r in pd.read_parquet(two.folder / "round-1" / "samples.parquet").responses] == [
        list(r[:2]) for r in mine.responses
    ]


@pytest.mark.parametrize("arm", ["hard", "dno", "ipo_1"])
def test_every_loss_passes_the_step_zero_check(played, root, arm):
    task, settings, _, _ = played
    _, after = sppo.train_arm(task, replace(settings, rounds=1, epochs=1), ARMS[arm], 3, Run(root / arm))
    assert np.isfinite(list(after.values())).all()


def test_disjoint_parts_are_used_where_there_are_enough_prompts(played, root):
    task, settings, _, _ = played
    run = Run(root / "parts")
    sppo.train_arm(task, replace(settings, prompt_repeats=0, n_prompts=0, epochs=1), ARMS["sppo"], 3, run)
    first, second = ({*pd.read_parquet(run.folder / f"round-{t}" / "samples.parquet").prompt} for t in (1, 2))
    assert len(first) == len(second) == 72
    assert first.isdisjoint(second)


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"eta": 0.0}, "eta = 0.0: Input should be greater than 0"),
        ({"samples": 1}, "samples = 1: Input should be greater than or equal to 2"),
        ({"select_by": "score"}, "select_by = 'score'"),
        ({"beta": 0.001}, "beta = 0.001: Unexpected keyword argument"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_missing_probabilities_name_the_columns_and_the_way_out():
    plain = pd.DataFrame([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    said = r"needs the columns prob_win, prob_lose, prob_pair; .* missing.* take the loss sppo_hard"
    with pytest.raises(ValueError, match=said):
        sppo.targets_of(plain, ARMS["sppo"])
    assert sppo.targets_of(plain, ARMS["hard"]) == [{}]
    with pytest.raises(ValueError, match=r"row 0, column 'prob_lose': a probability in .0, 1. is needed; got 1.4"):
        sppo.targets_of(plain.assign(prob_win=0.7, prob_lose=1.4, prob_pair=0.9), ARMS["sppo"])


def test_large_eta_on_a_small_model_is_warned_of(played, caplog):
    task, settings, _, _ = played
    with caplog.at_level(logging.WARNING):
        sppo.warn_of_large_eta(task.start(3), replace(settings, eta=1000.0), ARMS["sppo"])
    assert "the first loss will be about 6.25e+04" in caplog.text


def test_overlapping_parts_are_refused_or_warned_of(caplog):
    class Overlapping:
        def prompts(self, split, seed, part=0, parts=1):
            return ["a", "b", f"own {part}"]

    with pytest.raises(ValueError, match=r"the prompt parts of 3 rounds overlap in 4 prompts; .* prompt_repeats=1"):
        samples.prompts_of_round(Overlapping(), 0, 1, rounds=3, n_prompts=0, prompt_repeats=0)
    with caplog.at_level(logging.WARNING):
        found = samples.prompts_of_round(Overlapping(), 0, 1, rounds=3, n_prompts=0, prompt_repeats=0, may_overlap=True)
    assert found == ["a", "b", "own 1"]
    assert "overlap in 4 prompts" in caplog.text


def test_too_few_prompts_for_the_rounds():
    task = CyclicJudge()
    with pytest.raises(ValueError, match="round 149 has no prompts: 144 prompts in 150 parts; lower rounds"):
        samples.prompts_of_round(task, 0, 149, rounds=150, n_prompts=0, prompt_repeats=0)


class Fixed:
    """A judge that says what it is told."""

    def __init__(self, p):
        self.p = p

    def prefer(self, prompts, a, b):
        return np.full(len(prompts), self.p)


def test_bad_answers_of_a_judge_name_the_row():
    with pytest.raises(ValueError, match=r"row 0: the judge gave 1.3 for responses 0 and 1"):
        samples.preference_matrices(Fixed(1.3), ["x"], [["a", "b"]])
    with pytest.raises(ValueError, match=r"every prompt needs the same number of responses; got \[2, 3\]"):
        samples.preference_matrices(Fixed(0.5), ["x", "y"], [["a", "b"], ["a", "b", "c"]])
    with pytest.raises(ValueError, match="need at least 2 responses a prompt to compare; got 1"):
        samples.preference_matrices(Fixed(0.5), ["x"], [["a"]])


def test_unreadable_prompts_are_dropped_and_counted(caplog):
    matrices = samples.preference_matrices(Fixed(np.nan), ["x"], [["a", "b"]])
    with caplog.at_level(logging.WARNING):
        assert samples.readable(matrices).tolist() == [False]
    assert "1 of 1 prompts dropped" in caplog.text


def test_identical_samples_leave_no_pair(played, root, monkeypatch):
    task, settings, _, _ = played
    same = pd.DataFrame({"prompt": ["p0 p0"], "responses": [["", " "]], "responses_ids": [[[3], [3]]]})
    monkeypatch.setattr(sppo, "draw_samples", lambda *a, **k: same)
    monkeypatch.setattr(sppo, "prompts_of_round", lambda *a, **k: ["p0 p0"])
    said = r"round 0: no pair is left of 1 prompts .*'identical': 1.* raise temperature or samples"
    with pytest.raises(ValueError, match=said):
        sppo.judged_pairs(task, None, settings, ARMS["sppo"], 0, 0, Run(root / "same"))
    counts = json.loads((root / "same" / "counts.json").read_text())
    assert counts["identical"] == 1
    assert counts["empty responses (kept)"] == 2


def test_model_dataset_and_judge_come_together():
    with pytest.raises(ValueError, match="give all of them"):
        sppo.open_task(sppo.Config.at("tiny"), dataset="x.jsonl", model="m")


# ---------------------------------------------------------------------------------------------------------- verdicts
def told(**changes):
    """Five made-up seeds: averaged exploitability over three rounds, winner and loser movement, for each arm."""
    rng = np.random.default_rng(1)
    arms = {"sppo": ([0.3, 0.28, 0.2, 0.1], 0.4, -0.6), "shuffled": ([0.3, 0.3, 0.295, 0.29], 0.0, -0.02)}
    arms |= {"swapped": ([0.3, 0.3, 0.31, 0.3], -0.5, 0.3), "dpo_0.3": ([0.3, 0.25, 0.2, 0.18], -0.8, -5.0)}
    arms |= {"dpo_1": ([0.3, 0.25, 0.2, 0.17], -0.2, -3.0), "ipo_0.25": ([0.3, 0.25, 0.2, 0.16], 0.4, -1.2)}
    arms |= {"ipo_1": ([0.3, 0.29, 0.28, 0.27], 0.2, -0.2), "k2": ([0.3, 0.29, 0.2, 0.105], 0.2, -0.3)}

    def rounds(curve, up, down):
        for t, value in enumerate(curve):
            noise = rng.normal(0, 0.003)
            moved = {"winner_moved": up + noise, "loser_moved": down + noise} if t else {}
            yield {
                "average_exploitability": value + noise,
                "exploitability": value,
                "average_win_against_start": 0.6,
                **moved,
            }

    return [{"arms": {arm: list(rounds(*numbers)) for arm, numbers in {**arms, **changes}.items()}} for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    found = claims(Told(), Results(told())).verdicts()
    assert {id for id, verdict in found.items() if verdict == "shown in small"} == {"C1", "C2", "C4", "C4 dpo", "C6"}
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C3", "C5", "C7", "C8", "C9"}


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"sppo": ([0.3, 0.2, 0.22, 0.25], 0.4, -0.6)}, "C1"),  # a reference that stays the start: it rebounds
        ({"shuffled": ([0.3, 0.28, 0.2, 0.05], 0.0, -0.02)}, "C1"),  # the labels do not matter
        ({"sppo": ([0.3, 0.28, 0.25, 0.2], 0.4, -0.6)}, "C2"),
        ({"sppo": ([0.3, 0.28, 0.2, 0.1], 0.4, 0.3)}, "C4"),  # no shift by 1/2: everything rises
        ({"sppo": ([0.3, 0.28, 0.2, 0.1], -0.8, -5.0)}, "C4"),  # DPO's loss under SPPO's name
        ({"sppo": ([0.3, 0.28, 0.2, 0.1], -0.8, -5.0)}, "C4 dpo"),
        ({"k2": ([0.3, 0.29, 0.28, 0.25], 0.2, -0.3)}, "C6"),
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert claims(Told(), Results(told(**broken))).verdicts()[lost] == "not shown"


# ---------------------------------------------------------------------------------------------------------- sabotage
def test_a_stale_reference_is_stopped_by_the_step_zero_check(played, root, monkeypatch):
    task, settings, _, _ = played
    first = task.start(3)
    monkeypatch.setattr(sppo, "pair_rows", lambda _, ids, groups: reference.pair_rows(first, ids, groups))
    with pytest.raises(RuntimeError, match="step-0 check: the loss should be"):
        sppo.train_arm(task, settings, ARMS["sppo"], 3, Run(root / "stale"))


def test_without_the_shift_by_one_half_everything_rises(played, root, monkeypatch):
    task, settings, _, _ = played
    real = sppo.targets_of

    def unshifted(pairs, arm):
        return [{name: value + 0.5 for name, value in row.items()} for row in real(pairs, arm)]

    monkeypatch.setattr(sppo, "targets_of", unshifted)
    _, after = sppo.train_arm(task, replace(settings, rounds=1, epochs=8), ARMS["sppo"], 3, Run(root / "unshifted"))
    assert after["winner_moved"] > 0
    assert after["loser_moved"] > -0.1  # where the right method has it well below: they move together


def test_averaged_log_probs_are_seen_in_the_first_losses(played, root, monkeypatch):
    """Divided by the length, the same step closes a part of the gap only: the loss of the second step is another."""
    task, settings, run, _ = played
    monkeypatch.setattr(sppo, "preference_step", lambda *a, **o: steps.preference_step(*a, average=True, **o))
    once = replace(settings, rounds=1)
    sppo.train_arm(task, once, ARMS["sppo"], 3, Run(root / "averaged"))
    right, averaged = (Run(folder / "round-1").metrics() for folder in (run.folder / "sppo", root / "averaged"))
    assert averaged[0]["loss"] == pytest.approx(right[0]["loss"], rel=1e-4)  # both references are the policy itself
    assert averaged[-1]["loss"] > 1.02 * right[-1]["loss"]


def test_the_complement_is_another_target(played):
    pairs = pd.read_parquet(played[2].folder / "sppo" / "round-1" / "pairs.parquet")
    own = pd.DataFrame(sppo.targets_of(pairs, ARMS["sppo"]))
    wrong = pd.DataFrame(sppo.targets_of(pairs, ARMS["complement"]))
    assert (own.chosen_probs_lose - wrong.chosen_probs_lose).abs().mean() > 0.03


@pytest.mark.slow
@pytest.mark.exhaustive
def test_dpo_under_the_name_of_sppo_loses_c4_and_sppo_shows_it(root):
    """Three seeds, one round. C4 with the right loss and with a loss on the gap alone."""
    verdicts = {}
    for name, arm in (("right", ARMS["sppo"]), ("dpo", ARMS["dpo_0.3"])):
        overrides = {**QUICK, "rounds": 1, "epochs": 6, "arms": ["sppo", "shuffled", "swapped"]}
        experiment = methods.Experiment(
            "sppo", scale="tiny", seeds=[0, 1, 2], overrides=overrides, output=str(root / f"as-{name}")
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ARMS, "sppo", arm)
            verdicts[name] = experiment.claims(experiment.results(workers=1)).verdicts()["C4"]
    assert verdicts == {"right": "shown in small", "dpo": "not shown"}


@pytest.mark.slow
def test_a_reference_that_stays_the_start_keeps_growing(played, root):
    """The log-ratios to the start go on growing where those to the round's own start stay near their targets."""
    task, settings, _, _ = played
    three = replace(settings, rounds=3, epochs=4)
    own = sppo.train_arm(task, three, ARMS["sppo"], 3, Run(root / "three"))
    first = sppo.train_arm(task, three, ARMS["first_reference"], 3, Run(root / "three-first"))
    assert first[3]["winner_moved"] > first[1]["winner_moved"]
    assert own[3]["winner_moved"] < own[1]["winner_moved"]
    assert first[3]["quality"] < own[3]["quality"]  # it cannot move on: its targets are relative to the start


# --------------------------------------------------------------------------------------------------------- real text
@pytest.fixture(scope="module")
def on_text(tmp_path_factory):
    """Model and reward model of the same small text, in the hub's format."""
    folder = tmp_path_factory.mktemp("text")
    save_policy(folder / "model", max_length=800)
    save_judge(folder / "judge", max_length=800)
    return folder


@pytest.mark.parametrize(
    ("file", "select_by"),
    [
        ("gsm8k/train.jsonl", "logit"),
        pytest.param("alpaca_eval/pairs.jsonl.gz", "win_rate", marks=pytest.mark.exhaustive),
    ],
)
def test_real_prompts_with_a_reward_model_as_judge(shared, on_text, root, file, select_by):
    overrides = {"rounds": 2, "n_prompts": 6, "samples": 3, "batch_size": 3, "max_new_tokens": 6, "max_length": 120}
    overrides |= {"max_prompt_length": 100, "test_size": 6, "judge": str(on_text / "judge")}
    overrides |= {"arms": ["sppo", "shuffled"], "select_by": select_by, "learning_rate": 1e-3}
    given = {"model": str(on_text / "model"), "dataset": str(shared / "data" / file), "overrides": overrides}
    experiment = methods.Experiment("sppo", scale="smoke", seeds=[0], output=str(root / file.split("/")[0]), **given)
    results = experiment.results(workers=1)
    start, *rounds = results[0]["arms"]["sppo"]
    assert start["quality"] == pytest.approx(0.5)
    assert all({"quality", "mean_length", "winner_moved", "n_pairs"} <= set(numbers) for numbers in rounds)
    assert len(experiment.run.child("seed-0").child("sppo").child("round-2").metrics()) >= 1
    verdicts = claims(experiment, results).verdicts()
    assert verdicts.pop("H1") == "smoke run, no verdict"
    assert set(verdicts.values()) == {"needs full scale"}


def test_a_chat_judge_on_text_counts_what_it_cannot_read(on_text, tmp_path):
    """A random model says nothing readable: every prompt is dropped, and the error says so."""
    rows = [json.dumps({"prompt": f"How many apples {i}?"}) for i in range(12)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    asked = {"judge": str(on_text / "model"), "judge_kind": "chat", "n_prompts": 4, "samples": 2, "max_new_tokens": 4}
    settings = sppo.Config.at("smoke", True, test_size=4, **asked)
    task = sppo.open_task(settings, model=str(on_text / "model"), dataset=str(tmp_path / "prompts.jsonl"), device="cpu")
    assert np.isnan(task.prefer(["a"], ["b"], ["c"])).all()
    with pytest.raises(ValueError, match="no pair is left of"):
        sppo.judged_pairs(task, task.start(0), settings, ARMS["sppo"], 0, 0, Run(tmp_path / "run"))
