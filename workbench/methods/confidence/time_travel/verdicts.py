"""From overlap scores and match labels to verdicts on partitions, their error rates, and how often they are right.

A verdict row has `dataset, split, model, n, method, statistic, p_value, contaminated`; of overlap tests `general,
guided, lower, upper` (means, and the interval of the gap), of counting `n_exact, n_near, n_unparsed`; and `p_holm,
contaminated_holm` over the partitions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import beta, norm

from workbench import metrics
from workbench.claims import holm
from workbench.stats.bootstrap import GapTest, gap_test

# Simulated scores: a shift of half of the items; instances and the correlation of the two scores of an instance.
SCORE_MEAN, SCORE_SD, SHIFT = 0.3, 0.15, 0.15
SETTINGS = ((10, 0.0), (10, 0.4), (10, 0.7), (50, 0.4))
_SIMULATED_ROUNDS = 2_000  # a p-value near 0.05 is then exact to 0.005

Result = Mapping[str, Any]  # of one seed: {"arms": {arm: {"verdicts": rows, "truth": {"data set/split": number}}}}


class Rule(NamedTuple):
    """When a partition counts as contaminated: p <= alpha, or enough exact or near-exact matches."""

    rounds: int = 10_000
    alpha: float = 0.05
    min_exact: int = 1
    min_near: int = 2
    seed: int = 42


# ----------------------------------------------------------------------------------------------------------- verdicts
def overlap_test(general: Any, guided: Any, B: int = 10_000, paired: bool = True, seed: int = 42) -> GapTest:
    """Method 1: p, both means, the gap with its interval, and the permutation p.

    Raises:
        ValueError: no general completions: there is nothing that the guided ones could be better than.
    """
    if not len(general):
        raise ValueError(
            "method 1 compares guided with general completions, and there are only guided ones; use method 2"
        )
    return gap_test(general, guided, rounds=B, paired=paired, seed=seed)


def verdict_table(
    instances: pd.DataFrame, overlap: pd.DataFrame, matches: pd.DataFrame, model: str, rule: Rule
) -> pd.DataFrame:
    """One row a partition and method; p-values again with Holm's correction over the partitions of a method."""
    rows: list[dict[str, Any]] = []
    for name, part in instances.groupby(["dataset", "split"], sort=False):
        about = {"dataset": name[0], "split": name[1], "model": model, "n": len(part)}  # type: ignore[index]
        inside = [table[table["instance_id"].isin(part["instance_id"])] for table in (overlap, matches)]
        rows += [{**about, **row} for row in partition_verdict(*inside, rule)]  # type: ignore[arg-type]
    table = pd.DataFrame(rows)
    table["p_holm"] = table.groupby("method")["p_value"].transform(lambda p: holm(p.tolist()))
    table["contaminated_holm"] = table["p_holm"] <= rule.alpha
    return table


def partition_verdict(overlap: pd.DataFrame, matches: pd.DataFrame, rule: Rule) -> list[dict[str, Any]]:
    """Both methods on one partition, and each where it must find nothing.

    Controls: `_itself` compares guided completions with themselves, `_on_general` counts matches without the name.
    Without general completions method 1 is refused and only counting is left.

    Args:
        overlap: `instance_id, instruction, metric, score`.
        matches: `instance_id, instruction, label, judge`.
    """
    rows: list[dict[str, Any]] = []
    for metric, scores in overlap.groupby("metric", sort=False):
        sides = scores.pivot(index="instance_id", columns="instruction", values="score")
        if "general" not in sides:
            continue
        general, guided = sides["general"].to_numpy(), sides["guided"].to_numpy()
        paired, apart = (overlap_test(general, guided, rule.rounds, way, rule.seed) for way in (True, False))
        itself = overlap_test(guided, guided, rule.rounds, True, rule.seed)
        for ending, test, p in (
            ("", paired, paired.p),
            ("_unpaired", apart, apart.p),
            ("_permutation", paired, paired.p_permutation),
            ("_itself", itself, itself.p),
        ):
            row = {"method": f"{metric}{ending}", "statistic": test.gap, "p_value": p, "contaminated": p <= rule.alpha}
            means = {"general": test.mean_general, "guided": test.mean_guided}
            rows.append({**row, **means, "lower": test.lower, "upper": test.upper})
    found: Any
    for (judge, instruction), found in matches.groupby(["judge", "instruction"], sort=False)["label"]:  # type: ignore[misc]
        exact, near, unparsed = (int((found == label).sum()) for label in ("exact", "near-exact", "unparsed"))
        row = {"method": judge if instruction == "guided" else f"{judge}_on_general", "p_value": math.nan}
        row |= {"statistic": float(exact + near), "n_exact": exact, "n_near": near, "n_unparsed": unparsed}
        rows.append({**row, "contaminated": exact >= rule.min_exact or near >= rule.min_near})
    return rows


# -------------------------------------------------------------------------------------------------------- error rates
def error_rates(partitions: int, rule: Rule) -> list[dict[str, float]]:
    """How often each test rejects, on simulated partitions of which every second one has an effect.

    Scores of an instance are beta distributed (mean 0.3, standard deviation 0.15) with a Gaussian copula and rounded
    as ROUGE is; the effect is +0.15 on half of the items.

    Returns:
        One row a setting: `n`, `correlation`, and the rates `{paired,unpaired,permutation}_{power,false}`.
    """
    rng, rows = np.random.default_rng([rule.seed, 6]), []
    total = SCORE_MEAN * (1 - SCORE_MEAN) / SCORE_SD**2 - 1
    for n, correlation in SETTINGS:
        tests: dict[str, list[bool]] = {}
        for number in range(partitions):
            z = rng.multivariate_normal([0, 0], [[1, correlation], [correlation, 1]], n)
            scores = beta.ppf(norm.cdf(z), SCORE_MEAN * total, (1 - SCORE_MEAN) * total)
            scores[:, 1] += SHIFT * (number % 2) * (np.arange(n) % 2)
            general, guided = np.round(scores.clip(0, 1), 2).T
            rounds = min(rule.rounds, _SIMULATED_ROUNDS)
            paired, apart = (overlap_test(general, guided, rounds, way, number) for way in (True, False))
            for name, p in (("paired", paired.p), ("unpaired", apart.p), ("permutation", paired.p_permutation)):
                tests.setdefault(f"{name}_{'power' if number % 2 else 'false'}", []).append(p <= rule.alpha)
        rates = {name: float(np.mean(rejected)) for name, rejected in tests.items()}
        rows.append({"n": n, "correlation": correlation, **rates})
    return rows


# ---------------------------------------------------------------------------------------------- verdicts against truth
def found_by(result: Result, arm: str, method: str) -> dict[str, dict[str, Any]]:
    """The verdicts of one method in one arm, by "data set/split"."""
    rows = (row for row in result["arms"][arm]["verdicts"] if row["method"] == method)
    return {f"{row['dataset']}/{row['split']}": row for row in rows}


def methods_of(result: Result, arm: str) -> list[str]:
    return list(dict.fromkeys(row["method"] for row in result["arms"][arm]["verdicts"]))


def n_right(result: Result, arm: str, method: str) -> int:
    """Partitions on which a method says what is known to be true."""
    known = result["arms"][arm]["truth"]
    return sum(bool(row["contaminated"]) == (known[name] > 0) for name, row in found_by(result, arm, method).items())


def n_false(result: Result, arm: str, method: str) -> int:
    """Partitions that a method calls contaminated and that are not."""
    known = result["arms"][arm]["truth"]
    return sum(bool(row["contaminated"]) and not known[name] for name, row in found_by(result, arm, method).items())


def by_truth(result: Result, arm: str, method: str, of: str = "") -> tuple[np.ndarray, np.ndarray]:
    """A method's statistic in the contaminated and in the clean partitions of arm `of` (default: the same arm)."""
    known = result["arms"][of or arm]["truth"]
    sides: tuple[list[float], list[float]] = ([], [])
    for name, row in found_by(result, arm, method).items():
        sides[not known[name]].append(row["statistic"])
    return np.array(sides[0]), np.array(sides[1])


def by_assignment(result: Result, arm: str, method: str) -> np.ndarray:
    """Mean statistic of contaminated minus clean partitions, for every draw of as many that could have been made."""
    seen, clean = by_truth(result, arm, method)
    values = np.concatenate([seen, clean])
    drawn = [list(places) for places in combinations(range(len(values)), len(seen))]
    return np.array([values[places].mean() - np.delete(values, places).mean() for places in drawn])


def gap_auroc(result: Result, arm: str, metric: str = "rougeL") -> float:
    """Chance that a contaminated partition has a larger gap than a clean one."""
    known, rows = result["arms"][arm]["truth"], found_by(result, arm, metric)
    return metrics.auroc([row["statistic"] for row in rows.values()], [float(known[name] > 0) for name in rows])


def gap_by_copies(results: Sequence[Result], arm: str, metric: str = "rougeL") -> dict[float, float]:
    """Mean gap by the number of copies that the model read, over all partitions and seeds, fewest copies first."""
    gaps: dict[float, list[float]] = {}
    for result in results:
        for name, row in found_by(result, arm, metric).items():
            gaps.setdefault(result["arms"][arm]["truth"][name], []).append(row["statistic"])
    return {copies: float(np.mean(gaps[copies])) for copies in sorted(gaps)}


def over_seeds(results: Sequence[Result], alpha: float) -> Result:
    """One result with mean p-values: for scores that the seeds share, where they only seed the bootstrap."""
    arms: dict[str, Any] = {}
    for arm, first in results[0]["arms"].items():
        rows = []
        for place, row in enumerate(first["verdicts"]):
            p = float(np.mean([result["arms"][arm]["verdicts"][place]["p_value"] for result in results]))
            is_test = not math.isnan(p)
            rows.append({**row, "p_value": p, "contaminated": p <= alpha if is_test else row["contaminated"]})
        arms[arm] = {**first, "verdicts": rows}
    return {**results[0], "arms": arms}
