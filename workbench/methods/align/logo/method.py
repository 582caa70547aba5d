"""LOGO: long-context alignment on short text whose positions are spread over a long window.

Needs documents with questions; the model makes the preferences itself. It answers from all relevant chunks (chosen),
from a part of them and from the wrong ones (rejected). With lbar(y) = log p_theta(y|x) / |y| and M rejected answers,
minimise

    L = E -log sigmoid( beta [lbar(y_w) - (1/M) sum_j lbar(y_l^j)] - gamma ) - lambda lbar(y_w)

on rows of a few thousand real tokens, each with position indices that jump between chunks and reach over the target
window.

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

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, takewhile
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.kernels import Group, score
from workbench.methods.align.logo.chunks import Writing, preferences
from workbench.methods.align.logo.positions import reach, spread
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import TextDocuments, prompt_parts
from workbench.tasks.protocols import DocumentTask
from workbench.training.loop import TrainConfig
from workbench.training.reference import reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import supervised_step
from workbench.worlds.records import Records

log = logging.getLogger(__name__)


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


_MISALIGNED: Any = partial(Arm, start="misaligned")
ARMS: dict[str, Arm] = {
    # Part A: a clean start at longer documents
    "logo": Arm("LOGO", needles=True),
    "logo_real": Arm("LOGO, real positions", positions="real"),
    "logo_unpassed": Arm("LOGO, positions not passed", positions="unpassed"),
    "sft": Arm("SFT on chosen", learns="chosen"),
    "sft_real": Arm("SFT, real positions", learns="chosen", positions="real"),
    "sft_unpassed": Arm("SFT, positions not passed", learns="chosen", positions="unpassed"),
    "swapped": Arm("LOGO, roles swapped", labels="swapped"),
    "shuffled": Arm("LOGO, labels shuffled", labels="shuffled"),  # real text; Part B has its own
    # Part B: a start that finds the right value and writes another
    "b_logo": _MISALIGNED("LOGO"),
    "b_one": _MISALIGNED("LOGO, M = 1", m=1),
    "b_no_sft": _MISALIGNED("LOGO, lambda 0", sft=False),
    "b_beta10": _MISALIGNED("LOGO, beta 10", beta=10.0),
    "b_sft": _MISALIGNED("SFT on chosen", learns="chosen"),
    "b_swapped": _MISALIGNED("LOGO, roles swapped", labels="swapped"),
    "b_shuffled": _MISALIGNED("LOGO, labels shuffled", labels="shuffled"),
    "b_copied": _MISALIGNED("LOGO, M = 1, the answer twice", m=1, copied=True),
}


@strict
class Config(Presets):
    """Defaults are the paper's for Llama-3-8B-80K where it gives one, else the official code's."""

    beta: float = Field(default=10.0, gt=0)  # paper: 10 (Mistral 2.5, Llama-2 3)
    gamma_beta_ratio: float = Field(default=0.3, ge=0)  # nats a token; paper: gamma 3 (Mistral 0.1, Llama-2 0.2)
    sft_weight: float = Field(default=0.1, ge=0)  # lambda; paper (code: 0.0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)  # official code
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"  # official code
    skip_common_prefix: bool = False  # score from the first token in which the answers differ
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # paper
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # paper: 120 of 1200 steps
    weight_decay: float = Field(default=0.05, ge=0)  # paper
    batch_size: int = Field(default=64, ge=1)  # rows, each with 1 + M answers; paper: 1 x 8 GPUs x 8
    max_steps: int = Field(default=1200, ge=0)  # optimiser steps of Part A; paper; 0: one epoch
    misaligned_steps: int = Field(default=200, ge=1)  # optimiser steps of Part B; specification
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
    stop: str = "\n"  # ends an answer beside the end token; official code
    n_documents: int = Field(default=0, ge=0)  # real text: documents to train on; 0: all
    test_size: int = Field(default=200, ge=1)  # held-out documents
    chunk_tokens: int = Field(
        default=1024, ge=8
    )  # real text: of a chunk that paragraphs are packed into; official run (paper: 512)
    pack: int = Field(default=12, ge=2)  # real text: problems packed into a document, where the rows are no documents
    micro_batch_size: int = Field(default=0, ge=0)  # rows held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(
        default=32, ge=0
    )  # real text; paper: 32, alpha 16, embeddings and norms trained too; 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("logo", "logo_real", "sft", "shuffled")  # see ARMS
    world: dict[str, Any] = Field(default_factory=dict)  # settings of the embedded world, see Records

    PRESETS: ClassVar = {
        # The specification's small experiment. The question of the world's start is learned in 5 variants a document.
        "tiny": {
            "beta": 2.5,
            "gamma_beta_ratio": 0.1,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "batch_size": 8,
            "max_steps": 250,
            "window": 112,
            "qa": 7,
            "max_variants": 5,
            "stop": "",
            "max_new_tokens": 3,
            "arms": [arm for arm in ARMS if arm != "shuffled"],
        },
        "smoke": {
            "beta": 2.5,
            "gamma_beta_ratio": 0.1,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "weight_decay": 0.0,
            "batch_size": 8,
            "max_steps": 4,
            "misaligned_steps": 4,
            "window": 112,
            "qa": 7,
            "max_variants": 2,
            "stop": "",
            "max_new_tokens": 3,
            "test_size": 12,
            "arms": [arm for arm in ARMS if arm not in ("shuffled", "sft_unpassed", "b_beta10")],
            "world": {"steps": 20, "misaligned_steps": 5, "n_documents": 24, "n_test": 12, "lengths": (6, 12)},
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "beta": 2.5,
            "gamma_beta_ratio": 0.1,
            "learning_rate": 2e-5,
            "batch_size": 8,
            "max_steps": 50,
            "window": 4096,
            "qa": 320,
            "max_length": 1024,
            "max_variants": 4,
            "n_documents": 60,
            "test_size": 20,
            "max_new_tokens": 64,
        },
        "smoke": {
            "beta": 2.5,
            "gamma_beta_ratio": 0.1,
            "learning_rate": 2e-5,
            "batch_size": 2,
            "max_steps": 2,
            "window": 2048,
            "qa": 400,
            "max_length": 512,
            "max_variants": 1,
            "n_documents": 4,
            "test_size": 2,
            "max_new_tokens": 12,
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")
        if self.qa >= self.window:
            raise ValueError(f"qa={self.qa} positions leave no room for a document in a window of {self.window}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The records; or a data set of documents (or of problems to pack into documents) with a starting model.

    Raises:
        ValueError: one of model and dataset without the other; arms that need a misaligned start, which real text has
            not.
    """
    if not dataset and not model:
        return Records(device=device, **config.world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    if without := [arm for arm in config.arms if ARMS[arm].start == "misaligned"]:
        raise ValueError(
            f"arms {without} start from a misaligned model, which only the embedded world has; leave them out"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 16, "modules_to_save": ["embed_tokens", "norm"]}
    return TextDocuments(
        dataset,
        model,
        device=device,
        test_size=config.test_size,
        train_size=config.n_documents,
        max_new_tokens=config.max_new_tokens,
        lora=lora if config.lora_rank else None,
        precision=config.precision,
        pack=config.pack,
        chunk_tokens=config.chunk_tokens,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: DocumentTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}, "counts": {...}}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    pairs = run.child("pairs")
    return {"arms": arms, "counts": {**pairs.cached("train-counts", dict), **pairs.cached("reach", dict)}}


def run_arm(task: DocumentTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    pairs = run.child("pairs")  # all arms learn from the same ones
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), pairs))


def play(task: Any, config: Config, arm: Arm, seed: int, run: Run, pairs: Run | None = None) -> list[dict[str, float]]:
    """One arm: preferences by evidence, positions, one round of training, numbers before and after."""
    pairs, n_steps = pairs or run.child("pairs"), config.max_steps
    policy = task.start(seed)
    check_positions(policy, config.window)
    how = Writing(
        config.temperature, config.top_p, config.max_new_tokens, config.stop, config.chunks, config.min_overlap
    )
    tables = {split: preferences(task, policy, how, split, seed, pairs) for split in ("train", "test")}
    if arm.start == "misaligned":
        policy, n_steps = task.misaligned(seed), config.misaligned_steps

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig(
            learning_rate=config.learning_rate,
            batch_size=config.batch_size,
            schedule=config.schedule,
            max_steps=n_steps,
            warmup_ratio=config.warmup_ratio,
            weight_decay=config.weight_decay,
            micro_batch_size=config.micro_batch_size,
            checkpoint_every=config.checkpoint_every,
        )
        rows = build_rows(policy, tables["train"], config, arm, seed)
        if arm.needles:
            spreads = [row.group.prompt_positions or [0] for row in rows]
            pairs.cached("reach", lambda: reach(spreads, [list(map(len, row.group.responses_ids)) for row in rows]))
            shown = [(row.id, positions) for row, positions in zip(rows, spreads, strict=True)][: 2 * config.choices]
            pairs.table("positions", lambda: pd.DataFrame(shown, columns=["row", "positions"]))
        if arm.learns == "chosen":
            only = [row.group._replace(responses_ids=row.group.responses_ids[:1]) for row in rows]
            return Round(only, supervised_step, training, None)
        return Round(rows, LogoStep(config, arm), training, None)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = (
            task.evaluate(policy, seed)
            if t
            else pairs.cached(f"before-{arm.start}", lambda: task.evaluate(policy, seed))
        )
        margins = held_out_margins(policy, tables["test"], config)
        run.table(f"margins-{t}", lambda: margins)
        if arm.needles and hasattr(task, "needles"):
            run.table(f"needles-{t}", lambda: task.needles(policy))
        apart = margins["margin"].to_numpy()
        return {**numbers, "margin": float(apart.mean()), "accuracy": float(np.mean(apart > 0))}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed + 1000 * arm.copied)


# ----------------------------------------------------------------------------------------------- tokens and positions
class LogoRow(NamedTuple):
    """A row in one position variant: chosen first, then the rejected answers; `shared` tokens begin all of them."""

    id: str
    group: Group
    shared: int


def build_rows(policy: Policy, table: pd.DataFrame, config: Config, arm: Arm, seed: int) -> list[LogoRow]:
    """Every row as tokens, once for each position variant."""
    rng, rows, too_long = np.random.default_rng([seed, 7 + arm.copied]), [], []
    entries: Any = table.itertuples()
    for entry in entries:
        answers = [entry.chosen, *entry.rejected]
        first = {"true": 0, "swapped": len(answers) - 1, "shuffled": int(rng.integers(len(answers)))}[arm.labels]
        answers = [answers[first], *(text for i, text in enumerate(answers) if i != first)][
            : 1 + arm.m if arm.m else None
        ]
        answers += answers[1:] if arm.copied else []
        before, chunks, ask = tokenised(policy, entry, config)
        responses = [policy.encode_response(text) for text in answers]
        room = config.qa - len(ask)
        if room > 0 and (cut := sum(len(ids) > room for ids in responses)):
            policy.counts["responses_cut"] += cut
            too_long.append(str(entry.row))
            responses = [ids[:room] for ids in responses]
        plain = Group([*before, *chain(*chunks), *ask], responses)
        shared = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*responses, strict=False))))
        shared = min(shared, min(map(len, responses)) - 1) if config.skip_common_prefix else 0
        variants: list = [None]
        if arm.positions != "real":
            variants = spread(
                [len(chunk) for chunk in chunks],
                window=config.window,
                start=len(before),
                qa=config.qa,
                n_question=len(ask),
                n_answer=max(map(len, responses)),
                rng=rng,
                beacon=bool(config.beacon),
                choices=config.choices,
                max_variants=config.max_variants,
            )
        for number, positions in enumerate(variants):
            passed = positions if arm.positions == "synthetic" else None
            rows.append(LogoRow(f"row {entry.row}, variant {number}", plain._replace(prompt_positions=passed), shared))
    if too_long:
        log.warning(
            "rows %s have answers longer than the positions behind the question: these are cut",
            ", ".join(too_long[:10]),
        )
    return rows


def tokenised(policy: Policy, entry: Any, config: Config) -> tuple[list[int], list[list[int]], list[int]]:
    """Start, chunks and question of a row; a chunk keeps its share of `max_length` tokens and ends with the beacon, if
    any."""
    before, chunks, ask = prompt_parts(policy, list(entry.chunks), entry.question)
    budget = config.max_length // len(chunks) - 1
    policy.counts["chunks_cut"] += sum(len(chunk) > budget for chunk in chunks)
    beacon = policy.encode_part(config.beacon) if config.beacon else []
    if config.beacon and len(beacon) != 1:
        raise ValueError(f"beacon={config.beacon!r} is {len(beacon)} tokens for this tokenizer; one is needed")
    return before, [[*chunk[:budget], *beacon] for chunk in chunks], ask


def check_positions(policy: Policy, window: int) -> None:
    """Refuses models whose table of absolute positions ends before the window."""
    for name, module in policy.model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and ("wpe" in name or "position" in name)
            and module.num_embeddings < window
        ):
            raise ValueError(
                f"{policy.name} has a table of {module.num_embeddings} absolute positions ({name}), fewer than the"
                f" window of {window}; take a model with rotary positions, or a smaller window"
            )


class LogoStep:
    """Losses [row] of `LogoRow`s: LOGO's objective on log-probs a token."""

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
        scored = scores.is_token & (
            torch.arange(scores.is_token.shape[-1], device=shared.device) >= shared[:, None, None]
        )
        means = (scores.token_logps * scored).sum(-1) / scored.sum(-1).clamp(min=1)
        return objectives.logo(
            means[:, 0],
            means[:, 1:],
            is_rejected=scores.lengths[:, 1:] > 0,
            chosen_token_nll=-scores.means[:, 0],
            **self.options,
        )


def held_out_margins(policy: Policy, table: pd.DataFrame, config: Config) -> pd.DataFrame:
    """log p a token of the chosen answer minus that of each rejected one, at real positions: `margin`, `m1`, `m2`,
    ..."""
    groups = [row.group for row in build_rows(policy, table, config, Arm("", positions="real"), 0)]
    logps = reference_logps(policy, groups)
    lengths = np.array([[*map(len, g.responses_ids), *[0] * (logps.shape[1] - len(g.responses_ids))] for g in groups])
    means = np.divide(logps, lengths, out=np.full_like(logps, np.nan), where=lengths > 0)
    apart = means[:, :1] - means[:, 1:]
    columns = {f"m{j + 1}": apart[:, j] for j in range(apart.shape[1])}
    return table[["question", "chosen", "rejected"]].assign(margin=np.nanmean(apart, 1), **columns)


# ----------------------------------------------------------------------------------------------------------- claims
# statement, paper's figures, and what is missing to test it here
BEYOND_SMALL = {
    "C2": (
        "Holds for other backbones",
        "Llama-2-7B-80K 29.0 -> 36.1; Mistral-7B-32K 31.1 -> 40.1",
        "needs other pretrained models",
    ),
    "C3 baselines": (
        "Extends short windows better than YaRN, and YaRN better than random positions",
        "Llama-3-8B-8K 40.7; YaRN 40.9, RandPOS 36.8, LOGO 43.9",
        "needs a pretrained short model and LongBench",
    ),
    "C4": (
        "Gains are largest on synthetic tasks and summaries",
        "synthetic 46.3 -> 53.0, summaries 22.2 -> 28.1, QA 43.0 -> 44.0",
        "needs LongBench's groups of tasks",
    ),
    "C8": (
        "Cheap, and near GPT-4 on real tasks",
        "0.3B tokens, one 8 x A800 node, 16 h",
        "needs an 8B model and real tasks",
    ),
}
LONGER = (24, 44)  # records of the documents at which Part A is judged
SHORTER = (6, 12)  # ... and Part B


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds. Part A judges greedy answers, Part B drawn ones."""
    found = Claims("logo", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])

    def after(arm: str, *keys: str, when: int = 1) -> np.ndarray:
        return np.array([np.mean([result["arms"][arm][when][key] for key in keys]) for result in results])

    def gain(arm: str, *keys: str) -> np.ndarray:
        return after(arm, *keys) - after(arm, *keys, when=0)

    b, shuffled = "b_" if "b_logo" in arms else "", "labels shuffled"
    numbers = results[0]["arms"][f"{b}logo"][1]
    if {f"{b}sft", f"{b}shuffled"} <= arms:
        sft = after(f"{b}sft", "quality")
        found.test(
            "C1",
            "Better than supervised training on the same chosen answers",
            paper="LongBench: tuned 41.8 and 42.8, LOGO 47.0",
            measured=after(f"{b}logo", "quality") - sft,
            control=after(f"{b}shuffled", "quality") - sft,
            control_is=shuffled,
            unit="recall" if b else "nats a token",
        )
    if {"b_logo", "b_shuffled", "b_swapped"} <= arms:
        for n in SHORTER:
            found.test(
                f"C1 base {n}",
                f"A misaligned model writes more right values in documents of {n} records",
                paper="42.3 -> 47.0",
                measured=gain("b_logo", f"recall_{n}"),
                control=gain("b_shuffled", f"recall_{n}"),
                control_is=shuffled,
                unit="recall",
            )
        found.test(
            "C1 swapped",
            "With chosen and rejected swapped it falls below the start",
            paper="not stated",
            direction="less",
            measured=gain("b_swapped", "quality"),
            control=gain("b_logo", "quality"),
            control_is="roles as they are",
            unit="recall",
        )
        retrieval, recall = ([f"{what}_{n}" for n in SHORTER] for what in ("retrieval", "recall"))
        moved = {arm: gain(arm, *recall) - np.abs(gain(arm, *retrieval)) for arm in ("b_logo", "b_shuffled")}
        found.test(
            "C5",
            "Recall improves, by more than retrieval changes in either direction",
            paper="Fig. 1, no numbers",
            measured=moved["b_logo"],
            control=moved["b_shuffled"],
            control_is=shuffled,
            unit="recall",
            also={"retrieval does not fall by more than 0.03": bool(gain("b_logo", *retrieval).mean() >= -0.03)},
        )
    for kind in ("logo", "sft"):
        if {kind, f"{kind}_real", f"{kind}_unpassed"} <= arms:
            for n in (n for n in LONGER if f"retrieval_{n}" in numbers):
                real = after(f"{kind}_real", f"retrieval_{n}")
                found.test(
                    f"C3 {kind} {n}",
                    f"{kind.upper()} with synthetic positions reads {n} records better than with real ones",
                    paper="Llama-3-8B-8K 40.7 -> 43.9 at 64K",
                    measured=after(kind, f"retrieval_{n}") - real,
                    control=after(f"{kind}_unpassed", f"retrieval_{n}") - real,
                    control_is="positions not passed to the model",
                    unit="of values, greedy",
                )
    if {"logo", "sft", "swapped"} <= arms and "retrieval_6" in numbers:
        found.test(
            "C6",
            "Short documents do not suffer (not worse by more than 0.03)",
            paper="Fig. 4, no numbers",
            margin=-0.03,
            measured=gain("logo", "retrieval_6"),
            control=gain("swapped", "retrieval_6"),
            control_is="roles swapped",
            unit="of values, greedy",
            also={"nor by SFT with the same positions": bool(gain("sft", "retrieval_6").mean() > -0.03)},
        )
    if {"b_logo", "b_one", "b_copied", "b_no_sft"} <= arms:
        found.test(
            "C7",
            "Two rejected answers are better than one, and the SFT term does not harm",
            paper="Fig. 6, no numbers",
            measured=after("b_logo", "quality") - after("b_one", "quality"),
            control_is="the one answer twice",
            control=after("b_copied", "quality") - after("b_one", "quality"),
            unit="recall",
            also={
                "lambda 0.1 not below lambda 0": bool(
                    np.mean(after("b_logo", "quality") - after("b_no_sft", "quality")) >= 0
                )
            },
        )
    for id, (statement, paper, why) in BEYOND_SMALL.items():
        found.needs_full_scale(id, statement, paper, why)
    return found
