"""DPO: direct preference optimisation, the baseline that most methods here are compared with.

Needs pairs of a chosen and a rejected response. With the starting policy as frozen reference, minimise

    L = E -log sigmoid(beta [log p_theta(y_w|x)/p_ref(y_w|x) - log p_theta(y_l|x)/p_ref(y_l|x)])

Its relatives, which share the data and differ in the loss alone, run from the same file: `loss_type` names one (IPO,
KTO on pairs, SimPO, ORPO, hinge, ...). IPO, SimPO and ORPO take log-probs averaged over the tokens of a response.

Source: Rafailov et al. 2023, "Direct Preference Optimization", arXiv 2305.18290, eq. 7; official code
eric-mitchell/direct-preference-optimization.

Where this differs from the official code, and why:
- linear warm-up over a share of all steps (there: 150 steps, more than a small run has);
- reference log-probs are computed once, before training, from the policy itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from workbench import objectives, tasks
from workbench.config import Field, Presets, Training, listed, strict
from workbench.data import Row
from workbench.kernels import Group
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import PreferenceTask
from workbench.tasks.real import TextTask
from workbench.training.loop import TrainConfig
from workbench.training.probes import Probe
from workbench.training.reference import pair_rows, reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import pair_numbers, preference_step, supervised_step
from workbench.worlds.planted_chain import PlantedChain


@dataclass(frozen=True)
class Arm:
    """What is trained. The defaults are the method.

    Attributes:
        learns: "pairs", or "chosen" alone by supervised learning.
        labels: "shuffled" swaps chosen and rejected in half of the pairs at random.
    """

    title: str
    learns: Literal["pairs", "chosen"] = "pairs"
    labels: Literal["true", "shuffled"] = "true"
    colour: str = ""


@strict
class Config(Training, Presets):
    """Defaults are the paper's (appendix B); its optimiser, rate of 1e-6 and batch of 64 pairs are the block's."""

    beta: float = Field(default=0.1, gt=0)  # 1/nat; paper: 0.1; of ORPO the weight of the odds ratio
    loss_type: Literal[
        "sigmoid",
        "hinge",
        "ipo",
        "robust",
        "exo_pair",
        "nca_pair",
        "sppo_hard",
        "kto_pair",
        "apo_zero",
        "simpo",
        "orpo",
    ] = "sigmoid"  # eq. 7
    gamma: float = Field(default=1.0, ge=0)  # of SimPO: margin of rewards
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=500, ge=1)  # held-out prompts; ours
    max_length: int = Field(default=512, ge=2)  # tokens of prompt and response; official code
    probe_every: int = Field(default=0, ge=0)  # optimiser steps between looks at held-out pairs and samples; 0: none
    arms: list[str] = listed("dpo", "sft", "shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see PlantedChain


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """Pairs of the planted chain, or of a data set with a starting model."""
    world = partial(PlantedChain, n_demonstrations=config.n_pairs or 1_000, device=device, **config.world)
    real = partial(TextTask.of, config, dataset, model, device=device, kind="preference", train_size=config.n_pairs)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: PreferenceTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Reference log-probs, one round of training, and the numbers before and after it."""
    policy = task.start(seed)
    test_rows = task.preferences("test", seed)
    test = _groups(policy, test_rows, config)
    before = np.array(run.cached("held_out_before", lambda: reference_logps(policy, test).tolist()))
    objective, average = objective_of(config), config.loss_type in objectives.AVERAGED
    lengths = np.array([[len(ids) for ids in group.responses_ids] for group in test]) if average else 1
    # the accuracy of a rule that looks at length alone
    longer = np.mean([0.5 + 0.5 * np.sign(len(row["chosen"]) - len(row["rejected"])) for row in test_rows])
    probe = open_probe(task, policy, test, config, seed, run.child("round-1"))

    def make_round(policy: Policy, t: int) -> Round:
        groups, training = _groups(policy, task.preferences("train", seed), config), TrainConfig.of(config)
        if probe:
            probe.start(policy)
        if arm.learns == "chosen":
            chosen = [Group(g.prompt_ids, g.responses_ids[:1]) for g in groups]
            return Round(chosen, supervised_step, training, None, probe)
        if arm.labels == "shuffled":
            swap = np.random.default_rng([seed, 5]).random(len(groups)) < 0.5
            both = zip(groups, swap, strict=True)
            groups = [g._replace(responses_ids=g.responses_ids[::-1]) if swapped else g for g, swapped in both]
        rows = pair_rows(policy, [f"row {i}" for i in range(len(groups))], groups)
        zero = torch.zeros(1, dtype=torch.float64)  # every log-ratio before the first step
        start_loss = (
            None if config.loss_type in objectives.REFERENCE_FREE else float(objective(zero, zero, zero, zero)[0])
        )
        return Round(rows, preference_step(objective, average=average), training, start_loss, probe)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if probe and t:
            probe.finish(policy)
        numbers, logged = pair_numbers(reference_logps(policy, test) / lengths, before / lengths, objective)
        if t:
            pairs = {name: [row[name] for row in test_rows] for name in ("prompt", "chosen", "rejected")}
            rewards = {name: logged[name].numpy() for name in ("chosen_rewards", "rejected_rewards")}
            run.table("held_out_rewards", lambda: pd.DataFrame({**pairs, **rewards}))
        return {**task.evaluate(policy, seed), **numbers, "longer_is_chosen": float(longer)}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def open_probe(task: Any, policy: Policy, test: Sequence[Group], config: Config, seed: int, run: Run) -> Probe | None:
    """What looks at held-out pairs and at own samples while an arm trains; it changes no number of the training."""
    if not config.probe_every:
        return None
    prompts = [row["prompt"] for row in task.preferences("test", seed)]
    n_samples = 64 // len(set(map(str, prompts)))  # a world with few different prompts is asked the same again
    sizes: Any = {"n_samples": max(1, min(8, n_samples)), "max_new_tokens": min(task.max_new_tokens, 64)}
    quality = task.qualities if isinstance(task, PlantedChain) else None
    beta = 0.0 if config.loss_type in objectives.AVERAGED else config.beta
    drawn: Any = {"every": config.probe_every, "seed": seed, "n_rows": 128, **sizes}
    return Probe(policy, test, run, prompts, quality=quality, beta=beta, **drawn)


def _groups(policy: Policy, rows: Sequence[Row], config: Config) -> list[Group]:
    return [policy.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=config.max_length) for row in rows]


def objective_of(config: Config) -> Callable[..., Any]:
    """The loss of four log-probs that `loss_type` names, with its settings."""
    if config.loss_type == "simpo":
        return lambda chosen, rejected, *_: objectives.simpo(chosen, rejected, beta=config.beta, gamma=config.gamma)
    if config.loss_type == "orpo":
        return lambda chosen, rejected, *_: objectives.orpo(chosen, rejected, weight=config.beta)
    options = {"beta": config.beta, "loss_type": config.loss_type, "label_smoothing": config.label_smoothing}
    return partial(objectives.dpo, **options)
