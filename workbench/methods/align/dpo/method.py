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
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
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
from workbench.worlds.planted_chain import LENGTH, PlantedChain

ARMS = {
    "dpo": "DPO",
    "sft": "SFT on the chosen responses",
    "shuffled": "labels shuffled",
}


AVERAGED = ("ipo", "simpo", "orpo")  # losses of log-probs per token
REFERENCE_FREE = ("simpo", "orpo")


@strict
class Config(Presets):
    """Defaults are the paper's (appendix B) where it gives one."""

    epochs: int = Field(default=1, ge=1)
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    beta: float = Field(default=0.1, gt=0)  # 1/nat; paper: 0.1; of ORPO the weight of the odds ratio
    learning_rate: float = Field(default=1e-6, gt=0)  # peak; paper: 1e-6
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
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"  # paper
    batch_size: int = Field(default=64, ge=1)  # pairs; paper: 64
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=500, ge=1)  # held-out prompts
    max_length: int = Field(default=512, ge=2)  # tokens of prompt and response; official code
    micro_batch_size: int = Field(default=0, ge=0)  # pairs held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    probe_every: int = Field(
        default=0, ge=0
    )  # optimiser steps between two looks at held-out pairs and samples; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("dpo", "sft", "shuffled")

    PRESETS: ClassVar = {
        "tiny": {
            "epochs": 2,
            "learning_rate": 1e-4,
            "n_pairs": 1_000,
            "max_length": 512,
            "test_size": 300,
            "probe_every": 8,
        },
        "smoke": {"learning_rate": 1e-4, "n_pairs": 128, "max_length": 512, "test_size": 50, "probe_every": 1},
        "full": {"precision": "bf16", "probe_every": 100},
    }
    ON_TEXT: ClassVar = {
        "tiny": {"learning_rate": 3e-5, "n_pairs": 400, "max_length": 512, "test_size": 200, "probe_every": 3},
        "smoke": {"learning_rate": 3e-5, "n_pairs": 32, "max_length": 256, "test_size": 16, "probe_every": 1},
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(
    config: Config, *, model: str = "", dataset: str = "", device: str = "auto"
) -> PreferenceTask | PlantedChain:
    """Pairs of the planted chain, or of a data set with a starting model; see `spin.open_task` for the rule."""
    if not dataset and not model:
        return PlantedChain(n_demonstrations=config.n_pairs or 1_000, device=device)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    return TextTask(
        dataset,
        model,
        kind="preference",
        device=device,
        test_size=config.test_size,
        train_size=config.n_pairs,
        max_length=config.max_length,
        lora=lora,
        precision=config.precision,
    )


def run(task: PreferenceTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}}`.

    `longer_is_chosen` is the accuracy of a rule that looks at length alone.
    """
    test = task.preferences("test", seed)
    longer = np.mean([0.5 + 0.5 * np.sign(len(row["chosen"]) - len(row["rejected"])) for row in test])
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    return {
        "arms": {
            arm: [{**numbers, "longer_is_chosen": float(longer)} for numbers in both] for arm, both in arms.items()
        }
    }


def run_arm(task: PreferenceTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, arm, seed, run.child(arm)))


def play(task: PreferenceTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: reference log-probs, one round of training, numbers before and after."""
    policy = task.start(seed)
    test = _groups(policy, task.preferences("test", seed), config)
    before = np.array(run.cached("held_out_before", lambda: reference_logps(policy, test).tolist()))
    objective, average = objective_of(config), config.loss_type in AVERAGED
    lengths = np.array([[len(ids) for ids in group.responses_ids] for group in test]) if average else 1
    probe = open_probe(task, policy, test, config, seed, run.child("round-1"))

    def make_round(policy: Policy, t: int) -> Round:
        rows = task.preferences("train", seed)
        groups = _groups(policy, rows, config)
        if probe:
            probe.start(policy)
        training = TrainConfig(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            warmup_ratio=config.warmup_ratio,
            max_steps=config.max_steps,
            micro_batch_size=config.micro_batch_size,
            checkpoint_every=config.checkpoint_every,
        )
        if arm == "sft":
            return Round(
                [Group(g.prompt_ids, g.responses_ids[:1]) for g in groups], supervised_step, training, None, probe
            )
        if arm == "shuffled":
            swap = np.random.default_rng([seed, 5]).random(len(groups)) < 0.5
            groups = [
                Group(g.prompt_ids, g.responses_ids[::-1] if s else g.responses_ids)
                for g, s in zip(groups, swap, strict=True)
            ]
        pairs = pair_rows(policy, [f"row {i}" for i in range(len(groups))], groups)
        start_loss = None if config.loss_type in REFERENCE_FREE else _loss_where_nothing_moved(objective)
        return Round(pairs, preference_step(objective, average=average), training, start_loss, probe)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if probe and t:
            probe.finish(policy)
        numbers, logged = pair_numbers(reference_logps(policy, test) / lengths, before / lengths, objective)
        if t:
            run.table(
                "held_out_rewards",
                lambda: pd.DataFrame(
                    {
                        **{
                            name: [row[name] for row in task.preferences("test", seed)]
                            for name in ("prompt", "chosen", "rejected")
                        },
                        **{name: logged[name].numpy() for name in ("chosen_rewards", "rejected_rewards")},
                    }
                ),
            )
        return {**task.evaluate(policy, seed), **numbers}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def open_probe(
    task: PreferenceTask, policy: Policy, test: Sequence[Group], config: Config, seed: int, run: Run
) -> Probe | None:
    """What looks at held-out pairs and at own samples while an arm trains; it changes no number of the training."""
    if not config.probe_every:
        return None
    prompts = [row["prompt"] for row in task.preferences("test", seed)]
    n_samples = 64 // len(set(map(str, prompts)))  # a world with few different prompts is asked the same again
    return Probe(
        policy,
        test,
        run,
        prompts,
        every=config.probe_every,
        seed=seed,
        n_rows=128,
        quality=_scorer(task),
        n_samples=max(1, min(8, n_samples)),
        max_new_tokens=min(getattr(task, "max_new_tokens", 64), 64),
        beta=0.0 if config.loss_type in REFERENCE_FREE + AVERAGED else config.beta,
    )


def _scorer(task: Any) -> Any:
    """What scores a response: the planted chain's share of symbols without a defect, a reward model, or None."""
    if hasattr(task, "defects"):
        return lambda prompts, texts: [
            1 - task.defects(int(p[1:]), text) / LENGTH for p, text in zip(prompts, texts, strict=True)
        ]
    return task.score if getattr(task, "judge", "") and getattr(task, "judge_kind", "") == "reward" else None


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


def _loss_where_nothing_moved(objective: Callable[..., Any]) -> float:
    """The objective's value where every log-ratio is 0."""
    import torch

    zero = torch.zeros(1, dtype=torch.float64)
    return float(objective(zero, zero, zero, zero)[0])


# ----------------------------------------------------------------------------------------------------------- claims
def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """What a baseline must do before it may serve as one. On real text only what is held out can be tested."""
    found = Claims("dpo", experiment.scale, experiment.seeds)

    def change(arm: str, key: str) -> np.ndarray:
        return np.array([result["arms"][arm][1][key] - result["arms"][arm][0][key] for result in results])

    def after(arm: str, key: str) -> np.ndarray:
        return np.array([result["arms"][arm][1][key] for result in results])

    found.test(
        "D1",
        "Held-out chosen responses get the higher implicit reward",
        paper="not stated as a number",
        control_is="labels shuffled",
        measured=after("dpo", "reward_accuracy") - 0.5,
        control=after("shuffled", "reward_accuracy") - 0.5,
        unit="accuracy above one half",
    )
    found.test(
        "D2",
        "The loss on held-out pairs falls",
        paper="not stated as a number",
        control_is="labels shuffled",
        direction="less",
        measured=change("dpo", "held_out_loss"),
        control=change("shuffled", "held_out_loss"),
        unit="nats",
    )
    summaries = "61 % against 57 % (PPO) of summaries preferred by GPT-4"
    if experiment.dataset:
        found.needs_full_scale(
            "D3", "Responses get better than those of the start", summaries, "needs a judge of whole responses"
        )
    else:
        found.test(
            "D3",
            "Responses get better than those of the start",
            paper=summaries,
            measured=change("dpo", "quality"),
            control=change("shuffled", "quality"),
            control_is="labels shuffled",
            unit="of responses without a defect",
        )
    return found
