"""SPPO: self-play preference optimisation. Every response is pushed by its own win rate against the policy's samples.

Needs prompts and a judge of pairs, whose preferences may be intransitive; no reference answers. With the policy pi_t as
it is at the start of round t, K samples y_1..y_K ~ pi_t(. | x) and their win rates P_k against each other, minimise

    L = E 1/2 [(a - eta (P_w - 1/2))^2 + (b - eta (P_l - 1/2))^2],   a, b = log pi_theta(y|x) / pi_t(y|x) of winner,
    loser

and start round t+1 from the result. It approximates pi_{t+1} = pi_t exp(eta P(y > pi_t)) / Z; with the exact update and
eta of order 1/sqrt(T), the average of the rounds' policies goes to the Nash equilibrium of the judge (Theorem 4.1).

Source: Wu, Sun, Yuan, Ji, Yang, Gu 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv
2405.00675, Algorithm 1, eq. 4.4; official code uclaml/SPPO at 5e61c4e, whose beta is 1/eta.

Where this differs from the official code, and why:
- the judge gives a matrix of pairwise probabilities (there: one score a response, which cannot hold a cycle); a scalar
  reward model works too, as the special case sigma(score difference);
- sampling at temperature 1, top-p 1, as the paper and the theory say (there: 0.7 and 0.9);
- rows whose winner and loser are the same text are dropped and counted (there: they stay, with equal responses);
- one epoch with a schedule of its own length (paper: an 18-epoch schedule of which the first epoch is kept).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.feedback.pairs import best_and_worst, check_matrix, keep_sound, mean_logits, win_rates
from workbench.feedback.samples import draw_samples, preference_matrices, prompts_of_round, readable
from workbench.models import Policy
from workbench.rounds import (
    game_numbers,
    movement,
    open_judged,
    pair_groups,
    pair_logps,
    rank_correlations,
    slopes,
    start_losses,
)
from workbench.runs import Run
from workbench.tasks import EnumeratedTask, JudgedTask
from workbench.training import PairRow, Round, TrainConfig, iterate, pair_rows, preference_step
from workbench.worlds.cyclic_judge import CyclicJudge

log = logging.getLogger(__name__)

PROBABILITIES = ("prob_win", "prob_lose", "prob_pair")  # columns of a pair; the official names are in `targets_of`


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        loss: what is minimised on the round's pairs; all but the SPPO losses and `dno` look at the labels alone.
        strength: beta of DPO, tau of IPO, 1/nat; 0 takes 1/eta of the configuration.
        k: samples a prompt; 0 takes the configuration's.
        reference: whose log-probs are the reference: the policy at the start of round t, or "first" for pi_0.
        labels: "shuffled" swaps winner and loser in half of the pairs at random; "swapped" in all.
        win_rates: "complement" reads the loser's win rate as 1 - the winner's, which is a mistake.
    """

    title: str
    loss: Literal["sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "dno"] = "sppo"
    strength: float = 0.0
    k: int = 0
    reference: Literal["round", "first"] = "round"
    labels: Literal["true", "shuffled", "swapped"] = "true"
    win_rates: Literal["own", "complement"] = "own"


ARMS: dict[str, Arm] = {
    "sppo": Arm("SPPO"),
    "k2": Arm("SPPO with 2 samples", k=2),
    "single": Arm("SPPO, P(winner beats loser) only", loss="sppo_single"),
    "hard": Arm("SPPO, hard labels", loss="sppo_hard"),
    "dno": Arm("soft DNO on the same pairs", loss="dno"),
    "dpo_0.3": Arm("iterative DPO, beta 0.3", loss="dpo", strength=0.3),
    "dpo_1": Arm("iterative DPO, beta 1", loss="dpo", strength=1.0),
    "ipo_0.25": Arm("iterative IPO, tau 0.25", loss="ipo", strength=0.25),
    "ipo_1": Arm("iterative IPO, tau 1", loss="ipo", strength=1.0),
    "shuffled": Arm("SPPO, labels shuffled", labels="shuffled"),
    "swapped": Arm("SPPO, winner and loser swapped", labels="swapped"),
    "first_reference": Arm("SPPO, reference stays the start", reference="first"),
    "complement": Arm("SPPO, loser's win rate read as 1 - the winner's", win_rates="complement"),
}
BASELINES = ("dpo_0.3", "dpo_1", "ipo_0.25", "ipo_1")  # those of claim C2


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one, else the official code's."""

    rounds: int = Field(default=3, ge=1)  # paper: 3
    epochs: int = Field(default=1, ge=1)  # a round; official code: 1
    max_steps: int = Field(default=0, ge=0)  # optimiser steps a round; 0: all epochs
    eta: float = Field(default=1000.0, gt=0)  # nats a unit of win rate; paper: 1e3 (code: beta = 0.001)
    samples: int = Field(default=5, ge=2)  # K, a prompt; paper: 5
    select_by: Literal["logit", "win_rate"] = "logit"  # paper: mean pairwise logit picks winner and loser
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"  # official launcher
    batch_size: int = Field(default=64, ge=1)  # pairs; paper: 64
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # paper
    schedule: Literal["linear", "constant"] = "linear"  # paper
    n_prompts: int = Field(default=20_000, ge=0)  # a round, at most; paper: ~20k, a third of UltraFeedback; 0: all
    copies: int = Field(default=0, ge=0)  # 0: every round has prompts of its own; n: all prompts n times in every round
    temperature: float = Field(default=1.0, gt=0)  # paper: 1.0 (code: 0.7)
    top_p: float = Field(default=1.0, gt=0, le=1)  # paper: 1.0 (code: 0.9)
    max_new_tokens: int = Field(default=512, ge=1)  # what max_length leaves (code: 2048, cut to it in training)
    max_length: int = Field(default=1024, ge=2)  # tokens of prompt and response; official code
    max_prompt_length: int = Field(default=512, ge=1)  # official code
    test_size: int = Field(default=500, ge=1)  # held-out prompts; ours
    judge: str = ""  # real text: folder or hub id of the judge
    judge_kind: Literal["reward", "chat"] = "reward"  # a sequence-classification model, or one that is asked in words
    micro_batch_size: int = Field(default=0, ge=0)  # pairs held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: after each round only
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("sppo", "dpo_0.3", "ipo_0.25", "shuffled")  # see ARMS
    world: dict[str, float] = Field(default_factory=dict)  # settings of the embedded world, see CyclicJudge

    PRESETS: ClassVar = {
        # The specification's small experiment. eta = 1000 destroys a small policy: here an epoch can reach its targets.
        "tiny": {
            "rounds": 6,
            "epochs": 5,
            "eta": 6.0,
            "select_by": "win_rate",
            "learning_rate": 3e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "batch_size": 96,
            "copies": 4,
            "max_new_tokens": 3,
            "max_length": 16,
            "max_prompt_length": 8,
            "arms": [arm for arm in ARMS if arm not in ("first_reference", "complement")],
        },
        "smoke": {
            "rounds": 2,
            "epochs": 2,
            "eta": 6.0,
            "select_by": "win_rate",
            "learning_rate": 3e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "batch_size": 96,
            "copies": 1,
            "max_new_tokens": 3,
            "max_length": 16,
            "max_prompt_length": 8,
            "arms": ["sppo", "k2", "dno", "dpo_0.3", "ipo_0.25", "shuffled", "swapped"],
            "world": {"start_steps": 40},
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "rounds": 2,
            "eta": 30.0,
            "learning_rate": 1e-5,
            "n_prompts": 200,
            "max_new_tokens": 128,
            "max_length": 512,
            "max_prompt_length": 256,
            "test_size": 100,
            "arms": ["sppo", "dpo_0.3", "shuffled"],
        },
        "smoke": {
            "rounds": 1,
            "eta": 30.0,
            "learning_rate": 1e-5,
            "n_prompts": 16,
            "samples": 3,
            "max_new_tokens": 16,
            "max_length": 256,
            "max_prompt_length": 128,
            "test_size": 8,
            "arms": ["sppo", "shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")

    @property
    def training(self) -> TrainConfig:
        return TrainConfig(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            warmup_ratio=self.warmup_ratio,
            schedule=self.schedule,
            max_steps=self.max_steps,
            micro_batch_size=self.micro_batch_size,
            checkpoint_every=self.checkpoint_every,
        )


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The cyclic judge, or the prompts of a data set with a starting model and a judge.

    Raises:
        ValueError: one of model, dataset and judge without the others.
    """
    return open_judged(config, CyclicJudge, model=model, dataset=dataset, device=device, kind="prompt")


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: JudgedTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [evaluation after 0, 1, ... rounds]}}`."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: JudgedTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm)))


def play(task: JudgedTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 1 of the paper for one arm and one seed."""
    policy = task.start(seed)
    first = task.start(seed) if arm.reference == "first" else policy
    warn_of_large_eta(policy, config, arm)
    objective, options = objective_of(arm, config)

    limits = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}

    def make_round(policy: Policy, t: int) -> Round:
        part = run.child(f"round-{t + 1}")
        pairs = part.table("pairs", lambda: judged_pairs(task, policy, config, arm, seed, t, part))
        reference = policy if arm.reference == "round" else first
        part.cached("before", lambda: pair_logps(reference, pairs, **limits).tolist())
        rows = build_rows(reference, pairs, config, arm, seed, t)
        start = start_losses(objective, options, rows) if reference is policy else None
        return Round(rows, preference_step(objective, **options), config.training, start)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = (
            game_numbers(task, policy, t, run) if isinstance(task, EnumeratedTask) else task.evaluate(policy, seed)
        )
        return {**numbers, **movement(policy, run.child(f"round-{t}"), **limits)} if t else numbers

    return iterate(policy, config.rounds, make_round, evaluate, run, seed=seed)


def objective_of(arm: Arm, config: Config) -> tuple[Any, dict[str, Any]]:
    """The arm's loss and its options. One place knows that DNO's eta and TRL's beta are 1 / SPPO's eta."""
    strength = arm.strength or 1 / config.eta
    if arm.loss == "dno":
        return objectives.dno, {"eta": strength}
    if arm.loss in ("sppo", "sppo_single"):
        return objectives.sppo, {"beta": strength, "loss_type": arm.loss}
    return objectives.dpo, {"beta": strength, "loss_type": {"dpo": "sigmoid"}.get(arm.loss, arm.loss)}


def judged_pairs(
    task: JudgedTask, policy: Policy, config: Config, arm: Arm, seed: int, t: int, part: Run
) -> pd.DataFrame:
    """Steps 1 to 4: sample K responses, ask who beats whom, take the best and the worst with their win rates."""
    prompts = prompts_of_round(
        task, seed, t, rounds=config.rounds, n_prompts=config.n_prompts, copies=config.copies, may_overlap=True
    )
    drawn = draw_samples(
        policy,
        prompts,
        arm.k or config.samples,
        part,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=seed * 1000 + t,
    )
    matrices = preference_matrices(task, prompts, drawn.responses.tolist())
    fine = readable(matrices)
    drawn, matrices = drawn[fine].reset_index(drop=True), check_matrix(matrices[fine])
    rates = win_rates(matrices)
    best, worst = best_and_worst(rates if config.select_by == "win_rate" else mean_logits(matrices))
    entries: Any = zip(drawn.itertuples(), best.tolist(), worst.tolist(), strict=True)
    rows = [
        {
            "prompt": row.prompt,
            "chosen": row.responses[w],
            "rejected": row.responses[l],
            "chosen_ids": row.responses_ids[w],
            "rejected_ids": row.responses_ids[l],
            "prob_win": rates[i, w],
            "prob_lose": rates[i, l],
            "prob_pair": matrices[i, w, l],
            "iteration": t,
        }
        for i, (row, w, l) in enumerate(entries)
    ]
    kept, dropped = keep_sound(rows, may_be_empty=("chosen", "rejected"))
    dropped += Counter({"empty responses (kept)": sum(not text.strip() for texts in drawn.responses for text in texts)})
    log.info("round %d: %d pairs of %d prompts; %s", t, len(kept), len(prompts), dict(dropped))
    part.cached(
        "counts", lambda: {"prompts": len(prompts), "unreadable": int((~fine).sum()), "pairs": len(kept), **dropped}
    )
    if not kept:
        raise ValueError(
            f"round {t}: no pair is left of {len(prompts)} prompts ({dict(dropped)}); the samples of a prompt are all"
            " the same: raise temperature or samples"
        )
    return pd.DataFrame(kept)


def targets_of(pairs: pd.DataFrame, arm: Arm) -> list[dict[str, float]]:
    """What the arm's objective wants to know of each pair beside its labels.

    Raises:
        ValueError: probabilities are needed and not there, or are none.
    """
    if arm.loss not in ("sppo", "sppo_single", "dno"):
        return [{}] * len(pairs)
    if missing := [name for name in PROBABILITIES if name not in pairs]:
        raise ValueError(
            f"loss {arm.loss} needs the columns {', '.join(PROBABILITIES)}; {', '.join(missing)} missing. For pairs"
            " that say no more than which response was chosen, take the loss sppo_hard (arm 'hard')"
        )
    for name in PROBABILITIES:
        if len(bad := np.flatnonzero(~((pairs[name] >= 0) & (pairs[name] <= 1)))):
            raise ValueError(
                f"row {bad[0]}, column {name!r}: a probability in [0, 1] is needed; got {pairs[name].iloc[bad[0]]}"
            )
    loser = 1 - pairs.prob_win if arm.win_rates == "complement" else pairs.prob_lose
    names = (
        ("first_win_rate", "second_win_rate", "")
        if arm.loss == "dno"
        else ("chosen_probs_win", "chosen_probs_lose", "chosen_probs")
    )
    columns = zip(pairs.prob_win, loser, pairs.prob_pair, strict=True)
    return [{name: float(value) for name, value in zip(names, values, strict=True) if name} for values in columns]


def build_rows(reference: Policy, pairs: pd.DataFrame, config: Config, arm: Arm, seed: int, t: int) -> list[PairRow]:
    """Step 5: pairs as tokens, with log-probs under the reference and the targets of the objective."""
    groups = pair_groups(reference, pairs, max_length=config.max_length, max_prompt_length=config.max_prompt_length)
    share = {"true": 0.0, "shuffled": 0.5, "swapped": 1.1}[arm.labels]
    swap = np.random.default_rng([seed, t, 5]).random(len(groups)) < share
    groups = [g._replace(responses_ids=g.responses_ids[::-1]) if s else g for g, s in zip(groups, swap, strict=True)]
    rows = pair_rows(reference, [f"round {t} row {i}" for i in range(len(groups))], groups)
    return [row._replace(targets=targets) for row, targets in zip(rows, targets_of(pairs, arm), strict=True)]


def warn_of_large_eta(policy: Policy, config: Config, arm: Arm) -> None:
    """eta = 1000 is for a step so small that the targets are never reached; a small model reaches for them and
    breaks."""
    n = sum(p.numel() for p in policy.model.parameters())
    if arm.loss.startswith("sppo") and not arm.strength and config.eta > 100 and n < 10_000_000:
        log.warning(
            "eta = %g with a model of %.1g parameters: the first loss will be about %.3g (win rates 1/4 from 1/2); eta"
            " of 2 to 6 suits a small model",
            config.eta,
            n,
            config.eta**2 / 16,
        )


# ----------------------------------------------------------------------------------------------------------- claims
BEYOND_SMALL = {
    "C3": (
        "Less length growth than IPO",
        "1676 -> 2163 (SPPO), 2189 (DPO), 2760 (IPO) characters",
        "needs responses whose length is free",
    ),
    "C5": (
        "General skills are kept in round 1",
        "Open LLM average 65.74 -> 66.67; DPO 65.62",
        "needs benchmarks of general skills",
    ),
    "C7": (
        "Under the training judge IPO can look better",
        "PairRM prefers IPO to SPPO in round 3, 0.552",
        "needs a learned judge that can be exploited; the table shows both of this world's judges",
    ),
    "C8": (
        "Arena-Hard and MT-Bench",
        "12.6 -> 18.7, 20.4, 23.3; MT-Bench 7.51 -> 7.21, 7.49, 7.59",
        "needs these benchmarks",
    ),
    "C9": ("Best of 16 by the judge still helps", "LC 28.53 -> 32.13", "needs a learned judge"),
}
ON_GAMES = {
    "C1": ("Every round gets better", "AlpacaEval 2 LC 17.11 -> 24.79 -> 26.89 -> 28.53"),
    "C2": ("Better than iterative DPO and IPO", "LC of round 3: DPO 22.30, IPO 20.06, SPPO 28.53"),
    "C4": ("Winners go up and losers go down", "section 4.5, an argument"),
    "C6": ("Robust to few comparisons", "K = 2 against 5 in round 3: LC 28.26 against 28.53"),
}
NOISE = 0.03  # exploitability; C6: about a tenth of the start's


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control."""
    found = Claims("sppo", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])

    def curve(arm: str, key: str) -> np.ndarray:
        """[seed, round]; numbers of pairs begin with round 1."""
        return np.array([[numbers[key] for numbers in result["arms"][arm] if key in numbers] for result in results])

    for id, told in BEYOND_SMALL.items():
        found.needs_full_scale(id, *told)
    if experiment.dataset:
        return _claims_on_text(found, curve, arms)
    expl = partial(curve, key="average_exploitability")
    if not {"shuffled", "swapped"} <= arms:
        raise ValueError("the claims need the arms 'shuffled' and 'swapped' beside 'sppo'; add them to `arms`")
    sppo, control, unit = expl("sppo"), expl("shuffled"), "exploitability of the averaged policy"
    falls = slopes(sppo[:, 1:])
    found.test(
        "C1",
        "The averaged policy becomes harder to exploit round by round",
        paper=ON_GAMES["C1"][1],
        direction="less",
        measured=falls,
        control=slopes(expl("swapped")[:, 1:]),
        control_is="winner and loser swapped",
        unit=f"{unit}, a round",
        also={
            "Spearman correlation with the round < 0 in every seed": rank_correlations(sppo[:, 1:]).max() < 0,
            "it beats the start in every seed": curve("sppo", "average_win_against_start")[:, -1].min() > 0.5,
            "falls faster than with labels shuffled in every seed": (falls - slopes(control[:, 1:])).max() < 0,
        },
        note=(
            f"{sppo[:, 0].mean():.3f} at the start, {sppo[:, -1].mean():.3f} at the end; labels shuffled"
            f" {control[:, -1].mean():.3f}"
        ),
    )
    if tried := [arm for arm in BASELINES if arm in arms]:
        best = min(tried, key=lambda arm: expl(arm)[:, -1].mean())
        last = {arm: curve(arm, "exploitability")[:, -1].mean() for arm in ("sppo", *tried)}
        found.test(
            "C2",
            "Harder to exploit at the end than the best setting of iterative DPO and IPO",
            paper=ON_GAMES["C2"][1],
            measured=expl(best)[:, -1] - sppo[:, -1],
            control=expl(best)[:, -1] - control[:, -1],
            control_is="SPPO, labels shuffled",
            unit=unit,
            note=(
                f"best baseline: {ARMS[best].title}; last policies: SPPO {last['sppo']:.3f}, best of those "
                f"{min(last[arm] for arm in tried):.3f}"
            ),
        )
    up, down = curve("sppo", "winner_moved"), curve("sppo", "loser_moved")
    shuffled = np.minimum(curve("shuffled", "winner_moved"), -curve("shuffled", "loser_moved"))
    found.test(
        "C4",
        "The winner's log-prob goes up and the loser's goes down",
        paper=ON_GAMES["C4"][1],
        measured=np.minimum(up, -down)[:, 0],
        control=shuffled[:, 0],
        control_is="labels shuffled",
        unit="nats, the smaller of both in round 1",
        also={"in every seed and every round": up.min() > 0 and down.max() < 0},
    )
    if {"dpo_0.3", "dpo_1"} <= arms:
        moved = {arm: curve(arm, "winner_moved") for arm in ("dpo_0.3", "dpo_1")}
        lower, higher = sorted(moved, key=lambda arm: moved[arm][:, -1].mean())
        found.test(
            "C4 dpo",
            "A loss on the gap alone raises winners less than SPPO",
            paper=ON_GAMES["C4"][1],
            test="sign",
            measured=(up - moved[higher])[:, -1],
            control=(moved[lower] - moved[higher])[:, -1],
            control_is=f"{ARMS[lower].title} minus {ARMS[higher].title}",
            unit="nats, winner's log-ratio in the last round",
            note=f"against {ARMS[higher].title}; in round 1 {(up - moved[higher])[:, 0].mean():+.2f}",
        )
    if "k2" in arms:
        found.test(
            "C6",
            "Two samples a prompt end as close to the equilibrium as five",
            paper=ON_GAMES["C6"][1],
            direction="equivalent",
            margin=NOISE,
            measured=expl("k2")[:, -1] - sppo[:, -1],
            control=control[:, -1] - sppo[:, -1],
            control_is="labels shuffled",
            unit=unit,
        )
    return found


def _claims_on_text(found: Claims, curve: Any, arms: set[str]) -> Claims:
    """On real text no truth is planted: what can be tested is whether the judge's taste carries over to new prompts."""
    for id, told in ON_GAMES.items():
        found.needs_full_scale(id, *told, "needs a judge that nothing was trained on, and benchmarks")
    control = curve("shuffled", "quality")[:, -1] - 0.5 if "shuffled" in arms else None
    found.test(
        "H1",
        "On held-out prompts the training judge prefers the last round to the start",
        paper="not measured",
        measured=curve("sppo", "quality")[:, -1] - 0.5,
        control=control,
        control_is="labels shuffled",
        unit="win rate above one half",
    )
    return found
