"""The needle map: what a model finds by length and depth, how positions were spread, and curves of LOGO."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.figures import TEMPLATE, Display, Look, Note, blank, look_of, plain
from workbench.methods.align.logo.experiment import ARMS
from workbench.methods.views import DOTTED, ZERO, curves, seed_folder
from workbench.widgets.preference_browser import PreferenceBrowser

LOOKS = {
    **ARMS,
    "start": Look("start", "#B0B0B0"),
    "retrieval": "retrieval (likeliest value)",
    "recall": "recall (value drawn at temperature 1)",
}
STARTS = {"start": "from a clean start", "misaligned": "from a start that finds and does not tell"}
DEPTHS = 4  # columns of the map


def lengths_figure(table: pd.DataFrame, start: str = "start") -> Display | Note:
    """Retrieval and recall by document length, one line an arm; the start is a line of its own.

    Args:
        start: "start" or "misaligned": arms that begin there.
    """
    arms = [arm for arm in ARMS if arm in set(table["arm"]) and ARMS[arm].start == start]
    columns = [name for name in table if re.fullmatch(r"(retrieval|recall)_\d+", str(name))]
    if not arms or not columns:
        return Note(f"This run has no arm {STARTS[start]}, or no accuracy by length.")
    rows: Any = table[table["arm"].isin(arms)]
    before = rows[(rows["round"] == 0) & (rows["arm"] == arms[0])].assign(arm="start")
    rows = pd.concat([before, rows[rows["round"] == 1]]).melt(["arm", "seed"], columns, "what", "value")
    rows["measure"] = rows["what"].str.replace(r"_\d+", "", regex=True)
    rows["length"] = rows["what"].str.replace(r"\D+", "", regex=True).astype(int)
    title, axes = (
        f"What is found and what is told, {STARTS[start]}",
        ("records of the document", "right values (share)"),
    )
    return curves(rows, "length", title, *axes, LOOKS, panel="measure")


def needle_map(experiment: Any, *, arm: str = "logo") -> Display | Note:
    """Greedy accuracy by length and depth before and after, over all seeds: a heat map each and their difference."""
    tables = [
        pd.read_parquet(path).assign(when=when)
        for seed in experiment.seeds
        for when in (0, 1)
        if (path := seed_folder(experiment, seed) / arm / f"needles-{when}.parquet").is_file()
    ]
    if not tables:
        return Note(f"This run has no accuracy by depth for {arm}.")
    table = pd.concat(tables)
    table["depth"] = np.minimum((table["depth"] * DEPTHS).astype(int), DEPTHS - 1)
    shares: Any = table.groupby(["when", "length", "depth"], as_index=False)["right"].agg(["mean", "size"])
    grids = [shares[shares["when"] == when].pivot(index="length", columns="depth", values="mean") for when in (0, 1)]
    names = ["before", "after", "difference"]
    figure = make_subplots(1, 3, subplot_titles=names, shared_yaxes=True, horizontal_spacing=0.1)
    for column, grid in enumerate([*grids, grids[1] - grids[0]], start=1):
        is_change = column == 3
        look: dict[str, Any] = {"xgap": 1, "ygap": 1, "showscale": column > 1, "texttemplate": "%{z:.2f}"}
        look |= {"zmin": -0.5 if is_change else 0, "zmax": 0.5 if is_change else 1}
        look |= {"colorscale": "RdBu" if is_change else "Viridis"}
        look |= {"colorbar": {"x": 1.0 if is_change else 0.63, "thickness": 10}}
        look |= {"hovertemplate": "%{y} records, depth %{x}: %{z:.3f}<extra></extra>"}
        depths = [f"{100 * d // DEPTHS}-{100 * (d + 1) // DEPTHS} %" for d in grid.columns]
        heat = go.Heatmap(z=grid.to_numpy(), x=depths, y=[str(length) for length in grid.index], **look)
        figure.add_trace(heat, row=1, col=column)
    longest = grids[0].index.max()
    before, after = (float(grid.loc[longest].mean()) for grid in grids)
    title = f"Documents of {longest} records: {before:.0%} found before, {after:.0%} after"
    figure.update_layout(template=TEMPLATE, height=380, title={"text": title})
    figure.update_xaxes(title="depth of the first record asked for")
    figure.update_yaxes(type="category")
    figure.update_yaxes(title="records of the document", col=1)
    return Display(shares, figure)


def position_map(experiment: Any, *, seed: int | None = None) -> Display | Note:
    """Position against token for some variants of the first rows: what the model is told about where it is."""
    table = _pairs_table(experiment, seed, "positions")
    if table is None:
        return Note("This run spread no positions.")
    rows: Any = table.explode("positions").rename(columns={"positions": "position"})
    rows["token"] = rows.groupby("row").cumcount()
    rows["position"] = rows["position"].astype(int)
    reach = int(rows["position"].max()) + 1
    n_tokens = int(rows["token"].max()) + 1
    title = f"{n_tokens} tokens of a prompt, spread over {reach} positions"
    figure = blank(title, "token of the prompt", "position index")
    for number, (name, variant) in enumerate(rows.groupby("row", sort=False)):
        look = {"mode": "markers", "name": plain(str(name)), "marker": {"size": 5, "symbol": number}}
        figure.add_scatter(x=variant["token"], y=variant["position"], **look)
    ends = [0, n_tokens - 1]
    figure.add_scatter(x=ends, y=ends, mode="lines", name="as it is", line=DOTTED)
    return Display(rows, figure)


def margins_figure(experiment: Any, arms: Sequence[str] = ("b_one", "b_logo", "b_swapped")) -> Display | Note:
    """Held-out margins (log p a token of chosen minus rejected) before and after, by number of rejected answers, first
    seed."""
    tables = []
    for arm in arms:
        for when in (0, 1):
            path = seed_folder(experiment) / arm / f"margins-{when}.parquet"
            if path.is_file() and (when or not tables):
                tables.append(pd.read_parquet(path)[["question", "margin"]].assign(arm=arm if when else "start"))
    if not tables:
        return Note("This run has none of these arms.")
    table = pd.concat(tables, ignore_index=True)
    title = "Held-out margins: right of 0 the chosen answer is likelier"
    figure = blank(title, "log p a token, chosen minus rejected (nats)", "held-out rows", barmode="overlay")
    for name, rows in table.groupby("arm", sort=False):
        title, colour = look_of(str(name), LOOKS)[:2]
        figure.add_histogram(x=rows["margin"], name=plain(title), opacity=0.55, nbinsx=40, marker_color=colour)
    figure.add_vline(x=0, line=ZERO)
    return Display(table, figure)


def rows_made(experiment: Any, *, seed: int | None = None) -> PreferenceBrowser | Note:
    """Training rows of one seed: question, answer from all evidence, answers from less, and each chunk's overlap."""
    table = _pairs_table(experiment, seed, "train-rows")
    if table is None:
        return Note("This run made no rows.")
    columns: Any = table[["question", "chosen", "rejected", "scores"]]
    return PreferenceBrowser(columns, name="rows")


def synthesis(experiment: Any, results: Sequence[dict]) -> pd.DataFrame:
    """What was made and dropped, and how far the positions reach beyond the real tokens, one line a seed."""
    rows = [{"seed": seed, **result["counts"]} for seed, result in zip(experiment.seeds, results, strict=True)]
    return pd.DataFrame(rows).fillna(0).round(2).set_index("seed").T


def _pairs_table(experiment: Any, seed: int | None, name: str) -> pd.DataFrame | None:
    path = seed_folder(experiment, seed) / "pairs" / f"{name}.parquet"
    return pd.read_parquet(path) if path.is_file() else None
