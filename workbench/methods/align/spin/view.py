"""Self-play: curves over rounds, human beside self-written answers, and where the exact minimiser of a round lies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.figures import Display, Note, blank, lines_over_rounds, reward_histogram
from workbench.methods.align.spin.experiment import ARMS
from workbench.methods.views import seed_folder

AXES = {
    "quality": "quality (higher is better)",
    "defect_rate": "defects (share of symbols)",
    "kl_nats": "KL(p_data || p_theta), nats a response",
    "token_nll": "held-out negative log-likelihood, nats a token",
    "reward_accuracy": "human answer has the higher reward (share)",
    "held_out_loss": "loss on held-out pairs (nats)",
}


def rounds_figure(table: pd.DataFrame, what: str = "quality", start: str = "sft") -> Display | Note:
    """One line an arm over the rounds, with a 95 % interval over seeds; the title states the finding.

    Args:
        what: a column of the table; a line of text says so where the task does not measure it.
        start: "sft" or "converged", which arms to show; a line of text says so where the run has none of them.
    """
    if what not in table:
        return Note(f"This task does not measure {what}; it measures {', '.join(table.columns[3:])}.")
    chosen = [name for name, arm in ARMS.items() if arm.start == start]
    rows: Any = table[table.arm.isin(chosen) & table[what].notna()]
    if rows.empty:
        return Note(f"This run has no arm that starts at {start!r}; add some by overrides={{'arms': {chosen}}}.")
    means: Any = rows[rows.arm == chosen[0]].groupby("round")[what].mean()
    points = list(means.items())  # a single one after one round of pairs
    (first, before), (last, after) = points[0], points[-1]
    where = "" if start == "sft" else ", from a start that more SFT cannot improve"
    title = f"SPIN: {AXES[what].split(' (')[0]} {before:.3f} after {first} rounds, {after:.3f} after {last}{where}"
    rows = rows.assign(arm=rows.arm.str.removesuffix("_converged"))
    titles: Any = {"title": title, "x_title": "rounds finished", "y_title": AXES[what], "labels": ARMS}
    return lines_over_rounds(rows, x="round", y=what, **titles)


def rewards_figure(experiment: Any, *, seed: int | None = None) -> Display:
    """How far the rewards of human and self-written answers lie apart after the first and the last round."""
    arm = seed_folder(experiment, seed) / "spin"
    last = experiment.config.rounds
    tables = {t: pd.read_parquet(arm / f"round-{t}" / "held_out_rewards.parquet") for t in (1, last)}
    shown = {f"after round {t - 1}": table for t, table in tables.items()}
    return reward_histogram(shown, "Held-out pairs: right of 0 the human answer has the higher reward")


def next_policy(p_policy: np.ndarray, p_data: np.ndarray, beta: float) -> np.ndarray:
    """The exact minimiser of a round with the logistic loss: p_policy (p_data / p_policy)^(1 / beta), normalised.

    Args:
        p_policy, p_data: probabilities of the same responses, [response]; p_policy above 0.
        beta: the paper's lambda. 1 jumps to p_data, less overshoots, more takes a part of the way.

    Source: Chen et al. 2024, Theorem 5.4.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(p_policy) + (np.log(p_data) - np.log(p_policy)) / beta
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def overshoot_figure(p_policy: np.ndarray, p_data: np.ndarray, names: list[str], start: float = 0.5) -> Display:
    """A slider over lambda that moves one exact SPIN round, beside the policy it starts from and the data it aims at.

    A native slider of the figure: it works in JupyterLab and in a page with no kernel behind it.
    """
    betas = [0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0]
    after = {beta: next_policy(p_policy, p_data, beta) for beta in betas}
    rows = {"symbol": names, "policy": p_policy, "data": p_data, **{f"lambda {beta:g}": p for beta, p in after.items()}}
    title = "One exact round of SPIN: a small lambda overshoots the data"
    figure = blank(title, "next symbol", "probability", barmode="group")
    figure.add_bar(x=names, y=p_policy, name="policy before", marker_color="#B0B0B0")
    figure.add_bar(x=names, y=p_data, name="data", marker_color=ARMS["sft"].colour)
    figure.add_bar(x=names, y=after[start], name="policy after", marker_color=ARMS["spin"].colour)
    steps = [
        {"label": f"{beta:g}", "method": "restyle", "args": [{"y": [p.tolist()]}, [2]]} for beta, p in after.items()
    ]
    slider = {"active": betas.index(start), "currentvalue": {"prefix": "lambda = "}, "pad": {"t": 45}, "steps": steps}
    figure.update_layout(sliders=[slider], height=480, yaxis_range=[0, 1], legend={"orientation": "h", "y": 1.08})
    return Display(pd.DataFrame(rows), figure)
