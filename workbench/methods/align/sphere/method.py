"""SPHERE: preference data for reasoning from a pruned search, without annotators.

Needs problems with final answers and a process reward model. Stage 1: for each problem search two chains of steps,
always the best and always the worst of E candidates by process reward; where the best chain ends right and the worst
wrong, they are a pair. Stage 2: where no chain was right, the model is shown its own wrong chain and searches again; a
right chain now wins against the wrong one. Stage 3: where both were right, a smaller model searches with width 2E; its
worst chain, if wrong, loses against the right one. Then DPO on whole answers, EOS token included:

    L = -E log sigmoid(beta [log p_theta(y_w|x)/p_ref(y_w|x) - log p_theta(y_l|x)/p_ref(y_l|x)])

Source: Singh, Chakraborty, Nambi 2025, "Self-Evolved Preference Optimization for Enhancing Mathematical Reasoning in
Small Language Models", arXiv 2503.04813. No official code exists; stages, E and temperature come from a public summary.

What the sources do not say, and what is done here:
- the reward of a later step: R(s_t) = prm(s_t) + [prm(s_t) - prm(s_(t-1))] (from memory), or the score alone; both
  select the same step, because a chain's candidates share s_(t-1);
- each chain is expanded from its own beginning; a wrong step must say something and repeat no earlier one;
- pairs of stage 2 are trained on the original problem, so that the gain shows without the request to correct;
- DPO's settings and the depth limit are ours; one round.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import objectives, tasks
from workbench.config import Field, Presets, Sampling, Source, Training, listed, strict
from workbench.methods.align.sphere.pairs import (
    check_sound,
    cost_of,
    describe_pairs,
    in_shards,
    matched_random,
    paired,
    random_cost,
)
from workbench.methods.align.sphere.search import random_pairs, search
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import ReasoningTask
from workbench.tasks.reasoning.problems import ProblemTask
from workbench.tasks.reasoning.process_reward import SimulatedPrm
from workbench.tasks.reasoning.step_pairs import Drawing
from workbench.training.loop import TrainConfig
from workbench.training.reference import pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step
from workbench.worlds.any_order_sum import AnyOrderSum

SHARD = 200  # problems searched between two writes


@dataclass(frozen=True)
class Arm:
    """One way to make pairs and to train. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        stages: whose pairs are trained on; 0 stands for random right and wrong samples, as many as stage 1 gives.
        noise: of the simulated process reward model, logits; infinity is a coin, None is the configured one.
        checked: whether the rejected answer must be wrong.
        labels: "shuffled" swaps the sides of half of the pairs at random.
        learner: who is trained, on the pairs that the policy made.
    """

    title: str
    stages: tuple[int, ...] = (1, 2, 3)
    noise: float | None = None
    checked: bool = True
    labels: Literal["true", "shuffled"] = "true"
    learner: Literal["policy", "small"] = "policy"
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's where it can be read, else ours."""

    width: int = Field(default=5, ge=2)  # E, candidates a step; paper: 5 (the smaller model: 2E = 10)
    depth: int = Field(default=20, ge=1)  # D, steps; ours, the paper's is not known
    temperature: float = Field(default=0.8, gt=0)  # paper
    reward: Literal["progress", "score"] = "progress"  # from memory
    prm_certainty: float = Field(default=2.0, gt=0)  # logits, of the simulated process reward model; ours
    prm_noise: float = Field(default=1.0, ge=0)  # logits, the same; ours: 0, 1 and 3
    n_random: int = Field(default=8, ge=2)  # whole samples a problem for random pairs; ours
    beta: float = Field(default=0.1, gt=0)  # 1/nat; ours
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; ours (5e-6 with LoRA)
    optimizer: Literal["rmsprop", "adamw"] = "adamw"  # ours
    schedule: Literal["linear", "cosine", "constant"] = "cosine"  # ours
    n_problems: int = Field(default=20_000, ge=1)  # paper: about 20k
    max_step_tokens: int = Field(default=256, ge=1)  # ours
    max_new_tokens: int = Field(default=2048, ge=1)  # of a whole answer; ours
    max_length: int = Field(default=4096, ge=2)  # tokens of problem and answer; ours
    test_size: int = Field(default=500, ge=1)  # held-out problems; ours
    small_model: Source = ""  # real text only
    prm: Source = ""  # process reward model; real text only
    arms: list[str] = listed("sphere", "stage1", "shuffled")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see AnyOrderSum


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The any-order sum with easy, middle and hard problems and a start that can try again; or real problems."""

    def world() -> AnyOrderSum:
        balanced = config.world.get("k_max", 7) > 4  # three numbers cannot touch three misconceptions often enough
        sizes = {"n_problems": config.n_problems, "balanced": balanced, "retry_share": 0.15, **config.world}
        return AnyOrderSum(device=device, **sizes)

    def real() -> ProblemTask:
        arms = {name: config.ARMS[name] for name in config.arms}
        if simulated := [name for name, arm in arms.items() if arm.noise is not None]:
            raise ValueError(
                f"arms {simulated} add noise to a simulated process reward model; leave them out of `arms`"
            )
        small = [name for name, arm in arms.items() if 3 in arm.stages or arm.learner == "small"]
        if small and not config.small_model:
            raise ValueError(f"arms {small} need a smaller model: set `small_model`, or leave them out of `arms`")
        return ProblemTask.of(config, dataset, model, device=device, train_size=config.n_problems, opening="")

    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real, needs=("prm",))


def train_arm(task: ReasoningTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Pairs from the search (made by the policy, whoever learns), DPO, numbers before and after."""
    shared = run.beside("search")  # arms with the same process reward model share their search
    rows = make_pairs(task, config, arm, seed, shared)
    if not len(rows):
        raise ValueError(f"the search gave no pair: {counted(task, config, arm, seed, shared)['routes']}")
    policy = task.small(seed) if arm.learner == "small" else task.start(seed)

    def make_round(policy: Policy, t: int) -> Round:
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < (0.5 if arm.labels == "shuffled" else 0)
        groups = []
        for row, swapped in zip(rows.to_dict("records"), swap, strict=True):
            # an answer that was cut off has not ended
            rejected = row["rejected"] if row["rejected_ended"] else policy.encode_part(row["rejected"])
            group = policy.group(row["prompt"], [row["chosen"], rejected], max_length=config.max_length)
            groups.append(group._replace(responses_ids=group.responses_ids[::-1]) if swapped else group)
        pairs = pair_rows(policy, [f"pair {i}" for i in range(len(groups))], groups)
        step = preference_step(objectives.dpo, beta=config.beta)
        return Round(pairs, step, TrainConfig.of(config), math.log(2))

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        return {**task.evaluate(policy, seed), "train_pairs": len(rows)}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


def make_pairs(task: ReasoningTask, config: Config, arm: Arm, seed: int, shared: Run) -> Any:
    """The pairs of an arm: prompt, chosen, rejected, rejected_ended, stage, kind, number of the problem."""
    if arm.stages == (0,):
        n_pairs = len(make_pairs(task, config, replace(arm, stages=(1,)), seed, shared))
        pairs = matched_random(random_samples(task, config, seed, shared), n_pairs, seed=seed)
    else:
        made = []
        for stage in arm.stages:
            name = f"prm-{noise_of(config, arm):g}-pairs{stage}{'' if arm.checked else '-unchecked'}"
            made.append(shared.table(name, partial(stage_pairs, task, config, arm, stage, seed, shared)))
        pairs = pd.concat(made, ignore_index=True)
    check_sound(pairs, task.verifier, rejected_is_wrong=arm.checked)
    return pairs


def stage_pairs(task: ReasoningTask, config: Config, arm: Arm, stage: int, seed: int, shared: Run) -> pd.DataFrame:
    """Stage 1: best against worst chain; 2: corrected against wrong one; 3: best against the small model's worst."""
    first, chains = (searched(task, config, arm, number, seed, shared) for number in (1, stage))
    return paired(stage, first, chains, checked=arm.checked)


def searched(task: ReasoningTask, config: Config, arm: Arm, stage: int, seed: int, shared: Run) -> Any:
    """The chains of a stage: all problems in stage 1; in stage 2 those where no chain was right, asked to correct the
    best one; in stage 3 those where both were right, by the smaller model with twice the width. Shard by shard."""
    check, noise = task.verifier, noise_of(config, arm)
    scores = SimulatedPrm(check.first_wrong, config.prm_certainty, noise, seed) if check.is_oracle else check.scores
    name = f"prm-{noise:g}-stage{stage}"
    problems = problems_of(task, config, seed)
    asked, numbers = list(problems), list(range(len(problems)))
    if stage > 1:
        first = searched(task, config, arm, 1, seed, shared)
        verdict = "wrong" if stage == 2 else "right"
        routed: Any = first[(first["correct_max"] == verdict) & (first["correct_min"] == verdict)]
        numbers = routed["number"].tolist()
        best = dict(zip(routed["number"], map("".join, routed["sol_max"]), strict=True))
        asked = [task.correction(problems[i], best[i]) if stage == 2 else problems[i] for i in numbers]
    policy = cache(lambda: task.small(seed) if stage == 3 else task.start(seed))  # loaded where a shard is missing

    def draw(start: int) -> Any:
        shard = slice(start, start + SHARD)
        how = Drawing(policy(), config.temperature, config.top_p, config.max_step_tokens, seed * 10 + stage)
        width = config.width * (2 if stage == 3 else 1)
        options = {"width": width, "depth": config.depth, "reward": config.reward, "offset": start}
        ends = {"stop": task.delimiters, "judge": check.judge}
        found = search(how, asked[shard], [problems[i] for i in numbers[shard]], scores, **options, **ends)
        if start == 0:
            shared.table(f"{name}-tree", lambda: found.nodes)
        return found.chains.assign(number=numbers[shard], stage=stage, policy="small" if stage == 3 else "policy")

    return in_shards(shared, name, draw, len(numbers), SHARD)


def noise_of(config: Config, arm: Arm) -> float:
    return config.prm_noise if arm.noise is None else arm.noise


def problems_of(task: ReasoningTask, config: Config, seed: int) -> list[str]:
    return [row["prompt"] for row in task.problems("train", seed)][: config.n_problems]


def random_samples(task: ReasoningTask, config: Config, seed: int, shared: Run) -> Any:
    """A right and a wrong whole sample of each problem, where there are any."""
    problems = problems_of(task, config, seed)

    def draw(start: int) -> pd.DataFrame:
        how = Drawing(task.start(seed), config.temperature, config.top_p, config.max_new_tokens, seed * 10 + 9)
        options = {"n": config.n_random, "judge": task.verifier.judge, "opening": task.opening, "offset": start}
        return random_pairs(how, problems[start : start + SHARD], **options)

    return in_shards(shared, "random", draw, len(problems), SHARD)


def beside_arms(task: ReasoningTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """`{"search": {arm: counts of its pairs}}`."""
    shared = run.child("search")
    count = {arm: partial(counted, task, config, config.ARMS[arm], seed, shared) for arm in config.arms}
    return {"search": {arm: shared.cached(f"counts-{arm}", counts) for arm, counts in count.items()}}


def counted(task: ReasoningTask, config: Config, arm: Arm, seed: int, shared: Run) -> dict[str, Any]:
    """Pairs of an arm by stage and difficulty, what they cost, and how wrong the rejected ones are."""
    bands = [task.band(problem) for problem in problems_of(task, config, seed)]
    pairs = make_pairs(task, config, arm, seed, shared)
    if arm.stages == (0,):
        cost = random_cost(random_samples(task, config, seed, shared), config.n_random)
    else:
        searches = {stage: searched(task, config, arm, stage, seed, shared) for stage in {1, *arm.stages}}
        cost = {"pairs_found": len(pairs), **cost_of(searches, config.width)}
    return {**cost, **describe_pairs(pairs, bands, task.verifier)}
