"""MPO: mixed preference optimisation. DPO on the easy pairs, then PPO on the prompts of the difficult ones.

Needs pairs of a chosen and a rejected response. A reward model r trained on all pairs splits them by the margin
m = r(x, y_w) - r(x, y_l): easy where m > gamma, hard where |m| <= gamma, in conflict with the label where m < -gamma.

    stage 1, easy pairs:            minimise E -log sigma(beta_D [h_w - h_l]),  h = log pi - log pi_SFT   -> pi_DPO
    stage 2, prompts of hard pairs: maximise E [r(x, y) - beta_K sum_t (log pi(y_t) - log pi_DPO(y_t))] by PPO from
    pi_DPO

so that the reference of stage 2 is pi_DPO, not pi_SFT.

Source: Gou and Nguyen 2024, "Mixed Preference Optimization", arXiv 2403.19443, abstracts of v1 and v2. No official code
was found and the paper's body was not available: the equations are the standard forms that the abstracts name, and
every default is ours.

What is ours: gamma is the median of |m|; margins are scored out of fold, so that memorised labels do not widen them;
pairs in conflict are left out of stage 1 and their prompts join stage 2; PPO's details are those of
`workbench.training.ppo`.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import data, objectives, runs
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.data import Row
from workbench.feedback.pairs import keep_sound
from workbench.kernels import unmetered
from workbench.methods.align.mpo.margins import check_reward_model, out_of_fold_margins, split_pairs, split_table
from workbench.methods.align.mpo.world import NoisyGap
from workbench.models import Policy, add_lora
from workbench.runs.run import Run
from workbench.tasks.real import TextTask
from workbench.training import ppo
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import model_key, pair_rows, reference_logps
from workbench.training.reward_model import RewardModel, trained_once
from workbench.training.rounds import Round, check_start
from workbench.training.steps import pair_numbers, preference_step

log = logging.getLogger(__name__)

Part = Literal["", "all", "easy", "hard"]


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
    first: Part = "easy"
    second: Part = "hard"
    second_by: Literal["ppo", "dpo"] = "ppo"
    split: Literal["margin", "random"] = "margin"
    quantile: float = 0.0
    labels: Literal["true", "shuffled"] = "true"
    longer: bool = False
    kl: bool = True


ARMS: dict[str, Arm] = {
    "mpo": Arm("MPO"),
    "dpo": Arm("DPO on all pairs", first="all", second=""),
    "dpo_easy": Arm("DPO on easy pairs", second=""),
    "dpo_hard": Arm("DPO on hard pairs", first="hard", second=""),
    "dpo_random": Arm("DPO on as many random pairs", second="", split="random"),
    "ppo": Arm("PPO, all prompts", first="", second="all"),
    "ppo_hard": Arm("PPO, hard prompts", first=""),
    "ppo_long": Arm("PPO, all prompts, longer", first="", second="all", longer=True),
    "mpo_easy": Arm("DPO on easy, PPO on easy prompts", second="easy"),
    "mpo_all": Arm("DPO on easy, PPO on all prompts", second="all"),
    "dpo_dpo": Arm("DPO on easy, then on hard pairs", second_by="dpo"),
    "reversed": Arm("DPO on hard, PPO on easy prompts", first="hard", second="easy"),
    "random": Arm("MPO, split at random", split="random"),
    "random_reversed": Arm("random split, halves exchanged", first="hard", second="easy", split="random"),
    "shuffled": Arm("MPO, labels shuffled", labels="shuffled"),
    "dpo_easy_30": Arm("DPO on easy pairs, gamma at 0.3", second="", quantile=0.3),
    "dpo_easy_70": Arm("DPO on easy pairs, gamma at 0.7", second="", quantile=0.7),
    "no_kl": Arm("MPO without KL penalty", kl=False),
}


@strict
class Config(ppo.PPOConfig, Presets):
    """Nothing here was verified in the paper: values are the specification's. Those of PPO are in `ppo.PPOConfig`."""

    gamma: float = Field(default=0.0, ge=0)  # margin threshold, in reward; 0 takes `quantile`
    quantile: float = Field(default=0.5, gt=0, lt=1)  # of |margin| taken as gamma: the median, half easy and half hard
    conflict: Literal["apart", "abs"] = "apart"  # pairs with m < -gamma: stage 2 only; or easy, with the label given
    folds: int = Field(default=2, ge=1)  # of out-of-fold scoring; 1 scores pairs by the model that was trained on them
    dpo_beta: float = Field(default=0.1, gt=0)  # beta_D, 1/nat
    dpo_rate: float = Field(default=5e-7, gt=0)
    dpo_epochs: int = Field(default=1, ge=1)
    dpo_steps: int = Field(default=0, ge=0)  # optimiser steps of DPO; 0: all epochs
    dpo_batch_size: int = Field(default=64, ge=1)  # pairs
    reward_rate: float = Field(default=3e-6, gt=0)
    reward_epochs: int = Field(default=1, ge=1)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=600, ge=8)  # held-out prompts behind KL and proxy reward
    max_length: int = Field(default=1024, ge=4)  # prompt and response, tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps of DPO; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"
    arms: list[str] = listed(*[arm for arm in ARMS if arm != "no_kl"])
    world: dict[str, float] = Field(default_factory=dict)  # settings of the embedded world, see NoisyGap

    PRESETS: ClassVar = {
        "tiny": {
            "updates": 30,
            "batch_size": 128,
            "minibatch_size": 64,
            "inner_epochs": 2,
            "learning_rate": 3e-4,
            "critic_rate": 3.0,
            "temperature": 1.0,
            "max_new_tokens": 9,
            "dpo_rate": 1e-4,
            "dpo_epochs": 2,
            "reward_rate": 1e-3,
            "reward_epochs": 5,
            "folds": 3,
            "test_size": 320,
            "max_length": 64,
            "n_pairs": 3_000,
        },
        "smoke": {
            "updates": 2,
            "batch_size": 16,
            "inner_epochs": 1,
            "learning_rate": 1e-4,
            "temperature": 1.0,
            "max_new_tokens": 9,
            "dpo_rate": 1e-4,
            "reward_rate": 3e-3,
            "reward_epochs": 6,
            "test_size": 16,
            "max_length": 64,
            "n_pairs": 192,
            "arms": [
                "mpo",
                "dpo",
                "dpo_easy",
                "dpo_random",
                "ppo",
                "dpo_dpo",
                "reversed",
                "random",
                "random_reversed",
                "shuffled",
            ],
            "world": {"n_pairs": 192, "sft_steps": 40, "test_draws": 64, "width": 32},
        },
        "full": {"precision": "bf16", "lora_rank": 64, "n_pairs": 20_000},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "updates": 20,
            "batch_size": 32,
            "learning_rate": 3e-5,
            "dpo_rate": 3e-5,
            "reward_rate": 3e-5,
            "n_pairs": 400,
            "test_size": 64,
            "max_length": 512,
            "arms": ["mpo", "dpo", "ppo", "dpo_easy", "dpo_random", "shuffled"],
        },
        "smoke": {
            "updates": 1,
            "batch_size": 8,
            "inner_epochs": 1,
            "learning_rate": 3e-5,
            "dpo_rate": 3e-5,
            "reward_rate": 3e-5,
            "n_pairs": 64,
            "test_size": 8,
            "max_length": 256,
            "max_new_tokens": 12,
            "arms": ["mpo"],
        },
    }

    def __post_init__(self):
        ppo.PPOConfig.__post_init__(self)
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The noisy-gap world, or a data set of preference pairs with a starting model.

    Raises:
        ValueError: one of model and dataset without the other.
    """
    if not dataset and not model:
        world: dict[str, Any] = {name: int(v) if name != "sharpness" else v for name, v in config.world.items()}
        return NoisyGap(device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    task = TextTask(
        dataset,
        model,
        kind="preference",
        device=device,
        test_size=config.test_size,
        train_size=config.n_pairs,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        lora=lora,
        precision=config.precision,
    )
    rows = data.load(dataset)
    if set(rows[0]) == {"chosen", "rejected"} and isinstance(rows[0]["chosen"], str):
        task._rows.extend(data.as_preferences(split_dialogues(rows)))
    return task


def split_dialogues(rows: Sequence[Row], *, turn: str = "Assistant:") -> list[Row]:
    """Prompt and responses of pairs of whole dialogues: the prompt is what both share, up to their last assistant turn.

    Raises:
        ValueError: a pair without a shared prompt that ends at an assistant turn; the row is named.
    """
    found = []
    for index, row in enumerate(rows):
        chosen, rejected = row["chosen"], row["rejected"]
        same = len(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071, texts and not paths
        border = chosen.rfind(turn, 0, same)
        if border < 0:
            raise ValueError(
                f"row {index}: chosen and rejected share no prompt that ends at {turn!r}; give a `prompt` column, or "
                "dialogues that differ in their last assistant turn only"
            )
        border += len(turn)
        found.append({"prompt": chosen[:border], "chosen": chosen[border:], "rejected": rejected[border:]})
    return found


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: Any, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [start, after stage 1, after stage 2]}}`, left-out stages left
    out."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: Any, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), run.child("shared")))


def play(task: Any, config: Config, arm: Arm, seed: int, run: Run, shared: Run | None = None) -> list[dict[str, float]]:
    """One arm: reward model, split, DPO on one part, PPO on the prompts of another.

    Args:
        shared: where what arms share (the weights after stage 1) is kept; this arm's own folder if there is none.
    """
    policy, sft = task.start(seed), task.start(seed)
    rows = sound_pairs(task, config, arm, seed)
    model, accuracy = reward_model(task, sft, rows, config, seed, strict=arm.labels == "true")
    margin = out_of_fold_margins(
        sft, rows, _reward_training(config), folds=config.folds, seed=seed, max_length=config.max_length
    )
    split = split_pairs(
        margin,
        gamma=config.gamma,
        quantile=arm.quantile or config.quantile,
        conflict=config.conflict,
        shuffle=seed if arm.split == "random" else None,
    )
    truth = None if isinstance(task, TextTask) else getattr(task, "score", None)
    run.table("split", lambda: split_table(rows, split, truth))
    prompts = [row["prompt"] for row in task.preferences("test", seed)][: config.test_size]
    spent = {"dpo_steps": 0.0, "ppo_updates": 0.0}

    def reward(asked: Sequence[Any], ids: Sequence[list[int]], texts: Sequence[str]) -> np.ndarray:
        return model.score(asked, ids)

    @unmetered()
    def evaluate(policy: Policy, *_: int) -> dict[str, float]:
        scores, kl, ended = ppo.answers(policy, sft, prompts, [[]] * len(prompts), reward, config, seed)
        numbers = {"proxy": float(scores.mean()), "kl_sft": float(kl.mean()), "missing_end": float(1 - ended.mean())}
        implicit = implicit_accuracy(policy, sft, task.preferences("test", seed), config)
        known = {"reward_model_accuracy": accuracy, "gamma": split.gamma, "easy": float((split.part == "easy").mean())}
        return {**task.evaluate(policy, seed), **numbers, "implicit_accuracy": implicit, **known, **spent}

    found = [run.cached("stage-0", lambda: evaluate(policy))]
    if arm.first:
        chosen = [row for row, keep in zip(rows, split.pairs(arm.first), strict=True) if keep]
        spent["dpo_steps"] = float(stage_one(policy, chosen, config, seed, shared or run))
        found.append(run.cached("stage-1", lambda: evaluate(policy)))
    if not arm.second:
        save_weights(policy.model, run.folder / "round-1" / "weights.safetensors")
        return found
    if arm.second_by == "dpo":
        chosen = [row for row, keep in zip(rows, split.pairs(arm.second), strict=True) if keep]
        spent["dpo_steps"] += stage_one(policy, chosen, config, seed, run)
        save_weights(policy.model, run.folder / "round-1" / "weights.safetensors")
        return [*found, run.cached("stage-2", lambda: evaluate(policy))]
    asked = [row["prompt"] for row, keep in zip(rows, split.prompts(arm.second), strict=True) if keep]
    settings = ppo_settings(config, arm, len(split.part))
    start = hand_over(policy, config)
    critic = model.copy()
    if config.lora_rank:
        critic.model = add_lora(critic.model, r=config.lora_rank, lora_alpha=2 * config.lora_rank, task_type="SEQ_CLS")

    def make_batch(update: int) -> ppo.Batch:
        drawn = np.random.default_rng([seed, update, 1]).integers(len(asked), size=config.batch_size)
        return ppo.Batch([asked[i] for i in drawn], [[]] * config.batch_size)

    def evaluate_stage_two(policy: Policy, update: int) -> dict[str, float]:
        spent["ppo_updates"] = float(update)
        return evaluate(policy) if update else found[-1]

    *_, last = ppo.optimise(
        policy,
        start,
        critic,
        make_batch,
        reward,
        settings,
        run.child("stage-2"),
        seed=seed,
        evaluate=evaluate_stage_two,
    )
    keep_final(policy, config, run)
    return [*found, {**last, "kl_reference": run.child("stage-2").metrics()[-1]["kl_nats"]}]


def sound_pairs(task: Any, config: Config, arm: Arm, seed: int) -> list[Row]:
    """The training pairs without identical and empty ones, labels shuffled where the arm says so."""
    rows, dropped = keep_sound(task.preferences("train", seed)[: config.n_pairs or None])
    if dropped:
        log.warning("pairs dropped: %s", ", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    if arm.labels == "shuffled":
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < 0.5
        rows = [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if s else row
            for row, s in zip(rows, swap, strict=True)
        ]
    return rows


def reward_model(
    task: Any, sft: Policy, rows: list[Row], config: Config, seed: int, *, strict: bool = True
) -> tuple[RewardModel, float]:
    """Step 2: a reward model on all pairs, and its accuracy on held-out pairs.

    Raises:
        ValueError: it tells held-out pairs apart worse than a coin, or gives every response the same reward.
    """
    test = keep_sound(task.preferences("test", seed))[0]
    model, accuracy = trained_once(
        sft, rows, _reward_training(config), seed=seed, test_rows=test, max_length=config.max_length
    )
    check_reward_model(model, accuracy, test, strict=strict)
    return model, accuracy


def stage_one(policy: Policy, rows: list[Row], config: Config, seed: int, shared: Run) -> int:
    """DPO in place from the policy as it is, which is its own reference; trained once for its pairs and its start.

    Returns:
        Optimiser steps.
    """
    training = TrainConfig(
        learning_rate=config.dpo_rate,
        epochs=config.dpo_epochs,
        batch_size=config.dpo_batch_size,
        max_steps=config.dpo_steps,
        checkpoint_every=config.checkpoint_every,
    )

    def build(folder: Any) -> None:
        groups = [policy.group(r["prompt"], [r["chosen"], r["rejected"]], max_length=config.max_length) for r in rows]
        pairs = pair_rows(policy, [f"pair {i}" for i in range(len(rows))], groups)
        step = preference_step(objectives.dpo, beta=config.dpo_beta)
        check_start(policy, Round(pairs, step, training, math.log(2)))
        train(policy, pairs, step, training, shared.child("dpo"), seed=seed)
        save_weights(policy.model, folder / "weights.safetensors")

    key = {
        "kind": "dpo",
        "code": runs.code_hash(__name__),
        "rows": rows,
        "start": model_key(policy),
        "seed": seed,
        "training": [training.learning_rate, training.epochs, training.batch_size, training.max_steps, config.dpo_beta],
    }
    load_weights(policy.model, runs.cached_folder(key, build, root=shared.folder) / "weights.safetensors")
    return config.dpo_steps or config.dpo_epochs * math.ceil(len(rows) / config.dpo_batch_size)


def ppo_settings(config: Config, arm: Arm, n_pairs: int) -> ppo.PPOConfig:
    """The configuration's, without the KL penalty or with the optimiser steps of stage 1 on top where the arm says
    so."""
    per_update = config.inner_epochs * (config.batch_size // (config.minibatch_size or config.batch_size))
    saved = config.dpo_epochs * math.ceil(n_pairs / 2 / config.dpo_batch_size)
    names = ppo.PPOConfig.__dataclass_fields__
    changes: dict[str, Any] = {name: getattr(config, name) for name in names}
    changes["updates"] += math.ceil(saved / per_update) if arm.longer else 0
    changes["kl_coef"] *= arm.kl
    return ppo.PPOConfig(**changes)


def hand_over(policy: Policy, config: Config) -> Policy | None:
    """The reference of stage 2: a frozen copy of its start. With LoRA stage 1 is merged, so that "adapter off" is
    pi_DPO."""
    if not config.lora_rank:
        return policy.copy()
    policy.model = add_lora(policy.model.merge_and_unload(), r=config.lora_rank, lora_alpha=2 * config.lora_rank)
    return None


def keep_final(policy: Policy, config: Config, run: Run) -> None:
    """The final weights where every method leaves them. With LoRA stage 1 is in weights that do not train any more."""
    save_weights(policy.model, run.folder / "round-1" / "weights.safetensors", frozen=config.lora_rank > 0)


def implicit_accuracy(policy: Policy, sft: Policy, test: Sequence[Row], config: Config) -> float:
    """Share of held-out pairs whose chosen response the policy moved towards more than the rejected one."""
    groups = [policy.group(r["prompt"], [r["chosen"], r["rejected"]], max_length=config.max_length) for r in test]
    numbers, _ = pair_numbers(reference_logps(policy, groups), reference_logps(sft, groups), objectives.dpo)
    return numbers["reward_accuracy"]


def _reward_training(config: Config) -> TrainConfig:
    return TrainConfig(learning_rate=config.reward_rate, epochs=config.reward_epochs, batch_size=config.dpo_batch_size)


# ----------------------------------------------------------------------------------------------------------- claims
def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The claims of the abstracts over the seeds. Rewards are true ones in units of the start's standard deviation."""
    found = Claims("mpo", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    key, unit = (
        ("proxy", "reward of the model") if experiment.dataset else ("quality", "standard deviations of true reward")
    )

    def end(arm: str, key: str = key, at: int = -1) -> np.ndarray:
        return np.array([result["arms"][arm][at][key] for result in results])

    def versus(id: str, statement: str, one: str, other: str, control: str, **more: Any) -> None:
        """Tests `one` minus `other`, beside `control` minus `other`, where the run has the three arms."""
        if {one, other, control} <= arms:
            found.test(
                id,
                statement,
                measured=end(one) - end(other),
                control=end(control) - end(other),
                control_is=ARMS[control].title,
                unit=unit,
                paper="abstracts, no figures",
                **more,
            )

    accounts = f"; PPO with stage 1's steps on top {end('ppo_long').mean():+.2f}" if "ppo_long" in arms else ""
    versus("C1 DPO", "MPO beats DPO on all pairs", "mpo", "dpo", "shuffled")
    versus(
        "C1 PPO",
        "MPO beats PPO on all prompts, equal PPO updates",
        "mpo",
        "ppo",
        "shuffled",
        note=", ".join(f"{ARMS[a].title} {end(a).mean():+.2f}" for a in ("mpo", "dpo", "ppo") if a in arms) + accounts,
    )
    also = (
        {"DPO on hard pairs is worse than on all": bool(end("dpo_hard").mean() < end("dpo").mean())}
        if {"dpo_hard", "dpo"} <= arms
        else {}
    )
    versus("C2", "DPO on the easy pairs beats DPO on all, with fewer pairs", "dpo_easy", "dpo", "dpo_random", also=also)
    deviations = ", ".join(
        f"{ARMS[a].title} {end(a).std(ddof=1):.2f}" for a in ("mpo", "ppo_hard") if a in arms and len(results) > 1
    )
    versus(
        "C3",
        "pi_DPO is a better start and reference for PPO than pi_SFT",
        "mpo",
        "ppo_hard",
        "shuffled",
        note=f"standard deviation over seeds: {deviations}",
    )
    versus(
        "C4",
        "The hard prompts suffice: no worse than all prompts by more than 0.1",
        "mpo",
        "mpo_all",
        "shuffled",
        margin=-0.1,
    )
    if {"mpo", "shuffled"} <= arms:
        accuracy = f"implicit accuracy on held-out pairs after stage 1: {end('mpo', 'implicit_accuracy', 1).mean():.2f}"
        found.test(
            "C5",
            "Stage 2 raises the reward of sampled responses",
            paper="abstracts, no figures",
            unit=unit,
            note=accuracy,
            measured=end("mpo") - end("mpo", at=1),
            control=end("shuffled") - end("shuffled", at=1),
            control_is=ARMS["shuffled"].title,
        )
    if {"mpo", "reversed", "random", "random_reversed"} <= arms:
        found.test(
            "C6",
            "Order matters: easy pairs by DPO first, hard prompts by PPO second",
            paper="design",
            unit=unit,
            measured=end("mpo") - end("reversed"),
            control=end("random") - end("random_reversed"),
            control_is="halves drawn at random and exchanged",
        )
    if not experiment.dataset and {"mpo", "random"} <= arms:
        errors = {
            arm: np.array([label_errors(experiment, arm, seed) for seed in experiment.seeds])
            for arm in ("mpo", "random")
        }
        found.test(
            "S1",
            "More labels are wrong among hard pairs than among easy ones (else the experiment is void)",
            paper="presumed",
            measured=np.diff(errors["mpo"])[:, 0],
            control=np.diff(errors["random"])[:, 0],
            control_is="split at random",
            unit="of labels",
            note="wrong: easy {:.3f}, hard {:.3f}".format(*errors["mpo"].mean(0)),
        )
    return found


def label_errors(experiment: Any, arm: str, seed: int) -> tuple[float, float]:
    """Share of wrong labels among an arm's easy and hard pairs; true ties are no error."""
    table = pd.read_parquet(experiment.run.folder / f"seed-{seed}" / arm / "split.parquet")
    wrong: Any = (table.true_gap < 0).groupby(table.part).mean()
    return float(wrong["easy"]), float(wrong["hard"])
