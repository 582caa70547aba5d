"""PRO: preference ranking optimisation. The mean log-probability of the answers to a prompt is made to follow their
scores.

Needs lists of two or more answers with scores; no reference, critic or second stage. With s_k the mean log-probability
a token of answer k, answers from best to worst and scores R, minimise

    L = -sum_{k<n} log [ exp(s_k d_kk) / (exp(s_k d_kk) + sum_{i>k} exp(s_i d_ki)) ] - w (n-1)^2 log pi(y_1 | x)

where d_ki = R_k - R_i is the inverse temperature of a negative and d_kk = max_i d_ki that of the positive. At step k
answer k is the positive, all worse ones are negatives and the better ones are left out.

Source: Song, Yu, Li, Yu, Huang, Li, Wang 2024, "Preference Ranking Optimization for Human Alignment", arXiv 2306.17492,
eq. 4 to 8; official code AlibabaResearch/DAMO-ConvAI, folder PRO.

Where this differs from the official code, and why:
- every answer ends with one scored end token (there: none is appended, but a padded answer is scored on one padding
  token, which is the same id, and the longest of a batch on none);
- lists are sorted and checked (there: an unsorted list silently turns the contrast round);
- lists of different lengths share a batch by a mask (there: one length a run);
- the chat template is the tokenizer's (there: "Human:" and "Assistant:" in plain text);
- BLEU by words beside BLEU by characters, which is what the official routine computes.

Baselines under the same budget of lists and steps: SFT on the best of 2 (SFT) or of 5 answers (BoN); RRHF, a hinge on
pairs that stand wrongly; chain of hindsight (CoH): each list becomes a dialogue in which a bad and a good answer are
asked for by name, in random order, and the policy is later asked for a good one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.data import Row
from workbench.kernels import Group, sample
from workbench.methods.align.pro.lists import (
    RankedText,
    agreement,
    as_lists,
    cleaned,
    list_step,
    list_table,
    mean_logps,
    mean_reward,
    rank_rows,
    relabelled,
)
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.stats.trends import slopes
from workbench.tasks.protocols import RankingTask
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig
from workbench.training.rounds import Round, iterate
from workbench.training.steps import supervised_step
from workbench.worlds.target_and_distractor import TargetAndDistractor

log = logging.getLogger(__name__)

HINTS = ("Give a bad answer.", "Give a good answer.")  # of chain of hindsight, where the task has no words of its own


@dataclass(frozen=True)
class Arm:
    """One way to train on lists. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "lists" (PRO), "hinge" (RRHF), "best" (SFT on the best answer), "chain" (chain of hindsight).
        n: answers taken of each list; 0 takes all.
        scores: "shuffled" deals the scores of a list anew, "reversed" makes the worst the best.
        temperature: False is the loss without reward gaps.
        sft_weight: below 0 takes the configuration's.
    """

    title: str
    learns: Literal["lists", "hinge", "best", "chain"] = "lists"
    n: int = 0
    scores: Literal["true", "shuffled", "reversed"] = "true"
    temperature: bool = True
    sft_weight: float = -1.0


ARMS: dict[str, Arm] = {
    "pro_2": Arm("PRO, 2 answers", n=2),
    "pro_3": Arm("PRO, 3 answers", n=3),
    "pro_5": Arm("PRO, 5 answers", n=5),
    "sft_2": Arm("SFT on the best of 2", "best", n=2),
    "bon_5": Arm("SFT on the best of 5 (BoN)", "best", n=5),
    "rrhf_2": Arm("RRHF, 2 answers", "hinge", n=2),
    "rrhf_5": Arm("RRHF, 5 answers", "hinge", n=5),
    "coh_2": Arm("chain of hindsight, 2 answers", "chain", n=2),
    "plain_5": Arm("PRO without temperatures", n=5, temperature=False),
    "no_sft_5": Arm("PRO without SFT term", n=5, sft_weight=0.0),
    "shuffled_2": Arm("PRO, 2 answers, scores shuffled", n=2, scores="shuffled"),
    "shuffled_3": Arm("PRO, 3 answers, scores shuffled", n=3, scores="shuffled"),
    "shuffled_5": Arm("PRO, 5 answers, scores shuffled", n=5, scores="shuffled"),
    "reversed_5": Arm("PRO, 5 answers, ranking reversed", n=5, scores="reversed"),
    "pro": Arm("PRO, all answers"),
    "bon": Arm("SFT on the best answer", "best"),
    "rrhf": Arm("RRHF, all answers", "hinge"),
    "shuffled": Arm("PRO, scores shuffled", scores="shuffled"),
}


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one, else the official code's."""

    epochs: int = Field(default=2, ge=1)  # paper: 2
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    learning_rate: float = Field(default=5e-6, gt=0)  # paper
    schedule: Literal["constant", "linear"] = "constant"  # official code builds no scheduler
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)  # the same
    batch_size: int = Field(default=112, ge=1)  # lists; official launcher: 2 x 7 GPUs x 8
    sft_weight: float = Field(default=0.05, ge=0)  # w, times (n-1)^2; paper
    eps: float = Field(default=1e-10, ge=0)  # inside the logarithm; official code, not in the paper
    rank_weight: float = Field(default=1.0, ge=0)  # of RRHF's hinge; its paper
    max_length: int = Field(default=512, ge=2)  # tokens of prompt and answer; official code (720 for summaries)
    answer_room: int = Field(default=128, ge=1)  # tokens that a long prompt leaves; official code
    max_new_tokens: int = Field(default=128, ge=1)  # greedy answers; paper (64 for summaries)
    select_every: int = Field(
        default=600, ge=0
    )  # steps between looks at the dev reward, the best is kept; 0: keep the last
    dev_size: int = Field(default=280, ge=1)  # dev prompts; official code
    test_size: int = Field(default=500, ge=1)  # held-out lists; ours
    n_lists: int = Field(default=0, ge=0)  # training lists; 0: all
    strict: bool = False  # refuse unsorted lists instead of sorting them
    judge: str = ""  # real text: reward model that scores the answers anew, and the dev answers
    evaluation_judge: str = ""  # real text: another, larger reward model that scores held-out answers
    candidates_at_once: int = Field(
        default=0, ge=0
    )  # answers of a list held at once, computed again in backward; 0: all
    micro_batch_size: int = Field(default=0, ge=0)  # lists held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    arms: list[str] = listed("pro", "bon", "rrhf", "shuffled")  # see ARMS
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see TargetAndDistractor

    PRESETS: ClassVar = {
        # The specification's small experiment.
        "tiny": {
            "max_steps": 120,
            "batch_size": 16,
            "learning_rate": 5e-4,
            "max_length": 64,
            "answer_room": 10,
            "max_new_tokens": 8,
            "select_every": 0,
            "arms": [arm for arm in ARMS if arm[-1].isdigit()],
        },
        "smoke": {
            "max_steps": 4,
            "batch_size": 8,
            "learning_rate": 5e-4,
            "max_length": 64,
            "answer_room": 10,
            "max_new_tokens": 8,
            "select_every": 2,
            "candidates_at_once": 2,
            "world": {"start_steps": 8, "n_rows": 40, "draws": 2},
            "arms": ["pro_2", "pro_5", "sft_2", "coh_2", "shuffled_2"],
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "learning_rate": 3e-5,
            "batch_size": 32,
            "n_lists": 400,
            "test_size": 100,
            "dev_size": 50,
            "select_every": 0,
        },
        "smoke": {
            "max_steps": 2,
            "learning_rate": 3e-5,
            "batch_size": 4,
            "n_lists": 8,
            "test_size": 6,
            "dev_size": 4,
            "max_length": 256,
            "max_new_tokens": 16,
            "select_every": 0,
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")
        if self.answer_room >= self.max_length:
            raise ValueError(
                f"answer_room={self.answer_room} leaves no token of {self.max_length} for a prompt; lower it or raise"
                " max_length"
            )


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """Target and distractor, or the lists of a data set with a starting model.

    Raises:
        ValueError: one of model and dataset without the other; a dev reward without a judge.
    """
    if not dataset and not model:
        world: dict[str, Any] = dict(config.world)
        return TargetAndDistractor(device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    if config.select_every and not config.judge:
        raise ValueError(
            f"select_every={config.select_every} keeps the checkpoint with the best dev reward and needs a reward"
            " model: give judge (and, for the numbers, another evaluation_judge), or set select_every=0"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    task = RankedText(
        dataset,
        model,
        kind="ranking",
        device=device,
        test_size=config.test_size + config.dev_size,
        train_size=config.n_lists,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        lora=lora,
        precision=config.precision,
        judge=config.judge,
    )
    task.evaluation_judge, task.dev_size = config.evaluation_judge, config.dev_size
    return task


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: RankingTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}}`."""
    return {"arms": {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}}


def run_arm(task: RankingTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm)))


def play(task: RankingTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: lists in order, one round of training, the best policy by dev reward, numbers before and after."""
    hints = getattr(task, "hints", HINTS)
    ask = partial(with_hint, hint=hints[1]) if arm.learns == "chain" else partial(with_hint, hint="")
    limits = {"max_length": config.max_length, "answer_room": config.answer_room}
    test, _ = as_lists(task.rankings("test", seed))
    held_out = rank_rows(task.start(seed), [{**row, "prompt": ask(row["prompt"])} for row in test], **limits)
    part = run.child("round-1")

    def make_round(policy: Policy, t: int) -> Round:
        lists, counts = as_lists(task.rankings("train", seed), n=arm.n, strict=config.strict)
        run.cached("counts", lambda: {"lists": len(lists), **counts})
        if arm.scores != "true":
            lists = relabelled(lists, arm.scores, seed)
        n, at_once = max(len(row["responses"]) for row in lists), config.candidates_at_once
        weight = config.sft_weight if arm.sft_weight < 0 else arm.sft_weight
        settings = {"sft_weight": weight, "temperature": arm.temperature, "eps": config.eps}
        watch = (
            partial(keep_best, task=task, config=config, seed=seed, part=part, ask=ask) if config.select_every else None
        )
        if arm.learns == "best":
            rows = [
                Group(row.group.prompt_ids, row.group.responses_ids[:1]) for row in rank_rows(policy, lists, **limits)
            ]
            return Round(rows, supervised_step, training_of(config), None, watch)
        if arm.learns == "chain":
            rows = chains(policy, lists, config, hints, seed)
            return Round(rows, supervised_step, training_of(config, rows_a_list=2), None, watch)
        hinge = partial(objectives.rrhf, rank_weight=config.rank_weight)
        objective = hinge if arm.learns == "hinge" else partial(objectives.pro, **settings)
        rows = rank_rows(policy, lists, **limits)
        if policy.counts["prompts_cut"]:
            log.warning("%d of %d prompts were cut on the left to fit", policy.counts["prompts_cut"], len(rows))
        return Round(rows, list_step(objective, n=n, at_once=at_once), training_of(config), None, watch)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if t and (part.folder / "best.safetensors").is_file():
            load_weights(policy.model, part.folder / "best.safetensors")
            save_weights(policy.model, part.folder / "weights.safetensors")
        values = mean_logps(policy, held_out)
        before = run.cached("held_out_before", lambda: values)
        if t:
            run.table("held_out_lists", lambda: list_table(test, before, values))
        return {**task.evaluate(policy, seed, ask), "agreement": agreement(values, held_out)}

    return iterate(task.start(seed), 1, make_round, evaluate, run, seed=seed)


def training_of(config: Config, rows_a_list: int = 1) -> TrainConfig:
    return TrainConfig(
        learning_rate=config.learning_rate,
        epochs=config.epochs,
        batch_size=rows_a_list * config.batch_size,
        max_steps=config.max_steps,
        schedule=config.schedule,
        warmup_ratio=config.warmup_ratio,
        micro_batch_size=config.micro_batch_size,
        checkpoint_every=config.checkpoint_every,
    )


def with_hint(prompt: Any, hint: str) -> Any:
    """The prompt with a few words behind its last turn."""
    if not hint:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt} {hint}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']} {hint}"}]


def chains(policy: Policy, lists: Sequence[Row], config: Config, hints: tuple[str, str], seed: int) -> list[Group]:
    """Chain of hindsight: the worst and the best answer of a list asked for by name, one after the other, in random
    order.

    Two rows a list: the first answer, and the second one behind the first. Hints are context and are not learned.
    """
    rng, rows = np.random.default_rng([seed, 6]), []
    for row in lists:
        sides = [(hints[0], row["responses"][-1]), (hints[1], row["responses"][0])]
        (hint, first), (next_hint, second) = sides if rng.random() < 0.5 else sides[::-1]
        asked = with_hint(row["prompt"], hint)
        chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        chat += [{"role": "assistant", "content": first}, {"role": "user", "content": next_hint}]
        rows += [
            policy.group(asked, [first], max_length=config.max_length),
            policy.group(chat, [second], max_length=config.max_length),
        ]
    return rows


# ----------------------------------------------------------------------------------------------------- measurements
def keep_best(
    policy: Policy, step: int, *, task: RankingTask, config: Config, seed: int, part: Run, ask: Callable
) -> None:
    """Every `select_every` steps: greedy answers to the dev prompts, cut at the next speaker's turn, scored by the
    training reward model; the weights with the best mean sigma(reward) so far are kept."""
    if step % config.select_every:
        return
    prompts = task.prompts("validation", seed)[: config.dev_size]
    drawn = sample(policy, [ask(prompt) for prompt in prompts], temperature=0.0, max_new_tokens=config.max_new_tokens)
    reward = mean_reward(task.score(prompts, [cleaned(texts[0]) for texts in drawn.texts]))
    path = part.folder / "dev_rewards.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    earlier = [row["reward"] for row in known if row["step"] < step]  # a resumed training comes by here again
    if not earlier or reward > max(earlier):
        save_weights(policy.model, part.folder / "best.safetensors")
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "reward": reward}) + "\n")


# ----------------------------------------------------------------------------------------------------------- claims
# statement, paper's figures, and what is missing to test it here
BEYOND_SMALL = {
    "C3": (
        "With a strong source of answers the gap widens and nears it",
        "67.97 against BoN 63.83, RRHF 63.12; ChatGPT 68.48",
        "the world's answers all come from one source",
    ),
    "C5": (
        "The same on summaries",
        "89.71 (raw), 91.22 (3 answers); RRHF 83.64, 88.68",
        "needs summaries and a reward model",
    ),
    "C6": (
        "Judges prefer it",
        "GPT-4: 60.62 won, 3.75 tied, 35.63 lost against RRHF",
        "needs a judge of whole answers",
    ),
}
IN_THE_WORLD = {
    "C1": ("On pairs PRO gets more reward than SFT", "55.35 against 48.83; RRHF 52.25, CoH 45.00"),
    "C2": ("On longer lists PRO gets more reward than SFT on the best answer", "58.72 against BoN 57.66; RRHF 55.39"),
    "C4": ("BLEU does not follow reward over the methods", "CoH 24.06 BLEU and 45.00 reward, PRO 21.54 and 55.35"),
    "C7": ("Longer lists help", "curves, no figures available"),
    "C8": ("Leaving out the temperatures or the SFT term hurts", "ablation table, no figures available"),
}
METHODS = ("sft_2", "bon_5", "rrhf_2", "rrhf_5", "coh_2", "pro_2", "pro_5")  # those compared by BLEU and reward


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control. Reward: of samples on held-out prompts."""
    found = Claims("pro", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])
    for id, told in BEYOND_SMALL.items():
        found.needs_full_scale(id, *told)

    def after(arm: str, key: str = "quality") -> np.ndarray:
        return np.array([result["arms"][arm][1][key] for result in results])

    def start(key: str = "quality") -> np.ndarray:
        return np.array([next(iter(result["arms"].values()))[0][key] for result in results])

    if experiment.dataset:
        return _claims_on_text(found, after, start, arms)

    def compare(id: str, arm: str, other: str, control: str, statement: str = "") -> None:
        if {arm, other, control} <= arms:
            found.test(
                id,
                statement or IN_THE_WORLD[id][0],
                paper=IN_THE_WORLD[id.split()[0]][1],
                measured=after(arm) - after(other),
                control=after(control) - after(other),
                control_is="scores shuffled",
                unit="reward",
                note=f"{after(arm).mean():+.2f} against {after(other).mean():+.2f}",
            )

    compare("C1", "pro_2", "sft_2", "shuffled_2")
    compare("C1 rrhf", "pro_2", "rrhf_2", "shuffled_2", "On pairs PRO gets more reward than RRHF")
    compare("C1 coh", "pro_2", "coh_2", "shuffled_2", "On pairs PRO gets more reward than chain of hindsight")
    compare("C2", "pro_5", "bon_5", "shuffled_5")
    compare("C2 rrhf", "pro_5", "rrhf_5", "shuffled_5", "On longer lists PRO gets more reward than RRHF")
    compare("C8 sft", "pro_5", "no_sft_5", "shuffled_5", "Leaving out the SFT term costs reward")
    compare("C8 temperature", "pro_5", "plain_5", "shuffled_5", "Leaving out the temperatures costs reward")
    if set(METHODS) <= arms:
        found.test(
            "C4",
            IN_THE_WORLD["C4"][0],
            paper=IN_THE_WORLD["C4"][1],
            direction="less",
            measured=correlations(after, "bleu_characters"),
            control=correlations(after, "bleu_right"),
            control_is="BLEU against the right answer",
            unit="rank correlation with greedy reward",
            note=f"BLEU by words {correlations(after, 'bleu_words').mean():+.2f}",
        )
    if {f"{arm}_{n}" for arm in ("pro", "shuffled") for n in (2, 3, 5)} <= arms:
        found.test(
            "C7",
            IN_THE_WORLD["C7"][0],
            paper=IN_THE_WORLD["C7"][1],
            measured=slopes(np.stack([after(f"pro_{n}") for n in (2, 3, 5)], 1)),
            control=slopes(np.stack([after(f"shuffled_{n}") for n in (2, 3, 5)], 1)),
            control_is="scores shuffled",
            unit="reward, from one length to the next",
        )
    if {"pro_2", "sft_2", "shuffled_2"} <= arms:
        order = {arm: after(arm, "agreement") for arm in ("pro_2", "sft_2", "shuffled_2")}
        found.test(
            "W1",
            "PRO orders answers of planted quality, more than 0.7 of the pairs",
            paper="not measured",
            measured=order["pro_2"] - 0.7,
            control=order["shuffled_2"] - 0.7,
            control_is="scores shuffled",
            unit="rank agreement above 0.7",
        )
        found.test(
            "W2",
            "PRO orders them better than SFT",
            paper="not measured",
            measured=order["pro_2"] - order["sft_2"],
            control=order["shuffled_2"] - order["sft_2"],
            control_is="scores shuffled",
            unit="rank agreement",
        )
    if {"reversed_5", "pro_5"} <= arms:
        found.test(
            "W3",
            "With the ranking reversed the policy ends below its start",
            paper="not measured",
            direction="less",
            measured=after("reversed_5") - start(),
            control=after("pro_5") - start(),
            control_is="ranking as it is",
            unit="reward",
        )
    return found


def correlations(after: Callable[[str, str], np.ndarray], key: str) -> np.ndarray:
    """Spearman's correlation of greedy reward and a BLEU over the methods, one a seed; 0 where one of them does not
    vary."""
    from scipy import stats

    rewards, scores = (np.stack([after(arm, name) for arm in METHODS], 1) for name in ("greedy", key))
    found = []
    for a, b in zip(rewards, scores, strict=True):
        both: Any = stats.spearmanr(a, b) if np.ptp(a) and np.ptp(b) else None
        found.append(both.statistic if both else 0.0)
    return np.array(found, float)


def _claims_on_text(found: Claims, after: Any, start: Any, arms: set[str]) -> Claims:
    """On real text no truth is planted: what can be tested is whether the order of held-out lists was learned."""
    for id, told in IN_THE_WORLD.items():
        found.needs_full_scale(id, *told, "needs a reward model that nothing was trained on, and the full budget")
    control = after("shuffled", "agreement") - start("agreement") if "shuffled" in arms else None
    found.test(
        "H1",
        "PRO orders held-out lists better than the start",
        paper="not measured",
        measured=after("pro", "agreement") - start("agreement"),
        control=control,
        control_is="scores shuffled",
        unit="rank agreement",
    )
    return found
