"""LongPO: a model that is good on short text teaches itself to be good on long text.

Needs long documents with questions about parts of them. The model answers each question twice, from the short part
(chosen) and from the whole document (rejected). With the long input x_L, the short one x_S and the model pi_S as it
was, minimise

    NLL(y_S | x_L) - lam E log sigma( beta log [pi_theta(y_S|x_L) / pi_S(y_S|x_S)] - beta log [pi_theta(y_L|x_L) /
    pi_S(y_L|x_S)] )

So the reference reads the short input: the constraint keeps the policy on long text near the model on short text.
Repeated on longer documents, with the result as the next generator and reference.

Source: Chen, Li, Shang, Liu, Bing 2025, "LongPO: Long Context Self-Evolution of Large Language Models through
Short-to-Long Preference Optimization", ICLR 2025, arXiv 2502.13922, eqs. 12 to 14; official code DAMO-NLP-SG/LongPO.

Where this differs from the official code, and why:
- several turns: log-probs are summed over the answers of all turns, as in the code (the paper's eq. 13 sums
  probabilities);
- greedy answers, as in the paper (code: temperature 1.0);
- padding has no part in the NLL (there it counts where the chosen row was padded), and any number of documents may be
  held
  at once (there: one a device, because the mask is multiplied with a flat vector);
- rows whose two answers are the same are imitated only; reference log-probs are computed once, before training.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.methods.align.longpo.pairs import Asking, make_pairs
from workbench.methods.align.longpo.rows import LongRow, answer_sums, build_rows, scored_answers, short_to_long_kl
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import TextDocuments
from workbench.tasks.protocols import DocumentTask
from workbench.training.loop import TrainConfig
from workbench.training.rounds import Round, iterate
from workbench.worlds.records import Records

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "pairs"; or "chosen" or "rejected", supervised on that side alone.
        lam: weight of the preference term; 0 takes the configuration's.
        nll: weight of the NLL; 0 leaves the preference term alone.
        reference: what the reference reads; "long" is DPO.
        labels: "swapped" exchanges chosen and rejected in the preference term; the NLL stays that of the chosen text.
        rate: factor on the learning rate.
        rounds: how many lengths of the configuration, one after the other.
        later: what rounds behind the first learn, as `learns`.
    """

    title: str
    learns: Literal["pairs", "chosen", "rejected"] = "pairs"
    lam: float = 0.0
    nll: float = 1.0
    reference: Literal["short", "long"] = "short"
    labels: Literal["true", "swapped"] = "true"
    rate: float = 1.0
    rounds: int = 1
    later: Literal["pairs", "chosen", "rejected"] = "pairs"


METHOD = Arm("LongPO")
ARMS: dict[str, Arm] = {
    "longpo": METHOD,
    "sft": Arm("SFT on short-context answers", learns="chosen"),
    "rejected": Arm("SFT on long-context answers", learns="rejected"),
    "lam1": Arm("LongPO, lam 1", lam=1.0),
    "swapped": Arm("LongPO, lam 1, roles swapped", lam=1.0, labels="swapped"),
    "dpo": Arm("DPO, no NLL", lam=1.0, nll=0.0, reference="long"),
    "alone": Arm("LongPO, no NLL", lam=1.0, nll=0.0),
    "sft_fast": Arm("SFT, rate x 10", learns="chosen", rate=10.0),
    "longpo_fast": Arm("LongPO, rate x 10", rate=10.0),
    "iterated": Arm("LongPO, two rounds", rounds=2),
    "iterated_off": Arm("LongPO, then SFT on long-context answers", rounds=2, later="rejected"),
    "dpo_nll": Arm("DPO with NLL", reference="long"),
}


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one, else the official script's."""

    beta: float = Field(default=0.1, gt=0)  # 1/nat; paper (script: 0.01)
    lam: float = Field(default=0.01, ge=0)  # of the preference term; the NLL has weight 1; paper
    nll_scope: Literal["all", "answers"] = (
        "all"  # tokens of the NLL: the whole chosen text, or its answers; official code
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # official code
    rope_theta: float = Field(default=1e7, ge=0)  # of the policy; the reference keeps its own; paper; 0: as it is
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    optimizer: Literal["adamw", "rmsprop"] = "rmsprop"  # official script (paper: Adam)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # official script
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # official script
    batch_size: int = Field(default=8, ge=1)  # documents; paper
    epochs: int = Field(default=1, ge=1)  # official script
    max_steps: int = Field(default=0, ge=0)  # optimiser steps a round; 0: all epochs
    lengths: list[int] = listed(
        131_072, 262_144, 524_288
    )  # of the documents of each round; paper, tokens; world: records
    min_length: int = Field(default=0, ge=0)  # tokens; shorter documents are left out (paper: 65,536)
    questions: Literal["model", "task"] = "model"  # who asks: the model itself, as in the paper, or the task
    turns: int = Field(default=4, ge=1)  # chunks asked about a document, at most; paper
    question_temperature: float = Field(default=0.7, ge=0)  # paper
    question_top_p: float = Field(default=0.9, gt=0, le=1)  # paper
    temperature: float = Field(default=0.0, ge=0)  # of the answers; paper: greedy (code: 1.0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=1024, ge=1)  # of questions and answers; ours
    n_documents: int = Field(default=0, ge=0)  # real text: documents to train on; 0: all
    test_size: int = Field(default=40, ge=1)  # held-out documents for margins and KL
    chunk_tokens: int = Field(
        default=30_000, ge=8
    )  # real text: of a chunk that paragraphs are packed into; official code
    pack: int = Field(default=12, ge=2)  # real text: problems packed into a document, where the rows are no documents
    micro_batch_size: int = Field(default=0, ge=0)  # documents held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # real text; 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("longpo", "sft", "dpo")  # see ARMS
    world: dict[str, Any] = Field(default_factory=dict)  # settings of the embedded world, see Records

    PRESETS: ClassVar = {
        # The specification's small experiment.
        "tiny": {
            "nll_scope": "answers",
            "rope_theta": 0.0,
            "learning_rate": 5e-4,
            "optimizer": "adamw",
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "max_steps": 150,
            "lengths": [40, 60],
            "questions": "task",
            "max_new_tokens": 3,
            "arms": [arm for arm in ARMS if arm != "dpo_nll"],
        },
        "smoke": {
            "rope_theta": 0.0,
            "learning_rate": 5e-4,
            "optimizer": "adamw",
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "max_steps": 2,
            "batch_size": 4,
            "lengths": [12, 18],
            "questions": "task",
            "turns": 2,
            "max_new_tokens": 3,
            "test_size": 4,
            "arms": [arm for arm in ARMS if arm not in ("dpo_nll", "longpo_fast")],
            "world": {"steps": 20, "n_documents": 8, "n_test": 8, "lengths": (6, 12)},
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "learning_rate": 1e-5,
            "lengths": [12],
            "max_new_tokens": 128,
            "n_documents": 60,
            "test_size": 10,
            "questions": "task",
            "rope_theta": 0.0,
        },
        "smoke": {
            "learning_rate": 1e-4,
            "lengths": [4],
            "max_new_tokens": 12,
            "n_documents": 4,
            "test_size": 2,
            "questions": "task",
            "turns": 2,
            "batch_size": 2,
            "rope_theta": 0.0,
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")
        rounds = max((ARMS[arm].rounds for arm in self.arms), default=1)
        if len(self.lengths) < rounds or min(self.lengths) < 1:
            raise ValueError(f"lengths={self.lengths}: the arms need {rounds} positive lengths, one for each round")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The records; or a data set of documents (or of problems to pack into documents) with a starting model.

    Raises:
        ValueError: one of model and dataset without the other.
    """
    if not dataset and not model:
        world = {
            "n_values": 16,
            "value_tokens": 2,
            "longest_value": 2,
            "asked": 1,
            "rope_theta": 10_000.0,
            "second_task": 0.25,
            "steps": 500,
            "n_documents": 240,
            "chunk": 6,
            "lengths": (6, 40, 60),
        }
        return Records(device=device, turns=config.turns, **{**world, **config.world})
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    return TextDocuments(
        dataset,
        model,
        device=device,
        test_size=config.test_size,
        train_size=config.n_documents,
        lora=lora,
        pack=config.pack,
        max_new_tokens=config.max_new_tokens,
        precision=config.precision,
        turns=config.turns,
        chunk_tokens=config.chunk_tokens,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: DocumentTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [evaluation after 0, 1, ... rounds]}, "counts": {...}}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    return {"arms": arms, "counts": run.child("pairs").cached("train-counts", dict)}


def run_arm(task: DocumentTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    pairs = run.child("pairs")  # of the first round, which all arms share
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), pairs))


def play(task: Any, config: Config, arm: Arm, seed: int, run: Run, pairs: Run | None = None) -> list[dict[str, float]]:
    """One arm: in every round two answers to each question, the reference on the short side, training on the long
    one."""
    policy, first, pairs = task.start(seed), task.start(seed), pairs or run.child("pairs")
    if config.rope_theta:
        set_rope_theta(policy, config.rope_theta)
    held_out = pairs_of_round(task, first, config, "test", seed, 0, pairs)
    test = build_rows(policy, first, held_out, **conditioning(config, METHOD))

    def make_round(policy: Policy, t: int) -> Round:
        # after the first round the model of the round before writes the answers and is the reference
        reference, part = (policy, run.child(f"round-{t + 1}")) if t else (first, pairs)
        table = pairs_of_round(task, reference, config, "train", seed, t, part)
        rows = build_rows(policy, reference, table, **conditioning(config, arm))
        training = TrainConfig(
            learning_rate=config.learning_rate * arm.rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            schedule=config.schedule,
            warmup_ratio=config.warmup_ratio,
            max_steps=config.max_steps,
            micro_batch_size=config.micro_batch_size,
            checkpoint_every=config.checkpoint_every,
        )
        if arm.learns == "pairs":
            run.cached(f"start-{t}", lambda: start_losses(policy, rows, config.beta))
        return Round(rows, LongStep(config, arm, rows, arm.later if t else arm.learns), training, None)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = task.evaluate(policy, seed) if t else pairs.cached("before", lambda: task.evaluate(policy, seed))
        ratios = answer_sums(policy, test) - np.array([row.reference_logps for row in test])
        margins, turns = ratios[:, 0] - ratios[:, 1], held_out[["questions", "chosen", "rejected"]]
        run.table(f"ratios-{t}", lambda: turns.assign(chosen_ratio=ratios[:, 0], rejected_ratio=ratios[:, 1]))
        if t and arm.learns == "pairs":
            numbers["start_loss"] = float(np.mean(run.cached("start-0", list) or np.nan))
        return {
            **numbers,
            "margin": float(margins.mean()),
            "reward_accuracy": float(np.mean(margins > 0)),
            "short_to_long_kl": short_to_long_kl(policy, first, held_out),
        }

    return iterate(policy, arm.rounds, make_round, evaluate, run, seed=seed)


def pairs_of_round(task: Any, policy: Policy, config: Config, split: str, seed: int, t: int, run: Run) -> pd.DataFrame:
    """The pairs that `policy` makes on documents of round t's length."""
    longer = task.longer(config.lengths[t]) if hasattr(task, "longer") else task
    documents = longer.documents(split, seed + 1000 * t)[: config.test_size if split == "test" else None]
    how = Asking(
        config.questions,
        config.turns,
        config.question_temperature,
        config.question_top_p,
        config.temperature,
        config.top_p,
        config.max_new_tokens,
        config.min_length,
    )
    number = 10 * (seed + 1000 * t) + (split == "test")
    return make_pairs(documents, policy, how, run, split, longest=config.lengths[t], seed=number)


def set_rope_theta(policy: Policy, theta: float) -> None:
    """Gives the policy another base of its rotary positions; the reference is another object and keeps its own.

    Raises:
        ValueError: the model has no rotary positions with a base.
    """
    config = policy.model.config.get_text_config()
    places = [(m, n) for m in policy.model.modules() for n, c in m.named_children() if n == "rotary_emb"]
    if not places or not getattr(config, "rope_parameters", None):
        raise ValueError(f"{policy.name} has no rotary positions whose base could be {theta:g}; set rope_theta=0")
    config.rope_parameters["rope_theta"] = theta
    for module, name in places:
        setattr(module, name, type(getattr(module, name))(config=config).to(policy.device))


# -------------------------------------------------------------------------------------------------------------- loss
def conditioning(config: Config, arm: Arm) -> dict[str, Any]:
    """What an arm's rows differ in: tokens that are scored, and what the reference reads."""
    return {"scope": config.nll_scope, "reference_reads": arm.reference}


class LongStep:
    """Losses [row] of `LongRow`s: NLL of the chosen side, and the preference term; or the NLL of one side alone."""

    def __init__(self, config: Config, arm: Arm, rows: Sequence[LongRow], learns: str):
        pairs = max(1, sum(row.is_pair for row in rows))
        self.learns, self.scope = learns, config.nll_scope
        self.sides = (1, 0) if arm.labels == "swapped" else (0, 1)
        # rows that are no pairs are left out of the preference mean
        self.options = {
            "beta": config.beta,
            "lam": (arm.lam or config.lam) * len(rows) / pairs,
            "nll_weight": arm.nll,
            "label_smoothing": config.label_smoothing,
        }

    def __call__(self, policy: Policy, batch: Sequence[LongRow]) -> tuple[Tensor, dict[str, Tensor]]:
        if self.learns != "pairs":
            side = {"chosen": 0, "rejected": 1}[self.learns]
            batch = [
                row._replace(
                    group=row.group._replace(responses_ids=[row.group.responses_ids[side]]),
                    is_answer=(row.is_answer[side],),
                )
                for row in batch
            ]
        logps, is_token, inside = scored_answers(policy, batch)
        learned = (is_token if self.scope == "all" else inside)[:, 0]
        nll = -(logps[:, 0] * learned).sum(-1) / learned.sum(-1)
        if self.learns != "pairs":
            return nll, {"nll": nll.detach()}
        sums, reference = (logps * inside).sum(-1), logps.new_tensor([row.reference_logps for row in batch])
        is_pair = torch.tensor([row.is_pair for row in batch], device=logps.device)
        w, l = self.sides
        return objectives.longpo(
            sums[:, w],
            sums[:, l],
            reference[:, w],
            reference[:, l],
            chosen_token_nll=nll,
            is_pair=is_pair,
            **self.options,
        )


def start_losses(policy: Policy, rows: Sequence[LongRow], beta: float) -> list[float]:
    """The preference loss that every pair must have before any update, from log-probs alone. It is log 2 only where
    policy and reference read the same text."""
    pairs = [row for row in rows if row.is_pair]
    if not pairs:
        return []
    apart = answer_sums(policy, pairs) - np.array([row.reference_logps for row in pairs])
    return np.logaddexp(0, -beta * (apart[:, 0] - apart[:, 1])).tolist()


# ----------------------------------------------------------------------------------------------------------- claims
# statement, paper's figures, and what is missing to test it here
BEYOND_SMALL = {
    "C1": (
        "Better on long text than SFT, and SFT better than DPO",
        "InfiniteBench 39.27, 30.03, 25.56 (base 13.82)",
        "the chosen answers of this world are nearly perfect and lam is tiny, so SFT and LongPO are the same here",
    ),
    "C2": (
        "Beats GPT-4-128K on InfiniteBench, and not on RULER or LongBench-Chat",
        "39.27 and 34.81; 86.06 and 88.53; 5.42 and 8.40",
        "needs a 7B model at 128K tokens",
    ),
    "C6": ("Transfers to another model", "Qwen2.5-7B 27.12 -> 40.48", "needs another pretrained model"),
}


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds. On real text `quality` stands for accuracy on long documents."""
    found = Claims("longpo", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    numbers = results[0]["arms"]["longpo"][0]
    lengths = sorted(int(name.removeprefix("retrieval_")) for name in numbers if name.startswith("retrieval_"))
    short, long, longest = (f"retrieval_{lengths[i]}" for i in (0, 1, -1)) if lengths else ("", "quality", "quality")
    unit = "of values, greedy" if lengths else "nats a token"

    def after(arm: str, key: str, when: int = 1) -> np.ndarray:
        return np.array([result["arms"][arm][when][key] for result in results])

    def gain(arm: str, key: str) -> np.ndarray:
        return after(arm, key) - after(arm, key, 0)

    if "rejected" in arms:
        other = "imitation of its long-context answers"
        found.test(
            "C1 gain",
            "On long documents LongPO gains at least 0.15 on the start",
            paper="InfiniteBench 13.82 -> 39.27",
            measured=gain("longpo", long),
            control=gain("rejected", long),
            control_is=other,
            margin=0.15 if lengths else 0.0,
            unit=unit,
        )
        kl = {
            arm: np.log(after(arm, "short_to_long_kl", 0) / after(arm, "short_to_long_kl"))
            for arm in ("longpo", "rejected")
        }
        found.test(
            "C7 KL",
            "The policy on long text comes near the model on short text: their KL falls to a quarter or less",
            paper="Fig. 4, no numbers",
            measured=kl["longpo"],
            control=kl["rejected"],
            control_is=other,
            margin=float(np.log(4)),
            unit="log of the factor",
        )
    if "second_task" in numbers and {"sft", "sft_fast", "alone"} <= arms:
        for id, what, key, control, title in (
            ("C3 short", "Accuracy on short documents", short, "alone", "no NLL"),
            (
                "C3 second",
                "A task that only the start was taught",
                "second_task",
                "sft_fast",
                "SFT at ten times the rate",
            ),
        ):
            found.test(
                id,
                f"{what} is kept (not worse by more than 0.03)",
                paper="MMLU 59.15 -> 59.99, ARC-C 59.26 -> 59.34",
                margin=-0.03,
                measured=gain("longpo", key),
                control=gain(control, key),
                control_is=title,
                unit=unit,
            )
        found.test(
            "C4",
            "SFT forgets at ten times the rate (by more than 0.05), which is the rate that the paper gives it",
            paper="MMLU -14 (SFT), -26 (DPO)",
            direction="less",
            margin=-0.05,
            measured=gain("sft_fast", "second_task"),
            control=gain("sft", "second_task"),
            control_is="SFT at LongPO's rate",
            unit=unit,
            note=f"LongPO at that rate: {gain('longpo_fast', 'second_task').mean():+.2f}"
            if "longpo_fast" in arms
            else "",
        )
    if {"iterated", "iterated_off"} <= arms:
        second = {arm: after(arm, longest, 2) - after(arm, longest, 1) for arm in ("iterated", "iterated_off")}
        found.test(
            "C5",
            "A second round on longer documents improves again",
            paper="39.27 -> 39.65 (256K) -> 41.21 (512K)",
            measured=second["iterated"],
            control=second["iterated_off"],
            control_is="second round on its long-context answers",
            unit=unit,
        )
    for arm, what in (("dpo", "DPO"), ("alone", "LongPO")):
        if arm in arms and lengths:
            found.test(
                f"C7 {arm}",
                f"{what} without the NLL ends below the start on long documents",
                paper="Fig. 4, no numbers",
                direction="less",
                measured=gain(arm, long),
                control=gain("longpo", long),
                control_is="LongPO with the NLL",
                unit=unit,
            )
    if {"lam1", "swapped", "sft"} <= arms:
        apart = {arm: after(arm, "margin") - after("sft", "margin") for arm in ("lam1", "swapped")}
        accuracy = f"chosen above rejected in {after('lam1', 'reward_accuracy').mean():.0%} of held-out documents"
        options: dict[str, Any] = {
            "paper": "Fig. 6: rewards part, accuracy above 0.9",
            "unit": "nats a document",
            "note": accuracy,
        }
        found.test(
            "C8",
            "The margin ends above that of SFT where the preference term has weight 1",
            measured=apart["lam1"],
            control=apart["swapped"],
            control_is="chosen and rejected swapped",
            **options,
        )
        found.test(
            "C8 swapped",
            "... and below it where chosen and rejected are swapped",
            direction="less",
            measured=apart["swapped"],
            control=apart["lam1"],
            control_is="sides as they are",
            **options,
        )
    if "dpo" in arms and "start_loss" in results[0]["arms"]["dpo"][1]:
        start = {arm: np.abs(after(arm, "start_loss") - np.log(2)) for arm in ("longpo", "dpo")}
        found.test(
            "C9",
            "Before training the loss is not log 2, because the reference reads the short text",
            paper="eq. 12",
            measured=start["longpo"],
            control=np.round(start["dpo"], 5),
            control_is="reference reads the long text",
            unit="nats",
        )
    for id, (statement, paper, why) in BEYOND_SMALL.items():
        found.needs_full_scale(id, statement, paper, why)
    return found
