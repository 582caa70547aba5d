"""The one training loop, and the steps that methods put into it.

`step(policy, batch) -> (losses, logged)` is where methods differ; everything else is the same for all of them. The
loss of an optimiser step is the sum of its examples' losses over `step.denominator(batch)`, by default their number.
Numerator and denominator are sums over the whole batch, so cutting it, in time or over processes, changes nothing.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch

from workbench import runs
from workbench.config import Field, strict
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meter import add_cost, without_cost
from workbench.kernels.scoring import NanScore
from workbench.models import Policy
from workbench.training import distributed
from workbench.training.checkpoints import Checkpoint
from workbench.training.steps import Step

log = logging.getLogger(__name__)


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

    @classmethod
    def of(cls, config: Any, **changes: Any) -> TrainConfig:
        """The fields that a method's configuration shares with this one, with `changes`."""
        shared = {f.name: getattr(config, f.name) for f in dataclasses.fields(cls) if hasattr(config, f.name)}
        return cls(**shared | changes)


# ------------------------------------------------------------------------------------------------------------- steps


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
        add_cost(optimizer_steps=1, trained_tokens=sum(sizes[i] for i in batch))
        if run and is_first:
            run.log({"step": number, **tag, **means, "learning_rate": rate, "grad_norm": norm})
        if watch:
            with without_cost():
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
    max_tokens = config.micro_batch_tokens or tokens_per_microbatch(policy.device)
    held = {"max_tokens": max_tokens * world, "max_rows": config.micro_batch_size * world}
    names: list[str] = []
    sums, seen = torch.zeros((), device=policy.device), []
    for part in microbatches(batch, sizes, **held, at_least=world):
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
