"""Candidates: a model's samples and a teacher's answer to one prompt, and what a judge says of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from workbench.feedback.judges import POINTS
from workbench.feedback.pairs import repeats
from workbench.models import Policy


class Candidate(NamedTuple):
    """One answer: its text, the tokens that are trained on, and whether it got stuck (empty or repeating itself)."""

    text: str
    ids: list[int]
    is_teacher: bool
    is_stuck: bool


# win rates in [0, 1] and points 0 to 6 of all candidates of a prompt; None where the judge could not be read
Judgement = tuple[list[float], list[float]] | None


@runtime_checkable
class Rates(Protocol):
    """A task whose judge gives points."""

    def rate(self, prompts: Sequence, candidates: Sequence[Sequence[str]]) -> list[list[int] | None] | None: ...


def gather(
    policy: Policy,
    texts: Sequence[str],
    ids: Sequence[Sequence[int]],
    answer: str | None,
    *,
    max_new_tokens: int,
    repeat_words: int = 4,
    repeat_limit: int = 5,
) -> list[Candidate]:
    """The different answers to one prompt; where the model wrote the teacher's words, they count as the teacher's.

    Args:
        answer: the teacher's; cut to `max_new_tokens` as the samples are.
        repeat_words, repeat_limit: when a sample is stuck, see `repeats`.
    """
    candidates: dict[str, Candidate] = {}
    if answer is not None:
        candidates[answer.strip()] = Candidate(answer, policy.encode_response(answer)[:max_new_tokens], True, False)
    for text, tokens in zip(texts, ids, strict=True):
        is_stuck = not text.strip() or repeats(text, n=repeat_words, limit=repeat_limit)
        candidates.setdefault(text.strip(), Candidate(text, list(tokens), False, is_stuck))
    return list(candidates.values())


def judge(
    task: Any,
    prompts: Sequence,
    candidates: Sequence[Sequence[Candidate]],
    *,
    table: np.ndarray | None,
    noise: np.random.Generator | None = None,
) -> list[Judgement]:
    """Win rates and points of all candidates of each prompt; None where the judge could not be read.

    A judge that rates gives points; win rates are then the share of the others with fewer points (ties half). With a
    `table` of the policy, win rates are those against the policy itself. Otherwise they are means over the other
    candidates. From a win rate r come clip(round(6 r + 1), 0, 6) points. Stuck answers get 0 of both.

    Args:
        noise: each comparison is then one draw, won or lost, and not its probability.
    """
    texts = [[c.text for c in members] for members in candidates]
    rated = task.rate(prompts, texts) if isinstance(task, Rates) else None
    judged: list[Any]
    if rated is not None:
        judged = [points and (_shares(points), [float(p) for p in points]) for points in rated]
    else:
        exact = table is not None and noise is None
        rates = _against_policy(task, prompts, texts, table) if exact else _against_others(task, prompts, texts, noise)
        judged = [r and (r, np.clip(np.floor(POINTS * np.array(r) + 1.5), 0, POINTS).tolist()) for r in rates]
    fine = [[not c.is_stuck for c in members] for members in candidates]
    return [
        ([r * ok for r, ok in zip(both[0], row, strict=True)], [p * ok for p, ok in zip(both[1], row, strict=True)])
        if both
        else None
        for both, row in zip(judged, fine, strict=True)
    ]


def _shares(points: Sequence[float]) -> list[float]:
    """Share of the others with fewer points, ties half."""
    p = np.asarray(points, float)
    wins = (p[:, None] > p[None, :]) + 0.5 * (p[:, None] == p[None, :])
    return ((wins.sum(1) - 0.5) / max(len(p) - 1, 1)).tolist()


def _against_policy(task: Any, prompts: Sequence, texts: Sequence[Sequence[str]], table: Any) -> list[list[float]]:
    sizes = [len(row) for row in texts]
    each = [prompt for prompt, n in zip(prompts, sizes, strict=True) for _ in range(n)]
    rates = task.win_rates(table, each, [text for row in texts for text in row])
    return [of_prompt.tolist() for of_prompt in np.split(rates, np.cumsum(sizes)[:-1])]


def _against_others(
    task: Any, prompts: Sequence, texts: Sequence[Sequence[str]], noise: np.random.Generator | None
) -> list[list[float] | None]:
    """r_i = mean over the other members of P(i beats j), or of one draw with that probability.

    Raises:
        ValueError: the judge gave a number outside [0, 1].
    """
    places = [(n, i, j) for n, row in enumerate(texts) for i in range(len(row)) for j in range(i + 1, len(row))]
    if not places:
        return [[0.5] * len(row) for row in texts]
    sides = ([texts[n][i] for n, i, _ in places], [texts[n][j] for n, _, j in places])
    p = np.asarray(task.prefer([prompts[n] for n, _, _ in places], *sides), float)
    if (bad := np.flatnonzero((p < 0) | (p > 1))).size:
        raise ValueError(f"prompt {places[bad[0]][0]}: win rates in [0, 1] are needed; the judge gave {p[bad[0]]}")
    if noise is not None:
        p = np.where(np.isnan(p), np.nan, noise.random(len(p)) < p)
    sums = [np.zeros(len(row)) for row in texts]
    for (n, i, j), value in zip(places, p.tolist(), strict=True):
        sums[n][i] += value
        sums[n][j] += 1 - value
    rates = [total / (len(total) - 1) if len(total) > 1 else np.full(1, 0.5) for total in sums]
    return [None if np.isnan(r).any() else r.tolist() for r in rates]
