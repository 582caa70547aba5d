"""Recorded references: scores, labels and expert labels that the authors published, and their figures derived from them
again.

Intervals are over topics, and experts are compared title by title: no seed is a sample here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims import Claims
from workbench.methods.confidence.hallucinated_references.references import DIRECT
from workbench.runs.files import read_json
from workbench.stats import selective

# The paper's figures, to a unit of their last digit.
_FIGURES = ("rate", "IQ", "DQ1", "DQ2", "DQ3", "DQ", "IQ_DQ", "means", "yes_invented", "kept")
_BY_MODEL = {
    "gpt-4": (0.468, 0.878, 0.887, 0.845, 0.861, 0.917, 0.929, (0.70, 0.10), 0.18, (0.396, 0.083)),
    "gpt-3.5-turbo": (0.596, 0.783, 0.540, 0.609, 0.529, 0.623, 0.792, (0.48, 0.08), 0.96, (0.208, 0.159)),
    "text-davinci-003": (0.736, 0.692, 0.556, 0.589, 0.534, 0.621, 0.708, (0.24, 0.02), 0.77),
}
PUBLISHED: dict[str, dict[str, Any]] = {
    model: dict(zip(_FIGURES, figures, strict=False)) for model, figures in _BY_MODEL.items()
}
EXPERTS = {"A": 0.99, "B": 0.99, "C": 1.0, "D": 0.99}  # agreement with the search


@dataclass(frozen=True)
class RecordedScores:
    """Scores and labels that the authors published, one table a model, and their experts' labels: nothing is asked."""

    tables: dict[str, pd.DataFrame]
    experts: pd.DataFrame | None
    expected: dict[str, Any]
    is_simulated: bool = False

    @classmethod
    def load(cls, path: str) -> RecordedScores:
        """Reads a JSON file with `models` -> columns `grounded`, `IQ`, `DQ1` ..., `topic_index`, and optionally
        `experts`.

        Raises:
            ValueError: no such content, or columns of different lengths.
        """
        content = read_json(Path(path).expanduser())
        models = content.get("models") if isinstance(content, dict) else None
        if not isinstance(models, dict) or not models:
            raise ValueError(f"{path}: recorded results need an object `models`; for topics or references give JSONL")
        tables = {}
        for name, columns in models.items():
            sizes = {column: len(values) for column, values in columns.items()}
            if len(set(sizes.values())) != 1 or not {"grounded", "IQ", "topic_index"} <= set(sizes):
                raise ValueError(
                    f"{path}: columns grounded, IQ, topic_index of one length are needed; {name} has {sizes}"
                )
            table = pd.DataFrame(columns).rename(columns={"topic_index": "topic"})
            table.insert(0, "ref_id", [f"{name}-{i}" for i in range(len(table))])
            tables[name] = table.assign(IQ=_unrounded(table["IQ"].to_numpy(dtype=float)))
        experts = pd.DataFrame(content["experts"]) if content.get("experts") else None
        return cls(tables, experts, content.get("expected", {}))


def _unrounded(means: np.ndarray) -> np.ndarray:
    """Means of three overlaps that were stored with four digits, as the ninths of a per cent that they are.

    Whether two sums of scores are equal, and so AUROC, depends on it: .0833 is not 1/12.
    """
    exact = np.round(means * 900) / 900
    return np.where(np.abs(exact - means) < 6e-5, exact, means)


def expert_agreement(experts: pd.DataFrame | None) -> dict[str, Any] | None:
    """How far a search label and hand labels of the same titles agree; the first column is the search label.

    Returns:
        `n`; `with_search` by expert; `pairwise`, lowest and highest among experts; `fleiss_kappa` among experts.
    """
    if experts is None:
        return None
    search, hands = experts.iloc[:, 0], experts.iloc[:, 1:]
    pairs = [float((hands[a] == hands[b]).mean()) for a, b in itertools.combinations(hands, 2)]
    return {
        "n": len(experts),
        "with_search": {str(name): float((hands[name] == search).mean()) for name in hands},
        "pairwise": [min(pairs), max(pairs)],
        "fleiss_kappa": selective.fleiss_kappa(hands.to_numpy()),
    }


def rederive(
    found: Claims, texts: Mapping[str, tuple[str, str]], result: Mapping[str, Any], expected: Mapping[str, Any]
) -> Claims:
    """Every claim from the published scores: figures to a unit of their last digit, intervals over topics.

    Means and kappa, published with two digits, are rounded to two before they are compared.
    """
    parts = result["arms"]
    known = {name: part for name, part in parts.items() if name in PUBLISHED}
    if not known:
        of = f"a model of the paper ({', '.join(PUBLISHED)})"
        raise ValueError(f"none of {', '.join(parts)} is {of}, so nothing is published of them")

    def claim(id: str, figures: Mapping[str, Any], also: Mapping[str, bool], tolerance: float = 1e-3) -> None:
        found.rederive(id, texts[id][0], paper=texts[id][1], figures=figures, tolerance=tolerance, also=also)

    def areas(*names: str) -> dict[str, tuple[float, float]]:
        return {
            f"{model} {name}": (part["auroc"][name][0], PUBLISHED[model][name])
            for model, part in known.items()
            for name in names
        }

    def excludes_0(pair: str, sign: Mapping[str, int]) -> dict[str, bool]:
        """Whether the interval of a gain over topics lies above 0 (1), below it (-1) or around it (0), as published."""
        said = {}
        for model, part in known.items():
            low, high = part["gains"][pair][1:]
            ways = {1: ("above", low > 0), -1: ("below", high < 0), 0: ("around", low < 0 < high)}
            where, holds = ways[sign[model]]
            said[f"{pair.replace('_', '+')} {where} 0 in {model} ({low:+.3f} to {high:+.3f})"] = holds
        return said

    rates = [part["rate"][0] for part in known.values()]
    figures = {f"rate of {model}": (part["rate"][0], PUBLISHED[model]["rate"]) for model, part in known.items()}
    claim("C1", figures, {"fewer from model to better model": rates == sorted(rates)}, 1e-6)
    means = {
        f"{model} mean IQ, {side}": (round(part["means"]["IQ"][i], 2), PUBLISHED[model]["means"][i])
        for model, part in known.items()
        for i, side in enumerate(("real", "invented"))
    }
    same = {"figures that the file states of itself, to 1e-4": off_by(parts, expected) <= 1e-4} if expected else {}
    claim("C2", areas("IQ") | means, same)
    yes = {
        f"{model} mean DQ1, invented": (round(part["means"]["DQ1"][1], 2), PUBLISHED[model]["yes_invented"])
        for model, part in known.items()
    }
    claim("C3", areas(*DIRECT) | yes, excludes_0("IQ - DQ", {"gpt-4": -1, "gpt-3.5-turbo": 1, "text-davinci-003": 1}))
    claim("C4", areas("IQ_DQ", "DQ"), excludes_0("IQ_DQ - DQ", dict.fromkeys(PUBLISHED, 1)))
    ends = {
        f"{model} gain, {side} end": (known[model]["gains"]["IQ_DQ - IQ"][i], value)
        for model, i, side, value in (("gpt-4", 1, "lower", 0.037), ("gpt-4", 2, "upper", 0.064))
        if model in known
    }
    claim("C4b", ends, excludes_0("IQ_DQ - IQ", {"gpt-4": 1, "gpt-3.5-turbo": 0, "text-davinci-003": 0}), 5e-3)
    kept = {
        f"{model} {what}": (part["kept"]["IQ"][2][2 + i], PUBLISHED[model]["kept"][i])
        for model, part in known.items()
        if "kept" in PUBLISHED[model]
        for i, what in enumerate(("kept", "FDR"))
    }
    fewer = all(part["kept"]["IQ"][2][3] < part["rate"][0] for part in known.values())
    claim("C5", kept, {"fewer invented ones among those kept": fewer})
    hands = result["experts"]
    if hands is None:
        found.needs_full_scale("C6", *texts["C6"], why="the file holds no labels of experts")
    else:
        with_search = hands["with_search"].items()
        figures = {f"expert {name}": (value, EXPERTS.get(name, math.nan)) for name, value in with_search}
        figures["kappa"] = (round(hands["fleiss_kappa"], 2), 0.98)
        claim("C6", figures, {"any two experts agree on .98 or more": hands["pairwise"][0] >= 0.98}, 1e-6)
    found.needs_full_scale("C7", *texts["C7"], why="the recorded results hold no Llama-2 models")
    return found


def off_by(parts: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest difference to the figures that a recorded file states about itself."""
    pairs = []
    for model, stated in expected.items():
        part = parts[model]
        pairs.append((part["rate"][0], stated["hallucination_rate"]))
        areas = stated["auroc_hallucination"].items()
        pairs += [(part["auroc"][name.replace("+", "_")][0], value) for name, value in areas]
        for name, value in stated["mean_score_grounded_hallucinated"].items():
            pairs += zip(part["means"][name], value, strict=True)
        for name, rows in stated["fdr_threshold_kept_fraction_fdr"].items():
            both = zip(part["kept"][name.replace("+", "_")], rows, strict=True)
            pairs += [(ours[3], theirs[3]) for ours, theirs in both]
    return max((abs(ours - theirs) for ours, theirs in pairs), default=0.0)
