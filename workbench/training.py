"""The one training loop, and the steps that methods put into it.

What may live here: optimisation, checkpoints, resume, the driver of iterated methods and its step-0 check. What may
not: formulas of losses (`objectives`), what a method does between rounds (its own file).

`step(policy, batch) -> (losses, logged)` is where methods differ; everything else is the same for all of them. The
loss of an optimiser step is the sum of its examples' losses over `batch_size`, so cutting a batch into micro-batches
changes nothing.
"""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench import runs
from workbench.config import Field, strict
from workbench.kernels import Group, score
from workbench.models import Policy

log = logging.getLogger(__name__)

Step = Callable[[Policy, Sequence[Any]], tuple[Tensor, dict[str, Tensor]]]


@strict
class TrainConfig:
    """How to optimise. Fields left out of a method's own `Config` keep these values."""

    learning_rate: float = Field(default=1e-4, gt=0)  # peak
    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=64, ge=1)  # examples an optimiser step
    micro_batch_size: int = Field(default=0, ge=0)  # examples held at once; 0: the whole batch
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    weight_decay: float = Field(default=0.0, ge=0)
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # share of all steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    max_grad_norm: float = Field(default=1.0, gt=0)
    max_steps: int = Field(default=0, ge=0)  # 0: all epochs
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none inside a call


class PairRow(NamedTuple):
    """A tokenised pair: responses chosen and rejected, and their log-probs under the reference, nats."""

    id: str
    group: Group
    reference_logps: tuple[float, float]


# ------------------------------------------------------------------------------------------------------------- steps
def preference_step(objective: Callable[..., tuple[Tensor, dict[str, Tensor]]], **options: Any) -> Step:
    """A step over `PairRow`s from an objective of four log-probs. `options` go to the objective (beta, loss_type)."""

    def step(policy: Policy, batch: Sequence[PairRow]) -> tuple[Tensor, dict[str, Tensor]]:
        sums = score(policy, [row.group for row in batch]).sums
        reference = torch.tensor([row.reference_logps for row in batch], dtype=sums.dtype, device=sums.device)
        losses, logged = objective(sums[:, 0], sums[:, 1], reference[:, 0], reference[:, 1], **options)
        return losses, {**logged, "chosen_logps": sums[:, 0].detach(), "rejected_logps": sums[:, 1].detach()}

    return step


def supervised_step(policy: Policy, batch: Sequence[Group]) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses whose mean is the negative log-likelihood of a response token in this batch, nats."""
    scores = score(policy, batch)
    lengths = scores.lengths[:, 0]
    losses = -scores.sums[:, 0] * (len(batch) / lengths.sum())
    return losses, {"token_nll": (-scores.means[:, 0]).detach()}


@torch.no_grad()
def reference_logps(policy: Policy, groups: Sequence[Group], *, batch_size: int = 64) -> np.ndarray:
    """log p(response | prompt) of every response under the policy as it is now, [group, k] in nats, float64.

    Computed once a row before training starts, from the very weights that training starts from. So the reference
    cannot be a base model without its adapter by mistake, and no second model is held during training.
    """
    order = sorted(range(len(groups)), key=lambda i: len(groups[i].prompt_ids) + max(map(len, groups[i].responses_ids)))
    k = max(len(group.responses_ids) for group in groups)
    found = np.full((len(groups), k), np.nan)
    was_training = policy.model.training
    policy.model.eval()
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        sums = score(policy, [groups[i] for i in batch]).sums.double().cpu().numpy()
        found[batch, : sums.shape[1]] = sums
    policy.model.train(was_training)
    return found


def pair_rows(reference: Policy, ids: Sequence[str], groups: Sequence[Group], *, batch_size: int = 64) -> list[PairRow]:
    """Tokenised pairs (chosen first) with their log-probs under the reference as it is now.

    Raises:
        FloatingPointError: the reference gives NaN or infinite log-probs; the rows are named, nothing is zeroed.
    """
    logps = reference_logps(reference, groups, batch_size=batch_size)
    bad = [str(id) for id, fine in zip(ids, np.isfinite(logps), strict=True) if not fine.all()]
    if bad:
        raise FloatingPointError(
            f"the reference gives NaN or infinite log-probs to {', '.join(bad[:10])}; look at these rows first"
        )
    return [PairRow(id, group, (float(c), float(r))) for id, group, (c, r) in zip(ids, groups, logps, strict=True)]


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
) -> float:
    """Optimises `policy` in place over `rows` and returns the mean loss of the last optimiser step.

    Dropout is off, as it must be where a reference is compared with. The order of the rows depends on `seed` alone.
    With `checkpoint_every` set, a killed call goes on from its last checkpoint with the same numbers.

    Args:
        run: where metrics rows go (one an optimiser step: step, loss, learning rate, gradient norm and the means of
            what the step logged) and where the checkpoint lives; None keeps no record.
        tag: columns added to every metrics row (round, arm).

    Raises:
        ValueError: no rows.
        FloatingPointError: a loss is NaN or infinite; the rows' ids are named and the weights are those before the step.
    """
    if not rows:
        raise ValueError("no rows to train on")
    from accelerate import Accelerator
    from transformers import get_scheduler

    per_epoch = math.ceil(len(rows) / config.batch_size)
    n_steps = config.max_steps or per_epoch * config.epochs
    accelerator = Accelerator(cpu=policy.device.type == "cpu")
    parameters = [p for p in policy.model.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, config)
    scheduler = get_scheduler(config.schedule, optimizer, round(config.warmup_ratio * n_steps), n_steps)
    model, optimizer = accelerator.prepare(policy.model, optimizer)
    live = Policy(model, policy.tokenizer, policy.name, policy.precision, policy.counts)
    checkpoint = (
        _Checkpoint(run.folder / "checkpoint", policy, optimizer, scheduler)
        if run and config.checkpoint_every
        else None
    )
    first = checkpoint.restore() if checkpoint else 0
    if run and checkpoint:
        run.rewind_metrics(first)
    policy.model.eval()  # no dropout; gradients flow all the same
    loss = math.nan
    for number in range(first, n_steps):
        epoch, place = divmod(number, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(rows))
        batch = [rows[i] for i in order[place * config.batch_size : (place + 1) * config.batch_size]]
        micro = config.micro_batch_size or len(batch)
        collected: dict[str, list[Tensor]] = {}
        for start in range(0, len(batch), micro):
            part = batch[start : start + micro]
            losses, logged = step(live, part)
            _refuse_nan(losses, part, number)
            share = len(part) / len(batch)  # a supervised step normalises by its own tokens
            accelerator.backward(losses.mean() * share)
            for name, values in {"loss": losses.detach(), **logged}.items():
                collected.setdefault(name, []).append(values)
        norm = accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        rate = scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad(set_to_none=True)
        means = {name: torch.cat(values).mean().item() for name, values in collected.items()}
        loss = means["loss"]
        if run:
            run.log({"step": number, **(tag or {}), **means, "learning_rate": rate, "grad_norm": float(norm)})  # type: ignore[arg-type]
        if checkpoint and (number + 1) % config.checkpoint_every == 0 and number + 1 < n_steps:
            checkpoint.store(number + 1)
    if checkpoint:
        checkpoint.remove()
    return loss


def _optimizer(parameters: list, config: TrainConfig) -> torch.optim.Optimizer:
    kinds = {"adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}
    return kinds[config.optimizer](parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def _refuse_nan(losses: Tensor, part: Sequence[Any], number: int) -> None:
    if not bool(torch.isfinite(losses).all()):
        bad = (~torch.isfinite(losses)).nonzero().flatten().tolist()
        names = ", ".join(str(getattr(part[i], "id", i)) for i in bad[:10])
        raise FloatingPointError(
            f"optimiser step {number}: the loss is NaN or infinite for rows {names}; look at these rows, "
            "lower the learning rate, or use precision='no'"
        )


class _Checkpoint:
    """Weights that train, optimiser, schedule and step number, as one folder that appears whole or not at all."""

    def __init__(self, folder: Path, policy: Policy, optimizer: Any, scheduler: Any):
        self.folder, self.policy, self.optimizer, self.scheduler = folder, policy, optimizer, scheduler

    def store(self, step: int) -> None:
        from safetensors.torch import save_file

        self.folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=".checkpoint."))
        save_file(self._weights(), temporary / "weights.safetensors")
        torch.save(
            {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()},
            temporary / "optimizer.pt",
        )
        runs.write_json(temporary / "state.json", {"step": step})
        old = self.folder.with_name(".checkpoint.old")
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        temporary.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def restore(self) -> int:
        from safetensors.torch import load_file

        old = self.folder.with_name(".checkpoint.old")
        if old.exists() and not self.folder.exists():  # killed between the two renames
            old.rename(self.folder)
        if not self.folder.exists():
            return 0
        weights = load_file(self.folder / "weights.safetensors", device=str(self.policy.device))
        for name, parameter in self.policy.model.named_parameters():
            if name in weights:
                parameter.data.copy_(weights[name])
        state = torch.load(self.folder / "optimizer.pt", weights_only=True)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        return int(runs.read_json(self.folder / "state.json")["step"])

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _weights(self) -> dict[str, Tensor]:
        return {
            name: p.detach().clone().contiguous() for name, p in self.policy.model.named_parameters() if p.requires_grad
        }


# ------------------------------------------------------------------------------------------------- iterated methods
@dataclass(frozen=True)
class Round:
    """What one round of an iterated method trains on.

    Attributes:
        rows: what the step takes, usually `PairRow`s with the log-probs of their reference.
        step: the objective as a step.
        config: optimisation of this round.
        start_loss: the mean loss that the first batch must have before any update, where the reference is the policy
            itself (log 2 for logistic losses); None where the reference is another model.
    """

    rows: Sequence[Any]
    step: Step
    config: TrainConfig
    start_loss: float | None


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
    results = [run.cached("round-0/evaluation", lambda: evaluate(policy, 0))]
    finished = [t for t in range(1, n_rounds + 1) if (run.folder / f"round-{t}" / "evaluation.json").is_file()]
    if finished and len(finished) < n_rounds:
        _load_weights(policy, run.folder / f"round-{finished[-1]}")
    for t in range(n_rounds):
        part = run.child(f"round-{t + 1}")
        if t + 1 not in finished:
            round_ = make_round(policy, t)
            check_start(policy, round_)
            train(policy, round_.rows, round_.step, round_.config, part, seed=seed * 1000 + t, tag={"round": t})
            _save_weights(policy, part.folder)
        results.append(part.cached("evaluation", lambda t=t: evaluate(policy, t + 1)))
        if not keep_checkpoints and t > 0:
            (run.folder / f"round-{t}" / "weights.safetensors").unlink(missing_ok=True)
    return results


def check_start(policy: Policy, round_: Round) -> None:
    """The step-0 check: before any update every log-ratio is 0, so the loss has the value it must have there."""
    if round_.start_loss is None:
        return
    with torch.no_grad():
        losses, _ = round_.step(policy, list(round_.rows[: round_.config.micro_batch_size or round_.config.batch_size]))
    worst = float((losses - round_.start_loss).abs().max())
    # log-ratios of sums over hundreds of tokens differ by rounding when batches have other shapes
    exact = policy.precision == "no" and policy.model.dtype in (torch.float32, torch.float64)
    tolerance = 1e-3 if exact else 5e-2
    if not worst < tolerance:
        raise RuntimeError(
            f"step-0 check: the loss should be {round_.start_loss:.6f} on every row, because policy and reference are the "
            f"same weights, but is off by {worst:.2g}; the reference is not the policy at the start of this round"
        )


def _save_weights(policy: Policy, folder: Path) -> None:
    from safetensors.torch import save

    with runs.atomic(folder / "weights.safetensors") as file:
        file.write(
            save({n: p.detach().clone().contiguous() for n, p in policy.model.named_parameters() if p.requires_grad})
        )


def _load_weights(policy: Policy, folder: Path) -> None:
    from safetensors.torch import load_file

    weights = load_file(folder / "weights.safetensors", device=str(policy.device))
    for name, parameter in policy.model.named_parameters():
        if name in weights:
            parameter.data.copy_(weights[name])
