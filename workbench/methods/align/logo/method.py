"""LOGO: long-context alignment on short text whose positions are spread over a long window.

Needs documents with questions; no long text, no reference model and no labels.

    1. Preferences (`chunks`): keep the chunks that matter for a question; the model itself answers from all of them
       (chosen, y_w), from the better half and from the worse half of them (rejected, y_l^1 .. y_l^M).
    2. Positions (`positions`): a row has a few thousand real tokens, but position indices that jump between chunks and
       reach over the target window, in several variants a row.
    3. Training: with lbar(y) = log p_theta(y|x) / |y|, minimise

           L = E -log sigmoid( beta [lbar(y_w) - (1/M) sum_j lbar(y_l^j)] - gamma ) - lambda lbar(y_w)

Source: Tang, Sun, Chen, et al. 2024, "LOGO: Long cOntext aliGnment via efficient preference Optimization", ICML 2025,
arXiv 2410.18533, section 3; official code ZetangForward/LCM_Stack (training/logo_train.py, data/).

Where this differs from the official code, and why:
- the mean over rejected answers is one mean (there, at batch size 1, a slice makes two losses of it, which are
  averaged);
- all answer tokens are scored (there: those of the index range in which the labels of the first batch row differ, less
  its first token); `skip_common_prefix` leaves out a beginning that all answers share;
- the cross-entropy is shifted and padding has no label (there: neither);
- importance is an overlap of content words without a tagger, see `content_words`; no lower limit on new tokens (there:
  16).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor

from workbench import objectives, tasks
from workbench.config import Field, Presets, Sampling, Training, listed, strict
from workbench.kernels import score
from workbench.methods.align.logo.chunks import Writing, preferences
from workbench.methods.align.logo.positions import reach
from workbench.methods.align.logo.rows import LogoRow, build_rows, check_positions, held_out_margins
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import TextDocuments
from workbench.tasks.protocols import DocumentTask, PlantedDocuments
from workbench.training.loop import TrainConfig
from workbench.training.rounds import Round, iterate
from workbench.training.steps import supervised_step
from workbench.worlds.records import Records


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "pairs", or "chosen" (supervised, on the chosen answers alone).
        positions: "synthetic"; "real", those of the text as it is; "unpassed", made and expanded but not given to the
            model.
        m: rejected answers a row, at most; 0 takes all.
        copied: the one rejected answer is there twice, and rows and positions come in another order: M = 2 in form
            alone.
        sft: whether the loss has its SFT term.
        labels: "swapped" makes the worst answer the chosen one; "shuffled" draws it at random among all answers.
        start: "misaligned" is the world's second start, which finds values and writes others.
        beta: of this arm; 0 takes the configuration's.
        needles: whether the positions are kept to look at and accuracy by depth is measured, where the task can.
    """

    title: str
    learns: Literal["pairs", "chosen"] = "pairs"
    positions: Literal["synthetic", "real", "unpassed"] = "synthetic"
    m: int = 0
    copied: bool = False
    sft: bool = True
    labels: Literal["true", "swapped", "shuffled"] = "true"
    start: Literal["start", "misaligned"] = "start"
    beta: float = 0.0
    needles: bool = False
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's for Llama-3-8B-80K where it gives one, else the official code's."""

    beta: float = Field(default=10.0, gt=0)  # paper: 10 (Mistral 2.5, Llama-2 3)
    gamma_beta_ratio: float = Field(default=0.3, ge=0)  # nats a token; paper: gamma 3 (Mistral 0.1, Llama-2 0.2)
    sft_weight: float = Field(default=0.1, ge=0)  # lambda; paper (code: 0.0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # official code
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"  # official code
    skip_common_prefix: bool = False  # score from the first token in which the answers differ
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # official code
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # paper
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # paper: 120 of 1200 steps
    weight_decay: float = Field(default=0.05, ge=0)  # paper
    batch_size: int = Field(default=64, ge=1)  # rows, each with 1 + M answers; paper: 1 x 8 GPUs x 8
    max_steps: int = Field(default=1200, ge=0)  # optimiser steps from a clean start; paper; 0: one epoch
    misaligned_steps: int = Field(default=200, ge=1)  # optimiser steps from a misaligned start; ours
    window: int = Field(default=65_536, ge=4)  # L_max, positions; paper
    qa: int = Field(default=512, ge=2)  # positions of question and answer; official code
    beacon: str = ""  # a text of one token that ends every chunk, at its region's last position; "": none
    choices: int = Field(default=2, ge=1)  # covering windows a chunk; official code
    max_variants: int = Field(default=0, ge=0)  # position variants a row; 0: the whole product, 2^chunks
    max_length: int = Field(default=8192, ge=16)  # real tokens of the chunks of a row; official code
    chunks: int = Field(default=6, ge=2)  # kept a row; paper
    min_overlap: int = Field(default=3, ge=0)  # content words that the weakest kept chunk shares; official code
    temperature: float = Field(default=0.7, gt=0)  # of the answers; official code
    top_p: float = Field(default=0.95, gt=0, le=1)  # official code
    max_new_tokens: int = Field(default=512, ge=1)  # official code
    stop: str = "\n"  # ends an answer beside the EOS token; official code
    n_documents: int = Field(default=0, ge=0)  # real text: documents to train on; 0: all
    test_size: int = Field(default=200, ge=1)  # held-out documents
    chunk_tokens: int = Field(default=1024, ge=8)  # of chunks made from paragraphs; official run (paper: 512)
    pack: int = Field(default=12, ge=2)  # problems packed into a document, where the rows are no documents
    lora_rank: int = Field(default=32, ge=0)  # real text; paper; 0: all weights
    arms: list[str] = listed("logo", "logo_real", "sft", "shuffled")
    world: dict[str, Any] = Field(default_factory=dict)  # settings of the embedded world, see Records

    def __post_init__(self):
        super().__post_init__()
        if self.qa >= self.window:
            raise ValueError(f"qa={self.qa} positions leave no room for a document in a window of {self.window}")

    @property
    def lora(self) -> dict[str, Any] | None:
        """Paper: alpha 16; embeddings and norms are trained too."""
        options = {"r": self.lora_rank, "lora_alpha": 16, "modules_to_save": ["embed_tokens", "norm"]}
        return options if self.lora_rank else None


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The records; or a data set of documents (or of problems to pack into documents) with a starting model.

    Raises:
        ValueError: one of model and dataset without the other; arms that need a misaligned start, which real text has
            not.
    """

    def real() -> TextDocuments:
        if without := [arm for arm in config.arms if config.ARMS[arm].start == "misaligned"]:
            raise ValueError(
                f"arms {without} start from a misaligned model, which only the embedded world has; leave them out"
            )
        changes = {"train_size": config.n_documents, "max_length": 0}  # measured on whole documents
        return TextDocuments.of(config, dataset, model, device=device, **changes)

    world = partial(Records, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: DocumentTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Steps 1 to 3 for one arm and one seed, all rows in one round; returns the numbers before and after."""
    policy, n_steps, shared = task.start(seed), config.max_steps, run.beside("pairs")
    check_positions(policy, config.window)
    how = Writing(
        config.temperature, config.top_p, config.max_new_tokens, config.stop, config.chunks, config.min_overlap
    )
    # all arms learn from what the clean start writes
    tables = {split: preferences(task, policy, how, split, seed, shared) for split in ("train", "test")}
    if arm.start == "misaligned" and isinstance(task, PlantedDocuments):
        policy, n_steps = task.misaligned(seed), config.misaligned_steps

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig.of(config, max_steps=n_steps)
        rows = build_rows(policy, tables["train"], config, arm, seed)
        if arm.needles:
            positions = [row.group.prompt_positions or [0] for row in rows]
            answers = [list(map(len, row.group.responses_ids)) for row in rows]
            shared.cached("reach", lambda: reach(positions, answers))
            shown = [(row.id, at) for row, at in zip(rows, positions, strict=True)][: 2 * config.choices]
            shared.table("positions", lambda: pd.DataFrame(shown, columns=["row", "positions"]))
        if arm.learns == "chosen":
            chosen = [row.group._replace(responses_ids=row.group.responses_ids[:1]) for row in rows]
            return Round(chosen, supervised_step, training, None)
        return Round(rows, LogoStep(config, arm), training, None)  # no reference, so no loss that is known at step 0

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        before = partial(shared.cached, f"before-{arm.start}", lambda: task.evaluate(policy, seed))
        numbers = task.evaluate(policy, seed) if t else before()
        margins = held_out_margins(policy, tables["test"], config, Arm("at real positions", positions="real"))
        run.table(f"margins-{t}", lambda: margins)
        if arm.needles and isinstance(task, PlantedDocuments):
            run.table(f"needles-{t}", partial(task.needles, policy))
        return {**numbers, "margin": float(margins.margin.mean()), "accuracy": float((margins.margin > 0).mean())}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed + 1000 * arm.copied)


def beside_arms(task: DocumentTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """What was made and dropped, and how far positions reach: `counts`."""
    shared = run.child("pairs")
    return {"counts": {**shared.cached("train-counts", dict), **shared.cached("reach", dict)}}


class LogoStep:
    """Losses [row] of `LogoRow`s: the objective on log-probs a token, each answer at the positions of its row."""

    def __init__(self, config: Config, arm: Arm):
        self.options = {
            "beta": arm.beta or config.beta,
            "gamma_beta_ratio": config.gamma_beta_ratio,
            "label_smoothing": config.label_smoothing,
            "sft_weight": config.sft_weight if arm.sft else 0.0,
            "loss_type": config.loss_type,
        }

    def __call__(self, policy: Policy, batch: Sequence[LogoRow]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = score(policy, [row.group for row in batch])
        shared = torch.tensor([row.shared for row in batch], device=scores.is_token.device)
        places = torch.arange(scores.is_token.shape[-1], device=shared.device)
        scored = scores.is_token & (places >= shared[:, None, None])
        means = (scores.token_logps * scored).sum(-1) / scored.sum(-1).clamp(min=1)
        is_rejected, nll = scores.lengths[:, 1:] > 0, -scores.means[:, 0]
        sides = means[:, 0], means[:, 1:]
        return objectives.logo(*sides, is_rejected=is_rejected, chosen_token_nll=nll, **self.options)
