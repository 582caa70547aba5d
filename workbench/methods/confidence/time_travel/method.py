"""Time travel: has a model seen this benchmark partition? Name it, ask for the rest of an instance, and compare.

    1. cut       each instance into a first and a second piece, at 40 to 70 % of its sentences          completions.py
    2. complete  the first piece twice, greedily: once told which split of which data set it comes from (guided), once
                 without any name (general)
    3. score     both completions by their overlap with the second piece (ROUGE-L F1, or BLEURT), and have a judge
                 label them as exact, near-exact or no match
    4. decide    for each partition, from ten instances                                                     verdicts.py

        method 1   p = 1 - (1/B) #{b : mean*_b(guided overlap) > mean*_b(general overlap)},   contaminated if p <= alpha
        method 2   contaminated if there are >= 1 exact or >= 2 near-exact matches among the guided completions

    with mean*_b over a bootstrap resample b of the instances.

Needs partitions of a benchmark and a chat model; nothing else of the model is seen (partitions.py).

Source: Golchin and Surdeanu 2024, "Time Travel in LLMs: Tracing Data Contamination in Large Language Models", arXiv
2308.08493; official code shahriargolchin/time-travel-in-llms at 010c5e5.

Where this differs from the official code, and why:
- Paired resamples: the same instances on both sides. The code draws the sides apart, but the p-values released with the
  paper follow the paired test. `rougeL_unpaired` stands beside it, and so does an exact sign-flip permutation, because
  the bootstrap of ten items rejects more than its 5 %.
- Every instance has a cut of its own. The code seeds again for each, so all are cut at one fraction
  (`constant_fraction=True`). Sentences are found by rule, not by NLTK; instructions and judge prompt are our wording.
- A completion that begins with the first piece loses it once, and one pair of quotes, before it is scored.
- A deterministic matcher judges beside (or without) a judge model; Holm's correction over partitions is added.
"""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench import tasks
from workbench.config import Field, Presets, Source, listed, strict
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.time_travel.completions import (
    Split,
    bleurt,
    check_instances,
    complete,
    fitting,
    match_judge,
    split_instances,
)
from workbench.methods.confidence.time_travel.partitions import PartitionFile, RecordedScores, choose
from workbench.methods.confidence.time_travel.verdicts import Rule, error_rates, verdict_table
from workbench.methods.confidence.time_travel.world import NamedDataSets
from workbench.runs.run import Run
from workbench.stats.text_overlap import edit_similarity, rouge_l

MATCHER, JUDGE = "matcher", "judge"


@strict
class Config(Presets):
    """Defaults are the paper's where it gives one, else the official code's."""

    n_instances: int = Field(default=10, ge=5)  # of each partition; paper: 10
    min_p: float = Field(default=40.0, ge=0, le=100)  # per cent of a text's units shown at least; official code
    max_p: float = Field(default=70.0, ge=0, le=100)  # and at most; official code
    constant_fraction: bool = False  # True cuts as the official code does
    cut_seed: int = Field(default=42, ge=0)  # of the cuts; official code
    split: bool = True  # False takes the columns first_piece and second_piece as they are
    instructions: list[Literal["guided", "general"]] = listed("guided", "general")  # guided alone leaves method 2
    metrics: list[Literal["rougeL", "edit"]] = listed("rougeL", "edit")  # edit similarity is ours
    bleurt: Source = ""  # file with scores or folder of a regressor; empty: without (paper: BLEURT-20)
    max_new_tokens: int = Field(default=500, ge=1)  # paper: at most 500, temperature 0
    bootstrap: int = Field(default=10_000, ge=100)  # resamples B; paper
    alpha: float = Field(default=0.05, gt=0, lt=1)  # paper
    min_exact: int = Field(default=1, ge=1)  # matches in a partition; paper
    min_near: int = Field(default=2, ge=1)  # paper
    judge: Source = ""  # folder or hub id of a judge; empty: the deterministic matcher alone
    judge_tokens: int = Field(default=10, ge=1)  # of the judge's reply; paper
    task: Literal["cls", "nli", "sum", "xsum"] = "sum"  # of a file's rows without the column `task`
    partition: str = "train"  # split of a file's rows without the column `split`
    text_column: str = ""  # of a file; empty: text, or the prompt of preference data
    simulations: int = Field(default=400, ge=20)  # partitions of the simulation behind the error rates; ours
    learner: Literal["transformer", "simulated"] = "transformer"  # of the embedded world
    garbled: float = Field(default=0.02, ge=0, le=1)  # share of broken replies of simulated models; ours
    world: dict[str, Any] = Field(default_factory=dict)  # attributes of NamedDataSets

    arms: ClassVar[tuple[str, ...]] = ("planted", "clean")  # models of the embedded world; the second is the control

    def __post_init__(self):
        super().__post_init__()
        if self.min_p > self.max_p:
            raise ValueError(f"min_p must not be above max_p; got {self.min_p:g} and {self.max_p:g}")
        if "guided" not in self.instructions or not self.metrics:
            raise ValueError("instructions needs 'guided' (nothing is found without it), metrics at least one name")


def open_task(
    config: Config, *, model: str = "", dataset: str = "", device: str = "auto"
) -> NamedDataSets | PartitionFile | RecordedScores:
    """The embedded world; released scores (a JSON file with `partitions`); or partitions of a file with a model."""
    if recorded := RecordedScores.recognise(dataset):
        return recorded
    own = {name: getattr(config, name) for name in ("arms", "n_instances", "learner", "garbled")} | {"device": device}
    world = partial(NamedDataSets, **{**own, **config.world})
    given = {name: getattr(config, name) for name in ("judge", "task", "partition", "text_column")}
    real = partial(PartitionFile.load, dataset, model=model, device=device, **given)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


class Evidence(NamedTuple):
    """What the tests read: instances, their overlap scores, their match labels by judge, and what was counted."""

    instances: pd.DataFrame
    overlap: pd.DataFrame
    matches: pd.DataFrame
    counts: dict[str, int]


def run(task: Any, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Both methods on every partition of every arm, for one seed.

    Returns:
        `{"arms": {arm: {"verdicts", "truth", "counts"}}, "statistics", "replies"}`. The run folder gets the
        transcript and for each arm the tables instances, rejected, completions, overlap, matches and verdicts.
    """
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)
    # Where nothing is asked more rounds cost little: two released p-values are as near to alpha as 10,000 can tell.
    rounds = config.bootstrap * (10 if isinstance(task, RecordedScores) else 1)
    rule = Rule(rounds, config.alpha, config.min_exact, config.min_near, seed)
    arms: dict[str, Any] = {}
    for arm in task.arms:
        part = run.child(arm.replace("/", "_"))
        if isinstance(task, RecordedScores):
            evidence = Evidence(*task.evidence(arm), {})
            part.table("overlap", lambda e=evidence: e.overlap)
        else:
            evidence = collect(task, arm, config, seed, part, transcript)
        verdicts = part.table("verdicts", lambda e=evidence, arm=arm: verdict_table(*e[:3], arm, rule))
        known = truth(task, arm, seed, verdicts)
        arms[arm] = {"verdicts": verdicts.to_dict("records"), "truth": known, "counts": evidence.counts}
    return {"arms": arms, "statistics": error_rates(config.simulations, rule), "replies": len(transcript)}


def train_arm(task: Any, config: Config, arm: str, seed: int, run: Run) -> None:
    """Trains the model of one arm of the embedded world, which is nearly all of a seed's time, before `run` asks it."""
    if isinstance(task, NamedDataSets):
        task.subject(arm, seed)


def collect(task: Any, arm: str, config: Config, seed: int, run: Run, transcript: Transcript) -> Evidence:
    """Cut, ask with and without the name, score and judge: tables of one model."""
    model, judge = task.subject(arm, seed), task.judge(seed)
    cut = [
        prepare(part, name, config, seed) for name, part in task.rows(seed).groupby(["dataset", "split"], sort=False)
    ]
    rejected = run.table("rejected", lambda: pd.concat([part.rejected for part in cut], ignore_index=True))
    all_instances = run.table("instances", lambda: pd.concat([part.instances for part in cut], ignore_index=True))
    fits = fitting(all_instances, model, config.instructions, config.max_new_tokens)
    instances: Any = all_instances[fits].reset_index(drop=True)
    if instances.empty:
        raise ValueError(
            f"no instance fits into the context of {model.name} with max_new_tokens={config.max_new_tokens}"
        )

    def ask() -> pd.DataFrame:
        options: dict[str, Any] = {"transcript": transcript, "seed": seed}
        parts = [complete(instances, model, i, config.max_new_tokens, **options) for i in config.instructions]
        return pd.concat(parts, ignore_index=True)

    completions: Any = run.table("completions", ask)
    joined = completions.merge(instances, on="instance_id", validate="many_to_one")
    measures = [*config.metrics, *(["bleurt"] if config.bleurt else [])]
    overlaps = run.table(
        "overlap", lambda: pd.concat([overlap(joined, m, config.bleurt) for m in measures], ignore_index=True)
    )
    judges = {MATCHER: None} | ({JUDGE: judge} if judge else {})

    def judged() -> pd.DataFrame:
        options: dict[str, Any] = {"transcript": transcript, "max_tokens": config.judge_tokens}
        parts = [match_judge(joined, judge, **options).assign(judge=name) for name, judge in judges.items()]
        return pd.concat(parts, ignore_index=True)

    counts = {"rejected": len(rejected), "too_long": int((~fits).sum())}
    counts |= {"repeated_first_piece": int(completions["repeated"].sum())}
    counts |= {"empty": int((completions["text"] == "").sum()), "completions": len(completions)}
    return Evidence(instances, overlaps, run.table("matches", judged), counts)


def prepare(part: pd.DataFrame, name: Any, config: Config, seed: int) -> Split:
    """The instances of one partition, cut or taken as they are, at most `n_instances` of them."""
    if "instance_id" not in part:
        part = part.assign(instance_id=[f"{'/'.join(name)}/{i}" for i in range(len(part))])
    if config.split:
        bounds = (config.min_p, config.max_p, config.cut_seed)
        cut = split_instances(part, part["task"].iloc[0], *bounds, constant_fraction=config.constant_fraction)
    else:
        cut = check_instances(part)
    return Split(choose(cut.instances, cut.rejected, config.n_instances, seed, "/".join(name)), cut.rejected)


def overlap(df: pd.DataFrame, metric: str, scorer: str = "") -> pd.DataFrame:
    """Columns `instance_id, instruction, metric, score` (two decimals; an empty completion scores 0).

    Args:
        df: completions joined with the pieces of their instances.
        scorer: of metric "bleurt", which reads more text than the others, see `completions.bleurt`.
    """
    if metric == "bleurt":
        scores = bleurt(df, scorer)
    else:
        score = {"rougeL": lambda one, two: rouge_l(one, two).f1, "edit": edit_similarity}[metric]
        scores = np.array([score(one, two) for one, two in zip(df["second_piece"], df["text"], strict=True)])
    scores = np.where(df["text"] == "", 0.0, np.round(scores, 2))
    return df[["instance_id", "instruction"]].assign(metric=metric, score=scores)


def truth(task: Any, arm: str, seed: int, verdicts: pd.DataFrame) -> dict[str, float]:
    """What is known of each partition: copies that were read (planted), 1 or 0 by two humans (recorded), or nothing."""
    if isinstance(task, RecordedScores):
        humans: Any = verdicts[verdicts["method"].isin(["human1", "human2"])].groupby(["dataset", "split"])[
            "contaminated"
        ]
        if (humans.nunique() > 1).any():
            raise ValueError("the two human annotators disagree on a partition; no verdict can be held against them")
        return {"/".join(name): float(seen) for name, seen in humans.first().items()}
    if isinstance(task, NamedDataSets):
        return {"/".join(name): float(copies) for name, copies in task.exposure(seed, arm).items()}
    return {}
