"""FLR: follow-up likelihood as reward. A response is good if what a pleased user would say next is likely behind it.

Needs no preferences. With phrases F+ of a pleased and F- of an annoyed user, and a language model pi as scorer,

    FLR(x, y) = mean_{f in F+} l(f | x, y) - mean_{f in F-} l(f | x, y)
    l(f | x, y) = 1/|f| sum_t log pi(f_t | x, y, f_<t)

where f stands as the user's next turn and only its words are scored. That is the likelihood of every phrase (step 1),
the difference in each dimension (2: understood, relevant, ...) and their mean (3). The reward ranks responses (4), and
it mines pairs (5): of K samples to a prompt the one with the highest score is chosen, the one with the lowest rejected.
The policy learns from them by DPO, KTO or SFT (6). A scorer may be tuned first (7), on dialogues with written feedback
in which the roles are swapped (the assistant asks, the user answers, the assistant says what it thinks); follow-ups
are then scored in the same layout, behind the last question and the response.

Source: Zhang et al. 2024, "Aligning Language Models Using Follow-up Likelihood as Reward Signal", arXiv 2409.13948;
official code e0397123/FLR; ancestor Mehri and Eskenazi 2020 (FED).

Where this differs from the official code, and why:
- likelihoods, as the paper describes (there: the mean raw logit of the begin-of-text token and all words of a phrase at
  one position, which is here as `statistic="official_raw_logit"`);
- a history that does not alternate is an error (there: its first utterance is lost);
- all phrases of a response are branches behind one conversation, which is read once (there: one pass a phrase);
- phrases of our own, ten of each polarity for six dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives, runs, tasks
from workbench.config import Field, Presets, Sampling, Source, Training, listed, strict
from workbench.data import Row, prompt_of
from workbench.feedback.samples import draw_samples
from workbench.kernels import sample, score
from workbench.methods.reward.flr.conversations import FollowUpText
from workbench.methods.reward.flr.follow_ups import FollowUps, Likelihoods, PlacedFollowUps, raw_logits_behind
from workbench.methods.reward.flr.pairs import best_worst_pairs, candidates_of
from workbench.methods.reward.flr.ranking import ranking_test
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import DeafTask, FollowUpTask
from workbench.training.drawn_pairs import pair_groups
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step, supervised_step
from workbench.worlds.target_and_distractor import Listener

DRAWS = 4  # samples of each held-out prompt behind a policy's mean FLR


@dataclass(frozen=True)
class Arm:
    """One way to use the reward. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "pairs" by DPO, "single" by KTO (its form for pairs), "chosen" by SFT; "ranking" tests the reward and
            trains nothing.
        reward: whose FLR mines the pairs: "flr", the scorer as it is; "tuned", after step 7; "mistuned", a control,
            tuned on feedback that was dealt to other rows.
        labels: "inverted" takes the worst for the best; "shuffled" swaps the sides of half of the pairs. Controls.
        lr_ratio: factor on the learning rate.
    """

    title: str
    learns: Literal["pairs", "single", "chosen", "ranking"] = "pairs"
    reward: Literal["flr", "tuned", "mistuned"] = "flr"
    labels: Literal["true", "inverted", "shuffled"] = "true"
    lr_ratio: float = 1.0
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's or the read-me's where they give one; the external trainer is theirs, LLaMA-Factory."""

    dimensions: list[str] = listed()  # of the phrases; empty: all (code: six; a public review of the paper: 3)
    phrases: int = Field(default=0, ge=0)  # of each polarity and dimension; 0: all (paper: 10)
    statistic: Literal["mean", "sum", "official_raw_logit"] = "mean"  # paper; the released script computes the last
    samples: int = Field(default=8, ge=2)  # K, a prompt; read-me
    temperature: float = Field(default=0.7, gt=0)  # read-me
    top_p: float = Field(default=0.9, gt=0, le=1)  # read-me
    max_new_tokens: int = Field(default=2048, ge=1)  # read-me
    max_length: int = Field(default=0, ge=0)  # tokens of a scored conversation; 0: the model's window
    min_margin: float = Field(default=0.0, ge=0)  # nats; only pairs with a larger margin are kept; ours: all
    n_prompts: int = Field(default=5_000, ge=0)  # prompts mined; read-me: shards of 5,000; 0: all
    beta: float = Field(default=0.1, gt=0)  # 1/nat; not stated, the external trainer's default
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; not stated, usual for DPO on all weights
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # the external trainer's
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # the external trainer's usual one
    tuning_learning_rate: float = Field(default=1e-5, gt=0)  # of the scorer, step 7; not stated
    tuning_batch: int = Field(default=64, ge=1)  # dialogues
    tuned_layout: Literal["swapped", "next_turn"] = "swapped"  # of step 7; read-me: roles swapped
    scorer: Source = ""  # real text: folder or hub id of the scorer; empty: the policy at its start
    feedback: Source = ""  # real text: rows with prompt, response and feedback in words, to tune the scorer on
    test_size: int = Field(default=500, ge=1)  # held-out pairs; ours
    arms: list[str] = listed("ranking", "dpo_flr", "dpo_shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see Listener


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """Target and distractor with a listener, or the pairs of a data set with a starting model."""

    def real() -> FollowUpText:
        if not config.feedback and (tuned := [arm for arm in config.arms if config.ARMS[arm].reward != "flr"]):
            raise ValueError(
                f"arms {tuned} need a scorer tuned on feedback in words: give `feedback`, or leave them out of `arms`"
            )
        return FollowUpText.of(config, dataset, model, device=device, feedback_rows=config.feedback)

    world: Any = partial(Listener, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


# ------------------------------------------------------------------------------------------------- steps 1 to 3: reward
class Scored(Likelihoods):
    """Steps 2 and 3: from the likelihoods l(f | x, y) of all follow-ups behind each response to its score."""

    def of_phrases(self, phrases: Any) -> np.ndarray:
        """Positive minus negative in each dimension, then the mean over dimensions, [row]; `phrases` is an index into
        those of each polarity, by which the ranking test sees how much hangs on them."""
        sides = [self.side(d, "positive", phrases) - self.side(d, "negative", phrases) for d in self.follow_ups.sets]
        return np.mean(sides, axis=0)

    @property
    def flr(self) -> np.ndarray:
        return self.of_phrases(slice(None))


@dataclass(frozen=True)
class Reward(PlacedFollowUps):
    """`reward(rows).flr` is FLR(x, y) of rows with `prompt` and `response`."""

    statistic: str = "mean"
    statistics: ClassVar = {  # what l(f | x, y) is, for all phrases of some conversations, [row, phrase]
        "mean": lambda scorer, groups: score(scorer, groups).means,  # log-likelihood a token
        "sum": lambda scorer, groups: score(scorer, groups).sums,
        "official_raw_logit": raw_logits_behind,  # no likelihood
    }

    def __call__(self, rows: Sequence[Row]) -> Scored:
        """Step 1: the likelihood of every follow-up behind every response. The same row twice is scored once."""
        index, texts = pd.factorize(pd.Series([f"{row['prompt']}\n{row['response']}" for row in rows], dtype=object))
        different = [rows[int(np.argmax(index == i))] for i in range(len(texts))]  # the first row with each text
        groups, n_cut = self.groups(different)
        likelihoods = self.in_microbatches(self.statistics[self.statistic], groups)
        scale = self.key(self.statistic)  # scores with another key cannot be compared
        return Scored(self.follow_ups, likelihoods[index], scale, cut_share=n_cut / max(len(groups), 1))


def open_reward(task: FollowUpTask, config: Config, whose: str, seed: int, shared: Run) -> Reward:
    """The reward of a scorer: "flr", as it is (the start, or the configuration's); "tuned" on feedback (step 7);
    "mistuned", on feedback dealt to other rows; "swapped", tuned with roles swapped whatever `tuned_layout` says; or
    "deaf", a world's start to which users said what had nothing to do with the response."""
    follow_ups = FollowUps.of(task.follow_ups, config.dimensions, config.phrases or None)
    options: Any = {"pose": task.pose, "max_length": config.max_length, "statistic": config.statistic}
    if whose == "deaf" and isinstance(task, DeafTask):
        return Reward(task.deaf(seed), follow_ups, **options)
    if config.scorer:
        scorer = Policy.load(config.scorer, device=task.device, precision=config.precision)
    else:
        scorer = task.start(seed)
    if whose == "flr":
        return Reward(scorer, follow_ups, **options)
    reward = Reward(scorer, follow_ups, "swapped" if whose == "swapped" else config.tuned_layout, **options)

    def tune(folder: Path) -> None:
        """Step 7: supervised learning on dialogues with written feedback; only the feedback has a loss."""
        groups = []
        for row in task.feedback(seed, shuffled=whose == "mistuned"):
            before, _ = reward.before(row["prompt"], row["response"])
            groups.append(scorer.group(before, [row["feedback"]], max_length=config.max_length))
        rate, size = config.tuning_learning_rate, config.tuning_batch
        training = TrainConfig(learning_rate=rate, batch_size=size, schedule="cosine", warmup_ratio=0.02)
        train(scorer, groups, supervised_step, training, shared.child(whose), seed=seed)
        scorer.save(folder)

    folder = runs.cached_folder({"kind": whose, "code": runs.code_hash(__name__)}, tune, root=shared.folder)
    return replace(reward, scorer=Policy.load(folder, device=task.device, dtype="float32"))


# ------------------------------------------------------------------------------------- steps 4 to 6: ranking, alignment
def train_arm(task: FollowUpTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """The ranking test (step 4), or pairs that the reward mined (step 5) and one round of training (step 6)."""
    shared = run.beside("shared")  # samples, pairs and tuned scorers, which several arms of a seed need
    opened = partial(open_reward, task, config, seed=seed, shared=shared)
    deaf = ["deaf"] if isinstance(task, DeafTask) else []
    if arm.learns == "ranking":
        tuned = ["tuned", "mistuned", *(["swapped"] if config.tuned_layout != "swapped" else [])]
        names = ["flr", *deaf, *(tuned if config.feedback or deaf else [])]  # a world always has feedback
        return [ranking_test(task, {n: partial(opened, n) for n in names}, seed, run, max_length=config.max_length)]
    # by these every arm's policy is measured, whatever mined its pairs
    measures = {"flr": opened("flr"), **{f"flr_{name}": opened(name) for name in deaf}}

    def make_round(policy: Policy, t: int) -> Round:
        mined = shared.child(f"pairs-{arm.reward}")
        pairs = mined.table("pairs", lambda: mined_pairs(task, config, opened(arm.reward), seed, shared, mined))
        groups = pair_groups(policy, pairs, max_length=config.max_length, max_prompt_length=0)
        share = {"true": 0.0, "shuffled": 0.5, "inverted": 1.0}[arm.labels]
        for i in np.flatnonzero(np.random.default_rng([seed, 5]).random(len(groups)) < share):
            groups[i] = groups[i]._replace(responses_ids=groups[i].responses_ids[::-1])
        training = TrainConfig.of(config, learning_rate=arm.lr_ratio * config.learning_rate)
        if arm.learns == "chosen":
            chosen = [g._replace(responses_ids=g.responses_ids[:1]) for g in groups]
            return Round(chosen, supervised_step, training, None)
        # the loss where policy and reference are the same, as before the first update
        loss_type, start_loss = ("kto_pair", 1.0) if arm.learns == "single" else ("sigmoid", math.log(2))
        step = preference_step(objectives.dpo, beta=config.beta, loss_type=loss_type)
        return Round(pair_rows(policy, [f"pair {i}" for i in range(len(groups))], groups), step, training, start_loss)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        prompts = task.prompts("test", seed)
        drawn = sample(policy, prompts, n=DRAWS, max_new_tokens=task.max_new_tokens, seed=20_000 + seed).texts
        said = [(prompt, text) for prompt, texts in zip(prompts, drawn, strict=True) for text in texts if text.strip()]
        rows = [{"prompt": prompt, "response": text} for prompt, text in said]
        scores = {name: float(reward(rows).flr.mean()) for name, reward in measures.items()} if rows else {}
        return {**task.evaluate(policy, seed), **scores}

    return iterate(task.start(seed), 1, make_round, evaluate, run, seed=seed)


def mined_pairs(task: FollowUpTask, config: Config, reward: Reward, seed: int, shared: Run, mined: Run) -> pd.DataFrame:
    """Step 5: best and worst of K samples of the start to each prompt, with scores, margin and the key of the scale.

    Raises:
        ValueError: no pair is left; says why.
    """
    prompts = task.prompts("train", seed)[: config.n_prompts or None]
    sampling = {name: getattr(config, name) for name in ("max_new_tokens", "temperature", "top_p")}
    drawn = draw_samples(
        task.start(seed), prompts, config.samples, shared.child("samples"), seed=seed * 1000, **sampling
    )
    candidates = candidates_of(drawn)
    both = zip(drawn.prompt, candidates, strict=True)
    rows = [{"prompt": prompt_of(prompt), "response": text} for prompt, texts in both for text in texts]
    scored = reward(rows)
    pairs, report = best_worst_pairs(drawn.prompt, candidates, scored, config.min_margin)
    mined.cached("report", lambda: report)
    if not pairs:
        raise ValueError(f"no pair is left of {len(prompts)} prompts ({report}); raise temperature or samples")
    return pd.DataFrame(pairs)
