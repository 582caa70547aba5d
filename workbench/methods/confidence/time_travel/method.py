"""Time travel: has a model seen this benchmark partition? Name it, ask for the rest of an instance, and compare.

The model completes the first piece of each instance twice, greedily: once told which split of which data set it comes
from (guided), once without any name (general). Two verdicts a partition, each from ten instances:

    method 1   p = 1 - (1/B) #{b : mean*_b(guided overlap) > mean*_b(general overlap)},   contaminated if p <= alpha
    method 2   contaminated if a judge finds >= 1 exact or >= 2 near-exact matches among the guided completions

with the overlap ROUGE-L F1 (or BLEURT) between completion and second piece, and mean*_b over a bootstrap resample b.

**Source**: Golchin and Surdeanu, arXiv 2308.08493; official code shahriargolchin/time-travel-in-llms at 010c5e5.

What differs from the official code, and why:
- Paired resamples: the same instances on both sides. The code draws the sides apart, but the p-values released with the
  paper follow the paired test. `rougeL_unpaired` stands beside it, and so does an exact sign-flip permutation, because
  the bootstrap of ten items rejects more than its 5 %.
- Every instance has a cut of its own. The code seeds again for each, so all are cut at one fraction
  (`constant_fraction=True`). Sentences are found by rule, not by NLTK; instructions and judge prompt are our wording.
- A completion that begins with the first piece loses it once, and one pair of quotes, before it is scored.
- A deterministic matcher judges beside (or without) a judge model; Holm's correction over partitions is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import spearmanr

from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
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
from workbench.methods.confidence.time_travel.verdicts import (
    Result,
    Rule,
    by_assignment,
    by_truth,
    error_rates,
    found_by,
    gap_by_copies,
    n_false,
    n_right,
    over_seeds,
    verdict_table,
)
from workbench.methods.confidence.time_travel.world import NamedDataSets
from workbench.runs.run import Run
from workbench.stats.text_overlap import edit_similarity, rouge_l

if TYPE_CHECKING:
    from workbench.methods.experiment import Experiment

MATCHER, JUDGE = "matcher", "judge"
ENOUGH_RIGHT, MOST_FALSE = (
    22 / 24,
    2 / 24,
)  # counting in the embedded world: right verdicts, flags without contamination


@strict
class Config(Presets):
    """Settings of one experiment. "Paper" with its appendix; "specification" is the project's page about it."""

    n_instances: int = Field(default=10, ge=5)  # of each partition; "10" (paper)
    min_p: float = Field(
        default=40.0, ge=0, le=100
    )  # per cent of a text's units that are shown at least; official code
    max_p: float = Field(default=70.0, ge=0, le=100)  # and at most; official code
    constant_fraction: bool = False  # True cuts as the official code does
    cut_seed: int = Field(default=42, ge=0)  # of the cuts; official code
    split: bool = True  # False takes the columns first_piece and second_piece as they are
    instructions: list[Literal["guided", "general"]] = listed("guided", "general")  # guided alone leaves method 2
    metrics: list[Literal["rougeL", "edit"]] = listed("rougeL", "edit")  # edit similarity is ours
    bleurt: str = ""  # file with scores or folder of a regressor; empty: without (paper: BLEURT-20)
    max_new_tokens: int = Field(default=500, ge=1)  # "at most 500" (paper), temperature 0
    bootstrap: int = Field(default=10_000, ge=100)  # resamples B (paper)
    alpha: float = Field(default=0.05, gt=0, lt=1)  # paper
    min_exact: int = Field(default=1, ge=1)  # matches in a partition (paper)
    min_near: int = Field(default=2, ge=1)  # paper
    judge: str = ""  # folder or hub id of a judge; empty: the deterministic matcher alone
    judge_tokens: int = Field(default=10, ge=1)  # of the judge's reply; paper
    task: Literal["cls", "nli", "sum", "xsum"] = "sum"  # of a file's rows without the column `task`
    partition: str = "train"  # split of a file's rows without the column `split`
    text_column: str = ""  # of a file; empty: text, or the prompt of preference data
    simulations: int = Field(default=400, ge=20)  # partitions of the simulation behind the error rates; specification
    arms: list[Literal["planted", "clean"]] = listed("planted", "clean")  # of the embedded world: models side by side
    learner: Literal["transformer", "simulated"] = "transformer"  # of the embedded world
    garbled: float = Field(default=0.02, ge=0, le=1)  # share of broken replies of simulated models; ours
    world: dict[str, Any] = Field(default_factory=dict)  # attributes of NamedDataSets

    PRESETS: ClassVar = {
        "smoke": {
            "bootstrap": 500,
            "simulations": 20,
            "world": {"steps": 25, "width": 48, "batch_size": 32, "n_unnamed": 400, "n_named": 5},
        },
        "tiny": {},
        "full": {"n_instances": 50},
    }

    def __post_init__(self):
        if self.min_p > self.max_p:
            raise ValueError(f"min_p must not be above max_p; got {self.min_p:g} and {self.max_p:g}")
        if set(self.arms) != {"planted", "clean"}:
            raise ValueError(f"arms needs planted and clean, which is its control; got {self.arms}")
        if "guided" not in self.instructions or not self.metrics:
            raise ValueError("instructions needs 'guided' (nothing is found without it), metrics at least one name")


def open_task(
    config: Config, *, model: str = "", dataset: str = "", device: str = "auto"
) -> NamedDataSets | PartitionFile | RecordedScores:
    """The embedded world; released scores (a JSON file with `partitions`); or partitions of a file with a model.

    Raises:
        ValueError: one of model and data set without the other, or a bad file.
    """
    recorded = RecordedScores.recognise(dataset)
    if recorded:
        return recorded
    if not model and not dataset:
        own = {
            "arms": tuple(config.arms),
            "n_instances": config.n_instances,
            "learner": config.learner,
            "garbled": config.garbled,
            "device": device,
        }
        options: dict[str, Any] = {**own, **config.world}
        return NamedDataSets(**options)
    if not model or not dataset:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both to guard a partition, or neither for the embedded"
            " world"
        )
    return PartitionFile.load(
        dataset,
        model=model,
        device=device,
        judge=config.judge,
        task=config.task,
        partition=config.partition,
        text_column=config.text_column,
    )


# -------------------------------------------------------------------------------------------------------- algorithm
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
        arms[arm] = {
            "verdicts": verdicts.to_dict("records"),
            "truth": truth(task, arm, seed, verdicts),
            "counts": evidence.counts,
        }
    return {"arms": arms, "statistics": error_rates(config.simulations, rule), "replies": len(transcript)}


def run_arm(task: Any, config: Config, arm: str, seed: int, run: Run) -> None:
    """Trains the model of one arm, which is nearly all of a seed's time: arms of all seeds share the cores evenly."""
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
    overlaps = run.table(
        "overlap",
        lambda: pd.concat([overlap(joined, m, config.bleurt) for m in measured_by(config)], ignore_index=True),
    )
    judges = {MATCHER: None} | ({JUDGE: judge} if judge else {})

    def judged() -> pd.DataFrame:
        options: dict[str, Any] = {"transcript": transcript, "max_tokens": config.judge_tokens}
        parts = [match_judge(joined, judge, **options).assign(judge=name) for name, judge in judges.items()]
        return pd.concat(parts, ignore_index=True)

    counts = {
        "rejected": len(rejected),
        "too_long": int((~fits).sum()),
        "repeated_first_piece": int(completions["repeated"].sum()),
        "empty": int((completions["text"] == "").sum()),
        "completions": len(completions),
    }
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


def measured_by(config: Config) -> list[str]:
    return [*config.metrics, *(["bleurt"] if config.bleurt else [])]


def overlap(df: pd.DataFrame, metric: str, scorer: str = "") -> pd.DataFrame:
    """Columns `instance_id, instruction, metric, score` (two decimals; an empty completion scores 0).

    Args:
        df: completions joined with the pieces of their instances.
        scorer: of metric "bleurt", which reads more text than the others, see `learned_overlap`.
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


# ----------------------------------------------------------------------------------------------------------- claims
CLAIMS = {
    "C1": ("Counting matches agrees with what is known of a partition", "92 to 100 % of partitions, humans as truth"),
    "C2": ("Overlap tests are weaker than counting", "right of 28: counting 27, paired ROUGE-L 20, paired BLEURT 20"),
    "C3": (
        "GPT-4 is contaminated with AG News, WNLI and XSum",
        "by humans 7 of 14 partitions; of GPT-3.5 XSum test alone",
    ),
    "C4": (
        "Naming the data set raises overlap where it is contaminated",
        "GPT-4, ROUGE-L: WNLI +.33 and +.28, AG News +.18 and +.21, Yelp test and IMDB test .00",
    ),
    "C5": (
        "Overlap tests raise false alarms on named but unseen data",
        "GPT-3.5, ROUGE-L: AG News, WNLI and Yelp are significant, humans say no",
    ),
}
# Counts and gains of the specification, from the released scores: (right of 14 by method), mean ROUGE-L gain of GPT-4.
PUBLISHED_RIGHT = {
    "gpt4": {"judge": 14, "rougeL": 13, "bleurt": 11, "rougeL_unpaired": 10, "bleurt_unpaired": 11},
    "gpt3.5": {"judge": 13, "rougeL": 7, "bleurt": 9, "rougeL_unpaired": 8, "bleurt_unpaired": 11},
}
PUBLISHED_GAINS = {
    "wnli/train": 0.33,
    "wnli/valid": 0.28,
    "ag_news/test": 0.21,
    "ag_news/train": 0.18,
    "yelp/test": 0.0,
    "imdb/test": 0.0,
}
HUMANS_SAY = {
    "gpt4": {"ag_news/train", "ag_news/test", "wnli/train", "wnli/valid", "xsum/test", "rte/train", "imdb/train"},
    "gpt3.5": {"xsum/test"},
}


def claims(experiment: Experiment, results: Sequence[Result]) -> Claims:
    """The claims of the specification page: tested in the embedded world, or derived again from released scores."""
    task = experiment.task
    # A simulated benchmark shows that a pipeline works in small, whatever its size; "full" is for real models.
    scale = "tiny" if isinstance(task, NamedDataSets) and experiment.scale == "full" else experiment.scale
    found = Claims("time_travel", scale, experiment.seeds)
    if isinstance(task, RecordedScores) and set(task.arms) == set(HUMANS_SAY):
        return recorded_claims(found, over_seeds(results, experiment.config.alpha))
    if not isinstance(task, NamedDataSets):
        for id, (statement, paper) in CLAIMS.items():
            why = "what this model has read is not known, so no verdict can be called right or wrong"
            found.needs_full_scale(id, statement, paper, why)
        return found

    def claim(id: str, said: str, **options: Any) -> None:
        statement, paper = CLAIMS[id]
        found.test(id, f"{statement} ({said})", paper=paper, **options)

    def contrast(method: str) -> tuple[list[float], list[np.ndarray]]:
        """Of every seed, and the same under every draw of the four partitions; the first draw is the real one."""
        drawn = [by_assignment(result, "planted", method) for result in results]
        return [float(values[0]) for values in drawn], drawn

    (counted, drawn), (on_general, drawn_on_general) = contrast(MATCHER), contrast(f"{MATCHER}_on_general")
    partitions = sum(len(found_by(result, "planted", MATCHER)) for result in results)
    right = sum(n_right(result, "planted", MATCHER) for result in results)
    flagged = sum(n_false(result, "clean", MATCHER) for result in results)
    claim(
        "C1",
        "matches in contaminated partitions minus clean ones",
        measured=counted,
        unit="matches",
        control=on_general,
        control_is="matches counted on general completions",
        test="randomisation",
        null=drawn,
        control_null=drawn_on_general,
        also={
            f"{right} of {partitions} right, 22 of 24 needed": right >= ENOUGH_RIGHT * partitions,
            f"{flagged} of {partitions} flagged in the clean run, 2 of 24 allowed": flagged <= MOST_FALSE * partitions,
        },
    )
    claim(
        "C2",
        "partitions that counting gets right more than the ROUGE-L test",
        unit="partitions",
        measured=[n_right(r, "planted", MATCHER) - n_right(r, "planted", "rougeL") for r in results],
        control=[
            n_right(r, "planted", f"{MATCHER}_on_general") - n_right(r, "planted", "rougeL_itself") for r in results
        ],
        control_is="without the name: general completions counted, guided ones tested against themselves",
    )
    found.needs_full_scale(
        "C3", *CLAIMS["C3"], "needs GPT-4 and real data sets; the released scores go in by `dataset`"
    )
    gaps = gap_by_copies(results, "planted")
    order: Any = spearmanr(list(gaps), list(gaps.values())) if len(set(gaps.values())) > 1 else None
    rho = float(order.statistic) if order else 0.0
    claim(
        "C4",
        "mean ROUGE-L gap of contaminated partitions",
        unit="ROUGE-L",
        control_is="the same partitions in the clean run",
        measured=[by_truth(r, "planted", "rougeL")[0].mean() for r in results],
        control=[by_truth(r, "clean", "rougeL", "planted")[0].mean() for r in results],
        also={f"gap grows with copies, Spearman {rho:.2f} > 0.8": rho > 0.8},
    )
    claim(
        "C5",
        "clean partitions that the ROUGE-L test flags and counting does not",
        unit="partitions",
        measured=[sum(n_false(r, arm, "rougeL") - n_false(r, arm, MATCHER) for arm in task.arms) for r in results],
        control=[sum(n_false(r, arm, "rougeL_itself") for arm in task.arms) for r in results],
        control_is="guided completions tested against themselves",
    )
    return found


def recorded_claims(found: Claims, result: Result) -> Claims:
    """Every claim from the released scores; the truth is what both human annotators say."""

    def rederive(id: str, **options: Any) -> None:
        found.rederive(id, CLAIMS[id][0], paper=CLAIMS[id][1], **{"figures": {}, "tolerance": 0.0, **options})

    def right(methods: Sequence[str]) -> dict[str, tuple[float, float]]:
        return {
            f"{model} {method}": (n_right(result, model, method), published[method])
            for model, published in PUBLISHED_RIGHT.items()
            for method in methods
        }

    def gains(model: str) -> dict[str, float]:
        return {name: row["statistic"] for name, row in found_by(result, model, "rougeL").items()}

    def flagged(model: str, method: str) -> set[str]:
        return {name for name, row in found_by(result, model, method).items() if row["contaminated"]}

    total = {m: sum(n_right(result, model, m) for model in HUMANS_SAY) for m in ("judge", "rougeL", "bleurt")}
    rederive("C1", figures=right(["judge"]))
    rederive(
        "C2",
        figures=right(["rougeL", "bleurt", "rougeL_unpaired", "bleurt_unpaired"]),
        also={"both overlap tests are right less often": max(total["rougeL"], total["bleurt"]) < total["judge"]},
    )
    seen = {
        model: {name for name, is_seen in result["arms"][model]["truth"].items() if is_seen} for model in HUMANS_SAY
    }
    rederive(
        "C3", also={f"{model}: {len(names)} partitions": seen[model] == names for model, names in HUMANS_SAY.items()}
    )
    ours = gains("gpt4")
    rederive(
        "C4",
        figures={name: (ours[name], gain) for name, gain in PUBLISHED_GAINS.items()},
        tolerance=0.005 + 1e-9,
        also={
            "contaminated ones gain more than clean ones": (
                min(ours[n] for n in PUBLISHED_GAINS if n in HUMANS_SAY["gpt4"])
                > max(ours[n] for n in PUBLISHED_GAINS if n not in HUMANS_SAY["gpt4"])
            )
        },
    )
    alarms = flagged("gpt3.5", "rougeL") - seen["gpt3.5"]
    rederive(
        "C5",
        also={
            "AG News, WNLI and Yelp are false alarms": (
                {name.split("/")[0] for name in alarms} >= {"ag_news", "wnli", "yelp"}
            ),
            "more of them than by the judge": len(alarms) > len(flagged("gpt3.5", "judge") - seen["gpt3.5"]),
        },
        note=f"{len(alarms)} partitions of GPT-3.5",
    )
    return found
