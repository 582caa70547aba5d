"""The inside of `ranking.bradley_terry`: likelihoods with and without ties, Newton's method, the sandwich.

Sources: Bradley and Terry 1952; Rao and Kupper 1967; Davidson 1970; Ford 1957 (when an estimate exists); Huber 1967
and White 1982 (sandwich); Liang and Zeger 1986 (clusters).
"""

from __future__ import annotations

import math
import warnings
from typing import Literal, NamedTuple

import numpy as np
from scipy.linalg import cho_factor, cho_solve, get_lapack_funcs
from scipy.sparse import coo_array
from scipy.sparse.csgraph import NegativeCycleError, bellman_ford, connected_components
from scipy.sparse.linalg import LinearOperator, cg

Ties = Literal["half", "rao_kupper", "davidson"]

DENSE_NEWTON = 200  # players up to which a Cholesky solve beats conjugate gradients
DENSE_SANDWICH = 12_000  # players up to which the exact sandwich fits in memory (three n x n arrays, 3.5 GB)
TOLERANCE = 1e-8  # infinity norm of the gradient at which a fit counts as converged


class Cells(NamedTuple):
    """Distinct matches with their counts; the design's rows are e_lo - e_hi, and 1 for the side's intercept."""

    lo: np.ndarray
    hi: np.ndarray
    outcome: np.ndarray
    count: np.ndarray
    n: int
    position: bool

    def margins(self, x: np.ndarray) -> np.ndarray:
        return x[self.lo] - x[self.hi] + (x[self.n] if self.position else 0.0)

    def back(self, v: np.ndarray) -> np.ndarray:
        """Design' v."""
        players = np.bincount(self.lo, v, self.n) - np.bincount(self.hi, v, self.n)
        return np.append(players, v.sum()) if self.position else players

    def gram(self, dd: np.ndarray, dt: np.ndarray, tt: np.ndarray, size: int) -> np.ndarray:
        """Dense sum over matches of [[dd row row', dt row], [dt row', tt]]; the last line only for a tie parameter."""
        n, q, dd = self.n, self.n + self.position, self.count * dd
        out = np.zeros((size, size))
        pairs = np.bincount(self.lo * n + self.hi, dd, n * n).reshape(n, n)
        out[:n, :n] -= pairs + pairs.T
        out[np.arange(n), np.arange(n)] = pairs.sum(0) + pairs.sum(1)
        if q > n:
            out[n, :q] = out[:q, n] = self.back(dd)
        if size > q:
            out[q, :q] = out[:q, q] = self.back(self.count * dt)
            out[q, q] = self.count @ tt
        return out


class Local(NamedTuple):
    """Per cell: loss, its gradient in the margin d and the tie parameter t, its second derivatives."""

    loss: np.ndarray
    d: np.ndarray
    t: np.ndarray
    dd: np.ndarray
    dt: np.ndarray
    tt: np.ndarray


def _softplus(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """log(1 + e^z) with first and second derivative, stable for any z."""
    e = np.exp(-np.abs(z))
    return np.maximum(z, 0) + np.log1p(e), np.where(z >= 0, 1.0, e) / (1 + e), e / (1 + e) ** 2


def likelihood(ties: Ties, margin: np.ndarray, outcome: np.ndarray, tie: float) -> Local:
    """Negative log-likelihood of one match per cell.

    half        -log sigma(d) for a win, -log sigma(-d) for a loss, their mean for a tie
    rao_kupper  P(win) = sigma(d - eta), P(loss) = sigma(-d - eta), P(tie) the rest: (e^(2 eta) - 1) P(win) P(loss)
    davidson    P(win) : P(loss) : P(tie) = e^(d/2) : e^(-d/2) : nu, with t = log nu
    """
    zero, tied = np.zeros_like(margin), outcome == 0.5
    if ties == "half":
        loss, p, h = _softplus(margin)
        return Local(loss - outcome * margin, p - outcome, zero, h, zero, zero)
    if ties == "rao_kupper":
        left, right = outcome >= 0.5, outcome <= 0.5  # a tie carries both factors
        f, a, p = (part * left for part in _softplus(tie - margin))
        g, b, r = (part * right for part in _softplus(tie + margin))
        gap = -math.expm1(-2 * tie)  # 1 - e^(-2 eta)
        loss, slope = f + g - tied * (2 * tie + math.log(gap)), a + b - tied * 2 / gap
        return Local(loss, b - a, slope, p + r, r - p, p + r + tied * 4 * math.exp(-2 * tie) / gap**2)
    logits = np.stack([margin / 2, -margin / 2, zero + tie])
    top = logits.max(0)
    total = top + np.log(np.exp(logits - top).sum(0))
    win, lose, draw = np.exp(logits - total)
    edge, result = win - lose, outcome - 0.5
    loss, curve = total - result * margin - tied * tie, (win + lose - edge**2) / 4
    return Local(loss, edge / 2 - result, draw - tied, curve, -edge * draw / 2, draw * (1 - draw))


class Fit(NamedTuple):
    x: np.ndarray  # strengths, then the side's intercept, then the tie parameter
    local: Local
    objective: float
    gradient: float  # infinity norm
    tolerance: float
    iterations: int


def fit(cells: Cells, ties: Ties, l2: float, max_iter: int, x: np.ndarray) -> Fit:
    """Damped Newton from x on the convex objective sum(count loss) + l2 sum(theta^2)."""
    n, q = cells.n, cells.n + cells.position
    ridge = np.r_[np.full(n, 2 * l2), np.zeros(len(x) - n)]
    # A player's sum carries rounding of about eps per match: below that no step can help.
    tolerance = max(TOLERANCE, 4 * np.finfo(float).eps * float(np.bincount(cells.lo, cells.count).max()))

    def evaluate(x: np.ndarray) -> tuple[float, np.ndarray, Local]:
        local = likelihood(ties, cells.margins(x), cells.outcome, x[q] if len(x) > q else 0.0)
        slope = cells.back(cells.count * local.d)
        slope = np.append(slope, cells.count @ local.t) if len(x) > q else slope
        return float(cells.count @ local.loss + l2 * (x[:n] @ x[:n])), slope + ridge * x, local

    iterations, size = 0, 1.0
    value, slope, local = evaluate(x)
    while np.abs(slope).max() > tolerance and iterations < max_iter and size > 1e-10:
        step = _newton_step(cells, local, slope, ridge)
        size, enough = 1.0, 1e-4 * float(slope @ step)
        while size > 1e-10:
            candidate = x - size * step
            if ties != "rao_kupper" or candidate[q] > 0:  # eta is positive
                trial = evaluate(candidate)
                if trial[0] <= value - enough * size + 1e-14 * abs(value):
                    x, (value, slope, local), iterations = candidate, trial, iterations + 1
                    break
            size /= 2
    return Fit(x, local, value, float(np.abs(slope).max()), tolerance, iterations)


def _hessian(cells: Cells, local: Local, ridge: np.ndarray) -> np.ndarray:
    hessian = cells.gram(local.dd, local.dt, local.tt, len(ridge))
    # Matches fix differences only. Gradients and scores have no part along "all strengths equal", so filling that
    # direction changes no result and lets Cholesky run for l2 = 0.
    hessian[: cells.n, : cells.n] += np.trace(hessian) / cells.n**2
    hessian[np.diag_indices_from(hessian)] += ridge
    return hessian


def _newton_step(cells: Cells, local: Local, slope: np.ndarray, ridge: np.ndarray) -> np.ndarray:
    n, q, size = cells.n, cells.n + cells.position, len(ridge)
    if n <= DENSE_NEWTON:
        return cho_solve(cho_factor(_hessian(cells, local, ridge), overwrite_a=True), slope)
    weight = cells.count * local.dd
    cross, corner = cells.back(cells.count * local.dt), float(cells.count @ local.tt)

    def product(v: np.ndarray) -> np.ndarray:
        out = ridge * v
        out[:q] += cells.back(weight * cells.margins(v))
        if size > q:
            out[:q] += cross * v[q]
            out[q] += cross @ v[:q] + corner * v[q]
        return out

    degree = np.bincount(cells.lo, weight, n) + np.bincount(cells.hi, weight, n)
    diagonal = ridge + np.r_[degree, np.full(q - n, weight.sum()), np.full(size - q, corner)]
    scale = LinearOperator((size, size), lambda v: v / np.maximum(diagonal, 1e-300))
    return cg(LinearOperator((size, size), product), slope, rtol=1e-2, maxiter=10 * size, M=scale)[0]


def sandwich(
    cells: Cells, local: Local, l2: float, size: int, cell_of: np.ndarray | None, member: np.ndarray | None
) -> np.ndarray:
    """Variances [players]: diagonal of H^-1 M H^-1, H the Hessian and M the summed outer products of the scores.

    Source: Huber 1967, White 1982; with clusters the scores are summed inside each first (Liang and Zeger 1986).
    """
    n, q, d, t = cells.n, cells.n + cells.position, local.d, local.t
    if n > DENSE_SANDWICH:
        limit = f"invert a players x players matrix, at most {DENSE_SANDWICH} players"
        raise ValueError(f"sandwich intervals {limit}; got {n}. Set intervals='bootstrap' or 'none'")
    if cell_of is None or member is None:
        meat = cells.gram(d * d, d * t, t * t, size)
    else:
        columns = [(cells.lo, d), (cells.hi, -d)]
        columns += [(np.full(len(d), n), d)] * (q > n) + [(np.full(len(d), q), t)] * (size > q)
        row, column = np.tile(member, len(columns)), np.concatenate([index[cell_of] for index, _ in columns])
        value = np.concatenate([entry[cell_of] for _, entry in columns])
        score = coo_array((value, (row, column)), shape=(int(member.max()) + 1, size)).tocsr()
        meat = (score.T @ score).toarray()
    ridge = np.r_[np.full(n, 2 * l2), np.zeros(size - n)]
    root, _ = cho_factor(_hessian(cells, local, ridge), overwrite_a=True)
    (potri,) = get_lapack_funcs(("potri",), (root,))
    inverse, _ = potri(root, overwrite_c=True)
    inverse = np.triu(inverse) + np.triu(inverse, 1).T
    return np.maximum(np.einsum("ij,ij->j", inverse, meat @ inverse)[:n], 0)  # rounding at a variance of 0


def check_options(ties: str, intervals: str, l2: float, confidence: float, position: bool) -> None:
    """Refuse settings that are unknown, out of range, or cannot go together."""
    if ties not in ("half", "rao_kupper", "davidson"):
        raise ValueError(f"ties must be 'half', 'rao_kupper' or 'davidson'; got {ties!r}")
    if intervals not in ("sandwich", "bootstrap", "none"):
        raise ValueError(f"intervals must be 'sandwich', 'bootstrap' or 'none'; got {intervals!r}")
    if not 0 <= l2 < math.inf or not 0 < confidence < 1:
        raise ValueError(f"l2 must be 0 or more and confidence inside (0, 1); got l2={l2}, confidence={confidence}")
    if position and l2 == 0:
        raise ValueError("position=True needs l2 > 0, as strengths can absorb the side's advantage; set l2=1e-6")
    if intervals == "bootstrap" and (l2 == 0 or ties != "half"):
        remedy = "set l2 > 0 and ties='half', or intervals='sandwich'"
        raise ValueError(f"bootstrap rounds can lack the wins or ties that l2=0 and tie models need; {remedy}")


def check_exists(cells: Cells, ties: Ties, l2: float) -> None:
    """Refuse what has no estimate; warn where strengths cannot be compared."""
    n, win, lose, tied = cells.n, cells.outcome == 1, cells.outcome == 0, cells.outcome == 0.5
    if ties != "half" and not (tied.any() and (win | lose).any()):
        raise ValueError(f"ties={ties!r} needs at least one tie and one decided match; set ties='half'")
    level = ties == "half" and bool(tied.any())
    if cells.position and not ((win.any() and lose.any()) or level):
        raise ValueError("position=True needs a match that the other side won, or its intercept is infinite")
    winner = np.r_[cells.lo[win | tied], cells.hi[lose | tied]]
    loser = np.r_[cells.hi[win | tied], cells.lo[lose | tied]]
    drawn = np.r_[tied[win | tied], tied[lose | tied]]
    beats = coo_array((np.ones(len(winner)), (winner, loser)), shape=(n, n)).tocsr()
    parts, labels = connected_components(beats, directed=False)
    if l2 > 0:
        if parts > 1:
            told = f"the match graph has {parts} components that never meet, {_groups(labels)}"
            warnings.warn(f"{told}: scores are not comparable across components", stacklevel=3)
        return
    if parts == 1:
        parts, labels = connected_components(beats, directed=True, connection="strong")
    if parts > 1:
        why = f"of the {parts} groups {_groups(labels)} some never meet or never lose to another"
        raise ValueError(f"maximum likelihood does not exist: {why}. Set l2 > 0")
    if ties == "half":
        return
    # A tie model also diverges, strengths and tie parameter growing together, when strengths exist with every winner
    # ahead by 1 or more and every tied pair within 1: unless a cycle of these bounds has a negative sum.
    key = (winner * n + loser)[np.argsort(drawn, kind="stable")]
    first = np.unique(key, return_index=True)[1]  # a win is the tighter bound, and comes first
    bound = np.where(first < (~drawn).sum(), -1.0, 1.0)
    try:
        bellman_ford(coo_array((bound, (key[first] // n, key[first] % n)), shape=(n, n)).tocsr(), indices=0)
    except NegativeCycleError:
        return
    raise ValueError("maximum likelihood does not exist: ties are too many to bound the tie parameter. Set l2 > 0")


def _groups(labels: np.ndarray) -> str:
    """The first groups by name, to keep a message to one line."""
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)[:4]]
    names = ["{" + ", ".join(map(str, some[:6])) + (", ...}" if len(some) > 6 else "}") for some in groups]
    return ", ".join(names) + (", ..." if labels.max() >= 4 else "")
