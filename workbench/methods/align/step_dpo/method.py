"""Step-DPO: preferences on single reasoning steps. The first wrong step of a wrong solution loses against a step that
the model finds itself when it goes on from the right beginning.

Needs problems with final answers and something that points at the first wrong step. With problem x, right beginning
s_<k (its last label included), a right next step s_w and the wrong one s_l, minimise

    L = -E log sigmoid(beta [log p_theta(s_w|x,s_<k)/p_ref(s_w|x,s_<k) - log p_theta(s_l|x,s_<k)/p_ref(s_l|x,s_<k)])

Source: Lai, Tian, Chen, Yang, Peng, Jia 2024, "Step-DPO: Step-wise Preference Optimization for Long-chain Reasoning of
LLMs", arXiv 2406.18629, eq. 2 and section 3.2; official code dvlab-research/Step-DPO at c4902fd.

Where this differs from the official code, and why:
- beginning and step are tokenised apart, so that no token crosses their border (there: together, cut at the beginning's
  length, the last token of the beginning moved to the step where the two merge); no EOS token on a step, as there;
- an optional check that the chosen step is right, which the paper describes and the released scripts leave out;
- reference log-probs are computed once, before training, from the policy itself;
- learning rate and beta follow the scripts for the 7B model (beta 0.5; the paper's text says 0.4).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import objectives, tasks
from workbench.config import Field, Presets, Sampling, Source, Training, listed, strict
from workbench.kernels import Group, without_cost
from workbench.methods.align.step_dpo.pairs import counts, with_answers
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import ReasoningTask
from workbench.tasks.reasoning.problems import ProblemTask
from workbench.tasks.reasoning.step_pairs import Drawing, collect_errors, localise, rectify, whole_answers
from workbench.training.loop import TrainConfig
from workbench.training.reference import pair_rows, reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import pair_numbers, preference_step, supervised_step
from workbench.worlds.any_order_sum import AnyOrderSum

log = logging.getLogger(__name__)

LOOKS = (0.25, 0.5, 0.75)  # shares of the updates after which held-out pairs and problems are looked at


@dataclass(frozen=True)
class Arm:
    """One way to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        unit: what a pair compares: one step behind a shared right beginning, or two independent whole answers.
        learns: "pairs", or "chosen" (supervised, on the chosen side alone).
        labels: "shuffled" swaps the sides of half of the pairs at random.
        outside: chosen steps are written as another writer would put them.
        lr_factor: of the learning rate, for the sweep.
    """

    title: str
    unit: Literal["steps", "answers"] = "steps"
    learns: Literal["pairs", "chosen"] = "pairs"
    labels: Literal["true", "shuffled"] = "true"
    outside: bool = False
    lr_factor: float = 1.0
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's where it gives one, else the official scripts'."""

    beta: float = Field(default=0.5, gt=0)  # 1/nat; official script of the 7B model
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    epochs: int = Field(default=8, ge=1)  # paper: 8 (7B), 4 (above 30B)
    batch_size: int = Field(default=128, ge=1)  # pairs; paper
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # paper
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # paper
    n_problems: int = Field(default=0, ge=0)  # problems that pairs are made of; 0: all that give a pair
    n_samples: int = Field(default=2, ge=1)  # solutions a problem in error collection; official script
    max_errors: int = Field(default=1, ge=1)  # wrong solutions kept a problem; ours
    n_continuations: int = Field(default=20, ge=1)  # R, from the right beginning; official script
    pairs_per_prefix: int = Field(default=0, ge=0)  # different chosen steps kept; 0: all, as in the official script
    check_steps: bool = True  # drop chosen steps that an oracle calls wrong, where the task has one; paper, optional
    n_answers: int = Field(default=8, ge=0)  # independent whole answers for the DPO arm; ours
    temperature: float = Field(default=0.8, gt=0)  # official script
    top_p: float = Field(default=0.95, gt=0, le=1)  # official script
    max_new_tokens: int = Field(default=2048, ge=1)  # official script
    max_length: int = Field(default=1024, ge=2)  # tokens; official script
    max_prompt_length: int = Field(default=512, ge=1)  # tokens of problem and beginning; official script
    test_size: int = Field(default=500, ge=1)  # held-out problems that pairs are made of; ours
    checker: Source = ""  # model that points at the first wrong step; real text only
    arms: list[str] = listed("step_dpo", "shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see AnyOrderSum


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The any-order sum; or a data set of step pairs, or of problems with a checker, with a starting model.

    Raises:
        ValueError: arms that the data cannot feed.
    """

    def real() -> ProblemTask:
        task = ProblemTask.of(config, dataset, model, device=device, train_size=config.n_problems)
        if outside := [arm for arm in config.arms if config.ARMS[arm].outside]:
            raise ValueError(f"arms {outside} need another writer, which {dataset} has not; leave them out of `arms`")
        answers = [arm for arm in config.arms if config.ARMS[arm].unit == "answers"]
        if answers and not task.has_answers(config.n_answers):
            raise ValueError(
                f"arms {answers} compare whole answers: give a data set with full_chosen and full_rejected, or problems"
                " and n_answers above 0, or leave them out of `arms`"
            )
        return task

    world = partial(AnyOrderSum, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: ReasoningTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Makes (or reads) the pairs, trains on them for all epochs; numbers before and after.

    Raises:
        ValueError: no pair is left, with what happened to the problems.
    """
    policy, shared = task.start(seed), run.beside("pairs")  # all arms learn from the same pairs
    rows = {"train": make_pairs(task, policy, config, "train", seed, shared)}
    with without_cost():  # held-out pairs measure, they teach nothing
        rows["test"] = make_pairs(task, policy, config, "test", seed, shared)
    groups = {split: group_pairs(task, policy, table, config, arm) for split, table in rows.items()}
    if not groups["train"] or not groups["test"]:
        raise ValueError(
            f"no pair is left to train on or to test with; what happened to the problems: {counts(shared)}"
        )
    before = np.array(run.cached("held_out_before", lambda: reference_logps(policy, groups["test"]).tolist()))
    updates = config.max_steps or config.epochs * math.ceil(len(groups["train"]) / config.batch_size)

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig.of(config, learning_rate=config.learning_rate * arm.lr_factor)
        if arm.learns == "chosen":
            chosen = [group._replace(responses_ids=group.responses_ids[:1]) for group in groups["train"]]
            return Round(chosen, supervised_step, training, None)
        swap = np.random.default_rng([seed, 5]).random(len(groups["train"])) < (0.5 if arm.labels == "shuffled" else 0)
        both = zip(groups["train"], swap, strict=True)
        sides = [g._replace(responses_ids=g.responses_ids[::-1]) if swapped else g for g, swapped in both]
        pairs = pair_rows(policy, [f"pair {i}" for i in range(len(sides))], sides)
        return Round(pairs, preference_step(objectives.dpo, beta=config.beta), training, math.log(2), watch)

    def watch(policy: Policy, number: int) -> None:
        if arm.lr_factor == 1.0 and number in {max(1, round(share * updates)) for share in LOOKS}:
            run.cached(f"after-{number}", lambda: {"updates": number, "of": updates, **evaluate(policy, 0)})

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        now = reference_logps(policy, groups["test"])
        held_out, logged = pair_numbers(now, before, objectives.dpo, beta=config.beta)
        rewards = {name: logged[name].numpy() for name in ("chosen_rewards", "rejected_rewards")}
        numbers = {
            **task.evaluate(policy, seed),
            **held_out,
            "margin": float(np.mean(rewards["chosen_rewards"] - rewards["rejected_rewards"])),
            "chosen_logp": float(before[:, 0].mean()),
            "train_pairs": len(groups["train"]),
        }
        if t:
            run.table("held_out_rewards", lambda: rows["test"].assign(**rewards))
        if t and arm.learns == "pairs":
            half = run.folder / f"after-{max(1, round(0.5 * updates))}.json"
            looked = run.cached(half.stem, dict) if half.is_file() else {}
            numbers["quality_half"] = looked.get("quality", math.nan)
        return numbers

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def beside_arms(task: ReasoningTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    return {"counts": counts(run.child("pairs"))}


def make_pairs(task: Any, policy: Policy, config: Config, split: str, seed: int, run: Run) -> pd.DataFrame:
    """Section 3.2: error collection, localisation, rectification. Columns prompt, prefix, chosen, rejected,
    full_chosen, full_rejected; every stage leaves its table in `run`.

    Step pairs and whole-answer pairs come from the same problems, the same number from each.
    """
    if isinstance(task, ProblemTask) and (given := task.step_pairs(split, seed)):
        return run.table(f"{split}-pairs", lambda: pd.DataFrame(given))
    how = Drawing(policy, config.temperature, config.top_p, config.max_new_tokens, seed * 10 + (split == "test"))
    prompts = [row["prompt"] for row in task.problems(split, seed)][: config.test_size if split == "test" else None]
    collected = {"n": config.n_samples, "most": config.max_errors}
    errors = run.table(f"{split}-1-errors", lambda: collect_errors(task, how, prompts, **collected))

    def locate() -> pd.DataFrame:
        located, lost = localise(task, errors)
        run.table(f"{split}-2-unlocalised", lambda: lost)
        return located

    located = run.table(f"{split}-2-located", locate)
    kept = {"n": config.n_continuations, "most": config.pairs_per_prefix, "check_steps": config.check_steps}
    steps = run.table(f"{split}-3-steps", lambda: rectify(task, how, located, **kept))
    answers = run.table(f"{split}-3-answers", lambda: whole_answers(task, how, located, n=config.n_answers))
    n_problems = config.n_problems if split == "train" else 0
    return run.table(f"{split}-pairs", lambda: with_answers(steps, answers if config.n_answers else None, n_problems))


def group_pairs(task: Any, policy: Policy, rows: pd.DataFrame, config: Config, arm: Arm) -> list[Group]:
    """Pairs as tokens. A step has no EOS token, because it does not end the answer; problem and right beginning carry
    no loss. A whole answer ends."""
    limits = {"max_length": config.max_length, "max_prompt_length": config.max_prompt_length}
    groups, cut = [], 0
    for row in rows.to_dict("records"):
        prompt = policy.encode_prompt(row["prompt"])
        if arm.unit == "answers":
            groups.append(policy.group(prompt, [row["full_chosen"], row["full_rejected"]], **limits))
            continue
        beginning = [*prompt, *policy.encode_part(row["prefix"])]
        chosen = task.outside(row["chosen"]) if arm.outside else row["chosen"]
        group = policy.group(beginning, [policy.encode_part(chosen), policy.encode_part(row["rejected"])], **limits)
        lost = len(beginning) - len(group.prompt_ids)
        cut += lost > 0
        if lost <= 0.2 * len(beginning):  # ours: without its problem a step means nothing
            groups.append(group)
    if cut:
        told = "%d of %d pairs lose the start of their problem at max_prompt_length=%d; %d that lose more than a fifth"
        log.warning(f"{told} are left out", cut, len(rows), config.max_prompt_length, len(rows) - len(groups))
    return groups
