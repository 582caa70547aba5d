"""PaMi-VDPO: prompt-aware multi-instance video preferences. The answer stays, the clip is what is rejected.

Needs triples of evidence (a clip: any sequence of frames), prompt and response; nobody says what a bad answer is. VDPO
raises the response under the real clip against the same response under an altered one v':

    r(v) = beta log[p_theta(y|v,q) / p_ref(y|v,q)],     L(v') = -log sigma(r(v) - r(v'))

An alteration that does not matter for the question is a *false rejection*. So K altered clips are drawn anew for every
sample and step; those near the original stay (close, without the prompt); of them the one that moves the answer most is
rejected (far: mean Jensen-Shannon divergence over the response's positions, with the prompt); samples in which nothing
moves are weighted down:

    L = sum_i w_i L(v_i*) / sum_i w_i + eta NLL(y|v,q),     w = min(1, d/d_0)

Source: PaMi-VDPO, arXiv 2504.05810. Verified from the abstract and public reviews: one response under two clips, the
candidate set, close then far, Jensen-Shannon divergence, online drawing, weighting of noisy samples. **Thresholds,
weights and schedule are a reconstruction.** No official code; the anchor is that of luka-group/mDPO.

Where this may differ from the paper, and why:
- "close to far" is a filter and then a choice; `tau_close_end` makes the filter fall over training;
- weights are divided by their sum over the rows that are held at once (all of a batch, unless it is cut);
- selection never has a gradient; the visual tower is frozen, so that features of frames are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch

from workbench import data, objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.kernels import score
from workbench.methods.align.pami_vdpo.alterations import ALTERATIONS, check_triples
from workbench.methods.align.pami_vdpo.bags import Chooser, Rule, Sample, answer_probabilities, selection_rates
from workbench.methods.align.pami_vdpo.tasks import PassageTask, VideoTask
from workbench.methods.align.pami_vdpo.world import GROUNDED, Clips
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.tasks.protocols import EvidenceTask
from workbench.training.loop import TrainConfig
from workbench.training.reference import PairRow, pair_rows, reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import Step, preference_step


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline, an ablation or a control.

    Attributes:
        learns: "clips" (VDPO); "response" (supervised); "answers" (DPO on annotated right and wrong answers).
        choice: "far", the largest divergence; "near", the smallest; "random"; or the name of one alteration, always
            taken.
        selector: whose answers are compared: "config" for the configuration's; "untrained", a model that knows nothing;
            "promptless", the configured one without the prompt.
        sides: "shuffled" exchanges original and altered clip in half of the samples; "inverted" in all.
        weighting, eta, anchor: "", None and None take the configuration's.
    """

    title: str
    learns: Literal["clips", "response", "answers"] = "clips"
    choice: str = "far"
    selector: Literal["config", "untrained", "promptless"] = "config"
    sides: Literal["true", "shuffled", "inverted"] = "true"
    weighting: Literal["", "none", "hard", "soft"] = ""
    eta: float | None = None
    anchor: float | None = None


ARMS: dict[str, Arm] = {
    "pami": Arm("PaMi-VDPO"),
    "random": Arm("random alteration", choice="random"),
    "shuffle": Arm("always shuffled", choice="shuffle"),
    "sft": Arm("SFT", learns="response"),
    "untrained": Arm("selected by an untrained model", selector="untrained"),
    "shuffled": Arm("clips exchanged in half of the samples", sides="shuffled"),
    "inverted": Arm("clips exchanged", sides="inverted"),
    "weighted": Arm("PaMi-VDPO, weighted", weighting="hard"),
    "soft": Arm("PaMi-VDPO, soft weights", weighting="soft"),
    "nll": Arm("PaMi-VDPO, eta 0.3", eta=0.3),
    "anchored": Arm("PaMi-VDPO, anchored", anchor=1.0),
    "promptless": Arm("selected without the prompt", selector="promptless"),
    "near": Arm("smallest divergence", choice="near"),
    "blank": Arm("always blank (mDPO)", choice="blank"),
    "dpo": Arm("DPO on annotated answers", learns="answers"),
}


@strict
class Config(Presets):
    """The paper's values were not available ("?") but for the number of rows: defaults are the specification's, mDPO's
    where it has one."""

    epochs: int = Field(default=3, ge=1)  # mDPO
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    batch_size: int = Field(default=32, ge=1)  # samples; mDPO: 4 x 8
    learning_rate: float = Field(default=1e-5, gt=0)  # LoRA; specification, mDPO
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # mDPO
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # mDPO
    beta: float = Field(default=0.1, gt=0)  # 1/nat; mDPO
    n_candidates: int = Field(default=4, ge=1)  # K; specification
    kinds: list[str] = listed("shuffle", "reverse", "crop", "mix")  # alterations; confirmed: crop, shuffle, reverse
    tau_close: float = Field(default=0.3, ge=-1, le=1)  # least cosine of pooled features at the first step; ours
    tau_close_end: float = Field(default=0.3, ge=-1, le=1)  # and at the last one
    selector: Literal["policy", "reference"] = "policy"  # whose answers are compared; the policy's are "online"
    weighting: Literal["none", "hard", "soft"] = "hard"
    d_0: float = Field(default=0.1, gt=0)  # nats; divergence from which a sample counts in full; specification
    tau_w: float = Field(default=0.1, gt=0)  # nats; temperature of the soft weights; ours
    eta: float = Field(default=0.0, ge=0)  # weight of the supervised term; specification: 0 and 0.3
    anchor: float = Field(default=0.0, ge=0)  # weight of mDPO's anchor
    n_rows: int = Field(default=10_000, ge=1)  # paper: 10k
    test_size: int = Field(default=500, ge=1)  # held-out rows, of each set in the embedded world
    n_frames: int = Field(default=8, ge=1)  # pictures of a video, evenly spaced; specification: 8 to 16
    max_length: int = Field(default=2_048, ge=8)  # tokens; real text and videos only
    micro_batch_size: int = Field(default=0, ge=0)  # samples held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights; mDPO: 64
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("pami", "random", "shuffle", "sft", "shuffled", "inverted")  # see ARMS
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Clips

    PRESETS: ClassVar = {
        # the specification's small experiment
        "tiny": {
            "max_steps": 120,
            "learning_rate": 5e-4,
            "schedule": "constant",
            "beta": 0.5,
            "selector": "reference",
            "weighting": "none",
            "n_rows": 600,
            "test_size": 600,
            "arms": [arm for arm in ARMS if arm not in ("soft", "anchored", "near")],
        },
        "smoke": {
            "max_steps": 2,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "beta": 0.5,
            "selector": "reference",
            "weighting": "none",
            "n_rows": 16,
            "test_size": 8,
            "arms": list(ARMS),
            "world": {"grounded_steps": 5, "habit_steps": 3, "width": 16},
        },
        "full": {"lora_rank": 64, "precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "epochs": 1,
            "learning_rate": 3e-5,
            "kinds": ["shuffle", "drop", "crop", "mix"],
            "n_rows": 200,
            "test_size": 50,
            "max_length": 512,
            "arms": ["pami", "random", "shuffled"],
        },
        "smoke": {
            "max_steps": 2,
            "batch_size": 4,
            "learning_rate": 1e-3,
            "kinds": ["shuffle", "drop", "crop", "mix"],
            "n_rows": 8,
            "test_size": 4,
            "max_length": 384,
            "arms": ["pami", "random", "shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")
        if unknown := [kind for kind in self.kinds if kind not in ALTERATIONS] or not self.kinds:
            raise ValueError(f"unknown kinds {unknown}; known: {', '.join(ALTERATIONS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The world of clips; or a data set with a starting model: videos (`video`, a folder or list of pictures) for a
    vision-language model, else passages of text."""
    if not dataset and not model:
        world: dict[str, Any] = {"n_triples": config.n_rows, "n_test": config.test_size, **config.world}
        return Clips(device=device, **world)
    if not dataset or not model:
        raise ValueError(f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the world")
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    options: dict[str, Any] = {
        "device": device,
        "test_size": config.test_size,
        "train_size": config.n_rows,
        "lora": lora,
        "precision": config.precision,
        "max_length": config.max_length,
    }
    if "video" in data.load(dataset)[0]:
        return VideoTask(dataset, model, n_frames=config.n_frames, **options)
    return PassageTask(dataset, model, **options)


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: EvidenceTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}, "selection": {arm: rates}, "grounded":
    accuracy}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    tables = {arm: run.child(arm).table("selection", pd.DataFrame) for arm in arms if ARMS[arm].learns == "clips"}
    grounded = task.grounded(seed) if hasattr(task, "grounded") else math.nan  # type: ignore[attr-defined]
    return {
        "arms": arms,
        "selection": {arm: selection_rates(table) for arm, table in tables.items()},
        "grounded": grounded,
    }


def run_arm(task: EvidenceTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm)))


def play(task: EvidenceTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: training on online candidates, numbers before and after, and a draw of candidates as the start selects
    them."""
    policy = task.start(seed)
    rows = check_triples(task.triples("train", seed))
    samples = [
        Sample(f"row {i}", i, row, task.group(policy, row["evidence"], row["prompt"], row["response"]))
        for i, row in enumerate(rows)
    ]
    frozen = policy.copy()
    chooser = make_chooser(task, config, arm, frozen, samples, seed)

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            schedule=config.schedule,
            warmup_ratio=config.warmup_ratio,
            micro_batch_size=config.micro_batch_size,
            checkpoint_every=config.checkpoint_every,
        )
        if arm.learns == "answers":
            pairs = annotated(policy, samples)
            return Round(pairs, preference_step(objectives.dpo, beta=config.beta), training, math.log(2))
        if arm.learns == "clips":
            run.table("selection", lambda: chooser.table(policy))
        if (stored := run.child("round-1").folder / "checkpoint" / "state.json").is_file():
            chooser.taken = int(read_json(stored)["step"])
        step = vdpo_step(config, arm, chooser, frozen)
        is_plain = arm.learns == "clips" and not (config.eta or arm.eta or config.anchor or arm.anchor)
        is_plain &= (arm.weighting or config.weighting) == "none"
        return Round(samples, step, training, math.log(2) if is_plain else None, chooser.tick)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        # of the training responses: it may fall although the margin grows (likelihood displacement)
        chosen = reference_logps(policy, [sample.group for sample in samples])[:, 0]
        if t and arm.learns == "clips":
            run.table("answers", lambda: answer_probabilities(chooser, frozen, policy))
        return {**task.evaluate(policy, seed), "chosen_logp": float(chosen.mean())}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def make_chooser(
    task: EvidenceTask, config: Config, arm: Arm, frozen: Policy, samples: Sequence[Sample], seed: int
) -> Chooser:
    """Selection as the arm has it, by the policy as it is now, by its start, or by a model that knows nothing."""
    rule = Rule(
        config.kinds,
        config.n_candidates,
        arm.choice,
        (config.tau_close, config.tau_close_end),
        config.max_steps or config.epochs * math.ceil(len(samples) / config.batch_size),
        arm.weighting or config.weighting,
        config.d_0,
        config.tau_w,
        arm.selector == "promptless",
    )
    if arm.selector == "untrained":
        make: Any = getattr(task, "untrained", None)
        if make is None:
            raise ValueError(f"{task.name} has no untrained model; leave out the arms that are selected by one")
        blind = make(seed)
        return Chooser(task, rule, samples, seed, lambda policy: blind)
    return Chooser(task, rule, samples, seed, lambda policy: frozen if config.selector == "reference" else policy)


def annotated(policy: Policy, samples: Sequence[Sample]) -> list[PairRow]:
    """Pairs of the right answer and the other one of yes and no, under the real clip."""
    other = {"yes": "no", "no": "yes"}
    if bad := {sample.row["response"] for sample in samples} - set(other):
        raise ValueError(f"the arm of annotated answers needs answers yes or no; got {sorted(bad)[:3]}")
    groups = [
        one.group._replace(responses_ids=[*one.group.responses_ids, policy.encode_part(other[one.row["response"]])])
        for one in samples
    ]
    return pair_rows(policy, [one.id for one in samples], groups)


# -------------------------------------------------------------------------------------------------------------- step
def vdpo_step(config: Config, arm: Arm, chooser: Chooser, frozen: Policy) -> Step:
    """One response under the real clip and under the selected ones, by policy and reference."""
    eta = config.eta if arm.eta is None else arm.eta
    weight_of_anchor = config.anchor if arm.anchor is None else arm.anchor

    def step(policy: Policy, batch: Sequence[Sample]):
        originals = score(policy, [sample.group for sample in batch], route="padded")
        nll = -originals.means[:, 0]
        logged = {"chosen_logps": originals.sums[:, 0].detach()}
        if arm.learns == "response":
            return nll, logged
        choices = chooser.choose(policy, batch)
        taken = [(i, k) for i, choice in enumerate(choices) for k, w in enumerate(choice.weights) if w > 0]
        weights = originals.sums.new_tensor([choices[i].weights[k] for i, k in taken])
        owner = torch.tensor([i for i, _ in taken], device=policy.device, dtype=torch.long)
        altered = [chooser.groups(policy, batch[i], [choices[i].candidates[k]])[0] for i, k in taken]
        with torch.no_grad():
            reference = score(frozen, [sample.group for sample in batch], route="padded").sums[:, 0]
        losses, total = torch.zeros_like(nll), max(float(weights.sum()), 1e-12)
        if taken:
            with torch.no_grad():
                reference_altered = score(frozen, altered, route="padded").sums[:, 0]
            four = [
                originals.sums[:, 0][owner],
                score(policy, altered, route="padded").sums[:, 0],
                reference[owner],
                reference_altered,
            ]
            share = {"true": 0.0, "shuffled": 0.5, "inverted": 1.0}[arm.sides]
            drawn = [np.random.default_rng([chooser.seed, 5, batch[i].number]).random() < share for i, _ in taken]
            swap = torch.tensor(drawn, device=policy.device)
            sides = [
                torch.where(swap, four[i ^ 1], four[i]) for i in range(4)
            ]  # exchanges each original with its altered one
            pair_losses, pair_logged = objectives.vdpo(*sides, beta=config.beta)  # type: ignore[reportCallIssue]
            scale = weights * (len(batch) / total)
            losses = losses.index_add(0, owner, pair_losses * scale)
            logged |= {name: torch.zeros_like(nll).index_add(0, owner, v * scale) for name, v in pair_logged.items()}
        if weight_of_anchor:
            losses = losses + weight_of_anchor * objectives.anchor(originals.sums[:, 0], reference, beta=config.beta)
        best = [max(choice.far, default=0.0) for choice in choices]
        logged |= {
            "divergence": nll.new_tensor(best),
            "weight": nll.new_tensor([sum(choice.weights) for choice in choices]),
            "fell_back": nll.new_tensor([float(choice.fell_back) for choice in choices]),
            "identical": nll.new_tensor([float(choice.identical) for choice in choices]),
        }
        return losses + eta * nll, logged

    return step


# ------------------------------------------------------------------------------------------------------------- claims
UNKNOWN = "ablation, figures not available"


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims, in the embedded world over the seeds whose start was grounded before it got its
    habit."""
    kept = [i for i, result in enumerate(results) if math.isnan(result["grounded"]) or result["grounded"] >= GROUNDED]
    left_out = [seed for i, seed in enumerate(experiment.seeds) if i not in kept]
    if not kept or experiment.scale == "smoke":  # nothing is decided there
        kept, left_out = list(range(len(results))), []
    found = Claims("pami_vdpo", experiment.scale, [experiment.seeds[i] for i in kept])
    arms = set(results[0]["arms"])
    note = f"seeds {left_out} left out: their start was not grounded" if left_out else ""

    def after(arm: str, key: str = "HAS against", when: int = 1) -> np.ndarray:
        return np.array([results[i]["arms"][arm][when][key] for i in kept])

    def false(arm: str) -> np.ndarray:
        return np.array([results[i]["selection"][arm]["false_rejections"] for i in kept])

    halves: dict[str, Any] = {"control_is": "clips exchanged in half of the samples", "note": note}
    blind: dict[str, Any] = {"control_is": "selected by an untrained model", "note": note}
    in_world = "HAS against" in results[0]["arms"]["pami"][1] if "pami" in arms else False
    if in_world and {"pami", "shuffled"} <= arms:
        base = after("pami", "paired", 0)
        inverted = (
            {"exchanged clips end below the start": bool(np.mean(after("inverted") - after("inverted", when=0)) < 0)}
            if "inverted" in arms
            else {}
        )
        found.test(
            "C1",
            "Paired-question accuracy rises over the start",
            paper="+5.3 points on VideoHallucer, 10k rows",
            unit="of pairs",
            measured=after("pami", "paired") - base,
            control=after("shuffled", "paired") - base,
            also=inverted,
            **halves,
        )
        if "untrained" in arms:
            found.test(
                "C3",
                "With the habit, accuracy falls by no more than 0.03",
                paper="general benchmarks stay stable",
                margin=-0.03,
                measured=after("pami", "with") - after("pami", "with", 0),
                control=after("untrained", "with") - after("untrained", "with", 0),
                **blind,
            )
        if {"random", "untrained"} <= arms:
            found.test(
                "C4",
                "Prompt-aware selection beats a random alteration",
                paper=UNKNOWN,
                measured=after("pami") - after("random"),
                control=after("untrained") - after("random"),
                unit="of questions against the habit",
                **blind,
            )
        for id, what, other in (
            ("C4 fixed", "one fixed alteration", "shuffle"),
            ("C4 SFT", "supervised training", "sft"),
        ):
            if other in arms:
                found.test(
                    id,
                    f"PaMi-VDPO beats {what}",
                    paper=UNKNOWN,
                    measured=after("pami") - after(other),
                    control=after("shuffled") - after(other),
                    unit="of questions against the habit",
                    **halves,
                )
        if {"random", "untrained"} <= arms:
            apart = float(np.mean(np.abs(false("untrained") - false("random"))))
            found.test(
                "C5",
                "Selection lowers false rejections below 0.75 of a random choice's",
                paper="argued with examples",
                measured=0.75 * false("random") - false("pami"),
                control=0.75 * false("random") - false("untrained"),
                unit="of rejections",
                also={"an untrained selector is within 0.05 of random": apart <= 0.05},
                **blind,
            )
        if "dpo" in arms:
            found.test(
                "C6",
                "VDPO beats DPO on annotated answers",
                paper="comparison, from memory",
                measured=after("pami") - after("dpo"),
                control=after("shuffled") - after("dpo"),
                unit="of questions against the habit",
                **halves,
            )
    elif {"pami", "shuffled"} <= arms:
        key = "evidence_nats"
        found.test(
            "C1 evidence",
            "Held-out responses lean more on their evidence",
            paper="no number for this",
            unit="nats a response",
            measured=after("pami", key) - after("pami", key, 0),
            control=after("shuffled", key) - after("shuffled", key, 0),
            **halves,
        )
    found.needs_full_scale(
        "C2", "A 7B model passes GPT-4o on VideoHallucer", "stated", "needs that model and benchmark"
    )
    found.needs_full_scale(
        "C7",
        "Works across backbones and data",
        "stated",
        'needs other backbones; a second size: overrides={"world": {"width": 64}}',
    )
    return found
