"""The loop: accumulation, resume, NaN, the step-0 check, and rounds that go on after a kill."""

import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from workbench import objectives
from workbench.kernels import Group
from workbench.kernels.batching import n_tokens
from workbench.models import Policy, new_llama
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import PairRow, pair_rows, reference_logps
from workbench.training.rounds import Round, check_start, iterate
from workbench.training.steps import preference_step, supervised_step
from workbench.worlds.language import word_tokenizer

SPIN = preference_step(objectives.spin, beta=0.5)


def new_policy(seed=0):
    tokenizer = word_tokenizer([f"s{i}" for i in range(20)])
    return Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=32, seed=seed), tokenizer)


def groups(n, k=2, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Group(
            [0, *rng.integers(2, 22, 3).tolist()],
            [[*rng.integers(2, 22, rng.integers(1, 6)).tolist(), 1] for _ in range(k)],
        )
        for _ in range(n)
    ]


def weights(policy):
    return torch.cat([p.detach().flatten() for p in policy.model.parameters()])


def make_pairs(policy, n=24):
    return pair_rows(policy, [f"row {i}" for i in range(n)], groups(n))


def one_step(step, rows, *, dtype=torch.float64, **cutting):
    """Gradient of the first optimiser step over all rows: the change of the weights under plain gradient descent."""
    policy = new_policy()
    policy.model.to(dtype)
    gradients = {}

    def watched(policy, batch):
        return step(policy, batch)

    if hasattr(step, "denominator"):
        watched.denominator = step.denominator
    handles = [
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.__setitem__(name, p.grad.clone()))
        for name, p in policy.model.named_parameters()
    ]
    loss = train(policy, rows, watched, TrainConfig(batch_size=len(rows), max_steps=1, **cutting))
    for handle in handles:
        handle.remove()
    return loss, torch.cat([gradients[name].flatten() for name in sorted(gradients)])


CUTS = [{"micro_batch_size": 1}, {"micro_batch_size": 3}, {"micro_batch_tokens": 30}, {"micro_batch_tokens": 1}]


@pytest.mark.parametrize("cutting", CUTS, ids=str)
@pytest.mark.parametrize("kind", ["preference", "supervised"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_cutting_a_step_changes_nothing(kind, cutting, dtype, tolerance, monkeypatch):
    """Loss and gradient of 1, 3 or all rows at a time, and of cuts by tokens, are the same; responses differ in length.

    On one route: which is fastest depends on the cut, and norms in float32 make routes differ by rounding.
    """
    monkeypatch.setattr("workbench.kernels.scoring._layout", lambda groups, route, model: "padded")
    rows = make_pairs(new_policy(), 12) if kind == "preference" else groups(12, k=1)
    step = SPIN if kind == "preference" else supervised_step
    whole_loss, whole = one_step(step, rows, dtype=dtype, micro_batch_size=len(rows))
    loss, gradient = one_step(step, rows, dtype=dtype, **cutting)
    assert loss == pytest.approx(whole_loss, rel=tolerance)
    assert (gradient - whole).norm() < tolerance * whole.norm()


def test_a_step_holds_no_more_tokens_than_allowed():
    """2,048 tokens by default on a CPU; whole groups, also one that is longer."""
    policy, seen = new_policy(), []

    def watched(policy, batch):
        seen.append([n_tokens(row) for row in batch])
        return SPIN(policy, batch)

    rows = make_pairs(policy)
    train(policy, rows, watched, TrainConfig(batch_size=8, max_steps=1))
    assert len(seen) == 1
    seen.clear()
    train(policy, rows, watched, TrainConfig(batch_size=8, max_steps=1, micro_batch_tokens=30))
    assert len(seen) > 2
    assert all(sum(sizes) <= 30 for sizes in seen)
    seen.clear()
    train(policy, rows, watched, TrainConfig(batch_size=8, max_steps=1, micro_batch_tokens=1))
    assert [len(sizes) for sizes in seen] == [1] * 8
    assert seen == sorted(seen, reverse=True), "the longest comes first"


def test_the_objective_falls_and_every_step_is_logged(tmp_path):
    policy, run = new_policy(), Run(tmp_path)
    train(
        policy, make_pairs(policy), SPIN, TrainConfig(learning_rate=1e-2, batch_size=8, epochs=5), run, tag={"round": 0}
    )
    rows = run.metrics()
    assert [row["step"] for row in rows] == list(range(15))
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1
    logged = "loss margins accuracies chosen_logps rejected_logps learning_rate grad_norm round"
    assert set(logged.split()) <= set(rows[0])


def test_resume_gives_the_numbers_of_an_unbroken_run(tmp_path):
    config = TrainConfig(learning_rate=1e-2, batch_size=8, epochs=4, checkpoint_every=2)
    whole = new_policy()
    train(whole, make_pairs(whole), SPIN, config, Run(tmp_path / "whole"))

    broken, calls = new_policy(), []
    rows = make_pairs(broken)

    def dies(policy, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return SPIN(policy, batch)

    with pytest.raises(KeyboardInterrupt):
        train(broken, rows, dies, config, Run(tmp_path / "broken"))
    resumed = new_policy()
    train(resumed, make_pairs(resumed), SPIN, config, Run(tmp_path / "broken"))
    assert torch.equal(weights(resumed), weights(whole))
    assert Run(tmp_path / "broken").metrics() == Run(tmp_path / "whole").metrics()
    assert not (tmp_path / "broken" / "checkpoint").exists()


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch
    from test_loop import SPIN, Run, TrainConfig, make_pairs, new_policy, train
    from pathlib import Path

    policy, seen = new_policy(), []
    def step(policy, batch):
        seen.append(1)
        if len(seen) == {kill_at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return SPIN(policy, batch)
    config = TrainConfig(learning_rate=1e-2, batch_size=8, epochs=4, checkpoint_every=2)
    train(policy, make_pairs(policy), step, config, Run(Path({folder!r})))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [pytest.param(2, marks=pytest.mark.exhaustive), 7])
def test_sigkill_and_resume(tmp_path, kill_at):
    """Killed before and after the first checkpoint; the end is that of an unbroken run to the bit."""
    script = textwrap.dedent(
        KILLED.format(tests=os.path.dirname(__file__), kill_at=kill_at, folder=str(tmp_path / "broken"))
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    config = TrainConfig(learning_rate=1e-2, batch_size=8, epochs=4, checkpoint_every=2)
    ends = []
    for name in ("broken", "whole"):
        policy = new_policy()
        train(policy, make_pairs(policy), SPIN, config, Run(tmp_path / name))
        ends.append(weights(policy))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-6, atol=1e-7)
    assert [r["step"] for r in Run(tmp_path / "broken").metrics()] == list(range(12))


def test_nan_stops_with_the_row_ids():
    policy = new_policy()
    rows = make_pairs(policy, 8)
    rows[3] = rows[3]._replace(reference_logps=(float("nan"), 0.0))
    before = weights(policy).clone()
    said = r"optimiser step 0: the loss is NaN or infinite for rows row 3; look at"
    with pytest.raises(FloatingPointError, match=said):
        train(policy, rows, SPIN, TrainConfig(batch_size=8))
    assert torch.equal(weights(policy), before)


def test_nan_reference_is_refused_by_row():
    policy = new_policy()
    with torch.no_grad():
        policy.model.lm_head.weight[7] = float("nan")
    with pytest.raises(FloatingPointError, match="the reference gives NaN or infinite log-probs to row 0"):
        make_pairs(policy, 4)


def test_start_check_passes_for_the_policy_itself_and_fails_for_another():
    policy, other = new_policy(), new_policy(seed=1)
    config = TrainConfig(batch_size=8)
    check_start(policy, Round(make_pairs(policy), SPIN, config, math.log(2)))
    with pytest.raises(RuntimeError, match=r"step-0 check: the loss should be 0.693147 on every row"):
        check_start(policy, Round(make_pairs(other), SPIN, config, math.log(2)))


def test_sequence_log_prob_is_a_sum_not_a_mean():
    """A pair row's reference is the sum over tokens: doubling the response roughly doubles it."""
    policy = new_policy()
    short, long = reference_logps(policy, [Group([0, 3], [[4, 1], [4, 4, 4, 4, 4, 4, 1]])])[0]
    assert long < 2 * short < 0


def test_supervised_loss_is_the_mean_over_tokens(tmp_path):
    policy, batch = new_policy(), groups(5, k=1)
    logps = reference_logps(policy, batch)[:, 0]
    train(policy, batch, supervised_step, TrainConfig(batch_size=5, micro_batch_size=2), Run(tmp_path))
    tokens = sum(len(group.responses_ids[0]) for group in batch)
    assert Run(tmp_path).metrics()[0]["loss"] == pytest.approx(-logps.sum() / tokens, rel=1e-5)


def test_infinite_gradient_of_a_finite_loss_stops_too():
    """sqrt at 0: the loss is 0, its slope is not finite."""
    policy = new_policy()
    before = weights(policy).clone()

    def step(policy, batch):
        losses, logged = SPIN(policy, batch)
        return (losses - losses.detach()).abs().sqrt(), logged

    with pytest.raises(FloatingPointError, match="optimiser step 0: every loss is finite but the gradient is not"):
        train(policy, make_pairs(policy, 4), step, TrainConfig(batch_size=4))
    assert torch.equal(weights(policy), before)


def test_a_refused_step_leaves_no_gradient():
    """The next call starts clean: same weights as if the refused one had never been."""
    policy, fresh = new_policy(), new_policy()
    rows = make_pairs(policy, 8)
    bad = [*rows[:7], rows[7]._replace(reference_logps=(float("inf"), 0.0))]
    with pytest.raises(FloatingPointError, match="rows row 7;"):
        train(policy, bad, SPIN, TrainConfig(batch_size=8, micro_batch_size=2))
    for one in (policy, fresh):
        train(one, rows, SPIN, TrainConfig(batch_size=8))
    assert torch.equal(weights(policy), weights(fresh))


def test_rounds_resume_where_they_stopped(tmp_path):
    """Stopped in round 1: round 0 is not trained again and the end is the same."""
    trained = []

    def play(folder, stop_at=None):
        policy = new_policy()

        def make_round(policy, t):
            if t == stop_at:
                raise KeyboardInterrupt
            trained.append(t)
            return Round(make_pairs(policy, 16), SPIN, TrainConfig(learning_rate=1e-2, batch_size=8), math.log(2))

        run, total = Run(tmp_path / folder), lambda p, t: {"sum": float(weights(p).double().sum())}
        return iterate(policy, 3, make_round, total, run, seed=0)

    whole = play("whole")
    with pytest.raises(KeyboardInterrupt):
        play("broken", stop_at=1)
    trained.clear()
    assert play("broken") == whole
    assert trained == [1, 2]
    trained.clear()
    assert play("broken") == whole
    assert trained == []


def test_a_round_killed_in_its_evaluation_logs_its_steps_once(tmp_path):
    """Without checkpoints it is trained again, and says so once."""

    def play(evaluate):
        make_round = lambda policy, t: Round(make_pairs(policy, 16), SPIN, TrainConfig(batch_size=8), math.log(2))  # noqa: E731
        return iterate(new_policy(), 1, make_round, evaluate, Run(tmp_path), seed=0)

    with pytest.raises(ZeroDivisionError):
        play(lambda policy, t: {"quality": 1 / (1 - t)})
    play(lambda policy, t: {})
    assert [row["step"] for row in Run(tmp_path / "round-1").metrics()] == [0, 1]


def test_bfloat16_keeps_policy_and_reference_equal_at_the_start():
    """Under autocast the reference is computed in the same precision, so the loss still starts near log 2 and falls."""
    policy = new_policy()
    policy.precision = "bf16"
    rows = make_pairs(policy)
    check_start(policy, Round(rows, SPIN, TrainConfig(batch_size=8), math.log(2)))
    exact = new_policy()
    groups_ = [row.group for row in rows]
    rough = reference_logps(policy, groups_)
    np.testing.assert_allclose(rough, reference_logps(exact, groups_), rtol=0.02, atol=0.05)
    assert not np.array_equal(rough, reference_logps(exact, groups_))
    loss = train(policy, rows, SPIN, TrainConfig(learning_rate=1e-2, batch_size=8, epochs=5))
    assert loss < math.log(2) - 0.1
    assert next(policy.model.parameters()).dtype == torch.float32


def test_pair_row_names_itself():
    assert PairRow("row 3", Group([1], [[2], [3]]), (0.0, 0.0)).id == "row 3"
