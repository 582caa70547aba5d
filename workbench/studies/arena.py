"""The arena: every alignment method that exists, in one world, from one start, at one price.

The world is the any-order sum, which serves every kind of method: demonstrations, pairs, a judge, a reward, steps that
can be checked. All start from the same weights, get the same number of optimiser steps and about the same number of
generated tokens (pairs that a task hands over cost what their drawing cost). Each is trained at every learning rate of
`learning_rates`; the one with the best greedy accuracy on validation problems is measured, on test problems. The other
rates are not counted in the price, because all had them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from workbench.claims import Claims, interval
from workbench.config import Field, Presets, listed, strict
from workbench.kernels import count_cost, sample
from workbench.methods.align.dno import method as dno
from workbench.methods.align.dpo import method as dpo
from workbench.methods.align.dr_po import method as dr_po
from workbench.methods.align.mpo import method as mpo
from workbench.methods.align.sphere import method as sphere
from workbench.methods.align.spin import method as spin
from workbench.methods.align.sppo import method as sppo
from workbench.methods.align.step_dpo import method as step_dpo
from workbench.methods.experiment import run_arm
from workbench.models import Policy
from workbench.ranking import bradley_terry
from workbench.runs.run import Run
from workbench.training.checkpoints import load_weights
from workbench.training.reference import reference_logps
from workbench.worlds.any_order_sum import AnyOrderSum

SMALL_WORLD = {"k_min": 3, "k_max": 3, "sft_steps": 500, "width": 48, "layers": 1}  # three numbers: made in seconds
SMALL_PRICE = {"responses": 320, "steps": 40, "batch_size": 8, "learning_rates": [2e-4], "test_size": 30}
BRIEF = ["spin", "dpo", "simpo", "dpo_shuffled", "sppo", "dno", "step_dpo", "sphere", "dr_po"]  # a smoke run's arms


@strict
class Config(Presets):
    """The price, and how its result is measured."""

    responses: int = Field(default=1_200, ge=40)  # what may be generated, in whole responses
    # optimiser steps; a multiple of 40, so that every number of rounds divides it
    steps: int = Field(default=40, ge=40)
    batch_size: int = Field(default=32, ge=8)  # pairs or demonstrations a step
    learning_rates: list[float] = listed(3e-5, 2e-4)  # learning rates that every competitor gets
    test_size: int = Field(default=300, ge=20)  # test problems, and as many for validation
    arms: list[str] = listed()  # see COMPETITORS; [] takes all
    world: dict[str, int] = Field(default_factory=dict)  # settings of the embedded world, see AnyOrderSum

    PRESETS: ClassVar = {
        "smoke": SMALL_PRICE | {"world": SMALL_WORLD, "arms": BRIEF},
        "tiny": {},
        "full": {"responses": 20_000, "steps": 800, "test_size": 1_000},
    }

    def __post_init__(self):
        if self.steps % 40:
            raise ValueError(f"steps must be a multiple of 40, so that rounds can share them; got {self.steps}")
        if unknown := [arm for arm in self.arms if arm not in COMPETITORS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(COMPETITORS)}")
        object.__setattr__(self, "arms", self.arms or list(COMPETITORS))

    @property
    def response_tokens(self) -> int:
        """Tokens of a whole solution: three a number, and the answer with its end."""
        return 3 * self.world.get("k_max", 7) + 3


@dataclass(frozen=True)
class Competitor:
    """One arm of one method, and the settings that make its price the common one.

    Attributes:
        module, arm: the method's file, and which of its arms.
        settings: `settings(config, rate)` gives the fields of the method's `Config`.
        problems: `problems(config)` says how many training problems it may use.
        is_given: pairs come with the task: drawing them is part of the price.
    """

    title: str
    kind: str
    module: Any
    arm: str
    settings: Callable[[Config, float], dict[str, Any]]
    problems: Callable[[Config], int]
    is_given: bool = False


CONSTANT = {"schedule": "constant", "warmup_ratio": 0.0}


def _drawn(config: Config) -> dict[str, Any]:
    return {"temperature": 1.0, "max_new_tokens": config.response_tokens, "max_length": 64}


def _trained(config: Config, rate: Any, **more: Any) -> dict[str, Any]:
    return {"batch_size": config.batch_size, "learning_rate": rate, **more}


def _on_pairs(config: Config, rate: float, **loss: Any) -> dict[str, Any]:
    fixed = {"max_steps": config.steps, "test_size": 50, "optimizer": "adamw", "max_length": 64}
    return _trained(config, rate, **fixed, **loss)


def _in_rounds(config: Config, rate: float, **more: Any) -> dict[str, Any]:
    """Four rounds of five samples a prompt; every round has prompts of its own."""
    rounds = {"rounds": 4, "samples": 5, "n_prompts": config.responses // 20, "prompt_repeats": 0, "epochs": 1}
    fixed = {"top_p": 1.0, "optimizer": "adamw", "max_prompt_length": 40, **CONSTANT, **_drawn(config)}
    return _trained(config, rate, **rounds, **fixed, **more)


def _capped(config: Config, rate: float, **more: Any) -> dict[str, Any]:
    return _in_rounds(config, rate, max_steps=config.steps // 4, **more)


def _filled(config: Config, rate: float, **more: Any) -> dict[str, Any]:
    """DNO builds many pairs a prompt and draws from them what the steps of a round can use."""
    return _in_rounds(config, rate, max_pairs=config.steps // 4 * config.batch_size, **more)


def _spin(config: Config, rate: float) -> dict[str, Any]:
    """Three rounds; with the previous round's pairs they take one, two and two fifths of the steps."""
    n_prompts = _fifth(config)
    rounds = {"rounds": 3, "epochs": 1, "n_prompts": n_prompts, "test_size": max(8, n_prompts // 10)}
    return _trained(config, [rate], beta=[0.5], optimizer="adamw", **rounds, **CONSTANT, **_drawn(config))


def _fifth(config: Config) -> int:
    return config.steps // 5 * config.batch_size


def _online(config: Config, rate: float, *, updates: int = 0, responses: int = 0) -> dict[str, Any]:
    """Eight optimiser steps an update: four passes over two halves of its responses."""
    updates = updates or config.steps // 8
    size = 2 * ((responses or config.responses) // updates // 2)
    batches = {"updates": updates, "batch_size": size, "minibatch_size": size // 2, "inner_epochs": 4}
    measured = {"test_size": 50, "evaluations": 1, "ppo_checkpoint_every": 0}
    rates = {"learning_rate": rate, "critic_lr_ratio": 3.0, "schedule": "constant"}
    return {**batches, **rates, **measured, **_drawn(config)}


def _on_reward(config: Config, rate: float) -> dict[str, Any]:
    return {**_online(config, rate), "score_scale": 4.0}


def _on_steps(config: Config, rate: float) -> dict[str, Any]:
    """A response in each problem, and behind the error of a wrong one eight continuations."""
    drawn = {"n_problems": 0, "n_samples": 1, "n_continuations": 8, "pairs_per_prefix": 0, "n_answers": 0}
    fixed = {"top_p": 1.0, "max_prompt_length": 40, "test_size": 12, **CONSTANT, **_drawn(config)}
    return _trained(config, rate, max_steps=config.steps, beta=0.4, epochs=1, **drawn, **fixed)


def _searched(config: Config, rate: float) -> dict[str, Any]:
    """Two chains of four candidates a step: about eight responses a problem."""
    tree = {"width": 4, "depth": config.response_tokens // 3 + 1, "max_step_tokens": 4}
    fixed = {**CONSTANT, **_drawn(config), "temperature": 0.8, "n_problems": config.responses // 8}
    return _trained(config, rate, max_steps=config.steps, beta=0.4, epochs=1, **tree, **fixed)


def _in_stages(config: Config, rate: float) -> dict[str, Any]:
    """Half of the responses go into pairs, half into PPO; two updates of PPO, and what is left of the steps for DPO."""
    pairs = {"dpo_batch_size": config.batch_size, "dpo_learning_rate": rate, "dpo_beta": 0.1, "n_pairs": 0}
    reward = {"reward_learning_rate": 1e-3, "reward_epochs": 8, "folds": 2}
    online = _online(config, rate, updates=2, responses=config.responses // 2)
    return {"max_steps": config.steps - 16, **pairs, **reward, **online}


def _given(title: str, arm: str = "dpo", kind: str = "offline pairs", **loss: Any) -> Competitor:
    return Competitor(title, kind, dpo, arm, partial(_on_pairs, **loss), lambda c: c.responses // 2, is_given=True)


def _on_rewards(title: str, arm: str) -> Competitor:
    return Competitor(title, "online reward", dr_po, arm, _on_reward, lambda c: c.responses)


COMPETITORS: dict[str, Competitor] = {
    "sft": Competitor("SFT on right solutions", "demonstrations", spin, "sft", _spin, _fifth),
    "spin": Competitor("SPIN", "demonstrations", spin, "spin", _spin, _fifth),
    "dpo": _given("DPO", beta=0.1),
    "ipo": _given("IPO", loss_type="ipo", beta=0.5),
    "kto": _given("KTO on pairs", loss_type="kto_pair", beta=0.1),
    "simpo": _given("SimPO", loss_type="simpo", beta=2.0, gamma=1.0),
    "orpo": _given("ORPO", loss_type="orpo", beta=0.1),
    "sft_chosen": _given("SFT on the chosen responses", "sft"),
    "dpo_shuffled": _given("DPO, labels shuffled", "shuffled", "control", beta=0.1),
    "iterative_dpo": Competitor("iterative DPO", "self-play", sppo, "dpo_0.3", _capped, lambda c: c.responses // 5),
    "sppo": Competitor("SPPO", "self-play", sppo, "sppo", partial(_capped, eta=6.0), lambda c: c.responses // 5),
    "dno": Competitor("DNO-Prct", "self-play", dno, "dno", partial(_filled, eta=0.3), lambda c: c.responses // 5),
    "step_dpo": Competitor("Step-DPO", "step pairs", step_dpo, "step_dpo", _on_steps, lambda c: c.responses // 6),
    "sphere": Competitor("SPHERE, stage 1", "step pairs", sphere, "stage1", _searched, lambda c: c.responses // 8),
    "mpo": Competitor("MPO", "online reward", mpo, "mpo", _in_stages, lambda c: c.responses // 4, is_given=True),
    "ppo": _on_rewards("PPO", "ppo"),
    "dr_po": _on_rewards("DR-PO, half of the rollouts reset", "dr_po_50"),
}


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> AnyOrderSum:
    """The any-order sum.

    Raises:
        ValueError: a model or a data set was given; no data set holds what all kinds of methods learn from.
    """
    if model or dataset:
        needs = "the arena needs demonstrations, pairs, a judge, a reward and checked steps for the same prompts"
        remedy = "which only its embedded world has; leave both empty, and run single methods on your data"
        raise ValueError(f"model={model!r}, dataset={dataset!r}: {needs}, {remedy}")
    world: dict[str, Any] = dict(config.world)
    return AnyOrderSum(device=device, n_test=config.test_size, sampled_test=False, **world)


# ------------------------------------------------------------------------------------------------------------ the runs
def train_arm(task: AnyOrderSum, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    """Trains one competitor at every rate and measures the one that is best on the validation problems."""
    competitor = COMPETITORS[arm]
    task = replace(task, n_problems=competitor.problems(config))
    policy, start = task.start(seed), task.start(seed)  # made before any meter runs
    given = 0.0
    if competitor.is_given:
        task.preferences("test", seed)
        pairs = task.preferences("train", seed)
        given = task.n_problems * np.mean([_length(row["chosen"]) + _length(row["rejected"]) for row in pairs])
    tried = {rate: run.child(f"rate-{rate:g}") for rate in config.learning_rates}
    found = [attempt(task, competitor, config, rate, seed, child) for rate, child in tried.items()]
    best = max(found, key=lambda one: one["validation"])
    folder = tried[best["rate"]].folder
    load_weights(policy.model, last_weights(folder))
    price = {name: best[name] for name in ("generated_tokens", "optimizer_steps", "cpu_seconds", "rate")}
    price["generated_tokens"] += float(given)
    free = dict.fromkeys((*price, "validation"), 0.0) | {"validation": best["validation_start"]}
    begin = run.cached("start", lambda: measure(task, start, start, seed, run.child("start")))
    end = measure(task, policy, start, seed, run)
    for left in folder.parent.glob("rate-*"):  # weights of every round and rate: no longer needed
        shutil.rmtree(left)
    return [{**begin, **free}, {**end, "validation": best["validation"], **price}]


def attempt(
    task: AnyOrderSum, competitor: Competitor, config: Config, rate: float, seed: int, run: Run
) -> dict[str, float]:
    """One training at one rate: its accuracy on validation problems and what it cost."""

    def train() -> dict[str, float]:
        # a killed attempt starts over: its meter must see all of it
        shutil.rmtree(run.folder / "run", ignore_errors=True)
        settings = competitor.module.Config.at("tiny", arms=[competitor.arm], **competitor.settings(config, rate))
        began = time.process_time()
        with count_cost() as spent:
            start, *_, end = run_arm(competitor.module, task, settings, competitor.arm, seed, run.child("run"))
        cost = {name: spent[name] for name in ("generated_tokens", "optimizer_steps")}
        cost |= {"cpu_seconds": time.process_time() - began}
        return {"rate": rate, "validation": end["validation"], "validation_start": start["validation"], **cost}

    return run.cached("attempt", train)


def last_weights(folder: Any) -> Any:
    """The weights that a method's last round left somewhere under `folder`."""
    if not (found := list(folder.glob("**/round-*/weights.safetensors"))):
        why = "the method did not leave its weights there"
        raise FileNotFoundError(f"no round-*/weights.safetensors under {folder}: {why}")
    return max(found, key=lambda path: int(path.parent.name.removeprefix("round-")))


def measure(task: AnyOrderSum, policy: Policy, start: Policy, seed: int, run: Run) -> dict[str, float]:
    """Greedy accuracy, accuracy and score of samples, KL to the start, on the test problems; samples stay in `run`."""
    prompts = task.prompts("test", seed)
    drawn = sample(policy, prompts, max_new_tokens=task.max_new_tokens, max_rows=500, seed=77_000 + seed)
    texts = [found[0] for found in drawn.texts]
    groups = [policy.group(prompt, [tokens[0]]) for prompt, tokens in zip(prompts, drawn.tokens, strict=True)]
    kl = reference_logps(policy, groups) - reference_logps(start, groups)
    scores = task.score(prompts, texts)
    run.table("answers", lambda: pd.DataFrame({"prompt": prompts, "answer": texts, "score": scores}))
    numbers = task.evaluate(policy, seed)
    right = [task.verifier.is_right(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
    of_samples = {"sampled": float(np.mean(right)), "score": float(scores.mean()), "kl_nats": float(kl.mean())}
    return {"quality": numbers["quality"], "valid_steps": numbers["valid_steps"], **of_samples}


def _length(text: str) -> int:
    return len(text.split()) + 1


# --------------------------------------------------------------------------------------------------------- the ranking
def standings(experiment: Any, results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a competitor, best first: means over the seeds, with the Bradley-Terry strength of its samples.

    Every seed is a tournament: on each test problem, everyone's sample meets everyone else's, and the higher score
    wins. `strength` is the mean over the seeds' fits (nats, mean 0 in each), `lower` and `upper` its 95 % interval.
    """
    names = ["start", *experiment.config.arms]
    rows = []
    strengths = np.array([tournament(experiment, seed, names) for seed in experiment.seeds])
    for place, name in enumerate(names):
        arm = "dpo" if name == "start" and "dpo" in names else names[1] if name == "start" else name
        numbers = [result["arms"][arm][0 if name == "start" else -1] for result in results]
        low, high = interval(strengths[:, place])
        title, kind = ("the start", "control") if name == "start" else (COMPETITORS[name].title, COMPETITORS[name].kind)
        row = {"competitor": title, "kind": kind, "strength": strengths[:, place].mean(), "lower": low, "upper": high}
        rows.append(row | {key: float(np.mean([one[key] for one in numbers])) for key in SHOWN})
    return pd.DataFrame(rows).sort_values("strength", ascending=False, ignore_index=True)


SHOWN = ("quality", "valid_steps", "sampled", "kl_nats", "generated_tokens", "optimizer_steps", "cpu_seconds")


def tournament(experiment: Any, seed: int, names: Sequence[str]) -> np.ndarray:
    """Bradley-Terry strengths [competitor] of one seed, from the scores of everyone's samples on the same problems."""
    folder = experiment.run.folder / f"seed-{seed}"
    folders = [folder / (f"{names[1]}/start" if name == "start" else name) for name in names]
    scores = np.array([pd.read_parquet(folder / "answers.parquet")["score"] for folder in folders])
    first, second = np.triu_indices(len(names), 1)
    outcomes = (np.sign(scores[first] - scores[second]) + 1) / 2
    pairs = np.stack([first, second]).repeat(scores.shape[1], axis=1)
    return bradley_terry(np.vstack([pairs, outcomes.ravel()]).T, len(names), intervals="none").scores


# ------------------------------------------------------------------------------------------------------------- claims
CONTRASTS = {  # id: better, worse, statement; where the papers say so
    "steps": ("step_dpo", "dpo", "Step pairs beat whole-answer pairs at the same price"),
    "rounds": ("sppo", "dpo", "Rounds of fresh pairs beat one set of pairs at the same price"),
    "reward": ("ppo", "dpo", "Learning from a reward online beats learning from pairs offline"),
    "resets": ("dr_po", "ppo", "Resets to references beat plain PPO"),
    "selfplay": ("spin", "sft", "SPIN beats more SFT on its demonstrations"),
}
PAPERS = {
    "steps": "2406.18629, Table 3: 55.8 against 55.0",
    "rounds": "2405.00675, Table 1: rounds improve",
    "reward": "2404.08495, Table 1: 62.3 against 52.6 %",
    "resets": "2404.08495, Table 1: 70.2 against 62.3 %",
    "selfplay": "2401.01335, Fig. 5: 60.8 against 59.8",
}


def claims(experiment: Any, results: Sequence[Mapping[str, Any]]) -> Claims:
    """Each competitor against the start, and contrasts that papers claim; greedy accuracy on test problems.

    The control of every claim is DPO with shuffled labels, which costs the same and knows nothing.
    """
    found = Claims("arena", experiment.scale, experiment.seeds)
    arms = experiment.config.arms

    def gain(arm: str) -> np.ndarray:
        return np.array([result["arms"][arm][-1]["quality"] - result["arms"][arm][0]["quality"] for result in results])

    if "dpo_shuffled" not in arms:
        raise ValueError("the claims need the control 'dpo_shuffled'; add it to `arms`")
    control, shuffled = gain("dpo_shuffled"), "DPO, labels shuffled, minus"
    for name in arms:
        if COMPETITORS[name].kind != "control":
            given = {"measured": gain(name), "control": control, "control_is": f"{shuffled} the start"}
            statement, paper = f"{COMPETITORS[name].title} beats the start", "not measured at one price"
            found.test(name, statement, paper=paper, unit="greedy accuracy", **given)
    for id, (better, worse, statement) in CONTRASTS.items():
        if {better, worse} <= set(arms):
            given: dict[str, Any] = {"measured": gain(better) - gain(worse), "control": control - gain(worse)}
            given |= {"control_is": f"{shuffled} {worse}", "paper": PAPERS[id], "unit": "greedy accuracy"}
            found.test(f"{id}: {better} > {worse}", statement, **given)
    return found
