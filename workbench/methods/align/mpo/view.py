"""MPO: which pairs are easy and which are hard, how often their labels are wrong, what each way of training reached."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.figures import Display, Note, blank, dots_in_panels
from workbench.methods.align.mpo.experiment import ARMS
from workbench.methods.views import seed_folder

PART_COLOURS = {"easy": "#0072B2", "hard": "#E69F00", "conflict": "#CC79A7"}


def split_figure(experiment: Any, *, seed: int | None = None) -> Display:
    """Margins of the pairs of one seed, by part."""
    table = pairs(experiment, seed=seed)
    share = table["part"].value_counts(normalize=True)
    title = f"Pairs by margin: {', '.join(f'{share.get(part, 0.0):.0%} {part}' for part in PART_COLOURS)}"
    figure = blank(title, "margin of the reward model (chosen minus rejected)", "pairs", barmode="overlay")
    for part, colour in PART_COLOURS.items():
        figure.add_histogram(x=table.margin[table.part == part], name=part, marker_color=colour, nbinsx=60)
    return Display(table, figure)


def label_errors(experiment: Any) -> Display | Note:
    """Share of wrong labels by decile of |margin| and of the true gap, all seeds together."""
    tables: list[pd.DataFrame] = [pairs(experiment, seed=seed).assign(seed=seed) for seed in experiment.seeds]
    table: Any = pd.concat(tables, ignore_index=True)
    if "true_gap" not in table:
        return Note("On real text nobody knows which labels are wrong.")
    rows: list[dict[str, Any]] = []
    for name, size in (("true gap", table.true_gap.abs()), ("reward model's margin", table.margin.abs())):
        decile = np.minimum((size.rank(pct=True, method="first") * 10).astype(int), 9)
        wrong = (table.true_gap < 0).groupby(decile).mean()
        rows += [{"by": name, "decile": int(d) + 1, "wrong": float(share)} for d, share in wrong.items()]
    frame: Any = pd.DataFrame(rows)
    first, last = (frame[(frame.by == "reward model's margin") & (frame.decile == d)].wrong.item() for d in (1, 10))
    title = f"Wrong labels: {first:.0%} where the margin is smallest, {last:.0%} where it is largest"
    figure = blank(title, "decile of the size", "share of wrong labels")
    for name, deciles in frame.groupby("by", sort=False):
        figure.add_scatter(x=deciles.decile, y=deciles.wrong, name=name, mode="lines+markers")
    return Display(frame, figure)


def sweep(experiment: Any, quantiles: tuple[float, ...] = (0.3, 0.5, 0.7)) -> pd.DataFrame:
    """The split at other thresholds: shares of the parts and, where the truth is known, their wrong labels."""
    table: Any = pd.concat([pairs(experiment, seed=seed) for seed in experiment.seeds], ignore_index=True)
    rows = []
    for quantile in quantiles:
        gamma = table.margin.abs().quantile(quantile)
        parts = {"easy": table.margin > gamma, "hard": table.margin.abs() <= gamma, "conflict": table.margin < -gamma}
        row = {"quantile": quantile, "gamma": gamma}
        row |= {f"{name}, share": inside.mean() for name, inside in parts.items()}
        if "true_gap" in table:
            row |= {f"{name}, wrong labels": (table.true_gap[inside] < 0).mean() for name, inside in parts.items()}
        rows.append(row)
    return pd.DataFrame(rows).round(3)


def reached(table: pd.DataFrame, what: str = "quality") -> Display:
    """Every arm at its end: mean over the seeds and its 95 % interval."""
    last: Any = table.sort_values("round").groupby(["arm", "seed"], sort=False).tail(1)
    order: Any = last.groupby("arm")[what].mean().sort_values(ascending=False)
    rows = last.set_index("arm").loc[order.index].reset_index().assign(panel={"quality": "true reward"}.get(what, what))
    title = f"Highest: {ARMS[order.index[0]].title} ({order.iloc[0]:+.2f})"
    x_title = "mean over seeds, 95 % interval"
    return dots_in_panels(rows, panel="panel", y=what, title=title, x_title=x_title, labels=ARMS)


def arm_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm at its end, beside what it started from and what it spent: means, and the deviation over the seeds."""
    last: Any = table.sort_values("round").groupby(["arm", "seed"], sort=False).tail(1)
    means = last.drop(columns=["seed", "round"]).groupby("arm", sort=False).mean()
    arms = [ARMS[name] for name in means.index]
    start = [(f"DPO on {arm.first} pairs" if arm.first else "pi_SFT") if arm.second else "" for arm in arms]
    means.insert(0, "start and reference of stage 2", start)
    means.insert(1, "stage 2 on", [arm.second or "none" for arm in arms])
    means.insert(2, "deviation over seeds", last.groupby("arm", sort=False).quality.std())
    return means.round(3).set_axis([arm.title for arm in arms])


def pairs(experiment: Any, *, seed: int | None = None, arm: str = "mpo") -> pd.DataFrame:
    """Pairs of one seed with margin and part, the smallest margin first. Shown as a table, pandas escapes all text."""
    table = pd.read_parquet(seed_folder(experiment, seed) / arm / "split.parquet")
    return table.sort_values("margin", ignore_index=True)
