"""Sensitivity of relative confidence: how far opponents, judge noise, ties and Elo's settings move the area.

One setting is changed at a time from those of regime R.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench import metrics, ranking
from workbench.methods.confidence.relative_confidence.opponents import schedule, to_matches
from workbench.methods.confidence.relative_confidence.world import JUDGE_NOISE, KnownQuestions

OPPONENTS = (2, 5, 10, 15)
NOISES = (0.35, JUDGE_NOISE, 1.4, 2.8)  # logistic scale of the judge
TIES = (0.0, 0.1, 0.3, 0.6)  # share of judgments that name neither
ELO_K, ELO_PASSES = (4, 32, 100, 400), (1, 5, 20)


def sensitivity(task: KnownQuestions, seed: int) -> list[dict[str, Any]]:
    """Rows `varied` ("opponents", "judge noise", "share of ties", "Elo K", "Elo passes at K 32"), `value`, `scorer`,
    `auc`."""
    rng = np.random.default_rng([seed, 9])
    questions, n = task.questions(seed), task.n_questions
    felt = np.array([*task.sensed("R", seed).values()])
    right = task.right(seed)
    most = min(max(OPPONENTS), n - 1)
    pairs = schedule(n, most, "random_opponents", rng)
    names = [q["qid"] for q in questions]
    named = pairs.assign(**{side: np.array(names)[pairs[side]] for side in ("left", "right")})
    rounds = pairs["round"].to_numpy()

    def judged(noise: float = JUDGE_NOISE, ties: float = 0.0) -> np.ndarray:
        outcomes = task.judge(felt[pairs["left"]], felt[pairs["right"]], rng, noise=noise, ties=ties)
        return to_matches(named.assign(outcome=outcomes), names)

    def auc(scores: np.ndarray) -> float:
        return metrics.accuracy_coverage_auc(scores, right)

    def rated(matches: np.ndarray) -> dict[str, float]:
        return {
            "bt": auc(ranking.bradley_terry(matches, n, intervals="none").scores),
            "trueskill": auc(ranking.trueskill(matches, n).scores),
            "elo": auc(ranking.elo(matches, n, intervals="none").scores),
        }

    base, found = judged(), []
    for few in OPPONENTS:
        found.append(("opponents", few, rated(base[rounds < few])))
    for noise in NOISES:
        found.append(("judge noise", noise, rated(judged(noise=noise))))
    for ties in TIES:
        found.append(("share of ties", ties, rated(judged(ties=ties))))
    for k in ELO_K:
        found.append(("Elo K", k, {"elo": auc(ranking.elo(base, n, k=k, intervals="none").scores)}))
    for passes in ELO_PASSES:
        found.append(
            ("Elo passes at K 32", passes, {"elo": auc(ranking.elo(base, n, passes=passes, intervals="none").scores)})
        )
    return [
        {"varied": varied, "value": value, "scorer": scorer, "auc": area}
        for varied, value, areas in found
        for scorer, area in areas.items()
    ]
