"""DR-PO: dataset reset policy optimisation. PPO whose rollouts begin inside good offline responses.

Needs prompts with one reference response each and a reward. Of a share beta of the rollouts the first n tokens are
those of the reference, n uniform on 1 .. L-1 (L: length of the reference, end token included), and the policy goes on
from there. Everything else is PPO with the KL penalty as a reward a token,

    r_t = -kl (log pi - log pi_SFT) + [t last] r_phi(x, y),   A = whitened GAE of the whitened rewards,
    L = mean over generated t of max(-A rho, -A clip(rho, 0.8, 1.2)) + 0.1 mean over all t of the clipped value loss,

so that tokens of the reset get no policy gradient but teach the critic. beta = 0 is PPO.

Source: Chang, Zhan, Oertell, Brantley, Misra, Lee, Sun 2024, "Dataset Reset Policy Optimization for RLHF",
arXiv 2404.08495v3, Algorithms 1 and 2; official code Cornell-RL/drpo at bd825df (reset lengths: Cornell-RL/tril).

Where this differs from the official code, and why: see `workbench.training.ppo`; and
- sampling at temperature 0.7 as the script does (the paper's table says 0.1);
- the adaptive KL coefficient, off there, is not built;
- without a learned reward model (the world's exact reward) the critic starts from the policy with a head of zeros.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.data import Row
from workbench.kernels import sample, unmetered
from workbench.methods.align.dr_po.world import LateRewardChain
from workbench.models import Policy, add_lora
from workbench.runs.run import Run
from workbench.tasks.real import TextTask
from workbench.training import ppo
from workbench.training.checkpoints import save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import pair_rows
from workbench.training.reward_model import RewardModel, trained_once
from workbench.training.steps import preference_step, supervised_step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        beta: share of rollouts that start from a reset; -1 takes the configuration's.
        prefixes: "reference", of the row's own; "wrong", of another prompt's; "policy", sampled from the start (PPO++).
        references: "right", the task's demonstrations; "patchy", its variant that is right in parts only.
        reward: "task", the true one; "leading_run", the dense one; "learned", a reward model's.
        learns: "rl"; "demonstrations" (supervised); "pairs" (DPO on the pairs the reward model is trained on).
    """

    title: str
    beta: float = -1.0
    prefixes: Literal["reference", "wrong", "policy"] = "reference"
    references: Literal["right", "patchy"] = "right"
    reward: Literal["task", "leading_run", "learned"] = "task"
    learns: Literal["rl", "demonstrations", "pairs"] = "rl"


ARMS: dict[str, Arm] = {
    "dr_po": Arm("DR-PO"),
    "dr_po_50": Arm("DR-PO, beta 0.5", beta=0.5),
    "dr_po_25": Arm("DR-PO, beta 0.25", beta=0.25),
    "ppo": Arm("PPO", beta=0.0),
    "ppo_pp": Arm("PPO++: prefixes of the start", beta=0.5, prefixes="policy"),
    "wrong": Arm("prefixes of other prompts", beta=0.5, prefixes="wrong"),
    "sft": Arm("SFT on the references", learns="demonstrations"),
    "dpo": Arm("DPO", learns="pairs"),
    "patchy": Arm("DR-PO, patchy references", beta=0.5, references="patchy"),
    "sft_patchy": Arm("SFT on patchy references", learns="demonstrations", references="patchy"),
    "dense": Arm("DR-PO, dense reward", beta=0.5, reward="leading_run"),
    "ppo_dense": Arm("PPO, dense reward", beta=0.0, reward="leading_run"),
    "learned": Arm("DR-PO, learned reward", beta=0.5, reward="learned"),
    "ppo_learned": Arm("PPO, learned reward", beta=0.0, reward="learned"),
}


@strict
class Config(ppo.PPOConfig, Presets):
    """Defaults are the paper's (table 5); those of PPO are in `ppo.PPOConfig`."""

    beta: float = 1.0  # share of rollouts that start from a reset; paper: 1.0 (not DPO's beta)
    score_scale: float = Field(default=1.0, gt=0)  # the reward is multiplied by it
    prefix_top_p: float = Field(default=0.92, gt=0, le=1)  # of PPO++'s prefixes; official ppo_pp.py
    reward_model: str = ""  # folder or hub id; "": trained on the task's preferences
    reward_epochs: int = Field(default=1, ge=1)  # paper: 1
    reward_rate: float = Field(default=3e-6, gt=0)  # paper
    baseline_epochs: int = Field(default=1, ge=1)  # of SFT and DPO; paper: 1
    baseline_rate: float = Field(default=3e-6, gt=0)  # of SFT and DPO; paper
    baseline_batch_size: int = Field(default=64, ge=1)  # of SFT, DPO and the reward model; paper: 64
    dpo_beta: float = Field(default=0.05, gt=0)  # 1/nat; paper
    n_prompts: int = Field(default=0, ge=0)  # training prompts; 0: all
    test_size: int = Field(default=600, ge=8)  # held-out prompts; paper: 600 test posts
    max_length: int = Field(default=565, ge=4)  # prompt and response, tokens; script: 512 + 53
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps of SFT and DPO; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights; paper: 1024
    precision: Literal["no", "bf16"] = "no"
    arms: list[str] = listed("dr_po", "dr_po_50", "ppo", "ppo_pp", "wrong", "sft", "dpo")  # see ARMS
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see LateRewardChain

    PRESETS: ClassVar = {
        # The settings of the specification's pilot (S): 20 to 40 updates at 2e-4, score scale 4, temperature 1 (at 0.7
        # the start would already be right every third time, and there would be no late reward to speak of).
        "tiny": {
            "updates": 20,
            "batch_size": 128,
            "minibatch_size": 64,
            "learning_rate": 2e-4,
            "critic_rate": 3.0,
            "temperature": 1.0,
            "max_new_tokens": 19,
            "score_scale": 4.0,
            "evaluations": 4,
            "reward_epochs": 3,
            "reward_rate": 5e-4,
            "baseline_epochs": 2,
            "baseline_rate": 2e-4,
            "test_size": 256,
            "max_length": 64,
            "arms": [arm for arm in ARMS if arm != "ppo_learned"],
        },
        "smoke": {
            "updates": 2,
            "batch_size": 16,
            "inner_epochs": 1,
            "learning_rate": 2e-4,
            "temperature": 1.0,
            "max_new_tokens": 7,
            "score_scale": 4.0,
            "reward_rate": 5e-4,
            "test_size": 16,
            "max_length": 64,
            "n_prompts": 64,
            "arms": list(ARMS),
            "world": {"length": 6, "sft_steps": 20, "n_pairs": 64, "test_draws": 32, "width": 32},
        },
        "full": {"precision": "bf16", "lora_rank": 1024, "evaluations": 8},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "updates": 20,
            "batch_size": 32,
            "learning_rate": 3e-5,
            "max_new_tokens": 53,
            "test_size": 64,
            "max_length": 512,
            "n_prompts": 400,
            "reward_rate": 3e-5,
            "arms": ["dr_po", "dr_po_50", "ppo", "wrong"],
        },
        "smoke": {
            "updates": 2,
            "batch_size": 8,
            "inner_epochs": 1,
            "learning_rate": 3e-5,
            "max_new_tokens": 12,
            "test_size": 8,
            "max_length": 256,
            "n_prompts": 32,
            "reward_rate": 3e-5,
            "arms": ["dr_po_50", "ppo", "wrong"],
        },
    }

    def __post_init__(self):
        ppo.PPOConfig.__post_init__(self)
        check_share(self.beta)
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The late-reward chain; or a data set of preference pairs (the chosen response serves as reference) with a model.

    Raises:
        ValueError: one of model and dataset without the other; arms that need the planted truth on real data.
    """
    if not dataset and not model:
        world: dict[str, Any] = dict(config.world)
        return LateRewardChain(device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    if planted := [a for a in config.arms if ARMS[a].references == "patchy" or ARMS[a].reward == "leading_run"]:
        raise ValueError(f"arms {planted} need the embedded world; with {dataset} leave them out of `arms`")
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    kind = "demonstration" if config.reward_model else "preference"
    return TextTask(
        dataset,
        model,
        kind=kind,
        device=device,
        test_size=config.test_size,
        train_size=config.n_prompts,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        lora=lora,
        precision=config.precision,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: Any, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [evaluation at the start, ..., at the end]}}`."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: Any, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm)))


def play(task: Any, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 2 of the paper for one arm and one seed."""
    policy = task.start(seed)
    rows = references(task, "train", seed, arm, config)
    test = references(task, "test", seed, arm, config)[: config.test_size]
    reward, critic, numbers = reward_and_critic(task, policy, arm, config, seed)
    start = None if hasattr(policy.model, "disable_adapter") else policy.copy()

    def evaluate(policy: Policy, update: int) -> dict[str, float]:
        return {
            **task.evaluate(policy, seed),
            **from_bare_prompts(policy, start, test, reward, config, seed),
            **numbers,
        }

    if arm.learns != "rl":
        return play_supervised(task, policy, rows, evaluate, arm, config, seed, run)
    ids = [encode_reference(policy, row["reference"], config.max_new_tokens) for row in rows]
    beta = config.beta if arm.beta < 0 else arm.beta
    drawn_from = policy.copy() if arm.prefixes == "policy" else policy

    def make_batch(update: int) -> ppo.Batch:
        """Steps 1 and 2: which prompts, and where their responses begin."""
        rng = np.random.default_rng([seed, update, 1])
        chosen = rng.integers(len(rows), size=config.batch_size).tolist()
        prompts = [rows[i]["prompt"] for i in chosen]
        given = [ids[i] for i in chosen]
        if beta and arm.prefixes == "wrong":
            shifts = rng.integers(1, len(ids), size=len(chosen))  # never 0: another prompt's
            given = [ids[(i + shift) % len(ids)] for i, shift in zip(chosen, shifts, strict=True)]
        if beta and arm.prefixes == "policy":
            drawn = sample(
                drawn_from,
                prompts,
                max_new_tokens=config.max_new_tokens,
                temperature=config.temperature,
                top_p=config.prefix_top_p,
                seed=seed * 100_000 + update + 50_000,
            )
            given = [tokens[0] for tokens in drawn.tokens]
        lengths = reset_lengths([len(tokens) for tokens in given], beta, np.random.default_rng([seed, update, 2]))
        return ppo.Batch(prompts, [tokens[:n] for tokens, n in zip(given, lengths, strict=True)])

    found = ppo.optimise(policy, start, critic, make_batch, reward, config, run, seed=seed, evaluate=evaluate)
    with unmetered():
        run.table("by_prefix", lambda: by_prefix(policy, start, test, reward, config, seed))
    return found


def reset_lengths(reference_lengths: Sequence[int], beta: float, rng: np.random.Generator) -> np.ndarray:
    """How many tokens of each reference a rollout begins with, [n].

    With probability beta uniform on 1 .. L-1, else 0; a reference of fewer than two tokens is never reset to. So a
    reset never covers the whole reference.

    Source: Cornell-RL/tril, RollinProcessor.create_mask.
    """
    check_share(beta)
    lengths = np.asarray(reference_lengths, dtype=int)
    is_reset = (rng.random(len(lengths)) < beta) & (lengths >= 2)
    return np.where(is_reset, rng.integers(1, np.maximum(lengths, 2)), 0)


def check_share(beta: float) -> None:
    if not 0 <= beta <= 1:
        raise ValueError(
            f"beta is the reset share, the part of rollouts that start from a reset, in [0, 1]; got {beta}"
        )


def encode_reference(policy: Policy, text: str, length: int) -> list[int]:
    """Token ids of a reference with its end token, cut to `length`; nothing for a row without one."""
    return policy.encode_response(text)[:length] if text else []


def references(task: Any, split: str, seed: int, arm: Arm, config: Config) -> list[Row]:
    """Rows with `prompt` and `reference` (a demonstration, or the chosen response of a pair; "" where it is missing).

    Raises:
        ValueError: no row has a reference and the arm needs them.
    """
    found = task.patchy_demonstrations(split, seed) if arm.references == "patchy" else task.demonstrations(split, seed)
    rows = [{"prompt": row["prompt"], "reference": row.get("completion") or row.get("chosen") or ""} for row in found]
    if config.n_prompts and split == "train":
        rows = rows[: config.n_prompts]
    missing = sum(not row["reference"] for row in rows)
    if missing == len(rows) and (arm.beta or arm.learns == "demonstrations"):
        raise ValueError(
            f"none of the {len(rows)} rows has a reference (columns completion or chosen), and a reset share above 0"
            " needs them; set beta=0 (plain PPO) or add references"
        )
    if missing > 0.05 * len(rows):
        log.warning("%d of %d rows have no reference and are never reset to", missing, len(rows))
    return rows


def reward_and_critic(
    task: Any, policy: Policy, arm: Arm, config: Config, seed: int
) -> tuple[ppo.Reward, RewardModel, dict[str, float]]:
    """The score of a response, the network that the critic starts from, and what is known about the score.

    A task that cannot score (real text) always gets a learned reward.
    """
    scale = config.score_scale
    if arm.reward != "learned" and hasattr(task, "score") and not isinstance(task, TextTask):
        truth: Callable = task.leading_run if arm.reward == "leading_run" else task.score
        critic = RewardModel.over(policy, seed=seed)
        return lambda prompts, ids, texts: scale * np.asarray(truth(prompts, texts)), critic, {}
    model, accuracy = learned_reward(task, policy, config, seed)
    critic = model.copy()
    if config.lora_rank:
        critic.model = add_lora(critic.model, r=config.lora_rank, lora_alpha=2 * config.lora_rank, task_type="SEQ_CLS")
    known = {} if config.reward_model else {"reward_model_accuracy": accuracy}
    return lambda prompts, ids, texts: scale * model.score(prompts, ids), critic, known


def learned_reward(task: Any, policy: Policy, config: Config, seed: int) -> tuple[RewardModel, float]:
    """The reward model given, or one trained on the task's pairs, with its accuracy on held-out pairs."""
    if config.reward_model:
        model = RewardModel.load(config.reward_model, device=policy.device.type, precision=config.precision)
        return model, float("nan")
    training = TrainConfig(
        learning_rate=config.reward_rate, epochs=config.reward_epochs, batch_size=config.baseline_batch_size
    )
    rows, test = task.preferences("train", seed), task.preferences("test", seed)
    return trained_once(policy, rows, training, seed=seed, test_rows=test, max_length=config.max_length)


def play_supervised(
    task: Any, policy: Policy, rows: list[Row], evaluate: Callable, arm: Arm, config: Config, seed: int, run: Run
) -> list[dict[str, float]]:
    """The baselines without rollouts: SFT on the references, DPO on the pairs."""
    first = run.cached("evaluation-0", lambda: evaluate(policy, 0))
    training = TrainConfig(
        learning_rate=config.baseline_rate,
        epochs=config.baseline_epochs,
        batch_size=config.baseline_batch_size,
        checkpoint_every=config.checkpoint_every,
    )
    part = run.child("round-1")
    if arm.learns == "demonstrations":
        groups = [
            policy.group(row["prompt"], [row["reference"]], max_length=config.max_length)
            for row in rows
            if row["reference"]
        ]
        train(policy, groups, supervised_step, training, part, seed=seed)
    else:
        pairs = [
            policy.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=config.max_length)
            for row in task.preferences("train", seed)
        ]
        step = preference_step(objectives.dpo, beta=config.dpo_beta)
        train(
            policy, pair_rows(policy, [f"row {i}" for i in range(len(pairs))], pairs), step, training, part, seed=seed
        )
    save_weights(policy.model, part.folder / "weights.safetensors")
    return [first, run.cached("evaluation-1", lambda: evaluate(policy, 1))]


# ----------------------------------------------------------------------------------------------------- measurements
def from_bare_prompts(
    policy: Policy, start: Policy | None, rows: Sequence[Row], reward: ppo.Reward, config: Config, seed: int
) -> dict[str, float]:
    """Reward and KL to the start of responses to held-out prompts, from the first token on: no reset at evaluation."""
    prompts = [row["prompt"] for row in rows]
    scores, kl, ended = ppo.answers(policy, start, prompts, [[]] * len(prompts), reward, config, seed)
    return {"reward": float(scores.mean()), "kl_nats": float(kl.mean()), "missing_end": float(1 - ended.mean())}


def by_prefix(
    policy: Policy, start: Policy | None, rows: Sequence[Row], reward: ppo.Reward, config: Config, seed: int
) -> pd.DataFrame:
    """Mean reward after a reset to n tokens of the reference, before and after training: where the policy is good."""
    found = []
    rows = [row for row in rows if row["reference"]][:128]
    ids = [encode_reference(policy, row["reference"], config.max_new_tokens) for row in rows]
    for n in range(0, config.max_new_tokens - 1, max(1, config.max_new_tokens // 6)):
        places = [i for i, tokens in enumerate(ids) if len(tokens) > n]
        if not places:
            break
        prompts, prefixes = [rows[i]["prompt"] for i in places], [ids[i][:n] for i in places]
        for when, one in (("before", start), ("after", policy)):
            if one is not None:
                scores, _, _ = ppo.answers(one, start, prompts, prefixes, reward, config, seed)
                found.append({"prefix_tokens": n, "when": when, "reward": float(scores.mean()), "n": len(places)})
    return pd.DataFrame(found)


# ----------------------------------------------------------------------------------------------------------- claims
def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control: resets to the references of other prompts."""
    found = Claims("dr_po", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])

    def end(arm: str, key: str) -> np.ndarray:
        return np.array([result["arms"][arm][-1][key] for result in results])

    key, unit = ("reward", "reward") if experiment.dataset else ("quality", "of responses wholly right")
    main = "dr_po_50" if "dr_po_50" in arms else "dr_po"
    wrong: dict[str, Any] = {"control_is": "prefixes of other prompts", "unit": unit}
    levels = ", ".join(
        f"{ARMS[a].title} {end(a, key).mean():.3f}" for a in ("dr_po", "dr_po_50", "ppo", "dpo", "sft") if a in arms
    )
    win_rates = "GPT-4 win rate 70.2, 62.3, 52.6, 31.6 %"
    if {main, "ppo", "wrong"} <= arms:
        gain, control = end(main, key) - end("ppo", key), end("wrong", key) - end("ppo", key)
        found.test(
            "C1",
            "DR-PO beats PPO with equal episodes and settings",
            paper=win_rates,
            measured=gain,
            control=control,
            note=levels,
            **wrong,
        )
        found.test(
            "C1 wrong",
            "The prefix must belong to the prompt: DR-PO beats resets to references of other prompts",
            paper="not measured",
            measured=end(main, key) - end("wrong", key),
            control=end("ppo", key) - end("wrong", key),
            control_is="no resets",
            unit=unit,
        )
        matched = [ppo.at_matched_kl(result["arms"][main], result["arms"]["ppo"]) for result in results]
        found.test(
            "C2",
            "Higher reward at equal KL",
            paper="RM 1.52 against 1.17 at KL 16.84 against 16.32",
            measured=matched,
            control=[ppo.at_matched_kl(result["arms"]["wrong"], result["arms"]["ppo"]) for result in results],
            control_is="prefixes of other prompts",
            unit="reward",
            note=f"final KL {end(main, 'kl_nats').mean():.1f} against {end('ppo', 'kl_nats').mean():.1f} nats",
        )
    if {"ppo_pp", "ppo", "wrong", main} <= arms:
        found.test(
            "C1 own prefixes",
            "DR-PO beats prefixes that the start wrote itself (PPO++)",
            paper="not read",
            measured=end(main, key) - end("ppo_pp", key),
            control=end("wrong", key) - end("ppo_pp", key),
            **wrong,
        )
    shares = {0.0: "ppo", 0.25: "dr_po_25", 0.5: "dr_po_50", 1.0: "dr_po"}
    if {*shares.values(), "wrong"} <= arms:
        table = np.stack([end(arm, key) for arm in shares.values()])
        lowest = 1 + int(np.argmin(table[1:].mean(1)))  # every share must pass, so the weakest one speaks for all
        found.test(
            "C3",
            "Any reset share is better than none",
            paper="RM 1.14 at 0; 1.28, 1.28, 1.25, 1.47 at .25 to 1",
            measured=table[lowest] - table[0],
            control=end("wrong", key) - table[0],
            note=f"the weakest share is {list(shares)[lowest]:g}",
            **wrong,
        )
        shape = ", ".join(f"{share:g}: {row.mean():.3f}" for share, row in zip(shares, table, strict=True))
        found.test(
            "C3 trend",
            "More resets are better, and a share of 1 is best",
            paper="win rate 60.7, 61.7, 66.5, 64.3, 68.5 %",
            measured=[spearman(list(shares), column) for column in table.T],
            control=None,
            unit="Spearman's rho",
            note=f"reported as found ({shape}); no control for a trend",
        )
    if {"ppo_pp", "ppo", main} <= arms:
        tokens = {arm: generated(experiment, arm) for arm in (main, "ppo", "ppo_pp")}
        found.test(
            "C4",
            "No extra generation: fewer tokens are generated than by PPO",
            paper="section 4",
            direction="less",
            measured=tokens[main] - tokens["ppo"],
            control=tokens["ppo_pp"] - tokens["ppo"],
            control_is="PPO++, which writes its prefixes",
            unit="tokens a response",
            note="settings are PPO's throughout",
        )
    found.needs_full_scale(
        "C5", "Transfers to CNN/DM without training", "12.0 % against 10.5, 8.5, 6.0", "needs real summaries"
    )
    found.needs_full_scale(
        "C6", "Best at every model size on HH", "Fig. 3 (125M, 1B, 6.9B)", "needs three model sizes and HH"
    )
    for suffix, learner, imitator in (("", main, "sft"), (" patchy", "patchy", "sft_patchy")):
        if {learner, imitator, "ppo"} <= arms:
            found.test(
                f"C7{suffix}",
                "Beats imitation of the references" + (" that are right in parts only" if suffix else ""),
                paper="Theorem 5.7: at least any policy that the references cover",
                measured=end(learner, key) - end(imitator, key),
                control=end("ppo", key) - end(imitator, key),
                control_is="no resets",
                unit=unit,
            )
    accuracy = [
        arm[-1]["reward_model_accuracy"]
        for r in results
        for arm in r["arms"].values()
        if "reward_model_accuracy" in arm[-1]
    ]
    here = f"; here {np.mean(accuracy):.1%} on held-out pairs" if accuracy else ""
    found.needs_full_scale(
        "C8", "The reward model is only moderately accurate", "66.2 % on TL;DR", f"a fact about their data{here}"
    )
    return found


def generated(experiment: Any, arm: str) -> np.ndarray:
    """Tokens that an arm's policies generated a response, [seed]; PPO++ also writes each of its prefixes."""
    found = []
    for seed in experiment.seeds:
        rows = experiment.run.child(f"seed-{seed}").child(arm).metrics()
        own = [row["response_tokens"] - row["reset_tokens"] for row in rows]
        found.append(
            np.mean(own) + (np.mean([row["response_tokens"] for row in rows]) if ARMS[arm].prefixes == "policy" else 0)
        )
    return np.array(found)


def spearman(x: Sequence[float], y: np.ndarray) -> float:
    """Rank correlation; 0 where y does not vary."""
    return float(pd.Series(y).corr(pd.Series(x), method="spearman")) if np.ptp(y) > 0 else 0.0
