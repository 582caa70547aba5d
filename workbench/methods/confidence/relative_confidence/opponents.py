"""Opponents: who is compared with whom. The paper draws them at random.

Active matchups are an extension of ours: the next opponents are those whose judgment is expected to tell most about the
strengths. Under the Bradley-Terry posterior (Laplace: theta ~ N(theta_hat, H^-1), H the Hessian of the penalised loss)
the outcome of a match between i and j, with d = theta_i - theta_j ~ N(m, v), tells

    I(i, j) = h(E[sigma(d)]) - E[h(sigma(d))]        h(p): entropy of a coin with probability p, in nats

about the strengths (Houlsby et al. 2011, arXiv 1112.5745, equation 2). A batch is a set of disjoint pairs, the most
telling first, so that its judgments can be asked side by side and none repeats what another tells.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import entr, expit

from workbench import ranking

DENSE = 2_000  # players up to which the posterior's covariance is computed whole; above, its diagonal stands in
ALL_PAIRS = 400  # players up to which every pair is looked at; above, so many drawn opponents of each
CANDIDATES = 60
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(41)  # exact to 1e-4 nats up to a variance of 16
WEIGHTS = WEIGHTS / WEIGHTS.sum()


Kind = Literal["random_opponents", "round_robin", "both_orders", "active"]
Judge = Callable[[pd.DataFrame], pd.DataFrame]  # pairs of `schedule` -> matchups


def ask_matchups(
    n: int, opponents: int, kind: Kind, judge: Judge, rng: np.random.Generator, *, l2: float
) -> pd.DataFrame:
    """The judgments of `n` players with so many opponents each, chosen as `kind` says: see `schedule`, `next_pairs`."""
    if kind == "active":
        return ask_actively(n, n * min(opponents, n - 1), judge, rng, l2=l2)
    return judge(schedule(n, opponents, kind, rng))


def schedule(n: int, opponents: int, kind: Kind, rng: np.random.Generator) -> pd.DataFrame:
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


def ask_actively(n: int, total: int, judge: Judge, rng: np.random.Generator, *, l2: float) -> pd.DataFrame:
    """Up to `total` judgments, batch by batch, each batch chosen by what the judgments before it left open."""
    judged, matches = [], np.empty((0, 3))
    while len(matches) < total:
        pairs = next_pairs(matches, n, rng, l2=l2)[: total - len(matches)]
        if not len(pairs):
            break  # every pair was judged
        numbers = len(matches) + np.arange(len(pairs))
        hosts, others = pairs.T
        table = judge(pd.DataFrame({"round": numbers // n, "host": hosts, "left": hosts, "right": others}))
        judged.append(table.assign(match_id=[f"a{number}" for number in numbers]))
        matches = np.vstack([matches, np.column_stack([pairs, table["outcome"]])])
    return pd.concat(judged, ignore_index=True)


def next_pairs(matches: np.ndarray, n: int, rng: np.random.Generator, *, l2: float = 0.01) -> np.ndarray:
    """The next batch: up to n // 2 disjoint pairs [batch, 2], the most telling first, the side of each by a fair coin.

    No pair is judged twice, since at temperature 0 a model would say the same again: when all were judged, the batch is
    empty.

    Args:
        matches: [judged, 3] left, right, outcome for left; empty at the start, where every pair tells the same.
        n: players, at least 2.
        l2: penalty of the Bradley-Terry fit, as in the ranking that follows; above 0.

    Raises:
        ValueError: bad matches; fewer than 2 players; l2 = 0, which leaves no posterior.
    """
    if l2 <= 0:
        raise ValueError(f"active matchups need a posterior, so l2 > 0; got l2={l2}")
    if not len(matches):
        order = rng.permutation(n)
        return order[: 2 * (n // 2)].reshape(-1, 2)
    i, j = _candidates(n, rng)
    low, high = np.minimum(i, j), np.maximum(i, j)
    judged = np.sort(matches[:, :2], 1) @ [n, 1]
    i, j = (side[~np.isin(low * n + high, judged)] for side in (i, j))
    mean, variance = _posterior(matches, n, l2, i, j)
    gain = information(mean, variance) + 1e-12 * rng.random(len(i))  # ties by lot
    return _disjoint(np.stack([i, j], 1)[np.argsort(-gain)], n, rng)


def information(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """I(i, j) in nats for d ~ N(mean, variance), by Gauss-Hermite quadrature."""
    p = expit(mean[..., None] + np.sqrt(variance)[..., None] * NODES)
    return _entropy(p @ WEIGHTS) - _entropy(p) @ WEIGHTS


def _entropy(p: np.ndarray) -> np.ndarray:
    return entr(p) + entr(1 - p)


def _candidates(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if n <= ALL_PAIRS:
        return np.triu_indices(n, 1)
    i = np.repeat(np.arange(n), CANDIDATES)
    j = (i + rng.integers(1, n, size=len(i))) % n
    return i, j


def _posterior(matches: np.ndarray, n: int, l2: float, i: np.ndarray, j: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of theta_i - theta_j for the candidate pairs."""
    with warnings.catch_warnings():  # early on the match graph falls apart; the prior holds it together
        warnings.filterwarnings("ignore", message="the match graph has")
        theta = ranking.bradley_terry(matches, n, l2=l2, intervals="none").scores
    left, right = matches[:, 0].astype(int), matches[:, 1].astype(int)
    p = expit(theta[left] - theta[right])
    weight = p * (1 - p)
    diagonal = np.bincount(left, weight, n) + np.bincount(right, weight, n) + 2 * l2
    if n > DENSE:
        return theta[i] - theta[j], 1 / diagonal[i] + 1 / diagonal[j]
    between = np.bincount(left * n + right, weight, n * n).reshape(n, n)
    covariance = np.linalg.inv(np.diag(diagonal) - between - between.T)
    variance = covariance[i, i] + covariance[j, j] - 2 * covariance[i, j]
    return theta[i] - theta[j], np.maximum(variance, 0)


def _disjoint(pairs: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """The first pairs that share no player; sides by a fair coin."""
    free, taken = np.ones(n, dtype=bool), []
    for a, b in pairs.tolist():
        if free[a] and free[b]:
            free[a] = free[b] = False
            taken.append((a, b))
            if len(taken) == n // 2:
                break
    batch = np.array(taken, dtype=int).reshape(-1, 2)
    swap = rng.random(len(batch)) < 0.5
    return np.where(swap[:, None], batch[:, ::-1], batch)


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
