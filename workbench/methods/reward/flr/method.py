"""FLR: follow-up likelihood as reward. A response is good if what a pleased user would say next is likely behind it.

Needs no preferences. With phrases F+ of a pleased and F- of an annoyed user, and a model pi as scorer,

    FLR(x, y) = mean_{f in F+} l(f | x, y) - mean_{f in F-} l(f | x, y),    l(f | x, y) = 1/|f| sum_t log pi(f_t | x, y,
    f_<t)

averaged over dimensions; f stands as the user's next turn and only its words are scored. The reward ranks responses,
and it mines
pairs: of K samples to a prompt the one with the highest score is chosen, the one with the lowest rejected, and the
policy learns from them by DPO, KTO or SFT. A scorer tuned on dialogues with written feedback, in which the roles are
swapped (the assistant asks, the user answers, the assistant says what it thinks), is scored in the same layout and
takes the place of the first.

Source: Zhang et al. 2024, "Aligning Language Models Using Follow-up Likelihood as Reward Signal", arXiv 2409.13948;
official code e0397123/FLR; ancestor Mehri and Eskenazi 2020 (FED).

Where this differs from the official code, and why:
- likelihoods, as the paper describes (there: the mean raw logit of the start token and all words of a phrase at one
  position, which is here as `statistic="official_raw_logit"`);
- a history that does not alternate is an error (there: its first utterance is lost);
- all phrases of a response are branches behind one conversation, which is read once (there: one pass a phrase);
- phrases of our own, ten of each polarity for six dimensions.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.data import prompt_of
from workbench.feedback.pairs import best_and_worst
from workbench.feedback.samples import draw_samples
from workbench.kernels import Group, sample
from workbench.methods.reward.flr.follow_ups import Scored, length_bias
from workbench.methods.reward.flr.reward import FollowUpText, policy_of, ranking_test, score_rows
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import FollowUpTask
from workbench.training.loop import TrainConfig
from workbench.training.pair_rows import pair_groups
from workbench.training.reference import pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step, supervised_step
from workbench.worlds.target_and_distractor import Listener

log = logging.getLogger(__name__)

SYSTEM_DRAWS = 4  # samples of each prompt behind a system's mean FLR


@dataclass(frozen=True)
class Arm:
    """One way to use the reward. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "ranking" trains nothing and tests the reward on pairs.
        reward: whose FLR mines the pairs: the start's, that of the scorer tuned on feedback, or of one tuned on
            feedback that was dealt to other rows.
        labels: "inverted" takes the worst for the best; "shuffled" swaps the sides of half of the pairs.
        rate: factor on the learning rate.
    """

    title: str
    learns: Literal["pairs", "single", "chosen", "ranking"] = "pairs"
    reward: Literal["flr", "tuned", "mistuned"] = "flr"
    labels: Literal["true", "inverted", "shuffled"] = "true"
    rate: float = 1.0


ARMS: dict[str, Arm] = {
    "ranking": Arm("ranking test", "ranking"),
    "dpo_flr": Arm("DPO on FLR pairs"),
    "dpo_tuned": Arm("DPO, tuned scorer", reward="tuned"),
    "sft_flr": Arm("SFT on chosen", "chosen"),
    "sft_tuned": Arm("SFT on chosen, tuned scorer", "chosen", reward="tuned"),
    "kto_flr": Arm("KTO on FLR pairs", "single"),
    "dpo_fast": Arm("DPO on FLR pairs, rate x 3", rate=3.0),
    "dpo_inverted": Arm("DPO, reward inverted", labels="inverted"),
    "dpo_shuffled": Arm("DPO, sides shuffled", labels="shuffled"),
    "dpo_mistuned": Arm("DPO, scorer tuned on shuffled feedback", reward="mistuned"),
}
SYSTEMS = [arm for arm in ARMS if arm != "ranking"]


@strict
class Config(Presets):
    """Defaults are the paper's or the read-me's where they give one."""

    dimensions: list[str] = Field(default_factory=list)  # of the phrases; empty: all (code: six; a review names three)
    phrases: int = Field(default=0, ge=0)  # of each polarity and dimension; 0: all (paper: 10)
    statistic: Literal["mean", "sum", "official_raw_logit"] = "mean"  # paper; the released script computes the last
    samples: int = Field(default=8, ge=2)  # K, a prompt; read-me
    temperature: float = Field(default=0.7, gt=0)  # read-me
    top_p: float = Field(default=0.9, gt=0, le=1)  # read-me
    max_new_tokens: int = Field(default=2048, ge=1)  # read-me
    max_length: int = Field(default=0, ge=0)  # tokens of a scored conversation; 0: the model's window
    min_margin: float = Field(default=0.0, ge=0)  # nats; pairs that the reward holds further apart are kept; ours: all
    n_prompts: int = Field(default=5_000, ge=0)  # prompts mined; read-me: shards of 5,000; 0: all
    beta: float = Field(default=0.1, gt=0)  # 1/nat; not stated, the external trainer's default
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; not stated, usual for DPO on all weights
    epochs: int = Field(default=1, ge=1)  # not stated
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    batch_size: int = Field(default=64, ge=1)  # pairs; not stated
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # the external trainer's usual one
    tuning_rate: float = Field(default=1e-5, gt=0)  # of the scorer on feedback; not stated
    tuning_batch: int = Field(default=64, ge=1)  # dialogues
    tuned_layout: Literal["swapped", "next_turn"] = "swapped"  # read-me: roles swapped
    scorer: str = ""  # real text: folder or hub id of the scorer; empty: the policy at its start
    feedback: str = ""  # real text: rows with prompt, response and feedback in words, to tune the scorer on
    test_size: int = Field(default=500, ge=1)  # held-out pairs; ours
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed(*ARMS)
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Listener

    PRESETS: ClassVar = {
        # The specification's small experiment.
        "tiny": {
            "max_new_tokens": 6,
            "max_steps": 80,
            "batch_size": 32,
            "learning_rate": 1e-4,
            "tuning_rate": 1e-3,
            "tuned_layout": "next_turn",  # what the small experiment tunes on; the ranking test tries swapped roles too
        },
        "smoke": {
            "max_new_tokens": 6,
            "max_steps": 3,
            "batch_size": 8,
            "learning_rate": 1e-4,
            "tuning_rate": 1e-3,
            "samples": 3,
            "world": {"start_steps": 8, "feedback_steps": 2, "n_pairs": 20, "repetitions": 1, "draws": 2},
            "arms": ["ranking", "dpo_flr", "dpo_tuned", "dpo_shuffled"],
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "max_new_tokens": 128,
            "max_length": 512,
            "n_prompts": 200,
            "learning_rate": 1e-5,
            "batch_size": 16,
            "test_size": 100,
            "phrases": 5,
            "dimensions": ["understanding", "engagingness", "following"],
            "arms": ["ranking", "dpo_flr", "dpo_shuffled"],
        },
        "smoke": {
            "max_new_tokens": 8,
            "max_length": 256,
            "n_prompts": 4,
            "samples": 3,
            "learning_rate": 1e-5,
            "batch_size": 4,
            "max_steps": 2,
            "test_size": 6,
            "phrases": 2,
            "dimensions": ["following"],
            "arms": ["ranking", "dpo_flr", "dpo_shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """Target and distractor with a listener, or the pairs of a data set with a starting model.

    Raises:
        ValueError: one of model and dataset without the other; arms with a tuned scorer without feedback.
    """
    if not dataset and not model:
        world: dict[str, Any] = dict(config.world)
        return Listener(device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    if not config.feedback and (tuned := [arm for arm in config.arms if ARMS[arm].reward != "flr"]):
        raise ValueError(
            f"arms {tuned} need a scorer tuned on feedback in words: give `feedback`, or leave them out of `arms`"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    task = FollowUpText(
        dataset,
        model,
        kind="preference",
        device=device,
        test_size=config.test_size,
        max_length=config.max_length,
        max_new_tokens=config.max_new_tokens,
        lora=lora,
        precision=config.precision,
    )
    task.feedback_source = config.feedback
    return task


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: FollowUpTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}}`; the ranking test has one entry."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: FollowUpTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), run.child("shared")))


def play(
    task: FollowUpTask, config: Config, arm: Arm, seed: int, run: Run, shared: Run | None = None
) -> list[dict[str, float]]:
    """One arm: samples of the start, their rewards, pairs, one round of training.

    Args:
        shared: where what several arms of a seed need is kept: samples, pairs and tuned scorers.
    """
    shared = shared or run
    if arm.learns == "ranking":
        return [ranking_test(task, config, seed, run, shared)]
    judges = {"flr": "flr", **({"flr_deaf": "deaf"} if hasattr(task, "deaf") else {})}
    models = {name: policy_of(task, config, scorer, seed, shared) for name, scorer in judges.items()}

    def make_round(policy: Policy, t: int) -> Round:
        pairs = mined_pairs(task, config, arm.reward, seed, shared)
        groups = pair_groups(policy, pairs, max_length=config.max_length, max_prompt_length=0)
        rng = np.random.default_rng([seed, 5])
        swap = np.full(len(groups), arm.labels == "inverted") | (
            rng.random(len(groups)) < 0.5 * (arm.labels == "shuffled")
        )
        groups = [
            Group(g.prompt_ids, g.responses_ids[::-1] if s else g.responses_ids)
            for g, s in zip(groups, swap, strict=True)
        ]
        training = TrainConfig(
            learning_rate=arm.rate * config.learning_rate,
            epochs=config.epochs,
            max_steps=config.max_steps,
            batch_size=config.batch_size,
            schedule=config.schedule,
            checkpoint_every=config.checkpoint_every,
        )
        if arm.learns == "chosen":
            return Round([Group(g.prompt_ids, g.responses_ids[:1]) for g in groups], supervised_step, training, None)
        loss_type, start_loss = ("kto_pair", 1.0) if arm.learns == "single" else ("sigmoid", math.log(2))
        step = preference_step(objectives.dpo, beta=config.beta, loss_type=loss_type)
        return Round(pair_rows(policy, [f"pair {i}" for i in range(len(groups))], groups), step, training, start_loss)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        prompts = task.prompts("test", seed)
        drawn = sample(policy, prompts, n=SYSTEM_DRAWS, max_new_tokens=task.max_new_tokens, seed=20_000 + seed).texts
        rows = [
            {"prompt": p, "response": text}
            for p, texts in zip(prompts, drawn, strict=True)
            for text in texts
            if text.strip()
        ]
        numbers = (
            {
                name: float(score_rows(task, config, scorer, seed, shared, rows, policy=models[name]).flr.mean())
                for name, scorer in judges.items()
            }
            if rows
            else {}
        )
        return {**task.evaluate(policy, seed), **numbers}

    return iterate(task.start(seed), 1, make_round, evaluate, run, seed=seed)


# ------------------------------------------------------------------------------------------------------------- mining
def mined_pairs(task: FollowUpTask, config: Config, reward: str, seed: int, shared: Run) -> pd.DataFrame:
    """Best and worst of K samples of the start to each prompt, with their scores, margin and the key of the scorer.

    Raises:
        ValueError: no pair is left; says why.
    """
    part = shared.child(f"pairs-{reward}")

    def mine() -> pd.DataFrame:
        prompts = task.prompts("train", seed)[: config.n_prompts or None]
        drawn = draw_samples(
            task.start(seed),
            prompts,
            config.samples,
            shared.child("samples"),
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed * 1000,
        )
        entries: Any = drawn.itertuples()
        # the same text twice is one candidate, and nothing said is none
        found = [
            (row, {text: list(ids) for text, ids in zip(row.responses, row.responses_ids, strict=True) if text.strip()})
            for row in entries
        ]
        rows = [{"prompt": prompt_of(row.prompt), "response": text} for row, texts in found for text in texts]
        scored = score_rows(task, config, reward, seed, shared, rows)
        bias = length_bias(scored.flr, [row["response"] for row in rows])
        pairs, counts = best_worst_pairs(found, scored, config.min_margin)
        longer = np.mean([len(p["chosen_ids"]) > len(p["rejected_ids"]) for p in pairs]) if pairs else 0.0
        report = {"prompts": len(prompts), "pairs": len(pairs), **counts, **bias, "chosen_is_longer": float(longer)}
        part.cached("report", lambda: report)
        if not pairs:
            raise ValueError(
                f"no pair is left of {len(prompts)} prompts ({dict(counts)}); raise temperature or samples"
            )
        return pd.DataFrame(pairs)

    return part.table("pairs", mine)


def best_worst_pairs(
    found: Sequence[tuple[Any, dict]], scored: Scored, min_margin: float
) -> tuple[list[dict], Counter]:
    """One pair a prompt from its different samples; prompts whose samples are all the same, or all score the same, are
    skipped."""
    pairs, counts, at = [], Counter(), 0
    for row, texts in found:
        values, names, at = scored.flr[at : at + len(texts)], list(texts), at + len(texts)
        if len(names) < 2 or np.ptp(values) == 0:
            counts["samples all the same" if len(names) < 2 else "scores all the same"] += 1
            continue
        best, worst = (int(place[0]) for place in best_and_worst(values[None]))
        if values[best] - values[worst] <= min_margin:
            counts["margin too small"] += 1
            continue
        pairs.append(
            {
                "prompt": row.prompt,
                "chosen": names[best],
                "rejected": names[worst],
                "chosen_ids": texts[names[best]],
                "rejected_ids": texts[names[worst]],
                "chosen_score": values[best],
                "rejected_score": values[worst],
                "margin": values[best] - values[worst],
                "key": scored.key,
            }
        )
    return pairs, counts


# ----------------------------------------------------------------------------------------------------------- claims
UNSEEN = "tables not available"
BEYOND_SMALL = {
    "C2": (
        "Without labels FLR agrees with human ratings like strong reward models",
        UNSEEN,
        "needs rated responses and a trained reward model; the correlation with planted quality stands in the results",
    ),
}
IN_THE_WORLD = {
    "C1": (
        "Without labels FLR ranks pairs right, more than 0.7 of them",
        "on a par with strong reward models on 8 pair sets; " + UNSEEN,
    ),
    "C3": ("Pairs mined with FLR raise the policy by 0.1 or more", "more helpful; " + UNSEEN),
    "C4": ("Tuning the scorer on written feedback raises its accuracy by 0.05 or more", "better ranking; " + UNSEEN),
    "C4 policy": ("... and raises the policy that learns from its pairs", "better policy; " + UNSEEN),
    "C5": ("Mean FLR ranks systems, Spearman above 0.8", "30 models against an arena's Elo"),
    "C6": ("Five phrases are better than one", "ablation; from memory"),
}
HEARD = (
    0.7,
    0.05,
    0.1,
    0.8,
)  # the specification's: accuracy of FLR, gain by tuning, gain of the policy, correlation of systems


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control. Quality: share of right symbols in
    samples."""
    found = Claims("flr", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    for id, told in BEYOND_SMALL.items():
        found.needs_full_scale(id, *told)

    def ranked(key: str) -> np.ndarray:
        return np.array([result["arms"]["ranking"][0][key] for result in results])

    def gain(arm: str, key: str = "quality") -> np.ndarray:
        return np.array([result["arms"][arm][1][key] - result["arms"][arm][0][key] for result in results])

    if experiment.dataset:
        return _claims_on_text(found, ranked, gain, arms)
    accuracy, policy, tuning, systems = HEARD[0], HEARD[2], HEARD[1], HEARD[3]
    share, right = "of right symbols in samples", "of pairs"

    def test(id: str, **options: Any) -> None:
        statement, paper = IN_THE_WORLD[id]
        found.test(id, statement, paper=paper, **options)

    if "ranking" in arms:
        flr, deaf, own = ranked("flr"), ranked("deaf"), ranked("own_likelihood")
        test(
            "C1",
            measured=flr - accuracy,
            control=deaf - accuracy,
            control_is="a listener who does not listen",
            unit=f"{right}, above 0.7",
            also={"above the model's own likelihood in every seed": bool((flr > own).all())},
            note=(
                f"FLR {flr.mean():.2f}, own likelihood {own.mean():.2f}, positive phrases only"
                f" {ranked('flr_positive').mean():.2f}, raw logits {ranked('flr_official_raw_logit').mean():.2f};"
                " parity with a trained reward model is not tested"
            ),
        )
        test(
            "C4",
            measured=ranked("tuned") - flr,
            control=ranked("mistuned") - flr,
            control_is="tuned on shuffled feedback",
            margin=tuning,
            unit=right,
            note=f"tuned {ranked('tuned').mean():.2f}, raw logits {ranked('tuned_official_raw_logit').mean():.2f}"
            + (
                f", roles swapped {ranked('swapped').mean():.2f}"
                if "swapped" in results[0]["arms"]["ranking"][0]
                else ""
            ),
        )
        calmer = ranked("flr_half_phrases_sd").mean() < ranked("flr_one_phrase_sd").mean()
        test(
            "C6",
            measured=flr - ranked("flr_one_phrase"),
            control=deaf - ranked("deaf_one_phrase"),
            control_is="a listener who does not listen",
            unit=right,
            also={"larger subsets of phrases vary less": bool(calmer)},
        )
        found.test(
            "W1",
            "With a listener who does not listen FLR knows nothing",
            paper="not measured",
            direction="equivalent",
            margin=0.05,
            measured=deaf - 0.5,
            control=flr - 0.5,
            control_is="the weak listener",
            unit="accuracy above one half",
        )
    if {"dpo_flr", "dpo_shuffled"} <= arms:
        test(
            "C3",
            measured=gain("dpo_flr"),
            control=gain("dpo_shuffled"),
            control_is="sides shuffled",
            margin=policy,
            unit=share,
        )
    if {"dpo_flr", "dpo_tuned", "dpo_mistuned"} <= arms:
        test(
            "C4 policy",
            measured=gain("dpo_tuned") - gain("dpo_flr"),
            control=gain("dpo_mistuned") - gain("dpo_flr"),
            control_is="tuned on shuffled feedback",
            unit=share,
        )
    if {"dpo_flr", "dpo_inverted"} <= arms:
        found.test(
            "W2",
            "With the reward inverted the policy ends below its start",
            paper="not measured",
            direction="less",
            measured=gain("dpo_inverted"),
            control=gain("dpo_flr"),
            control_is="reward as it is",
            unit=share,
        )
    if set(SYSTEMS) <= arms:
        test(
            "C5",
            measured=over_systems(results, "flr") - systems,
            control=over_systems(results, "flr_deaf") - systems,
            control_is="scored with a listener who does not listen",
            unit="rank correlation over policies, above 0.8",
        )
    return found


def over_systems(results: Sequence[dict], key: str) -> np.ndarray:
    """Spearman's correlation, over the start and the trained policies, of their mean score with their quality; one a
    seed."""
    from scipy import stats

    found = []
    for result in results:
        ends = [result["arms"][SYSTEMS[0]][0], *(result["arms"][arm][1] for arm in SYSTEMS)]
        both: Any = stats.spearmanr([end[key] for end in ends], [end["quality"] for end in ends])
        found.append(0.0 if math.isnan(both.statistic) else both.statistic)
    return np.array(found)


def _claims_on_text(found: Claims, ranked: Any, gain: Any, arms: set[str]) -> Claims:
    """On real text: does FLR order held-out pairs, and do policies trained on its pairs score higher by it?"""
    for id, (statement, paper) in IN_THE_WORLD.items():
        found.needs_full_scale(id, statement, paper, "needs chat models that hear their users, and their benchmarks")
    if "ranking" in arms:
        found.test(
            "H1",
            "FLR orders held-out pairs better than chance",
            paper=UNSEEN,
            measured=ranked("flr") - 0.5,
            control=ranked("own_likelihood") - 0.5,
            control_is="the model's own likelihood",
            unit="accuracy above one half",
        )
    if {"dpo_flr", "dpo_shuffled"} <= arms:
        found.test(
            "H2",
            "DPO on FLR pairs raises the mean FLR of answers",
            paper="not measured",
            measured=gain("dpo_flr", "flr"),
            control=gain("dpo_shuffled", "flr"),
            control_is="sides shuffled",
            unit="nats a token",
        )
    return found
