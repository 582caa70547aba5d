"""Contamination of benchmark partitions: verdicts, overlap with and without the name, agreement, and the texts."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from rapidfuzz.distance import LCSseq

from workbench.figures import Display, Note, blank, plain
from workbench.methods.confidence.time_travel.experiment import PUBLISHED_GAINS, PUBLISHED_RIGHT
from workbench.methods.confidence.time_travel.verdicts import (
    Result,
    found_by,
    gap_auroc,
    methods_of,
    n_false,
    n_right,
    over_seeds,
)
from workbench.methods.experiment import Experiment
from workbench.methods.views import TablePages, named_lines, seed_folder, whiskers

NAMES = {
    "rougeL": "ROUGE-L, paired",
    "rougeL_unpaired": "ROUGE-L, unpaired",
    "rougeL_permutation": "ROUGE-L, sign flips",
    "edit": "edits, paired",
    "edit_unpaired": "edits, unpaired",
    "edit_permutation": "edits, sign flips",
    "bleurt": "BLEURT, paired",
    "bleurt_unpaired": "BLEURT, unpaired",
    "bleurt_permutation": "BLEURT, sign flips",
    "matcher": "counting, by rule",
    "judge": "counting, by a judge",
    "human1": "first annotator",
    "human2": "second annotator",
    "truth": "truth",
}
CONTROLS = ("_itself", "_on_general")  # endings of methods that must find nothing
SEEN, CLEAN, UNKNOWN = "#D55E00", "#0072B2", "#7F7F7F"
# What our pilot of this simulation says of ten and fifty instances: (instances, correlation, rate) -> share.
BANDS = {
    (10, 0.0, "unpaired_false"): "0.06",
    (10, 0.7, "unpaired_false"): "0.004",
    (10, 0.4, "paired_false"): "0.075 to 0.08",
    (50, 0.4, "paired_false"): "0.05 to 0.06",
    (10, 0.4, "paired_power"): "0.45",
    (10, 0.4, "unpaired_power"): "0.31",
    (10, 0.4, "permutation_false"): "at most 0.06",
}


def verdicts(results: Sequence[Result], arm: str = "", place: int = 0) -> pd.DataFrame:
    """One row a partition of the seed at `place`: gap, p-values, matches, each method's verdict beside the truth."""
    result = results[place]
    arm = arm or next(iter(result["arms"]))
    rows, known, names = [], result["arms"][arm]["truth"], _shown(result, arm)
    for name in found_by(result, arm, names[0]):
        by = {method: found_by(result, arm, method)[name] for method in names}
        row: dict[str, Any] = {"partition": name}
        if known:
            row["truth"] = known[name]
        if "rougeL" in by:
            tests = {"p paired": "rougeL", "p unpaired": "rougeL_unpaired", "p sign flips": "rougeL_permutation"}
            row |= {"gap": by["rougeL"]["statistic"], **{told: by[test]["p_value"] for told, test in tests.items()}}
            row["p paired, Holm"] = by["rougeL"]["p_holm"]
        counting = next(by[method] for method in ("judge", "matcher") if method in by)
        row |= {"exact": int(counting["n_exact"]), "near-exact": int(counting["n_near"])}
        row |= {NAMES.get(m, m): "contaminated" if by[m]["contaminated"] else "" for m in names}
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def gaps(results: Sequence[Result], arm: str = "", metric: str = "rougeL") -> Display:
    """Mean gap of every partition with its 95 % bootstrap interval over instances (bounds are means over seeds)."""
    arm = arm or next(iter(results[0]["arms"]))
    results = _apart(results)
    rows = [
        {"partition": _label(name, result, arm, seed, len(results)), "gap": row["statistic"]}
        | {"lower": row["lower"], "upper": row["upper"], "p": row["p_value"]}
        | {"truth": result["arms"][arm]["truth"].get(name)}
        for seed, result in enumerate(results)
        for name, row in found_by(result, arm, metric).items()
    ]
    if not rows:
        raise ValueError(f"no overlap scores of {metric!r} with and without the name; method 1 needs both instructions")
    table = pd.DataFrame(rows).sort_values("gap", ignore_index=True)
    below, measure = sum(p <= 0.05 for p in table["p"]), NAMES.get(metric, metric).split(",")[0]
    title = f"Naming the data set raises {measure} significantly in {below} of {len(table)} partitions"
    axis = "gap: guided minus general (95 % bootstrap over instances)"
    figure = blank(title, axis, "", height=150 + 17 * len(table))
    colours = [UNKNOWN if pd.isna(t) else SEEN if t else CLEAN for t in table["truth"].tolist()]
    look: dict[str, Any] = {"orientation": "h", "showlegend": False, "marker_color": colours}
    look |= {"customdata": table[["p"]], "hovertemplate": "%{y}: %{x:.3f}, p = %{customdata[0]:.4f}<extra></extra>"}
    error = whiskers(table, "gap", color="#444", thickness=1)
    figure.add_bar(x=table["gap"], y=[plain(name) for name in table["partition"]], error_x=error, **look)
    for name, shade in (("contaminated", SEEN), ("clean", CLEAN)) if colours[0] != UNKNOWN else ():
        figure.add_bar(x=[None], y=[None], name=name, marker_color=shade)
    return Display(table, figure)


def published(results: Sequence[Result]) -> pd.DataFrame | Note:
    """Of released scores: partitions of 14 on which each method is right, and mean gains, here and published."""
    if set(results[0]["arms"]) != set(PUBLISHED_RIGHT):
        return Note("Only the released scores have figures to stand beside.")
    result = over_seeds(results, 0.05)
    rows = [
        {"model": model, "what": f"right: {NAMES[method]}", "here": n_right(result, model, method), "published": right}
        for model, counts in PUBLISHED_RIGHT.items()
        for method, right in counts.items()
    ]
    gained = found_by(result, "gpt4", "rougeL")
    rows += [
        {"model": "gpt4", "what": f"gain in ROUGE-L: {name}"}
        | {"here": round(gained[name]["statistic"], 3), "published": gain}
        for name, gain in PUBLISHED_GAINS.items()
    ]
    return pd.DataFrame(rows)


def pairs(experiment: Experiment, *, seed: int | None = None, arm: str = "", metric: str = "rougeL") -> Display:
    """Every instance's overlap without the name and with it, joined by a line, partition beside partition."""
    arm = arm or experiment.task.arms[0]
    scores = _read(experiment, seed, arm, "overlap")
    scores = scores[scores["metric"] == metric]
    table = scores.pivot(index="instance_id", columns="instruction", values="score").reset_index()
    table["partition"] = table["instance_id"].str.rsplit("/", n=1).str[0]
    if "general" not in table:
        raise ValueError("there are only guided completions; a pair needs general ones too")
    names = list(dict.fromkeys(table["partition"]))
    up = sum(table["guided"] > table["general"])
    title = f"{up} of {len(table)} completions are nearer to the original when the data set is named"
    figure = blank(title, "", f"{NAMES.get(metric, metric).split(',')[0]} with the original")
    look: dict[str, Any] = {"mode": "lines+markers", "showlegend": False, "hoverinfo": "y"}
    look["marker"] = {"size": 6, "symbol": ["circle-open", "circle"]}
    for place, name in enumerate(names):
        rows = table[table["partition"] == name]
        for general, guided in zip(rows["general"], rows["guided"], strict=True):
            line = {"color": SEEN if guided > general else CLEAN, "width": 1}
            figure.add_scatter(x=[place - 0.2, place + 0.2], y=[general, guided], line=line, **look)
    figure.update_xaxes(tickvals=list(range(len(names))), ticktext=[plain(name) for name in names], tickangle=-30)
    return Display(table, figure)


def agreement(results: Sequence[Result], arm: str = "") -> Display:
    """Share of partitions on which two of the methods and the truth say the same, over all seeds."""
    arm = arm or next(iter(results[0]["arms"]))
    results = _apart(results)
    said: dict[str, list[bool]] = {}
    for result in results:
        known = result["arms"][arm]["truth"]
        for method in _shown(result, arm):
            verdicts = found_by(result, arm, method).values()
            said.setdefault(method, []).extend(bool(row["contaminated"]) for row in verdicts)
        if known:
            said.setdefault("truth", []).extend(copies > 0 for copies in known.values())
    names = [NAMES.get(method, method) for method in said]
    share = np.array([[np.mean(np.equal(one, two)) for two in said.values()] for one in said.values()])
    table = pd.DataFrame(share, index=names, columns=names)
    title = "How far methods agree"
    if "truth" in said:
        best = int(np.argmax(share[-1][:-1]))
        title = f"{names[best]} agrees with {names[-1]} on {share[-1][best]:.0%} of {len(said['truth'])} partitions"
    figure = blank(title, "", "", height=180 + 32 * len(names))
    look = {"zmin": 0, "zmax": 1, "colorscale": "Blues", "texttemplate": "%{z:.2f}", "colorbar": {"title": "share"}}
    figure.add_trace(go.Heatmap(z=share, x=names, y=names, **look))
    figure.update_yaxes(autorange="reversed")
    return Display(table, figure)


def rates(results: Sequence[Result]) -> pd.DataFrame:
    """Error rates of the tests on simulated scores, mean over seeds; beside those of our pilot."""
    rows = []
    for place, setting in enumerate(results[0]["statistics"]):
        at = (setting["n"], setting["correlation"])
        for name in [name for name in setting if name not in ("n", "correlation")]:
            here = float(np.mean([result["statistics"][place][name] for result in results]))
            test, kind = name.split("_")
            row = {"instances": at[0], "correlation": at[1], "test": test}
            row |= {"rate": {"power": "power", "false": "false alarms"}[kind]}
            rows.append({**row, "here": round(here, 3), "pilot": BANDS.get((*at, name), "")})
    return pd.DataFrame(rows).sort_values(["instances", "correlation", "rate", "test"], ignore_index=True)


def checks(results: Sequence[Result]) -> pd.DataFrame:
    """What should be looked at before a verdict is believed, in sum over seeds, one column an arm."""
    columns: dict[str, dict[str, Any]] = {}
    results = _apart(results)
    for arm in results[0]["arms"]:
        counts: Any = pd.DataFrame([result["arms"][arm]["counts"] for result in results])
        column: dict[str, Any] = {str(name).replace("_", " "): n for name, n in counts.sum().items()}
        for method in [m for m in methods_of(results[0], arm) if not m.endswith(CONTROLS)]:
            label = NAMES.get(method, method)
            if results[0]["arms"][arm]["truth"]:
                column[f"right: {label}"] = sum(n_right(result, arm, method) for result in results)
                column[f"false alarms: {label}"] = sum(n_false(result, arm, method) for result in results)
            unread = [row["n_unparsed"] for result in results for row in found_by(result, arm, method).values()]
            if unread[0] is not None and unread[0] == unread[0]:
                column[f"replies unread: {label}"] = int(sum(unread))
        known = results[0]["arms"][arm]["truth"]
        if "rougeL" in methods_of(results[0], arm) and 0 < sum(v > 0 for v in known.values()) < len(known):
            column["AUROC of the gap, mean"] = round(float(np.mean([gap_auroc(result, arm) for result in results])), 3)
        columns[arm] = column
    return pd.DataFrame(columns).astype(object).fillna("")


class Completions(TablePages):
    """Instance by instance: what was shown, the original, and both completions with the words that are the original's.

    Args:
        experiment: whose run folder holds the tables.
        seed, arm: which part of it; the first ones by default.
        partition: "data set/split" to show alone; "" for all.
        shown: instances on the static face; the ones with the largest gap come first.
    """

    noun = "instance"

    def __init__(
        self, experiment: Experiment, *, seed: int | None = None, arm: str = "", partition: str = "", shown: int = 4
    ):
        arm = arm or experiment.task.arms[0]
        instances = _read(experiment, seed, arm, "instances")
        said = _read(experiment, seed, arm, "completions")
        texts = said.pivot(index="instance_id", columns="instruction", values="text")
        scores = _read(experiment, seed, arm, "overlap")
        scores = scores[scores["metric"] == scores["metric"].iloc[0]]
        overlap = scores.pivot(index="instance_id", columns="instruction", values="score").add_suffix("_overlap")
        labels = _read(experiment, seed, arm, "matches")
        labels = labels[(labels["instruction"] == "guided") & (labels["judge"] == labels["judge"].iloc[0])]
        table = instances.merge(texts, on="instance_id").merge(overlap, on="instance_id")
        table = table.merge(labels[["instance_id", "label"]].rename(columns={"label": "match"}), on="instance_id")
        table["gap"] = table["guided_overlap"] - table.get("general_overlap", 0.0)
        if partition:
            table = table[table["dataset"] + "/" + table["split"] == partition]
        if table.empty:
            raise ValueError(f"no instance of partition {partition!r}; it is written as data set/split")
        super().__init__(table.sort_values("gap", ascending=False, ignore_index=True), shown)

    def html(self, index: int) -> str:
        """One instance as HTML; a pure function of its number."""
        row = self.table.iloc[index]
        label = f" · label {html.escape(str(row['label']))}" if row["label"] else ""
        lines = [("shown", html.escape(row["first_piece"])), ("original", html.escape(row["second_piece"]))]
        for instruction in ("guided", "general"):
            if instruction in row:
                name = f"{instruction}, {row[f'{instruction}_overlap']:.2f}"
                lines.append((name, marked(row[instruction], row["second_piece"])))
        title = f"{index + 1} of {self.n_pages}: {html.escape(row['dataset'])}/{html.escape(row['split'])}{label}"
        table = named_lines(lines, nowrap=True)
        return f'<div class="completions"><b>{title} · match: {row["match"]}</b>{table}</div>'


def completions(
    experiment: Experiment, *, seed: int | None = None, arm: str = "", partition: str = ""
) -> Completions | Note:
    """The browser of completions, or a sentence where there are none: released scores come without their texts."""
    if not _path(experiment, seed, arm, "completions").is_file():
        return Note("The released scores come without their texts; a run with a model has them.")
    return Completions(experiment, seed=seed, arm=arm, partition=partition)


def marked(text: str, original: str) -> str:
    """The text, escaped, with the words marked that it shares with the original in the same order."""
    words = text.split()
    one, two = ([word.lower().strip(".,;:!?\"'") for word in side] for side in (words, original.split()))
    shared = {
        i for block in LCSseq.opcodes(one, two) if block.tag == "equal" for i in range(block.src_start, block.src_end)
    }
    return " ".join(
        f'<mark style="background:#cfe8d5">{html.escape(word)}</mark>' if i in shared else html.escape(word)
        for i, word in enumerate(words)
    )


def _apart(results: Sequence[Result]) -> Sequence[Result]:
    """The results that are different: released scores, of which nothing was asked, are the same in every seed."""
    asked = any(part["counts"] for part in results[0]["arms"].values())
    return results if asked else results[:1]


def _shown(result: Result, arm: str) -> list[str]:
    """Methods of a table of verdicts: the tests of the main measures and all counts, without controls."""
    return [m for m in methods_of(result, arm) if not m.endswith(CONTROLS) and not m.startswith("edit_")]


def _label(name: str, result: Result, arm: str, seed: int, n_seeds: int) -> str:
    copies = result["arms"][arm]["truth"].get(name)
    seen = f", {copies:g}×" if copies and copies > 1 else ""
    return f"{name}{seen}" + (f" ({seed + 1})" if n_seeds > 1 else "")


def _path(experiment: Experiment, seed: int | None, arm: str, name: str) -> Path:
    part = (arm or experiment.task.arms[0]).replace("/", "_")
    return seed_folder(experiment, seed) / part / f"{name}.parquet"


def _read(experiment: Experiment, seed: int | None, arm: str, name: str) -> Any:
    path = _path(experiment, seed, arm, name)
    if not path.is_file():
        raise ValueError(f"no {name} of seed {seed}, arm {arm!r} in this run; seeds: {experiment.seeds}")
    return pd.read_parquet(path)
