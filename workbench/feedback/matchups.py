"""Matchups: who meets whom, and the table of judgments as the matches that `ranking` takes.

What may live here: schedules of pairwise comparisons and the matchups table (columns `round`, `host`, `left`, `right`,
`outcome`, ...). What may not: prompts, models, rating systems.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

Schedule = Literal["random_opponents", "round_robin", "both_orders"]


def schedule(n: int, opponents: int, kind: Schedule, rng: np.random.Generator) -> pd.DataFrame:
    """Who meets whom, in random order: columns `round`, `host`, `left`, `right` (player numbers).

    Args:
        n: players, at least 2.
        opponents: of each host; reduced to n - 1 with a warning where there are not so many.
        kind: "random_opponents" draws distinct opponents for every host; "round_robin" lets every pair meet once
            (`opponents` is not looked at); both toss a fair coin for the sides. "both_orders" asks every drawn pair
            twice with the sides swapped, for twice the calls.
        rng: of opponents, sides and order.

    Notes:
        A pair can be drawn twice, once by each host: both are kept. `round` numbers a host's draws, so the rows with
        round < m are the schedule with m opponents.
    """
    if kind == "round_robin":
        meetings = [(d - 1, i, (i + d) % n) for d in range(1, n // 2 + 1) for i in range(n // 2 if 2 * d == n else n)]
        rounds, host, other = np.array(meetings).T
    else:
        if opponents > n - 1:
            warnings.warn(f"{n} players have {n - 1} opponents each: opponents={opponents} was reduced", stacklevel=2)
            opponents = n - 1
        drawn = rng.random((n, n - 1)).argsort(axis=1)[:, :opponents]
        other = (drawn + (drawn >= np.arange(n)[:, None])).ravel()  # nobody meets itself
        host, rounds = np.repeat(np.arange(n), opponents), np.tile(np.arange(opponents), n)
    left = rng.random(len(host)) < 0.5
    pairs = pd.DataFrame(
        {"round": rounds, "host": host, "left": np.where(left, host, other), "right": np.where(left, other, host)}
    )
    if kind == "both_orders":
        pairs = pd.concat([pairs, pairs.assign(left=pairs["right"], right=pairs["left"])])
    return pairs.iloc[rng.permutation(len(pairs))].reset_index(drop=True)


def to_matches(matchups: pd.DataFrame, names: Sequence[str]) -> np.ndarray:
    """The matchups as [matches, 3] (left, right, outcome for left), players numbered in the order of `names`.

    Raises:
        ValueError: a name that is not in `names`; row and column are named. `ranking` finds the other faults.
    """
    place = {name: number for number, name in enumerate(names)}
    columns = {side: matchups[side].tolist() for side in ("left", "right")}
    for side, players in columns.items():
        for row, player in enumerate(players):
            if player not in place:
                raise ValueError(f"matchups row {row}, column {side!r}: {player!r} is none of the {len(place)} players")
    left, right = ([place[player] for player in players] for players in columns.values())
    return np.column_stack([left, right, matchups["outcome"]]).astype(float)


def count_unread(matchups: Any, model: str, most: float, folder: Path) -> int:
    """Judgments that could not be read; a ValueError if their share is above `most`."""
    unread = int((matchups["parse_status"] == "unparsed").sum())
    if unread > most * len(matchups):
        raise ValueError(
            f"{unread} of {len(matchups)} judgments of {model} could not be read, more than max_unparsed = {most:g}"
            f" allows; see raw_text in {folder / 'matchups.parquet'}"
        )
    return unread
