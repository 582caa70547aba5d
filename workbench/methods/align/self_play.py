"""What methods of self-play measure after each round, and how a round's pairs become rows.

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

from workbench.data import prompt_of
from workbench.models import Policy
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.stats import games
from workbench.training.pair_rows import pair_logps


def movement(policy: Policy, part: Run, **limits: int) -> dict[str, float]:
    """Where a round moved its chosen and its rejected responses: mean log-ratios on its pairs, nats."""
    pairs = pd.read_parquet(part.folder / "pairs.parquet")
    if pairs.empty:
        return {"winner_moved": math.nan, "loser_moved": math.nan, "n_pairs": 0}
    moved = pair_logps(policy, pairs, **limits) - np.array(read_json(part.folder / "before.json"))
    rewards = {"chosen_rewards": moved[:, 0], "rejected_rewards": moved[:, 1]}
    part.table("moved", lambda: pairs[["prompt", "chosen", "rejected"]].assign(**rewards))
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


def with_replay(pairs: pd.DataFrame, run: Run, t: int, *, seed: int, share: float) -> pd.DataFrame:
    """New pairs and, as at most `share` of all, a draw of those of the round before, half as many of the one before
    that, ..."""
    shares = [share / 2**i for i in range(t)]
    total = len(pairs) / (1 - sum(shares))
    tables = [pairs]
    for back, part in enumerate(shares, start=1):
        old = pd.read_parquet(run.child(f"round-{t + 1 - back}").folder / "pairs.parquet")
        taken = np.random.default_rng([seed, t, 7, back]).permutation(len(old))[: int(part * total)]
        tables.append(old.iloc[np.sort(taken)])
    return pd.concat(tables, ignore_index=True)


def sign_accuracy(task: Any, pairs: pd.DataFrame, table: np.ndarray) -> float:
    """Share of pairs whose chosen response truly wins more often against the policy than the rejected one; ties count
    half."""
    prompts = [prompt_of(prompt) for prompt in pairs.prompt]
    chosen, rejected = (task.win_rates(table, prompts, pairs[side].tolist()) for side in ("chosen", "rejected"))
    tied = np.isclose(chosen, rejected, atol=1e-6)
    return float(np.where(tied, 0.5, chosen > rejected).mean())
