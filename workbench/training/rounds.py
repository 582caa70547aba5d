"""Iterated training: sample, compare, build rows, train, evaluate, round after round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workbench import runs
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meter import without_cost
from workbench.models import Policy
from workbench.training import distributed
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Round:
    """What one round of an iterated method trains on.

    Attributes:
        rows: what the step takes, usually `PairRow`s with the log-probs of their reference; none leaves the policy as
            it is.
        step: the objective as a step.
        config: optimisation of this round.
        start_loss: the loss that every row must have before any update, where the reference is the policy itself: one
            number (log 2 for logistic losses) or one a row; None where the reference is another model.
        watch: looks at the policy after every optimiser step, see `train`.
    """

    rows: Sequence[Any]
    step: Step
    config: TrainConfig
    start_loss: float | Sequence[float] | None
    watch: Callable[[Policy, int], None] | None = None


def iterate(
    policy: Policy,
    n_rounds: int,
    make_round: Callable[[Policy, int], Round],
    evaluate: Callable[[Policy, int], dict[str, float]],
    run: runs.Run,
    *,
    seed: int,
    keep_checkpoints: bool = False,
) -> list[dict[str, float]]:
    """The driver of iterated methods: for each round make rows with the current policy, train on them, evaluate.

    Every finished round leaves its weights and its evaluation in `run`, so a killed call goes on with the round that
    it was in, and inside that round from the training checkpoint if there is one.

    Args:
        make_round: samples, compares and builds the rows of round t from the policy at its start.
        evaluate: numbers of the policy after t rounds; t = 0 is the start.
        keep_checkpoints: leave each round's weights in `run` instead of the last one's only.

    Returns:
        The evaluations after 0, 1, ..., n_rounds rounds.

    Raises:
        RuntimeError: the step-0 check failed: policy and reference should be the same weights and are not.
    """

    def measured(t: int) -> dict[str, float]:
        with without_cost():
            return evaluate(policy, t)

    results = [run.cached("round-0/evaluation", lambda: measured(0))]
    finished = [t for t in range(1, n_rounds + 1) if (run.folder / f"round-{t}" / "evaluation.json").is_file()]
    if finished and len(finished) < n_rounds:
        load_weights(policy.model, run.folder / f"round-{finished[-1]}" / "weights.safetensors")
    for t in range(n_rounds):
        part = run.child(f"round-{t + 1}")
        if t + 1 not in finished:
            round_ = make_round(policy, t)
            if round_.rows:
                check_start(policy, round_)
                watch, number = round_.watch, seed * 1000 + t
                if not round_.config.checkpoint_every and distributed.rank() == 0:
                    part.rewind_metrics(0)  # of a call that was killed between training and the evaluation's end
                train(policy, round_.rows, round_.step, round_.config, part, seed=number, tag={"round": t}, watch=watch)
            else:
                log.info("round %d has nothing to train on: the policy stays as it is", t)
            save_weights(policy.model, part.folder / "weights.safetensors")
        results.append(part.cached("evaluation", lambda t=t: measured(t + 1)))
        if not keep_checkpoints and t > 0:
            (run.folder / f"round-{t}" / "weights.safetensors").unlink(missing_ok=True)
    return results


def check_start(policy: Policy, round_: Round) -> None:
    """The step-0 check: before any update every log-ratio is 0, so the loss has the value it must have there."""
    if round_.start_loss is None:
        return
    rows, held = round_.rows[: round_.config.batch_size], round_.config
    sizes = [n_tokens(row) for row in rows]
    max_tokens = held.micro_batch_tokens or tokens_per_microbatch(policy.device)
    part = next(microbatches(range(len(rows)), sizes, max_tokens=max_tokens, max_rows=held.micro_batch_size))
    with torch.no_grad():
        losses, _ = round_.step(policy, [rows[i] for i in part])
    start = round_.start_loss
    is_one = isinstance(start, int | float)
    expected = losses.new_tensor([start if is_one else start[i] for i in part])  # type: ignore[index]
    worst = float(((losses - expected).abs() / expected.abs().clamp(min=1)).max())
    # log-ratios of sums over hundreds of tokens differ by rounding when batches have other shapes
    exact = policy.precision == "no" and policy.model.dtype in (torch.float32, torch.float64)
    tolerance = 1e-3 if exact else 5e-2
    if not worst < tolerance:
        raise RuntimeError(
            f"step-0 check: the loss should be {float(expected[0]):.6f} on {'every' if is_one else 'the first'} row,"
            f" because policy and reference are the same weights, but is off by {worst:.2g}; the reference is not the"
            " policy at the start of this round"
        )
