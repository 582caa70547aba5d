"""SPPO: self-play preference optimisation. Every response is pushed by its own win rate against the policy's samples.

Needs prompts and a judge of pairs, whose preferences may be intransitive; no reference answers. Each of T rounds, with
the policy at its start, pi_t, as sampler and as reference:

    1. Sample K responses y_1 .. y_K ~ pi_t(. | x) to each prompt x of the round.
    2. Ask the judge for P(y_k > y_j | x) of all pairs; a response beats itself with 1/2.
    3. Win rates: P_k = 1/K sum_j P(y_k > y_j | x), itself included; the estimate of P(y_k > pi_t | x).
    4. The winner w has the highest mean_j logit P(y_k > y_j | x), the loser l the lowest; one pair a prompt.
    5. Train from pi_t on; the result is pi_{t+1}. With a = log pi_theta(y_w | x) / pi_t(y_w | x), summed over tokens,
       and b the same of y_l, minimise  E 1/2 [(a - eta (P_w - 1/2))^2 + (b - eta (P_l - 1/2))^2]

It approximates pi_{t+1} = pi_t exp(eta P(y > pi_t)) / Z, with eta/2 in place of log Z; with the exact update and eta of
order 1/sqrt(T), the average of the rounds' policies goes to the Nash equilibrium of the judge (Theorem 4.1).

Source: Wu, Sun, Yuan, Ji, Yang, Gu 2024, "Self-Play Preference Optimization for Language Model Alignment", arXiv
2405.00675, Algorithm 1, eq. 4.4; official code uclaml/SPPO at 5e61c4e, whose beta is 1/eta.

Where this differs from the official code, and why:
- the judge gives a matrix of pairwise probabilities (there: one score a response, which cannot hold a cycle); a scalar
  reward model works too, as the special case sigma(score difference);
- sampling at temperature 1, top-p 1, as the paper and the theory say (there: 0.7 and 0.9);
- rows whose winner and loser are the same text are dropped and counted (there: they stay, with equal responses);
- one epoch, over which the learning rate decays to 0 (paper: over 18 epochs, of which the first is kept).
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import objectives, tasks
from workbench.config import Field, Judged, Presets, Sampling, Training, listed, strict
from workbench.feedback.pairs import best_and_worst, check_matrix, keep_sound, mean_logits, win_rates
from workbench.feedback.samples import draw_samples, preference_matrices, prompts_of_round, readable
from workbench.methods.align.self_play import game_numbers, movement
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import EnumeratedTask, JudgedTask
from workbench.tasks.real import TextTask
from workbench.training.drawn_pairs import pair_groups, pair_logps, start_losses
from workbench.training.loop import TrainConfig
from workbench.training.reference import PairRow, pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step
from workbench.worlds.cyclic_judge import CyclicJudge

log = logging.getLogger(__name__)

PROBABILITIES = ("prob_win", "prob_lose", "prob_pair")  # of a pair: P_w, P_l, P(y_w > y_l); see `targets_of`


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        loss: what is minimised on the round's pairs. "sppo" and "dno" (soft DNO) look at both win rates, "sppo_single"
            at P(y_w > y_l) in place of P_w and 1 minus it in place of P_l; the others at the labels alone: "sppo_hard"
            takes P_w = 1 and P_l = 0, without the factor 1/2.
        beta: of DPO, tau of IPO, eta of DNO, 1/nat; 0 takes 1/eta of the configuration.
        k: samples a prompt; 0 takes the configuration's.
        reference: what a and b are measured from: the policy at the start of each "round", or of the "first" one.
        labels: "shuffled" swaps winner and loser in half of the pairs at random; "swapped" in all. Controls.
        win_rates: "complement" is a control with a planted mistake: P_l is read as 1 - P_w.
    """

    title: str
    loss: Literal["sppo", "sppo_single", "sppo_hard", "dpo", "ipo", "dno"] = "sppo"
    beta: float = 0.0
    k: int = 0
    reference: Literal["round", "first"] = "round"
    labels: Literal["true", "shuffled", "swapped"] = "true"
    win_rates: Literal["own", "complement"] = "own"
    colour: str = ""


@strict
class Config(Training, Sampling, Judged, Presets):
    """Defaults are the paper's where it gives one, else the official code's."""

    rounds: int = Field(default=3, ge=1)  # paper: 3
    eta: float = Field(default=1000.0, gt=0)  # nats a unit of win rate; paper: 1e3 (code: beta = 0.001)
    samples: int = Field(default=5, ge=2)  # K, a prompt; paper: 5
    select_by: Literal["logit", "win_rate"] = "logit"  # of step 4; paper: mean pairwise logit
    learning_rate: float = Field(default=5e-7, gt=0)  # paper; RMSprop, batch 64, warm-up 0.1: see `Training`
    schedule: Literal["linear", "constant"] = "linear"  # paper
    n_prompts: int = Field(default=20_000, ge=0)  # a round, at most; paper: ~20k, a third of UltraFeedback; 0: all
    prompt_repeats: int = Field(default=0, ge=0)  # n: all prompts n times in every round; 0: each round has its own
    temperature: float = Field(default=1.0, gt=0)  # paper: 1.0 (code: 0.7)
    top_p: float = Field(default=1.0, gt=0, le=1)  # paper: 1.0 (code: 0.9)
    max_new_tokens: int = Field(default=512, ge=1)  # what max_length leaves (code: 2048, cut to it in training)
    max_length: int = Field(default=1024, ge=2)  # tokens of prompt and response; official code
    max_prompt_length: int = Field(default=512, ge=1)  # official code
    test_size: int = Field(default=500, ge=1)  # held-out prompts; ours
    arms: list[str] = listed("sppo", "dpo_0.3", "ipo_0.25", "shuffled")
    world: dict[str, int | float] = Field(default_factory=dict)  # settings of the embedded world, see CyclicJudge

    @property
    def limits(self) -> dict[str, int]:
        return {"max_length": self.max_length, "max_prompt_length": self.max_prompt_length}


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The cyclic judge, or the prompts of a data set with a starting model and a judge."""
    world = partial(CyclicJudge, device=device, **config.world)
    real = partial(TextTask.of, config, dataset, model, device=device, kind="prompt")
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real, needs=("judge",))


def train_arm(task: JudgedTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 1 of the paper for one arm and one seed. The first round is t = 0, and its folder is `round-1`."""
    policy = task.start(seed)  # trained in place: while round t makes its rows, this is pi_t
    reference = policy if arm.reference == "round" else task.start(seed)
    warn_of_large_eta(policy, config, arm)
    objective, options = objective_of(arm, config)

    def make_round(policy: Policy, t: int) -> Round:
        this_round = run.child(f"round-{t + 1}")
        pairs = this_round.table("pairs", lambda: judged_pairs(task, policy, config, arm, seed, t, this_round))
        this_round.cached("before", lambda: pair_logps(reference, pairs, **config.limits).tolist())  # for `movement`
        rows = build_rows(reference, pairs, config, arm, seed, t)
        # at a = b = 0 the loss is known: a step-0 check that the reference is pi_t
        start = start_losses(objective, options, rows) if reference is policy else None
        return Round(rows, preference_step(objective, **options), TrainConfig.of(config), start)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = (
            game_numbers(task, policy, t, run) if isinstance(task, EnumeratedTask) else task.evaluate(policy, seed)
        )
        return {**numbers, **movement(policy, run.child(f"round-{t}"), **config.limits)} if t else numbers

    return iterate(policy, config.rounds, make_round, evaluate, run, seed=seed)


def objective_of(arm: Arm, config: Config) -> tuple[Any, dict[str, Any]]:
    """The arm's loss and its options. One place knows that DNO's eta and the beta of the others are 1 / SPPO's eta."""
    beta = arm.beta or 1 / config.eta
    if arm.loss == "dno":
        return objectives.dno, {"eta": beta}
    if arm.loss in ("sppo", "sppo_single"):
        return objectives.sppo, {"beta": beta, "loss_type": arm.loss}
    return objectives.dpo, {"beta": beta, "loss_type": "sigmoid" if arm.loss == "dpo" else arm.loss}


def judged_pairs(
    task: JudgedTask, policy: Policy, config: Config, arm: Arm, seed: int, t: int, run: Run
) -> pd.DataFrame:
    """Steps 1 to 4: sample K responses, ask who beats whom, take the best and the worst with their win rates."""
    division = {"rounds": config.rounds, "n_prompts": config.n_prompts, "prompt_repeats": config.prompt_repeats}
    prompts = prompts_of_round(task, seed, t, may_overlap=True, **division)
    samples = draw_samples(policy, prompts, arm.k or config.samples, run, seed=seed * 1000 + t, **config.sampling)
    matrices = preference_matrices(task, prompts, samples.responses.tolist())
    is_read = readable(matrices)  # a judge that answers in words cannot always be read
    samples, matrices = samples[is_read].reset_index(drop=True), check_matrix(matrices[is_read])
    rates = win_rates(matrices)
    best, worst = best_and_worst(rates if config.select_by == "win_rate" else mean_logits(matrices))
    entries: Any = zip(samples.itertuples(), best.tolist(), worst.tolist(), strict=True)
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
    dropped += Counter(
        {"empty responses (kept)": sum(not text.strip() for texts in samples.responses for text in texts)}
    )
    log.info("round %d: %d pairs of %d prompts; %s", t, len(kept), len(prompts), dict(dropped))
    run.cached(
        "counts", lambda: {"prompts": len(prompts), "unreadable": int((~is_read).sum()), "pairs": len(kept), **dropped}
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
    names = ("chosen_probs_win", "chosen_probs_lose", "chosen_probs")  # as the official code calls them
    if arm.loss == "dno":
        names = ("first_win_rate", "second_win_rate", "")  # it has no use for P(y_w > y_l)
    columns = zip(pairs.prob_win, loser, pairs.prob_pair, strict=True)
    return [{name: float(value) for name, value in zip(names, values, strict=True) if name} for values in columns]


def build_rows(reference: Policy, pairs: pd.DataFrame, config: Config, arm: Arm, seed: int, t: int) -> list[PairRow]:
    """For step 5: pairs as tokens, with log-probs under the reference and the targets of the objective.

    Where labels are swapped the targets stay: the loser's text is pushed by the winner's win rate.
    """
    groups = pair_groups(reference, pairs, **config.limits)
    share = {"true": 0.0, "shuffled": 0.5, "swapped": 1.0}[arm.labels]
    swap = np.random.default_rng([seed, t, 5]).random(len(groups)) < share
    groups = [g._replace(responses_ids=g.responses_ids[::-1]) if s else g for g, s in zip(groups, swap, strict=True)]
    rows = pair_rows(reference, [f"round {t} row {i}" for i in range(len(groups))], groups)
    return [row._replace(targets=targets) for row, targets in zip(rows, targets_of(pairs, arm), strict=True)]


def warn_of_large_eta(policy: Policy, config: Config, arm: Arm) -> None:
    """eta = 1000 is for steps too small to reach its targets; a small model reaches for them and breaks."""
    n = sum(p.numel() for p in policy.model.parameters())
    if arm.loss.startswith("sppo") and not arm.beta and config.eta > 100 and n < 10_000_000:
        told = "eta = %g with a model of %.1g parameters: the first loss will be about %.3g (win rates 1/4 from 1/2)"
        log.warning(f"{told}; eta of 2 to 6 suits a small model", config.eta, n, config.eta**2 / 16)
