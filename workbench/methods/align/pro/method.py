"""PRO: preference ranking optimisation. The mean log-probability of the answers to a prompt follows their scores.

Needs lists of two or more answers with scores; no reference, critic or second stage. With s_k the mean log-probability
a token of answer k, answers from best to worst and scores R, minimise

    L = -sum_{k<n} log [ exp(s_k d_kk) / (exp(s_k d_kk) + sum_{i>k} exp(s_i d_ki)) ] - w (n-1)^2 log pi(y_1 | x)

where d_ki = R_k - R_i is the inverse temperature of a negative and d_kk = max_i d_ki that of the positive. At step k
answer k is the positive, all worse ones are negatives and the better ones are left out.

Source: Song, Yu, Li, Yu, Huang, Li, Wang 2024, "Preference Ranking Optimization for Human Alignment", arXiv 2306.17492,
eq. 4 to 8; official code AlibabaResearch/DAMO-ConvAI, folder PRO.

Where this differs from the official code, and why:
- every answer ends with one scored EOS token (there: none is appended, but a padded answer is scored on one padding
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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from workbench import objectives, tasks
from workbench.config import Field, Judged, Presets, Source, Training, listed, strict
from workbench.feedback.judges import open_judge
from workbench.kernels import sample
from workbench.methods.align.pro.hindsight import chains, with_hint
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
from workbench.tasks.protocols import RankingTask
from workbench.training.checkpoints import load_weights, save_weights
from workbench.training.loop import TrainConfig
from workbench.training.rounds import Round, iterate
from workbench.training.steps import supervised_step
from workbench.worlds.target_and_distractor import TargetAndDistractor

log = logging.getLogger(__name__)


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
    colour: str = ""


@strict
class Config(Training, Judged, Presets):
    """Defaults are the paper's where it gives one, else the official code's."""

    epochs: int = Field(default=2, ge=1)  # paper: 2
    learning_rate: float = Field(default=5e-6, gt=0)  # paper
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # paper
    schedule: Literal["constant", "linear"] = "constant"  # official code builds no scheduler
    warmup_ratio: float = Field(default=0.0, ge=0, le=1)  # the same
    batch_size: int = Field(default=112, ge=1)  # lists; official launcher: 2 x 7 GPUs x 8
    sft_weight: float = Field(default=0.05, ge=0)  # w, times (n-1)^2; paper
    eps: float = Field(default=1e-10, ge=0)  # inside the logarithm; official code, not in the paper
    rank_weight: float = Field(default=1.0, ge=0)  # of RRHF's hinge; its paper
    max_length: int = Field(default=512, ge=2)  # tokens of prompt and answer; official code (720 for summaries)
    answer_room: int = Field(default=128, ge=1)  # tokens that a long prompt leaves; official code
    max_new_tokens: int = Field(default=128, ge=1)  # greedy answers; paper (64 for summaries)
    select_every: int = Field(default=600, ge=0)  # steps between looks at the dev reward; 0: keep the last; paper
    dev_size: int = Field(default=280, ge=1)  # dev prompts; official code
    test_size: int = Field(default=500, ge=1)  # held-out lists; ours
    n_lists: int = Field(default=0, ge=0)  # training lists; 0: all
    strict: bool = False  # refuse unsorted lists instead of sorting them
    judge: Source = ""  # real text: reward model that scores the answers anew, and the dev answers
    evaluation_judge: Source = ""  # real text: another, larger reward model that scores held-out answers
    candidates_at_once: int = Field(default=0, ge=0)  # answers of a list held, computed again in backward; 0: all
    arms: list[str] = listed("pro", "bon", "rrhf", "shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see TargetAndDistractor

    def __post_init__(self):
        super().__post_init__()
        if self.answer_room >= self.max_length:
            raise ValueError(
                f"answer_room={self.answer_room} leaves no token of {self.max_length} for a prompt; lower it or raise"
                " max_length"
            )

    @property
    def limits(self) -> dict[str, int]:
        return {"max_length": self.max_length, "answer_room": self.answer_room}


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """Target and distractor, or the lists of a data set with a starting model.

    Raises:
        ValueError: a dev reward without a judge.
    """

    def real() -> RankedText:
        if config.select_every and not config.judge:
            raise ValueError(
                f"select_every={config.select_every} keeps the checkpoint with the best dev reward and needs a reward"
                " model: give judge (and, for the numbers, another evaluation_judge), or set select_every=0"
            )
        sizes = {"test_size": config.test_size + config.dev_size, "train_size": config.n_lists}
        larger = open_judge(config.evaluation_judge, device=device) if config.evaluation_judge else None
        return RankedText.of(config, dataset, model, device=device, evaluation_judge=larger, **sizes)

    world: Any = partial(TargetAndDistractor, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: RankingTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """One arm: lists in order, one round of training, the best policy by dev reward, numbers before and after."""
    ask = partial(with_hint, hint=task.hints[1] if arm.learns == "chain" else "")
    test, _ = as_lists(task.rankings("test", seed))
    held_out = rank_rows(task.start(seed), [{**row, "prompt": ask(row["prompt"])} for row in test], **config.limits)
    folder = run.child("round-1").folder

    def make_round(policy: Policy, t: int) -> Round:
        # best first; the first n answers of a list as they stand in the data
        lists, counts = as_lists(task.rankings("train", seed), n=arm.n, strict=config.strict)
        run.cached("counts", lambda: {"lists": len(lists), **counts})
        if arm.scores != "true":
            lists = relabelled(lists, arm.scores, seed)
        looks = partial(keep_best, task=task, config=config, seed=seed, folder=folder, ask=ask)
        watch = looks if config.select_every else None
        if arm.learns == "chain":  # two rows a list, so that a step sees as many lists
            rows = chains(policy, lists, task.hints, seed, max_length=config.max_length)
            training = TrainConfig.of(config, batch_size=2 * config.batch_size)
            return Round(rows, supervised_step, training, None, watch)
        rows = rank_rows(policy, lists, **config.limits)
        if policy.counts["prompts_cut"]:
            log.warning("%d of %d prompts were cut on the left to fit", policy.counts["prompts_cut"], len(rows))
        if arm.learns == "best":
            best = [row.group._replace(responses_ids=row.group.responses_ids[:1]) for row in rows]
            return Round(best, supervised_step, TrainConfig.of(config), None, watch)
        # the loss of each list from log pi(y_k | x) [list, k], their numbers of tokens and their scores
        longest = max(len(row.scores) for row in rows)
        step = list_step(objective_of(arm, config), n=longest, at_once=config.candidates_at_once)
        return Round(rows, step, TrainConfig.of(config), None, watch)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        if t and (folder / "best.safetensors").is_file():
            load_weights(policy.model, folder / "best.safetensors")
            save_weights(policy.model, folder / "weights.safetensors")
        values = mean_logps(policy, held_out)
        before = run.cached("held_out_before", lambda: values)
        if t:
            run.table("held_out_lists", lambda: list_table(test, before, values))
        return {**task.evaluate(policy, seed, ask), "agreement": agreement(values, held_out)}

    return iterate(task.start(seed), 1, make_round, evaluate, run, seed=seed)


def objective_of(arm: Arm, config: Config) -> Callable[..., Any]:
    """The loss of the equation above, or RRHF's: a hinge on pairs that stand wrongly, and SFT on the best answer."""
    if arm.learns == "hinge":
        return partial(objectives.rrhf, rank_weight=config.rank_weight)
    weight = config.sft_weight if arm.sft_weight < 0 else arm.sft_weight
    return partial(objectives.pro, sft_weight=weight, temperature=arm.temperature, eps=config.eps)


def keep_best(
    policy: Policy, step: int, *, task: RankingTask, config: Config, seed: int, folder: Path, ask: Callable
) -> None:
    """Every `select_every` steps: greedy answers to the dev prompts, cut at the next speaker's turn, scored by the
    training reward model; the weights with the best mean sigma(reward) so far are kept."""
    if step % config.select_every:
        return
    prompts = task.prompts("validation", seed)[: config.dev_size]
    greedy = sample(policy, [ask(prompt) for prompt in prompts], temperature=0.0, max_new_tokens=config.max_new_tokens)
    reward = mean_reward(task.score(prompts, [cleaned(texts[0]) for texts in greedy.texts]))
    path = folder / "dev_rewards.jsonl"
    known = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    earlier = [row["reward"] for row in known if row["step"] < step]  # a resumed training comes by here again
    if not earlier or reward > max(earlier):
        save_weights(policy.model, folder / "best.safetensors")
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "reward": reward}) + "\n")
