"""Figures of relative confidence: how well each order separates right from wrong, what it cost, what it depends on.

The inspector of one ranking is `confidence_ranking.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.figures import Display, Look, Note, blank, look_of, plain
from workbench.methods.confidence.relative_confidence.experiment import values
from workbench.methods.confidence.relative_confidence.exposed_facts import TEMPERATURES
from workbench.methods.confidence.relative_confidence.measures import COVERAGE
from workbench.methods.confidence.relative_confidence.method import SCORERS
from workbench.methods.experiment import Experiment
from workbench.methods.views import curves, dots, seed_folder, whiskers
from workbench.stats import bootstrap
from workbench.widgets.confidence_ranking import ConfidenceRanking

Results = Sequence[Mapping[str, Any]]

SCORER_LOOKS = {
    "direct": Look("stated number", "#7F7F7F"),
    "sc": Look("self-consistency", "#56B4E9"),
    "hybrid_sc": Look("hybrid self-consistency", "#009E73"),
    "hybrid_product": Look("hybrid, product", "#009E73"),
    "win_rate": Look("win rate", "#A6761D"),
    "elo": Look("Elo, K 32", "#E69F00"),
    "elo_k400": Look("Elo, K 400", "#E69F00"),
    "trueskill": Look("TrueSkill", "#CC79A7"),
    "bt": Look("Bradley-Terry", "#0072B2"),
    "bt_position": Look("Bradley-Terry with side", "#0072B2"),
    "option_logp": Look("probability of its letter"),
    "bt_shuffled": Look("control: outcomes shuffled", "#999999"),
    "bt_negated": Look("control: outcomes negated", "#999999"),
}
LOOKS = {
    **SCORER_LOOKS,
    "R": Look("R: it senses what it knows"),
    "S": Look("S: its samples know better"),
    "Z": Look("Z: no signal"),
    "questions": Look("real questions"),
    "F": Look("F: trained, judged at temperature 0"),
    "FT": Look("FT: trained, judged at 0.7"),
    "random": Look("random opponents", "#A6761D"),
    "active": Look("opponents chosen by information"),
}
NOT_COMPARED = Note(
    "Active opponents were not asked beside random ones here; `compare_active` does that, for twice the judgments."
)
TRUTH = {1.0: ("right", "#0072B2", "circle"), 0.0: ("wrong", "#D55E00", "x"), None: ("unknown", "#999999", "diamond")}


def auc_by_method(results: Results) -> Display:
    """AUC of every scorer and control, between no order (accuracy) and the best possible one (oracle)."""
    return _auc_by_method(results, _main(results))


def facts(results: Results) -> Display | Note:
    """The same for the trained transformer (exposed_facts.py), whose raw probability is known too."""
    arms = [arm for arm in results[0]["arms"] if arm in TEMPERATURES]
    return _auc_by_method(results, arms) if arms else Note("No transformer was trained in this run (`facts`).")


def _auc_by_method(results: Results, arms: Sequence[str]) -> Display:
    table = _tidy(results, "auc", {name: name for name in SCORER_LOOKS}, arms)
    lines = {arm: {name: values(results, arm, name).mean() for name in ("accuracy", "oracle")} for arm in arms}
    gains = (
        f"{(values(results, arm, 'auc', 'bt') - values(results, arm, 'auc', 'direct')).mean():+.3f} in {_short(arm)}"
        for arm in lines
    )
    return dots(table, f"Bradley-Terry against the stated number: {', '.join(gains)}", "AUC", LOOKS, lines)


def coverage_curves(results: Results) -> Display:
    """Accuracy of the answers that are kept, most trusted first, against the share that is kept."""
    rows = [
        {**row, "value": accuracy, "coverage": coverage}
        for row in _tidy(results, "curves", {name: name for name in SCORERS}, _main(results))
        for coverage, accuracy in zip(COVERAGE, row["value"], strict=True)
    ]
    half = (
        f"{values(results, arm, 'accuracy_at_0.5', 'bt').mean():.0%} ({_short(arm)}, all: "
        f"{values(results, arm, 'accuracy').mean():.0%})"
        for arm in _main(results)
    )
    title = f"Right in the half that Bradley-Terry trusts: {', '.join(half)}"
    display = curves(rows, "coverage", title, "share of answers kept", "accuracy of those kept", LOOKS)
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
        for row in _tidy(results, "auc", {f"{name}{ending}": name for name in ("hybrid_sc", "bt")}, _main(results))
    ]
    path = " to ".join(f"{values(results, main, 'auc', f'bt{ending}').mean():.3f}" for ending in endings.values())
    title = f"With more opponents Bradley-Terry goes from {path} ({_short(main)})"
    display = curves(rows, "calls", title, "calls a question", "AUC", LOOKS)
    display.figure().update_xaxes(tickvals=list(endings))
    return display


def elo_order(results: Results) -> Display:
    """How far Elo's AUC moves when the same matches come in another order: standard deviation over orders, per seed."""
    rows = [
        {**row, "value": 100 * np.std(row["value"], ddof=1), "mean": np.mean(row["value"])}
        for row in _tidy(results, "elo_orders", {name: name for name in ("elo", "elo_k400")}, _main(results))
    ]
    sd = {name: np.mean([row["value"] for row in rows if row["arm"] == name]) for name in ("elo", "elo_k400")}
    title = f"Order alone moves Elo by {sd['elo']:.1f} points at K 32 and by {sd['elo_k400']:.1f} at K 400"
    return dots(rows, title, "points of AUC", LOOKS)


def active_rounds(results: Results) -> Display | Note:
    """AUC against judgments a question, with random opponents and with opponents chosen by expected information."""
    if not _compared(results, "auc"):
        return NOT_COMPARED
    rows = [
        {"panel": arm, "arm": how, "seed": seed, "judgments": few, "value": value}
        for arm in _main(results)
        for how in ("random", "active")
        for seed, curve in enumerate(values(results, arm, "by_rounds", how, "auc"))
        for few, value in enumerate(curve, start=1)
    ]
    saved: Any = judgments_saved(results)
    first = saved[saved["regime"] == _main(results)[0]].iloc[0]
    reached = f"What random opponents reach with {first['random']:g} judgments a question"
    title = f"{reached} takes {first['active']} when they are chosen"
    return curves(rows, "judgments", title, "judgments a question", "AUC", LOOKS)


def judgments_saved(results: Results, *, measure: str = "auc", rounds: int = 1_000) -> pd.DataFrame | Note:
    """Judgments a question that chosen opponents need for what random ones reach with 5, 10 and all.

    Read off the mean curves over seeds; the interval is a bootstrap over seeds. A curve that never gets there is
    "more".

    Args:
        measure: "auc", or "sensed": the correlation of the strengths with what the model senses, which is planted.
    """
    if not _compared(results, measure):
        return NOT_COMPARED
    rng, rows = np.random.default_rng(0), []
    for arm in _main(results):
        drawn, chosen = (values(results, arm, "by_rounds", how, measure) for how in ("random", "active"))
        most = min(drawn.shape[1], chosen.shape[1])
        for few in sorted({few for few in (5, 10, most) if few <= most}):
            picks = [np.arange(len(drawn)), *bootstrap.draws(len(drawn), rounds, rng)]
            needed = [_needed(chosen[pick].mean(0), drawn[pick, few - 1].mean()) for pick in picks]
            low, high = np.quantile(needed[1:], [0.025, 0.975], method="nearest")
            said = (f"{n:.1f}" if np.isfinite(n) else f"more than {most}" for n in (needed[0], low, high))
            rows.append({"regime": arm, "random": few, **dict(zip(("active", "95 % from", "to"), said, strict=True))})
    return pd.DataFrame(rows)


def _compared(results: Results, measure: str) -> bool:
    """Whether active and random opponents were both asked, and `measure` is known in every data set."""
    parts = [part for result in results for arm in _main(results) for part in result["arms"][arm].values()]
    return all(part["by_rounds"].get(how, {}).get(measure) for part in parts for how in ("random", "active"))


def _needed(curve: np.ndarray, target: float) -> float:
    """Where the curve first reaches the target, between two rounds by a straight line; infinite if never."""
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return np.inf
    k = int(reached[0])
    return 1.0 if k == 0 else k + float((target - curve[k - 1]) / (curve[k] - curve[k - 1]))


def sensitivity(results: Results) -> Display | Note:
    """What opponents, the judge's noise, ties and Elo's settings change, one at a time."""
    if not results[0].get("grid"):
        return Note("The grid changes what is planted; it belongs to the embedded world (`grid`).")
    rows = [
        {"panel": row["varied"], "arm": row["scorer"], "seed": seed, "x": row["value"], "value": row["auc"]}
        for seed, result in enumerate(results)
        for row in result["grid"]
    ]
    table: Any = pd.DataFrame(rows)
    mean = table[(table["arm"] == "bt") & (table["panel"] == "judge noise")].groupby("x")["value"].mean()
    noise, moved = (f"{mean.index[i]:g}" for i in (0, -1)), (f"{mean.iloc[i]:.3f}" for i in (0, -1))
    title = f"Judge noise of {' to '.join(noise)} takes Bradley-Terry from {' to '.join(moved)}"
    return curves(table, "x", title, "setting", "AUC", LOOKS)


def _score_tables(experiment: Experiment, seed: int | None, arm: str) -> tuple[int, str, list[Path]]:
    """Seed and regime (the first ones by default) and the stored scores of each data set."""
    seed, arm = experiment.seeds[0] if seed is None else seed, arm or experiment.task.arms[0]
    paths = sorted((seed_folder(experiment, seed) / arm).glob("*/scores.parquet"))
    if not paths:
        raise ValueError(f"no scores of seed {seed}, regime {arm!r}; seeds of this run: {experiment.seeds}")
    return seed, arm, paths


def inspect(experiment: Experiment, *, seed: int | None = None, arm: str = "") -> ConfidenceRanking:
    """The ranking of one seed (of the first data set) in the inspector."""
    _, _, paths = _score_tables(experiment, seed, arm)
    return ConfidenceRanking.of_run(paths[0].parent, labels={name: look.title for name, look in SCORER_LOOKS.items()})


def ranking(experiment: Experiment, *, seed: int | None = None, arm: str = "", method: str = "bt") -> Display:
    """The questions of one seed by strength, most trusted first, with 95 % intervals and whether they were right."""
    seed, arm, paths = _score_tables(experiment, seed, arm)
    table: Any = pd.concat([pd.read_parquet(path).assign(data_set=path.parent.name) for path in paths])
    table = table[table["method"] == method].sort_values(["data_set", "rank"], ignore_index=True)
    half = len(table) // 2
    wrong = [int((part["correct"] == 0).sum()) for part in (table[:half], table[half:])]
    title = f"Wrong answers: {wrong[0]} in the trusted half, {wrong[1]} in the other ({_short(arm)}, seed {seed})"
    figure = blank(title, "place in the ranking", f"strength ({look_of(method, LOOKS).title})")
    for truth, (name, colour, symbol) in TRUTH.items():
        rows = table[table["correct"].isna() if truth is None else table["correct"] == truth]
        look: dict[str, Any] = {"mode": "markers", "marker": {"color": colour, "symbol": symbol, "size": 7}}
        look["error_y"] = whiskers(rows, "score", color=colour, thickness=0.7, width=0)
        look |= {"visible": True if len(rows) else "legendonly", "showlegend": bool(len(rows))}
        asked = [[plain(text) for text in pair] for pair in zip(rows["question"], rows["answer"], strict=True)]
        look |= {"customdata": asked, "name": name}
        look["hovertemplate"] = f"%{{customdata[0]}}<br>%{{customdata[1]}}<br>%{{y:.2f}}<extra>{name}</extra>"
        figure.add_scatter(x=rows.index + 1, y=rows["score"], **look)
    return Display(table, figure)


def means(results: Results) -> pd.DataFrame:
    """Mean AUC over seeds of every scorer, beside the accuracy and the oracle, one column a regime."""
    table = {}
    for arm in results[0]["arms"]:
        bounds = {name: values(results, arm, name).mean() for name in ("accuracy", "oracle")}
        table[look_of(arm, LOOKS).title] = bounds | {
            look.title: values(results, arm, "auc", name).mean()
            for name, look in SCORER_LOOKS.items()
            if _has(results, arm, name)
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
            parts = [list(result["arms"][arm].values()) for result in results]
            calibrated = [np.mean([part["calibration"][name]["ece"] for part in of_seed]) for of_seed in parts]
            measured[f"ECE after calibration, {LOOKS[name].title}"] = np.array(calibrated)
        rows[arm] = {name: f"{v.mean():.3g} ± {v.std(ddof=1) if len(v) > 1 else 0:.2g}" for name, v in measured.items()}
    return pd.DataFrame(rows)


def _main(results: Results) -> list[str]:
    """The regimes of the task itself, without the trained transformer."""
    return [arm for arm in results[0]["arms"] if arm not in TEMPERATURES]


def _has(results: Results, arm: str, name: str) -> bool:
    return all(name in part["auc"] for part in results[0]["arms"][arm].values() if part["n_labelled"])


def _tidy(results: Results, metric: str, names: Mapping[str, str], panels: Sequence[str]) -> list[dict[str, Any]]:
    """Rows `panel` (regime), `arm` (what the scorer is shown as), `seed` (place in the list), `value`."""
    return [
        {"panel": panel, "arm": arm, "seed": seed, "value": value}
        for panel in panels
        for name, arm in names.items()
        if _has(results, panel, name)
        for seed, value in enumerate(values(results, panel, metric, name))
    ]


def _short(arm: str) -> str:
    return f"regime {arm}" if len(arm) == 1 else look_of(arm, LOOKS).title
