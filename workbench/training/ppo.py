"""PPO with a learned critic: roll out, reward, estimate advantages, clip; used by every method that needs it.

A response may begin with a given prefix (a *reset*): its tokens count for rewards, advantages and the critic, but the
policy did not choose them and gets no gradient from them.

Where this differs from Cornell-RL/drpo (src/tldr/drpo.py), and why:
- generation stops at the EOS token, and what would come behind it has no part in KL, whitening, advantages or losses
  (there, generation goes on to the full length and those tokens count like all others). With a mask behind the EOS
  token both are the same computation;
- an EOS token in the very last position is an end (there, it counts as missing);
- policy and critic may have learning rates of their own; policy, reference and critic are scored in whole batches of
  like length, gradients are accumulated where a minibatch is larger than what is held at once.

One process: data-parallel rollouts are not built.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench import objectives
from workbench.config import Field, Presets, Sampling, Training, strict
from workbench.kernels import Group, sample, score, without_cost
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meter import add_cost
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.training import distributed
from workbench.training.checkpoints import Checkpoint, load_weights, save_weights
from workbench.training.loop import TrainConfig
from workbench.training.reference import reference_logps
from workbench.training.reward_model import RewardModel

log = logging.getLogger(__name__)

Reward = Callable[[Sequence[Any], Sequence[list[int]], Sequence[str]], np.ndarray]  # prompts, token ids, texts -> [n]


@strict
class PPOConfig(Training, Sampling, Presets):
    """What every system with a PPO stage has. Defaults are those of Chang et al. 2024 (table 5) and its code, where
    both agree.

    Of `Training`, PPO itself takes the learning rate, the batch size, the schedule and what is held at once; epochs,
    steps and warm-up are those of what a system trains without rollouts (baselines, a stage of DPO), see `supervised`.
    """

    updates: int = Field(default=200, ge=1)  # ours; the script says 1,000,000 episodes, the paper one epoch
    batch_size: int = Field(default=512, ge=1)  # prompts an update, one response each
    inner_epochs: int = Field(default=4, ge=1)  # over the responses of an update
    minibatch_size: int = Field(default=0, ge=0)  # responses an optimiser step; 0: all of the update (1 minibatch)
    learning_rate: float = Field(default=3e-6, gt=0)  # of the policy, at the start
    critic_lr_ratio: float = Field(default=1.0, gt=0)  # the critic's learning rate over the policy's
    optimizer: Literal["adamw"] = "adamw"  # epsilon 1e-5 in PPO
    schedule: Literal["linear", "constant"] = "linear"  # over the updates, down to 0
    kl_coef: float = Field(default=0.05, ge=0)  # per-token penalty, reward a nat
    gamma: float = Field(default=1.0, ge=0, le=1)
    lam: float = Field(default=0.95, ge=0, le=1)
    cliprange: float = Field(default=0.2, gt=0)
    cliprange_value: float = Field(default=0.2, gt=0)
    vf_coef: float = Field(default=0.1, ge=0)
    whiten_rewards: bool = True
    temperature: float = Field(default=0.7, gt=0)  # of rollouts and of every log-prob; script's (paper's table: 0.1)
    top_p: float = Field(default=1.0, ge=1, le=1)  # ratios are of the whole distribution: nothing may be cut off it
    max_new_tokens: int = Field(default=53, ge=2)  # length of a response, prefix included
    missing_end_score: float = -1.0  # the score of a response without an EOS token
    max_grad_norm: float = Field(default=0.0, ge=0)  # 0: no clipping, as in the official code
    evaluations: int = Field(default=1, ge=1)  # after the start, evenly spaced over the updates
    ppo_checkpoint_every: int = Field(default=10, ge=0)  # updates; 0: none

    def __post_init__(self):
        super().__post_init__()
        smallest = min(self.batch_size, self.minibatch_size or self.batch_size)
        if self.whiten_rewards and smallest < 8:
            got = f"batch_size={self.batch_size}, minibatch_size={self.minibatch_size}"
            remedy = "raise them or set whiten_rewards=False"
            raise ValueError(f"whitening over fewer than 8 responses is noise; got {got}: {remedy}")
        if self.minibatch_size > self.batch_size:
            raise ValueError(f"minibatch_size={self.minibatch_size} is more than batch_size={self.batch_size}")

    def supervised(self, **changes: Any) -> TrainConfig:
        """How a stage without rollouts is trained: linear schedule, clipped gradient."""
        return TrainConfig.of(self, **{"schedule": "linear", "max_grad_norm": 1.0, **changes})


class Batch(NamedTuple):
    """What one update starts from: prompts, and for each the token ids that its response begins with ([] for none)."""

    prompts: list[Any]
    prefixes: list[list[int]]


@dataclass(frozen=True)
class Rollout:
    """The responses of one update and all that its losses need; tensors [row, tok], log-probs in nats."""

    groups: list[Group]
    texts: list[str]
    scores: Tensor
    ended: Tensor
    last: Tensor
    old_logps: Tensor
    reference_logps: Tensor
    old_values: Tensor
    is_token: Tensor
    is_generated: Tensor
    advantages: Tensor
    returns: Tensor

    @property
    def kl(self) -> Tensor:
        """log pi - log pi_ref of what was generated, a response."""
        return ((self.old_logps - self.reference_logps) * self.is_generated).sum(-1)


def optimise(
    policy: Policy,
    reference: Policy | None,
    critic: RewardModel,
    make_batch: Callable[[int], Batch],
    reward: Reward,
    config: PPOConfig,
    run: Run,
    *,
    seed: int,
    evaluate: Callable[[Policy, int], dict[str, float]],
) -> list[dict[str, float]]:
    """Optimises `policy` and `critic` in place and returns the evaluations, the start's first.

    A killed call goes on from its last checkpoint with the same numbers. The final weights of the policy are in
    `round-1/weights.safetensors` of the run folder.

    Args:
        reference: what the KL penalty is measured from; None is the policy with its adapter off. It must be the
            policy's start, as in every method here.
        make_batch: prompts and prefixes of an update, from its number alone.
        reward: scores of responses; those without an EOS token get `missing_end_score` whatever it says.
        evaluate: numbers of the policy after so many updates.

    Raises:
        RuntimeError: policy and reference differ before the first update; or the first inner step does not see the
            policy that wrote the responses.
        FloatingPointError: NaN scores or losses.
        NotImplementedError: under torchrun with more than one process.
    """
    if distributed.world() > 1:
        raise NotImplementedError("PPO runs in one process; start it without torchrun")
    points = sorted({round(k * config.updates / config.evaluations) for k in range(config.evaluations + 1)})
    last = run.folder / "round-1" / "weights.safetensors"
    both = nn.ModuleDict({"policy": policy.model, "critic": critic.model}).eval()
    optimizer = _optimizer(policy, critic, config)
    decay = (lambda u: 1 - u / config.updates) if config.schedule == "linear" else (lambda u: 1.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, decay)
    first, checkpoint = 0, Checkpoint(run.folder / "checkpoint", both, optimizer, scheduler)
    if last.is_file():
        load_weights(policy.model, last)
        first = config.updates
    elif config.ppo_checkpoint_every:
        first = checkpoint.restore()
        run.rewind_metrics(first)

    def measured(update: int) -> dict[str, float]:
        with without_cost():
            return evaluate(policy, update)

    for update in range(first, config.updates):
        if update in points:
            run.cached(f"evaluation-{update}", lambda u=update: measured(u))
        rollout = roll_out(policy, reference, critic, make_batch(update), reward, config, seed=seed * 100_000 + update)
        if update == 0:
            check_start(rollout, policy)
        numbers = improve(policy, critic, rollout, config, optimizer, seed=seed, update=update)
        rate = scheduler.get_last_lr()[0]
        scheduler.step()
        run.log({"step": update, **summary(rollout), **numbers, "learning_rate": rate})
        if config.ppo_checkpoint_every and (update + 1) % config.ppo_checkpoint_every == 0:
            checkpoint.store(update + 1)
    # without an end the fixed penalty, not the reward, is what was learned from
    rates = [row["missing_end"] for row in run.metrics()]
    if n := sum(rate > 0.5 for rate in rates):
        told = "more than half of the responses had no EOS token and got the fixed penalty"
        remedy = "raise max_new_tokens or start from a model that ends its responses"
        log.warning("in %d of %d updates %s; %s", n, len(rates), told, remedy)
    save_weights(policy.model, last)
    checkpoint.remove()
    run.cached(f"evaluation-{config.updates}", lambda: measured(config.updates))
    return [run.cached(f"evaluation-{point}", dict) for point in points]


# ----------------------------------------------------------------------------------------------------------- rollouts
def roll_out(
    policy: Policy,
    reference: Policy | None,
    critic: RewardModel,
    batch: Batch,
    reward: Reward,
    config: PPOConfig,
    *,
    seed: int,
) -> Rollout:
    """Responses of the current policy, with scores, log-probs, values and advantages; nothing here has a gradient.

    Raises:
        ValueError: a prefix that leaves nothing to generate.
        FloatingPointError: a score is NaN or infinite; the prompts are named.
    """
    length = config.max_new_tokens
    if full := [i for i, prefix in enumerate(batch.prefixes) if len(prefix) >= length]:
        raise ValueError(f"the prefixes of rows {full[:10]} have {length} tokens or more: nothing is left to generate")
    groups, texts = _drawn(policy, batch, config, seed)
    ids = [group.responses_ids[0] for group in groups]
    padded = torch.tensor([row + [-1] * (max(map(len, ids)) - len(row)) for row in ids], device=policy.device)
    is_end = torch.isin(padded, torch.tensor(sorted(policy.end_ids), device=policy.device))
    _, last, ended = objectives.truncate(padded.where(~is_end, policy.end_id), end_id=policy.end_id, pad_id=-1)
    columns = torch.arange(padded.shape[1], device=policy.device)
    prefix_lengths = torch.tensor([len(prefix) for prefix in batch.prefixes], device=policy.device)
    is_token = (padded >= 0) & (columns <= last[:, None])
    last = is_token.sum(-1) - 1
    is_generated = is_token & (columns >= prefix_lengths[:, None])
    given = np.asarray(reward(batch.prompts, ids, texts), dtype=float)
    if len(bad := np.flatnonzero(~np.isfinite(given))):
        what = f"the scores of rows {bad[:10].tolist()} are NaN or infinite"
        raise FloatingPointError(f"{what}; the first prompt is {batch.prompts[bad[0]]!r}")
    scores = torch.where(ended.cpu(), torch.from_numpy(given), config.missing_end_score).float().to(policy.device)

    def logps_of(model: Policy) -> Tensor:
        return _in_parts(groups, policy, lambda held: _token_logps(model, held, config))

    with torch.no_grad():
        now = logps_of(policy)
        with policy.without_adapter() if reference is None else nullcontext(reference) as frozen:
            then = logps_of(frozen)
        with critic.autocast():
            values = _in_parts(groups, policy, critic.values)
    rewards, _ = objectives.token_rewards(now, then, scores, last, kl_coef=config.kl_coef, is_token=is_token)
    if config.whiten_rewards:
        rewards = objectives.whiten(rewards, is_token, shift_mean=False)
    advantages, returns = objectives.gae(rewards, values, gamma=config.gamma, lam=config.lam, is_token=is_token)
    advantages = objectives.whiten(advantages, is_token)
    estimates = (values, is_token, is_generated, advantages, returns)
    return Rollout(groups, texts, scores, ended, last, now, then, *estimates)


def _drawn(policy: Policy, batch: Batch, config: PPOConfig, seed: int) -> tuple[list[Group], list[str]]:
    """One response to each prompt, behind its prefix: tokens, and texts without the blank at their start."""
    length = config.max_new_tokens
    prompts = [policy.encode_prompt(prompt, room=2 * length) for prompt in batch.prompts]
    options: dict[str, Any] = {"max_new_tokens": [length - len(prefix) for prefix in batch.prefixes], "seed": seed}
    found = sample(policy, prompts, prefix=batch.prefixes, temperature=config.temperature, **options)
    groups = [Group(prompt, [tokens[0]]) for prompt, tokens in zip(prompts, found.tokens, strict=True)]
    return groups, [policy.decode(tokens[0]).lstrip() for tokens in found.tokens]


def _token_logps(policy: Policy, groups: list[Group], config: PPOConfig) -> Tensor:
    return score(policy, groups, temperature=config.temperature).token_logps[:, 0]


def check_start(rollout: Rollout, policy: Policy) -> None:
    """Before any update policy and reference are the same weights under the same input, so every log-ratio is 0."""
    worst = float((rollout.old_logps - rollout.reference_logps).abs().max())
    if not worst < _tolerance(policy):
        found = f"a token's log-ratio of policy and reference is {worst:.2g} nats and should be 0"
        why = "the reference is not the model that this stage starts from"
        raise RuntimeError(f"before the first update {found}: {why}")


def summary(rollout: Rollout) -> dict[str, float]:
    """What the metrics say about an update's responses."""
    reset = (rollout.is_token & ~rollout.is_generated).sum(-1)
    residual = (rollout.returns - rollout.old_values)[rollout.is_token]
    numbers = {
        "score": rollout.scores.mean(),
        "kl_nats": rollout.kl.mean(),
        "response_tokens": rollout.is_token.sum(-1).float().mean(),
        "missing_end": 1 - rollout.ended.float().mean(),
        "reset_share": (reset > 0).float().mean(),
        "reset_tokens": reset.float().mean(),
        "explained_variance": 1 - residual.var() / rollout.returns[rollout.is_token].var().clamp_min(1e-12),
    }
    return {name: float(value) for name, value in numbers.items()}


@torch.no_grad()
def answers(
    policy: Policy,
    start: Policy | None,
    prompts: list,
    prefixes: list[list[int]],
    reward: Reward,
    config: PPOConfig,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For measurements: scores (the missing-end penalty included), log pi - log pi_start and whether each answer ended.

    The log-ratio is of the whole response at temperature 1, nats; `start` None is the policy with its adapter off.
    """
    groups, texts = _drawn(policy, Batch(prompts, prefixes), config, 20_000 + seed)
    ids = [group.responses_ids[0] for group in groups]
    ended = np.array([tokens[-1] in policy.end_ids for tokens in ids])
    scores = reward(prompts, ids, texts)
    now = reference_logps(policy, groups)[:, 0]
    with policy.without_adapter() if start is None else nullcontext(start) as frozen:
        then = reference_logps(frozen, groups)[:, 0]
    return np.where(ended, scores, config.missing_end_score), now - then, ended


# ------------------------------------------------------------------------------------------------------- optimisation
def improve(
    policy: Policy,
    critic: RewardModel,
    rollout: Rollout,
    config: PPOConfig,
    optimizer: torch.optim.Optimizer,
    *,
    seed: int,
    update: int,
) -> dict[str, float]:
    """The inner epochs over one update's responses; returns means over its optimiser steps.

    Raises:
        RuntimeError: at the first step the ratio of new and old policy is not 1: the log-probs of the rollout are not
            those of the policy (another temperature, another text).
        FloatingPointError: the loss or the gradient is NaN or infinite.
    """
    rows, size = len(rollout.groups), config.minibatch_size or len(rollout.groups)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history: list[dict[str, float]] = []
    for epoch in range(config.inner_epochs):
        order = np.random.default_rng([seed, update, epoch]).permutation(rows).tolist()
        for held in (order[start : start + size] for start in range(0, rows - size + 1, size)):
            numbers = _step(policy, critic, rollout, held, config)
            if not history and not numbers["ratio_error"] < _tolerance(policy):
                found = f"the ratio of new and old policy is off 1 by {numbers['ratio_error']:.2g}"
                why = "the log-probs of the rollout are not those of the policy that is trained"
                raise RuntimeError(f"at the first inner step {found}, and nothing was updated yet: {why}")
            if not np.isfinite(numbers["loss"]):
                raise FloatingPointError(f"update {update}: the loss is {numbers['loss']}; lower the learning rate")
            norm = float(nn.utils.clip_grad_norm_(parameters, config.max_grad_norm or math.inf))
            if not math.isfinite(norm):
                remedy = "lower the learning rate, or use precision='no'"
                raise FloatingPointError(f"update {update}: the loss is finite but the gradient is not; {remedy}")
            optimizer.step()
            optimizer.zero_grad()
            add_cost(optimizer_steps=1, trained_tokens=sum(n_tokens(rollout.groups[i]) for i in held))
            history.append(numbers)
    first = {f"first_{name}": history[0][name] for name in ("ratio_error", "policy_clipped")}
    names = ("loss", "policy_loss", "value_loss", "policy_clipped", "value_clipped")
    return {**{name: float(np.mean([numbers[name] for numbers in history])) for name in names}, **first}


def _step(
    policy: Policy, critic: RewardModel, rollout: Rollout, rows: list[int], config: PPOConfig
) -> dict[str, float]:
    """Adds the gradient of one minibatch; the two losses are divided by their own numbers of positions."""
    n_generated = rollout.is_generated[rows].sum().clamp_min(1)
    n_token = rollout.is_token[rows].sum()
    sizes = [n_tokens(group) for group in rollout.groups]
    total: dict[str, float] = {"policy_loss": 0.0, "value_loss": 0.0, "policy_clipped": 0.0, "value_clipped": 0.0}
    ratio_error = 0.0
    max_tokens = config.micro_batch_tokens or tokens_per_microbatch(policy.device)
    limits = {"cliprange": config.cliprange, "cliprange_value": config.cliprange_value}
    targets = [(rollout.old_logps, rollout.advantages), (rollout.old_values, rollout.returns)]
    targets.append((rollout.is_generated, rollout.is_token))
    for held in microbatches(rows, sizes, max_tokens=max_tokens, max_rows=config.micro_batch_size):
        groups = [rollout.groups[i] for i in held]
        logps = _token_logps(policy, groups, config)
        with critic.autocast():
            values = critic.values(groups).float()
        (old_logps, advantages), (old_values, returns), (is_generated, is_token) = (
            [tensor[held, : logps.shape[1]] for tensor in pair] for pair in targets
        )
        masked: dict[str, Any] = {"is_generated": is_generated, "is_token": is_token, **limits}
        (policy_losses, value_losses), logged = objectives.ppo(
            logps, old_logps, advantages, values, old_values, returns, **masked
        )
        policy_loss, value_loss = policy_losses.sum() / n_generated, value_losses.sum() / n_token
        (policy_loss + config.vf_coef * value_loss).backward()
        total["policy_loss"] += float(policy_loss.detach())
        total["value_loss"] += float(value_loss.detach())
        total["policy_clipped"] += float((logged["policy_clipped"] & is_generated).sum() / n_generated)
        total["value_clipped"] += float((logged["value_clipped"] & is_token).sum() / n_token)
        ratio_error = max(ratio_error, float((logged["ratios"] - 1)[is_generated].abs().max()))
    return {**total, "loss": total["policy_loss"] + config.vf_coef * total["value_loss"], "ratio_error": ratio_error}


def _tolerance(policy: Policy) -> float:
    exact = policy.precision == "no" and policy.model.dtype in (torch.float32, torch.float64)
    return 1e-3 if exact else 0.2  # a token's log-prob in bfloat16


def _in_parts(groups: Sequence[Group], policy: Policy, compute: Callable[[list[Group]], Tensor]) -> Tensor:
    """[row, tok] of all groups from parts that are held at once."""
    sizes = [n_tokens(group) for group in groups]
    joined = torch.zeros(len(groups), max(len(g.responses_ids[0]) for g in groups), device=policy.device)
    for held in microbatches(range(len(groups)), sizes, max_tokens=2 * tokens_per_microbatch(policy.device)):
        values = compute([groups[i] for i in held]).float()
        joined[held, : values.shape[1]] = values
    return joined


def _optimizer(policy: Policy, critic: RewardModel, config: PPOConfig) -> torch.optim.Optimizer:
    rates = ((policy, config.learning_rate), (critic, config.learning_rate * config.critic_lr_ratio))
    groups = [{"params": [p for p in model.model.parameters() if p.requires_grad], "lr": rate} for model, rate in rates]
    return torch.optim.AdamW(groups, eps=1e-5, weight_decay=0.0, fused=True)
