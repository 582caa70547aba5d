"""The arena: who is strongest, how far each went from the start for it, and what it cost."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

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
    figure = blank(
        title,
        "Bradley-Terry strength of samples (nats, mean 0), 95 % interval over seeds",
        "",
        height=150 + 30 * len(table),
    )
    for kind, colour in KINDS.items():
        rows: Any = table[table.kind == kind]
        bar = {
            "type": "data",
            "array": rows.upper - rows.strength,
            "arrayminus": rows.strength - rows.lower,
            "color": colour,
        }
        figure.add_trace(
            go.Scatter(
                x=rows.strength,
                y=rows.competitor,
                mode="markers",
                name=kind,
                marker={"size": 9, "color": colour},
                error_x=bar,
            )
        )
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
        figure.add_trace(
            go.Scatter(
                x=rows[against],
                y=rows.quality,
                text=rows.competitor,
                mode="markers+text",
                name=kind,
                textposition="top center",
                textfont={"size": 10},
                marker={"size": 10, "color": colour},
            )
        )
    return Display(table, figure)


def price_table(table: pd.DataFrame) -> pd.DataFrame:
    """What everyone got and what it cost, in readable units."""
    return pd.DataFrame(
        {
            "competitor": table.competitor,
            "kind": table.kind,
            "accuracy": table.quality.round(3),
            "sampled": table.sampled.round(3),
            "valid steps": table.valid_steps.round(3),
            "KL (nats)": table.kl_nats.round(2),
            "generated tokens": table.generated_tokens.round().astype(int),
            "optimiser steps": table.optimizer_steps.astype(int),
            "CPU s": table.cpu_seconds.round(1),
        }
    )
