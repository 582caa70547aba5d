"""SPIN: the closed form of Theorem 5.4, faithful data steps, bad input, and what sabotage does to the verdicts."""

import logging
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from small import Told, play

from workbench import objectives
from workbench.feedback import samples
from workbench.methods.align.spin import method as spin
from workbench.methods.align.spin.experiment import ARMS, claims
from workbench.methods.align.spin.view import next_policy
from workbench.methods.experiment import Results
from workbench.runs.run import Run
from workbench.training import reference

SMALL = {"pretrain_steps": 30, "sft_epochs": 1, "data_steps": 20, "test_draws": 60}
QUICK = {"rounds": 2, "epochs": 1, "n_prompts": 64, "test_size": 16, "batch_size": 32, "world": SMALL}


def config(**changes):
    return spin.Config.at("smoke", **{**QUICK, **changes})


# ------------------------------------------------------------------------------------------------------- closed form
@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_exact_minimiser_of_a_round(beta):
    """One topic, 256 responses, free logits: the minimum is p_t (p_data / p_t)^(1/lambda), to 1e-4."""
    rng = np.random.default_rng(3)
    p_policy, p_data = (torch.tensor(rng.dirichlet(np.full(256, 2.0))) for _ in range(2))
    pair_weight = (p_data[:, None] * p_policy[None, :]).flatten()
    free = p_policy.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=3_000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def expected_loss():
        optimizer.zero_grad()
        logps = free.log_softmax(-1)
        chosen, rejected = logps[:, None].expand(256, 256).flatten(), logps[None, :].expand(256, 256).flatten()
        start = p_policy.log()
        losses, _ = objectives.spin(
            chosen,
            rejected,
            start[:, None].expand(256, 256).flatten(),
            start[None, :].expand(256, 256).flatten(),
            beta=beta,
        )
        loss = (pair_weight * losses).sum()
        loss.backward()
        return loss

    optimizer.step(expected_loss)
    expected = next_policy(p_policy.numpy(), p_data.numpy(), beta)
    np.testing.assert_allclose(free.detach().softmax(-1).numpy(), expected, atol=1e-4)


def test_lambda_one_jumps_to_the_data():
    rng = np.random.default_rng(0)
    p_policy, p_data = rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(9))
    np.testing.assert_allclose(next_policy(p_policy, p_data, 1.0), p_data)
    np.testing.assert_allclose(next_policy(p_data, p_data, 0.3), p_data)  # fixed point


# -------------------------------------------------------------------------------------------------------- data steps
@pytest.fixture(scope="module")
def trained(root):
    """One small run of the method, its folder and its seed."""
    return play(spin, config(arms=["spin"]), 3, root)


def rows_of(run, t, name="generated"):
    return pd.read_parquet(run.folder / "spin" / f"round-{t + 1}" / f"{name}.parquet")


def test_every_round_answers_every_training_prompt_anew(trained):
    task, _, run, _ = trained
    human = task.demonstrations("train", 3)
    for t in range(2):
        table = rows_of(run, t)
        assert table.chosen.tolist() == [row["completion"] for row in human]
        assert set(table.iteration) == {t}
        assert set(table.source_rejected) == {f"policy:{t}"}
    assert rows_of(run, 0).rejected.tolist() != rows_of(run, 1).rejected.tolist()


def test_later_rounds_train_on_two_rounds_of_pairs(trained):
    _, _, run, _ = trained
    steps = [len(Run(run.folder / "spin" / f"round-{t + 1}").metrics()) for t in range(2)]
    assert steps == [2, 4]  # 64 pairs, then 128, in batches of 32


def test_loss_starts_at_log_two_in_every_round(trained):
    _, _, run, _ = trained
    for t in range(2):
        first = Run(run.folder / "spin" / f"round-{t + 1}").metrics()[0]
        assert first["loss"] == pytest.approx(np.log(2), abs=1e-5)
        assert first["margins"] == pytest.approx(0, abs=1e-5)


def test_results_tell_quality_and_held_out_pairs(trained):
    *_, result = trained
    start, *rounds = result["arms"]["spin"]
    assert set(start) == {"quality", "defect_rate", "kl_nats"}
    assert all(
        {"reward_accuracy", "held_out_loss", "likelihood_before", "likelihood_after"} <= set(numbers)
        for numbers in rounds
    )


def test_killed_generation_draws_no_shard_twice(trained, tmp_path, monkeypatch):
    task, settings, _, _ = trained
    monkeypatch.setattr(samples, "SHARD", 20)
    drawn, real = [], samples.sample

    def dies(policy, prompts, **options):
        drawn.append(len(prompts))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return real(policy, prompts, **options)

    monkeypatch.setattr(samples, "sample", dies)
    rows, policy = task.demonstrations("train", 3), task.start(3)
    with pytest.raises(KeyboardInterrupt):
        spin.write_answers(policy, rows, settings, 3000, 0, Run(tmp_path), "generated")
    table = spin.write_answers(policy, rows, settings, 3000, 0, Run(tmp_path), "generated")
    assert drawn == [20, 20, 20, 20, 4]  # the third and fourth shard, once more from the third
    assert table.chosen.tolist() == [row["completion"] for row in rows]
    assert table.rejected.nunique() > 20


def test_missing_previous_round_is_an_error(trained, tmp_path):
    task, settings, _, _ = trained
    policy = task.start(3)
    with pytest.raises(
        FileNotFoundError,
        match=r"round 1 trains on the answers of round 0 too, but .* is missing; start over or set keep_previous=False",
    ):
        spin.build_rows(policy, settings, ARMS["spin"], 3, 1, Run(tmp_path))


def test_greedy_or_finished_model_gives_a_warning(trained, caplog):
    task, settings, run, _ = trained
    policy, copy = task.start(3), Run(run.folder.parent / "same")
    table = rows_of(run, 0)
    copy.child("round-1").table("generated", lambda: table.assign(rejected=table.chosen))
    with caplog.at_level(logging.WARNING):
        spin.build_rows(policy, settings, ARMS["spin"], 3, 0, copy)
    assert "100 % of the answers equal the human ones" in caplog.text


# --------------------------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": [0.1, 0.0]}, "beta.1 = 0.0: Input should be greater than 0"),
        ({"learning_rate": []}, "learning_rate = .*at least 1 item"),
        (
            {"loss_type": "correlation"},
            "loss_type = 'correlation': Input should be 'sigmoid', 'hinge' or 'exponential'",
        ),
        ({"temperature": float("nan")}, "temperature = nan"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        spin.Config.at("tiny", **changes)


def test_arms_that_need_the_planted_truth_are_refused_on_real_text():
    with pytest.raises(ValueError, match=r"arms \['fixed_point'.*\] start where only the embedded world can"):
        spin.open_task(spin.Config.at("tiny"), dataset="x.jsonl", model="m")


# ---------------------------------------------------------------------------------------------------------- sabotage
@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_rounds_gain_with_true_labels_alone(shared_starts):
    """Quality after two rounds minus that of the start, in every seed.

    Not the verdict of C1: the gain of one round in two seeds is so near its noise that the rounding of a processor
    decides. The rule of the verdict is tested on given numbers below.
    """
    sizes = {"rounds": 2, "epochs": 2, "n_prompts": 500, "test_size": 8, "world": {"test_draws": 1_000}}
    settings = spin.Config.at("tiny", **sizes)
    task = spin.open_task(settings)
    arms = {"spin": ARMS["spin"], "shuffled": ARMS["shuffled"], "swapped": replace(ARMS["swapped"], rounds=2)}
    gains: dict[str, list] = {name: [] for name in arms}
    for seed in (0, 1):
        for name, arm in arms.items():
            start, *_, end = spin.train_arm(task, settings, arm, seed, Run(shared_starts / f"{name}-{seed}"))
            gains[name].append(end["quality"] - start["quality"])
    assert min(gains["spin"]) > 0.05
    assert max(gains["shuffled"]) < 0.02
    assert max(gains["swapped"]) < -0.02


TOLD = Told(task=SimpleNamespace(test_draws=2_000))


def told(**curves):
    """Made-up results of five seeds: quality after 0, 1, ... rounds for each arm, with a little noise."""
    rng = np.random.default_rng(1)

    def evaluations(values):
        qualities = [v + rng.normal(0, 0.004) for v in values]
        return [{"quality": q, "defect_rate": (1 - q) / 10, "kl_nats": 2 - q} for q in qualities]

    return Results({"arms": {arm: evaluations(values) for arm, values in curves.items()}} for _ in Told.seeds)


ROUNDS = {"spin": [0.3, 0.5, 0.6, 0.65, 0.65], "shuffled": [0.3, 0.29, 0.28, 0.27, 0.26]}
ROUNDS |= {"sft": [0.3, 0.35, 0.4, 0.42, 0.43], "long": [0.3, 0.5, 0.5], "frozen": [0.3, 0.5, 0.5]}


def test_verdicts_of_a_method_that_works():
    found = claims(TOLD, told(**ROUNDS)).verdicts()
    assert {id for id, verdict in found.items() if verdict == "shown in small"} == {"C1", "C2", "C3", "C4"}


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"spin": [0.3, 0.5, 0.5, 0.5, 0.5]}, "C4"),  # reference and opponent never updated: like one long round
        ({"spin": [0.3, 0.28, 0.25, 0.2, 0.2]}, "C1"),  # chosen and rejected swapped
        ({"shuffled": ROUNDS["spin"]}, "C1"),  # the labels do not matter
        ({"sft": ROUNDS["spin"]}, "C3"),
        ({"frozen": ROUNDS["spin"]}, "C4"),  # fresh answers alone do it
        ({"spin": [0.3, 0.35, 0.45, 0.6, 0.8]}, "C2"),  # gains grow
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert claims(TOLD, told(**{**ROUNDS, **broken})).verdicts()[lost] == "not shown"


@pytest.mark.slow
def test_a_stale_reference_is_stopped_by_the_step_zero_check(shared_starts):
    """The bug itself: round 1's reference log-probs are the first policy's, while the method believes otherwise."""
    settings = config(arms=["spin"], learning_rate=[1e-3])
    task = spin.open_task(settings)
    first = task.start(0)
    with pytest.MonkeyPatch.context() as monkeypatch:
        stale = partial(reference.pair_rows, first)
        monkeypatch.setattr(spin, "pair_rows", lambda _, ids, groups, **options: stale(ids, groups, **options))
        with pytest.raises(RuntimeError, match=r"step-0 check: the loss should be 0.693147"):
            spin.train_arm(task, settings, ARMS["spin"], 0, Run(shared_starts / "stale"))
