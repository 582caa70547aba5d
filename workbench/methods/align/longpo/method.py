"""LongPO: a model that is good on short text teaches itself to be good on long text.

Needs long documents. In every round, with the model pi_S as it is at its start:

    1. Questions: for some chunks of each document, x_S, pi_S writes a question (or the task gives one).
    2. Pairs: pi_S answers it from the chunk alone (y_S, chosen) and from the whole document x_L (y_L, rejected).
    3. Training: minimise

           NLL(y_S | x_L) - lam E log sigma( beta log [pi_theta(y_S|x_L) / pi_S(y_S|x_S)]
                                             - beta log [pi_theta(y_L|x_L) / pi_S(y_L|x_S)] )

So the reference reads the short input: the constraint keeps the policy on long text near the model on short text. The
next round takes longer documents, and the result as the next pi_S.

Source: Chen, Li, Shang, Liu, Bing 2025, "LongPO: Long Context Self-Evolution of Large Language Models through
Short-to-Long Preference Optimization", ICLR 2025, arXiv 2502.13922, eqs. 12 to 14; official code DAMO-NLP-SG/LongPO.

Where this differs from the official code, and why:
- several turns: log-probs are summed over the answers of all turns, as in the code (the paper's eq. 13 sums
  probabilities);
- greedy answers, as in the paper (code: temperature 1.0);
- padding has no part in the NLL (there it counts where the chosen row was padded), and any number of documents may be
  held at once (there: one a device, because the mask is multiplied with a flat vector);
- rows whose two answers are the same are imitated only; reference log-probs are computed once, before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench import objectives, tasks
from workbench.config import Field, Presets, Sampling, Training, listed, strict
from workbench.methods.align.longpo.pairs import Asking, make_pairs
from workbench.methods.align.longpo.rope import set_rope_theta
from workbench.methods.align.longpo.rows import (
    LongRow,
    answer_sums,
    build_rows,
    scored_answers,
    short_to_long_kl,
    start_losses,
)
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import TextDocuments
from workbench.tasks.protocols import DocumentTask
from workbench.training.loop import TrainConfig
from workbench.training.rounds import Round, iterate
from workbench.worlds.records import Records

# one question at a time about values of two tokens, and a second task that only the start is taught
WORLD: dict[str, Any] = {"n_values": 16, "value_tokens": 2, "longest_value": 2, "asked": 1, "rope_theta": 10_000.0}
WORLD |= {"second_task": 0.25, "steps": 500, "n_documents": 240, "chunk": 6, "lengths": (6, 40, 60)}


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "pairs"; or "chosen" or "rejected", supervised on that side alone.
        lam: weight of the preference term; 0 takes the configuration's.
        nll: weight of the NLL; 0 leaves the preference term alone.
        reference: what the reference reads; "long" is DPO.
        labels: "swapped" exchanges chosen and rejected in the preference term; the NLL stays that of the chosen text.
        lr_factor: on the learning rate.
        rounds: how many lengths of the configuration, one after the other.
        later: what rounds behind the first learn, as `learns`.
    """

    title: str
    learns: Literal["pairs", "chosen", "rejected"] = "pairs"
    lam: float = 0.0
    nll: float = 1.0
    reference: Literal["short", "long"] = "short"
    labels: Literal["true", "swapped"] = "true"
    lr_factor: float = 1.0
    rounds: int = 1
    later: Literal["pairs", "chosen", "rejected"] = "pairs"
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's where it gives one, else the official script's."""

    beta: float = Field(default=0.1, gt=0)  # 1/nat; paper (script: 0.01)
    lam: float = Field(default=0.01, ge=0)  # of the preference term; the NLL has weight 1; paper
    # tokens of the NLL: the whole chosen text, or its answers; official code
    nll_scope: Literal["all", "answers"] = "all"
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # official code
    rope_theta: float = Field(default=1e7, ge=0)  # of the policy; the reference keeps its own; paper; 0: as it is
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"  # official script (paper: Adam)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # official script
    batch_size: int = Field(default=8, ge=1)  # documents; paper
    # of the documents of each round; paper, tokens; packed problems of real text, records of the world
    lengths: list[int] = listed(131_072, 262_144, 524_288)
    min_length: int = Field(default=0, ge=0)  # tokens; shorter documents are left out (paper: 65,536)
    questions: Literal["model", "task"] = "model"  # who asks: the model itself, as in the paper, or the task
    turns: int = Field(default=4, ge=1)  # chunks asked about a document, at most; paper
    question_temperature: float = Field(default=0.7, ge=0)  # paper
    question_top_p: float = Field(default=0.9, gt=0, le=1)  # paper
    temperature: float = Field(default=0.0, ge=0)  # of the answers; paper: greedy (code: 1.0)
    max_new_tokens: int = Field(default=1024, ge=1)  # of questions and answers; ours
    n_documents: int = Field(default=0, ge=0)  # real text: documents to train on; 0: all
    test_size: int = Field(default=40, ge=1)  # held-out documents for margins and KL
    chunk_tokens: int = Field(default=30_000, ge=8)  # of chunks made from paragraphs; official code
    pack: int = Field(default=12, ge=2)  # problems packed into a document, where the rows are no documents
    arms: list[str] = listed("longpo", "sft", "dpo")
    world: dict[str, Any] = Field(default_factory=dict)  # settings of the embedded world, see Records

    def __post_init__(self):
        super().__post_init__()
        rounds = max((self.ARMS[arm].rounds for arm in self.arms if arm in self.ARMS), default=1)
        if len(self.lengths) < rounds or min(self.lengths) < 1:
            raise ValueError(f"lengths={self.lengths}: the arms need {rounds} positive lengths, one for each round")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The records; or a data set of documents (or of problems to pack into documents) with a starting model."""
    world = partial(Records, device=device, turns=config.turns, **WORLD | config.world)
    real = partial(TextDocuments.of, config, dataset, model, device=device, train_size=config.n_documents)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: DocumentTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Steps 1 to 3, round after round, for one arm and one seed; returns the numbers after 0, 1, ... rounds."""
    policy, first, shared = task.start(seed), task.start(seed), run.beside("pairs")
    if config.rope_theta:
        set_rope_theta(policy, config.rope_theta)
    scope = config.nll_scope
    held_out = pairs_of_round(task, first, config, "test", seed, 0, shared)
    test = build_rows(policy, first, held_out, scope=scope)

    def make_round(policy: Policy, t: int) -> Round:
        # arms share the pairs of the first round; after it the model of the round before is generator and reference
        reference, folder = (policy, run.child(f"round-{t + 1}")) if t else (first, shared)
        table = pairs_of_round(task, reference, config, "train", seed, t, folder)
        rows = build_rows(policy, reference, table, scope=scope, reference_reads=arm.reference)
        if arm.learns == "pairs":
            run.cached(f"start-{t}", lambda: start_losses(policy, rows, config.beta))
        training = TrainConfig.of(config, learning_rate=config.learning_rate * arm.lr_factor)
        return Round(rows, LongStep(config, arm, rows, arm.later if t else arm.learns), training, None)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = task.evaluate(policy, seed) if t else shared.cached("before", lambda: task.evaluate(policy, seed))
        ratios = answer_sums(policy, test) - np.array([row.reference_logps for row in test])
        margins, turns = ratios[:, 0] - ratios[:, 1], held_out[["questions", "chosen", "rejected"]]
        run.table(f"ratios-{t}", lambda: turns.assign(chosen_ratio=ratios[:, 0], rejected_ratio=ratios[:, 1]))
        if t and arm.learns == "pairs":
            numbers["start_loss"] = float(np.mean(run.cached("start-0", list) or np.nan))
        numbers |= {"margin": float(margins.mean()), "reward_accuracy": float(np.mean(margins > 0))}
        return {**numbers, "short_to_long_kl": short_to_long_kl(policy, first, held_out)}

    return iterate(policy, arm.rounds, make_round, evaluate, run, seed=seed)


def beside_arms(task: DocumentTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """What was made and dropped in the first round: `counts`."""
    return {"counts": run.child("pairs").cached("train-counts", dict)}


def pairs_of_round(
    task: DocumentTask, policy: Policy, config: Config, split: str, seed: int, t: int, run: Run
) -> pd.DataFrame:
    """The pairs that `policy` makes on documents of round t's length."""
    documents = task.longer(config.lengths[t]).documents(split, seed + 1000 * t)
    how = Asking(**{name: getattr(config, name) for name in Asking._fields})
    documents = documents[: config.test_size if split == "test" else None]
    number = 10 * (seed + 1000 * t) + (split == "test")
    return make_pairs(documents, policy, how, run, split, longest=config.lengths[t], seed=number)


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
            batch = [row.side(side) for row in batch]
        logps, is_token, inside = scored_answers(policy, batch)
        learned = (is_token if self.scope == "all" else inside)[:, 0]
        nll = -(logps[:, 0] * learned).sum(-1) / learned.sum(-1)
        if self.learns != "pairs":
            return nll, {"nll": nll.detach()}
        sums, reference = (logps * inside).sum(-1), logps.new_tensor([row.reference_logps for row in batch])
        is_pair = torch.tensor([row.is_pair for row in batch], device=logps.device)
        w, l = self.sides
        sides = sums[:, w], sums[:, l], reference[:, w], reference[:, l]
        return objectives.longpo(*sides, chosen_token_nll=nll, is_pair=is_pair, **self.options)
