"""What methods of self-play measure after each round.

A round's folder holds `pairs.parquet` (columns `prompt`, `chosen`, `rejected`, `chosen_ids`, `rejected_ids` and what
the method adds; chosen is the truth even where an arm trains on other labels), `before.json` (log-probs of each pair
under the reference, before training) and, in worlds where all responses can be listed, `policy.parquet` (the policy as
a table).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd

from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.stats import games
from workbench.training.drawn_pairs import pair_logps


def movement(policy: Policy, this_round: Run, **limits: int) -> dict[str, float]:
    """Where a round moved its chosen and its rejected responses: mean log-ratios on its pairs, nats."""
    pairs = pd.read_parquet(this_round.folder / "pairs.parquet")
    if pairs.empty:
        return {"winner_moved": math.nan, "loser_moved": math.nan, "n_pairs": 0}
    moved = pair_logps(policy, pairs, **limits) - np.array(read_json(this_round.folder / "before.json"))
    rewards = {"chosen_rewards": moved[:, 0], "rejected_rewards": moved[:, 1]}
    this_round.table("moved", lambda: pairs[["prompt", "chosen", "rejected"]].assign(**rewards))
    return {"winner_moved": float(moved[:, 0].mean()), "loser_moved": float(moved[:, 1].mean()), "n_pairs": len(pairs)}


def game_numbers(task: Any, policy: Policy, t: int, run: Run) -> dict[str, float]:
    """Exact numbers of an `EnumeratedTask` after round t: of this policy, and of the average of all rounds' policies.

    The average leaves out the start: it is the uniform mixture of what the rounds made.
    """

    def as_frame() -> pd.DataFrame:
        return pd.DataFrame(task.table(policy).astype(np.float32)).rename(columns=str)

    now = run.child(f"round-{t}").table("policy", as_frame).to_numpy(float)
    average = np.mean([stored_table(run, i) for i in range(1, t + 1)], axis=0) if t else now
    start, last = stored_table(run, 0), stored_table(run, max(t - 1, 0))
    return {
        **task.measure(now),
        **{f"average_{name}": value for name, value in task.measure(average).items()},
        "win_against_start": task.win_rate(now, start),
        "average_win_against_start": task.win_rate(average, start),
        "outside_win_against_start": task.win_rate(now, start, outside_judge=True),
        "win_against_last": task.win_rate(now, last),
        "kl_to_last": float(games.divergence(now, last).mean()),
    }


def stored_table(run: Run, t: int) -> np.ndarray:
    """The policy after round t of one arm, [prompt, response]."""
    return pd.read_parquet(run.child(f"round-{t}").folder / "policy.parquet").to_numpy(float)
