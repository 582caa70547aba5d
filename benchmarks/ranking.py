"""Bradley-Terry: workbench against choix and against a plain vectorised fit, on the same matches.

    python benchmarks/ranking.py --quick     a few seconds
    python benchmarks/ranking.py             about a minute

Each round runs every contestant once, in random order, so that a busy moment of the machine falls on all of them; the
ratio is taken inside a round. Times are CPU seconds of this process. All contestants minimise the same objective and
must agree. choix keeps one Python loop over matches for clarity, so it is the reference for the numbers; the fit by
scipy's L-BFGS with a numpy gradient is the fairer opponent for speed. It stops at a gradient of 1e-5, ours at 1e-8, and
ours also checks the table and the match graph.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from statistics import median

import choix
import numpy as np
import scipy
from scipy.optimize import minimize
from scipy.special import expit

from workbench.ranking import bradley_terry

L2 = 0.01


def simulate(n_players: int, n_matches: int, seed: int) -> np.ndarray:
    """Matches between uniformly drawn pairs of players with normal strengths, no ties (choix takes none)."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(0, 1.5, n_players)
    left = rng.integers(n_players, size=n_matches)
    right = (left + rng.integers(1, n_players, size=n_matches)) % n_players
    outcome = rng.random(n_matches) < expit(strength[left] - strength[right])
    return np.stack([left, right, outcome], axis=1).astype(float)


def ours(matches: np.ndarray, n_players: int) -> np.ndarray:
    return bradley_terry(matches, n_players, l2=L2, intervals="none").scores


def ours_with_intervals(matches: np.ndarray, n_players: int) -> np.ndarray:
    return bradley_terry(matches, n_players, l2=L2).scores


def by_choix(matches: np.ndarray, n_players: int) -> np.ndarray:
    won = matches[:, 2] == 1
    pairs = np.where(won[:, None], matches[:, :2], matches[:, 1::-1]).astype(int).tolist()
    return choix.opt_pairwise(n_players, pairs, alpha=L2, method="BFGS", tol=1e-5)


def by_lbfgs(matches: np.ndarray, n_players: int) -> np.ndarray:
    left, right, outcome = matches[:, 0].astype(int), matches[:, 1].astype(int), matches[:, 2]

    def objective(theta: np.ndarray) -> tuple[float, np.ndarray]:
        margin = theta[left] - theta[right]
        residual = expit(margin) - outcome
        slope = np.bincount(left, residual, n_players) - np.bincount(right, residual, n_players)
        loss = np.logaddexp(0, margin).sum() - outcome @ margin + L2 * theta @ theta
        return float(loss), slope + 2 * L2 * theta

    options = {"gtol": 1e-5, "ftol": 0.0, "maxiter": 2000, "maxfun": 5000}
    return minimize(objective, np.zeros(n_players), jac=True, method="L-BFGS-B", options=options).x


def compare(
    n_players: int, n_matches: int, rounds: int, contestants: dict[str, Callable[[np.ndarray, int], np.ndarray]]
) -> None:
    """Print medians, ratios to ours with their range over the rounds, and the largest disagreement."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    disagreement = dict.fromkeys(contestants, 0.0)
    for index in range(rounds):
        matches, scores = simulate(n_players, n_matches, seed=index), {}
        for name in np.random.default_rng(index).permutation(list(contestants)):
            start = time.process_time()
            scores[name] = contestants[name](matches, n_players)
            seconds[name].append(time.process_time() - start)
        centred = {name: values - values.mean() for name, values in scores.items()}
        for name, values in centred.items():
            disagreement[name] = max(disagreement[name], float(np.abs(values - centred["workbench"]).max()))
    for name, values in seconds.items():
        ratios = sorted(value / base for value, base in zip(values, seconds["workbench"], strict=True))
        print(
            f"{n_matches:>9,} {n_players:>7,} {name:<22}{median(values):>10.4f} s"
            f"{median(ratios):>10.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}){disagreement[name]:>12.1e}"
        )
        if disagreement[name] > 1e-3:
            raise SystemExit(f"{name} disagrees with workbench by {disagreement[name]:.1e} nats: not the same estimate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds")
    quick = parser.parse_args().quick
    print(
        f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}, {platform.machine()}"
    )
    print(f"  matches players contestant            median CPU    ratio to workbench (range)   max difference, l2={L2}")
    everyone = {
        "workbench": ours,
        "with sandwich": ours_with_intervals,
        "vectorised L-BFGS": by_lbfgs,
        "choix BFGS": by_choix,
    }
    rounds = 3 if quick else 7
    for contestant in everyone.values():
        contestant(simulate(20, 500, seed=0), 20)  # imports and first calls are not timed
    for n_players, n_matches in (
        [(20, 500), (60, 900)] if quick else [(20, 500), (60, 900), (150, 2_250), (300, 10_000)]
    ):
        compare(n_players, n_matches, rounds, everyone)
    vectorised = {"workbench": ours, "vectorised L-BFGS": by_lbfgs}
    for n_players, n_matches in [(1_000, 100_000)] if quick else [(1_000, 100_000), (5_000, 1_000_000)]:
        compare(n_players, n_matches, rounds, vectorised)
    if quick:
        compare(5_000, 1_000_000, 1, {"workbench": ours})


if __name__ == "__main__":
    main()
