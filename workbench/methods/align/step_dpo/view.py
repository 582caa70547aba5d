"""The wrong step: where a solution goes wrong first, and the two ways on from there; and curves of Step-DPO."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, Note, blank, plain
from workbench.methods.align.step_dpo.experiment import ARMS
from workbench.methods.views import ZERO, TablePages, curves, ends_figure, seed_folder, start_means
from workbench.runs.files import read_json

MEASURES = {
    "quality": "right answers, greedy",
    "valid_steps": "steps before the first wrong one",
    "sampled": "right answers, sampled",
    "closes": "answers that end as they should",
}
HELD_OUT = {"reward_accuracy": "held-out pairs in the right order", "margin": "held-out reward margin (nats x beta)"}


def accuracy_figure(table: pd.DataFrame) -> Display:
    """What every arm at the common learning rate ends with, one panel a measure; the dotted line is the start."""
    arms = [arm for arm in ARMS if arm in set(table["arm"]) and ARMS[arm].lr_factor == 1.0]
    ends: Any = table[(table["round"] == 1) & table["arm"].isin(arms)]
    measures = [key for key in MEASURES if key in table]
    starts = start_means(table, measures)
    mean = ends.groupby("arm")["quality"].mean()
    ours = f"Step-DPO answers {mean.get('step_dpo', float('nan')):.0%} right"
    title = f"{ours}, from {starts['quality']:.0%} at the start"
    if "dpo" in mean:
        title += f"; DPO on whole answers {mean['dpo']:.0%}"
    labels = {**ARMS, **MEASURES}
    return ends_figure(ends, measures, title, labels, x_title="share", starts=starts, shared=True)


def rates_figure(table: pd.DataFrame) -> Display | Note:
    """Accuracy after training against the learning rate, for the arms that were swept."""
    rows: Any = table[table["round"] == 1]
    base = rows["arm"].str.replace("_slow|_fast", "", regex=True)
    swept = base[rows["arm"] != base].unique()
    if not len(swept):
        return Note("This run sweeps no learning rate; add arms that end in _slow and _fast.")
    rows = rows.assign(rate=[ARMS[arm].lr_factor for arm in rows["arm"]], arm=base)
    rows = rows[rows["arm"].isin(swept)].melt(["arm", "seed", "rate"], ["quality", "closes"], "measure", "value")
    title, labels = "The learning rate decides how far each arm gets, and what it damages", {**ARMS, **MEASURES}
    display = curves(rows, "rate", title, "learning rate (of the common one)", "share", labels, panel="measure")
    display.figure().update_xaxes(type="log", tickvals=[1 / 3, 1, 10 / 3], ticktext=["1/3", "1", "10/3"])
    return display


def training_figure(experiment: Any) -> Display:
    """Held-out pairs over training, apart from accuracy: how many get the right order, and the margin."""
    rows = [
        {"arm": arm, "seed": seed, "updates": int(look["updates"]), "measure": key, "value": float(look[key])}
        for seed in experiment.seeds
        for arm in experiment.config.arms
        for look in map(read_json, sorted((seed_folder(experiment, seed) / arm).glob("after-*.json")))
        for key in HELD_OUT
    ]
    table = pd.DataFrame(rows, columns=["arm", "seed", "updates", "measure", "value"])
    labels = {**ARMS, **HELD_OUT}
    return curves(table, "updates", "Held-out pairs over training", "updates", "", labels, panel="measure")


def pairs(experiment: Any, *, seed: int | None = None, arm: str = "step_dpo") -> pd.DataFrame:
    """Held-out pairs of one seed with their rewards after training, worst told apart first."""
    table: Any = pd.read_parquet(seed_folder(experiment, seed) / arm / "held_out_rewards.parquet")
    table["margin"] = table["chosen_rewards"] - table["rejected_rewards"]
    columns = ["prompt", "prefix", "chosen", "rejected", "full_chosen", "full_rejected", "margin"]
    return table[columns].sort_values("margin", ignore_index=True).round(3)


def stages(experiment: Any, results: Sequence[dict]) -> pd.DataFrame:
    """Rows that every data stage left of the training problems, one line a seed."""
    rows = [{"seed": seed, **result["counts"]} for seed, result in zip(experiment.seeds, results, strict=True)]
    return pd.DataFrame(rows).drop(columns="reasons", errors="ignore")


def unlocalised(experiment: Any) -> pd.DataFrame:
    """Wrong solutions without a located step, by seed and reason; they are left out of training, never guessed."""
    rows = []
    for seed in experiment.seeds:
        path = seed_folder(experiment, seed) / "pairs" / "train-2-unlocalised.parquet"
        table = pd.read_parquet(path) if path.is_file() else pd.DataFrame({"reason": []})
        counts = table["reason"].value_counts()
        rows += [{"seed": seed, "reason": reason, "solutions": n} for reason, n in counts.items()]
    return pd.DataFrame(rows, columns=["seed", "reason", "solutions"])


class WrongStep(TablePages):
    """Problem by problem: the right beginning, the first wrong step, and the step that replaces it.

    Args:
        table: columns prompt, prefix, chosen, rejected, optionally margin; see `pairs`.
        shown: problems on the static face.
    """

    noun = "problem"

    def __init__(self, table: pd.DataFrame, *, shown: int = 5):
        if table.empty:
            raise ValueError("no step pairs to show; look at the table of wrong solutions without a located step")
        super().__init__(table.reset_index(drop=True), shown)

    def figure(self):
        """Margins of all pairs, worst first; the text of a pair where the mouse is."""
        margins: Any = self.table["margin"] if "margin" in self.table else pd.Series(0.0, self.table.index)
        below = float((margins <= 0).mean())
        title = f"{below:.0%} of held-out steps are told apart wrongly"
        figure = blank(title, "pair, worst first", "margin (nats x beta)")
        rows: Any = self.table.itertuples()
        texts = [
            f"{plain(row.prompt[:80])}<br>wrong: {plain(row.rejected[:80])}<br>better: {plain(row.chosen[:80])}"
            for row in rows
        ]
        figure.add_scatter(x=self.table.index, y=margins, mode="markers", text=texts, hoverinfo="text+y")
        figure.add_hline(y=0, line=ZERO)
        return figure

    def html(self, index: int) -> str:
        """One problem as HTML; a pure function of its number."""
        row = self.table.iloc[index]
        lines = [
            ("problem", row["prompt"], "#222", "none"),
            ("right so far", row["prefix"] or "(nothing yet)", "#555", "none"),
            ("first wrong step", row["rejected"], "#9b2226", "line-through"),
            ("step instead", row["chosen"], "#00695c", "none"),
        ]
        margin = f", margin {row['margin']:+.3f}" if "margin" in row else ""
        cells = "".join(
            f'<tr><th style="text-align:left;padding-right:12px;vertical-align:top">{name}</th><td'
            f' style="color:{colour};'
            f'text-decoration:{mark};text-align:left;white-space:pre-wrap">{html.escape(str(text))}</td></tr>'
            for name, text, colour, mark in lines
        )
        return f'<div class="wrong-step"><b>{index + 1} of {len(self.table)}{margin}</b><table>{cells}</table></div>'
