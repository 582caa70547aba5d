"""The paper's own tables of relative confidence: its claims, computed again from its published figures.

The file holds `tables` (model -> `auc` of each data set and method), `categories` (domain -> data sets), `auroc` (model
-> method) and `gain_over_self_consistency_by_calls`. Averages are plain means over data sets, then over models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from workbench import runs
from workbench.claims import Claims

DIRECT, HYBRID, ELO, TRUESKILL, BT = "Direct", "Hybrid SC", "Elo Rating", "TrueSkill", "Bradley-Terry"
AGGREGATORS = (ELO, TRUESKILL, BT)
ROUNDED = 5e-4 + 1e-9  # figures have three digits
TWICE = 1.1e-3  # a mean of rounded figures against a rounded mean
MEANS = {DIRECT: 0.805, HYBRID: 0.824, ELO: 0.836, TRUESKILL: 0.840, BT: 0.839}
AUROC = {DIRECT: 0.645, HYBRID: 0.741, ELO: 0.744, TRUESKILL: 0.753, BT: 0.749}
DOMAINS = {"STEM": (0.803, 0.772), "Social Sciences": (0.877, 0.861), "Commonsense Reasoning": (0.875, 0.894)}
# Points of the best aggregator over the stated number and over hybrid self-consistency.
GAINS = {
    "Llama 3.1 405B": (6.1, 4.9),
    "GPT-4o": (3.2, 1.8),
    "GPT-4": (4.1, 1.0),
    "Gemini 1.5 Pro": (3.2, 0.8),
    "Claude 3.5 Sonnet": (1.1, -0.1),
}
TEXTS = {
    "C1": ("Relative beats the stated confidence", ".805 against .836, .840, .839; 61 of 70 cells"),
    "C2": ("It beats hybrid self-consistency on average, not everywhere", ".824; 41 of 70 cells"),
    "C3": ("The gain over hybrid self-consistency depends on the domain", "STEM ahead, commonsense behind"),
    "C4": ("The gain depends on the model", "Llama first, Claude last"),
    "C5": ("More opponents help, with saturation", "0.9, 1.8, 1.8 % and 2.2, 3.2, 4.9 %"),
    "C6": ("The aggregators are close", ".836, .840, .839"),
    "C7": ("AUROC tells the same", "direct .645, Bradley-Terry .749"),
}


def load(path: str) -> Mapping[str, Any]:
    """The file's content.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it lacks one of the tables, or a cell is no number; the place is named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no file {path!r} with published tables")
    content = runs.read_json(Path(path))
    for name in ("tables", "categories", "auroc", "gain_over_self_consistency_by_calls"):
        if name not in content:
            raise ValueError(f"{path} has no {name!r}; it holds {', '.join(content)}")
    for model, table in content["tables"].items():
        for data_set, row in table["auc"].items():
            for method in MEANS:
                if not isinstance(row.get(method), int | float) or not 0 <= row[method] <= 1:
                    raise ValueError(
                        f"{path}: auc of {model}, {data_set}, {method} is {row.get(method)!r}, not a number in [0, 1]"
                    )
    return content


def rederive(found: Claims, published: Mapping[str, Any]) -> None:
    """Adds the claims C1 to C7 as the published tables bear them out."""
    from scipy.stats import wilcoxon

    auc = {model: table["auc"] for model, table in published["tables"].items()}
    cells = [row for table in auc.values() for row in table.values()]

    def mean(method: str, model: str, data_sets: Sequence[str] = ()) -> float:
        return float(np.mean([auc[model][name][method] for name in data_sets or auc[model]]))

    def overall(method: str, data_sets: Sequence[str] = ()) -> float:
        return float(np.mean([mean(method, model, data_sets) for model in auc]))

    def ahead(method: str, other: str) -> int:
        return sum(row[method] > row[other] for row in cells)

    def p_value(method: str, other: str) -> float:
        result: Any = wilcoxon([row[method] - row[other] for row in cells])
        return float(result.pvalue)

    def means(*methods: str) -> dict[str, tuple[float, float]]:
        return {method: (overall(method), MEANS[method]) for method in methods}

    def add(id: str, figures: Mapping[str, tuple[float, float]], tolerance: float = ROUNDED, **options: Any) -> None:
        statement, paper = TEXTS[id]
        told = f"{statement}, in the paper's tables"
        found.rederive(f"{id} tables", told, paper=paper, figures=figures, tolerance=tolerance, **options)

    also = {"Wilcoxon over the cells, p < .05": p_value(TRUESKILL, DIRECT) < 0.05}
    add("C1", {**means(DIRECT, *AGGREGATORS), "cells of TrueSkill": (ahead(TRUESKILL, DIRECT), 61)}, also=also)
    also, note = {"ahead on average": overall(TRUESKILL) > overall(HYBRID)}, p_value(TRUESKILL, HYBRID)
    figures: dict[str, tuple[float, float]] = {**means(HYBRID), "cells of TrueSkill": (ahead(TRUESKILL, HYBRID), 41)}
    add("C2", figures, also=also, note=f"Wilcoxon over the cells p = {note:.3f}")
    pairs = {name: (overall(TRUESKILL, part), overall(HYBRID, part)) for name, part in published["categories"].items()}
    figures = {
        f"{name}, {what}": (pairs[name][i], DOMAINS[name][i])
        for name in DOMAINS
        for i, what in enumerate(("TrueSkill", "hybrid"))
    }
    stem, commonsense = pairs["STEM"], pairs["Commonsense Reasoning"]
    add("C3", figures, also={"the sign turns": stem[0] > stem[1] and commonsense[0] < commonsense[1]})
    best = {model: max(mean(method, model) for method in AGGREGATORS) for model in auc}
    gains = {model: [100 * (best[model] - mean(other, model)) for other in (DIRECT, HYBRID)] for model in auc}
    figures = {
        f"{model} over {what}": (gains[model][i], GAINS[model][i])
        for model in GAINS
        for i, what in enumerate(("direct", "hybrid"))
    }
    ordered = sorted(gains, key=lambda model: gains[model][0])
    ends = ordered[-1] == "Llama 3.1 405B" and ordered[0] == "Claude 3.5 Sonnet"
    add("C4", figures, 100 * TWICE, also={"Llama first, Claude last": ends})
    calls = published["gain_over_self_consistency_by_calls"]
    steps = {model: bool(np.all(np.diff(calls[model]) >= 0)) for model in calls if model != "calls"}
    add("C5", {}, 0.0, also={f"{model}: no step down": holds for model, holds in steps.items()})
    levels = [overall(method) for method in AGGREGATORS]
    also = {"within one point": max(levels) - min(levels) < 0.01, "TrueSkill best": overall(TRUESKILL) == max(levels)}
    add("C6", means(*AGGREGATORS), also=also)
    area = {method: float(np.mean([row[method] for row in published["auroc"].values()])) for method in AUROC}
    also = {"every aggregator above direct": min(area[m] for m in AGGREGATORS) > area[DIRECT]}
    add("C7", {method: (area[method], value) for method, value in AUROC.items()}, TWICE, also=also)
