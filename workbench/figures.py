"""Plotly figures that several methods share, each a tidy table plus the drawing made from that table alone.

Text of models and data is escaped before it reaches a figure.
"""

from __future__ import annotations

import asyncio
import html
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import plotly.graph_objects as go

# Okabe and Ito's colours: told apart by all common kinds of colour blindness. One colour an arm in the whole project.
COLOURS = {
    "spin": "#0072B2",
    "long": "#E69F00",
    "frozen": "#009E73",
    "frozen_reference": "#56B4E9",
    "hinge": "#CC79A7",
    "shuffled": "#A6761D",
    "swapped": "#E6AB02",
    "dpo": "#D55E00",
    "sft": "#7F7F7F",
    "start": "#B0B0B0",
    "control": "#999999",
    "direct": "#7F7F7F",
    "sc": "#56B4E9",
    "hybrid_sc": "#009E73",
    "elo": "#E69F00",
    "trueskill": "#CC79A7",
    "bt": "#0072B2",
    "win_rate": "#A6761D",
    "elo_k400": "#E69F00",
    "hybrid_product": "#009E73",
    "bt_position": "#0072B2",
    "bt_shuffled": "#999999",
    "bt_negated": "#999999",
    "dr_po": "#0072B2",
    "dr_po_50": "#56B4E9",
    "dr_po_25": "#009E73",
    "ppo": "#D55E00",
    "ppo_pp": "#E69F00",
    "wrong": "#999999",
    "mpo": "#0072B2",
    "sppo": "#0072B2",
    "dno": "#009E73",
    "k2": "#56B4E9",
    "dpo_0.3": "#D55E00",
    "dpo_1": "#E69F00",
    "ipo_0.25": "#CC79A7",
    "ipo_1": "#7B4173",
    "pro_2": "#0072B2",
    "pro_3": "#56B4E9",
    "pro_5": "#009E73",
    "pro": "#0072B2",
    "sft_2": "#7F7F7F",
    "bon_5": "#E69F00",
    "bon": "#E69F00",
    "rrhf_2": "#D55E00",
    "rrhf_5": "#CC79A7",
    "rrhf": "#D55E00",
    "coh_2": "#7B4173",
    "shuffled_2": "#A6761D",
    "shuffled_3": "#A6761D",
    "shuffled_5": "#A6761D",
    "reversed_5": "#999999",
    "dpo_flr": "#0072B2",
    "dpo_tuned": "#009E73",
    "sft_flr": "#7F7F7F",
    "sft_tuned": "#B0B0B0",
    "kto_flr": "#CC79A7",
    "dpo_fast": "#E69F00",
    "dpo_inverted": "#D55E00",
    "dpo_shuffled": "#A6761D",
    "dpo_mistuned": "#A6761D",
    "logo": "#0072B2",
    "logo_real": "#56B4E9",
    "logo_unpassed": "#999999",
    "sft_real": "#B0B0B0",
    "sft_unpassed": "#444444",
    "b_logo": "#0072B2",
    "b_one": "#56B4E9",
    "b_no_sft": "#009E73",
    "b_beta10": "#E69F00",
    "b_sft": "#7F7F7F",
    "b_swapped": "#D55E00",
    "b_shuffled": "#A6761D",
    "b_copied": "#CC79A7",
    "longpo": "#0072B2",
    "lam1": "#56B4E9",
    "alone": "#E69F00",
    "rejected": "#A6761D",
    "IQ": "#0072B2",
    "DQ": "#E69F00",
    "DQ1": "#D55E00",
    "DQ2": "#A6761D",
    "DQ3": "#CC79A7",
    "IQ_DQ": "#009E73",
    "IQ_DQ1": "#56B4E9",
    "IQ_DQ2": "#56B4E9",
    "IQ_DQ3": "#56B4E9",
    "IQ_jaccard": "#999999",
    "IQ_containment": "#999999",
    "IQ_judge": "#999999",
    "sft_fast": "#444444",
    "longpo_fast": "#009E73",
    "iterated": "#0072B2",
    "iterated_off": "#A6761D",
    "dpo_nll": "#CC79A7",
    "raw_rce": "#D55E00",
    "logistic": "#0072B2",
    "base_rate": "#999999",
    "similar": "#0072B2",
    "random": "#A6761D",
}
FAR = 8.0  # standard deviations
_CYCLE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#A6761D"]

TEMPLATE = go.layout.Template(
    layout={
        "font": {"family": "DejaVu Sans, Helvetica, Arial, sans-serif", "size": 13, "color": "#222"},
        "title": {"font": {"size": 16}, "x": 0.01, "xanchor": "left"},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "colorway": _CYCLE,
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
        folder = Path(folder)
        spec = json.loads(self.drawing.to_json() or "{}")
        images = iter(draw([(spec, ending) for ending in endings if ending != "csv"]))
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / f"{name}.{ending}" for ending in endings]
        for path in paths:
            if path.suffix == ".csv":
                self.table.to_csv(path, index=False)
            else:
                path.write_bytes(next(images))
        return paths

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return {
            "application/vnd.plotly.v1+json": json.loads(self.drawing.to_json() or "{}"),
            "text/plain": self.table.to_string(max_rows=20),
        }


class Note(str):
    """A sentence in the place of a figure that a run has no data for; a notebook shows it as words, not as a string."""

    def _repr_html_(self) -> str:
        return f"<p>{plain(self)}</p>"


class Look(NamedTuple):
    """How something is called and coloured in figures. A method's `Arm` has both fields and serves as one."""

    title: str
    colour: str = ""


def look_of(name: str, looks: Mapping[str, Any] | None) -> Look:
    """What `looks` says of `name`: an `Arm`, a `Look` or a plain title; its own name and a colour by its letters
    else."""
    found = (looks or {}).get(name, name)
    title = found if isinstance(found, str) else found.title
    return Look(title, getattr(found, "colour", "") or colour(name))


def colour(name: str) -> str:
    """The colour of what names none: a fixed place in the cycle by its letters."""
    return COLOURS.get(name, _CYCLE[sum(map(ord, name)) % len(_CYCLE)])


def plain(text: str) -> str:
    """Text of a model or a data set, made safe for plotly, which reads a part of HTML."""
    return html.escape(text, quote=False)


def blank(title: str, x: str, y: str, **layout: Any) -> go.Figure:
    """An empty figure with the project's template, a title that states the finding, and named axes with units."""
    figure = go.Figure(layout={"template": TEMPLATE, "title": {"text": title}, "height": 420, **layout})
    figure.update_xaxes(title=x)
    figure.update_yaxes(title=y)
    return figure


def lines_over_rounds(
    table: pd.DataFrame,
    *,
    x: str,
    y: str,
    title: str,
    x_title: str,
    y_title: str,
    labels: Mapping[str, Any] | None = None,
) -> Display:
    """One line an arm with a band: mean over seeds and its 95 % t interval.

    Args:
        table: tidy rows with columns `arm`, `seed`, `x` and `y`.
        labels: how to call and colour the arms, see `look_of`: the `ARMS` of a method will do.
    """
    summary = summarise(table, ["arm", x], y)
    figure = blank(title, x_title, y_title)
    for arm, rows in summary.groupby("arm", sort=False):
        figure.add_traces(_band_and_line(rows.sort_values(x), x, str(arm), look_of(str(arm), labels)))
    figure.update_xaxes(dtick=1)
    return Display(summary, figure)


def lines_in_panels(
    table: pd.DataFrame,
    *,
    panel: str,
    x: str,
    y: str,
    title: str,
    x_title: str,
    y_title: str,
    labels: Mapping[str, Any] | None = None,
) -> Display:
    """One panel for each value of `panel`, in it one line an arm with a band: mean over seeds and its 95 % t interval.

    Args:
        table: tidy rows with columns `panel`, `arm`, `seed`, `x` and `y`.
        labels: how to call and colour panels and arms, see `look_of`.
    """
    summary = summarise(table, [panel, "arm", x], y)
    panels = [str(name) for name in dict.fromkeys(summary[panel])]
    figure = _panels([look_of(name, labels).title for name in panels], title, x_title, y_title)
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
    labels: Mapping[str, Any] | None = None,
    lines: Mapping[str, Mapping[str, float]] | None = None,
) -> Display:
    """One panel for each value of `panel`, in it one dot an arm with its bar: mean over seeds and its 95 % t interval.

    Args:
        table: tidy rows with columns `panel`, `arm`, `seed` and the measured `y`.
        lines: for each panel, vertical reference lines by name.
    """
    summary = summarise(table, [panel, "arm"], y)
    panels = [str(name) for name in dict.fromkeys(summary[panel])]
    figure = _panels([look_of(name, labels).title for name in panels], title, x_title, "")
    for column, name in enumerate(panels, start=1):
        rows = summary[summary[panel] == name]
        arms = [str(arm) for arm in rows["arm"]]
        figure.add_trace(
            go.Scatter(
                x=rows["mean"],
                y=[plain(look_of(arm, labels).title) for arm in arms],
                mode="markers",
                showlegend=False,
                marker={"size": 9, "color": [look_of(arm, labels).colour for arm in arms]},
                customdata=rows[["lower", "upper", "n"]],
                error_x={"array": rows.upper - rows["mean"], "arrayminus": rows["mean"] - rows.lower, "color": "#666"},
                hovertemplate=(
                    "%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra></extra>"
                ),
            ),
            row=1,
            col=column,
        )
        for label, value in (lines or {}).get(name, {}).items():
            dotted = {"color": "#888", "dash": "dot", "width": 1}
            figure.add_vline(x=value, line=dotted, annotation_text=plain(label), row=1, col=column)  # type: ignore[arg-type]
    figure.update_yaxes(autorange="reversed")
    for column in range(2, len(panels) + 1):  # the first axis must not match itself
        figure.update_xaxes(matches="x", col=column)
    figure.update_layout(height=190 + 24 * summary["arm"].nunique())
    return Display(summary, figure)


def _band_and_line(rows: pd.DataFrame, x: str, arm: str, look: Look, *, in_legend: bool = True) -> list[go.Scatter]:
    """The interval as a band and the mean as a line, from rows of `summarise` in the order of `x`."""
    label = plain(look.title)
    band = go.Scatter(
        x=[*rows[x], *rows[x][::-1]],
        y=[*rows.upper, *rows.lower[::-1]],
        fill="toself",
        fillcolor=look.colour,
        mode="lines",
        opacity=0.15,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
        legendgroup=arm,
    )
    line = go.Scatter(
        x=rows[x],
        y=rows["mean"],
        name=label,
        mode="lines+markers",
        line={"color": look.colour},
        legendgroup=arm,
        marker={"size": 5},
        showlegend=in_legend,
        customdata=rows[["lower", "upper", "n"]],
        hovertemplate="%{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}], n = %{customdata[2]}<extra>"
        + label
        + "</extra>",
    )
    return [band, line]


def _panels(names: Sequence[str], title: str, x_title: str, y_title: str) -> go.Figure:
    from plotly.subplots import make_subplots

    width = max(12, 88 // len(names))  # lines short enough that neighbours stay apart
    titles = ["<br>".join(plain(line) for line in textwrap.wrap(name, width)) for name in names]
    figure = make_subplots(rows=1, cols=len(names), shared_yaxes=True, subplot_titles=titles, horizontal_spacing=0.03)
    figure.update_layout(template=TEMPLATE, title={"text": title}, height=440, margin={"t": 90})
    figure.update_xaxes(title=x_title)
    figure.update_yaxes(title=y_title, col=1)
    return figure


def summarise(table: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, 95 % t interval over seeds and n, for each group; columns `mean`, `lower`, `upper`, `n`."""
    from workbench.claims import interval

    rows = []
    for key, group in table.groupby(list(by), sort=False):
        labels: Any = key
        values = group[value].to_numpy(dtype=float)
        low, high = interval(values)
        rows.append(
            {**dict(zip(by, labels, strict=True)), "mean": values.mean(), "lower": low, "upper": high, "n": len(values)}
        )
    return pd.DataFrame(rows)


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
        figure.add_trace(
            go.Histogram(
                x=rows.margin, name=plain(str(name)), opacity=0.55, nbinsx=50, marker_color=_CYCLE[number % len(_CYCLE)]
            )
        )
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
                rows.append(
                    {
                        "claim": label,
                        "statement": record["statement"],
                        "kind": kind,
                        "seed": seed,
                        "effect": sign * (value - record["margin"]) / abs(scale),
                        "verdict": record["verdict"],
                    }
                )
    table = pd.DataFrame(rows, columns=["claim", "statement", "kind", "seed", "effect", "verdict"])
    verdicts: Any = table.drop_duplicates("claim")["verdict"]
    shown = int(verdicts.isin(["shown in small", "reproduced"]).sum())
    title = f"{shown} of {len(verdicts)} tested claims are shown; one point a seed"
    axis = f"effect in the claimed direction (standard deviations, cut at {FAR:g})"
    figure = blank(title, axis, "", height=140 + 20 * table["claim"].nunique(), width=820)
    for kind, marker in (
        ("control", {"color": "#B0B0B0", "symbol": "circle-open"}),
        ("measured", {"color": COLOURS["spin"]}),
    ):
        part = table[table["kind"] == kind]
        label = {"measured": "method", "control": "negative control"}[kind]
        figure.add_trace(
            go.Scatter(
                x=part.effect.clip(-FAR, FAR),
                y=part.claim,
                mode="markers",
                name=label,
                marker={"size": 7, **marker},
                customdata=part[["effect", "seed", "statement"]],
                hovertemplate="%{customdata[0]:.2f}, seed %{customdata[1]}<br>%{customdata[2]}<extra></extra>",
            )
        )
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
        raise RuntimeError(
            "images are drawn by kaleido in a Chromium, and this machine lacks one of them: install chromium and the"
            " extra [lab], or ask for --format csv"
        )
    # in a thread of its own, because a notebook has a loop running already
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _drawn(wanted, scale)).result()


async def _drawn(wanted: Sequence[tuple[dict[str, Any], str]], scale: float) -> list[bytes]:
    import kaleido

    images = []
    # no MathJax: kaleido would fetch it from the network
    async with kaleido.Kaleido(n=1, mathjax=False) as server:
        for spec, ending in wanted:
            layout = dict(spec.get("layout") or {})
            # a picture from the network in a figure would be fetched; one that the figure carries stays
            layout["images"] = [i for i in layout.get("images") or [] if str(i.get("source", "")).startswith("data:")]
            options: Any = {
                "format": ending,
                "scale": scale or (2 if ending == "png" else 1),
                "width": layout.get("width") or 820,
                "height": layout.get("height") or 420,
            }
            try:
                images.append(await server.calc_fig({"data": spec.get("data") or [], "layout": layout}, opts=options))
            except Exception as error:  # kaleido's errors share no base class
                raise RuntimeError(f"the browser could not draw {title_of(spec) or 'a figure'!r}: {error}") from error
    return images


def title_of(spec: dict[str, Any]) -> str:
    """A figure's title as plain text."""
    title = (spec.get("layout") or {}).get("title") or ""
    text = title.get("text") or "" if isinstance(title, dict) else title
    return html.unescape(re.sub(r"<[^<>]*>", " ", str(text)))
