"""SPHERE: preference data for reasoning from a pruned search, without annotators.

Needs problems with final answers and a process reward model. Stage 1: for each problem search two chains of steps,
always the best and always the worst of E candidates by process reward; where the best chain ends right and the worst
wrong, they are a pair. Stage 2: where no chain was right, the model is shown its own wrong chain and searches again; a
right chain now wins against the wrong one. Stage 3: where both were right, a smaller model searches with width 2E; its
worst chain, if wrong, loses against the right one. Then DPO on whole answers, end token included:

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

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import objectives
from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.kernels import Group
from workbench.methods.align.sphere.search import cost_of, dependence, describe_pairs, random_pairs, search
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import ReasoningTask
from workbench.tasks.reasoning.problems import ProblemTask
from workbench.tasks.reasoning.process_reward import Scores, SimulatedPrm
from workbench.tasks.reasoning.step_pairs import Drawing
from workbench.training.loop import TrainConfig
from workbench.training.reference import pair_rows
from workbench.training.rounds import Round, iterate
from workbench.training.steps import preference_step
from workbench.worlds.any_order_sum import AnyOrderSum

log = logging.getLogger(__name__)

SHARD = 200  # problems searched between two writes
KINDS = {1: "best-vs-worst", 2: "corrected-vs-wrong", 3: "small-model-error"}


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


ARMS: dict[str, Arm] = {
    "sphere": Arm("SPHERE, stages 1+2+3"),
    "stage1": Arm("stage 1", (1,)),
    "stage12": Arm("stages 1+2", (1, 2)),
    "stage13": Arm("stages 1+3", (1, 3)),
    "random": Arm("random right and wrong samples", (0,)),
    "exact": Arm("stage 1, PRM without noise", (1,), noise=0.0),
    "noisy": Arm("stage 1, PRM with much noise", (1,), noise=3.0),
    "coin": Arm("stage 1, PRM is a coin", (1,), noise=math.inf),
    "unchecked": Arm("stage 1, rejected need not be wrong", (1,), checked=False),
    "shuffled": Arm("SPHERE, labels shuffled", labels="shuffled"),
    "cross": Arm("the smaller model on the same pairs", learner="small"),
    "cross_shuffled": Arm("the smaller model, labels shuffled", labels="shuffled", learner="small"),
}


@strict
class Config(Presets):
    """Defaults are the paper's where it can be read, else ours."""

    width: int = Field(default=5, ge=2)  # E, candidates a step; paper: 5 (the smaller model: 2E = 10)
    depth: int = Field(default=20, ge=1)  # D, steps; ours, the paper's is not known
    temperature: float = Field(default=0.8, gt=0)  # paper
    top_p: float = Field(default=1.0, gt=0, le=1)
    reward: Literal["progress", "score"] = "progress"  # from memory
    prm_certainty: float = Field(default=2.0, gt=0)  # logits, of the simulated process reward model; specification
    prm_noise: float = Field(default=1.0, ge=0)  # logits, the same; specification: 0, 1 and 3
    n_random: int = Field(default=8, ge=2)  # whole samples a problem for random pairs; specification
    beta: float = Field(default=0.1, gt=0)  # 1/nat; ours
    learning_rate: float = Field(default=5e-7, gt=0)  # peak; ours (5e-6 with LoRA)
    epochs: int = Field(default=1, ge=1)  # ours
    max_steps: int = Field(default=0, ge=0)  # optimiser steps; 0: all epochs
    batch_size: int = Field(default=64, ge=1)  # pairs; ours
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    n_problems: int = Field(default=20_000, ge=1)  # paper: about 20k
    max_step_tokens: int = Field(default=256, ge=1)  # ours
    max_new_tokens: int = Field(default=2048, ge=1)  # of a whole answer
    max_length: int = Field(default=4096, ge=2)  # tokens of problem and answer
    test_size: int = Field(default=500, ge=1)  # held-out problems
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: none
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    small_model: str = ""  # folder or hub id; real text only
    prm: str = ""  # folder or hub id of the process reward model; real text only
    arms: list[str] = listed("sphere", "stage1", "shuffled")  # see ARMS
    world: dict[str, float] = Field(default_factory=dict)  # settings of the embedded world, see AnyOrderSum

    PRESETS: ClassVar = {
        # the specification's small experiment; policy of width 96 and 2 layers as for Step-DPO, for time
        "tiny": {
            "width": 4,
            "depth": 9,
            "beta": 0.4,
            "learning_rate": 3e-5,
            "epochs": 4,
            "batch_size": 32,
            "n_problems": 600,
            "max_step_tokens": 4,
            "max_new_tokens": 24,
            "max_length": 64,
            "arms": list(ARMS),
            "world": {"k_min": 5, "n_test": 500},
        },
        # three numbers and a start that knows little
        "smoke": {
            "width": 3,
            "depth": 5,
            "beta": 0.4,
            "learning_rate": 1e-4,
            "epochs": 1,
            "batch_size": 16,
            "n_problems": 60,
            "max_step_tokens": 4,
            "max_new_tokens": 12,
            "max_length": 40,
            "arms": [arm for arm in ARMS if arm not in ("stage12", "stage13", "exact", "noisy")],
            "world": {
                "k_min": 3,
                "k_max": 3,
                "n_test": 60,
                "sft_steps": 250,
                "width": 48,
                "layers": 1,
                "small_width": 32,
                "small_steps": 150,
            },
        },
        "full": {"precision": "bf16"},
    }
    ON_TEXT: ClassVar = {
        "tiny": {
            "learning_rate": 3e-5,
            "n_problems": 200,
            "max_new_tokens": 256,
            "max_step_tokens": 64,
            "depth": 8,
            "test_size": 100,
        },
        "smoke": {
            "learning_rate": 3e-5,
            "n_problems": 8,
            "max_new_tokens": 16,
            "max_step_tokens": 6,
            "depth": 2,
            "width": 2,
            "test_size": 8,
            "max_length": 512,
            "n_random": 2,
            "batch_size": 8,
            "arms": ["stage1", "shuffled"],
        },
    }

    def __post_init__(self):
        if unknown := [arm for arm in self.arms if arm not in ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(ARMS)}")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Any:
    """The any-order sum with easy, middle and hard problems and a start that knows how to try again; or real problems.

    Raises:
        ValueError: one of model and dataset without the other; no process reward model for real text; arms that need
            what is not there.
    """
    if not dataset and not model:
        world: dict[str, Any] = {name: int(value) for name, value in config.world.items()}
        balanced = world.get("k_max", 7) > 4  # three numbers cannot touch three misconceptions often enough
        return AnyOrderSum(n_problems=config.n_problems, balanced=balanced, retry_share=0.15, device=device, **world)
    if not dataset or not model:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real text, or neither for the embedded world"
        )
    if not config.prm:
        raise ValueError("real text needs a process reward model: set `prm` to a folder or hub id")
    if simulated := [arm for arm in config.arms if ARMS[arm].noise is not None]:
        raise ValueError(f"arms {simulated} add noise to a simulated process reward model; leave them out of `arms`")
    if not config.small_model and (
        small := [a for a in config.arms if 3 in ARMS[a].stages or ARMS[a].learner == "small"]
    ):
        raise ValueError(f"arms {small} need a smaller model: set `small_model`, or leave them out of `arms`")
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    return ProblemTask(
        dataset,
        model,
        small_model=config.small_model,
        prm=config.prm,
        device=device,
        test_size=config.test_size,
        train_size=config.n_problems,
        lora=lora,
        precision=config.precision,
        opening="",
        max_new_tokens=config.max_new_tokens,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: ReasoningTask, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed. Returns `{"arms": {arm: [before, after]}, "search": {arm: counts of its pairs}}`."""
    arms = {arm: run_arm(task, config, arm, seed, run) for arm in config.arms}
    data = run.child("search")
    made = {
        arm: data.cached(f"counts-{arm}", lambda arm=arm: counted(task, config, ARMS[arm], seed, data)) for arm in arms
    }
    return {"arms": arms, "search": made}


def run_arm(task: ReasoningTask, config: Config, arm: str, seed: int, run: Run) -> list[dict[str, float]]:
    data = run.child("search")  # arms with the same process reward model share their search
    return run.cached(f"arm-{arm}", lambda: play(task, config, ARMS[arm], seed, run.child(arm), data))


def play(
    task: ReasoningTask, config: Config, arm: Arm, seed: int, run: Run, data: Run | None = None
) -> list[dict[str, float]]:
    """One arm: pairs from the search (made by the policy, whoever learns), DPO, numbers before and after."""
    rows = make_pairs(task, config, arm, seed, data or run.child("search"))
    if not len(rows):
        raise ValueError(
            f"the search gave no pair: {counted(task, config, arm, seed, data or run.child('search'))['routes']}"
        )
    policy = task.small(seed) if arm.learner == "small" else task.start(seed)

    def make_round(policy: Policy, t: int) -> Round:
        training = TrainConfig(
            learning_rate=config.learning_rate,
            epochs=config.epochs,
            batch_size=config.batch_size,
            warmup_ratio=config.warmup_ratio,
            schedule=config.schedule,
            max_steps=config.max_steps,
            checkpoint_every=config.checkpoint_every,
        )
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < (0.5 if arm.labels == "shuffled" else 0)
        groups = []
        for row, swapped in zip(rows.to_dict("records"), swap, strict=True):
            # an answer that was cut off has not ended
            rejected = row["rejected"] if row["rejected_ended"] else policy.encode_part(row["rejected"])
            group = policy.group(row["prompt"], [row["chosen"], rejected], max_length=config.max_length)
            groups.append(Group(group.prompt_ids, group.responses_ids[::-1] if swapped else group.responses_ids))
        pairs = pair_rows(policy, [f"pair {i}" for i in range(len(groups))], groups)
        return Round(pairs, preference_step(objectives.dpo, beta=config.beta), training, math.log(2))

    def evaluate(policy: Policy, t: int) -> dict[str, float]:
        return {**task.evaluate(policy, seed), "train_pairs": len(rows)}

    return iterate(policy, 1, make_round, evaluate, run, seed=seed)


# ------------------------------------------------------------------------------------------------- search and stages
def make_pairs(task: Any, config: Config, arm: Arm, seed: int, data: Run) -> Any:
    """The pairs of an arm: prompt, chosen, rejected, rejected_ended, stage, kind. Chosen ends right, rejected wrong.

    Raises:
        RuntimeError: a pair whose sides are not that, or are the same: it would teach the opposite.
    """
    name = prm_name(config, arm)
    if arm.stages == (0,):
        pairs = random_rows(task, config, seed, data)
    else:
        made = {
            stage: data.table(
                f"{name}-pairs{stage}{'' if arm.checked else '-unchecked'}",
                partial(stage_pairs, task, config, arm, stage, seed, data),
            )
            for stage in arm.stages
        }
        pairs: Any = pd.concat(list(made.values()), ignore_index=True)
    check = task.verifier
    for row in pairs.to_dict("records"):
        wrong = not arm.checked or not (row["rejected_ended"] and check.is_right(row["prompt"], row["rejected"]))
        if not check.is_right(row["prompt"], row["chosen"]) or not wrong or row["chosen"] == row["rejected"]:
            raise RuntimeError(
                f"problem {row['prompt'][:60]!r}, stage {row['stage']}: chosen must be right and rejected wrong"
            )
    return pairs


def stage_pairs(task: Any, config: Config, arm: Arm, stage: int, seed: int, data: Run) -> Any:
    """Pairs of one stage from the chains of its search."""
    rows = []
    first = searched(task, config, arm, 1, seed, data)
    if stage == 1:
        for row in first.to_dict("records"):
            wrong = row["correct_min"] == "wrong" if arm.checked else row["correct_min"] != "unsure"
            if (
                row["correct_max"] == "right"
                and wrong
                and (arm.checked or _text(row["sol_max"]) != _text(row["sol_min"]))
            ):
                rows.append((row, _text(row["sol_max"]), _text(row["sol_min"]), not row["truncated_min"]))
    else:
        before: Any = first.set_index("number")
        for row in searched(task, config, arm, stage, seed, data).to_dict("records"):
            original = before.loc[row["number"]]
            if stage == 2:
                right = next((row[f"sol_{side}"] for side in ("max", "min") if row[f"correct_{side}"] == "right"), None)
                if right is not None:
                    rows.append((row, _text(right), _text(original["sol_max"]), not original["truncated_max"]))
            elif row["correct_min"] == "wrong":
                rows.append((row, _text(original["sol_max"]), _text(row["sol_min"]), not row["truncated_min"]))
    return pd.DataFrame(
        [
            (row["problem"], chosen, rejected, ended, stage, KINDS[stage], row["number"])
            for row, chosen, rejected, ended in rows
        ],
        columns=["prompt", "chosen", "rejected", "rejected_ended", "stage", "kind", "number"],
    )


def searched(task: Any, config: Config, arm: Arm, stage: int, seed: int, data: Run) -> Any:
    """The chains of a stage: all problems in stage 1; in stage 2 those where no chain was right, asked to correct the
    best one; in stage 3 those where both were right, by the smaller model with twice the width. Shard by shard."""
    name = f"{prm_name(config, arm)}-stage{stage}"
    problems = [row["prompt"] for row in task.problems("train", seed)][: config.n_problems]
    asked, numbers = list(problems), list(range(len(problems)))
    if stage > 1:
        first = searched(task, config, arm, 1, seed, data)
        verdict = "wrong" if stage == 2 else "right"
        routed: Any = first[(first["correct_max"] == verdict) & (first["correct_min"] == verdict)]
        numbers = routed["number"].tolist()
        wrong = dict(zip(routed["number"], map(_text, routed["sol_max"]), strict=True))
        asked = [task.correction(problems[i], wrong[i]) if stage == 2 else problems[i] for i in numbers]
    policies: list[Policy] = []  # loaded only where a shard is missing

    def draw(start: int) -> Any:
        policies.extend([] if policies else [task.small(seed) if stage == 3 else task.start(seed)])
        part = slice(start, start + SHARD)
        how = Drawing(policies[0], config.temperature, config.top_p, config.max_step_tokens, seed * 10 + stage)
        found = search(
            how,
            asked[part],
            [problems[i] for i in numbers[part]],
            prm_of(task, config, arm, seed),
            depth=config.depth,
            width=config.width * (2 if stage == 3 else 1),
            stop=task.delimiters,
            judge=judge_of(task),
            reward=config.reward,
            offset=start,
        )
        if start == 0:
            data.table(f"{name}-tree", lambda: found.nodes)
        return found.chains.assign(number=numbers[part], stage=stage, policy="small" if stage == 3 else "policy")

    return _in_shards(data, name, draw, len(numbers))


def random_rows(task: Any, config: Config, seed: int, data: Run) -> Any:
    """As many random pairs of a right and a wrong whole sample as stage 1 gives pairs."""
    problems = [row["prompt"] for row in task.problems("train", seed)][: config.n_problems]

    def draw(start: int) -> Any:
        how = Drawing(task.start(seed), config.temperature, config.top_p, config.max_new_tokens, seed * 10 + 9)
        opening = getattr(task, "opening", "")
        return random_pairs(
            how, problems[start : start + SHARD], n=config.n_random, judge=judge_of(task), opening=opening, offset=start
        )

    table: Any = _in_shards(data, "random", draw, len(problems))
    wanted = len(make_pairs(task, config, ARMS["stage1"], seed, data))
    both = table[(table["chosen"] != "") & (table["rejected"] != "")].sample(frac=1.0, random_state=seed)[:wanted]
    both = both.rename(columns={"problem": "prompt"}).assign(stage=0, kind="random")
    return both[["prompt", "chosen", "rejected", "rejected_ended", "stage", "kind", "number"]].reset_index(drop=True)


def _in_shards(data: Run, name: str, draw: Callable[[int], pd.DataFrame], n: int) -> Any:
    """A table made of parts that are stored one by one: a killed call searches no shard twice."""
    parts = [data.table(f"{name}-{start}", partial(draw, start)) for start in range(0, max(n, 1), SHARD)]
    return pd.concat(parts, ignore_index=True)


def prm_name(config: Config, arm: Arm) -> str:
    return f"prm-{config.prm_noise if arm.noise is None else arm.noise:g}"


def prm_of(task: Any, config: Config, arm: Arm, seed: int) -> Scores:
    """The task's process reward model, or a simulated one of known quality where its verifier is an oracle."""
    if not getattr(task.verifier, "is_oracle", False):
        return task.verifier.scores
    noise = config.prm_noise if arm.noise is None else arm.noise
    return SimulatedPrm(task.verifier.first_wrong, config.prm_certainty, noise, seed)


def judge_of(task: Any) -> Callable[[str, str], bool | None]:
    return getattr(task.verifier, "judge", task.verifier.is_right)


def _text(steps: Sequence[str]) -> str:
    return "".join(steps)


def counted(task: Any, config: Config, arm: Arm, seed: int, data: Run) -> dict[str, Any]:
    """Pairs of an arm by stage and difficulty, what they cost, and how wrong the rejected ones are."""
    band = getattr(task, "band", lambda prompt: "all")
    bands = [band(row["prompt"]) for row in task.problems("train", seed)][: config.n_problems]
    if arm.stages == (0,):
        drawn = _in_shards(data, "random", lambda _: pd.DataFrame(), len(bands))
        cost = {
            "pairs_found": int(((drawn["chosen"] != "") & (drawn["rejected"] != "")).sum()),
            "routes": {},
            "tokens": int(drawn["tokens"].sum()),
            "samples": config.n_random * len(drawn),
        }
    else:
        cost = cost_of(
            {stage: searched(task, config, arm, stage, seed, data) for stage in {1, *arm.stages}}, config.width
        )
    pairs = make_pairs(task, config, arm, seed, data)
    return {"pairs_found": len(pairs), **cost, **describe_pairs(pairs, bands, task.verifier)}


# ----------------------------------------------------------------------------------------------------------- claims
def claims(experiment: Any, results: Sequence[dict]) -> Claims:
    """The specification's claims over the seeds, each beside its control."""
    found = Claims("sphere", experiment.scale, experiment.seeds)
    arms = set(results[0]["arms"])

    def after(arm: str, key: str = "quality", when: int = 1) -> np.ndarray:
        return np.array([result["arms"][arm][when][key] for result in results])

    def made(arm: str, key: str) -> np.ndarray:
        return np.array([result["search"][arm][key] for result in results], dtype=float)

    def add(
        id: str, statement: str, paper: str, measured: np.ndarray, control: np.ndarray, control_is: str, **options: Any
    ) -> None:
        options = {"unit": "of problems, greedy", **options}
        found.test(id, statement, paper=paper, measured=measured, control=control, control_is=control_is, **options)

    main, start = "sphere" if "sphere" in arms else "stage1", after(next(iter(results[0]["arms"])), when=0)
    unread, design = "direction only; figures not readable", "by design, no figure"
    if "shuffled" in arms:
        add(
            "C1",
            "Trained models beat their start",
            unread,
            after(main) - start,
            after("shuffled") - start,
            "labels shuffled",
        )
    if {"cross", "cross_shuffled"} <= arms:
        gain = {arm: after(arm) - after(arm, when=0) for arm in ("cross", "cross_shuffled")}
        add(
            "C3",
            "Another model gains from the same data",
            unread,
            gain["cross"],
            gain["cross_shuffled"],
            "labels shuffled",
            also={"the model that made the data gains": bool(np.mean(after(main) - start) > 0)},
        )
    if {"stage1", "random", "coin"} <= arms:
        control = "stage 1 with a coin for process rewards"
        add(
            "C4",
            "Best against worst trains better than random right and wrong samples",
            design,
            after("stage1") - after("random"),
            after("coin") - after("random"),
            control,
        )
        errors = {arm: made(arm, "wrong_steps") for arm in ("stage1", "random", "coin")}
        if np.isfinite(list(errors.values())).all():
            add(
                "C4 errors",
                "Rejected chains have more wrong steps than random wrong samples",
                design,
                errors["stage1"] - errors["random"],
                errors["coin"] - errors["random"],
                control,
                unit="steps",
            )
        cheap = {arm: 1e3 * made(arm, "pairs_found") / made(arm, "tokens") for arm in errors}
        add(
            "C4 yield",
            "More pairs from as many tokens than random samples",
            design,
            cheap["stage1"] - cheap["random"],
            cheap["coin"] - cheap["random"],
            control,
            unit="pairs in 1,000 tokens",
        )
        if {"exact", "noisy", "shuffled"} <= arms:
            add(
                "C4 noise",
                "A noisy process reward model trains better than a coin",
                design,
                after("noisy") - after("coin"),
                after("shuffled") - start,
                "labels shuffled, against the start",
                also={"without noise not below much noise": bool(after("exact").mean() >= after("noisy").mean())},
            )
    if {"sphere", "stage1", "shuffled"} <= arms:
        others = [arm for arm in ("stage12", "stage13") if arm in arms]
        add(
            "C5",
            "Stages 2 and 3 do not harm: at most 2 points below stage 1 alone",
            design,
            after("sphere") - after("stage1"),
            after("shuffled") - after("stage1"),
            "SPHERE with labels shuffled",
            margin=-0.02,
            note=", ".join(f"{ARMS[arm].title} {after(arm).mean() - after('stage1').mean():+.3f}" for arm in others),
        )
        tables: Any = [
            pd.DataFrame(result["search"]["sphere"]["table"], columns=["stage", "band"]) for result in results
        ]
        if len(results[0]["search"]["sphere"]["problems"]) > 1:
            rng: Any = np.random.default_rng(0)
            counts: Any = [pd.crosstab(t["stage"], t["band"]) for t in tables]
            pairs = [
                {
                    (s, b): int(c.at[s, b]) if s in c.index and b in c.columns else 0
                    for s in (1, 2, 3)
                    for b in ("easy", "middle", "hard")
                }
                for c in counts
            ]
            of_first = {b: sum(p[1, b] for p in pairs) for b in ("easy", "middle", "hard")}
            add(
                "C5 yield",
                "Stages 2 and 3 find pairs where stage 1 finds none, each on its own kind of problems",
                design,
                np.array([dependence(t["stage"], t["band"]) for t in tables]),
                np.array([dependence(t["stage"], rng.permutation(t["band"])) for t in tables]),
                "difficulty shuffled",
                unit="of chi-square a pair",
                also={
                    "stage 2 has pairs on hard problems": all(p[2, "hard"] > 0 for p in pairs),
                    "stage 3 has pairs on easy problems": all(p[3, "easy"] > 0 for p in pairs),
                    "stage 1 has most on middle problems": max(of_first, key=lambda b: of_first[b]) == "middle",
                },
            )
    if len(results[0]["search"][main].get("routes", {})):
        log_ratio, most = made(main, "log10_of_tree"), made(main, "most_of_2ED")
        add(
            "C6",
            "Cost is linear in depth: 2 E D samples, not E^D",
            design,
            log_ratio,
            np.zeros(len(results)),
            "every node expanded",
            direction="less",
            unit="powers of ten of a whole tree",
            also={"never more than 2 E D": bool((most <= 1).all())},
        )
    found.needs_full_scale(
        "C2", "Matches or passes GPT-4o on some benchmarks", "abstract", "needs benchmarks and models of 7B"
    )
    return found
