"""Scored cases: the table of cases with their scores, the confidences made from it, and what each is worth.

Every map is fitted on rows of split "calibration" and read on other rows. All scores of one table are compared on the
same rows: those with a label and with every score read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.methods.confidence.pace_lm import calibration
from workbench.methods.confidence.pace_lm.analyses import case_scores
from workbench.methods.confidence.pace_lm.calibration import MEASURES, TransformMap, apply_map, fit_transform_map
from workbench.methods.confidence.pace_lm.cases import has_prediction
from workbench.runs.run import Run
from workbench.tasks.questions import comparable

MAIN = "similar"  # the arm with the most similar older incidents
STATED = ("direct", "direct_references", "self_consistency")  # baselines that a table may hold
MAPPED = ("rce", "grid_rce", "coe", "additive", "grid", "logistic", "binned")  # families that are reported
ABLATION = ("raw_rce", "raw_coe", "rce", "logistic", "base_rate")  # what an ablation reports
DEFAULT = "logistic"


def scored(cases: pd.DataFrame, samples: pd.DataFrame, max_missing: float) -> pd.DataFrame:
    """The cases with `coe`, `rce` and the baselines that were asked, NaN where a value is missing."""
    columns: dict[str, Any] = {
        name: case_scores(samples, name, max_missing).reindex(cases["case_id"]).to_numpy(dtype=float)
        for name in dict.fromkeys(samples["phase"])
    }
    if "predictor_samples" in cases:  # self-consistency, where the predictor was sampled
        pairs = zip(cases["predictor_samples"], cases["predicted_root_cause"], strict=True)
        columns["self_consistency"] = [_agreeing(drawn, proposed) for drawn, proposed in pairs]
    return cases[["case_id", "predicted_root_cause", "predictor", "correct", "split"]].assign(**columns)


def _agreeing(drawn: Any, proposed: str) -> float:
    several = isinstance(drawn, list | np.ndarray) and len(drawn) > 0
    return float(np.mean([comparable(s) == comparable(proposed) for s in drawn])) if several else math.nan


def complete(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a label, a proposal and every score read: those on which scores can be compared."""
    rows: Any = table[has_prediction(table)]
    return rows.dropna().reset_index(drop=True)


def columns(table: pd.DataFrame, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """coe, rce and label of the rows of one split."""
    rows: Any = table[table["split"] == split]
    return rows["coe"].to_numpy(), rows["rce"].to_numpy(), rows["correct"].to_numpy()


def fitted(table: pd.DataFrame, family: str) -> TransformMap:
    """The map of a family from the calibration rows of a table, and from no others."""
    return fit_transform_map(*columns(table, "calibration"), family)


def confidences(
    table: pd.DataFrame, split: str, chosen: TransformMap, seed: int, names: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """Every score, map, baseline and control (or those named) for the rows of one split; all are numbers in [0, 1].

    Controls: "flipped" is fitted to labels turned over, "shuffled" to labels in random order, "coe_shuffled" has coe in
    random order in both splits. "base_rate" says one number for all, the share of right calibration cases.
    """
    coe, rce, z = columns(table, "calibration")
    to: Any = table[table["split"] == split]
    coe_to, rce_to, _ = columns(table, split)

    def mapped(family: str, labels: np.ndarray = z) -> np.ndarray:
        return apply_map(fit_transform_map(coe, rce, labels, family), coe_to, rce_to)

    def unlinked(rng: np.random.Generator) -> np.ndarray:
        return apply_map(fit_transform_map(rng.permutation(coe), rce, z, DEFAULT), rng.permutation(coe_to), rce_to)

    makers = {
        **{name: partial(to[name].to_numpy) for name in STATED if name in to},
        "raw_coe": lambda: coe_to,
        "raw_rce": lambda: rce_to,
        "raw_product": lambda: coe_to * rce_to,
        **{family: partial(mapped, family) for family in MAPPED},
        "chosen": lambda: apply_map(chosen, coe_to, rce_to),
        "base_rate": lambda: np.full(len(to), z.mean()),
        "flipped": lambda: mapped(DEFAULT, 1 - z),
        "shuffled": lambda: mapped(DEFAULT, np.random.default_rng([seed, 11]).permutation(z)),
        "coe_shuffled": lambda: unlinked(np.random.default_rng([seed, 12])),
    }
    return {name: makers[name]() for name in names or makers}


def report(
    tables: Mapping[str, pd.DataFrame],
    others: Mapping[str, pd.DataFrame],
    chosen: TransformMap,
    run: Run,
    *,
    bins: int,
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    """What every arm's scores are worth on the test cases, and the tables `measured` and `report` of the run.

    Args:
        tables: complete rows of the first predictor, by arm.
        others: complete rows of the other predictors, for the transfer of the first one's map.
        rounds: of the bootstrap over cases.
    """
    worth = partial(measure, chosen=chosen, bins=bins, seed=seed)
    arms = {arm: worth(table, "test", names=() if arm == MAIN else ABLATION) for arm, table in tables.items()}
    found: dict[str, Any] = {"arms": arms}
    if "fresh" in set(tables[MAIN]["split"]):
        found["fresh"] = worth(tables[MAIN], "fresh", names=calibration.FAMILIES)
    rows = run.table("measured", lambda: measured(tables[MAIN], chosen, seed))
    chosen_report = partial(calibration.calibration_report, rows["chosen"], rows["correct"], bins)
    run.table("report", partial(chosen_report, rounds=rounds, seed=seed))
    found["gains"] = gains(rows, bins=bins, rounds=rounds, seed=seed)
    found["transfer"] = {name: transfer(tables[MAIN], other, bins) for name, other in others.items()}
    return found


def measure(
    table: pd.DataFrame, split: str, chosen: TransformMap, *, bins: int, seed: int, names: Sequence[str] = ()
) -> dict[str, Any]:
    """`{"n", "accuracy", "scores": {score: {metric: value}}}` of the rows of one split."""
    c, z = confidences(table, split, chosen, seed, names), columns(table, split)[2]
    scores = {name: {metric: calibration.quiet(f, c[name], z, bins) for metric, f in MEASURES.items()} for name in c}
    unlinked = np.random.default_rng([seed, 13]).permutation(z)
    scores["labels_shuffled"] = {"auroc": calibration.quiet(MEASURES["auroc"], c[DEFAULT], unlinked, bins)}
    return {"n": len(z), "accuracy": float(z.mean()), "scores": scores}


def measured(table: pd.DataFrame, chosen: TransformMap, seed: int) -> pd.DataFrame:
    """Test rows with every confidence beside the label, for reliability diagrams."""
    rows = table.loc[table["split"] == "test", ["case_id", "correct"]].reset_index(drop=True)
    return rows.assign(**confidences(table, "test", chosen, seed))


def gains(rows: pd.DataFrame, *, bins: int, rounds: int, seed: int) -> dict[str, list[float]]:
    """95 % intervals over cases, paired, of how much lower the ECE of the default map is; and how much higher AUROC."""
    z, best = rows["correct"].to_numpy(), rows[DEFAULT].to_numpy()

    def against(metric: str, first: np.ndarray, second: np.ndarray) -> list[float]:
        return [*calibration.interval(MEASURES[metric], first, z, bins, against=second, rounds=rounds, seed=seed)]

    found = {f"ece_{name}": against("ece", rows[name].to_numpy(), best) for name in ("raw_rce", "direct")}
    return {**found, "auroc_raw_rce": against("auroc", best, rows["raw_rce"].to_numpy())}


def transfer(table: pd.DataFrame, other: pd.DataFrame, bins: int) -> dict[str, float]:
    """ECE and Brier score of one predictor's map on another predictor's test cases.

    Returns:
        `own` (the map where it was made), `transferred`, `refitted` on the other's calibration cases, and `base_rate`:
        the first one's base rate stated for the other, and `base_rate_own` where it was made.
    """
    transform, base = fitted(table, DEFAULT), columns(table, "calibration")[2].mean()
    found = {"accuracy": float(columns(other, "test")[2].mean())}
    ways = {
        "own": (table, transform),
        "transferred": (other, transform),
        "refitted": (other, fitted(other, DEFAULT)),
        "base_rate_own": (table, None),
        "base_rate": (other, None),
    }
    for name, (rows, map_) in ways.items():
        coe, rce, z = columns(rows, "test")
        c = np.full(len(z), base) if map_ is None else apply_map(map_, coe, rce)
        found[name] = MEASURES["ece"](c, z, bins)
        found[f"{name}_brier"] = MEASURES["brier"](c, z, bins)
    return found


def score_table(table: pd.DataFrame, transform: TransformMap | None) -> pd.DataFrame:
    """What a user gets: `case_id`, `coe`, `rce`, `confidence`, `transform_id`, and `flag` where there is something to
    know.

    Without a fitted map the confidence is null: a number that was not calibrated never goes by that name. A case
    without a proposal has the base rate of such calibration cases.
    """
    proposed, read = has_prediction(table), table["coe"].notna() & table["rce"].notna()
    confidence = np.full(len(table), math.nan)
    if transform is not None:
        confidence[read] = apply_map(transform, table.loc[read, "coe"], table.loc[read, "rce"])
        confidence[~proposed] = table.loc[~proposed & (table["split"] == "calibration"), "correct"].mean()
    reasons = {"no labels": np.full(len(table), transform is None)}
    reasons |= {"no prediction: base rate of such cases": ~proposed, "scores missing": ~read}
    flag, used = np.select([*reasons.values()], [*reasons], default=""), transform.transform_id if transform else None
    told = table[["case_id", "coe", "rce"]].assign(confidence=confidence, transform_id=used, flag=flag)
    return told.assign(**{name: table[name] for name in ("predictor", "correct", "split")})


def counts(table: pd.DataFrame, samples: pd.DataFrame, references: pd.DataFrame, cases: pd.DataFrame) -> dict[str, Any]:
    """What was left out and why."""
    asked: Any = samples.assign(unread=samples["parse_status"] == "unparsed")
    one: Any = samples.drop_duplicates("case_id")["k_used"]
    shares, used = asked.groupby("phase", sort=False)["unread"].mean(), one.value_counts()
    missing = table["coe"].isna() | table["rce"].isna()
    absent = {"scores_missing": missing.tolist().count(True)}
    absent["no_prediction"] = has_prediction(table).tolist().count(False)
    return {
        "cases": len(table),
        **absent,
        "no_earlier": len(set(cases["case_id"]) - set(references["case_id"])),
        "unread": {str(phase): float(share) for phase, share in zip(shares.index, shares, strict=True)},
        "k_used": {str(k): int(n) for k, n in zip(used.index, used, strict=True)},
    }


def planted(
    table: pd.DataFrame, references: pd.DataFrame, history: pd.DataFrame, truth: Mapping[str, str]
) -> dict[str, float]:
    """Checks against a world's truth.

    Returns:
        `coe_follows`: correlation of coe with the share of references that name the proposed cause, among cases with
        the same largest share of one cause: 0 unless coe has seen the proposal. `true_share`: references that name the
        true cause, 1 where a case finds itself.
    """
    rows: Any = references.merge(history[["incident_id", "root_cause"]], on="incident_id").merge(
        table[["case_id", "predicted_root_cause", "coe"]].dropna(), on="case_id"
    )
    rows["named"] = rows["root_cause"] == rows["predicted_root_cause"]
    rows["true"] = rows["root_cause"] == rows["case_id"].map(dict(truth))
    largest: Any = rows.groupby(["case_id", "root_cause"]).size().groupby("case_id").max()
    one: Any = rows.groupby("case_id")[["named", "true", "coe"]].mean().assign(largest=largest)
    apart: Any = one[["named", "coe"]] - one.groupby("largest")[["named", "coe"]].transform("mean")
    return {"coe_follows": float(apart["named"].corr(apart["coe"])), "true_share": float(one["true"].mean())}
