"""Candidates: a model's samples and a teacher's answer to one prompt, and what a judge says of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from workbench.feedback.judges import POINTS
from workbench.models import Policy


class Candidate(NamedTuple):
    """One answer: its text, the tokens that are trained on, and whether it got stuck (empty or repeating itself)."""

    text: str
    ids: list[int]
    is_teacher: bool
    is_stuck: bool


Judgement = (
    tuple[list[float], list[float]] | None
)  # win rates in [0, 1] and points 0 to 6 of all candidates of a prompt


def teacher_answers(task: Any, prompts: Sequence, seed: int) -> list[str | None]:
    """The teacher's answer to each prompt, None where there is none."""
    return list(task.teacher(prompts, seed)) if hasattr(task, "teacher") else [None] * len(prompts)


def gather(
    policy: Policy,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    gold: str | None,
    *,
    room: int,
    stuck: Sequence[bool],
) -> list[Candidate]:
    """The different answers to one prompt; where the model wrote the teacher's words, they count as the teacher's.

    Args:
        room: tokens that the model itself may write; the teacher's answer is cut to them, as the samples are.
    """
    found: dict[str, Candidate] = {}
    if gold is not None:
        found[gold.strip()] = Candidate(gold, policy.encode_response(gold)[:room], True, False)
    for text, tokens, is_stuck in zip(texts, ids, stuck, strict=True):
        found.setdefault(text.strip(), Candidate(text, list(tokens), False, is_stuck))
    return list(found.values())


def judge(
    task: Any,
    prompts: Sequence,
    candidates: Sequence[Sequence[Candidate]],
    *,
    table: np.ndarray | None,
    noise: Any = None,
) -> list[Judgement]:
    """Win rates and points of all candidates of each prompt; None where the judge could not be read.

    A task with `rate` gives points; win rates are then the share of the others with fewer points (ties half). With a
    `table` of the policy, win rates are those against the policy itself. Otherwise they are means over the other
    candidates. From a win rate r come clip(round(6 r + 1), 0, 6) points. Stuck answers get 0 of both without being
    asked about.

    Args:
        noise: a numpy generator; each comparison is then one draw, won or lost, and not its probability.
    """
    texts = [[c.text for c in members] for members in candidates]
    rated = task.rate(prompts, texts) if hasattr(task, "rate") else None
    if rated is not None:
        rates = [None if points is None else _shares(points) for points in rated]
        scores = [None if points is None else [float(p) for p in points] for points in rated]
    else:
        rates = (
            _against_policy(task, prompts, texts, table)
            if table is not None and noise is None
            else _against_others(task, prompts, texts, noise)
        )
        scores = [
            None if r is None else [float(np.clip(np.floor(POINTS * x + 1.5), 0, POINTS)) for x in r] for r in rates
        ]
    found: list[Judgement] = []
    for members, r, points in zip(candidates, rates, scores, strict=True):
        fine = [not c.is_stuck for c in members]
        found.append(
            None
            if r is None or points is None
            else ([x * ok for x, ok in zip(r, fine, strict=True)], [x * ok for x, ok in zip(points, fine, strict=True)])
        )
    return found


def _shares(points: Sequence[float]) -> list[float]:
    """Share of the others with fewer points, ties half."""
    p = np.asarray(points, float)
    wins = (p[:, None] > p[None, :]) + 0.5 * (p[:, None] == p[None, :])
    return ((wins.sum(1) - 0.5) / max(len(p) - 1, 1)).tolist()


def _against_policy(
    task: Any, prompts: Sequence, texts: Sequence[Sequence[str]], table: np.ndarray
) -> list[list[float]]:
    sizes = [len(row) for row in texts]
    flat = task.win_rates(
        table, [p for p, n in zip(prompts, sizes, strict=True) for _ in range(n)], [t for row in texts for t in row]
    )
    return [part.tolist() for part in np.split(flat, np.cumsum(sizes)[:-1])]


def _against_others(
    task: Any, prompts: Sequence, texts: Sequence[Sequence[str]], noise: Any
) -> list[list[float] | None]:
    """r_i = mean over the other members of P(i beats j), or of one draw with that probability.

    Raises:
        ValueError: the judge gave a number outside [0, 1].
    """
    places = [(n, i, j) for n, row in enumerate(texts) for i in range(len(row)) for j in range(i + 1, len(row))]
    if not places:
        return [[0.5] * len(row) for row in texts]
    p = np.asarray(
        task.prefer(
            [prompts[n] for n, _, _ in places], [texts[n][i] for n, i, _ in places], [texts[n][j] for n, _, j in places]
        ),
        float,
    )
    if (bad := np.flatnonzero((p < 0) | (p > 1))).size:
        raise ValueError(f"prompt {places[bad[0]][0]}: win rates in [0, 1] are needed; the judge gave {p[bad[0]]}")
    if noise is not None:
        p = np.where(np.isnan(p), np.nan, noise.random(len(p)) < p)
    sums = [np.zeros(len(row)) for row in texts]
    for (n, i, j), value in zip(places, p.tolist(), strict=True):
        sums[n][i] += value
        sums[n][j] += 1 - value
    rates = [total / max(len(total) - 1, 1) if len(total) > 1 else np.full(1, 0.5) for total in sums]
    return [None if np.isnan(r).any() else r.tolist() for r in rates]
