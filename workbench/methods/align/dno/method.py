"""DNO: direct Nash optimisation. A contrastive step each round on pairs of the model's own answers and a teacher's.

Needs prompts and a judge, whose preferences may be intransitive; a teacher's answers where there are any. Two
algorithms:

A. Soft DNO (Algorithm 1). With r(y) the win rate of y against the policy pi_t at the start of round t, minimise over
pairs

    L = E z softplus(-Delta) + (1 - z) softplus(Delta),   z = sigma(r(y_1) - r(y_2)),
        Delta = eta log pi(y_1)/pi_t(y_1) - eta log pi(y_2)/pi_t(y_2)

   whose exact minimiser is pi_t exp(r / eta), normalised (soft policy iteration).
B. DNO-Prct (Algorithm 2, all experiments of the paper). K samples of pi_t and the teacher's answer are scored 0 to 6
   side by side; every pair with a large enough margin is kept, whoever wrote which side; pairs of earlier rounds are
   replayed; then L = E softplus(-Delta) with Delta of chosen and rejected. That loss is DPO with a moving reference:
   what the paper adds is which pairs are trained on, and the arms here take those choices away one by one.

Convention: this eta divides the win rate; SPPO's multiplies it (eta_SPPO = 1 / eta_DNO).
Source: Rosset, Cheng, Mitra, Santacroce, Awadallah, Xie 2024, "Direct Nash Optimization", arXiv 2404.03715, Algorithms
1 and 2, eq. 12. No official code is known.

Where this differs from the paper, and why:
- learning rate: the paper prints 5e-5, which is high for full fine-tuning of 7B; kept as the default, lower it for such
  models;
- without a teacher's answer a prompt gives pairs of students alone;
- in the embedded world points are made from win rates, clip(round(6 r + 1), 0, 6), as no model there writes points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import objectives, tasks
from workbench.config import Field, Judged, Presets, Sampling, Training, listed, strict
from workbench.feedback.pairs import margin_pairs
from workbench.feedback.samples import draw_samples, prompts_of_round
from workbench.kernels import Group
from workbench.methods.align.dno.candidates import Candidate, gather, judge
from workbench.methods.align.dno.pairs import COLUMNS, check_round, sign_accuracy, sound_pairs, with_replay
from workbench.methods.align.self_play import game_numbers, movement, stored_table
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.tasks.protocols import EnumeratedTask, JudgedTask
from workbench.tasks.real import TextTask
from workbench.training.drawn_pairs import pair_groups, pair_logps, start_losses
from workbench.training.loop import TrainConfig
from workbench.training.reference import PairRow, pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step, supervised_step
from workbench.worlds.cyclic_judge import CyclicJudge


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. The defaults are DNO-Prct; every other arm is a variant, a baseline or a control.

    Attributes:
        loss: "prct", the contrastive loss; "soft", Algorithm 1; "sft", imitation of the chosen responses; "sppo", the
            square loss, with eta = 1 / eta_soft.
        pairs: "margin", the paper's rule; "restrictive", those of its pairs in which the teacher is chosen; "all",
            every pair with different win rates; "teacher", teacher over every student, whatever the judge says (SPIN);
            "students", all pairs of students; "extremes", the best and the worst student.
        judgements: "exact", win rates against the policy itself where a task knows them; "noisy", one draw a
            comparison.
        fresh: False keeps the pairs of round 1 and goes on training on them, with the start as reference (offline DPO).
        labels: "shuffled" swaps chosen and rejected in half of the pairs at random.
        reward_scale: of soft DNO; its eta is multiplied by the same number, which leaves the target as it is.
    """

    title: str
    loss: Literal["prct", "soft", "sft", "sppo"] = "prct"
    pairs: Literal["margin", "all", "restrictive", "teacher", "students", "extremes"] = "margin"
    judgements: Literal["exact", "noisy"] = "exact"
    fresh: bool = True
    labels: Literal["true", "shuffled"] = "true"
    reward_scale: float = 1.0
    colour: str = ""


@strict
class Config(Training, Sampling, Judged, Presets):
    """Defaults are the paper's where it gives one; its batch size (64) and epochs (at most 1) are the block's."""

    rounds: int = Field(default=3, ge=1)  # paper: 3
    samples: int = Field(default=5, ge=2)  # K students a prompt; paper: 5
    with_teacher: bool = True  # paper: GPT-4-Turbo writes one more answer
    floor: float = 5  # points that a chosen response must reach; paper: 5 of 6
    gap: float = 2  # points between teacher chosen and rejected; paper: 2
    student_gap: float = 1  # the same where a student is chosen; paper: 1
    replay: float = Field(default=0.3, ge=0, lt=0.5)  # of all pairs, from the round before; then half, ...; paper
    max_pairs: int = Field(default=0, ge=0)  # new pairs a round, a random draw of those that were built; 0: all (paper)
    eta: float = Field(default=0.1, gt=0)  # of the contrastive loss (DPO's beta), 1/nat; paper: 0.1 or 0.05
    soft_eta: float = Field(default=0.2, gt=0)  # of soft DNO, 1/nat; ours: 0.15 to 0.25, as eta of 4 to 7 in SPPO
    learning_rate: float = Field(default=5e-5, gt=0)  # peak; paper, as printed
    n_prompts: int = Field(default=20_000, ge=0)  # a round, at most; paper: ~20k; 0: all
    prompt_repeats: int = Field(default=0, ge=0)  # n: all prompts n times in every round; 0: each round has its own
    temperature: float = Field(default=0.7, gt=0)  # paper
    top_p: float = Field(default=0.95, gt=0, le=1)  # paper
    repeat_words: int = Field(default=4, ge=1)  # degenerate: some run of so many words ...
    repeat_limit: int = Field(default=5, ge=1)  # ... stands more often than this; ours
    max_length: int = Field(default=1024, ge=2)  # tokens of prompt and response; ours
    max_prompt_length: int = Field(default=512, ge=1)  # ours
    test_size: int = Field(default=500, ge=1)  # held-out prompts; ours
    judge_kind: Literal["reward", "chat"] = "chat"  # paper: a model asked in words for points
    arms: list[str] = listed("dno", "restrictive", "spin", "shuffled")
    world: dict[str, int | float] = Field(default_factory=dict)  # settings of the embedded world, see CyclicJudge


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The cyclic judge, or a data set's prompts (its answers are the teacher's) with a starting model and a judge."""
    kind = "demonstration" if config.with_teacher else "prompt"
    world = partial(CyclicJudge, device=device, **config.world)
    real = partial(TextTask.of, config, dataset, model, device=device, kind=kind)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real, needs=("judge",))


def train_arm(task: JudgedTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 2 of the paper (Algorithm 1 with the loss "soft") for one arm and one seed."""
    policy = task.start(seed)
    first = policy if arm.fresh else task.start(seed)
    objective, options = objective_of(arm, config)
    limits = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    # where the number of new pairs is capped, every round and arm takes the steps of a full one
    steps = config.epochs * math.ceil(config.max_pairs / config.batch_size)
    training = TrainConfig.of(config, max_steps=steps or config.max_steps)

    def new_pairs(policy: Policy, t: int) -> pd.DataFrame:
        if arm.fresh or t == 0:
            return build_pairs(task, policy, config, arm, seed, t, run)
        return pd.read_parquet(run.child("round-1").folder / "pairs.parquet")

    def make_round(policy: Policy, t: int) -> Round:
        this_round = run.child(f"round-{t + 1}")
        pairs = this_round.table("pairs", lambda: new_pairs(policy, t))
        reference = policy if arm.fresh else first
        this_round.cached("before", lambda: pair_logps(policy, pairs, **limits).tolist())
        if arm.loss in ("prct", "sft") and arm.fresh:  # the others need win rates against this very policy
            pairs = with_replay(pairs, run, t, seed=seed, share=config.replay)
        groups = pair_groups(reference, pairs, **limits)
        if arm.loss == "sft":
            return Round([Group(g.prompt_ids, g.responses_ids[:1]) for g in groups], supervised_step, training, None)
        rows = build_rows(reference, pairs, groups, arm, seed, t)
        start = start_losses(objective, options, rows) if reference is policy and rows else None
        return Round(rows, preference_step(objective, **options), training, start)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        is_game = isinstance(task, EnumeratedTask)
        numbers = game_numbers(task, policy, t, run) if is_game else task.evaluate(policy, seed)
        if not t:
            return numbers
        counted = run.child(f"round-{t if arm.fresh else 1}").folder / "counts.json"
        return {**numbers, **movement(policy, run.child(f"round-{t}"), **limits), **read_json(counted)}

    return iterate(policy, config.rounds, make_round, evaluate, run, seed=seed)


def objective_of(arm: Arm, config: Config) -> tuple[Any, dict[str, Any]]:
    """The arm's loss and its options; the contrastive loss is DPO's, its reference moves."""
    if arm.loss == "soft":
        return objectives.dno, {"eta": config.soft_eta * arm.reward_scale, "reward_scale": arm.reward_scale}
    if arm.loss == "sppo":
        return objectives.sppo, {"beta": config.soft_eta}
    return objectives.dpo, {"beta": config.eta}


def build_pairs(
    task: JudgedTask, policy: Policy, config: Config, arm: Arm, seed: int, t: int, run: Run
) -> pd.DataFrame:
    """Steps 1 to 4: K samples and the teacher's answer, points for all of them side by side, pairs by the rule."""
    this_round, draw_seed = run.child(f"round-{t + 1}"), seed * 1000 + t
    prompts = prompts_of_round(
        task, seed, t, rounds=config.rounds, n_prompts=config.n_prompts, prompt_repeats=config.prompt_repeats
    )
    sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p}
    samples = draw_samples(policy, prompts, config.samples, this_round, **sampling, seed=draw_seed)
    answers = task.teacher(prompts, draw_seed) if config.with_teacher else [None] * len(prompts)
    stuck = {"repeat_words": config.repeat_words, "repeat_limit": config.repeat_limit}
    candidates = [
        gather(policy, texts, ids, answer, max_new_tokens=config.max_new_tokens, **stuck)
        for texts, ids, answer in zip(samples.responses, samples.responses_ids, answers, strict=True)
    ]
    table = stored_table(run, t) if isinstance(task, EnumeratedTask) else None
    noise = np.random.default_rng([seed, t, 8]) if arm.judgements == "noisy" else None
    judged = judge(task, prompts, candidates, table=table, noise=noise)
    rows = []
    for prompt, members, judgement in zip(samples.prompt, candidates, judged, strict=True):
        if judgement is None:
            continue
        rates, points = judgement
        for chosen, rejected, kind in pairs_of(members, rates, points, config, arm):
            a, b = members[chosen], members[rejected]
            scores = (points[chosen], points[rejected], rates[chosen], rates[rejected])
            rows.append(dict(zip(COLUMNS, (prompt, a.text, b.text, a.ids, b.ids, kind, *scores, t), strict=True)))
    built, counts = sound_pairs(rows, candidates, judged, floor=config.floor)
    needs_floor = arm.pairs in ("margin", "restrictive")
    check_round(counts, len(built), len(prompts), t, floor=config.floor if needs_floor else None)
    order = np.random.default_rng([seed, t, 6]).permutation(len(built))[: config.max_pairs or None]
    kept = built.iloc[np.sort(order)].reset_index(drop=True)
    if table is not None and len(built):
        counts["sign_accuracy"] = sign_accuracy(task, built, table)
        counts["sign_accuracy_kept"] = sign_accuracy(task, kept, table)
    this_round.cached("counts", lambda: counts)
    return kept


def pairs_of(
    members: Sequence[Candidate], rates: Sequence[float], points: Sequence[float], config: Config, arm: Arm
) -> list[tuple]:
    """The arm's rule: places of chosen and rejected among one prompt's candidates, and who wrote them."""
    is_teacher = [c.is_teacher for c in members]
    students = [i for i, teaches in enumerate(is_teacher) if not teaches]
    if arm.pairs in ("margin", "restrictive"):
        apart = margin_pairs(points, is_teacher, floor=config.floor, gap=config.gap, student_gap=config.student_gap)
        return [pair for pair in apart if arm.pairs == "margin" or pair[2] == "T>S"]
    if arm.pairs == "teacher":
        return [(i, j, "T>S") for i, teaches in enumerate(is_teacher) if teaches for j in students]
    if arm.pairs == "all":  # a floor and gaps that every difference passes
        return margin_pairs(rates, is_teacher, floor=0, gap=1e-9, student_gap=1e-9)
    if arm.pairs == "extremes":
        best, worst = max(students, key=lambda i: rates[i]), min(students, key=lambda i: rates[i])
        return [(best, worst, "S>S")] if best != worst else []
    ordered = [(i, j) if rates[i] >= rates[j] else (j, i) for n, i in enumerate(students) for j in students[n + 1 :]]
    return [(i, j, "S>S") for i, j in ordered]


def build_rows(
    reference: Policy, pairs: pd.DataFrame, groups: Sequence[Group], arm: Arm, seed: int, t: int
) -> list[PairRow]:
    """Step 6: pairs with log-probs under this round's reference and the targets of the objective."""
    swap = np.random.default_rng([seed, t, 5]).random(len(groups)) < (0.5 if arm.labels == "shuffled" else 0.0)
    groups = [g._replace(responses_ids=g.responses_ids[::-1]) if s else g for g, s in zip(groups, swap, strict=True)]
    rows = pair_rows(reference, [f"round {r} row {i}" for i, r in enumerate(pairs.iteration)], groups)
    targets = {"soft": ("first_win_rate", "second_win_rate"), "sppo": ("chosen_probs_win", "chosen_probs_lose")}
    if arm.loss not in targets:
        return rows
    rates = zip(pairs.rate_chosen, pairs.rate_rejected, strict=True)
    return [
        r._replace(targets=dict(zip(targets[arm.loss], both, strict=True))) for r, both in zip(rows, rates, strict=True)
    ]
