"""Bradley-Terry: workbench against choix and against a plain vectorised fit, on the same matches.

    python benchmarks/ranking.py            seconds
    python benchmarks/ranking.py --full     minutes: more sizes, and the largest that choix finishes in 60 s

All sides minimise the same objective and must agree; every round has other matches. choix keeps one Python loop over
matches for clarity, so it is the reference for the numbers; the fit by scipy's L-BFGS with a numpy gradient is the
fairer opponent for speed. It stops at a gradient of 1e-5, ours at 1e-8, and ours also checks the table and the match
graph.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

import harness
import numpy as np
import results

OURS, INTERVALS, VECTORISED, CHOIX = "workbench", "with sandwich", "vectorised L-BFGS", "choix BFGS"
L2, LIMIT_S = 0.01, 60.0


def simulate(n_players: int, n_matches: int, seed: int) -> np.ndarray:
    """Matches between uniformly drawn pairs of players with normal strengths, no ties (choix takes none)."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1.5, n_players)
    left = rng.integers(n_players, size=n_matches)
    right = (left + rng.integers(1, n_players, size=n_matches)) % n_players
    outcome = rng.random(n_matches) < 1 / (1 + np.exp(strength[right] - strength[left]))
    return np.stack([left, right, outcome], axis=1).astype(float)


def rounds_of(fit: Callable[[np.ndarray, int], np.ndarray], case: dict) -> Callable[[], Any]:
    """A round fits the matches of its number; strengths are compared with their mean taken out."""
    fit(simulate(20, 500, seed=0), 20)  # imports and first calls are not timed
    tables = (simulate(case["players"], case["matches"], seed) for seed in itertools.count())
    following = [next(tables)]

    def call() -> Callable[[], dict[str, Any]]:
        scores = fit(following[0], case["players"])

        def numbers() -> dict[str, Any]:
            following[0] = next(tables)
            return {"strengths": scores - scores.mean()}

        return numbers

    return call


def workbench_side(case: dict) -> Callable[[], Any]:
    from workbench.ranking import bradley_terry

    factor = 1 + case.get("sabotage", 0.0)
    return rounds_of(lambda matches, n: factor * bradley_terry(matches, n, l2=L2, intervals="none").scores, case)


def sandwich_side(case: dict) -> Callable[[], Any]:
    from workbench.ranking import bradley_terry

    return rounds_of(lambda matches, n: bradley_terry(matches, n, l2=L2).scores, case)


def choix_side(case: dict) -> Callable[[], Any]:
    import choix

    def fit(matches: np.ndarray, n: int) -> np.ndarray:
        pairs = np.where(matches[:, 2:] == 1, matches[:, :2], matches[:, 1::-1]).astype(int).tolist()
        return choix.opt_pairwise(n, pairs, alpha=L2, method="BFGS", tol=1e-5)

    return rounds_of(fit, case)


def vectorised_side(case: dict) -> Callable[[], Any]:
    from scipy.optimize import minimize
    from scipy.special import expit

    def fit(matches: np.ndarray, n: int) -> np.ndarray:
        left, right, outcome = matches[:, 0].astype(int), matches[:, 1].astype(int), matches[:, 2]

        def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
            margin = theta[left] - theta[right]
            residual = expit(margin) - outcome
            slope = np.bincount(left, residual, n) - np.bincount(right, residual, n)
            loss = np.logaddexp(0, margin).sum() - outcome @ margin + L2 * theta @ theta
            return float(loss), slope + 2 * L2 * theta

        options = {"gtol": 1e-5, "ftol": 0.0, "maxiter": 2000, "maxfun": 5000}
        return minimize(objective, np.zeros(n), jac=True, method="L-BFGS-B", options=options).x

    return rounds_of(fit, case)


SIDES = {OURS: workbench_side, INTERVALS: sandwich_side, VECTORISED: vectorised_side, CHOIX: choix_side}


def compare(contest: harness.Contest, players: int, matches: int, rounds: int, **more: Any) -> list[dict]:
    """Runs and prints one size; a side that needs more than four minutes is ended and printed as such."""
    case = {"name": f"{matches:,} matches, {players:,} players", "players": players, "matches": matches, **more}
    result = contest.run(case, rounds=rounds, limit_s=4 * LIMIT_S)
    worst = result.check({"strengths": 1e-3})
    rows = [
        {
            "case": case["name"],
            "side": side,
            "seconds": result.seconds[side],
            "difference": worst,
            "ratio": result.ratios(side, OURS) if side != OURS else None,
        }
        for side in result.sides
    ]
    results.print_table(
        [
            {
                "case": row["case"],
                "side": row["side"],
                "CPU s": f"{median(row['seconds']):.4f}",
                "ratio (range)": results.spread(row["ratio"]) if row["ratio"] else "",
                "differ": f"{worst:.0e}",
            }
            for row in rows
        ]
        + [{"case": case["name"], "side": side, "CPU s": reason} for side, reason in result.missing.items()]
    )
    return rows


def largest() -> list[dict]:
    """Grows from 300 players and 10,000 matches by half at a time, until choix needs more than a minute of CPU."""
    found: list[dict] = []
    with harness.Contest({OURS: workbench_side, CHOIX: choix_side}) as contest:
        for step in itertools.count():
            rows = compare(contest, round(300 * 1.5**step), round(10_000 * 1.5**step), rounds=1)
            if not any(row["side"] == CHOIX and median(row["seconds"]) <= LIMIT_S for row in rows):
                return found
            found = [
                {**row, "case": f"the most that choix does in {LIMIT_S:.0f} s: {row['case']}", "must": 20.0}
                for row in rows
                if row["side"] == CHOIX
            ]
    return found


def main() -> None:
    given = harness.arguments(
        __doc__,
        extra=lambda p: p.add_argument("--sabotage", type=float, default=0.0, help="share put on our strengths"),
    )
    print(f"  ratio: how many times as long as workbench; l2={L2}")
    rounds = {"smoke": 1, "quick": 3, "full": 7}[given.size]
    small = {"smoke": [(20, 100)], "quick": [(20, 500), (60, 900)]}.get(
        given.size, [(20, 500), (60, 900), (150, 2_250), (300, 10_000)]
    )
    large = {"smoke": [], "quick": [(1_000, 100_000)]}.get(given.size, [(1_000, 100_000), (5_000, 1_000_000)])
    rows: list[dict] = []
    with harness.Contest(SIDES) as contest:
        for players, matches in small:
            rows += compare(contest, players, matches, rounds, sabotage=given.sabotage)
        contest.sides = {OURS: workbench_side, VECTORISED: vectorised_side}
        for players, matches in large:
            rows += compare(contest, players, matches, rounds)
        if given.size == "quick":
            contest.sides = {OURS: workbench_side}
            rows += compare(contest, 5_000, 1_000_000, 1)
    if given.size == "full":
        rows += largest()
    results.write(
        "ranking", rows, given, "Bradley-Terry: workbench against others", "time of the peer over time of workbench"
    )


if __name__ == "__main__":
    main()
