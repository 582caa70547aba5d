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
from workbench.methods.stated import Stated

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
    found = Stated("time_travel", experiment, CLAIMS, simulated=isinstance(task, NamedDataSets))
    if isinstance(task, RecordedScores) and set(task.arms) == set(HUMANS_SAY):
        return recorded_claims(found, over_seeds(results, experiment.config.alpha))
    if not isinstance(task, NamedDataSets):
        found.needs(CLAIMS, "what this model has read is not known, so no verdict can be called right or wrong")
        return found

    def claim(id: str, said: str, both: Any, control_is: str, unit: str, **options: Any) -> None:
        statement = f"{CLAIMS[id][0]} ({said})"
        found.add(id, both, control_is, unit, statement=statement, **options)

    def contrast(method: str) -> tuple[list[float], list[np.ndarray]]:
        """Of every seed, and the same under every draw of the four partitions; the first draw is the real one."""
        drawn = [by_assignment(result, "planted", method) for result in results]
        return [float(values[0]) for values in drawn], drawn

    (counted, drawn), (on_general, drawn_on_general) = contrast(MATCHER), contrast(f"{MATCHER}_on_general")
    partitions = sum(len(found_by(result, "planted", MATCHER)) for result in results)
    right = sum(n_right(result, "planted", MATCHER) for result in results)
    flagged = sum(n_false(result, "clean", MATCHER) for result in results)
    also = {
        f"{right} of {partitions} right, 22 of 24 needed": right >= ENOUGH_RIGHT * partitions,
        f"{flagged} of {partitions} flagged in the clean run, 2 of 24 allowed": flagged <= MOST_FALSE * partitions,
    }
    assigned: dict[str, Any] = {"test": "randomisation", "null": drawn, "control_null": drawn_on_general}
    said, other = "matches in contaminated partitions minus clean ones", "matches counted on general completions"
    claim("C1", said, (counted, on_general), other, "matches", also=also, **assigned)
    said = "partitions that counting gets right more than the ROUGE-L test"
    both = (
        [n_right(result, "planted", a) - n_right(result, "planted", b) for result in results]
        for a, b in ((MATCHER, "rougeL"), (f"{MATCHER}_on_general", "rougeL_itself"))
    )
    other = "without the name: general completions counted, guided ones tested against themselves"
    claim("C2", said, both, other, "partitions")
    found.needs(["C3"], "needs GPT-4 and real data sets; the released scores go in by `dataset`")
    gaps = gap_by_copies(results, "planted")
    order: Any = spearmanr(list(gaps), list(gaps.values())) if len(set(gaps.values())) > 1 else None
    rho = float(order.statistic) if order else 0.0
    said, other = "mean ROUGE-L gap of contaminated partitions", "the same partitions in the clean run"
    both = ([by_truth(r, arm, "rougeL", "planted")[0].mean() for r in results] for arm in ("planted", "clean"))
    claim("C4", said, both, other, "ROUGE-L", also={f"gap grows with copies, Spearman {rho:.2f} > 0.8": rho > 0.8})
    said = "clean partitions that the ROUGE-L test flags and counting does not"
    flags = [sum(n_false(r, arm, "rougeL") - n_false(r, arm, MATCHER) for arm in task.arms) for r in results]
    itself = [sum(n_false(r, arm, "rougeL_itself") for arm in task.arms) for r in results]
    claim("C5", said, (flags, itself), "guided completions tested against themselves", "partitions")
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
    also = {f"{model}: {len(names)} partitions": seen[model] == names for model, names in HUMANS_SAY.items()}
    rederive("C3", also=also)
    ours = {name: row["statistic"] for name, row in found_by(result, "gpt4", "rougeL").items()}
    lowest = min(ours[n] for n in PUBLISHED_GAINS if n in HUMANS_SAY["gpt4"])
    highest = max(ours[n] for n in PUBLISHED_GAINS if n not in HUMANS_SAY["gpt4"])
    figures = {name: (ours[name], gain) for name, gain in PUBLISHED_GAINS.items()}
    also = {"contaminated ones gain more than clean ones": lowest > highest}
    rederive("C4", figures=figures, tolerance=0.005 + 1e-9, also=also)
    alarms, by_judge = (flagged("gpt3.5", method) - seen["gpt3.5"] for method in ("rougeL", "judge"))
    named = {name.split("/")[0] for name in alarms} >= {"ag_news", "wnli", "yelp"}
    also = {"AG News, WNLI and Yelp are false alarms": named}
    also["more of them than by the judge"] = len(alarms) > len(by_judge)
    rederive("C5", also=also, note=f"{len(alarms)} partitions of GPT-3.5")
    return found
