"""DR-PO: how good a policy is from where in a response, curves over updates, and reward against KL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, Look, Note, blank, lines_over_rounds, look_of, plain
from workbench.methods.align.dr_po.experiment import ARMS
from workbench.methods.views import curves, seed_folder

SPARSE = ("dr_po", "dr_po_50", "dr_po_25", "ppo", "ppo_pp", "wrong")
TIMES = {"before": Look("before", "#B0B0B0"), "after": Look("after", "#0072B2")}


def over_updates(
    experiment: Any, table: pd.DataFrame, arms: Sequence[str] = SPARSE, what: str = "quality"
) -> Display | Note:
    """One line an arm over the updates, always from bare prompts; arms without rollouts are not shown."""
    rows: Any = table[table.arm.isin([arm for arm in arms if ARMS[arm].learns == "rl"])]
    if rows.empty or what not in rows:
        return Note(f"This run has no {what} of {', '.join(arms)}; see `arms` and the columns of the table.")
    config = experiment.config
    between = config.updates / min(config.evaluations, config.updates)
    rows = rows.assign(update=(rows["round"] * between).round().astype(int))
    last = rows[rows["update"] == rows["update"].max()].groupby("arm", sort=False)[what].mean()
    ends = ", ".join(f"{ARMS[a].title} {last[a]:.2f}" for a in list(last.index)[:3])
    title = f"After {rows['update'].max()} updates: {ends}"
    axis = "wholly right responses (share)" if what == "quality" else what.replace("_", " ")
    shown = lines_over_rounds(rows, x="update", y=what, title=title, x_title="updates", y_title=axis, labels=ARMS)
    shown.figure().update_xaxes(dtick=None)
    return shown


def by_prefix(experiment: Any, arms: Sequence[str] = ("dr_po_50", "ppo")) -> Display | Note:
    """Mean reward by the number of reference tokens given, before and after training: resets move success backwards."""
    tables: list[pd.DataFrame] = [
        pd.read_parquet(path).assign(seed=seed, panel=arm)
        for arm in arms
        for seed in experiment.seeds
        if (path := seed_folder(experiment, seed) / arm / "by_prefix.parquet").is_file()
    ]
    if not tables:
        return Note(f"This run has none of the arms {', '.join(arms)}.")
    rows = pd.concat(tables, ignore_index=True).rename(columns={"when": "arm", "reward": "value"})
    title = "Near the end of a reference the start earns something already"
    return curves(rows, "prefix_tokens", title, "reference tokens given", "mean reward", {**ARMS, **TIMES})


def frontier(table: pd.DataFrame, arms: Sequence[str] = SPARSE) -> Display:
    """Reward against KL to the start: one path an arm through its evaluations, means over the seeds."""
    chosen: Any = table[table.arm.isin(arms)]
    rows: Any = chosen.groupby(["arm", "round"], sort=False)[["kl_nats", "reward"]].mean().reset_index()
    figure = blank("Reward at equal distance from the start", "KL to the start (nats a response)", "mean reward")
    for arm, path in rows.groupby("arm", sort=False):
        look = look_of(str(arm), ARMS)
        line = {"color": look.colour}
        figure.add_scatter(x=path.kl_nats, y=path.reward, mode="lines+markers", name=plain(look.title), line=line)
    return Display(rows, figure)


def reset_points(experiment: Any, *, arm: str = "dr_po_50", seed: int | None = None) -> Display:
    """Tokens given and tokens generated a response, over the updates of one seed."""
    run = experiment.run.child(f"seed-{experiment.seeds[0] if seed is None else seed}").child(arm)
    columns = ["step", "reset_share", "reset_tokens", "response_tokens", "score", "missing_end"]
    rows: Any = pd.DataFrame(run.metrics())[columns]
    title = f"{plain(ARMS[arm].title)}: {rows.reset_share.mean():.0%} of the rollouts begin inside a reference"
    figure = blank(title, "update", "tokens a response")
    written, stacked = rows.response_tokens - rows.reset_tokens, {"x": rows.step, "stackgroup": "one"}
    figure.add_scatter(y=rows.reset_tokens, name="given", line={"color": TIMES["before"].colour}, **stacked)
    figure.add_scatter(y=written, name="generated", line={"color": ARMS[arm].colour}, **stacked)
    return Display(rows, figure)


def arm_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every arm at its end: mean over the seeds of all that was measured."""
    last: Any = table.sort_values("round").groupby(["arm", "seed"], sort=False).tail(1)
    means = last.drop(columns=["seed", "round"]).groupby("arm", sort=False).mean().round(3)
    return means.rename(index={name: arm.title for name, arm in ARMS.items()})
