"""DR-PO: dataset reset policy optimisation. PPO whose rollouts begin inside good offline responses.

Needs prompts with one reference response each and a reward r_phi. A policy that is rewarded for a whole response, and
hardly ever writes a good one, has nothing to learn from; set down near the end of a good response it succeeds
sometimes, and from there success spreads to the front. Before it come pi_SFT, fine-tuned on the references, and r_phi,
learned from pairs, of which the critic V is a copy. Then every update of the policy pi, which starts as pi_SFT:

    1. Reset: for each prompt x with reference y~ of L tokens (EOS token included), with probability beta draw n
       uniformly from 1 .. L-1, else n = 0. The response begins with y~_1 .. y~_n.
    2. Rollout: y_t ~ pi(. | x, y_<t) for t > n, until the EOS token.
    3. Reward every token, t <= n too: r_t = -kl (log pi(y_t) - log pi_SFT(y_t)) + [t last] s, where s = r_phi(x, y), or
       -1 for a response without an EOS token; divided by the standard deviation of all r_t of the batch.
    4. Advantage: A = GAE(gamma, lambda) of r under the critic V, whitened; returns R = A before whitening + V.
    5. Update, in four passes over the batch, with rho_t = pi(y_t) / pi_rollout(y_t): minimise

           mean over t > n of max(-A_t rho_t, -A_t clip(rho_t, 0.8, 1.2))
           + 0.1 mean over all t of max((V_t - R_t)^2, (V_t clipped to V_old,t +- 0.2 - R_t)^2) / 2

so that tokens of the reset, which the policy did not choose, give it no gradient but teach the critic. beta = 0 is PPO.
Nothing is ever reset at evaluation. Steps 2 to 5 are those of every PPO and stand in `workbench.training.ppo`; pi_SFT
is the start that a task gives.

Source: Chang, Zhan, Oertell, Brantley, Misra, Lee, Sun 2024, "Dataset Reset Policy Optimization for RLHF",
arXiv 2404.08495v3, Algorithms 1 and 2; official code Cornell-RL/drpo at bd825df (reset lengths: Cornell-RL/tril).

Where this differs from the official code, and why: see `workbench.training.ppo`; and
- sampling at temperature 0.7 as the script does (the paper's table says 0.1);
- the adaptive KL coefficient, which is off by default there, is not built;
- without a learned reward model (the world's exact reward) the critic starts from the policy with a head of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from workbench import tasks
from workbench.config import Field, Source, listed, strict
from workbench.data import Row
from workbench.kernels import sample, without_cost
from workbench.methods.align.dr_po.baselines import train_supervised
from workbench.methods.align.dr_po.measures import by_prefix, from_bare_prompts
from workbench.methods.align.dr_po.references import encode_reference, read_references
from workbench.methods.align.dr_po.world import LateRewardChain
from workbench.models import Policy, add_lora
from workbench.runs.run import Run
from workbench.tasks.real import TextTask
from workbench.training import ppo
from workbench.training.reward_model import RewardModel, trained_once


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        beta: share of rollouts that start from a reset; None takes the configuration's.
        prefixes: "reference", of the row's own; "wrong", of another prompt's, a control; "policy", sampled from pi_SFT
            (PPO++, a baseline of the paper).
        references: "right", the task's demonstrations; "patchy", its variant that is right in parts only.
        reward: "task", the world's true one; "leading_run", its dense one, the share of steps before the first wrong
            one; "learned", a reward model's.
        learns: "rl"; "demonstrations" (supervised); "pairs" (DPO on the pairs the reward model is trained on).
    """

    title: str
    beta: float | None = None
    prefixes: Literal["reference", "wrong", "policy"] = "reference"
    references: Literal["right", "patchy"] = "right"
    reward: Literal["task", "leading_run", "learned"] = "task"
    learns: Literal["rl", "demonstrations", "pairs"] = "rl"
    colour: str = ""


@strict
class Config(ppo.PPOConfig):
    """Defaults are the paper's (table 5); those of PPO are in `ppo.PPOConfig`."""

    beta: float = 1.0  # share of rollouts that start from a reset; paper: 1.0 (not DPO's beta)
    score_scale: float = Field(default=1.0, gt=0)  # the reward is multiplied by it; ours
    prefix_top_p: float = Field(default=0.92, gt=0, le=1)  # of PPO++'s prefixes; official ppo_pp.py
    reward_model: Source = ""  # folder or hub id; "": trained on the task's preferences
    reward_epochs: int = Field(default=1, ge=1)  # paper: 1
    reward_learning_rate: float = Field(default=3e-6, gt=0)  # paper
    epochs: int = Field(default=1, ge=1)  # of SFT and DPO; paper: 1
    baseline_learning_rate: float = Field(default=3e-6, gt=0)  # of SFT and DPO; paper
    baseline_batch_size: int = Field(default=64, ge=1)  # of SFT, DPO and the reward model; paper: 64
    dpo_beta: float = Field(default=0.05, gt=0)  # 1/nat; paper
    n_prompts: int = Field(default=0, ge=0)  # training prompts; 0: all
    test_size: int = Field(default=600, ge=8)  # held-out prompts; paper: 600 test posts
    max_length: int = Field(default=565, ge=4)  # prompt and response, tokens; script: 512 + 53
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights; paper: 1024
    arms: list[str] = listed("dr_po", "dr_po_50", "ppo", "ppo_pp", "wrong", "sft", "dpo")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see LateRewardChain

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.beta <= 1:
            raise ValueError(
                f"beta is the reset share, the part of rollouts that start from a reset, in [0, 1]; got {self.beta}"
            )


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The late-reward chain; or a data set of preference pairs (the chosen response serves as reference) with a model.

    Raises:
        ValueError: one of model and dataset without the other; arms that need the planted truth on real data.
    """

    def real() -> TextTask:
        arms = {name: config.ARMS[name] for name in config.arms}
        if planted := [a for a, arm in arms.items() if arm.references == "patchy" or arm.reward == "leading_run"]:
            raise ValueError(f"arms {planted} need the embedded world; with {dataset} leave them out of `arms`")
        kind = "demonstration" if config.reward_model else "preference"
        return TextTask.of(config, dataset, model, device=device, kind=kind, train_size=config.n_prompts)

    world = partial(LateRewardChain, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: Any, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 2 of the paper for one arm and one seed; returns the evaluations, the start's first."""
    policy = task.start(seed)
    # pi_SFT, frozen; None where it is the policy with its LoRA adapter off
    start = None if hasattr(policy.model, "disable_adapter") else policy.copy()
    resets = arm.learns == "rl" and arm.prefixes != "policy" and reset_share(arm, config) > 0
    which = {"patchy": arm.references == "patchy", "needed": resets or arm.learns == "demonstrations"}
    rows = read_references(task, "train", seed, **which)[: config.n_prompts or None]
    test = read_references(task, "test", seed, **which)[: config.test_size]
    reward, critic, reward_accuracy = reward_and_critic(task, policy, arm, config, seed)

    def evaluate(policy: Policy, _update: int) -> dict[str, float]:
        return {
            **task.evaluate(policy, seed),
            **from_bare_prompts(policy, start, [row["prompt"] for row in test], reward, config, seed),
            **reward_accuracy,
        }

    if arm.learns != "rl":
        pairs = task.preferences("train", seed) if arm.learns == "pairs" else None
        rate, size = config.baseline_learning_rate, config.baseline_batch_size
        training = config.supervised(learning_rate=rate, batch_size=size)
        limits = {"dpo_beta": config.dpo_beta, "max_length": config.max_length}
        return train_supervised(policy, rows, pairs, evaluate, training, run, seed=seed, **limits)
    encoded = [encode_reference(policy, row["reference"], config.max_new_tokens) for row in rows]
    # PPO++ takes its prefixes from pi_SFT, not from what the policy has become; the other arms sample none
    writer = start or (policy.copy() if arm.prefixes == "policy" else policy)

    def make_batch(update: int) -> ppo.Batch:
        return reset_batch(rows, encoded, writer, arm, config, seed, update)

    numbers = ppo.optimise(policy, start, critic, make_batch, reward, config, run, seed=seed, evaluate=evaluate)
    with without_cost():  # a measurement: not part of what the arms are said to cost
        run.table("by_prefix", lambda: by_prefix(policy, start, test, reward, config, seed))
    return numbers


# ------------------------------------------------------------------------------------------------- step 1: the resets
def reset_batch(
    rows: Sequence[Row], encoded: Sequence[list[int]], writer: Policy, arm: Arm, config: Config, seed: int, update: int
) -> ppo.Batch:
    """The prompts of one update, and for each the tokens that its response begins with.

    All arms of a seed see the same prompts, and a larger beta resets all that a smaller one resets.

    Args:
        rows: training rows; `encoded` are the token ids of their references.
        writer: what PPO++ samples its prefixes from.
    """
    rng = np.random.default_rng([seed, update, 1])
    chosen = rng.integers(len(rows), size=config.batch_size).tolist()
    prompts = [rows[i]["prompt"] for i in chosen]
    sources = [encoded[i] for i in chosen]  # responses that the prefixes are cut from
    beta = reset_share(arm, config)
    if beta and arm.prefixes == "wrong":
        shifts = rng.integers(1, len(encoded), size=len(chosen))  # never 0: another prompt's
        sources = [encoded[(i + shift) % len(encoded)] for i, shift in zip(chosen, shifts, strict=True)]
    if beta and arm.prefixes == "policy":
        written = sample(
            writer,
            prompts,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.prefix_top_p,
            seed=seed * 100_000 + update + 50_000,  # not the rollouts' seed, seed * 100_000 + update
        )
        sources = [tokens[0] for tokens in written.tokens]
    lengths = reset_lengths([len(tokens) for tokens in sources], beta, np.random.default_rng([seed, update, 2]))
    return ppo.Batch(prompts, [tokens[:n] for tokens, n in zip(sources, lengths, strict=True)])


def reset_lengths(reference_lengths: Sequence[int], beta: float, rng: np.random.Generator) -> np.ndarray:
    """How many tokens of each reference a rollout begins with, [n].

    With probability beta uniform on 1 .. L-1, else 0; a reference of fewer than two tokens is never reset to. So a
    reset never covers the whole reference, and something is left to generate.

    Source: Cornell-RL/tril, RollinProcessor.create_mask.
    """
    lengths = np.asarray(reference_lengths, dtype=int)
    is_reset = (rng.random(len(lengths)) < beta) & (lengths >= 2)
    return np.where(is_reset, rng.integers(1, np.maximum(lengths, 2)), 0)


def reset_share(arm: Arm, config: Config) -> float:
    """beta of an arm."""
    return config.beta if arm.beta is None else arm.beta


# ------------------------------------------------------------------------------------- what steps 3 and 4 are given
def reward_and_critic(
    task: Any, policy: Policy, arm: Arm, config: Config, seed: int
) -> tuple[ppo.Reward, RewardModel, dict[str, float]]:
    """The score of a response, the network that the critic starts from, and a learned score's accuracy.

    A learned reward is also the critic's start. Real text, which has no truth to ask, always gets a learned one.
    """
    scale = config.score_scale
    if arm.reward != "learned" and not isinstance(task, TextTask):
        truth: Callable = task.leading_run if arm.reward == "leading_run" else task.score
        critic = RewardModel.over(policy, seed=seed)
        return lambda prompts, ids, texts: scale * np.asarray(truth(prompts, texts)), critic, {}
    model, accuracy = learned_reward(task, policy, config, seed)
    critic = model.copy()
    if config.lora:
        critic.model = add_lora(critic.model, **config.lora, task_type="SEQ_CLS")
    return lambda prompts, ids, texts: scale * model.score_samples(policy, prompts, ids, texts), critic, accuracy


def learned_reward(task: Any, policy: Policy, config: Config, seed: int) -> tuple[RewardModel, dict[str, float]]:
    """The reward model that is given; or one trained on the task's pairs, and its accuracy on held-out pairs."""
    if config.reward_model:
        return RewardModel.load(config.reward_model, device=policy.device.type, precision=config.precision), {}
    training = config.supervised(
        learning_rate=config.reward_learning_rate,
        epochs=config.reward_epochs,
        batch_size=config.baseline_batch_size,
        max_steps=0,  # all epochs, however short the policy's own training is
    )
    rows, test = task.preferences("train", seed), task.preferences("test", seed)
    limit = config.max_length
    model, accuracy = trained_once(policy, rows, training, seed=seed, test_rows=test, max_length=limit)
    return model, {"reward_model_accuracy": accuracy}
