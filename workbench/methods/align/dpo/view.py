"""Held-out pairs: how well a policy tells chosen from rejected, before and after, and which pairs it gets wrong."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.figures import Display, blank
from workbench.methods.align.dpo.experiment import ARMS
from workbench.methods.views import DOTTED, ZERO


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of every number, before and after, for each arm."""
    numbers = [name for name in table.columns if name not in ("arm", "seed", "round")]
    means: Any = table.groupby(["arm", "round"], sort=False)[numbers].mean()
    return means.round(4).rename(index={0: "before", 1: "after"}, level="round")


def accuracy_figure(table: pd.DataFrame) -> Display:
    """Held-out accuracy by reward after training, for each arm and seed, beside the rule that looks at length alone."""
    rows: Any = table[table["round"] == 1][["arm", "seed", "reward_accuracy", "longer_is_chosen"]]
    mean = rows[rows.arm == "dpo"].reward_accuracy.mean()
    title = f"DPO gives the chosen response the higher reward in {mean:.0%} of held-out pairs"
    figure = blank(title, "", "accuracy on held-out pairs")
    for name, of_arm in rows.groupby("arm", sort=False):
        arm = ARMS[str(name)]
        figure.add_box(y=of_arm.reward_accuracy, name=arm.title, boxpoints="all", marker_color=arm.colour)
    figure.add_hline(y=0.5, line=ZERO)
    figure.add_hline(y=rows.longer_is_chosen.iloc[0], line=DOTTED, annotation_text="longer is chosen")
    figure.update_layout(showlegend=False)
    return Display(rows, figure)
