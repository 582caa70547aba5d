"""What a reader of DNO looks at beside the views of self-play: who wrote the sides of the pairs."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.figures import Display, Look, blank

KINDS = {
    "pairs T>S": Look("teacher over student", "#7F7F7F"),
    "pairs S>T": Look("student over teacher", "#0072B2"),
    "pairs S>S": Look("student over student", "#B0B0B0"),
}


def pair_counts(table: pd.DataFrame, arm: str = "dno") -> Display:
    """New pairs of each round by who wrote the chosen and the rejected response, mean over seeds."""
    rows: Any = table[(table.arm == arm) & (table["round"] > 0)]
    means = rows.groupby("round")[list(KINDS)].mean()
    share = (means["pairs S>T"] / means[["pairs S>T", "pairs T>S"]].sum(axis=1).clip(lower=1)).tolist()
    title = (
        f"Student over teacher: {share[0]:.0%} of the teacher's pairs in round 1, {share[-1]:.0%} in round {len(share)}"
    )
    figure = blank(title, "round", "new pairs", barmode="stack")
    for kind, look in KINDS.items():
        figure.add_bar(x=means.index, y=means[kind], name=look.title, marker_color=look.colour)
    figure.update_xaxes(dtick=1)
    return Display(means.reset_index(), figure)
