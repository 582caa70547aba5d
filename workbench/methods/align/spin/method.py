"""SPIN: self-play fine-tuning. The policy learns to tell human answers from those it wrote itself a round earlier.

Needs prompts with human answers only; no preference labels. In round t, with the policy theta_t as it is at the start
of the round, minimise over pairs of a human answer y and a self-written y' ~ p_theta_t(. | x)

    L = E log(1 + exp(-lambda [log p_theta(y|x)/p_theta_t(y|x) - log p_theta(y'|x)/p_theta_t(y'|x)]))

and start round t+1 from the result. The fixed point is p_theta = p_data (Theorem 5.2).

Source: Chen, Deng, Yuan, Ji, Gu 2024, "Self-Play Fine-Tuning Converts Weak Language Models to Strong Language Models",
arXiv 2401.01335v3, Algorithm 1, eq. 4.7; official code uclaml/SPIN at a12ba80.

Where this differs from the official code, and why:
- one EOS token a response, scored (there: the template's and one more, with every token equal to it masked by
  accident);
- generation uses the template of training (there: a fixed "### Instruction" text; the paper's theory needs samples of
  the policy that is trained);
- sampling at temperature 1, top-p 1, as the theory asks (one of their two scripts keeps the model's own defaults);
- reference log-probs are computed once a round, before training, from the policy itself, so no second model is held.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd

from workbench import objectives, tasks
from workbench.config import Field, Presets, Sampling, Training, listed, strict
from workbench.data import Row, prompt_of
from workbench.feedback.samples import draw_samples
from workbench.kernels import Group, without_cost
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.tasks.protocols import DemonstrationTask
from workbench.tasks.real import TextTask
from workbench.training.loop import TrainConfig
from workbench.training.reference import PairRow, pair_rows, reference_logps
from workbench.training.rounds import Round, iterate
from workbench.training.steps import pair_numbers, preference_step, supervised_step
from workbench.worlds.planted_chain import PlantedChain

log = logging.getLogger(__name__)

# one value a round; the last one is repeated
EveryRound = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)]


@dataclass(frozen=True)
class Arm:
    """One way to run the rounds. The defaults are the method; every other arm is a baseline or a control.

    Attributes:
        learns: "pairs" (SPIN's objective) or "demonstrations" (supervised, for the same number of optimiser steps).
        opponent: who writes the rejected answers of round t: the policy at its start, or "first" for theta_0.
        reference: whose log-probs are the reference: the policy at the start of round t, or "first" for theta_0.
        fresh: draw new answers every round; False keeps the pairs of round 0.
        labels: "shuffled" swaps human and self-written in half of the pairs at random; "swapped" in all.
        loss_type: "" takes the configuration's.
        start: "sft"; "converged", which more SFT cannot improve; or "data", the policy that already equals p_data.
        rounds: how many rounds at most; 0 for all.
    """

    title: str
    learns: Literal["pairs", "demonstrations"] = "pairs"
    opponent: Literal["round", "first"] = "round"
    reference: Literal["round", "first"] = "round"
    fresh: bool = True
    labels: Literal["true", "shuffled", "swapped"] = "true"
    loss_type: str = ""
    start: Literal["sft", "converged", "data"] = "sft"
    rounds: int = 0
    colour: str = ""


@strict
class Config(Training, Sampling, Presets):
    """Defaults are the paper's where it gives one; its optimiser, batch size and warm-up are the block's."""

    rounds: int = Field(default=4, ge=1)  # paper: 4 (iterations 0 to 3)
    epochs: int = Field(default=2, ge=1)  # a round; paper: 2
    beta: EveryRound = listed(0.1, 0.1, 0.1, 5.0)  # the paper's lambda, 1/nat; paper: 0.1, and 5.0 in round 3
    learning_rate: EveryRound = listed(5e-7, 5e-7, 1e-7, 1e-7)  # peak; paper  # pyright: ignore
    loss_type: Literal["sigmoid", "hinge", "exponential"] = "sigmoid"  # the logistic loss of eq. 4.7
    schedule: Literal["linear", "cosine", "constant"] = "linear"  # official code
    n_prompts: int = Field(default=50_000, ge=2)  # a round; paper: 50k
    temperature: float = Field(default=1.0, ge=0)  # of the opponent; the theory asks for 1
    max_new_tokens: int = Field(default=256, ge=1)  # official fast generation script
    max_length: int = Field(default=2048, ge=2)  # paper: 2048; prompt and response, tokens
    keep_previous: bool = True  # paper: rounds after the first train on the previous round's pairs too, 100k
    test_size: int = Field(default=500, ge=1)  # held-out prompts for the pair metrics; ours
    arms: list[str] = listed("spin", "sft")
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see PlantedChain


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The planted chain, or demonstrations of a data set with a starting model.

    Raises:
        ValueError: arms that need the planted truth, on real data.
    """

    def real() -> TextTask:
        if planted := [arm for arm in config.arms if config.ARMS[arm].start != "sft"]:
            raise ValueError(
                f"arms {planted} start where only the embedded world can; with {dataset} leave them out of `arms`"
            )
        return TextTask.of(config, dataset, model, device=device, train_size=config.n_prompts)

    world = partial(PlantedChain, n_demonstrations=config.n_prompts, device=device, **config.world)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def train_arm(task: DemonstrationTask, config: Config, arm: Arm, seed: int, run: Run) -> list[dict[str, float]]:
    """Algorithm 1 of the paper for one arm and one seed."""
    policy = start_of(task, arm, seed)
    first = start_of(task, arm, seed) if "first" in (arm.opponent, arm.reference) else policy  # no second model else
    train_rows, test_rows = task.demonstrations("train", seed), task.demonstrations("test", seed)[: config.test_size]
    loss_type = arm.loss_type or config.loss_type
    objective = partial(objectives.spin, loss_type=loss_type)

    def training(t: int) -> TrainConfig:
        """N pairs in round 0, with the previous round's pairs 2 N afterwards; every arm takes as many steps."""
        n_pairs = len(train_rows) * (2 if t > 0 and config.keep_previous else 1)
        steps = config.max_steps or config.epochs * math.ceil(n_pairs / config.batch_size)
        return TrainConfig.of(config, learning_rate=at_round(config.learning_rate, t), max_steps=steps)

    def make_round(policy: Policy, t: int) -> Round:
        if arm.learns == "demonstrations":
            limit = {"max_length": config.max_length}
            groups = [policy.group(row["prompt"], [row["completion"]], **limit) for row in train_rows]
            return Round(groups, supervised_step, training(t), None)
        this_round = run.child(f"round-{t + 1}")
        opponent = policy if arm.opponent == "round" else first
        if arm.fresh or t == 0:
            write_answers(opponent, train_rows, config, seed * 1000 + t, t, this_round, "generated")
        with without_cost():  # these measure, they teach nothing
            write_answers(opponent, test_rows, config, seed * 1000 + t + 500, t, this_round, "held_out")
        reference = policy if arm.reference == "round" else first
        this_round.cached("held_out_before", lambda: held_out_logps(reference, config, this_round).tolist())
        rows = build_rows(reference, config, arm, seed, t, run)
        same_weights = arm.reference == "round" or t == 0
        start_loss = {"sigmoid": math.log(2)}.get(loss_type, 1.0) if same_weights else None
        return Round(rows, preference_step(objective, beta=at_round(config.beta, t)), training(t), start_loss)

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        numbers = task.evaluate(policy, seed)
        if not t or arm.learns == "demonstrations":
            return numbers
        loss = partial(objective, beta=at_round(config.beta, t - 1))
        return {**numbers, **held_out_pairs(policy, config, loss, run.child(f"round-{t}"))}

    return iterate(policy, min(arm.rounds or config.rounds, config.rounds), make_round, evaluate, run, seed=seed)


def start_of(task: Any, arm: Arm, seed: int) -> Policy:
    start = {"sft": "start", "converged": "converged", "data": "at_the_data"}[arm.start]
    return getattr(task, start)(seed)


def write_answers(
    opponent: Policy, rows: Sequence[Row], config: Config, draw_seed: int, t: int, this_round: Run, name: str
) -> pd.DataFrame:
    """Step a: the opponent answers every prompt once; beside its answer stands the human one."""

    def draw() -> pd.DataFrame:
        sampling = {"max_new_tokens": config.max_new_tokens, "temperature": config.temperature, "top_p": config.top_p}
        prompts, into = [row["prompt"] for row in rows], this_round.child(name)
        samples = draw_samples(opponent, prompts, 1, into, **sampling, seed=draw_seed)
        pairs = pd.DataFrame({"prompt": samples.prompt, "chosen": [row["completion"] for row in rows]})
        pairs = pairs.assign(rejected=samples.responses.str[0], rejected_ids=samples.responses_ids.str[0])
        return pairs.assign(iteration=t, source_chosen="data", source_rejected=f"policy:{t}")

    return this_round.table(name, draw)


def build_rows(reference: Policy, config: Config, arm: Arm, seed: int, t: int, run: Run) -> list[PairRow]:
    """Step b: the pairs of this round and the previous one, with log-probs under this round's reference.

    Raises:
        FileNotFoundError: the previous round's answers are gone; training on the new ones alone would be another
            method.
    """
    tables = []
    for source in [0] if not arm.fresh else [t - 1, t] if t > 0 and config.keep_previous else [t]:
        path = run.child(f"round-{source + 1}").folder / "generated.parquet"
        if not path.is_file():
            raise FileNotFoundError(
                f"round {t} trains on the answers of round {source} too, but {path} is missing; start over or set"
                " keep_previous=False"
            )
        tables.append(pd.read_parquet(path))
    table = pd.concat(tables, ignore_index=True)
    if (same := float((table.chosen == table.rejected).mean())) > 0.5:
        log.warning(
            "%.0f %% of the answers equal the human ones: the model already reproduces the data, or decoding is greedy",
            100 * same,
        )
    share = {"true": 0.0, "shuffled": 0.5, "swapped": 1.1}[arm.labels]
    swap = np.random.default_rng([seed, t, 5]).random(len(table)) < share
    groups = [
        group._replace(responses_ids=group.responses_ids[::-1]) if swapped else group
        for group, swapped in zip(_groups(reference, table, config), swap, strict=True)
    ]
    ids = [f"round {r} row {i}" for r, i in zip(table.iteration, table.index, strict=True)]
    return pair_rows(reference, ids, groups)


def held_out_logps(policy: Policy, config: Config, this_round: Run) -> np.ndarray:
    """log p of the human and the self-written answer to the round's held-out prompts, [prompt, 2] in nats."""
    return reference_logps(policy, _groups(policy, pd.read_parquet(this_round.folder / "held_out.parquet"), config))


def held_out_pairs(policy: Policy, config: Config, loss: Any, this_round: Run) -> dict[str, float]:
    """Can the policy after a round tell human answers from the opponent's, on prompts it was not trained on?"""
    before = np.array(read_json(this_round.folder / "held_out_before.json"))
    numbers, logged = pair_numbers(held_out_logps(policy, config, this_round), before, loss)
    table = pd.read_parquet(this_round.folder / "held_out.parquet")
    rewards = {side: logged[side].numpy() for side in ("chosen_rewards", "rejected_rewards")}
    this_round.table("held_out_rewards", lambda: table.drop(columns="rejected_ids").assign(**rewards))
    return {**numbers, "identical_share": float((table.chosen == table.rejected).mean())}


def _groups(policy: Policy, pairs: pd.DataFrame, config: Config) -> list[Group]:
    """Human and self-written answer to each prompt as tokens; of the latter the very tokens that were drawn."""
    columns = zip(pairs.prompt, pairs.chosen, pairs.rejected_ids, strict=True)
    limit = {"max_length": config.max_length}
    return [policy.group(prompt_of(prompt), [human, own.tolist()], **limit) for prompt, human, own in columns]


def at_round(values: Sequence[float], t: int) -> float:
    return values[min(t, len(values) - 1)]
