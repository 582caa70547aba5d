"""Reliability: do confidences keep their word, what do the ablations cost, and one case with all that was said."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims import interval
from workbench.figures import Display, Look, Note, blank, look_of
from workbench.methods.confidence.pace_lm.calibration import reliability_table
from workbench.methods.confidence.pace_lm.cases import has_prediction
from workbench.methods.confidence.pace_lm.experiment import ARMS, values
from workbench.methods.confidence.pace_lm.scores import MAIN
from workbench.methods.experiment import Experiment
from workbench.methods.views import TablePages, dots, named_lines, seed_folder, whiskers
from workbench.widgets.confidence_ranking import ConfidenceRanking

Results = Sequence[Mapping[str, Any]]

SCORES = {
    "direct": Look("stated number", "#7F7F7F"),
    "direct_references": Look("stated number, references shown"),
    "self_consistency": Look("self-consistency"),
    "raw_coe": Look("evidence (coe), raw"),
    "raw_rce": Look("rating (rce), raw", "#D55E00"),
    "raw_product": Look("product, raw"),
    "coe": Look("evidence, Platt"),
    "rce": Look("rating, Platt"),
    "grid_rce": Look("rating, affine"),
    "additive": Look("both, no product"),
    "grid": Look("both, grid"),
    "logistic": Look("both, logistic with product", "#0072B2"),
    "binned": Look("both, isotonic in groups"),
    "chosen": Look("chosen by cross-validation"),
    "base_rate": Look("base rate, one number for all", "#999999"),
    "shuffled": Look("control: labels shuffled", "#A6761D"),
    "flipped": Look("control: labels turned over"),
    "coe_shuffled": Look("control: coe shuffled"),
}
METRICS = {"ece": "ECE (low is good)", "brier": "Brier (low is good)", "auroc": "AUROC (high is good)"}
WAYS = {
    "own": Look("where it was fitted"),
    "transferred": Look("carried over"),
    "refitted": Look("refitted there"),
    "base_rate": Look("base rate carried over", "#999999"),
}


def reliability_diagram(
    experiment: Experiment, scores: Sequence[str] = ("direct", "raw_rce", "logistic"), *, bins: int = 10
) -> Display:
    """Accuracy against confidence, bin by bin, with the number of cases and Wilson's 95 % interval.

    The cases of all seeds in the embedded world, of the first seed where the seeds share their cases.
    """
    seeds = experiment.seeds if experiment.task.is_simulated else experiment.seeds[:1]
    rows: Any = pd.concat([_table(experiment, seed, "measured") for seed in seeds], ignore_index=True)
    parts: dict[str, Any] = {name: reliability_table(rows[name], rows["correct"], bins) for name in scores}
    table = pd.concat([part.assign(score=name) for name, part in parts.items()], ignore_index=True)
    gap = {
        name: np.average((part["accuracy"] - part["confidence"]).abs(), weights=part["count"])
        for name, part in parts.items()
    }
    said = ", ".join(f"{SCORES[name].title} {value:.3f}" for name, value in gap.items())
    figure = blank(f"Mean gap to the diagonal: {said}", "confidence", "share right", height=460)
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", line={"color": "#888", "dash": "dot"}, name="calibrated")
    largest = table["count"].max()
    for name, part in parts.items():
        title, colour = look_of(name, SCORES)
        size = 6 + 22 * np.sqrt(part["count"] / largest)
        look: dict[str, Any] = {"mode": "markers+lines", "name": title, "line": {"color": colour, "width": 1}}
        look["marker"] = {"size": size, "opacity": 0.75, "color": colour}
        look["error_y"] = whiskers(part, "accuracy", color=colour, thickness=1, width=2)
        told = f"[%{{customdata[1]:.2f}}, %{{customdata[2]:.2f}}]<extra>{title}</extra>"
        look["hovertemplate"] = f"%{{customdata[0]}} cases: said %{{x:.2f}}, right %{{y:.2f}} {told}"
        counted = part[["count", "lower", "upper"]]
        figure.add_scatter(x=part["confidence"], y=part["accuracy"], customdata=counted, **look)
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    return Display(table, figure)


def by_score(results: Results) -> Display:
    """Every score, map, baseline and control on the same test cases."""
    known = [name for name in SCORES if name in results[0]["arms"][MAIN]["scores"]]
    raw, fitted, base = (values(results, MAIN, name, "brier").mean() for name in ("raw_rce", "logistic", "base_rate"))
    title = f"Brier score: rating {raw:.3f}, with the evidence {fitted:.3f}, base rate {base:.3f}"
    return _by_metric({name: (MAIN, name) for name in known}, results, title, SCORES)


def by_references(results: Results) -> Display:
    """The ablations of the references. If they say nothing ECE is low and AUROC one half: a constant is calibrated."""
    ece, auroc = (
        {arm: values(results, arm, "logistic", m).mean() for arm in (MAIN, "random")} for m in ("ece", "auroc")
    )
    title = (
        f"The trap: random references have ECE {ece['random']:.3f} (similar {ece[MAIN]:.3f}) and AUROC "
        f"{auroc['random']:.2f} (similar {auroc[MAIN]:.2f})"
    )
    looks = {**ARMS, "one_analysis": Look("one analysis instead of several")}
    return _by_metric({arm: (arm, "logistic") for arm in results[0]["arms"]}, results, title, looks)


def _by_metric(rows: Mapping[str, tuple[str, str]], results: Results, title: str, looks: Mapping[str, Any]) -> Display:
    """One panel a metric, in it one dot for each name of `rows`, which says the arm and the score to read."""
    table = [
        {"panel": metric, "arm": name, "seed": seed, "value": value}
        for metric in METRICS
        for name, (arm, score) in rows.items()
        for seed, value in enumerate(values(results, arm, score, metric))
    ]
    return dots(table, title, "", {**looks, **METRICS})


def transfer_figure(results: Results) -> Display | Note:
    """ECE of the first predictor's map on the other predictors' test cases, before and after fitting again."""
    if not all(result.get("transfer") for result in results):
        return Note("The cases come from one predictor: nothing can be carried over.")
    rows = [
        {"panel": name, "arm": way, "seed": seed, "value": result["transfer"][name][way]}
        for name in results[0]["transfer"]
        for way in WAYS
        for seed, result in enumerate(results)
    ]
    mean = {way: np.mean([row["value"] for row in rows if row["arm"] == way]) for way in WAYS}
    right = {
        name: f"predictor {name}, {np.mean([r['transfer'][name]['accuracy'] for r in results]):.0%} right"
        for name in results[0]["transfer"]
    }
    title = f"On another predictor the map's ECE goes from {mean['own']:.3f} to {mean['transferred']:.3f}"
    return dots(rows, f"{title}; refitted, to {mean['refitted']:.3f}", "ECE", {**WAYS, **right})


def means(results: Results) -> pd.DataFrame:
    """Mean over seeds of every metric of every score, on the same test cases."""
    found = results[0]["arms"][MAIN]["scores"]
    table = {
        SCORES[name].title: {metric: values(results, MAIN, name, metric).mean() for metric in found["logistic"]}
        for name in SCORES
        if name in found
    }
    return pd.DataFrame(table).T.round(3)


def checks(experiment: Experiment, results: Results) -> pd.DataFrame:
    """What should be looked at before a claim is believed: mean over seeds and 95 % interval."""
    measured: dict[str, Any] = {
        "test cases compared": [result["arms"][MAIN]["n"] for result in results],
        "of them right": [result["arms"][MAIN]["accuracy"] for result in results],
        **{f"{phase}: replies unread, share": [r["unread"][phase] for r in results] for phase in results[0]["unread"]},
        "cases without a score (too many unread)": [result["scores_missing"] for result in results],
        "cases without a proposal": [result["no_prediction"] for result in results],
        "cases without an older incident": [result["no_earlier"] for result in results],
        "references refused: not older": [result["excluded"]["not_older"] for result in results],
        "references refused: same text": [result["excluded"]["same"] for result in results],
        "cases shown fewer references than asked for": [_short(r, experiment.config.k) for r in results],
    }
    if experiment.task.is_simulated:
        both = ([part["scores"]["binned"]["brier"] for part in (r["fresh"], r["arms"][MAIN])] for r in results)
        optimism = [fresh - test for fresh, test in both]
        measured["Brier on fresh cases minus on test cases, isotonic"] = optimism  # above 0: fitted where it is read
        measured["coe and the proposal at equal evidence, correlation"] = [r["coe_follows"] for r in results]
        measured["references that name the true cause, share"] = [r["true_share"] for r in results]
    rows = {}
    for name, numbers in measured.items():
        low, high = interval(np.asarray(numbers, dtype=float))
        rows[name] = {"mean": float(np.mean(numbers)), "lower": low, "upper": high}
    return pd.DataFrame(rows).T.round(3)


def _short(result: Mapping[str, Any], k: int) -> int:
    return sum(n for used, n in result["k_used"].items() if int(used) < k)


def _table(experiment: Experiment, seed: int, name: str, part: str = "") -> pd.DataFrame:
    path = seed_folder(experiment, seed) / part / f"{name}.parquet"
    if not path.is_file():
        raise ValueError(f"no table {name!r} of seed {seed}; seeds of this run: {experiment.seeds}")
    return pd.read_parquet(path)


def ranking(experiment: Experiment, *, seed: int | None = None) -> ConfidenceRanking | Note:
    """The test cases of a seed (the first one's by default) by how far their proposals can be trusted."""
    seed = experiment.seeds[0] if seed is None else seed
    try:
        table = _table(experiment, seed, "measured")
    except ValueError:
        return Note("No labelled test cases: nothing was fitted, so there is no order to show.")
    told = experiment.task.tables(seed)[0].drop(columns="correct")
    cases: Any = table.merge(told, on="case_id", validate="one_to_one")
    answers = pd.DataFrame({"qid": cases["case_id"], "question": cases["title"] + "\n" + cases["summary"]})
    answers = answers.assign(answer=cases["predicted_root_cause"], correct=cases["correct"])
    known = [name for name in ("chosen", "raw_rce", "raw_coe", "direct") if name in cases]
    scores = {name: cases[name] for name in known if cases[name].notna().all()}
    return ConfidenceRanking(answers, scores, labels={name: look.title for name, look in SCORES.items()})


class CaseView(TablePages):
    """Case by case: the incident, its references, what was sampled in both phases, the proposal and its confidence.

    Args:
        experiment: with a finished run.
        seed: of the run; None takes the first.
        split: which cases.
        shown: cases on the static face.
    """

    noun = "case"

    def __init__(self, experiment: Experiment, *, seed: int | None = None, split: str = "test", shown: int = 3):
        seed = experiment.seeds[0] if seed is None else seed
        cases, history = experiment.task.tables(seed)
        scores = _table(experiment, seed, "scores")
        joined = scores.drop(columns=["predictor", "correct", "split"]).merge(cases, on="case_id")
        super().__init__(joined.loc[joined["split"] == split].reset_index(drop=True), shown)
        if self.table.empty:
            raise ValueError(f"no case of split {split!r} to show; splits: {', '.join(sorted(set(joined['split'])))}")
        references = _table(experiment, seed, "references", MAIN).merge(history, on="incident_id")
        self.references = dict(tuple(references.sort_values("rank").groupby("case_id")))
        self.samples = dict(tuple(_table(experiment, seed, "samples", MAIN).groupby("case_id")))

    def html(self, index: int) -> str:
        """One case as HTML; a pure function of its number."""
        case = self.table.iloc[index]
        truth = {1.0: "right", 0.0: "wrong"}.get(case["correct"], "unknown")
        proposal = case["predicted_root_cause"] if has_prediction(self.table).iloc[index] else "(none)"
        coe, rce, confidence = (_number(case[name]) for name in ("coe", "rce", "confidence"))
        said = f"evidence suffices {coe}, rating {rce}, confidence {confidence} {case['flag']}"
        lines = [("incident", f"{case['title']}\n{case['summary']}".strip())]
        lines += [("proposed cause", f"{proposal} ({truth})"), ("scores", said.strip())]
        for row in self.references.get(case["case_id"], pd.DataFrame()).to_dict("records"):
            said = f"{row['root_cause']} | {row['summary']}"
            lines.append((f"reference {row['rank']}, similarity {row['similarity']:.2f}", said))
        for phase, rows in self.samples.get(case["case_id"], pd.DataFrame({"phase": []})).groupby("phase", sort=False):
            unread = np.where(rows["parse_status"] == "ok", "", " [unread]")
            lines.append((f"samples, {phase}", "\n".join(rows["raw_text"] + unread)))
        heading = f"<b>{index + 1} of {len(self.table)}: {html.escape(str(case['case_id']))}</b>"
        table = named_lines([(name, html.escape(text)) for name, text in lines])
        return f'<div class="case-view">{heading}{table}</div>'


def _number(value: float) -> str:
    return "none" if pd.isna(value) else f"{value:.2f}"
