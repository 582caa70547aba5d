"""PaMi-VDPO: prompt-aware multi-instance video preferences. The answer stays, the clip is what is rejected.

Needs triples of evidence (a clip: any sequence of frames), prompt and response; nobody says what a bad answer is. VDPO
raises the response under the real clip against the same response under an altered one v':

    r(v) = beta log[p_theta(y|v,q) / p_ref(y|v,q)],     L(v') = -log sigma(r(v) - r(v'))

An alteration that does not matter for the question is a *false rejection*. So K altered clips are drawn anew for every
sample and step; those near the original stay (close, without the prompt); of them the one that moves the answer most is
rejected (far: mean Jensen-Shannon divergence over the response's positions, with the prompt); samples in which nothing
moves are weighted down:

    L = sum_i w_i L(v_i*) / sum_i w_i + eta NLL(y|v,q),     w = min(1, d/d_0)

Source: PaMi-VDPO, arXiv 2504.05810; no official code, the anchor is that of luka-group/mDPO. From the abstract and
public reviews: one response under two clips, the candidate set, close then far, Jensen-Shannon divergence, online
drawing, weights of noisy samples. **Thresholds, weights and schedule are a reconstruction.**

Where this may differ from the paper, and why:
- "close to far" is a filter and then a choice; `tau_close_end` makes the filter fall over training;
- weights are divided by their sum over the rows held at once (all of a batch, unless it is cut);
- selection has no gradient; the visual tower is frozen, so that features of frames are computed once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax

from workbench import data, objectives, tasks
from workbench.config import Field, Presets, Training, listed, strict
from workbench.kernels import Group, score
from workbench.methods.align.pami_vdpo.alterations import ALTERATIONS, check_triples, divergences
from workbench.methods.align.pami_vdpo.bags import Bags, Choice, Sample, annotated, logged_of, rates_of, samples_of
from workbench.methods.align.pami_vdpo.tasks import PassageTask, VideoTask
from workbench.methods.align.pami_vdpo.world import Clips
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.tasks.protocols import EvidenceTask, PlantedEvidence
from workbench.training.loop import TrainConfig
from workbench.training.reference import reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import Step, preference_step


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline, an ablation or a control.

    Attributes:
        learns: "clips" (VDPO); "response" (supervised); "answers" (DPO on annotated right and wrong answers).
        choice: "far", the largest divergence; "near", the smallest; "random"; or one alteration, always taken.
        selector: "config", the configuration's; "promptless", that without the prompt; "untrained" knows nothing.
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
    colour: str = ""


@strict
class Config(Training, Presets):
    """The paper's values were not available but for the number of rows: defaults are mDPO's where it has one."""

    epochs: int = Field(default=3, ge=1)  # mDPO
    batch_size: int = Field(default=32, ge=1)  # samples; mDPO: 4 x 8
    learning_rate: float = Field(default=1e-5, gt=0)  # LoRA; mDPO
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # mDPO
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # mDPO
    beta: float = Field(default=0.1, gt=0)  # 1/nat; mDPO
    n_candidates: int = Field(default=4, ge=1)  # K; ours
    kinds: list[str] = listed("shuffle", "reverse", "crop", "mix")  # alterations; confirmed: crop, shuffle, reverse
    tau_close: float = Field(default=0.3, ge=-1, le=1)  # least cosine of pooled features at the first step; ours
    tau_close_end: float = Field(default=0.3, ge=-1, le=1)  # and at the last one
    selector: Literal["policy", "reference"] = "policy"  # whose answers are compared; the policy's are "online"
    weighting: Literal["none", "hard", "soft"] = "hard"
    d_0: float = Field(default=0.1, gt=0)  # nats; divergence from which a sample counts in full; ours
    tau_w: float = Field(default=0.1, gt=0)  # nats; temperature of the soft weights; ours
    eta: float = Field(default=0.0, ge=0)  # weight of the supervised term; mDPO: 0
    anchor: float = Field(default=0.0, ge=0)  # weight of mDPO's anchor
    n_rows: int = Field(default=10_000, ge=1)  # paper: 10k
    test_size: int = Field(default=500, ge=1)  # held-out rows, of each set in the embedded world
    n_frames: int = Field(default=8, ge=1)  # pictures of a video, evenly spaced; ours: 8 to 16
    max_length: int = Field(default=2_048, ge=8)  # tokens; real text and videos only
    arms: list[str] = listed("pami", "random", "shuffle", "sft", "shuffled", "inverted")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Clips

    def __post_init__(self):
        super().__post_init__()
        if unknown := [kind for kind in self.kinds if kind not in ALTERATIONS] or not self.kinds:
            raise ValueError(f"unknown kinds {unknown}; known: {', '.join(ALTERATIONS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The world of clips, or the rows of a data set with a starting model: videos where they have some, else text."""

    def real() -> PassageTask:
        if blind := [arm for arm in config.arms if config.ARMS[arm].selector == "untrained"]:
            raise ValueError(f"real rows have no untrained model; leave out the arms that are selected by one: {blind}")
        kind = VideoTask if "video" in data.load(dataset)[0] else PassageTask
        return kind.of(config, dataset, model, device=device, train_size=config.n_rows)

    settings: Any = {"n_triples": config.n_rows, "n_test": config.test_size, **config.world}
    world = partial(Clips, device=device, **settings)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: EvidenceTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: training on online candidates, and numbers before and after."""
    policy = task.start(seed)
    bags = Bags(task, samples_of(task, policy, check_triples(task.triples("train", seed))), seed)
    selection = Selection(config, arm, bags, frozen=policy.copy())

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig.of(config)
        if arm.learns == "answers":
            pairs = annotated(policy, bags.samples)
            return Round(pairs, preference_step(objectives.dpo, beta=config.beta), training, math.log(2))
        if arm.learns == "clips":
            run.table("selection", lambda: bags.table(partial(selection, policy)))
        if (stored := run.child("round-1").folder / "checkpoint" / "state.json").is_file():
            bags.steps_taken = int(read_json(stored)["step"])
        more = config.eta or arm.eta or config.anchor or arm.anchor or selection.weighting != "none"
        start_loss = math.log(2) if arm.learns == "clips" and not more else None
        return Round(bags.samples, vdpo_step(config, arm, selection), training, start_loss, bags.count_step)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        # of the training responses: it may fall although the margin grows (likelihood displacement)
        chosen = reference_logps(policy, [sample.group for sample in bags.samples])[:, 0]
        if t and arm.learns == "clips":
            run.table("answers", lambda: bags.answers(partial(selection, policy), selection.frozen, policy))
        return {**task.evaluate(policy, seed), "chosen_logp": float(chosen.mean())}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def beside_arms(task: EvidenceTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """What each arm rejected, and how well a world's start saw before it got its habit (NaN elsewhere)."""
    clips = [arm for arm in config.arms if config.ARMS[arm].learns == "clips"]
    selected = {arm: rates_of(run.child(arm).table("selection", pd.DataFrame)) for arm in clips}
    return {"selection": selected, "grounded": task.grounded(seed) if isinstance(task, PlantedEvidence) else math.nan}


# ------------------------------------------------------------------------------------------------------------ selection
@dataclass
class Selection:
    """Draws altered clips for each sample of a batch and says which one is rejected: close first, then far."""

    config: Config
    arm: Arm
    bags: Bags
    frozen: Policy

    @property
    def weighting(self) -> str:
        return self.arm.weighting or self.config.weighting

    def tau_close(self) -> float:
        config, per_epoch = self.config, math.ceil(len(self.bags.samples) / self.config.batch_size)
        done = min(1.0, self.bags.steps_taken / (config.max_steps or config.epochs * per_epoch))
        return config.tau_close + (config.tau_close_end - config.tau_close) * done

    def selector(self, policy: Policy) -> Policy:
        """Whose answers are compared: the policy's as it is now, its start's, or a model's that knows nothing."""
        if self.arm.selector == "untrained":
            return self.bags.untrained
        return self.frozen if self.config.selector == "reference" else policy

    def __call__(self, policy: Policy, batch: Sequence[Sample]) -> list[Choice]:
        fixed = self.arm.choice not in ("far", "near", "random")
        kinds, n = ([self.arm.choice], 1) if fixed else (self.config.kinds, self.config.n_candidates)
        rng, drawn = self.bags.draw(batch, kinds, n)
        selector, clips = self.selector(policy), [candidates for candidates, _ in drawn]
        close = self.bags.closeness(policy, batch, clips)  # without the prompt
        inputs = self.bags.inputs(selector, batch, clips, promptless=self.arm.selector == "promptless")
        far, choices = divergences(selector, *inputs), []
        for (candidates, identical), c, d in zip(drawn, close, far, strict=True):
            kept = [i for i, value in enumerate(c) if fixed or value >= self.tau_close()]
            fell_back = bool(candidates) and not kept  # the nearest one then
            kept = kept or ([int(np.argmax(c))] if candidates else [])
            choices.append(Choice(candidates, c, d, self.weights(d, kept, rng), identical, fell_back))
        return choices

    def weights(self, far: Sequence[float], kept: Sequence[int], rng: np.random.Generator) -> list[float]:
        """Of each candidate of a bag: w for the one that is rejected; soft weights share 1 among all that are kept."""
        if not kept:
            return []
        weights, values, choice = np.zeros(len(far)), np.array([far[i] for i in kept]), self.arm.choice
        if self.weighting == "soft" and choice == "far":
            weights[list(kept)] = softmax(values / self.config.tau_w)
        else:
            pick: Any = {"far": np.argmax, "near": np.argmin}.get(choice, lambda values: rng.integers(len(values)))
            picked = pick(values)
            weights[kept[picked]] = min(1.0, values[picked] / self.config.d_0) if self.weighting == "hard" else 1.0
        return weights.tolist()


# ----------------------------------------------------------------------------------------------------------------- loss
def vdpo_step(config: Config, arm: Arm, selection: Selection) -> Step:
    """One response under the real clip and under the rejected one, by policy and reference."""
    frozen, eta = selection.frozen, config.eta if arm.eta is None else arm.eta
    weight_of_anchor = config.anchor if arm.anchor is None else arm.anchor
    share = {"true": 0.0, "shuffled": 0.5, "inverted": 1.0}[arm.sides]

    def logp(policy: Policy, groups: Sequence[Group]) -> torch.Tensor:
        return score(policy, groups, route="padded").sums[:, 0]

    def step(policy: Policy, batch: Sequence[Sample]):
        groups = [sample.group for sample in batch]
        originals = score(policy, groups, route="padded")
        nll, real = -originals.means[:, 0], originals.sums[:, 0]
        if arm.learns == "response":
            return nll, {"chosen_logps": real.detach()}
        choices = selection(policy, batch)
        owner, weights, altered = selection.bags.rejected(policy, batch, choices)  # of each pair
        losses, logged = torch.zeros_like(nll), {"chosen_logps": real.detach()}
        with torch.no_grad():
            reference = logp(frozen, groups)
            reference_altered = logp(frozen, altered) if altered else reference[:0]
        if altered:
            four = [real[owner], logp(policy, altered), reference[owner], reference_altered]
            swap = selection.bags.drawn_below(share, batch, owner)  # exchanges each original with its altered one
            sides = [torch.where(swap, four[i ^ 1], four[i]) for i in range(4)]
            pair_losses, pair_logged = objectives.vdpo(*sides, beta=config.beta)  # type: ignore[reportCallIssue]
            scale = weights * (len(batch) / max(float(weights.sum()), 1e-12))
            losses = losses.index_add(0, owner, pair_losses * scale)
            logged |= {name: torch.zeros_like(nll).index_add(0, owner, v * scale) for name, v in pair_logged.items()}
        if weight_of_anchor:
            losses = losses + weight_of_anchor * objectives.anchor(real, reference, beta=config.beta)
        return losses + eta * nll, {**logged, **{name: nll.new_tensor(v) for name, v in logged_of(choices).items()}}

    return step
