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
- the EOS token before the source is read means READ unless `allow_early_stop`, and is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from workbench import objectives, runs, tasks
from workbench.config import Field, Presets, Source, Training, listed, strict
from workbench.methods.align.simulpl import network
from workbench.methods.align.simulpl.network import Pair, States, drawn_prefixes, expected_lagging, states
from workbench.methods.align.simulpl.sweep import readers_of, sweep
from workbench.methods.align.simulpl.translations import PairedText
from workbench.methods.align.simulpl.world import Clauses
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import TranslationTask
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.rounds import Round, iterate
from workbench.training.steps import Step


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
    colour: str = ""


@strict
class Config(Training, Presets):
    """The paper's values were not available ("?"): defaults are SM2's where it has one, else ours."""

    msft_steps: int = Field(default=0, ge=0)  # optimiser steps of stage 1; 0: one epoch; paper ?
    msft_batch_size: int = Field(default=32, ge=1)  # sentences; paper ?
    msft_learning_rate: float = Field(default=1e-4, gt=0)  # LoRA; ours (SM2 from scratch: 5e-4)
    confidence_weight: float = Field(default=0.1, ge=0)  # lambda; SM2
    token_means: bool = False  # L_MSFT as a mean over tokens instead of SM2's sum
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # ours for language models (SM2: 0.1)
    min_prefix: int = Field(default=1, ge=1)  # source words; SM2
    batch_size: int = Field(default=16, ge=1)  # pairs; paper ?
    learning_rate: float = Field(default=5e-6, gt=0)  # LoRA; ours
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # SM2: Adam
    beta: float = Field(default=0.1, gt=0)  # 1/nat; ours
    kappa: float = Field(default=1.0, ge=0)  # weight of L_MSFT in SimulDPO; ours
    alpha: float = Field(default=1.0, ge=0)  # weight of expected lagging; ours
    loss_type: Literal["sigmoid", "ipo", "simpo"] = "sigmoid"
    form: Literal["terms", "margin"] = "terms"  # where latency enters; both are reconstructions
    delay_prefixes: int = Field(default=0, ge=0)  # prefixes behind the expected delay, evenly spaced; 0: every word
    # ours: no clipping, which cuts L_MSFT behind short prefixes but hardly ever Lat: kappa against alpha would change
    max_grad_norm: float = Field(default=1e9, gt=0)
    tau: float = Field(default=0.7, ge=0, le=1)  # threshold at which arms are compared; larger reads more
    taus: list[float] = listed(0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # sweep; ours
    waits: list[int] = listed(1, 3, 5, 7, 9)  # k of wait-k; ours
    allow_early_stop: bool = False  # the end before the source is read; SM2's code allows it
    max_new_tokens: int = Field(default=128, ge=1)
    n_pairs: int = Field(default=0, ge=0)  # training pairs; 0: all
    test_size: int = Field(default=200, ge=1)  # held-out sentences
    unit: Literal["word", "character"] = "word"  # in which delays count
    lang: str = ""  # direction that rows must have, such as "de-en"; "": any
    rewriter: Source = ""  # folder or hub id of the model that writes preferred translations; "": the data has them
    arms: list[str] = listed("msft", "simul_dpo", "dpo", "shuffled", "dpo_shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Clauses

    def __post_init__(self):
        super().__post_init__()
        if bad := [tau for tau in self.taus if not 0 <= tau <= 1]:
            raise ValueError(f"taus {bad} are outside [0, 1]: they are compared with probabilities")
        if self.tau not in self.taus:
            raise ValueError(f"tau={self.tau} must be one of taus={self.taus}: arms are compared there")
        if self.form == "margin" and any((self.ARMS[a].loss_type or self.loss_type) != "sigmoid" for a in self.arms):
            raise ValueError('form="margin" is that of loss_type="sigmoid"; leave out the arms with another loss')


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The world of clauses, or a data set of preference pairs between translations with a starting model."""
    settings: Any = {"n_pairs": config.n_pairs or 4_000, "n_test": config.test_size, **config.world}
    world = partial(Clauses, device=device, **settings)
    real = partial(PairedText.of, config, dataset, model, device=device, train_size=config.n_pairs)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: TranslationTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: stage 1 (shared by all arms that start alike), stage 2, and the sweep of its readers."""
    policy = fine_tuned(task, config, arm.start, seed, run.beside("stages"))
    rows = network.token_pairs(task, policy, seed, config.unit)

    def make_round(policy: Policy, t: int) -> Round:
        if arm.learns == "nothing":
            return Round([], lambda *_: None, TrainConfig.of(config), None)  # type: ignore[arg-type, return-value]
        share = {"true": 0.0, "shuffled": 0.5, "swapped": 1.0}[arm.labels]
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < share
        both = zip(rows, swap, strict=True)
        pairs = [row._replace(chosen=row.rejected, rejected=row.chosen) if s else row for row, s in both]
        step = simul_step(config, arm, policy.copy(), seed)
        network.check_nothing_moved(policy, step, pairs[: config.batch_size], arm.loss_type or config.loss_type)
        return Round(pairs, step, TrainConfig.of(config), None)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if not t:
            return {}  # that of the arm without a second stage
        readers = readers_of(arm.readers, config.taus, config.waits, seed)
        options: Any = {
            "unit": config.unit,
            "allow_early_stop": config.allow_early_stop,
            "rows": task.pairs("test", seed),
        }
        curve = run.table("curve", lambda: sweep(task, policy, readers, run=run, **options))
        at = curve[(curve["reader"] == arm.readers[0]) & (curve["value"] == config.tau)]
        return (at if len(at) else curve.head(1)).iloc[0].drop(["reader", "value"]).to_dict()

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)[1:]


def beside_arms(task: TranslationTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """`{"curves": {arm: one record a reader and setting}}`."""
    return {"curves": {arm: run.child(arm).table("curve", pd.DataFrame).to_dict("records") for arm in config.arms}}


# ------------------------------------------------------------------------------------------------- stage 1: fine-tuning
def fine_tuned(task: TranslationTask, config: Config, start: str, seed: int, stages: Run) -> Policy:
    """The task's start with a confidence head, after MSFT; made once a seed, for all arms that begin with it."""
    policy = network.add_confidence(task.start(seed), seed=seed)
    if start == "task":
        return policy

    def build(folder: Path) -> None:
        rows = network.token_pairs(task, policy, seed, config.unit)
        if start == "both":  # the preferred translation of one half, the other one of the other
            flip = np.random.default_rng([seed, 6]).random(len(rows)) < 0.5
            rows = [row._replace(chosen=row.rejected) if f else row for row, f in zip(rows, flip, strict=True)]
        own: Any = {"learning_rate": config.msft_learning_rate, "batch_size": config.msft_batch_size}
        training = TrainConfig.of(config, **own, max_steps=config.msft_steps, epochs=1, checkpoint_every=0)
        train(policy, rows, msft_step(config, seed), training, Run(folder), seed=seed)
        save_weights(policy.model, folder / "weights.safetensors")

    folder = runs.cached_folder({"kind": f"msft-{start}"}, build, root=stages.folder)
    load_weights(policy.model, folder / "weights.safetensors")
    return policy


def msft_step(config: Config, seed: int) -> Step:
    """L_MSFT, with one prefix for the whole batch: p^o behind the full sources, p^s and c behind the prefixes."""
    options = {"whole_vocabulary": config.label_smoothing > 0}

    def step(policy: Policy, batch: Sequence[Pair]):
        read = drawn_prefixes(batch, config.min_prefix, seed)
        targets = [row.chosen for row in batch]
        full = states(policy, [row.prompts[-1] for row in batch], targets, **options)
        prefix = states(policy, [row.prompts[j - 1] for row, j in zip(batch, read, strict=True)], targets, **options)
        return supervised(full, prefix, config)

    return step


def supervised(full: States, prefix: States, config: Config):
    """L_MSFT of each row behind the full source and behind a prefix, and what it logs."""
    c, is_token = prefix.confidence, prefix.is_token
    options = {"confidence_weight": config.confidence_weight, "label_smoothing": config.label_smoothing}
    losses, logged = objectives.state_confidence(full.logps, prefix.logps, c, prefix.targets, is_token, **options)
    n_tokens = logged.pop("n_tokens")
    confidence = (torch.where(is_token, c, 0.0).sum(-1) / n_tokens).detach()
    return losses / n_tokens if config.token_means else losses, {**logged, "confidence": confidence}


# ---------------------------------------------------------------------------------------------------- stage 2: SimulDPO
def simul_step(config: Config, arm: Arm, frozen: Policy, seed: int) -> Step:
    """SimulDPO over `Pair`s; `frozen` is the reference, the MSFT model, which reads the same prefixes.

    An arm that learns from text alone has the full source for every token, and neither L_MSFT nor Lat.
    """
    simul, loss_type = arm.learns == "simul", arm.loss_type or config.loss_type
    form = config.form if simul else "terms"
    options: Any = {"beta": config.beta, "kappa": config.kappa if simul else 0.0, "loss_type": loss_type, "form": form}
    options["alpha"] = alpha = (config.alpha if arm.alpha is None else arm.alpha) if simul else 0.0
    lagging = {"n_prefixes": config.delay_prefixes, "scrambled": seed if arm.delays == "scrambled" else None}
    columns = {"whole_vocabulary": config.label_smoothing > 0}

    def step(policy: Policy, batch: Sequence[Pair]):
        read = drawn_prefixes(batch, config.min_prefix, seed) if simul else [len(row.prompts) for row in batch]
        prompts = [row.prompts[j - 1] for row, j in zip(batch, read, strict=True)]
        sides = [[row.chosen for row in batch], [row.rejected for row in batch]]
        with torch.no_grad():
            then = [states(frozen, prompts, side) for side in sides]
        now = [states(policy, prompts, side, **columns) for side in sides]
        # log p of both translations, now and under the reference: sums, means for IPO and SimPO
        logps = [s.token_logps.sum(-1) / (s.is_token.sum(-1) if loss_type != "sigmoid" else 1) for s in (*now, *then)]
        msft = zero = torch.zeros_like(logps[0])
        penalties, logged = [zero, zero], {}
        if simul:
            full = states(policy, [row.prompts[-1] for row in batch], sides[0], **columns)
            msft, logged = supervised(full, now[0], config)
        if alpha:
            both = sides if form == "margin" else sides[:1]
            penalties = [*(expected_lagging(policy, batch, side, **lagging) for side in both), zero][:2]
        losses, pair_logged = objectives.simul_dpo(*logps, msft, *penalties, **options)  # type: ignore[reportCallIssue]
        return losses, {**logged, **pair_logged}

    return step
