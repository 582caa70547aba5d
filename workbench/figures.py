"""Plotly figures that several methods share, each a tidy table plus the drawing made from that table alone.

Text of models and data is escaped before it reaches a figure.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

FAR = 8.0  # standard deviations
# Okabe and Ito's colours: told apart by all common kinds of colour blindness
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#A6761D"]

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "DejaVu Sans, Helvetica, Arial, sans-serif", "size": 13, "color": "#222"},
        "title": {"font": {"size": 16}, "x": 0.01, "xanchor": "left"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": PALETTE,
        "xaxis": {"showgrid": False, "linecolor": "#888", "ticks": "outside", "zeroline": False, "automargin": True},
        "yaxis": {"gridcolor": "#E8E8E8", "linecolor": "#888", "zeroline": False, "automargin": True},
        "legend": {"bgcolor": "rgba(255,255,255,0.7)"},
        "margin": {"l": 60, "r": 20, "t": 60, "b": 55},
    }
)


@dataclass(frozen=True)
class Display:
    """A table and the figure drawn from it: shows itself in a notebook, saves both under one name."""

    table: pd.DataFrame
    drawing: go.Figure

    def frame(self) -> pd.DataFrame:
        return self.table

    def figure(self) -> go.Figure:
        return self.drawing

    def save(self, folder: str | Path, name: str, endings: Sequence[str] = ("svg", "png", "csv")) -> list[Path]:
        """Writes `name`.svg, .png and .csv, or those asked for; svg and png need a Chromium on the machine (kaleido).

        Raises:
            RuntimeError: an image is asked for and no browser is there to draw it; nothing was written.
        """
        spec = json.loads(self.drawing.to_json() or "{}")
        images = iter(draw([(spec, ending) for ending in endings if ending != "csv"]))
        paths = [Path(folder) / f"{name}.{ending}" for ending in endings]
        Path(folder).mkdir(parents=True, exist_ok=True)
        for path in paths:
            path.write_bytes(self.table.to_csv(index=False).encode() if path.suffix == ".csv" else next(images))
        return paths

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        spec = json.loads(self.drawing.to_json() or "{}")
        return {"application/vnd.plotly.v1+json": spec, "text/plain": self.table.to_string(max_rows=20)}


class Note(str):
    """A sentence in the place of a figure that a run has no data for; a notebook shows it as words, not as a string."""

    def _repr_html_(self) -> str:
        return f"<p>{plain(self)}</p>"


class Look(NamedTuple):
    """How something is called and coloured in figures. A method's `Arm` has both fields and serves as one."""

    title: str
    colour: str = ""


def look_of(name: str, looks: Mapping[str, Any] | None) -> Look:
    """What `looks` says of `name`, an `Arm`, a `Look` or a plain title; else its name and a colour by its letters."""
    found = (looks or {}).get(name, name)
    return Look(found if isinstance(found, str) else found.title, getattr(found, "colour", "") or colour(name))


def colour(name: str) -> str:
    """The colour of what names none: a fixed place in the cycle by its letters."""
    return PALETTE[sum(map(ord, name)) % len(PALETTE)]


def plain(text: str) -> str:
    """Text of a model or a data set, made safe for plotly, which reads a part of HTML."""
    return html.escape(text, quote=False)


def blank(title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with the project's template, a title that states the finding, and named axes with units."""
    figure = go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "height": 420, **layout})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


Labels = Mapping[str, Any] | None  # how to call and colour arms and panels, see `look_of`: a method's `ARMS` will do


def lines_over_rounds(
    table: pd.DataFrame, *, x: str, y: str, title: str, x_title: str, y_title: str, labels: Labels = None
) -> Display:
    """One line an arm with a band: mean over seeds and its 95 % t interval, from rows `arm`, `seed`, `x` and `y`."""
    summary = summarise(table, ["arm", x], y)
    figure = blank(title, x_title, y_title)
    for arm, rows in summary.groupby("arm", sort=False):
        figure.add_traces(_band_and_line(rows.sort_values(x), x, str(arm), look_of(str(arm), labels)))
    figure.update_xaxes(dtick=1)
    return Display(summary, figure)


def lines_in_panels(
    table: pd.DataFrame, *, panel: str, x: str, y: str, title: str, x_title: str, y_title: str, labels: Labels = None
) -> Display:
    """`lines_over_rounds` in one panel for each value of the column `panel`."""
    summary = summarise(table, [panel, "arm", x], y)
    figure, panels = _panels(summary[panel], title, x_title, y_title, labels)
    for column, name in enumerate(panels, start=1):
        for arm, rows in summary.loc[summary[panel] == name].groupby("arm", sort=False):
            look = look_of(str(arm), labels)
            traces = _band_and_line(rows.sort_values(x), x, str(arm), look, in_legend=column == 1)
            figure.add_traces(traces, rows=1, cols=column)
    return Display(summary, figure)


def dots_in_panels(
    table: pd.DataFrame,
    *,
    panel: str,
    y: str,
    title: str,
    x_title: str,
    labels: Labels = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Display:
    """One panel for each value of `panel`, in it one dot an arm with its bar: mean over seeds and its 95 % t interval.

    Args:
        table: tidy rows with columns `panel`, `arm`, `seed` and the measured `y`.
        lines: for each panel, vertical reference lines by name.
    """
    summary = summarise(table, [panel, "arm"], y)
    figure, panels = _panels(summary[panel], title, x_title, "", labels)
    dotted = {"color": "#888", "dash": "dot", "width": 1}
    for column, name in enumerate(panels, start=1):
        rows = summary[summary[panel] == name]
        looks = [look_of(str(arm), labels) for arm in rows["arm"]]
        bar = {"array": rows.upper - rows["mean"], "arrayminus": rows["mean"] - rows.lower, "color": "#666"}
        shown = {"mode": "markers", "marker": {"size": 9, "color": [look.colour for look in looks]}}
        hover = {"customdata": rows[["lower", "upper", "n"]], "hovertemplate": "%{y}: %{x:.3f} " + _HOVER}
        titles = [plain(look.title) for look in looks]
        dots = go.Scatter(x=rows["mean"], y=titles, error_x=bar, showlegend=False, **shown, **hover)
        figure.add_trace(dots, row=1, col=column)
        for label, value in (lines or {}).get(name, {}).items():
            figure.add_vline(x=value, line=dotted, annotation_text=plain(label), row=1, col=column)  # type: ignore[arg-type]
    figure.update_yaxes(autorange="reversed")
    for column in range(2, len(panels) + 1):  # the first axis must not match itself
        figure.update_xaxes(matches="x", col=column)
    figure.update_layout(height=190 + 24 * summary["arm"].nunique())
    return Display(summary, figure)


_HOVER = "[%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>"


def _band_and_line(rows: pd.DataFrame, x: str, arm: str, look: Look, *, in_legend: bool = True) -> list[go.Scatter]:
    """The interval as a band and the mean as a line, from rows of `summarise` in the order of `x`."""
    label = plain(look.title)
    outline = {"x": [*rows[x], *rows[x][::-1]], "y": [*rows.upper, *rows.lower[::-1]]}
    area = {"fill": "toself", "fillcolor": look.colour, "opacity": 0.15, "line": {"width": 0}, "mode": "lines"}
    band = go.Scatter(**outline, **area, hoverinfo="skip", showlegend=False, legendgroup=arm)
    style = {"mode": "lines+markers", "line": {"color": look.colour}, "marker": {"size": 5}}
    hover = "%{y:.3f} " + _HOVER.replace("<extra>", f"<extra>{label}")
    told = {"customdata": rows[["lower", "upper", "n"]], "hovertemplate": hover}
    legend = {"name": label, "legendgroup": arm, "showlegend": in_legend}
    return [band, go.Scatter(x=rows[x], y=rows["mean"], **style, **legend, **told)]


def _panels(
    column: Iterable[Any], title: str, x_title: str, y_title: str, labels: Labels
) -> tuple[go.Figure, list[str]]:
    """An empty panel side by side for each value of the column, and the values."""
    from plotly.subplots import make_subplots

    panels = [str(name) for name in dict.fromkeys(column)]
    names = [look_of(name, labels).title for name in panels]
    width = max(12, 88 // len(names))  # lines short enough that neighbours stay apart
    titles = ["<br>".join(plain(line) for line in textwrap.wrap(name, width)) for name in names]
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    figure.update_layout(template=TEMPLATE, title={"text": title}, height=440, margin={"t": 90})
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title, col=1)
    return figure, panels


def summarise(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, 95 % t interval over seeds and n, for each group; columns `mean`, `lower`, `upper`, `n`."""
    from workbench.claims import interval

    groups: Any = table.groupby(list(by), sort=False)[value]
    groups = [(key, group.to_numpy(dtype=float)) for key, group in groups]
    rows = [(*key, values.mean(), *interval(values), len(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*by, "mean", "lower", "upper", "n"])


def pair_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Held-out pairs with their rewards, the worst told apart first. Shown as a table, pandas escapes all text."""
    columns = ["prompt", "chosen", "rejected", "chosen_rewards", "rejected_rewards", "margin"]
    table: Any = pairs.assign(margin=pairs.chosen_rewards - pairs.rejected_rewards)[columns]
    return table.sort_values("margin", ignore_index=True).round(3)


def reward_histogram(pairs: Mapping[str, pd.DataFrame], title: str) -> Display:
    """Margins (reward of chosen minus rejected) of held-out pairs, one histogram for each named table."""
    table = pd.concat([pair_table(frame).assign(when=name) for name, frame in pairs.items()], ignore_index=True)
    figure = blank(title, "reward of chosen minus rejected (nats)", "held-out pairs", barmode="overlay")
    for number, (name, rows) in enumerate(table.groupby("when", sort=False)):
        style = {"opacity": 0.55, "nbinsx": 50, "marker_color": PALETTE[number % len(PALETTE)]}
        figure.add_trace(go.Histogram(x=rows.margin, name=plain(str(name)), **style))
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    return Display(table, figure)


def claims_forest(records: Sequence[Mapping[str, Any]]) -> Display:
    """Every tested claim as a standardised effect (Cohen's d) with one point a seed, beside its negative control.

    Effects of different units share one axis by dividing each by the standard deviation of its own measurements. An
    effect that hardly varies is then far out; the axis ends at `FAR`, the table does not.
    """
    rows = []
    for record in records:
        if record["test"] == "none" or record["direction"] == "equivalent" or not record["standardised"]:
            continue
        scale = record["effect"] / record["standardised"]
        sign = -1.0 if record["direction"] == "less" else 1.0
        label = f"{record.get('system', '')} {record['id']}".strip()
        for kind in ("measured", "control"):
            for seed, value in zip(record["seeds"], record[kind], strict=False):
                effect = sign * (value - record["margin"]) / abs(scale)
                rows.append((label, record["statement"], kind, seed, effect, record["verdict"]))
    table = pd.DataFrame(rows, columns=["claim", "statement", "kind", "seed", "effect", "verdict"])
    verdicts: Any = table.drop_duplicates("claim")["verdict"]
    shown = int(verdicts.isin(["shown in small", "reproduced"]).sum())
    title = f"{shown} of {len(verdicts)} tested claims are shown; one point a seed"
    axis = f"effect in the claimed direction (standard deviations, cut at {FAR:g})"
    figure = blank(title, axis, "", height=140 + 20 * table["claim"].nunique(), width=820)
    hover = "%{customdata[0]:.2f}, seed %{customdata[1]}<br>%{customdata[2]}<extra></extra>"
    ring, dot = {"size": 7, "color": "#B0B0B0", "symbol": "circle-open"}, {"size": 7, "color": PALETTE[0]}
    for kind, name, marker in (("control", "negative control", ring), ("measured", "method", dot)):
        part = table[table["kind"] == kind]
        told = {"customdata": part[["effect", "seed", "statement"]], "hovertemplate": hover}
        x = part.effect.clip(-FAR, FAR)
        figure.add_trace(go.Scatter(x=x, y=part.claim, mode="markers", name=name, marker=marker, **told))
    figure.update_layout(legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.0, "yanchor": "bottom"})
    figure.add_vline(x=0, line={"color": "#444", "width": 1})
    figure.update_yaxes(autorange="reversed")
    return Display(table, figure)


def browser() -> str:
    """The Chromium that draws images, or "" where there is none (or no kaleido)."""
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return ""
    return Chromium.find_browser(skip_local=False) or ""


def draw(wanted: Sequence[tuple[dict[str, Any], str]], *, scale: float = 0) -> list[bytes]:
    """Images of figures, (specification, format) each, all drawn by one browser: its start takes most of the time.

    Args:
        scale: pixels a unit; 0 takes 2 for png and 1 for the others.

    Raises:
        RuntimeError: no browser, no kaleido, or the browser could not draw a figure.
    """
    if not wanted:
        return []
    if not browser():
        remedy = "install chromium and the extra [lab], or ask for --format csv"
        why = "images are drawn by kaleido in a Chromium, and this machine lacks one of them"
        raise RuntimeError(f"{why}: {remedy}")
    # in a thread of its own, because a notebook has a loop running already
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _drawn(wanted, scale)).result()


async def _drawn(wanted: Sequence[tuple[dict[str, Any], str]], scale: float) -> list[bytes]:
    import kaleido

    images = []
    async with kaleido.Kaleido(n=1, mathjax=False) as server:  # MathJax would be fetched from the network
        for spec, ending in wanted:
            layout = dict(spec.get("layout") or {})
            # a picture from the network in a figure would be fetched; one that the figure carries stays
            layout["images"] = [i for i in layout.get("images") or [] if str(i.get("source", "")).startswith("data:")]
            options: Any = {"format": ending, "scale": scale or (2 if ending == "png" else 1)}
            options |= {"width": layout.get("width") or 820, "height": layout.get("height") or 420}
            try:
                images.append(await server.calc_fig({"data": spec.get("data") or [], "layout": layout}, opts=options))
            except Exception as error:  # kaleido's errors share no base class
                raise RuntimeError(f"the browser could not draw {title_of(spec) or 'a figure'!r}: {error}") from error
    return images


def title_of(spec: dict[str, Any]) -> str:
    """A figure's title as plain text."""
    title = (spec.get("layout") or {}).get("title")
    text = title.get("text") if isinstance(title, dict) else title
    return html.unescape(re.sub(r"<[^<>]*>", " ", str(text or "")))
