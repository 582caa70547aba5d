"""Self-play under a judge: what moved, how far from the equilibrium, who beats whom among the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd

from workbench.figures import Display, blank, lines_over_rounds, pair_table, plain
from workbench.methods.align.self_play import stored_table
from workbench.methods.views import ZERO, curves
from workbench.runs.run import Run
from workbench.tasks.protocols import EnumeratedTask

AXES = {
    "quality": "quality (higher is better)",
    "leak": "mass off the listed responses (share)",
    "win_against_start": "wins against the start (share)",
    "win_against_last": "wins against the round before (share)",
    "win_against_gold": "wins against the teacher (share)",
    "mean_length": "length of answers (characters)",
    "student_over_teacher": "pairs in which the student beats the teacher (share)",
    "sign_accuracy": "pairs the right way round (share)",
}
NOT_HERE = "This task does not measure {}: that needs a world in which all responses can be listed."


def rounds_figure(experiment: Any, table: pd.DataFrame, what: str, arms: Sequence[str] = ()) -> Display | str:
    """One line an arm over the rounds, with a 95 % interval over seeds; the title states what the method's own arm did.

    Args:
        what: a column of the table; a line of text says so where the task does not measure it.
        arms: which ones; all of the run's by default.
    """
    if what not in table:
        return NOT_HERE.format(what)
    own = experiment.method.name
    rows: Any = table[table[what].notna() & table.arm.isin(arms or table.arm.unique())]
    means: Any = rows[rows.arm == own].groupby("round")[what].mean()
    (first, before), *_, (last, after) = [*means.items(), *means.tail(1).items()]
    axis, labels = AXES.get(what, what), experiment.config.ARMS
    moved = f"{before:.3f} in round {first}, {after:.3f} in round {last}"
    titles: Any = {"title": f"{own.upper()}: {axis.split(' (')[0]} {moved}", "x_title": "rounds finished"}
    return lines_over_rounds(rows, x="round", y=what, y_title=axis, labels=labels, **titles)


def exploitability_figure(experiment: Any, table: pd.DataFrame, arms: Sequence[str] = ()) -> Display | str:
    """How much the best answer to a policy wins beyond one half: of the last policy, and of the rounds' average."""
    if "average_exploitability" not in table:
        return NOT_HERE.format("exploitability")
    own = experiment.method.name
    kinds = {"exploitability": "the last policy", "average_exploitability": "the average of all rounds"}
    rows: Any = table[table.arm.isin(arms or table.arm.unique())]
    long = rows.melt(["arm", "seed", "round"], list(kinds), "panel", "value")
    end = long[(long.arm == own) & (long["round"] == long["round"].max())].groupby("panel").value.mean()
    last, average = end["exploitability"], end["average_exploitability"]
    title = f"{own.upper()} ends at exploitability {average:.3f} on average over its rounds, {last:.3f} in the last"
    labels = {**experiment.config.ARMS, **kinds}
    return curves(long, "round", title, "rounds finished", "best response wins beyond 1/2 (share)", labels)


def movement_figure(experiment: Any, table: pd.DataFrame, arms: Sequence[str]) -> Display:
    """Where each round moved the log-probs of its winners and losers, nats: the sign is what section 4.5 is about."""
    kinds = {"winner_moved": "winners", "loser_moved": "losers"}
    rows: Any = table[table.arm.isin(arms) & table.winner_moved.notna()]
    long = rows.melt(["arm", "seed", "round"], list(kinds), "panel", "value")
    means = long[(long.arm == experiment.method.name)].groupby("panel").value.mean()
    up, down = means["winner_moved"], means["loser_moved"]
    title = f"{experiment.method.name.upper()} moves winners by {up:+.2f} and losers by {down:+.2f} nats a round"
    labels = {**experiment.config.ARMS, **kinds}
    shown = curves(long, "round", title, "round", "mean log-ratio to the round's start (nats)", labels)
    shown.drawing.add_hline(y=0, line=ZERO)
    return shown


def judges_table(table: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Wins against the start after the last round, by the judge that was trained on and by one that was not."""
    names = {"win_against_start": "judge trained on", "outside_win_against_start": "outside judge"}
    rows: Any = table[(table["round"] == table["round"].max()) & table.arm.isin(arms)]
    present = [name for name in names if name in rows]
    return rows.groupby("arm", sort=False)[present].mean().round(3).rename(columns=names)


def best_rounds(table: pd.DataFrame, by: str = "quality") -> pd.DataFrame:
    """For each arm and seed the round that a choice on held-out prompts would return, and its number."""
    rows: Any = table[table["round"] > 0].reset_index(drop=True)
    best = rows.loc[rows.groupby(["arm", "seed"], sort=False)[by].idxmax()]
    return best.pivot(index="arm", columns="seed", values="round").reindex(rows.arm.unique())


def pairs(experiment: Any, arm: str, *, seed: int | None = None, round: int = 1) -> pd.DataFrame:
    """The pairs of one round with their log-ratios after it, those that came out the wrong way round first."""
    return pair_table(pd.read_parquet(_arm(experiment, arm, seed).child(f"round-{round}").folder / "moved.parquet"))


def _arm(experiment: Any, arm: str, seed: int | None) -> Run:
    return experiment.run.child(f"seed-{experiment.seeds[0] if seed is None else seed}").child(arm)


# ------------------------------------------------------------------------------------------------- who beats whom
def matchups(
    experiment: Any, arm: str, *, seed: int | None = None, others: Mapping[str, np.ndarray] | None = None
) -> Any:
    """P(row beats column) among the policies of an arm's rounds, and `others` given as tables."""
    arm_run = _arm(experiment, arm, seed)
    policies = {f"round {t}" if t else "start": stored_table(arm_run, t) for t in range(experiment.config.rounds + 1)}
    policies |= dict(others or {})
    win = experiment.task.win_rate
    rows = {a: {b: win(policies[a], policies[b]) for b in policies} for a in policies}
    return pd.DataFrame(rows).T


def cycles(wins: pd.DataFrame, margin: float = 0.0) -> list[tuple[str, str, str]]:
    """Triples: the first beats the second, the second the third and the third the first, by `margin` or more."""
    beats = wins.to_numpy() > 0.5 + margin
    names = [str(name) for name in wins.index]
    triples = [
        (i, j, k)
        for i, j, k in permutations(range(len(names)), 3)
        if i < min(j, k) and beats[i, j] and beats[j, k] and beats[k, i]
    ]
    return [(names[i], names[j], names[k]) for i, j, k in triples]


def matchup_figure(experiment: Any, arm: str, *, seed: int | None = None, margin: float = 0.02) -> Display | str:
    """The rounds' policies against each other (and the teacher, where there is one); the title counts the cycles."""
    if not isinstance(experiment.task, EnumeratedTask):
        return NOT_HERE.format("exact win rates between policies")
    gold = getattr(experiment.task, "gold", None)
    wins = matchups(experiment, arm, seed=seed, others={} if gold is None else {"teacher": gold})
    return wins_figure(wins, margin)


def wins_figure(wins: pd.DataFrame, margin: float = 0.0) -> Display:
    """A win-rate matrix as a heat map; the title counts the cycles, see `cycles`."""
    circles = cycles(wins, margin)
    first = f": {' > '.join((*circles[0], circles[0][0]))}, for example" if circles else ""
    title = f"{len(circles)} cycles of three{first}"
    names = [plain(str(name)) for name in wins.index]
    figure = blank(plain(title).replace("&gt;", ">"), "opponent", "policy", height=460)
    look: Any = {"zmin": 0.2, "zmax": 0.8, "colorscale": "RdBu", "texttemplate": "%{text}"}
    look["hovertemplate"] = "%{y} against %{x}: %{z:.3f}<extra></extra>"
    look["colorbar"] = {"title": {"text": f"row wins; cycles<br>by {margin:g} or more"}}
    figure.add_heatmap(z=wins.to_numpy(), x=names, y=names, text=wins.round(2).to_numpy(), **look)
    figure.update_yaxes(autorange="reversed")
    return Display(wins.reset_index(names="policy"), figure)
