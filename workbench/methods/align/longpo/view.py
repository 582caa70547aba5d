"""Short and long: scores on short and on long text by round, margins over training, both answers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, Note, blank, lines_over_rounds, look_of, plain
from workbench.methods.align.longpo.experiment import ARMS
from workbench.methods.views import ZERO, ends_figure, seed_folder, start_means

KL = "short_to_long_kl"


def _measures(table: pd.DataFrame) -> dict[str, str]:
    """What was measured on short and on long text, by column: titles of panels."""
    lengths = sorted(int(str(name).removeprefix("retrieval_")) for name in table if str(name).startswith("retrieval_"))
    if lengths:
        named = {f"retrieval_{n}": f"{n} records" for n in lengths}
        return {**named, **({"second_task": "second task"} if "second_task" in table else {})}
    names = {"short_nll": "NLL behind the short text", "long_nll": "NLL behind the document"}
    return {key: title for key, title in names.items() if key in table}


def scores_figure(table: pd.DataFrame) -> Display:
    """Short-context and long-context scores after the first round, one dot an arm; the dotted line is the start."""
    measures = _measures(table)
    ends: Any = table[table["round"] == 1]
    starts = start_means(table, measures)
    longer = list(measures)[-2 if "second_task" in measures else -1]
    mean = float(ends[ends["arm"] == "longpo"][longer].mean())
    title = f"LongPO, {measures[longer]}: {mean:.2f}, from {starts[longer]:.2f} at the start"
    x_title = "nats a token" if "long_nll" in measures else "right (share)"
    return ends_figure(ends, measures, title, {**ARMS, **measures}, x_title=x_title, starts=starts, shared=True)


def rounds_figure(table: pd.DataFrame, what: str = "") -> Display | Note:
    """One line an arm of several rounds, each on longer documents than the one before.

    Args:
        what: a column of the table; "" takes the longest documents.
    """
    measures = [key for key in _measures(table) if key != "second_task"]
    what = what or measures[-1]
    arms = [arm for arm in ARMS if arm in set(table["arm"]) and ARMS[arm].rounds > 1]
    if not arms:
        return Note("This run has no arm of several rounds.")
    rows: Any = table[table["arm"].isin(arms)]
    measure = _measures(table).get(what, what)
    label = f"right values, {measure} (share)" if what.startswith("retrieval") else f"{measure}, nats a token"
    titles: Any = {"title": "What a second round on longer documents adds", "x_title": "rounds finished"}
    return lines_over_rounds(rows, x="round", y=what, y_title=label, labels=ARMS, **titles)


def kl_figure(table: pd.DataFrame) -> Display:
    """How far the policy on the long text is from the model on the short one, after the first round."""
    ends: Any = table[table["round"] == 1]
    starts = start_means(table, [KL])
    mean = float(ends[ends["arm"] == "longpo"][KL].mean())
    title = f"KL from long to short: {starts[KL]:.2f} before, {mean:.2f} after LongPO"
    labels = {**ARMS, KL: "KL(policy on long text || reference on short text)"}
    return ends_figure(ends, [KL], title, labels, x_title="nats a token", starts=starts, shared=True)


def margins_figure(experiment: Any, arms: Sequence[str] = ("longpo", "lam1", "swapped")) -> Display | Note:
    """Log-ratio margins of training batches over round 1, first seed: chosen minus rejected, nats a document."""
    rows: list[dict[str, Any]] = []
    for arm in arms:
        first = experiment.run.child(f"seed-{experiment.seeds[0]}").child(arm).child("round-1")
        sign = -1 if ARMS[arm].labels == "swapped" else 1  # always of the answer from the short text
        rows += [
            {"arm": arm, "step": row["step"], "margin": sign * row["margins"] / experiment.config.beta}
            for row in first.metrics()
            if "margins" in row
        ]
    if not rows:
        return Note("This run has none of these arms.")
    table = pd.DataFrame(rows)
    title = "Log-ratio margins over training: policy on the long text, reference on the short one"
    figure = blank(title, "optimiser step", "log-ratio margin (nats a document)")
    for arm, steps in table.groupby("arm", sort=False):
        look = look_of(str(arm), ARMS)
        line = {"mode": "lines", "name": plain(look.title), "line": {"color": look.colour}}
        figure.add_scatter(x=steps["step"], y=steps["margin"], **line)
    figure.add_hline(y=0, line=ZERO)
    return Display(table, figure)


def answers(experiment: Any, *, seed: int | None = None, arm: str = "longpo") -> pd.DataFrame:
    """Held-out turns of one seed: what the start answers from the short text (`chosen`) and from the long one
    (`rejected`), and the log-ratios of their documents after the last round."""
    last = sorted((seed_folder(experiment, seed) / arm).glob("ratios-*.parquet"))[-1]
    table: Any = pd.read_parquet(last)
    table["margin"] = table["chosen_ratio"] - table["rejected_ratio"]
    rows = table.explode(["questions", "chosen", "rejected"])
    return rows.rename(columns={"questions": "prompt"}).reset_index(drop=True).round(3)


def made(experiment: Any, results: Sequence[dict]) -> pd.DataFrame:
    """Documents, turns, and what was dropped, one column a seed."""
    rows = [{"seed": seed, **result["counts"]} for seed, result in zip(experiment.seeds, results, strict=True)]
    return pd.DataFrame(rows).fillna(0).set_index("seed").T.astype(int)
