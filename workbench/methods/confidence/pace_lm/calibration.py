"""Calibration: two scores of an answer become one probability that it is right, by a map fitted on labelled answers.

Nothing here sees a label that it is not given to fit on.

The two scores are called `coe` (how far the evidence suffices to judge) and `rce` (how well it supports the answer),
both in [0, 1]; `z` is 1 where the answer is right. The map of the paper (arXiv 2309.05833) is not known, so three
families stand side by side.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from workbench import metrics
from workbench.stats import bootstrap

FAMILIES = ("grid", "logistic", "binned")  # that cross-validation chooses from; the others are baselines
BINS = 10
L2_C = 10.0  # inverse strength of the penalty on the logistic map's slopes
ENOUGH, FEWEST = 100, 50  # labels: below the first only Platt's map is fitted, below the second none
GROUPS = 3  # of equal mass in coe, family "binned"
# w coe^p + (1 - w) rce^q, times alpha, plus beta, clipped: the grid of family "grid"; ours. No alpha of 0: a constant
# is no map
WEIGHTS, POWERS = np.arange(11) / 10, (0.5, 1.0, 2.0)
ALPHAS, BETAS = np.arange(1, 9) / 4, np.arange(-20, 21) / 20
# What each logistic map sees. The product matters: a rating counts only where it is grounded.
FEATURES: dict[str, Callable[[np.ndarray, np.ndarray], list[np.ndarray]]] = {
    "logistic": lambda coe, rce: [coe, rce, coe * rce],
    "additive": lambda coe, rce: [coe, rce],
    "rce": lambda coe, rce: [rce],
    "coe": lambda coe, rce: [coe],
}


@dataclass(frozen=True)
class TransformMap:
    """A fitted map: JSON numbers only, so that it can be stored beside what it made."""

    family: str
    parameters: Mapping[str, Any]

    @property
    def transform_id(self) -> str:
        """Family and a short hash of the parameters."""
        text = json.dumps([self.family, self.parameters], sort_keys=True)
        return f"{self.family}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def fit_transform_map(coe: ArrayLike, rce: ArrayLike, z: ArrayLike, family: str = "logistic") -> TransformMap:
    """Fits c = T(coe, rce) to labels.

    Args:
        coe, rce: [n] in [0, 1].
        z: [n], 0 or 1.
        family: "grid" (clip(alpha (w coe^p + (1 - w) rce^q) + beta, 0, 1), exhaustive, by `grid_objective`), "grid_rce"
            (the same with w = 0), "logistic" (logit c = b0 + b1 coe + b2 rce + b3 coe rce, penalised slopes),
            "additive", "rce", "coe" (the same with fewer terms), "binned" (isotonic regression on rce in three groups
            of coe).

    Raises:
        ValueError: an unknown family; too few labels or one class (`check_labels`); a score that is NaN or outside [0,
            1] (its row is named); different lengths.
    """
    coe, rce, z = _checked(coe, rce, z)
    check_labels(z)
    if family in ("grid", "grid_rce"):
        parameters = _fit_grid(coe, rce, z, WEIGHTS if family == "grid" else WEIGHTS[:1])
    elif family in FEATURES:
        from sklearn.linear_model import LogisticRegression

        fitted: Any = LogisticRegression(C=L2_C, max_iter=1_000).fit(np.column_stack(FEATURES[family](coe, rce)), z)
        parameters = {"intercept": float(fitted.intercept_[0]), "slopes": fitted.coef_[0].tolist()}
    elif family == "binned":
        parameters = _fit_binned(coe, rce, z)
    else:
        raise ValueError(f"family must be one of grid, grid_rce, binned, {', '.join(FEATURES)}; got {family!r}")
    return TransformMap(family, parameters)


def apply_map(transform: TransformMap, coe: ArrayLike, rce: ArrayLike) -> np.ndarray:
    """Confidence [n] in [0, 1] of answers with these scores."""
    coe, rce, _ = _checked(coe, rce, None)
    p = transform.parameters
    if transform.family in FEATURES:
        logit = p["intercept"] + np.column_stack(FEATURES[transform.family](coe, rce)) @ np.asarray(p["slopes"])
        return 1 / (1 + np.exp(-logit))
    if transform.family == "binned":
        group, c = np.searchsorted(p["edges"], coe, side="right"), np.empty(len(coe))
        for number, (knots, levels) in enumerate(zip(p["knots"], p["levels"], strict=True)):
            c[group == number] = np.interp(rce[group == number], knots, levels)
        return c
    return np.clip(p["alpha"] * (p["w"] * coe ** p["p"] + (1 - p["w"]) * rce ** p["q"]) + p["beta"], 0, 1)


def check_labels(z: np.ndarray) -> bool:
    """Whether there are enough labels for every family; fewer leave Platt's map ("rce") alone, with a warning.

    Raises:
        ValueError: fewer than 50 labels, or all of one class.
    """
    right = int(np.sum(z == 1))
    if len(z) < FEWEST or right in (0, len(z)):
        raise ValueError(
            f"{len(z)} labelled calibration cases, {right} of them right: a confidence needs at least {FEWEST}, of both"
            " kinds. Label more cases, or take coe and rce as they are; they are no probabilities"
        )
    return len(z) >= ENOUGH


def choose_family(
    coe: ArrayLike, rce: ArrayLike, z: ArrayLike, families: Sequence[str] = FAMILIES, *, folds: int = 5, seed: int = 0
) -> pd.DataFrame:
    """Cross-validated Brier score of each family, best first: columns `family`, `cv_brier`."""
    from sklearn.model_selection import StratifiedKFold

    coe, rce, z = _checked(coe, rce, z)
    splits = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(coe, z))
    rows = []
    for family in families:
        c = np.empty(len(z))
        for fit, held in splits:
            c[held] = apply_map(fit_transform_map(coe[fit], rce[fit], z[fit], family), coe[held], rce[held])
        rows.append({"family": family, "cv_brier": metrics.brier(c, z)})
    return pd.DataFrame(rows).sort_values("cv_brier", kind="stable", ignore_index=True)


# ---------------------------------------------------------------------------------------------------- the three maps
def grid_objective(c: np.ndarray, z: np.ndarray) -> np.ndarray:
    """ECE with ten bins plus Brier score of candidates [..., n]. ECE alone would be content with a constant."""
    return calibration_errors(c, z) + np.mean((c - z) ** 2, axis=-1)


def calibration_errors(c: np.ndarray, z: np.ndarray, bins: int = BINS) -> np.ndarray:
    """`metrics.expected_calibration_error` of many candidates at once: [..., n] -> [...]."""
    flat = c.reshape(-1, c.shape[-1])
    index = np.minimum(np.floor(flat * bins), bins - 1).astype(int) + bins * np.arange(len(flat))[:, None]
    gaps = np.bincount(index.ravel(), (flat - z).ravel(), minlength=bins * len(flat))
    return (np.abs(gaps).reshape(-1, bins).sum(1) / c.shape[-1]).reshape(c.shape[:-1])


def _fit_grid(coe: np.ndarray, rce: np.ndarray, z: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    best, least = {}, math.inf
    for w in weights:
        for p in POWERS if w > 0 else (1.0,):
            for q in POWERS if w < 1 else (1.0,):
                base = w * coe**p + (1 - w) * rce**q
                value = grid_objective(np.clip(ALPHAS[:, None, None] * base + BETAS[:, None], 0, 1), z)
                i, j = np.unravel_index(np.argmin(value), value.shape)
                if value[i, j] < least - 1e-12:
                    least = float(value[i, j])
                    best = {"w": float(w), "p": p, "q": q, "alpha": float(ALPHAS[i]), "beta": float(BETAS[j])}
    return best


def _fit_binned(coe: np.ndarray, rce: np.ndarray, z: np.ndarray) -> dict[str, list]:
    from sklearn.isotonic import IsotonicRegression

    cuts = np.quantile(coe, np.arange(1, GROUPS) / GROUPS, method="higher")  # values that occur: no group is empty
    edges = [float(cut) for cut in np.unique(cuts) if cut > coe.min()]  # equal scores stay together
    group = np.searchsorted(edges, coe, side="right")
    knots, levels = [], []
    for number in range(len(edges) + 1):
        fitted = IsotonicRegression(y_min=0, y_max=1).fit(rce[group == number], z[group == number])
        knots.append(fitted.X_thresholds_.tolist())
        levels.append(fitted.y_thresholds_.tolist())
    return {"edges": edges, "knots": knots, "levels": levels}


# --------------------------------------------------------------------------------------------------------- the report
Measure = Callable[[np.ndarray, np.ndarray, int], float]  # (confidence, label, bins)
MEASURES: dict[str, Measure] = {
    "ece": lambda c, z, bins: metrics.expected_calibration_error(c, z, bins=bins),
    "ece_equal_mass": lambda c, z, bins: metrics.expected_calibration_error(c, z, bins=bins, binning="equal_mass"),
    "mce": lambda c, z, bins: metrics.maximum_calibration_error(c, z, bins=bins),
    "brier": lambda c, z, bins: metrics.brier(c, z),
    "auroc": lambda c, z, bins: metrics.auroc(c, z),
    "accuracy_coverage_auc": lambda c, z, bins: metrics.accuracy_coverage_auc(c, z),
}


def calibration_report(
    c: ArrayLike, z: ArrayLike, bins: int = BINS, *, rounds: int = 1_000, seed: int = 0
) -> pd.DataFrame:
    """What the confidences are worth: columns `metric`, `value`, `lower`, `upper`, `n`; 95 % bootstrap over cases.

    Read ECE beside AUROC and Brier: a constant equal to the base rate has ECE 0, AUROC 0.5 and the Brier score
    `base_rate_brier`, the last row.
    """
    c, z = np.asarray(c, dtype=float), np.asarray(z, dtype=float)
    measures = MEASURES | {"base_rate_brier": lambda _, z, bins: float(z.mean() * (1 - z.mean()))}
    rows = []
    for name, measure in measures.items():
        low, high = interval(measure, c, z, bins, rounds=rounds, seed=seed)
        value = quiet(measure, c, z, bins)
        rows.append({"metric": name, "value": value, "lower": low, "upper": high, "n": len(z)})
    return pd.DataFrame(rows)


def interval(
    measure: Measure,
    c: np.ndarray,
    z: np.ndarray,
    bins: int = BINS,
    *,
    against: np.ndarray | None = None,
    rounds: int = 1_000,
    seed: int = 0,
) -> tuple[float, float]:
    """95 % percentile bootstrap over cases of `measure(c, z)`, or its difference to the same of `against` (paired)."""
    resampled = []
    for places in bootstrap.draws(len(z), rounds, seed):
        value = quiet(measure, c[places], z[places], bins)
        resampled.append(value if against is None else value - quiet(measure, against[places], z[places], bins))
    return bootstrap.middle(np.array(resampled))


def reliability_table(c: ArrayLike, z: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """The reliability diagram: `bin`, `count`, `confidence`, `accuracy`, and Wilson's 95 % interval of the accuracy."""
    from scipy.stats import binomtest

    table = pd.DataFrame(metrics.reliability(c, z, bins=bins)._asdict())
    right = (table["accuracy"] * table["count"]).round().astype(int)
    sides = [binomtest(k, n).proportion_ci(method="wilson") for k, n in zip(right, table["count"], strict=True)]
    return table.assign(lower=[side.low for side in sides], upper=[side.high for side in sides])


def quiet(measure: Measure, c: np.ndarray, z: np.ndarray, bins: int = BINS) -> float:
    """`measure(c, z)` without the warning that one class makes it undefined: NaN says that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return float(measure(c, z, bins))


def _checked(coe: ArrayLike, rce: ArrayLike, z: ArrayLike | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = {"coe": np.asarray(coe, dtype=float), "rce": np.asarray(rce, dtype=float)}
    arrays["z"] = np.zeros(len(arrays["coe"])) if z is None else np.asarray(z, dtype=float)
    sizes = {name: list(values.shape) for name, values in arrays.items()}
    if len({tuple(size) for size in sizes.values()}) > 1 or arrays["coe"].ndim != 1:
        raise ValueError(f"coe, rce and z must be lists of one length; got shapes {sizes}")
    for name, values in arrays.items():
        bad = ~((values >= 0) & (values <= 1)) if name != "z" else (values != 0) & (values != 1)
        if bad.any():
            row = int(np.argmax(bad))
            wanted = "0 or 1" if name == "z" else "a number in [0, 1]; leave cases without a score out"
            raise ValueError(f"{name} row {row}: {values[row]} where {wanted} is needed")
    return arrays["coe"], arrays["rce"], arrays["z"]
