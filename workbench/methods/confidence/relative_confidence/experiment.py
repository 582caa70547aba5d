"""The test of relative confidence: what each scale changes, and what must hold, in points: 0.01 of the area under
accuracy-coverage.

Where the questions are real, the seeds share them and differ in opponents, sides and samples; a gain must then also be
larger than its standard error over questions allows for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from typing import Any

import numpy as np

from workbench.claims import Claims, p_value
from workbench.methods.confidence.relative_confidence import published
from workbench.methods.confidence.relative_confidence.exposed_facts import TEMPERATURES
from workbench.methods.confidence.relative_confidence.method import Config
from workbench.methods.experiment import Experiment
from workbench.methods.stated import Stated

Config.presets(
    micro={"n_questions": 14, "opponents": 4, "budgets": [2], "shuffles": 2, "facts": False, "max_unparsed": 1.0},
    smoke={"n_questions": 40},
    tiny={},
    # full: a real model's unread answers should be looked at
    full={"n_questions": 250, "on_missing": "stop", "compare_active": False},
    on_text={"tiny": {"compare_active": False}, "smoke": {"compare_active": False, "n_questions": 12}},
)

Z_ALPHA = 0.01  # in regime Z, where there is no signal, no method may differ from the stated number at this level; ours


def values(results: Sequence[Mapping[str, Any]], arm: str, metric: str, *names: str) -> np.ndarray:
    """[seeds, ...] of `metric` (of scorer `names`) in a regime: the plain mean over the data sets with gold answers.

    Raises:
        ValueError: no question has a gold answer.
    """
    means = []
    for result in results:
        parts = [part for part in result["arms"][arm].values() if part["n_labelled"]]
        if not parts:
            raise ValueError(
                "no question has a gold answer, so nothing can be measured; the rankings are in scores.parquet"
            )
        means.append(np.mean([reduce(getitem, names, part[metric]) for part in parts], axis=0))
    return np.array(means, dtype=float)


TEXTS = {
    "C1": ("Bradley-Terry on confidence preferences beats the stated confidence", ".839 against .805"),
    "C2": ("It beats hybrid self-consistency on average, not everywhere", ".839 against .824"),
    "C3": (
        "The gain over hybrid self-consistency depends on the domain",
        "STEM .803 against .772, commonsense .875 against .894",
    ),
    "C4": (
        "The gain over direct depends on the model: Llama 3.1 405B most, Claude 3.5 Sonnet least",
        "+6.1 and +1.1 points",
    ),
    "C6": (
        "The aggregators are close: Bradley-Terry and Elo (K 32) within one point",
        ".839 and .836 (TrueSkill .840)",
    ),
    "C7": ("AUROC tells the same: Bradley-Terry beats the stated confidence", ".749 against .645"),
    "A1": ("Opponents chosen by expected information beat random ones at {} judgments a question", "not in the paper"),
}
TEXTS |= {
    f"B{number}{part}": (f"A trained transformer judged at temperature {temperature:g}: {how}", "not in the paper")
    for number, temperature in enumerate(TEMPERATURES.values(), start=1)
    for part, how in (
        ("a", "comparisons rank better than its coarse stated number"),
        ("b", "comparisons come within one point of its raw probability"),
    )
}
OPPONENTS = "gain at 5, 10, 15: 0.9, 1.8, 1.8 % (GPT-4o), 2.2, 3.2, 4.9 % (Llama)"


def claims(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Claims:
    """The paper's claims, each beside its control."""
    world, main = experiment.task.is_simulated, experiment.task.arms[0]
    everyone = min(part["rounds"] for result in results for part in result["arms"][main].values())
    steps = [few for few in sorted(experiment.config.budgets) if few < everyone]
    more = f"More opponents help, with saturation: {everyone} against {min(steps, default='fewer')}"
    found = Stated("relative_confidence", experiment, {**TEXTS, "C5": (more, OPPONENTS)}, simulated=world)

    def gain(method: str, baseline: str, arm: str = main, metric: str = "auc") -> Any:  # array [seeds]
        return 100 * (values(results, arm, metric, method) - values(results, arm, metric, baseline))

    def beats(baseline: str, metric: str = "auc") -> dict[str, Any]:
        """Bradley-Terry's gain over a baseline, beside the same gain where there is no signal."""
        off = ("bt", "Z", "the same in regime Z, no signal") if world else ("bt_shuffled", main, "outcomes shuffled")
        both = gain("bt", baseline, main, metric), gain(off[0], baseline, off[1], metric)
        level = {"control_is": off[2], "control_alpha": Z_ALPHA if world else 0.05, "test": "wilcoxon"}
        return {"both": both, **level, "unit": "points of AUROC" if metric == "auroc" else "points"}

    def over_questions(baseline: str) -> dict[str, bool]:
        parts = [] if world else [part for part in results[0]["arms"][main].values() if part["n_labelled"]]
        error = 100 * math.sqrt(sum(part["gain_se"][baseline] ** 2 for part in parts)) / max(len(parts), 1)
        return (
            {"above 1.96 standard errors over questions": gain("bt", baseline).mean() > 1.96 * error} if parts else {}
        )

    ahead = {f"{name} ahead too": gain(name, "direct").mean() > 0 for name in ("trueskill", "elo")}
    found.add("C1", paper_effect=3.4, **beats("direct"), also=ahead | over_questions("direct"))
    if world:
        found.needs(["C2"], "the embedded world plants which of the two wins (C3)")
        sides = {arm: gain("bt", "hybrid_sc", arm) for arm in "RSZ"}
        options: dict[str, Any] = {"test": "wilcoxon", "control_alpha": Z_ALPHA}
        options["also"] = {"ahead in R": sides["R"].mean() > 0, "behind in S": sides["S"].mean() < 0}
        options["statement"] = f"{TEXTS['C3'][0]} (planted: on which signal is good, R minus S)"
        none = "the gain in regime Z, no signal"
        found.add("C3", (sides["R"] - sides["S"], sides["Z"]), none, "points", **options)
    else:
        found.add("C2", paper_effect=1.5, **beats("hybrid_sc"), also=over_questions("hybrid_sc"))
        found.needs(["C3"], "needs the paper's 14 data sets by domain")
    found.needs(["C4"], "a run has one model; the order needs five large ones")
    if steps:
        auc = [values(results, main, "auc", name).mean() for name in (*(f"bt_n{few}" for few in steps), "bt")]
        slopes = np.diff(auc) / np.diff([*steps, everyone])
        also = {"monotone in the mean": all(slopes >= 0), "later opponents add less": all(np.diff(slopes) <= 0)}
        both = (gain(name, f"{name}_n{steps[0]}") for name in ("bt", "bt_shuffled"))
        found.add("C5", both, "outcomes shuffled", "points", test="wilcoxon", also=also)
    else:
        found.needs(["C5"], f"budgets={experiment.config.budgets} has no smaller number of opponents")
    pairs = (("bt", "trueskill"), ("trueskill", "elo"))
    close: dict[str, Any] = {"direction": "equivalent", "margin": 1.0}
    also = {f"{a} and {b}": p_value(gain(a, b), **close) < 0.05 for a, b in pairs}
    both = gain("bt", "elo"), gain("bt", "elo_shuffled")
    found.add("C6", both, "Elo, outcomes shuffled", "points", paper_effect=0.3, also=also, **close)
    if world:
        _claims_in_worlds(found, experiment, results)
    if experiment.config.published:
        published.rederive(found, published.load(experiment.config.published))
    auroc = beats("direct", "auroc")
    if np.isfinite(auroc["both"]).all():
        found.add("C7", paper_effect=10.4, **auroc)
    else:
        found.needs(["C7"], "the answers of a seed are all right or all wrong: AUROC is undefined")
    return found


def _claims_in_worlds(found: Stated, experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> None:
    """What the embedded worlds add to the paper's claims: opponents chosen actively, and the trained transformer."""
    config, main = experiment.config, experiment.task.arms[0]
    few = min(config.budgets)

    def active_gain(arm: str) -> Any:
        drawn, chosen = (values(results, arm, "by_rounds", how, "auc")[:, few - 1] for how in ("random", "active"))
        return 100 * (chosen - drawn)

    if config.compare_active and config.schedule == "random_opponents":
        options: dict[str, Any] = {"statement": TEXTS["A1"][0].format(few), "test": "wilcoxon"}
        both = active_gain(main), active_gain("Z")
        found.add("A1", both, "regime Z, no signal", "points", control_alpha=Z_ALPHA, **options)
    several = "bt_n10" if 10 in config.budgets else "bt"
    for number, arm in enumerate(TEMPERATURES, start=1) if config.facts else ():
        ranked, shuffled, stated, raw = (
            values(results, arm, "auc", name)
            for name in (several, several.replace("bt", "bt_shuffled"), "direct", "option_logp")
        )
        also = {"the stated number above the accuracy": (stated > values(results, arm, "accuracy")).all()}
        for part, other, options in (
            ("a", stated, {"test": "wilcoxon", "also": also}),
            ("b", raw, {"direction": "equivalent", "margin": 1.0}),
        ):
            both = 100 * (ranked - other), 100 * (shuffled - other)
            found.add(f"B{number}{part}", both, "outcomes shuffled", "points", **options)
