"""DNO: direct Nash optimisation. A contrastive step each round on pairs of the model's own answers and a teacher's.

Needs prompts and a judge, whose preferences may be intransitive; a teacher's answers where there are any. Two
algorithms:

A. Soft DNO (Algorithm 1). With r(y) the win rate of y against the policy pi_t at the start of round t, minimise over
pairs

    L = E z softplus(-Delta) + (1 - z) softplus(Delta),   z = sigma(r(y_1) - r(y_2)),
        Delta = eta log pi(y_1)/pi_t(y_1) - eta log pi(y_2)/pi_t(y_2)

   whose exact minimiser is pi_t exp(r / eta), normalised (soft policy iteration).
B. DNO-Prct (Algorithm 2, all experiments of the paper). K samples of pi_t and the teacher's answer are scored 0 to 6
side by
   side; every pair with a large enough margin is kept, whoever wrote which side; pairs of earlier rounds are replayed;
   then L = E softplus(-Delta) with Delta of chosen and rejected. That loss is DPO with a moving reference: what the
   paper adds is which pairs are trained on, and the arms here take those choices away one by one.

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

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.feedback.pairs import keep_sound, margin_pairs, repeats
from workbench.feedback.samples import draw_samples, prompts_of_round
from workbench.kernels import Group
from workbench.methods.align import self_play
from workbench.methods.align.dno.candidates import Candidate, gather, judge, teacher_answers
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.stats import trends
from workbench.tasks import real
from workbench.tasks.protocols import EnumeratedTask, JudgedTask
from workbench.training.loop import TrainConfig
from workbench.training.pair_rows import pair_groups, pair_logps, start_losses
from workbench.training.reference import PairRow, pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step, supervised_step
from workbench.worlds.cyclic_judge import CyclicJudge

log = logging.getLogger(__name__)

KINDS = ("T>S", "S>T", "S>S")
COLUMNS = [
    "prompt",
    "chosen",
    "rejected",
    "chosen_ids",
    "rejected_ids",
    "kind",
    "score_chosen",
    "score_rejected",
    "rate_chosen",
    "rate_rejected",
    "iteration",
]


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. The defaults are DNO-Prct; every other arm is a variant, a baseline or a control.

    Attributes:
        loss: "prct", the contrastive loss; "soft", Algorithm 1 on all pairs of students; "sft", imitation of the chosen
            ones; "sppo", the square loss on best and worst, with eta = 1 / eta_soft.
        pairs: "margin", the paper's rule; "all", every pair with different win rates; "restrictive", the margin rule's
            pairs of teacher over student; "teacher", teacher over every student, whatever the judge says (SPIN);
            "students", all pairs of students; "extremes", the best and the worst student.
        judgements: "exact", win rates against the policy itself where a task knows them; "noisy", one draw a
            comparison.
        fresh: False keeps the pairs of round 1 and goes on training on them, with the start as reference (offline DPO).
        labels: "shuffled" swaps chosen and rejected in half of the pairs at random.
        scale: reward_scale of soft DNO; its eta is multiplied by the same number, which leaves the target as it is.
    """

    title: str
    loss: Literal["prct", "soft", "sft", "sppo"] = "prct"
    pairs: Literal["margin", "all", "restrictive", "teacher", "students", "extremes"] = "margin"
    judgements: Literal["exact", "noisy"] = "exact"
    fresh: bool = True
    labels: Literal["true", "shuffled"] = "true"
    scale: float = 1.0


ARMS: dict[str, Arm] = {
    "dno": Arm("DNO-Prct"),
    "restrictive": Arm("DNO-Restrictive: teacher over student only", pairs="restrictive"),
    "spin": Arm("SPIN: teacher always chosen", pairs="teacher"),
    "offline": Arm("offline DPO on the pairs of round 1", fresh=False),
    "sft": Arm("SFT on the chosen responses", loss="sft"),
    "noisy": Arm("DNO-Prct, sampled judgements", judgements="noisy"),
    "noisy_restrictive": Arm("DNO-Restrictive, sampled judgements", pairs="restrictive", judgements="noisy"),
    "noisy_shuffled": Arm("sampled judgements, labels shuffled", judgements="noisy", labels="shuffled"),
    "noisy_all": Arm("sampled judgements, no margin", pairs="all", judgements="noisy"),
    "soft": Arm("soft DNO, exact win rates", loss="soft", pairs="students"),
    "soft_noisy": Arm("soft DNO, sampled win rates", loss="soft", pairs="students", judgements="noisy"),
    "soft_scaled": Arm("soft DNO, reward scale 4", loss="soft", pairs="students", scale=4.0),
    "sppo": Arm("SPPO on the same samples", loss="sppo", pairs="extremes"),
    "shuffled": Arm("DNO-Prct, labels shuffled", labels="shuffled"),
}


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one."""

    rounds: int = Field(default=3, ge=1)  # paper: 3
    epochs: int = Field(default=1, ge=1)  # a round; paper: at most 1
    eta: float = Field(default=0.1, gt=0)  # of the contrastive loss (DPO's beta), 1/nat; paper: 0.1 or 0.05
    soft_eta: float = Field(default=0.2, gt=0)  # of soft DNO, 1/nat; ours: 0.15 to 0.25, as eta of 4 to 7 in SPPO
    samples: int = Field(default=5, ge=2)  # K students a prompt; paper: 5
    with_teacher: bool = True  # paper: GPT-4-Turbo writes one more answer
    floor: float = 5  # points that a chosen response must reach; paper: 5 of 6
    gap: float = 2  # points between teacher chosen and rejected; paper: 2
    student_gap: float = 1  # the same where a student is chosen; paper: 1
    replay: float = Field(default=0.3, ge=0, lt=0.5)  # of all pairs, from the round before; then half, ...; paper
    learning_rate: float = Field(default=5e-5, gt=0)  # peak; paper, as printed
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"  # TRL's DPO recipe
    batch_size: int = Field(default=64, ge=1)  # pairs; paper: 64
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["linear", "constant"] = "linear"
    max_pairs: int = Field(default=0, ge=0)  # new pairs a round, a random draw of those that were built; 0: all (paper)
    n_prompts: int = Field(default=20_000, ge=0)  # a round, at most; paper: ~20k; 0: all
    prompt_repeats: int = Field(default=0, ge=0)  # 0: every round has prompts of its own; n: all prompts n times in every round
    temperature: float = Field(default=0.7, gt=0)  # paper
    top_p: float = Field(default=0.95, gt=0, le=1)  # paper
    repeat_words: int = Field(default=4, ge=1)  # degenerate: some run of so many words ...
    repeat_limit: int = Field(default=5, ge=1)  # ... stands more often than this; ours
    max_new_tokens: int = Field(default=512, ge=1)
    max_length: int = Field(default=1024, ge=2)  # tokens of prompt and response
    max_prompt_length: int = Field(default=512, ge=1)
    test_size: int = Field(default=500, ge=1)  # held-out prompts; ours
    judge: str = ""  # real text: folder or hub id of the judge
    judge_kind: Literal["reward", "chat"] = "chat"  # paper: a model asked in words for points
    micro_batch_size: int = Field(default=0, ge=0)  # pairs held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: after each round only
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("dno", "restrictive", "spin", "shuffled")  # see ARMS
    world: dict[str, float] = Field(default_factory=dict)  # settings of the embedded world, see CyclicJudge

    PRESETS: ClassVar = {
        # The specification's small experiment; every arm takes the same optimiser steps a round.
        "tiny": {
            "rounds": 5,
            "epochs": 5,
            "eta": 1.0,
            "learning_rate": 3e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "batch_size": 96,
            "max_pairs": 576,
            "prompt_repeats": 4,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 3,
            "max_length": 16,
            "max_prompt_length": 8,
            "arms": list(ARMS),
        },
        "smoke": {
            "rounds": 2,
            "epochs": 1,
            "eta": 1.0,
            "learning_rate": 3e-4,
            "schedule": "constant",
            "warmup_ratio": 0.0,
            "batch_size": 96,
            "max_pairs": 144,
            "prompt_repeats": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 3,
            "max_length": 16,
            "max_prompt_length": 8,
            "arms": ["dno", "spin", "offline", "noisy", "soft", "shuffled"],
            "world": {"start_steps": 40},
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "rounds": 2,
            "learning_rate": 1e-5,
            "n_prompts": 200,
            "max_new_tokens": 128,
            "max_length": 512,
            "max_prompt_length": 256,
            "test_size": 100,
            "arms": ["dno", "restrictive", "spin", "shuffled"],
        },
        "smoke": {
            "rounds": 1,
            "learning_rate": 1e-5,
            "n_prompts": 16,
            "samples": 3,
            "max_new_tokens": 16,
            "max_length": 256,
            "max_prompt_length": 128,
            "test_size": 8,
            "arms": ["dno", "shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")

    def training(self, n_rows: int) -> TrainConfig:
        """Where the number of new pairs is capped, every round and arm takes the steps of a full one."""
        steps = self.epochs * -(-self.max_pairs // self.batch_size) if self.max_pairs else 0
        return TrainConfig(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            warmup_ratio=self.warmup_ratio,
            schedule=self.schedule,
            micro_batch_size=self.micro_batch_size,
            max_steps=steps,
            checkpoint_every=self.checkpoint_every,
        )


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The cyclic judge, or the prompts (and answers, as the teacher's) of a data set with a starting model and a judge.

    Raises:
        ValueError: one of model, dataset and judge without the others.
    """
    kind = "demonstration" if config.with_teacher else "prompt"
    return real.open_judged(config, CyclicJudge, model=model, dataset=dataset, device=device, kind=kind)


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: JudgedTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [evaluation after 0, 1, ... rounds]}}`."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: JudgedTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm)))


def play(task: JudgedTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 2 of the paper (Algorithm 1 with the loss "soft") for one arm and one seed."""
    policy = task.start(seed)
    first = policy if arm.fresh else task.start(seed)
    objective, options = objective_of(arm, config)
    limits = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}

    def round_pairs(policy: Policy, t: int) -> pd.DataFrame:
        if arm.fresh or t == 0:
            return build_pairs(task, policy, config, arm, seed, t, run)
        return pd.read_parquet(run.child("round-1").folder / "pairs.parquet")

    def make_round(policy: Policy, t: int) -> Round:
        part = run.child(f"round-{t + 1}")
        pairs = part.table("pairs", lambda: round_pairs(policy, t))
        reference = policy if arm.fresh else first
        part.cached("before", lambda: pair_logps(policy, pairs, **limits).tolist())
        if arm.loss in ("prct", "sft") and arm.fresh:  # the others need win rates against this very policy
            pairs = self_play.with_replay(pairs, run, t, seed=seed, share=config.replay)
        groups = pair_groups(reference, pairs, **limits)
        training = config.training(len(groups))
        if arm.loss == "sft":
            return Round([Group(g.prompt_ids, g.responses_ids[:1]) for g in groups], supervised_step, training, None)
        rows = build_rows(reference, pairs, groups, arm, seed, t)
        start = start_losses(objective, options, rows) if reference is policy and rows else None
        return Round(rows, preference_step(objective, **options), training, start)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = (
            self_play.game_numbers(task, policy, t, run)
            if isinstance(task, EnumeratedTask)
            else task.evaluate(policy, seed)
        )
        if not t:
            return numbers
        part = run.child(f"round-{t}")
        counts = read_json((part if arm.fresh else run.child("round-1")).folder / "counts.json")
        return {**numbers, **self_play.movement(policy, part, **limits), **counts}

    return iterate(policy, config.rounds, make_round, evaluate, run, seed=seed)


def objective_of(arm: Arm, config: Config) -> tuple[Any, dict[str, Any]]:
    """The arm's loss and its options; the contrastive loss is DPO's with a moving reference."""
    if arm.loss == "soft":
        return objectives.dno, {"eta": config.soft_eta * arm.scale, "reward_scale": arm.scale}
    if arm.loss == "sppo":
        return objectives.sppo, {"beta": config.soft_eta}
    return objectives.dpo, {"beta": config.eta}


def build_pairs(
    task: JudgedTask, policy: Policy, config: Config, arm: Arm, seed: int, t: int, run: Run
) -> pd.DataFrame:
    """Steps 1 to 4: K samples and the teacher's answer, points for all of them side by side, pairs by the arm's
    rule."""
    part = run.child(f"round-{t + 1}")
    prompts = prompts_of_round(task, seed, t, rounds=config.rounds, n_prompts=config.n_prompts, prompt_repeats=config.prompt_repeats)
    drawn = draw_samples(
        policy,
        prompts,
        config.samples,
        part,
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=seed * 1000 + t,
    )
    gold = teacher_answers(task, prompts, seed * 1000 + t) if config.with_teacher else [None] * len(prompts)
    candidates = []
    for texts, ids, answer in zip(drawn.responses, drawn.responses_ids, gold, strict=True):
        stuck = [not text.strip() or repeats(text, n=config.repeat_words, limit=config.repeat_limit) for text in texts]
        candidates.append(gather(policy, texts, ids, answer, room=config.max_new_tokens, stuck=stuck))
    table = self_play.stored_table(run, t) if isinstance(task, EnumeratedTask) else None
    noise = np.random.default_rng([seed, t, 8]) if arm.judgements == "noisy" else None
    judged = judge(task, prompts, candidates, table=table, noise=noise)
    rows, counts = [], Counter()
    for prompt, members, judgement in zip(drawn.prompt, candidates, judged, strict=True):
        if judgement is None:
            counts["prompts unreadable"] += 1
            continue
        rates, points = judgement
        for chosen, rejected, kind in pairs_of(members, rates, points, config, arm):
            a, b = members[chosen], members[rejected]
            rest = (kind, points[chosen], points[rejected], rates[chosen], rates[rejected], t)
            rows.append(dict(zip(COLUMNS, (prompt, a.text, b.text, a.ids, b.ids, *rest), strict=True)))
        counts["prompts without a positive"] += int(max(points) < config.floor)
    rows, dropped = keep_sound(rows, may_be_empty=("rejected",))
    counts.update({f"pairs {kind}": sum(row["kind"] == kind for row in rows) for kind in KINDS})
    counts["pairs dropped"] = sum(dropped.values())
    counts["samples degenerate"] = sum(c.is_stuck for members in candidates for c in members)
    counts["prompts without a teacher"] = sum(answer is None for answer in gold)
    if (share := counts["prompts without a positive"] / len(prompts)) > 0.8 and arm.pairs in ("margin", "restrictive"):
        log.warning(
            "round %d: no candidate of %.0f %% of the prompts reaches %g points: judge too strict or model too weak",
            t,
            100 * share,
            config.floor,
        )
    if not rows and t == 0:
        raise ValueError(
            f"round 0: no pair is left of {len(prompts)} prompts ({dict(counts)}); lower floor or gap, or draw more"
        )
    frame = pd.DataFrame(rows, columns=COLUMNS)
    size = min(len(frame), config.max_pairs or len(frame))
    drawn_rows = np.sort(np.random.default_rng([seed, t, 6]).permutation(len(frame))[:size])
    kept = frame.iloc[drawn_rows].reset_index(drop=True)
    against_teacher = counts["pairs S>T"] + counts["pairs T>S"]
    numbers: dict[str, float] = {**counts, "student_over_teacher": counts["pairs S>T"] / max(against_teacher, 1)}
    if table is not None and rows:
        numbers |= {
            "sign_accuracy": self_play.sign_accuracy(task, frame, table),
            "sign_accuracy_kept": self_play.sign_accuracy(task, kept, table),
        }
    part.cached("counts", lambda: numbers)
    return kept


def pairs_of(
    members: Sequence[Candidate], rates: Sequence[float], points: Sequence[float], config: Config, arm: Arm
) -> list[tuple]:
    """The arm's rule: places of chosen and rejected among one prompt's candidates, and who wrote them."""
    is_teacher = [c.is_teacher for c in members]
    students = [i for i, teaches in enumerate(is_teacher) if not teaches]
    if arm.pairs in ("margin", "restrictive"):
        found = margin_pairs(points, is_teacher, floor=config.floor, gap=config.gap, student_gap=config.student_gap)
        return [pair for pair in found if arm.pairs == "margin" or pair[2] == "T>S"]
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
    names = {"soft": ("first_win_rate", "second_win_rate"), "sppo": ("chosen_probs_win", "chosen_probs_lose")}.get(
        arm.loss
    )
    if names is None:
        return rows
    rates = zip(pairs.rate_chosen, pairs.rate_rejected, strict=True)
    return [row._replace(targets=dict(zip(names, pair, strict=True))) for row, pair in zip(rows, rates, strict=True)]


# ----------------------------------------------------------------------------------------------------------- claims
PAPER = {
    "C1": ("Rounds improve", "AlpacaEval 2 6.99 -> 24.97 in 3 rounds"),
    "C2": ("On-policy rounds beat offline training on the same prompts", "offline DPO 18.22, DNO 24.97"),
    "C3": ("Large-margin filtering helps", "42k filtered pairs 11.60, all 63k 9.60"),
    "C4": ("Student-over-teacher pairs matter", "SPIN 16.13, Restrictive 19.21, DNO 24.97"),
    "C5": ("The share of student-over-teacher pairs grows", "S>T 4.2k, 19.4k, 32.4k; T>S 30.7k, 20.3k, 7.1k"),
    "C6": ("Contrast beats imitation", "SFT on positives 7.96, offline DPO 18.22"),
    "C10": ("Monotone improvement, P(pi_{t+1} > pi_t) >= 1/2 + eta KL(pi_{t+1} || pi_t)", "section 3.1"),
}
BEYOND_SMALL = {
    "C7": ("Length jumps in round 1, then falls", "mean words 162, 671, 361", "needs responses whose length is free"),
    "C8": (
        "Batched rounds beat pooling everything offline",
        "Lookahead 18.28 against 24.97; MT-Bench 7.70, 7.48",
        "needs benchmarks",
    ),
    "C9": ("No harm on reasoning tasks", "Open LLM average 0.652 -> 0.668, 0.671, 0.675", "needs reasoning tasks"),
}


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control: DNO-Prct with its labels shuffled."""
    found = Claims("dno", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    for id, told in BEYOND_SMALL.items():
        found.needs_full_scale(id, *told)

    def curve(arm: str, key: str) -> np.ndarray:
        """[seed, round]; numbers of pairs begin with round 1."""
        return np.array([[numbers[key] for numbers in result["arms"][arm] if key in numbers] for result in results])

    shuffled: dict[str, Any] = {"control_is": "labels shuffled"}
    if experiment.dataset:
        for id, told in PAPER.items():
            found.needs_full_scale(id, *told, "needs a judge that nothing was trained on, and benchmarks")
        found.test(
            "H1",
            "On held-out prompts the training judge prefers the last round to the start",
            paper="not measured",
            measured=curve("dno", "quality")[:, -1] - 0.5,
            unit="win rate above one half",
            control=curve("shuffled", "quality")[:, -1] - 0.5 if "shuffled" in arms else None,
            **shuffled,
        )
        return found
    gains, control_gains = (curve(arm, "win_against_last")[:, 1:4] - 0.5 for arm in ("dno", "shuffled"))
    weakest = trends.weakest_round(gains)
    found.test(
        "C1",
        "Each of the first rounds beats the one before",
        paper=PAPER["C1"][1],
        measured=gains[:, weakest],
        control=control_gains[:, weakest],
        unit="win rate above one half",
        note=f"the weakest is round {weakest + 1}",
        also={"in every seed": gains.min() > 0},
        **shuffled,
    )
    final = {arm: curve(arm, "win_against_gold")[:, -1] for arm in arms}
    wins = "win rate against the teacher, after the last round"

    def against(id: str, statement: str, ours: str, theirs: str, flat: str = "shuffled", note: str = "") -> None:
        found.test(
            id,
            statement,
            paper=PAPER[id.split()[0]][1],
            measured=final[ours] - final[theirs],
            unit=wins,
            note=note,
            control=final[flat] - final[theirs],
            **shuffled,
        )

    if "offline" in arms:
        against("C2", "New pairs each round beat the pairs of round 1 for as many steps", "dno", "offline")
    if {"noisy", "noisy_all"} <= arms:
        right = {arm: curve(arm, "sign_accuracy")[:, 0] for arm in ("noisy", "noisy_all")}
        quality = {arm: curve(arm, "average_exploitability")[:, -1].mean() for arm in ("noisy", "noisy_all")}
        found.test(
            "C3",
            "Of noisily judged pairs, those with a margin are more often the right way round",
            paper=PAPER["C3"][1],
            measured=right["noisy"] - right["noisy_all"],
            control=curve("noisy_all", "sign_accuracy_kept")[:, 0] - right["noisy_all"],
            control_is="as many pairs at random",
            unit="share of pairs, round 1, same samples",
            note=(
                f"averaged policy's exploitability at the end: margin {quality['noisy']:.3f}, none"
                f" {quality['noisy_all']:.3f}"
            ),
        )
    for end, how, prefix in (
        ("", "points from exact win rates", ""),
        (" sampled", "points from single draws", "noisy_"),
    ):
        ours, flat = prefix.rstrip("_") or "dno", f"{prefix}shuffled"
        if not {ours, flat} <= arms:
            continue
        if {f"{prefix}restrictive", "spin"} <= arms:
            best = max((f"{prefix}restrictive", "spin"), key=lambda arm: final[arm].mean())
            means = ", ".join(
                f"{ARMS[arm].title} {final[arm].mean():.3f}" for arm in (ours, f"{prefix}restrictive", "spin")
            )
            against(
                f"C4{end}",
                f"Pairs in which the student wins take it further past its teacher; {how}",
                ours,
                best,
                flat,
                means,
            )
        shares, control = curve(ours, "student_over_teacher"), curve(flat, "student_over_teacher")
        found.test(
            f"C5{end}",
            f"{PAPER['C5'][0]}; {how}",
            paper=PAPER["C5"][1],
            measured=shares[:, -1] - shares[:, 0],
            control=control[:, -1] - control[:, 0],
            unit="of pairs with the teacher, last round minus first",
            also={"Spearman > 0 in every seed": trends.rank_correlations(shares).min() > 0},
            **shuffled,
        )
    if {"offline", "sft"} <= arms:
        against(
            "C6",
            "Offline contrast on the pairs of round 1 beats imitating the chosen responses of every round",
            "offline",
            "sft",
        )
    if "soft" in arms:
        eta = experiment.config.soft_eta
        slack, control = (
            curve(arm, "win_against_last")[:, 1:4] - 0.5 - eta * curve(arm, "kl_to_last")[:, 1:4]
            for arm in ("soft", "shuffled")
        )
        weakest = trends.weakest_round(slack)
        found.test(
            "C10",
            PAPER["C10"][0],
            paper=PAPER["C10"][1],
            measured=slack[:, weakest],
            control=control[:, weakest],
            unit="left side minus right side, soft DNO",
            note=f"the weakest is round {weakest + 1}",
            also={"in every seed and round": slack.min() > 0},
            **shuffled,
        )
    return found
