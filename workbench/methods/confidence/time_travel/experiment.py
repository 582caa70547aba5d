"""The test of time travel: what each scale changes; what must hold, in the embedded world and in released scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from workbench.claims import Claims
from workbench.methods.confidence.time_travel.method import MATCHER, Config
from workbench.methods.confidence.time_travel.partitions import RecordedScores
from workbench.methods.confidence.time_travel.verdicts import (
    Result,
    by_assignment,
    by_truth,
    found_by,
    gap_by_copies,
    n_false,
    n_right,
    over_seeds,
)
from workbench.methods.confidence.time_travel.world import NamedDataSets
from workbench.methods.experiment import Experiment

_SMALL = {"steps": 25, "width": 48, "batch_size": 32, "n_unnamed": 400, "n_named": 5}
Config.presets(
    micro={"n_instances": 5, "bootstrap": 100, "simulations": 20, "metrics": ["rougeL"], "learner": "simulated"},
    smoke={"bootstrap": 500, "simulations": 20, "world": _SMALL},
    tiny={},
    full={"n_instances": 50},
)

# Counting in the embedded world, three seeds: right verdicts at least, flags without contamination at most; ours
ENOUGH_RIGHT, MOST_FALSE = 22 / 24, 2 / 24
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
# From the released scores: partitions of 14 that a method gets right, and the mean ROUGE-L gain of GPT-4.
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
    """The paper's claims: tested in the embedded world, or derived again from released scores."""
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
