"""DR-PO: how good a policy is from where in a response, curves over updates, and reward against KL."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go

from workbench.figures import Display, blank, colour, lines_in_panels, lines_over_rounds, plain
from workbench.methods.align.dr_po.method import ARMS

LABELS = {name: arm.title for name, arm in ARMS.items()}
SPARSE = ["dr_po", "dr_po_50", "dr_po_25", "ppo", "ppo_pp", "wrong"]


def over_updates(experiment: Any, table: pd.DataFrame, arms: list[str], what: str = "quality") -> Display | str:
    """One line an arm over the updates, always from bare prompts; arms without rollouts are not shown."""
    rows: Any = table[table.arm.isin([arm for arm in arms if ARMS[arm].learns == "rl"])]
    if rows.empty or what not in rows:
        return f"This run has no {what} of {', '.join(arms)}; see `arms` and the columns of the table."
    config = experiment.config
    rows = rows.assign(
        update=(rows["round"] * config.updates / min(config.evaluations, config.updates)).round().astype(int)
    )
    last = rows[rows["update"] == rows["update"].max()].groupby("arm", sort=False)[what].mean()
    title = f"After {rows['update'].max()} updates: " + ", ".join(
        f"{LABELS[a]} {last[a]:.2f}" for a in list(last.index)[:3]
    )
    axis = "wholly right responses (share)" if what == "quality" else what.replace("_", " ")
    shown = lines_over_rounds(rows, x="update", y=what, title=title, x_title="updates", y_title=axis, labels=LABELS)
    shown.figure().update_xaxes(dtick=None)
    return shown


def by_prefix(experiment: Any, arms: list[str]) -> Display | str:
    """Mean reward by the number of reference tokens given, before and after training: resets move success backwards."""
    tables: list[pd.DataFrame] = [
        pd.read_parquet(path).assign(seed=seed, panel=arm)
        for arm in arms
        for seed in experiment.seeds
        if (path := experiment.run.folder / f"seed-{seed}" / arm / "by_prefix.parquet").is_file()
    ]
    if not tables:
        return f"This run has none of the arms {', '.join(arms)}."
    rows = pd.concat(tables, ignore_index=True).assign(
        arm=lambda t: t["when"].map({"before": "start", "after": "dr_po"})
    )
    return lines_in_panels(
        rows,
        panel="panel",
        x="prefix_tokens",
        y="reward",
        title="Near the end of a reference the start earns something already",
        x_title="reference tokens given",
        y_title="mean reward",
        labels={**LABELS, "start": "before", "dr_po": "after"},
    )


def frontier(table: pd.DataFrame, arms: list[str]) -> Display:
    """Reward against KL to the start: one path an arm through its evaluations, means over the seeds."""
    chosen: Any = table[table.arm.isin(arms)]
    rows: Any = chosen.groupby(["arm", "round"], sort=False)[["kl_nats", "reward"]].mean().reset_index()
    figure = blank("Reward at equal distance from the start", "KL to the start (nats a response)", "mean reward")
    for arm, part in rows.groupby("arm", sort=False):
        line = {"color": colour(str(arm))}
        figure.add_trace(
            go.Scatter(x=part.kl_nats, y=part.reward, mode="lines+markers", name=plain(LABELS[str(arm)]), line=line)
        )
    return Display(rows, figure)


def reset_points(experiment: Any, *, arm: str = "dr_po_50", seed: int | None = None) -> Display:
    """Share of rollouts that started from a reset, and the mean length of the reset, over the updates of one seed."""
    part = experiment.run.child(f"seed-{experiment.seeds[0] if seed is None else seed}").child(arm)
    rows: Any = pd.DataFrame(part.metrics())[
        ["step", "reset_share", "reset_tokens", "response_tokens", "score", "missing_end"]
    ]
    figure = blank(
        f"{plain(LABELS[arm])}: {rows.reset_share.mean():.0%} of the rollouts begin inside a reference",
        "update",
        "tokens a response",
    )
    figure.add_trace(
        go.Scatter(x=rows.step, y=rows.reset_tokens, name="given", stackgroup="one", line={"color": colour("start")})
    )
    written = rows.response_tokens - rows.reset_tokens
    figure.add_trace(
        go.Scatter(x=rows.step, y=written, name="generated", stackgroup="one", line={"color": colour(arm)})
    )
    return Display(rows, figure)


def arm_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm at its end: mean over the seeds of all that was measured."""
    last: Any = table.sort_values("round").groupby(["arm", "seed"], sort=False).tail(1)
    means = last.drop(columns=["seed", "round"]).groupby("arm", sort=False).mean().round(3)
    return means.rename(index=LABELS)
