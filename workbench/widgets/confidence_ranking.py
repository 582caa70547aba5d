"""Confidence ranking: which answers a model trusts, how well that order separates right from wrong, what it cost.

What may live here: figures of the results of `methods/confidence/relative_confidence`, each a `figures.Display` (table
and drawing). What may not: measurements; every number comes from the results or from the run's `scores` tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures import Display, blank, dots_in_panels, lines_in_panels, plain
from workbench.methods import Experiment
from workbench.methods.confidence.relative_confidence import COVERAGE, SCORERS, values

Results = Sequence[Mapping[str, Any]]

SCORER_NAMES = {
    "direct": "stated number", "sc": "self-consistency", "hybrid_sc": "hybrid self-consistency",
    "hybrid_product": "hybrid, product", "win_rate": "win rate", "elo": "Elo, K 32", "elo_k400": "Elo, K 400",
    "trueskill": "TrueSkill", "bt": "Bradley-Terry", "bt_position": "Bradley-Terry with side",
    "bt_shuffled": "control: outcomes shuffled", "bt_negated": "control: outcomes negated",
}  # fmt: skip
LABELS = {
    **SCORER_NAMES, "R": "R: it senses what it knows", "S": "S: its samples know better", "Z": "Z: no signal",
    "questions": "real questions",
}  # fmt: skip
TRUTH = {1.0: ("right", "#0072B2", "circle"), 0.0: ("wrong", "#D55E00", "x"), None: ("unknown", "#999999", "diamond")}


def auc_by_method(results: Results) -> Display:
    """AUC of every scorer and control, between no order (accuracy) and the best possible one (oracle)."""
    table = pd.DataFrame(_tidy(results, "auc", {name: name for name in SCORER_NAMES}))
    lines = {
        arm: {name: values(results, arm, name).mean() for name in ("accuracy", "oracle")} for arm in results[0]["arms"]
    }
    gains = (
        f"{(values(results, arm, 'auc', 'bt') - values(results, arm, 'auc', 'direct')).mean():+.3f} in {_short(arm)}"
        for arm in lines
    )
    return dots_in_panels(
        table, panel="panel", y="value", labels=LABELS, lines=lines, x_title="AUC",
        title=f"Bradley-Terry against the stated number: {', '.join(gains)}",
    )  # fmt: skip


def coverage_curves(results: Results) -> Display:
    """Accuracy of the answers that are kept, most trusted first, against the share that is kept."""
    rows = [
        {**row, "value": accuracy, "coverage": coverage}
        for row in _tidy(results, "curves", {name: name for name in SCORERS})
        for coverage, accuracy in zip(COVERAGE, row["value"], strict=True)
    ]
    half = (
        f"{values(results, arm, 'accuracy_at_0.5', 'bt').mean():.0%} ({_short(arm)}, all: "
        f"{values(results, arm, 'accuracy').mean():.0%})"
        for arm in results[0]["arms"]
    )
    display = lines_in_panels(
        pd.DataFrame(rows), panel="panel", x="coverage", y="value", labels=LABELS, x_title="share of answers kept",
        y_title="accuracy of those kept", title=f"Right in the half that Bradley-Terry trusts: {', '.join(half)}",
    )  # fmt: skip
    for name in ("sc", "elo", "trueskill"):  # each lies on another curve: a click in the legend shows it
        display.figure().update_traces(visible="legendonly", selector={"legendgroup": name})
    return display


def auc_by_calls(experiment: Experiment, results: Results) -> Display:
    """AUC against calls a question: opponents for Bradley-Terry, samples for hybrid self-consistency."""
    main = experiment.task.arms[0]
    everyone = min(part["rounds"] for part in results[0]["arms"][main].values())
    endings = {few: f"_n{few}" for few in sorted(experiment.config.budgets) if few < everyone} | {everyone: ""}
    rows = [
        {**row, "calls": calls}
        for calls, ending in endings.items()
        for row in _tidy(results, "auc", {f"{name}{ending}": name for name in ("hybrid_sc", "bt")})
    ]
    path = " to ".join(f"{values(results, main, 'auc', f'bt{ending}').mean():.3f}" for ending in endings.values())
    display = lines_in_panels(
        pd.DataFrame(rows), panel="panel", x="calls", y="value", labels=LABELS, x_title="calls a question",
        y_title="AUC", title=f"With more opponents Bradley-Terry goes from {path} ({_short(main)})",
    )  # fmt: skip
    display.figure().update_xaxes(tickvals=list(endings))
    return display


def elo_order(results: Results) -> Display:
    """How far Elo's AUC moves when the same matches come in another order: standard deviation over orders, per seed."""
    rows = [
        {**row, "value": 100 * np.std(row["value"], ddof=1), "mean": np.mean(row["value"])}
        for row in _tidy(results, "elo_orders", {name: name for name in ("elo", "elo_k400")})
    ]
    sd = {name: np.mean([row["value"] for row in rows if row["arm"] == name]) for name in ("elo", "elo_k400")}
    return dots_in_panels(
        pd.DataFrame(rows), panel="panel", y="value", labels=LABELS, x_title="points of AUC",
        title=f"Order alone moves Elo by {sd['elo']:.1f} points at K 32 and by {sd['elo_k400']:.1f} at K 400",
    )  # fmt: skip


def ranking(experiment: Experiment, *, seed: int, arm: str = "", method: str = "bt") -> Display:
    """The questions of one seed by strength, most trusted first, with 95 % intervals and whether they were right."""
    arm = arm or experiment.task.arms[0]
    paths = sorted((experiment.run.folder / f"seed-{seed}" / arm).glob("*/scores.parquet"))
    if not paths:
        raise ValueError(f"no scores of seed {seed}, regime {arm!r}; seeds of this run: {experiment.seeds}")
    table: Any = pd.concat([pd.read_parquet(path).assign(data_set=path.parent.name) for path in paths])
    table = table[table["method"] == method].sort_values(["data_set", "rank"], ignore_index=True)
    half = len(table) // 2
    wrong = [int((part["correct"] == 0).sum()) for part in (table[:half], table[half:])]
    figure = blank(
        f"Wrong answers: {wrong[0]} in the trusted half, {wrong[1]} in the other ({_short(arm)}, seed {seed})",
        "place in the ranking", f"strength ({LABELS.get(method, method)})",
    )  # fmt: skip
    for truth, (name, colour, symbol) in TRUTH.items():
        rows = table[table["correct"].isna() if truth is None else table["correct"] == truth]
        asked = [
            [plain(question), plain(answer)] for question, answer in zip(rows["question"], rows["answer"], strict=True)
        ]
        figure.add_trace(
            go.Scatter(
                x=rows.index + 1, y=rows["score"], mode="markers", name=name, customdata=asked,
                marker={"color": colour, "symbol": symbol, "size": 7},
                error_y={"array": rows["upper"] - rows["score"], "arrayminus": rows["score"] - rows["lower"],
                         "color": colour, "thickness": 0.7, "width": 0},
                hovertemplate="%{customdata[0]}<br>%{customdata[1]}<br>%{y:.2f}<extra>" + name + "</extra>",
                visible=True if len(rows) else "legendonly", showlegend=bool(len(rows)),
            )
        )  # fmt: skip
    return Display(table, figure)


def means(results: Results) -> pd.DataFrame:
    """Mean AUC over seeds of every scorer, beside the accuracy and the oracle, one column a regime."""
    table = {}
    for arm in results[0]["arms"]:
        bounds = {name: values(results, arm, name).mean() for name in ("accuracy", "oracle")}
        table[LABELS.get(arm, arm)] = bounds | {
            label: values(results, arm, "auc", name).mean() for name, label in SCORER_NAMES.items()
        }
    return pd.DataFrame(table).round(3)


def checks(experiment: Experiment, results: Results) -> pd.DataFrame:
    """What should be looked at before a claim is believed, mean and standard deviation over seeds, one row a regime."""
    rows = {}
    for arm in results[0]["arms"]:
        measured = {
            "questions ranked": values(results, arm, "n"),
            "lean to the first question, logits": values(results, arm, "position"),
            "triples without a cycle, share": values(results, arm, "transitivity"),
        }
        if experiment.task.is_simulated:
            measured["strength and what is sensed, correlation"] = values(results, arm, "sensed_correlation")
        for name, total in (("judgments", "n_judgments"), ("samples", "n_samples"), ("stated", "n")):
            measured[f"{name} unread, %"] = 100 * values(results, arm, f"unparsed_{name}") / values(results, arm, total)
        for name in ("direct", "bt"):
            calibrated = [
                np.mean([part["calibration"][name]["ece"] for part in r["arms"][arm].values()]) for r in results
            ]
            measured[f"ECE after calibration, {LABELS[name]}"] = np.array(calibrated)
        rows[arm] = {name: f"{v.mean():.3g} ± {v.std(ddof=1) if len(v) > 1 else 0:.2g}" for name, v in measured.items()}
    return pd.DataFrame(rows)


def _tidy(results: Results, metric: str, names: Mapping[str, str]) -> list[dict[str, Any]]:
    """Rows `panel` (regime), `arm` (what the scorer is shown as), `seed` (place in the list), `value`."""
    return [
        {"panel": panel, "arm": arm, "seed": seed, "value": value}
        for panel in results[0]["arms"]
        for name, arm in names.items()
        for seed, value in enumerate(values(results, panel, metric, name))
    ]


def _short(arm: str) -> str:
    return f"regime {arm}" if len(arm) == 1 else LABELS.get(arm, arm)
