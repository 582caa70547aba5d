"""MPO: mixed preference optimisation. DPO on the easy pairs, then PPO on the prompts of the difficult ones.

Needs pairs of a chosen and a rejected response. A reward model r trained on all pairs splits them by the margin
m = r(x, y_w) - r(x, y_l): easy where m > gamma, hard where |m| <= gamma, in conflict with the label where m < -gamma.

    stage 1, easy pairs:            minimise E -log sigma(beta_D [h_w - h_l]),  h = log pi - log pi_SFT   -> pi_DPO
    stage 2, prompts of hard pairs: maximise E [r(x, y) - beta_K sum_t (log pi(y_t) - log pi_DPO(y_t))] by PPO from
    pi_DPO

so that labels are used where they can be trusted, and the reference of stage 2 is pi_DPO, not pi_SFT.

Source: Gou and Nguyen 2024, "Mixed Preference Optimization", arXiv 2403.19443, abstracts of v1 and v2. No official code
was found and the paper's body was not available: the equations are the standard forms that the abstracts name, and
every default is ours.

What is ours: gamma is the median of |m|; margins are scored out of fold, so that memorised labels do not widen them;
pairs in conflict are left out of stage 1 and their prompts join stage 2; PPO's details are those of
`workbench.training.ppo`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from workbench import objectives, runs, tasks
from workbench.config import Field, listed, strict
from workbench.data import Row
from workbench.feedback.pairs import keep_sound
from workbench.kernels import without_cost
from workbench.kernels.heads import merged
from workbench.methods.align.mpo.margins import check_reward_model, out_of_fold_margins, split_pairs, split_table
from workbench.methods.align.mpo.measures import held_out_numbers
from workbench.methods.align.mpo.pairs import DialoguePairs, sound_pairs
from workbench.methods.align.mpo.world import NoisyGap
from workbench.models import Policy, add_lora
from workbench.runs.run import Run
from workbench.tasks.real import TextTask
from workbench.training import ppo
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import model_key, pair_rows
from workbench.training.reward_model import RewardModel, trained_once
from workbench.training.rounds import Round, check_start
from workbench.training.steps import preference_step

Pairs = Literal["", "all", "easy", "hard"]


@dataclass(frozen=True)
class Arm:
    """One way to go through the stages. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        first: pairs of stage 1 (DPO from pi_SFT); "" leaves the stage out.
        second: pairs whose prompts (PPO) or labels (DPO) stage 2 uses; "" leaves the stage out.
        second_by: how stage 2 trains. Its start is its reference.
        split: "margin"; "random", halves of the same sizes drawn at random.
        quantile: of |m| taken as gamma; 0 takes the configuration's.
        labels: "shuffled" swaps chosen and rejected in half of the pairs, before anything is learned.
        longer: PPO gets as many updates more as stage 1 has optimiser steps.
        kl: False takes the KL penalty away.
    """

    title: str
    first: Pairs = "easy"
    second: Pairs = "hard"
    second_by: Literal["ppo", "dpo"] = "ppo"
    split: Literal["margin", "random"] = "margin"
    quantile: float = 0.0
    labels: Literal["true", "shuffled"] = "true"
    longer: bool = False
    kl: bool = True
    colour: str = ""


@strict
class Config(ppo.PPOConfig):
    """All of it is ours, as the paper's own values were not available. PPO's values are in `ppo.PPOConfig`."""

    gamma: float = Field(default=0.0, ge=0)  # margin threshold, in reward; 0 takes `quantile`
    quantile: float = Field(default=0.5, gt=0, lt=1)  # of |margin| taken as gamma: the median, half easy and half hard
    conflict: Literal["apart", "abs"] = "apart"  # pairs with m < -gamma: stage 2 only; or easy, with the label given
    folds: int = Field(default=2, ge=1)  # of out-of-fold scoring; 1 scores pairs by the model that was trained on them
    dpo_beta: float = Field(default=0.1, gt=0)  # beta_D, 1/nat
    dpo_learning_rate: float = Field(default=5e-7, gt=0)
    epochs: int = Field(default=1, ge=1)  # of DPO
    max_steps: int = Field(default=0, ge=0)  # optimiser steps of DPO; 0: all epochs
    dpo_batch_size: int = Field(default=64, ge=1)  # pairs, of DPO and the reward model
    reward_learning_rate: float = Field(default=3e-6, gt=0)
    reward_epochs: int = Field(default=1, ge=1)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=600, ge=8)  # held-out prompts behind KL and proxy reward
    max_length: int = Field(default=1024, ge=4)  # prompt and response, tokens
    arms: list[str] = listed("mpo", "dpo", "ppo", "dpo_easy", "dpo_random", "shuffled")
    world: dict[str, int | float] = Field(default_factory=dict)  # settings of the embedded world, see NoisyGap

    @property
    def dpo_training(self) -> TrainConfig:
        return self.supervised(learning_rate=self.dpo_learning_rate, batch_size=self.dpo_batch_size)

    @property
    def reward_training(self) -> TrainConfig:
        rate, passes = self.reward_learning_rate, self.reward_epochs
        return self.supervised(learning_rate=rate, epochs=passes, batch_size=self.dpo_batch_size, max_steps=0)


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The noisy-gap world, or a data set of preference pairs with a starting model."""
    world = partial(NoisyGap, device=device, **config.world)
    real = partial(DialoguePairs.of, config, dataset, model, device=device, train_size=config.n_pairs)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: Any, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: reward model, split, DPO on one part, PPO on the prompts of another. Returns the evaluations of the
    start and after each stage that the arm has."""
    policy, sft = task.start(seed), task.start(seed)
    rows = sound_pairs(task, seed, n_pairs=config.n_pairs, shuffled=arm.labels == "shuffled")
    model, accuracy = reward_model(task, sft, rows, config, seed, strict=arm.labels == "true")
    folds: Any = {"folds": config.folds, "seed": seed, "max_length": config.max_length}
    margin = out_of_fold_margins(sft, rows, config.reward_training, **folds)
    shuffle, quantile = seed if arm.split == "random" else None, arm.quantile or config.quantile
    split = split_pairs(margin, gamma=config.gamma, quantile=quantile, conflict=config.conflict, shuffle=shuffle)
    run.table("split", lambda: split_table(rows, split, None if isinstance(task, TextTask) else task.score))
    known = {"reward_model_accuracy": accuracy, "gamma": split.gamma, "easy": float((split.part == "easy").mean())}

    def evaluate(policy: Policy, dpo_steps: int, ppo_updates: int = 0) -> dict[str, float]:
        with without_cost():
            numbers = {**task.evaluate(policy, seed), **held_out_numbers(task, policy, sft, reward, config, seed)}
        return numbers | known | {"dpo_steps": float(dpo_steps), "ppo_updates": float(ppo_updates)}

    def reward(prompts: Sequence[Any], ids: Sequence[list[int]], texts: Sequence[str]) -> np.ndarray:
        return model.score_samples(policy, prompts, ids, texts)

    def chosen(which: np.ndarray) -> list[Row]:
        return [row for row, keep in zip(rows, which, strict=True) if keep]

    stages, steps = [run.cached("stage-0", lambda: evaluate(policy, 0))], 0
    if arm.first:
        # arms with the same pairs share the weights after stage 1
        steps = train_dpo(policy, chosen(split.pairs(arm.first)), config, seed, run.beside("shared"))
        stages.append(run.cached("stage-1", lambda: evaluate(policy, steps)))
    if arm.second and arm.second_by == "dpo":
        steps += train_dpo(policy, chosen(split.pairs(arm.second)), config, seed, run)
        stages.append(run.cached("stage-2", lambda: evaluate(policy, steps)))
    if not arm.second or arm.second_by == "dpo":
        save_weights(policy.model, run.folder / "round-1" / "weights.safetensors")
        return stages

    asked, second = [row["prompt"] for row in chosen(split.prompts(arm.second))], run.child("stage-2")
    settings = ppo_settings(config, arm, len(rows))
    start = hand_over(policy, config)
    critic = model.copy()
    if config.lora:
        critic.model = add_lora(critic.model, **config.lora, task_type="SEQ_CLS")

    def make_batch(update: int) -> ppo.Batch:
        places = np.random.default_rng([seed, update, 1]).integers(len(asked), size=config.batch_size)
        return ppo.Batch([asked[i] for i in places], [[]] * config.batch_size)

    def after_updates(policy: Policy, update: int) -> dict[str, float]:
        return evaluate(policy, steps, update) if update else stages[-1]

    *_, last = ppo.optimise(
        policy, start, critic, make_batch, reward, settings, second, seed=seed, evaluate=after_updates
    )
    # with LoRA stage 1 is in weights that do not train any more, and belongs to the result
    save_weights(policy.model, run.folder / "round-1" / "weights.safetensors", frozen=config.lora_rank > 0)
    return [*stages, {**last, "kl_reference": second.metrics()[-1]["kl_nats"]}]


# ----------------------------------------------------------------------------------------------------- before stage 1
def reward_model(
    task: Any, sft: Policy, rows: list[Row], config: Config, seed: int, *, strict: bool = True
) -> tuple[RewardModel, float]:
    """A reward model on all pairs, and its accuracy on held-out pairs.

    Raises:
        ValueError: it tells held-out pairs apart worse than a coin, or gives every response the same reward.
    """
    test = keep_sound(task.preferences("test", seed))[0]
    training, limit = config.reward_training, config.max_length
    model, accuracy = trained_once(sft, rows, training, seed=seed, test_rows=test, max_length=limit)
    check_reward_model(model, accuracy, test, strict=strict)
    return model, accuracy


# -------------------------------------------------------------------------------------------------------- the stages
def train_dpo(policy: Policy, rows: list[Row], config: Config, seed: int, shared: Run) -> int:
    """DPO in place from the policy as it is, which is its own reference; trained once for its pairs and its start.

    Returns:
        Optimiser steps.
    """
    training = config.dpo_training

    def build(folder: Any) -> None:
        groups = [policy.group(r["prompt"], [r["chosen"], r["rejected"]], max_length=config.max_length) for r in rows]
        pairs = pair_rows(policy, [f"pair {i}" for i in range(len(rows))], groups)
        step = preference_step(objectives.dpo, beta=config.dpo_beta)
        check_start(policy, Round(pairs, step, training, math.log(2)))
        train(policy, pairs, step, training, shared.child("dpo"), seed=seed)
        save_weights(policy.model, folder / "weights.safetensors")

    key = {"kind": "dpo", "code": runs.code_hash(__name__), "rows": rows, "start": model_key(policy), "seed": seed}
    key |= {"training": asdict(training), "beta": config.dpo_beta, "max_length": config.max_length}
    load_weights(policy.model, runs.cached_folder(key, build, root=shared.folder) / "weights.safetensors")
    return config.max_steps or config.epochs * math.ceil(len(rows) / config.dpo_batch_size)


def ppo_settings(config: Config, arm: Arm, n_pairs: int) -> Config:
    """Of stage 2: without the KL penalty, or with the optimiser steps of stage 1 on top, where the arm says so."""
    per_update = config.inner_epochs * (config.batch_size // (config.minibatch_size or config.batch_size))
    saved = config.epochs * math.ceil(n_pairs / 2 / config.dpo_batch_size)
    updates = config.updates + (math.ceil(saved / per_update) if arm.longer else 0)
    return replace(config, updates=updates, kl_coef=config.kl_coef * arm.kl)


def hand_over(policy: Policy, config: Config) -> Policy | None:
    """The reference of stage 2: a frozen copy of its start. With LoRA stage 1 is merged: "adapter off" is pi_DPO."""
    if not config.lora:
        return policy.copy()
    policy.model = add_lora(merged(policy.model), **config.lora)
    return None
