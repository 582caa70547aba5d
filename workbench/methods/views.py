"""What the views of several systems share: panels of tidy rows, arms at their end, pages of a table, stored tables."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from workbench.figures import Display, Labels, dots_in_panels, lines_in_panels
from workbench.widgets.paging import Paged

Rows = pd.DataFrame | list[dict[str, Any]]
ZERO = {"color": "#444", "width": 1}  # the line at 0, or at chance
DOTTED = {"dash": "dot", "color": "#888"}


def seed_folder(experiment: Any, seed: int | None = None) -> Path:
    """Where the results of a seed lie; None takes the first."""
    return experiment.run.folder / f"seed-{experiment.seeds[0] if seed is None else seed}"


def dots(
    rows: Rows, title: str, x_title: str, labels: Labels, lines: Mapping[str, Mapping[str, float]] | None = None
) -> Display:
    """`dots_in_panels` of rows `panel`, `arm`, `seed`, `value`."""
    titles: dict[str, Any] = {"title": title, "x_title": x_title, "labels": labels, "lines": lines}
    return dots_in_panels(pd.DataFrame(rows), panel="panel", y="value", **titles)


def curves(
    rows: Rows, x: str, title: str, x_title: str, y_title: str, labels: Labels, *, panel: str = "panel"
) -> Display:
    """`lines_in_panels` of rows `panel`, `arm`, `seed`, `value` and `x`."""
    titles: dict[str, Any] = {"title": title, "x_title": x_title, "y_title": y_title, "labels": labels}
    return lines_in_panels(pd.DataFrame(rows), panel=panel, x=x, y="value", **titles)


def start_means(table: pd.DataFrame, measures: Iterable[str]) -> dict[str, float]:
    """Mean of each measure before training."""
    starts: Any = table[table["round"] == 0]
    return {key: float(starts[key].mean()) for key in measures}


def ends_figure(
    ends: Any,
    measures: Iterable[str],
    title: str,
    labels: Labels,
    *,
    x_title: str = "",
    starts: Mapping[str, float] | None = None,
    shared: bool = False,
) -> Display:
    """What every arm ends with, one panel a measure; a dotted line is the start.

    Args:
        ends: the rows of an evaluation table to show, one an arm and seed.
        shared: whether all panels have one x axis; else each a scale of its own.
    """
    rows = ends.melt(["arm", "seed"], list(measures), "measure", "measured")
    lines = {key: {"start": value} for key, value in (starts or {}).items()}
    titles: dict[str, Any] = {"title": title, "x_title": x_title, "labels": labels, "lines": lines}
    display = dots_in_panels(rows, panel="measure", y="measured", **titles)
    if not shared:
        display.figure().update_xaxes(matches=None)
    return display


def whiskers(rows: Any, at: str, **style: Any) -> dict[str, Any]:
    """Error bars from the columns `lower` and `upper` around the column `at`."""
    return {"array": rows["upper"] - rows[at], "arrayminus": rows[at] - rows["lower"], **style}


class TablePages(Paged):
    """A page for each row of a table; live it has a slider and a button on either side, without a kernel it shows the
    first pages below each other."""

    def __init__(self, table: pd.DataFrame, shown: int):
        self.table, self.shown = table, shown

    @property
    def n_pages(self) -> int:
        return len(self.table)

    def frame(self) -> pd.DataFrame:
        return self.table


def named_lines(lines: Iterable[Sequence[str]], *, nowrap: bool = False) -> str:
    """An HTML table of lines (name, text) or (name, text, note); the texts must be HTML, name and note are escaped."""
    name_style = "text-align:left;padding-right:12px;vertical-align:top" + (";white-space:nowrap" if nowrap else "")
    rows = [
        f'<tr><th style="{name_style}">{html.escape(name)}</th>'
        f'<td style="text-align:left;white-space:pre-wrap">{text}</td>'
        + "".join(f'<td style="text-align:left;color:#777">{html.escape(told)}</td>' for told in note)
        + "</tr>"
        for name, text, *note in lines
    ]
    return f"<table>{''.join(rows)}</table>"
