"""The one training loop, and the steps that methods put into it.

What may live here: optimisation, the driver of iterated methods and its step-0 check. What may not: formulas of losses
(`objectives`), log-probs of a reference (`reference`), files of a checkpoint (`checkpoints`), shards (`distributed`),
what a method does between rounds (its own file).

`step(policy, batch) -> (losses, logged)` is where methods differ; everything else is the same for all of them. The
loss of an optimiser step is the sum of its examples' losses over `step.denominator(batch)`, by default their number.
Numerator and denominator are sums over the whole batch, so cutting it, in time or over processes, changes nothing.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from workbench import distributed, runs
from workbench.batches import cut, held_at_once, n_tokens
from workbench.checkpoints import Checkpoint, load_weights, save_weights
from workbench.config import Field, strict
from workbench.kernels import Group, score
from workbench.kernels.meter import spend, unmetered
from workbench.kernels.scoring import NanScore
from workbench.models import Policy
from workbench.reference import PairRow, pair_rows, reference_logps

log = logging.getLogger(__name__)

__all__ = [
    "PairRow",
    "Round",
    "Step",
    "TrainConfig",
    "check_start",
    "iterate",
    "pair_numbers",
    "pair_rows",
    "preference_step",
    "reference_logps",
    "supervised_step",
    "train",
]

Step = Callable[[Policy, Sequence[Any]], tuple[Tensor, dict[str, Tensor]]]


@strict
class TrainConfig:
    """How to optimise. Fields left out of a method's own `Config` keep these values."""

    learning_rate: float = Field(default=1e-4, gt=0)  # peak
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)  # examples an optimiser step
    micro_batch_size: int = Field(default=0, ge=0)  # examples held at once on a process; 0: cut by tokens
    micro_batch_tokens: int = Field(default=0, ge=0)  # of prompts and responses; 0: 2,048 on a CPU, 8,192 on a GPU
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # share of all steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=0, ge=0)  # 0: all epochs
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none inside a call


# ------------------------------------------------------------------------------------------------------------- steps
def preference_step(
    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]], *, average: bool = False, **options: Any
) -> Step:
    """A step over `PairRow`s from an objective of four log-probs and the rows' targets. `options` go to it (beta,
    loss_type).

    Args:
        average: hand over log-probs divided by the number of tokens, as IPO, SimPO and ORPO take them.
    """

    def step(policy: Policy, batch: Sequence[PairRow]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = score(policy, [row.group for row in batch])
        reference = scores.sums.new_tensor([row.reference_logps for row in batch])
        now, then = (scores.means, reference / scores.lengths) if average else (scores.sums, reference)
        targets = {name: now.new_tensor([row.targets[name] for row in batch]) for name in batch[0].targets}
        losses, logged = objective(now[:, 0], now[:, 1], then[:, 0], then[:, 1], **targets, **options)
        sums = scores.sums.detach()
        return losses, {**logged, "chosen_logps": sums[:, 0], "rejected_logps": sums[:, 1]}

    return step


class SupervisedStep:
    """Losses [row]: negative log-likelihood of a row's first response, nats; an optimiser step divides by its
    tokens."""

    def __call__(self, policy: Policy, batch: Sequence[Group]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = score(policy, batch)
        return -scores.sums[:, 0], {"token_nll": (-scores.means[:, 0]).detach()}

    @staticmethod
    def denominator(batch: Sequence[Group]) -> int:
        return sum(len(group.responses_ids[0]) for group in batch)


supervised_step = SupervisedStep()


def pair_numbers(
    after: np.ndarray, before: np.ndarray, objective: Callable[..., tuple[Tensor, dict[str, Tensor]]], **options: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """How well a policy tells chosen from rejected: log-probs [pair, 2] after and before training, chosen first.

    Returns:
        `likelihood_before`, `likelihood_after`: share of pairs with log p(chosen) > log p(rejected); `reward_accuracy`
        and `held_out_loss`: of the objective's rewards, 0 and its value at margin 0 before training; and what the
        objective logged for each pair.
    """
    now, then = torch.as_tensor(after, dtype=torch.float64), torch.as_tensor(before, dtype=torch.float64)
    losses, logged = objective(now[:, 0], now[:, 1], then[:, 0], then[:, 1], **options)
    numbers = {
        "likelihood_before": (then[:, 0] > then[:, 1]).double().mean(),
        "likelihood_after": (now[:, 0] > now[:, 1]).double().mean(),
        "reward_accuracy": logged["accuracies"].mean(),
        "held_out_loss": losses.mean(),
    }
    return {name: float(value) for name, value in numbers.items()}, logged


# -------------------------------------------------------------------------------------------------------------- loop
def train(
    policy: Policy,
    rows: Sequence[Any],
    step: Step,
    config: TrainConfig,
    run: runs.Run | None = None,
    *,
    seed: int = 0,
    tag: dict[str, Any] | None = None,
    watch: Callable[[Policy, int], None] | None = None,
) -> float:
    """Optimises `policy` in place over `rows` and returns the mean loss of the last optimiser step.

    Dropout is off, as it must be where a reference is compared with. The order of the rows depends on `seed` alone.
    With `checkpoint_every` set, a killed call goes on from its last checkpoint with the same numbers.

    A script started by `torchrun` calls this on every process with the same arguments. The policy is then cut into
    shards (FSDP2) for the time of the call and whole again after it, every process takes its part of each batch, and
    losses and weights are those of one process. Checkpoints fit any number of processes.

    Args:
        step: called with rows that are held at once; `step.denominator(batch)`, where there is one, says what the sum
            of the losses of an optimiser step is divided by, from all its rows.
        run: where metrics rows go (one an optimiser step: step, loss, learning rate, gradient norm and the means over
            examples of what the step logged) and where the checkpoint lives; None keeps no record.
        tag: columns added to every metrics row (round, arm).
        watch: called after every optimiser step with the policy and the number of steps taken; it must not change it.

    Raises:
        ValueError: no rows.
        FloatingPointError: a loss or the gradient is NaN or infinite; the rows' ids are named, on all processes alike,
            and the weights of a single process are those before the step.
    """
    if not rows:
        raise ValueError("no rows to train on")
    with distributed.sharded(policy) as live:
        return _loop(live, rows, step, config, run, seed, tag or {}, watch)


def _loop(
    policy: Policy,
    rows: Sequence[Any],
    step: Step,
    config: TrainConfig,
    run: runs.Run | None,
    seed: int,
    tag: dict,
    watch: Callable[[Policy, int], None] | None,
) -> float:
    from transformers import get_scheduler

    per_epoch = math.ceil(len(rows) / config.batch_size)
    n_steps = config.max_steps or per_epoch * config.epochs
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, config)
    scheduler = get_scheduler(config.schedule, optimizer, round(config.warmup_ratio * n_steps), n_steps)
    is_first = distributed.rank() == 0
    checkpoint, first = None, 0
    if run and config.checkpoint_every:
        checkpoint = Checkpoint(run.folder / "checkpoint", policy.model, optimizer, scheduler)
        first = checkpoint.restore()
        if is_first:
            run.rewind_metrics(first)
    policy.model.eval()  # no dropout; gradients flow all the same
    optimizer.zero_grad()  # of a call that was refused half-way
    sizes = [n_tokens(row) for row in rows]
    order, loss = [], math.nan
    for number in range(first, n_steps):
        epoch, place = divmod(number, per_epoch)
        if place == 0 or not order:
            order = np.random.default_rng([seed, epoch]).permutation(len(rows)).tolist()
        batch = order[place * config.batch_size : (place + 1) * config.batch_size]
        means = _backward(policy, rows, batch, sizes, step, config, number)
        loss = means["loss"]
        norm = float(distributed.whole(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm)))
        if not math.isfinite(norm):
            names = ", ".join(_name(rows, i) for i in batch[:10])
            raise FloatingPointError(
                f"optimiser step {number}: every loss is finite but the gradient is not, in a batch with rows {names}; "
                "lower the learning rate, or use precision='no'"
            )
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        spend(optimizer_steps=1, trained_tokens=sum(sizes[i] for i in batch))
        if run and is_first:
            run.log({"step": number, **tag, **means, "learning_rate": rate, "grad_norm": norm})
        if watch:
            with unmetered():
                watch(policy, number + 1)
        if checkpoint and (number + 1) % config.checkpoint_every == 0 and number + 1 < n_steps:
            checkpoint.store(number + 1)
    if checkpoint:
        checkpoint.remove()
    return loss


def _backward(
    policy: Policy,
    rows: Sequence[Any],
    batch: list[int],
    sizes: list[int],
    step: Step,
    config: TrainConfig,
    number: int,
) -> dict[str, float]:
    """Adds the gradient of a whole batch; returns its loss and the means of what was logged, over all processes.

    Raises:
        FloatingPointError: a loss is NaN or infinite, on any process.
    """
    world, rank = distributed.world(), distributed.rank()
    denominator = getattr(step, "denominator", len)([rows[i] for i in batch])
    max_tokens = config.micro_batch_tokens or held_at_once(policy.device)
    held = {"max_tokens": max_tokens * world, "max_rows": config.micro_batch_size * world}
    names: list[str] = []
    sums, seen = torch.zeros((), device=policy.device), []
    for part in cut(batch, sizes, **held, at_least=world):
        # a process without a row of this part repeats the first one with weight 0: all must meet in the collectives
        mine = part[rank::world]
        try:
            losses, logged = step(policy, [rows[i] for i in mine or part[:1]])
        except NanScore as error:
            alone = [
                i for i in mine if not _is_finite(policy, step, rows[i])
            ]  # a NaN spreads to what is packed with it
            raise _refusal(number, [_name(rows, i) for i in alone or mine]) from error
        (losses.sum() * (1 / denominator if mine else 0.0)).backward()
        with torch.no_grad():
            logged = {"loss": losses, **logged}
            sums = sums + len(mine) * torch.stack([values.mean(dtype=torch.float64) for values in logged.values()])
        names = list(logged)
        seen.append((mine, losses.detach()))
    means = dict(zip(names, (distributed.total(sums) / len(batch)).tolist(), strict=True))
    if not math.isfinite(means["loss"]):
        bad = [
            _name(rows, i)
            for mine, losses in seen
            for i, value in zip(mine, losses.tolist(), strict=False)
            if not math.isfinite(value)
        ]
        everywhere = [name for part in distributed.gather(bad) for name in part]
        raise _refusal(number, everywhere)
    means["loss"] *= len(batch) / denominator
    return means


@torch.no_grad()
def _is_finite(policy: Policy, step: Step, row: Any) -> bool:
    try:
        return bool(step(policy, [row])[0].isfinite().all())
    except NanScore:
        return False


def _refusal(number: int, names: list[str]) -> FloatingPointError:
    return FloatingPointError(
        f"optimiser step {number}: the loss is NaN or infinite for rows {', '.join(names[:10])}; look at these rows, "
        "lower the learning rate, or use precision='no'"
    )


def _name(rows: Sequence[Any], number: int) -> str:
    return str(getattr(rows[number], "id", number))


def _optimizer(parameters: list, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, config.learning_rate, weight_decay=config.weight_decay, fused=True)
    return torch.optim.RMSprop(parameters, config.learning_rate, weight_decay=config.weight_decay, foreach=True)


# ------------------------------------------------------------------------------------------------- iterated methods
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
        with unmetered():
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
    max_tokens = held.micro_batch_tokens or held_at_once(policy.device)
    part = next(cut(range(len(rows)), sizes, max_tokens=max_tokens, max_rows=held.micro_batch_size))
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
