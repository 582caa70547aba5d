"""Step-DPO: preferences on single reasoning steps. The first wrong step of a wrong solution loses against a step that
the model finds itself when it goes on from the right beginning.

Needs problems with final answers and something that points at the first wrong step. With problem x, right beginning
s_<k (its last label included), a right next step s_w and the wrong one s_l, minimise

    L = -E log sigmoid(beta [log p_theta(s_w|x,s_<k)/p_ref(s_w|x,s_<k) - log p_theta(s_l|x,s_<k)/p_ref(s_l|x,s_<k)])

Source: Lai, Tian, Chen, Yang, Peng, Jia 2024, "Step-DPO: Step-wise Preference Optimization for Long-chain Reasoning of
LLMs", arXiv 2406.18629, eq. 2 and section 3.2; official code dvlab-research/Step-DPO at c4902fd.

Where this differs from the official code, and why:
- beginning and step are tokenised apart, so that no token crosses their border (there: together, cut at the beginning's
  length, the last token of the beginning moved to the step where the two merge); no end token on a step, as there;
- an optional check that the chosen step is right, which the paper describes and the released scripts leave out;
- reference log-probs are computed once, before training, from the policy itself;
- learning rate and beta follow the scripts for the 7B model (beta 0.5; the paper's text says 0.4).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.kernels import Group, unmetered
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import ReasoningTask
from workbench.tasks.reasoning.problems import ProblemTask
from workbench.tasks.reasoning.step_pairs import Drawing, collect_errors, localise, rectify, whole_answers
from workbench.training.loop import TrainConfig
from workbench.training.reference import PairRow, pair_rows, reference_logps
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
        rate: factor on the learning rate, for the sweep.
    """

    title: str
    unit: Literal["steps", "answers"] = "steps"
    learns: Literal["pairs", "chosen"] = "pairs"
    labels: Literal["true", "shuffled"] = "true"
    outside: bool = False
    rate: float = 1.0


_SWEPT = {
    "step_dpo": Arm("Step-DPO"),
    "dpo": Arm("DPO on whole answers", unit="answers"),
    "shuffled": Arm("Step-DPO, labels shuffled", labels="shuffled"),
    "dpo_shuffled": Arm("DPO on whole answers, labels shuffled", unit="answers", labels="shuffled"),
}
RATES = {"": 1.0, "_slow": 1 / 3, "_fast": 10 / 3}  # 1e-5, 3e-5, 1e-4 in the small world
ARMS: dict[str, Arm] = {
    **_SWEPT,
    "sft_steps": Arm("SFT on chosen steps", learns="chosen"),
    "sft_answers": Arm("SFT on chosen answers", unit="answers", learns="chosen"),
    "ood": Arm("Step-DPO on outside corrections", outside=True),
    "ood_shuffled": Arm("outside corrections, labels shuffled", outside=True, labels="shuffled"),
    **{
        f"{name}{ending}": Arm(f"{arm.title}, rate x {rate:.2g}", arm.unit, arm.learns, arm.labels, arm.outside, rate)
        for name, arm in _SWEPT.items()
        for ending, rate in RATES.items()
        if ending
    },
}


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one, else the official scripts'."""

    epochs: int = Field(default=8, ge=1)  # paper: 8 (7B), 4 (above 30B)
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    beta: float = Field(default=0.5, gt=0)  # 1/nat; official script of the 7B model
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; paper
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # paper
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # paper
    optimizer: Literal["adamw", "rmsprop"] = "adamw"  # paper
    batch_size: int = Field(default=128, ge=1)  # pairs; paper
    max_length: int = Field(default=1024, ge=2)  # tokens; official script
    max_prompt_length: int = Field(default=512, ge=1)  # tokens of problem and beginning; official script
    n_problems: int = Field(default=0, ge=0)  # problems that pairs are made of; 0: all that give a pair
    n_samples: int = Field(default=2, ge=1)  # solutions a problem in error collection; official script
    max_errors: int = Field(default=1, ge=1)  # wrong solutions kept a problem; ours
    n_continuations: int = Field(default=20, ge=1)  # R, from the right beginning; official script
    pairs_per_prefix: int = Field(default=0, ge=0)  # different chosen steps kept; 0: all, as in the official script
    n_answers: int = Field(default=8, ge=0)  # independent whole answers for the DPO arm; specification
    temperature: float = Field(default=0.8, gt=0)  # official script
    top_p: float = Field(default=0.95, gt=0, le=1)  # official script
    max_new_tokens: int = Field(default=2048, ge=1)  # official script
    check_steps: bool = True  # drop chosen steps that an oracle calls wrong, where the task has one; paper, optional
    test_size: int = Field(default=500, ge=1)  # held-out problems that pairs are made of
    micro_batch_size: int = Field(default=0, ge=0)  # pairs held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    checker: str = ""  # folder or hub id of the model that points at the first wrong step; real text only
    arms: list[str] = listed("step_dpo", "shuffled")  # see ARMS
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see AnyOrderSum

    PRESETS: ClassVar = {
        # the specification's small experiment
        "tiny": {
            "epochs": 4,
            "beta": 0.4,
            "learning_rate": 3e-5,
            "batch_size": 32,
            "max_length": 64,
            "max_prompt_length": 40,
            "n_problems": 300,
            "n_continuations": 8,
            "pairs_per_prefix": 1,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": 24,
            "test_size": 200,
            "arms": list(ARMS),
            "world": {"n_problems": 400},
        },
        # three numbers and a start that knows little, so some chosen steps end right by chance: no check of steps
        "smoke": {
            "epochs": 1,
            "beta": 0.4,
            "learning_rate": 1e-4,
            "batch_size": 16,
            "max_length": 64,
            "max_prompt_length": 40,
            "n_problems": 24,
            "n_continuations": 8,
            "pairs_per_prefix": 2,
            "temperature": 1.0,
            "top_p": 1.0,
            "check_steps": False,
            "max_new_tokens": 12,
            "n_answers": 16,
            "test_size": 60,
            "arms": [arm for arm in ARMS if ARMS[arm].rate == 1.0],
            "world": {
                "n_problems": 60,
                "n_test": 60,
                "sft_steps": 250,
                "k_min": 3,
                "k_max": 3,
                "width": 48,
                "layers": 1,
            },
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "epochs": 2,
            "learning_rate": 3e-5,
            "batch_size": 32,
            "n_problems": 200,
            "n_continuations": 8,
            "n_answers": 0,
            "max_new_tokens": 256,
            "test_size": 100,
        },
        "smoke": {
            "epochs": 1,
            "learning_rate": 3e-5,
            "batch_size": 8,
            "n_problems": 8,
            "n_continuations": 2,
            "n_answers": 0,
            "max_new_tokens": 16,
            "test_size": 8,
            "max_length": 256,
            "max_prompt_length": 192,
            "arms": ["step_dpo", "shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The any-order sum; or a data set of step pairs, or of problems with a checker, with a starting model.

    Raises:
        ValueError: one of model and dataset without the other; arms that the data cannot feed.
    """
    if not dataset and not model:
        world: dict[str, Any] = dict(config.world)
        return AnyOrderSum(device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    task = ProblemTask(
        dataset,
        model,
        device=device,
        test_size=config.test_size,
        train_size=config.n_problems,
        lora=lora,
        precision=config.precision,
        max_new_tokens=config.max_new_tokens,
        checker=config.checker,
    )
    if outside := [arm for arm in config.arms if ARMS[arm].outside]:
        raise ValueError(f"arms {outside} need another writer, which {dataset} has not; leave them out of `arms`")
    if (answers := [arm for arm in config.arms if ARMS[arm].unit == "answers"]) and not task.has_answers(
        config.n_answers
    ):
        raise ValueError(
            f"arms {answers} compare whole answers: give a data set with full_chosen and full_rejected, or problems and"
            " n_answers above 0, or leave them out of `arms`"
        )
    return task


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: ReasoningTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}, "counts": {...}}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    return {"arms": arms, "counts": counts(run.child("pairs"))}


def run_arm(task: ReasoningTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    pairs = run.child("pairs")  # all arms learn from the same ones
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), pairs))


def play(
    task: ReasoningTask, config: Config, arm: Arm, seed: int, run: Run, pairs: Run | None = None
) -> list[dict[str, float]]:
    """One arm: make (or read) the pairs, train on them for all epochs, numbers before and after."""
    policy, pairs = task.start(seed), pairs or run.child("pairs")
    rows = {"train": make_pairs(task, policy, config, "train", seed, pairs)}
    with unmetered():  # held-out pairs measure, they teach nothing
        rows["test"] = make_pairs(task, policy, config, "test", seed, pairs)
    groups = {split: group_pairs(task, policy, table, config, arm) for split, table in rows.items()}
    if not groups["train"] or not groups["test"]:
        raise ValueError(f"no pair is left to train on or to test with; what happened to the problems: {counts(pairs)}")
    before = np.array(run.cached("held_out_before", lambda: reference_logps(policy, groups["test"]).tolist()))
    updates = config.max_steps or config.epochs * math.ceil(len(groups["train"]) / config.batch_size)

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig(
            learning_rate=config.learning_rate * arm.rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            optimizer=config.optimizer,
            warmup_ratio=config.warmup_ratio,
            schedule=config.schedule,
            max_steps=config.max_steps,
            micro_batch_size=config.micro_batch_size,
            checkpoint_every=config.checkpoint_every,
        )
        if arm.learns == "chosen":
            chosen = [Group(group.prompt_ids, group.responses_ids[:1]) for group in groups["train"]]
            return Round(chosen, supervised_step, training, None)
        step = preference_step(objectives.dpo, beta=config.beta)
        swap = np.random.default_rng([seed, 5]).random(len(groups["train"])) < (0.5 if arm.labels == "shuffled" else 0)
        sides: list[PairRow] = pair_rows(
            policy,
            [f"pair {i}" for i in range(len(swap))],
            [
                Group(group.prompt_ids, group.responses_ids[::-1] if swapped else group.responses_ids)
                for group, swapped in zip(groups["train"], swap, strict=True)
            ],
        )
        return Round(sides, step, training, math.log(2), watch)

    def watch(policy: Policy, number: int) -> None:
        if arm.rate == 1.0 and number in {max(1, round(share * updates)) for share in LOOKS}:
            run.cached(f"after-{number}", lambda: {"updates": number, "of": updates, **evaluate(policy, 0)})

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        now = reference_logps(policy, groups["test"])
        numbers, logged = pair_numbers(now, before, objectives.dpo, beta=config.beta)
        rewards = {name: logged[name].numpy() for name in ("chosen_rewards", "rejected_rewards")}
        if t:
            run.table("held_out_rewards", lambda: rows["test"].assign(**rewards))
        margin = float(np.mean(rewards["chosen_rewards"] - rewards["rejected_rewards"]))
        found = {
            **task.evaluate(policy, seed),
            **numbers,
            "margin": margin,
            "chosen_logp": float(before[:, 0].mean()),
            "train_pairs": len(groups["train"]),
        }
        if t and arm.learns == "pairs":
            half = run.folder / f"after-{max(1, round(0.5 * updates))}.json"
            found["quality_half"] = run.cached(half.stem, dict).get("quality", math.nan) if half.is_file() else math.nan
        return found

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def group_pairs(task: Any, policy: Policy, rows: pd.DataFrame, config: Config, arm: Arm) -> list[Group]:
    """Pairs as tokens. A step has no end token, because it does not end the answer; problem and right beginning carry
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
        log.warning(
            "%d of %d pairs lose the start of their problem at max_prompt_length=%d; %d that lose more than a fifth are"
            " left out",
            cut,
            len(rows),
            config.max_prompt_length,
            len(rows) - len(groups),
        )
    return groups


# ---------------------------------------------------------------------------------------------- the three data stages
def make_pairs(task: Any, policy: Policy, config: Config, split: str, seed: int, run: Run) -> pd.DataFrame:
    """Error collection, localisation, rectification: columns prompt, prefix, chosen, rejected, full_chosen,
    full_rejected.

    Every stage leaves its table in `run`. Step pairs and whole-answer pairs come from the same problems, the same
    number from each.
    """
    if hasattr(task, "step_pairs") and (given := task.step_pairs(split, seed)):
        return run.table(f"{split}-pairs", lambda: pd.DataFrame(given))
    how = Drawing(policy, config.temperature, config.top_p, config.max_new_tokens, seed * 10 + (split == "test"))
    prompts = [row["prompt"] for row in task.problems(split, seed)][: config.test_size if split == "test" else None]
    errors = run.table(
        f"{split}-1-errors", lambda: collect_errors(task, how, prompts, n=config.n_samples, most=config.max_errors)
    )
    if not (run.folder / f"{split}-2-located.parquet").is_file():
        found, lost = localise(task, errors)
        run.table(f"{split}-2-unlocalised", lambda: lost)
        run.table(f"{split}-2-located", lambda: found)
    located = run.table(f"{split}-2-located", pd.DataFrame)
    steps = run.table(
        f"{split}-3-steps",
        lambda: rectify(
            task, how, located, n=config.n_continuations, most=config.pairs_per_prefix, check_steps=config.check_steps
        ),
    )
    answers = run.table(f"{split}-3-answers", lambda: whole_answers(task, how, located, n=config.n_answers))

    def join() -> pd.DataFrame:
        if not config.n_answers:
            rows = steps.assign(full_chosen="", full_rejected="")
        else:
            number = {"number": lambda table: table.groupby(["prompt", "full_rejected"]).cumcount()}
            rows = steps.assign(**number).merge(answers.assign(**number), on=["prompt", "full_rejected", "number"])
        wanted = config.n_problems if split == "train" and config.n_problems else len(rows)
        keep: Any = rows["prompt"].drop_duplicates()
        kept: Any = rows[rows["prompt"].isin(keep[:wanted])]
        return kept.drop(columns="number", errors="ignore").reset_index(drop=True)

    return run.table(f"{split}-pairs", join)


def counts(run: Run) -> dict[str, Any]:
    """How many rows each stage left on the training problems, and why wrong solutions have no located step."""
    found: dict[str, Any] = {}
    for path in sorted(run.folder.glob("train-*.parquet")):
        table: Any = pd.read_parquet(path)
        found[path.stem.removeprefix("train-")] = len(table)
        if path.stem.endswith("unlocalised"):
            found["reasons"] = {str(reason): int(n) for reason, n in table["reason"].value_counts().items()}
    return found


# ----------------------------------------------------------------------------------------------------------- claims
TABLE_3 = "7B: 54.8 / DPO 55.0 / Step 55.8; 72B: 61.7 / 62.5 / 64.1"
# statement, paper's figures, and what is missing to test it here
BEYOND_SMALL = {
    "C5": (
        "Larger models gain more",
        "+1.0 (7B), +2.0 (32B), +2.6 and +3.0 (70B, 72B)",
        "needs models of several sizes",
    ),
    "C6": (
        "Carries over to harder problems with the same data",
        "Odyssey-MATH 44.2 -> 47.0, 47.0 -> 50.1; AIME 1/30 -> 3/30, 5/30 -> 4/30",
        "needs competition problems",
    ),
}


def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds. Controls: the same difference between arms whose labels are
    shuffled."""
    found = Claims("step_dpo", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])

    def after(arm: str, key: str = "quality", when: int = 1) -> np.ndarray:
        return np.array([result["arms"][arm][when][key] for result in results])

    def best(arm: str) -> np.ndarray:
        """Accuracy of each seed at the rate that is best on its validation problems."""
        rated = [f"{arm}{ending}" for ending in RATES if f"{arm}{ending}" in arms]
        chosen = np.argmax([after(name, "validation") for name in rated], axis=0)
        return np.array([result["arms"][rated[i]][1]["quality"] for i, result in zip(chosen, results, strict=True)])

    start, shuffled = after("step_dpo", when=0), "labels shuffled"
    found.test(
        "C1",
        "Step-DPO improves the start",
        paper="MATH: 61.7 -> 64.7 (72B), 54.8 -> 55.8 (7B); GSM8K +0.0 to +1.6",
        measured=after("step_dpo") - start,
        control=after("shuffled") - start,
        control_is=shuffled,
        unit="of problems, greedy",
    )
    if {"dpo", "dpo_shuffled"} <= arms:
        keys = [
            key
            for key in ("reward_accuracy", "margin", "valid_steps", "quality")
            if key in results[0]["arms"]["dpo"][1]
        ]
        both = {key: after("step_dpo", key) - after("dpo", key) for key in keys}
        none = {key: after("shuffled", key) - after("dpo_shuffled", key) for key in both}
        options: dict[str, Any] = {"control_is": "both with labels shuffled"}
        at_least = bool(np.mean(after("dpo") - start) >= 0)
        for id, what, key, unit in (
            ("C3 accuracy", "more held-out pairs get the right order", "reward_accuracy", "of pairs"),
            ("C3 margin", "the held-out reward margin is larger", "margin", "nats x beta"),
            ("C2 steps", "more steps are right before the first wrong one", "valid_steps", "of steps, greedy"),
            (
                "C2 same rate",
                "more final answers are right at the same learning rate",
                "quality",
                "of problems, greedy",
            ),
        ):
            if key in both:
                paper = "64-84 % and 0.1-2.1 in Fig. 2" if id.startswith("C3") else TABLE_3
                found.test(
                    id,
                    f"Against DPO on whole answers, {what}",
                    paper=paper,
                    measured=both[key],
                    control=none[key],
                    unit=unit,
                    **options,
                )
        if "validation" in results[0]["arms"]["dpo"][1]:
            found.test(
                "C2",
                "Better than DPO on whole answers, each at its best learning rate",
                measured=best("step_dpo") - best("dpo"),
                paper=TABLE_3,
                control=best("shuffled") - best("dpo_shuffled"),
                unit="of problems, greedy",
                also={"DPO not below the start": at_least},
                **options,
            )
    if {"ood", "ood_shuffled"} <= arms:
        rarer = after("ood", "chosen_logp") < after("step_dpo", "chosen_logp")
        found.test(
            "C4",
            "The model's own corrections beat outside ones",
            paper="MATH: outside 55.1, own 55.8 (7B)",
            measured=after("step_dpo") - after("ood"),
            control=after("shuffled") - after("ood_shuffled"),
            control_is="both with labels shuffled",
            unit="of problems, greedy",
            also={
                "outside corrections beat the start": bool(np.mean(after("ood") - start) > 0),
                "outside corrections are less likely under the start": bool(rarer.all()),
            },
        )
    half = {arm: after(arm, "quality_half") for arm in ("step_dpo", "shuffled")}
    if all(np.isfinite(values).all() for values in half.values()):
        found.test(
            "C7",
            "Half of the updates already improve the start",
            paper="10k pairs, fewer than 500 updates",
            measured=half["step_dpo"] - start,
            control=half["shuffled"] - start,
            control_is=shuffled,
            unit="of problems, greedy",
            note=(
                f"{after('step_dpo', 'train_pairs').mean():.0f} pairs; after all updates"
                f" {np.mean(after('step_dpo') - start):+.3f}"
            ),
        )
    for id, (statement, paper, why) in BEYOND_SMALL.items():
        found.needs_full_scale(id, statement, paper, why)
    return found
