"""The arena: who is strongest, how far each went from the start for it, and what it cost."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.figures import Display, blank

KINDS = {
    "demonstrations": "#7F7F7F",
    "offline pairs": "#0072B2",
    "self-play": "#D55E00",
    "step pairs": "#009E73",
    "online reward": "#CC79A7",
    "control": "#222222",
}
AXES = {
    "kl_nats": "KL to the start (nats a response)",
    "cpu_seconds": "CPU seconds of drawing and training",
    "generated_tokens": "generated tokens",
}


def ranking_figure(table: pd.DataFrame) -> Display:
    """Bradley-Terry strengths with their intervals, strongest on top, one colour a kind of method."""
    first, second = table.iloc[0], table.iloc[1]
    clear = "clear of" if first.lower > second.upper else "overlapping"
    title = f"{first.competitor} is strongest, {clear} {second.competitor}"
    axis = "Bradley-Terry strength of samples (nats, mean 0), 95 % interval over seeds"
    figure = blank(title, axis, "", height=150 + 30 * len(table))
    for kind, colour in KINDS.items():
        rows: Any = table[table.kind == kind]
        bar = {"type": "data", "array": rows.upper - rows.strength, "arrayminus": rows.strength - rows.lower}
        style = {"mode": "markers", "marker": {"size": 9, "color": colour}, "error_x": {**bar, "color": colour}}
        figure.add_scatter(x=rows.strength, y=rows.competitor, name=kind, **style)
    figure.update_yaxes(categoryorder="array", categoryarray=table.competitor[::-1].tolist())
    return Display(table, figure)


def quality_figure(table: pd.DataFrame, against: str = "kl_nats") -> Display:
    """Greedy accuracy against what it took: "kl_nats", "cpu_seconds" or "generated_tokens".

    Raises:
        ValueError: another column.
    """
    if against not in AXES:
        raise ValueError(f"against must be one of {', '.join(AXES)}; got {against!r}")
    rows: Any = table[table.kind != "control"]
    best = rows.loc[rows.quality.idxmax()]
    title = f"{best.competitor}: accuracy {best.quality:.2f} at {best[against]:.3g} {AXES[against].split(' (')[0]}"
    figure = blank(title, AXES[against], "right answers, greedy (share)", height=520)
    for kind, colour in KINDS.items():
        rows = table[table.kind == kind]
        style = {"mode": "markers+text", "marker": {"size": 10, "color": colour}}
        words = {"text": rows.competitor, "textposition": "top center", "textfont": {"size": 10}}
        figure.add_scatter(x=rows[against], y=rows.quality, name=kind, **style, **words)
    return Display(table, figure)


def price_table(table: pd.DataFrame) -> pd.DataFrame:
    """What everyone got and what it cost, in readable units."""
    names = {"quality": "accuracy", "valid_steps": "valid steps", "kl_nats": "KL (nats)", "cpu_seconds": "CPU s"}
    names |= {"generated_tokens": "generated tokens", "optimizer_steps": "optimiser steps"}
    columns = ["competitor", "kind", "quality", "sampled", "valid_steps", "kl_nats"]
    columns += ["generated_tokens", "optimizer_steps", "cpu_seconds"]
    digits: Any = {"quality": 3, "sampled": 3, "valid_steps": 3, "kl_nats": 2, "generated_tokens": 0, "cpu_seconds": 1}
    whole: Any = {"generated_tokens": int, "optimizer_steps": int}
    rounded: Any = table[columns].round(digits).astype(whole)
    return rounded.rename(columns=names)
