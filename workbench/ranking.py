"""Rating systems: what strengths, and how surely, do many comparisons imply?

A match is a row (left, right, outcome for left), outcome 1, 0 or 0.5 for a tie; players are 0 ... n_players - 1.
Sources: Shrivastava, Kumar and Liang, arXiv 2502.01126, and what it builds on: Bradley and Terry 1952, Rao and
Kupper 1967, Davidson 1970, Elo 1978, Herbrich, Minka and Graepel 2006 (TrueSkill).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import coo_array
from scipy.special import erfcx, expit, ndtr, ndtri

from workbench.stats.bootstrap import middle
from workbench.stats.bradley_terry import Cells, Ties, check_exists, check_options, fit, sandwich

if TYPE_CHECKING:
    import pandas as pd
    from jaxtyping import Float, Int


@dataclass(frozen=True, eq=False)
class Ratings:
    """Strengths of all players on the method's natural scale; higher is stronger.

    Attributes:
        method: "bradley_terry", "elo", "trueskill" or "win_rate".
        scores: [players]. Bradley-Terry: log-strengths, mean 0, nats. Elo: points. TrueSkill: mu. Win rate: share.
        lower, upper: [players], ends of the interval that `interval` names; NaN when none was asked for, and for a
            player without matches (TrueSkill: the initial belief).
        n_matches: [players], matches played; 0 means that the score is only the prior.
        interval: how the interval was made, in words.
        sigma: [players], TrueSkill's standard deviations; None elsewhere.
        position: advantage of the left side in nats (`position=True`); None when not fitted.
        tie: eta (Rao-Kupper) or log nu (Davidson); None when ties count as half a win.
        details: settings that `display` needs, and how the fit ended.
    """

    method: str
    scores: Float[np.ndarray, " players"]
    lower: Float[np.ndarray, " players"]
    upper: Float[np.ndarray, " players"]
    n_matches: Int[np.ndarray, " players"]
    interval: str = "none"
    sigma: Float[np.ndarray, " players"] | None = None
    position: float | None = None
    tie: float | None = None
    details: Mapping[str, float] = field(default_factory=dict)

    def order(self) -> Int[np.ndarray, " players"]:
        """Players from strongest to weakest; equal to nine digits keeps the lower number first, NaN comes last."""
        return np.argsort(-np.round(self.scores, 9), kind="stable")

    @property
    def rank(self) -> Int[np.ndarray, " players"]:
        """Rank of each player, 1 is strongest; players equal to nine digits share the better rank."""
        descending = -np.round(self.scores, 9)
        return 1 + np.searchsorted(np.sort(descending), descending, side="left")

    def display(self) -> Float[np.ndarray, " players"]:
        """Scores squeezed into [0, 1] for a figure: NOT calibrated probabilities of anything.

        Bradley-Terry: chance against an average player. Elo: against the initial rating. TrueSkill: against a player
        known to stand at the initial mu. Source: arXiv 2502.01126, step 8.
        """
        if self.method == "bradley_terry":
            return expit(self.scores - self.scores.mean())
        if self.method == "elo":
            points = self.scores - self.details["initial"]
            return expit(points * math.log(self.details["base"]) / self.details["scale"])
        if self.sigma is not None:
            return ndtr((self.scores - self.details["mu"]) / np.hypot(self.sigma, self.details["beta"]))
        return self.scores

    def frame(self, names: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per player, strongest first.

        Args:
            names: one name per player; numbers when None.

        Raises:
            ValueError: when the number of names is not the number of players.
        """
        import pandas as pd

        if names is not None and len(names) != len(self.scores):
            raise ValueError(f"names needs one entry per player, {len(self.scores)}; got {len(names)}")
        players = np.arange(len(self.scores)) if names is None else list(names)
        columns: dict[str, Any] = {"player": players, "method": self.method, "score": self.scores, "rank": self.rank}
        columns |= {name: getattr(self, name) for name in ("lower", "upper", "n_matches")}
        columns |= {"display": self.display()} | ({} if self.sigma is None else {"sigma": self.sigma})
        return pd.DataFrame(columns).iloc[self.order()].reset_index(drop=True)


class Matches(NamedTuple):
    """Checked columns of a match table."""

    left: Int[np.ndarray, " matches"]
    right: Int[np.ndarray, " matches"]
    outcome: Float[np.ndarray, " matches"]


def validate_matches(matches: ArrayLike, n_players: int) -> Matches:
    """Columns of a match table, or an error that names the first bad row.

    Args:
        matches: [n, 3]: left player, right player, outcome for left in {0, 0.5, 1}.
        n_players: players are 0 ... n_players - 1; at least 2.

    Raises:
        ValueError: too few players, wrong shape, no matches, unknown player, self match, outcome not allowed.
    """
    if n_players < 2:
        raise ValueError(f"a ranking needs at least 2 players; got n_players={n_players}")
    table = np.asarray(matches, dtype=np.float64)
    if table.size == 0:
        raise ValueError("no matches: a ranking needs at least one row (left, right, outcome)")
    if table.ndim != 2 or table.shape[1] != 3:
        raise ValueError(f"matches must have shape [n, 3] (left, right, outcome); got {list(table.shape)}")
    left, right, outcome = table.T
    for side, players in (("left", left), ("right", right)):
        known = (players >= 0) & (players < n_players) & (players == np.floor(players))
        _refuse(~known, players, f"unknown player on the {side} side; players are whole numbers 0 to {n_players - 1}")
    _refuse(left == right, left, "self match; left and right must be two different players")
    _refuse(~np.isin(outcome, (0.0, 0.5, 1.0)), outcome, "outcome must be 0, 0.5 or 1 (1: left wins, 0.5: tie)")
    return Matches(left.astype(np.intp), right.astype(np.intp), np.ascontiguousarray(outcome))


def _refuse(bad: np.ndarray, values: np.ndarray, what: str) -> None:
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"matches row {row}: {what}; got {values[row]:g} ({int(bad.sum())} such rows)")


def _played(left: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    return np.bincount(left, minlength=n) + np.bincount(right, minlength=n)


def bradley_terry(
    matches: ArrayLike,
    n_players: int,
    *,
    l2: float = 0.01,
    position: bool = False,
    ties: Ties = "half",
    intervals: Literal["sandwich", "bootstrap", "none"] = "sandwich",
    clusters: ArrayLike | None = None,
    confidence: float = 0.95,
    rounds: int = 200,
    max_iter: int = 100,
    seed: int = 0,
) -> Ratings:
    """Log-strengths theta with P(left wins) = sigma(theta_left - theta_right + position).

    Minimises the sum of the matches' negative log-likelihoods + l2 sum_i theta_i^2 (no factor 1/2) by damped Newton,
    from 0 until no entry of the gradient exceeds 1e-8.

    Args:
        matches: [n, 3], see `validate_matches`.
        l2: penalty, per squared nat; 0 is maximum likelihood, where it exists.
        position: also fit an unpenalised advantage of the left side.
        ties: "half" counts a tie as half a win; "rao_kupper" and "davidson" give it a probability of its own.
        intervals: "sandwich" (normal, robust; cubic in players), "bootstrap" over matches (percentiles) or "none".
        clusters: [n] labels of matches that stand or fall together (one question, one user); intervals then take
            clusters, not matches, as independent.
        rounds, seed: of the bootstrap.
        max_iter: most Newton steps; a fit stopped by it warns (arXiv 2502.01126 stops after 5).

    Returns:
        `Ratings`; scores have mean 0, with l2 > 0 in every component of the match graph.

    Raises:
        ValueError: bad matches or options; l2 = 0 where the maximum likelihood estimate does not exist.

    Notes:
        Intervals say how far the estimate would move with other matches. They leave out the pull of l2, so they are
        too short for a player who has won or lost everything.
    """
    left, right, outcome = validate_matches(matches, n_players)
    check_options(ties, intervals, l2, confidence, position)
    n_matches, units = _played(left, right, n_players), len(left)
    if not position:  # without sides (i, j, y) and (j, i, 1 - y) are the same match
        swap = left > right
        left, right = np.minimum(left, right), np.maximum(left, right)
        outcome = np.where(swap, 1 - outcome, outcome)
    key = (left * n_players + right) * 3 + (2 * outcome).astype(np.intp)
    cell_of = member = None
    if clusters is None and intervals != "bootstrap":
        key, count = np.unique(key, return_counts=True)
    else:
        key, cell_of, count = np.unique(key, return_inverse=True, return_counts=True)
        labels = np.arange(units) if clusters is None else np.asarray(clusters)
        if labels.shape != (units,):
            raise ValueError(f"clusters must have one label per match, shape [{units}]; got {list(labels.shape)}")
        member = np.unique(labels, return_inverse=True)[1]
        units = int(member.max()) + 1
    pair = key // 3
    cells = Cells(pair // n_players, pair % n_players, key % 3 / 2, count.astype(float), n_players, position)
    check_exists(cells, ties, l2)

    start, share = np.zeros(n_players + position), float(cells.count @ (cells.outcome == 0.5)) / len(left)
    if ties != "half":  # the tie parameter that fits equal strengths
        odds = 2 * share / (1 - share)
        start = np.append(start, math.log(odds if ties == "davidson" else 1 + odds))
    result = fit(cells, ties, l2, max_iter, start)
    if result.gradient > result.tolerance:
        at = f"with a gradient of {result.gradient:.1e} (converged is {result.tolerance:.0e})"
        told = f"Bradley-Terry stopped after {result.iterations} Newton steps {at}; raise max_iter={max_iter}"
        warnings.warn(told, stacklevel=2)
    scores = result.x[:n_players] - result.x[:n_players].mean()
    lower = upper = np.full(n_players, np.nan)
    if intervals == "sandwich":
        half = ndtri((1 + confidence) / 2) * np.sqrt(sandwich(cells, result.local, l2, len(result.x), cell_of, member))
        lower, upper = scores - half, scores + half
    elif cell_of is not None and member is not None and intervals == "bootstrap":
        rng, thetas = np.random.default_rng(seed), np.empty((rounds, n_players))
        for row in thetas:
            drawn = np.bincount(rng.integers(units, size=units), minlength=units)
            again = cells._replace(count=np.bincount(cell_of, drawn[member], len(key)))
            row[:] = fit(again, ties, l2, max_iter, result.x).x[:n_players]
        lower, upper = middle(thetas, confidence)
    # nothing was seen; the penalty alone would say "certainly 0"
    lower[n_matches == 0] = upper[n_matches == 0] = np.nan
    how = f"{100 * confidence:g} % {intervals}, {units} {'matches' if clusters is None else 'clusters'}"
    details = {"objective": result.objective, "gradient": result.gradient, "iterations": result.iterations, "l2": l2}
    advantage, tie = float(result.x[n_players]) if position else None, None if ties == "half" else float(result.x[-1])
    of = ("bradley_terry", scores, lower, upper, n_matches, "none" if intervals == "none" else how)
    return Ratings(*of, position=advantage, tie=tie, details=details)


def elo(
    matches: ArrayLike,
    n_players: int,
    *,
    k: float = 32,
    scale: float = 400,
    base: float = 10,
    initial: float = 1000,
    passes: int = 1,
    intervals: Literal["bootstrap", "none"] = "bootstrap",
    confidence: float = 0.95,
    rounds: int = 100,
    seed: int = 0,
) -> Ratings:
    """Elo points after `passes` sweeps over the matches in their order: r_left += k (y - E), r_right -= k (y - E).

    E = 1 / (1 + base^((r_right - r_left) / scale)), both from the ratings before the match.

    Args:
        matches: [n, 3], see `validate_matches`; the order matters, so shuffle unless it is a history.
        k: size of an update, points.
        scale: points for odds of `base` to 1.
        initial: points at the start, and of a player without matches.
        intervals: "bootstrap" (percentiles over matches drawn with replacement, in random order) or "none".
        rounds, seed: of the bootstrap.

    Notes:
        The interval holds both sampling and order; a score from an unusual order can lie outside of it.
    """
    left, right, outcome = validate_matches(matches, n_players)
    if not (k > 0 and scale > 0 and base > 1 and passes >= 1):
        raise ValueError(f"elo needs k > 0, scale > 0, base > 1, passes >= 1; got {k=}, {scale=}, {base=}, {passes=}")
    if intervals not in ("bootstrap", "none"):
        raise ValueError(f"intervals must be 'bootstrap' or 'none'; got {intervals!r}")
    slope, points = math.log(base) / scale, [float(initial)] * n_players
    for i, j, y in list(zip(left.tolist(), right.tolist(), outcome.tolist(), strict=True)) * passes:
        gap = min((points[j] - points[i]) * slope, 700.0)  # exp stays finite
        change = k * (y - 1 / (1 + math.exp(gap)))
        points[i] += change
        points[j] -= change
    lower = upper = np.full(n_players, np.nan)
    if intervals == "bootstrap":
        drawn, offset = np.full(rounds * n_players, float(initial)), np.arange(rounds) * n_players
        for _ in range(passes):
            rng = np.random.default_rng(seed)  # every pass sees the same matches
            for begin in range(0, len(left), 4096):  # blocks bound the memory
                rows = rng.integers(len(left), size=(min(4096, len(left) - begin), rounds))
                for i, j, y in zip(left[rows] + offset, right[rows] + offset, outcome[rows], strict=True):
                    change = k * (y - expit((drawn[i] - drawn[j]) * slope))
                    drawn[i] += change
                    drawn[j] -= change
        lower, upper = middle(drawn.reshape(rounds, n_players), confidence)
    n_matches = _played(left, right, n_players)
    lower[n_matches == 0] = upper[n_matches == 0] = np.nan
    how = f"{100 * confidence:g} % bootstrap over matches and order, {rounds} rounds"
    details = {"k": k, "scale": scale, "base": base, "initial": initial, "passes": passes}
    of = ("elo", np.array(points), lower, upper, n_matches)
    return Ratings(*of, "none" if intervals == "none" else how, details=details)


def trueskill(
    matches: ArrayLike,
    n_players: int,
    *,
    mu: float = 25,
    sigma: float = 25 / 3,
    beta: float = 25 / 6,
    tau: float = 25 / 300,
    draw_probability: float = 0.0,
    confidence: float = 0.95,
) -> Ratings:
    """TrueSkill, one against one: Gaussian beliefs (mu, sigma) about skills, updated match by match in their order.

    Args:
        matches: [n, 3], see `validate_matches`; the order matters.
        mu, sigma: belief about a player without matches.
        beta: standard deviation of one performance around the skill.
        tau: drift of a skill before each match, standard deviation.
        draw_probability: chance of a tie between equals; it sets the margin within which performances tie. At 0 a
            tie means exactly equal performances, the limit of a shrinking margin.

    Notes:
        The interval is the filter's own belief, mu -+ z sigma: right only if its model is.

    Source: Herbrich, Minka and Graepel 2006.
    """
    left, right, outcome = validate_matches(matches, n_players)
    if not (sigma > 0 and beta > 0 and tau >= 0 and 0 <= draw_probability < 1):
        needed = "sigma > 0, beta > 0, tau >= 0 and draw_probability in [0, 1)"
        raise ValueError(f"trueskill needs {needed}; got {sigma=}, {beta=}, {tau=}, {draw_probability=}")
    margin = float(ndtri((draw_probability + 1) / 2)) * math.sqrt(2) * beta
    means, variances = [float(mu)] * n_players, [float(sigma) ** 2] * n_players
    for i, j, y in zip(left.tolist(), right.tolist(), outcome.tolist(), strict=True):
        if y == 0:
            i, j = j, i
        (means[i], variances[i]), (means[j], variances[j]) = _trueskill_update(
            means[i], variances[i] + tau**2, means[j], variances[j] + tau**2, beta, margin, y == 0.5
        )
    scores, spread = np.array(means), np.sqrt(variances)
    half = float(ndtri((1 + confidence) / 2)) * spread
    details = {"mu": mu, "sigma": sigma, "beta": beta, "tau": tau, "draw_probability": draw_probability}
    of = ("trueskill", scores, scores - half, scores + half, _played(left, right, n_players))
    return Ratings(*of, f"{100 * confidence:g} % of the filter's belief", sigma=spread, details=details)


def _trueskill_update(
    mean_i: float, var_i: float, mean_j: float, var_j: float, beta: float, margin: float, tie: bool
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Beliefs after i beat j or tied with j: v shifts the means, w shrinks the variances."""
    c2 = 2 * beta**2 + var_i + var_j
    c = math.sqrt(c2)
    t, e = (mean_i - mean_j) / c, margin / c
    if not tie:  # performance gap above e; erfcx keeps phi / Phi exact far in the tail
        v = math.sqrt(2 / math.pi) / float(erfcx((e - t) / math.sqrt(2)))
        w = v * (v + t - e)
    elif e < 1e-6:
        v, w = -t, 1.0
    else:  # gap within -e ... e, worked at |t| with the factor phi(e - |t|) taken out
        high, low, ratio = e - abs(t), -e - abs(t), math.exp(-2 * e * abs(t))
        mass = float(erfcx(-high / math.sqrt(2))) - ratio * float(erfcx(-low / math.sqrt(2)))
        v = math.sqrt(2 / math.pi) * (ratio - 1) / mass
        w = v * v + math.sqrt(2 / math.pi) * (high - low * ratio) / mass
        v = math.copysign(1, t) * v
    shift_i, shift_j = var_i / c * v, var_j / c * v
    return (mean_i + shift_i, var_i * (1 - var_i / c2 * w)), (mean_j - shift_j, var_j * (1 - var_j / c2 * w))


def win_rate_ranking(matches: ArrayLike, n_players: int, *, confidence: float = 0.95) -> Ratings:
    """Share of matches won, a tie being half a win, with Wilson intervals; NaN for a player without matches.

    Who met whom is ignored: the trivial aggregator that the others must beat.
    """
    left, right, outcome = validate_matches(matches, n_players)
    games = _played(left, right, n_players)
    wins = np.bincount(left, outcome, n_players) + np.bincount(right, 1 - outcome, n_players)
    n, z = np.where(games > 0, games, np.nan), float(ndtri((1 + confidence) / 2))
    rate = wins / n
    centre, half = rate + z**2 / (2 * n), z * np.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2))
    lower, upper = (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)
    return Ratings("win_rate", rate, lower, upper, games, f"{100 * confidence:g} % Wilson")


def transitivity(matches: ArrayLike, n_players: int) -> float:
    """Share of triples without a cycle, among all triples whose three pairs each have a majority; NaN if none has.

    Counted exactly: cycles are the trace of A^3 / 3, triples that of (A + A')^3 / 6, with A the majority relation.
    """
    left, right, outcome = validate_matches(matches, n_players)
    net = coo_array((2 * outcome - 1, (left, right)), shape=(n_players, n_players)).tocsr()
    beats = (net - net.T > 0).astype(np.int64)
    met = beats + beats.T
    triples = (met @ met).multiply(met).sum() / 6
    return float(1 - (beats @ beats).multiply(beats.T).sum() / 3 / triples) if triples else math.nan
