"""SimulPL: preferences of listeners to simultaneous translation, in the text and in the decision to read or to write.

Needs pairs of translations, one as listeners prefer it. First multi-task fine-tuning (MSFT) trains text and confidence:
with p^s behind a random source prefix, p^o behind the full source and the confidence c of the state,

    p^m_i = c_i p^s_i + (1 - c_i) p^o_i,     L_MSFT = CE(p^o, y) + CE(p^m, y) + lambda sum_i -log c_i

Then SimulDPO, every token under a source prefix for policy and reference alike:

    L = -log sigma(beta [Delta(y_w) - Delta(y_l)]) + kappa L_MSFT(y_w) + alpha Lat(y_w)

with Delta(y) = log p_theta(y | prefixes) / p_ref(y | prefixes) and Lat the expected lagging of the confidences.
Decoding reads while c < tau.

Source: SimulPL, ICLR 2025, arXiv 2502.00634 (abstract and public summaries; its repository released nothing); MSFT from
EurekaForNLP/SM2 (arXiv 2406.02237). **The equation of SimulDPO is a reconstruction**: the paper's was not available. It
follows from maximising E[reward - alpha latency] under a KL penalty; `form` offers another, `loss_type` other losses.

Where this differs from the code of SM2, and why:
- the penalty -log c is not taken over padding; a decoder-only model reads `source prefix, separator, target`;
- where rows of a batch have sources of different lengths, they share the prefix as a share of the source;
- the end token before the source is read means READ unless `allow_early_stop`, and is counted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from workbench import objectives, runs
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.methods.align.simulpl import network
from workbench.methods.align.simulpl.network import (
    Pair,
    Reader,
    States,
    drawn_prefixes,
    expected_lagging,
    prefix_prompts,
    states,
)
from workbench.methods.align.simulpl.sweep import sweep
from workbench.methods.align.simulpl.translations import PairedText, usable
from workbench.methods.align.simulpl.world import LOWEST_AL, Clauses
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.stats.latency import lag_difference, quality_at, words_of
from workbench.tasks.protocols import TranslationTask
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.rounds import Round, iterate
from workbench.training.steps import Step

log = logging.getLogger(__name__)

LEVELS = (2.0, 2.5, 3.0, 4.0)  # AL at which curves are compared; the first decides


@dataclass(frozen=True)
class Arm:
    """One way to train and to read. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        start: "both", MSFT on a half of each style; "chosen", MSFT on preferred ones alone; "task", the task's own
            start.
        learns: "simul" (SimulDPO); "text" (the same preference loss on full sources, nothing for the policy);
            "nothing".
        alpha: weight of latency; None takes the configuration's.
        labels: "shuffled" swaps the sides of half of the pairs at random; "swapped" of all.
        delays: "scrambled", the expected delay does not know which prefix is which.
        loss_type: of the preferences; "" takes the configuration's.
        readers: how it is decoded, each over its sweep.
    """

    title: str
    start: Literal["both", "chosen", "task"] = "both"
    learns: Literal["simul", "text", "nothing"] = "simul"
    alpha: float | None = None
    labels: Literal["true", "shuffled", "swapped"] = "true"
    delays: Literal["true", "scrambled"] = "true"
    loss_type: str = ""
    readers: tuple[str, ...] = ("confidence",)


ARMS: dict[str, Arm] = {
    "msft": Arm("MSFT", learns="nothing"),
    "simul_dpo": Arm("SimulDPO", readers=("confidence", "random")),
    "alpha_0": Arm("SimulDPO, alpha 0", alpha=0.0),
    "alpha_5": Arm("SimulDPO, alpha 5", alpha=5.0),
    "scrambled": Arm("SimulDPO, alpha 5, delays scrambled", alpha=5.0, delays="scrambled"),
    "dpo": Arm("DPO on full sources", learns="text"),
    "swapped": Arm("SimulDPO, roles swapped", labels="swapped"),
    "shuffled": Arm("SimulDPO, labels shuffled", labels="shuffled"),
    "dpo_shuffled": Arm("DPO on full sources, labels shuffled", learns="text", labels="shuffled"),
    "preferred": Arm(
        "MSFT on preferred translations", start="chosen", learns="nothing", readers=("confidence", "wait_k")
    ),
    "offline": Arm("offline start, wait-k", start="task", learns="nothing", readers=("wait_k",)),
    "ipo": Arm("Simul-IPO", loss_type="ipo"),
    "ipo_text": Arm("IPO on full sources", learns="text", loss_type="ipo"),
    "ipo_shuffled": Arm("Simul-IPO, labels shuffled", loss_type="ipo", labels="shuffled"),
    "ipo_text_shuffled": Arm("IPO on full sources, labels shuffled", learns="text", loss_type="ipo", labels="shuffled"),
}


@strict
class Config(Presets):
    """The paper's values were not available ("?"): defaults are SM2's where it has one, else the specification's."""

    msft_steps: int = Field(default=0, ge=0)  # optimiser steps of stage 1; 0: one epoch; paper ?
    msft_batch_size: int = Field(default=32, ge=1)  # sentences; paper ?
    msft_learning_rate: float = Field(default=1e-4, gt=0)  # LoRA; specification (SM2 from scratch: 5e-4)
    confidence_weight: float = Field(default=0.1, ge=0)  # lambda; SM2
    token_means: bool = False  # L_MSFT as a mean over tokens instead of SM2's sum
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # specification for language models (SM2: 0.1)
    min_prefix: int = Field(default=1, ge=1)  # source words; SM2
    epochs: int = Field(default=1, ge=1)  # of stage 2; paper ?
    max_steps: int = Field(default=0, ge=0)  # optimiser steps of stage 2; 0: all epochs
    batch_size: int = Field(default=16, ge=1)  # pairs; paper ?
    learning_rate: float = Field(default=5e-6, gt=0)  # LoRA; specification
    beta: float = Field(default=0.1, gt=0)  # 1/nat; specification
    kappa: float = Field(default=1.0, ge=0)  # weight of L_MSFT in SimulDPO; specification
    alpha: float = Field(default=1.0, ge=0)  # weight of expected lagging; specification
    loss_type: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    form: Literal["terms", "margin"] = "terms"  # where latency enters; both are reconstructions
    delay_prefixes: int = Field(default=0, ge=0)  # prefixes behind the expected delay, evenly spaced; 0: every word
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # ours
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # ours
    # ours; clipping cuts L_MSFT, large behind short prefixes, but hardly ever Lat: it would change kappa against alpha
    max_grad_norm: float = Field(default=1e9, gt=0)  # 1e9: no clipping
    tau: float = Field(default=0.7, ge=0, le=1)  # threshold at which arms are compared; larger reads more
    taus: list[float] = listed(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # sweep; specification
    waits: list[int] = listed(1, 3, 5, 7, 9)  # k of wait-k; specification
    allow_early_stop: bool = False  # the end before the source is read; SM2's code allows it
    max_new_tokens: int = Field(default=128, ge=1)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=200, ge=1)  # held-out sentences
    unit: Literal["word", "character"] = "word"  # in which delays count
    lang: str = ""  # direction that rows must have, such as "de-en"; "": any
    rewriter: str = ""  # folder or hub id of the model that writes preferred translations; "": the data has them
    micro_batch_size: int = Field(default=0, ge=0)  # pairs held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("msft", "simul_dpo", "dpo", "shuffled", "dpo_shuffled")  # see ARMS
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Clauses

    PRESETS: ClassVar = {
        # the specification's small experiment
        "tiny": {
            "msft_steps": 500,
            "msft_learning_rate": 1e-3,
            "confidence_weight": 0.5,
            "token_means": True,
            "max_steps": 150,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "waits": [1, 2, 3, 4, 5, 7],
            "n_pairs": 4_000,
            "max_new_tokens": 12,
            "arms": list(ARMS),
        },
        "smoke": {
            "msft_steps": 8,
            "msft_learning_rate": 1e-3,
            "confidence_weight": 0.5,
            "token_means": True,
            "max_steps": 3,
            "learning_rate": 5e-4,
            "taus": [0.3, 0.7],
            "waits": [1, 3],
            "n_pairs": 64,
            "max_new_tokens": 12,
            "test_size": 8,
            "arms": list(ARMS),
            "world": {"start_steps": 8, "width": 32, "layers": 1},
        },
        "full": {"lora_rank": 64, "precision": "bf16", "micro_batch_size": 4},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "msft_learning_rate": 3e-5,
            "learning_rate": 3e-5,
            "n_pairs": 200,
            "test_size": 50,
            "delay_prefixes": 6,
            "micro_batch_size": 4,
            "max_new_tokens": 64,
            "taus": [0.3, 0.5, 0.7, 0.9],
        },
        "smoke": {
            "msft_learning_rate": 1e-3,
            "learning_rate": 1e-4,
            "n_pairs": 8,
            "batch_size": 4,
            "msft_batch_size": 4,
            "test_size": 4,
            "delay_prefixes": 3,
            "max_new_tokens": 8,
            "taus": [0.5, 0.7],
            "waits": [2],
            "arms": ["msft", "simul_dpo", "dpo"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")
        if bad := [tau for tau in self.taus if not 0 <= tau <= 1]:
            raise ValueError(f"taus {bad} are outside [0, 1]: they are compared with probabilities")
        if self.tau not in self.taus:
            raise ValueError(f"tau={self.tau} must be one of taus={self.taus}: arms are compared there")
        if self.form == "margin" and any((ARMS[arm].loss_type or self.loss_type) != "sigmoid" for arm in self.arms):
            raise ValueError('form="margin" is that of loss_type="sigmoid"; leave out the arms with another loss')


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The world of clauses, or a data set of preference pairs between translations with a starting model."""
    if not dataset and not model:
        world: dict[str, Any] = {"n_pairs": config.n_pairs or 4_000, "n_test": config.test_size, **config.world}
        return Clauses(device=device, **world)
    if not dataset or not model:
        raise ValueError(f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the world")
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    return PairedText(
        dataset,
        model,
        device=device,
        test_size=config.test_size,
        train_size=config.n_pairs,
        lora=lora,
        max_new_tokens=config.max_new_tokens,
        precision=config.precision,
        lang=config.lang,
        rewriter=config.rewriter,
        unit=config.unit,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: TranslationTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [numbers at tau]}, "curves": {arm: one record a reader}}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    curves = {arm: run.child(arm).table("curve", pd.DataFrame).to_dict("records") for arm in arms}
    return {"arms": arms, "curves": curves}


def run_arm(task: TranslationTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), run))


def play(
    task: TranslationTask, config: Config, arm: Arm, seed: int, run: Run, shared: Run | None = None
) -> list[dict[str, float]]:
    """One arm: stage 1 (shared by all arms that start alike), stage 2, and the sweep of its readers."""
    policy = fine_tuned(task, config, arm.start, seed, shared or run)
    rows = token_pairs(task, policy, config, seed)

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            schedule=config.schedule,
            warmup_ratio=config.warmup_ratio,
            micro_batch_size=config.micro_batch_size,
            max_grad_norm=config.max_grad_norm,
            checkpoint_every=config.checkpoint_every,
        )
        if arm.learns == "nothing":
            return Round([], lambda *_: None, training, None)  # type: ignore[arg-type, return-value]
        share = {"true": 0.0, "shuffled": 0.5, "swapped": 1.0}[arm.labels]
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < share
        pairs = [
            row._replace(chosen=row.rejected, rejected=row.chosen) if s else row
            for row, s in zip(rows, swap, strict=True)
        ]
        step = simul_step(config, arm, policy.copy(), seed)
        check_nothing_moved(policy, step, pairs[: config.batch_size], arm.loss_type or config.loss_type)
        return Round(pairs, step, training, None)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if not t:
            return {}  # that of the arm without a second stage
        options = {"unit": config.unit, "allow_early_stop": config.allow_early_stop}
        test, all_readers = task.pairs("test", seed), readers(config, arm, seed)
        curve = run.table("curve", lambda: sweep(task, policy, all_readers, rows=test, run=run, **options))
        at = curve[(curve["reader"] == arm.readers[0]) & (curve["value"] == config.tau)]
        return (at if len(at) else curve.head(1)).iloc[0].drop(["reader", "value"]).to_dict()

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)[1:]


def readers(config: Config, arm: Arm, seed: int) -> list[Reader]:
    values = {"confidence": config.taus, "random": config.taus, "wait_k": config.waits}
    return [Reader(kind, float(value), seed) for kind in arm.readers for value in values[kind]]  # type: ignore[arg-type]


def token_pairs(task: TranslationTask, policy: Policy, config: Config, seed: int) -> list[Pair]:
    rows, _ = usable(task.pairs("train", seed), config.unit)
    if not rows:
        raise ValueError("no pair is left to train on; the log says what was wrong with them")
    return [
        Pair(
            f"row {i}",
            prefix_prompts(policy, task.prompt, words_of(row["source"], config.unit)),
            policy.encode_response(row["chosen"]),
            policy.encode_response(row["rejected"]),
        )
        for i, row in enumerate(rows)
    ]


def fine_tuned(task: TranslationTask, config: Config, start: str, seed: int, shared: Run) -> Policy:
    """The task's start with a confidence head, after MSFT; made once a seed, for all arms that begin with it."""
    if start == "task":
        return network.add_confidence(task.start(seed), seed=seed)

    def build(folder) -> None:
        policy = network.add_confidence(task.start(seed), seed=seed)
        rows = token_pairs(task, policy, config, seed)
        if start == "both":  # the preferred translation of one half, the other one of the other
            flip = np.random.default_rng([seed, 6]).random(len(rows)) < 0.5
            rows = [row._replace(chosen=row.rejected) if f else row for row, f in zip(rows, flip, strict=True)]
        training = TrainConfig(
            learning_rate=config.msft_learning_rate,
            max_steps=config.msft_steps,
            batch_size=config.msft_batch_size,
            schedule=config.schedule,
            warmup_ratio=config.warmup_ratio,
            micro_batch_size=config.micro_batch_size,
            max_grad_norm=config.max_grad_norm,
        )
        train(policy, rows, msft_step(config, seed), training, Run(folder), seed=seed)
        save_weights(policy.model, folder / "weights.safetensors")

    folder = runs.cached_folder({"kind": f"msft-{start}"}, build, root=shared.folder / "stages")
    policy = network.add_confidence(task.start(seed), seed=seed)
    load_weights(policy.model, folder / "weights.safetensors")
    return policy


# ------------------------------------------------------------------------------------------------------------- steps
def msft_step(config: Config, seed: int) -> Step:
    def step(policy: Policy, batch: Sequence[Pair]):
        read = drawn_prefixes(batch, config.min_prefix, seed)
        prompts = [[row.prompts[-1] for row in batch], [row.prompts[j - 1] for row, j in zip(batch, read, strict=True)]]
        targets = [row.chosen for row in batch]
        full, prefix = (states(policy, p, targets, whole_vocabulary=config.label_smoothing > 0) for p in prompts)
        return supervised(full, prefix, config)

    return step


def supervised(full: States, prefix: States, config: Config):
    """L_MSFT of each row behind the full source and behind a prefix, and what it logs."""
    options = {"confidence_weight": config.confidence_weight, "label_smoothing": config.label_smoothing}
    confidence, is_token = prefix.confidence, prefix.is_token
    losses, logged = objectives.state_confidence(
        full.logps, prefix.logps, confidence, prefix.targets, is_token, **options
    )
    mean = torch.where(is_token, confidence, 0.0).sum(-1) / is_token.sum(-1)
    losses = losses / is_token.sum(-1) if config.token_means else losses
    return losses, {**{k: v for k, v in logged.items() if k != "n_tokens"}, "confidence": mean.detach()}


def simul_step(config: Config, arm: Arm, frozen: Policy, seed: int) -> Step:
    """SimulDPO over `Pair`s; `frozen` is the reference, the MSFT model, which reads the same prefixes."""
    alpha = config.alpha if arm.alpha is None else arm.alpha
    loss_type = arm.loss_type or config.loss_type
    options = {"beta": config.beta, "loss_type": loss_type, "form": config.form if arm.learns == "simul" else "terms"}
    lagging = {"n_prefixes": config.delay_prefixes, "scrambled": seed if arm.delays == "scrambled" else None}
    columns = {"whole_vocabulary": config.label_smoothing > 0}
    weights = {"kappa": config.kappa, "alpha": alpha} if arm.learns == "simul" else {"kappa": 0.0, "alpha": 0.0}

    def step(policy: Policy, batch: Sequence[Pair]):
        whole = [len(row.prompts) for row in batch]
        read = drawn_prefixes(batch, config.min_prefix, seed) if arm.learns == "simul" else whole
        prompts = [row.prompts[j - 1] for row, j in zip(batch, read, strict=True)]
        sides = [[row.chosen for row in batch], [row.rejected for row in batch]]
        with torch.no_grad():
            then = [states(frozen, prompts, side) for side in sides]
        now = [states(policy, prompts, side, **columns) for side in sides]
        averaged = loss_type != "sigmoid"
        sums = [s.token_logps.sum(-1) / (s.is_token.sum(-1) if averaged else 1) for s in (*now, *then)]
        zero = torch.zeros_like(sums[0])
        msft, penalties, logged = zero, [zero, zero], {}
        if arm.learns == "simul":
            full = states(policy, [row.prompts[-1] for row in batch], sides[0], **columns)
            msft, logged = supervised(full, now[0], config)
            if alpha:
                both = sides if config.form == "margin" else sides[:1]
                found = [expected_lagging(policy, batch, side, **lagging) for side in both]
                penalties = [*found, zero][:2]
        losses, pair_logged = objectives.simul_dpo(*sums, msft, *penalties, **options, **weights)  # type: ignore[reportCallIssue]
        return losses, {**logged, **pair_logged}

    return step


@torch.no_grad()
def check_nothing_moved(policy: Policy, step: Step, rows: Sequence[Pair], loss_type: str) -> None:
    """Before any update policy and reference are the same weights behind the same prefixes: every log-ratio is 0."""
    if loss_type == "simpo":
        return
    _, logged = step(policy, rows)
    worst = max(float(logged[name].abs().max()) for name in ("chosen_rewards", "rejected_rewards"))
    if not worst < (1e-3 if policy.precision == "no" else 5e-2):
        raise RuntimeError(
            f"step-0 check: a reward is {worst:.2g} before any update and should be 0; the reference is not the MSFT"
            " model, or reads other prefixes than the policy"
        )


# ------------------------------------------------------------------------------------------------------------- claims
UNKNOWN = "figures not available"


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims; controls are the same difference between arms with shuffled labels, unless named."""
    found = Claims("simulpl", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    tau = experiment.config.tau

    def at(arm: str, key: str = "quality") -> np.ndarray:
        return np.array([result["arms"][arm][0][key] for result in results])

    def curves(arm: str) -> list[list[dict]]:
        return [result["curves"][arm] for result in results]

    def fixed(arm: str, lag: float = LEVELS[0], reader: str = "confidence") -> np.ndarray:
        return np.array([quality_at(curve, lag, reader) for curve in curves(arm)])

    def lags(a: str, b: str) -> np.ndarray:
        return np.array([lag_difference(x, y) for x, y in zip(curves(a), curves(b), strict=True)])

    shuffled: dict[str, Any] = {"control_is": "labels shuffled"}
    if {"simul_dpo", "preferred"} <= arms and not experiment.dataset:
        waits = {level: fixed("preferred", level, "wait_k") for level in LEVELS}
        reached = [
            [p["AL"] for p in curve if p["reader"] == "wait_k" and p["quality"] >= 0.95]
            for curve in curves("preferred")
        ]
        needed = np.mean([min(lags, default=math.inf) for lags in reached])
        found.test(
            "C1",
            f"Better translations than wait-k at AL {LEVELS[0]:g}",
            paper=UNKNOWN,
            unit="of sentences",
            measured=fixed("simul_dpo") - waits[LEVELS[0]],
            control=fixed("simul_dpo", reader="random") - waits[LEVELS[0]],
            control_is="SimulDPO's text, random decisions",
            also={
                "at no AL up to 4 worse by more than 0.01": all(
                    np.mean(fixed("simul_dpo", x) - waits[x]) >= -0.01 for x in LEVELS
                ),
                "0.95 exact at AL 2": bool(np.mean(fixed("simul_dpo")) >= 0.95),
                "wait-k needs AL 2.6 for 0.95": bool(needed >= 2.6),
            },
        )
    if {"simul_dpo", "dpo", "shuffled", "dpo_shuffled"} <= arms:
        found.test(
            "C2",
            "SimulDPO reads less than DPO on full sources at the same quality",
            paper=UNKNOWN,
            measured=lags("dpo", "simul_dpo"),
            control=lags("dpo_shuffled", "shuffled"),
            unit="words of AL",
            also={
                f"lower AL at tau {tau:g}": bool(np.mean(at("simul_dpo", "AL") - at("dpo", "AL")) < 0),
                f"no lower quality at tau {tau:g}": bool(np.mean(at("simul_dpo") - at("dpo")) >= 0),
            },
            **shuffled,
        )
        found.test(
            "C3",
            f"DPO on finished sentences raises AL at tau {tau:g}",
            paper="argued",
            measured=at("dpo", "AL") - at("msft", "AL"),
            control=at("dpo_shuffled", "AL") - at("msft", "AL"),
            unit="words of AL",
            **shuffled,
        )
    if {"alpha_0", "alpha_5", "scrambled"} <= arms:
        too_fast = [
            p for result in results for curve in result["curves"].values() for p in curve if p["AL"] < LOWEST_AL - 1e-6
        ]
        found.test(
            "C2 alpha",
            f"A larger weight of latency lowers AL at tau {tau:g}",
            paper=UNKNOWN,
            unit="words of AL",
            measured=at("alpha_0", "AL") - at("alpha_5", "AL"),
            control=at("alpha_0", "AL") - at("scrambled", "AL"),
            control_is="alpha 5, delays scrambled",
            also={
                "alpha 1 not above alpha 0": bool(np.mean(at("simul_dpo", "AL") - at("alpha_0", "AL")) <= 0.05),
                "no perfect quality below the lowest possible AL": all(p["quality"] < 1 for p in too_fast),
            },
        )
    if {"msft", "simul_dpo", "shuffled"} <= arms:
        roles = (
            {"roles swapped: 0": bool(np.all(at("swapped") == 0))}
            if "swapped" in arms and not experiment.dataset
            else {}
        )
        direction: Any
        for id, what, key, direction, also in (
            ("C4", f"Better than MSFT alone at tau {tau:g}", "quality", "greater", roles),
            ("C4 order", "More in source order than MSFT", "monotonicity", "greater", {}),
            ("C4 key points", "More key points than MSFT", "key_points", "greater", {}),
            ("C4 length", "Shorter than MSFT", "length", "less", {}),
        ):
            both = [at(arm, key) - at("msft", key) for arm in ("simul_dpo", "shuffled")]
            if all(np.isfinite(values).all() for values in both):
                found.test(
                    id,
                    what,
                    paper=UNKNOWN,
                    measured=both[0],
                    control=both[1],
                    direction=direction,
                    also=also,
                    **shuffled,
                )
        found.test(
            "C4 fixed AL",
            f"Better than MSFT alone at AL {LEVELS[0]:g}",
            paper=UNKNOWN,
            measured=fixed("simul_dpo") - fixed("msft"),
            control=fixed("shuffled") - fixed("msft"),
            **shuffled,
        )
    found.needs_full_scale("C5", "Human raters see gains on several aspects", UNKNOWN, "needs human raters")
    if {"ipo", "ipo_text", "ipo_shuffled", "ipo_text_shuffled"} <= arms:
        found.test(
            "C6",
            "IPO becomes latency-aware the same way: less AL than plain IPO at the same quality",
            paper=UNKNOWN,
            measured=lags("ipo_text", "ipo"),
            control=lags("ipo_text_shuffled", "ipo_shuffled"),
            unit="words of AL",
            **shuffled,
        )
    return found
