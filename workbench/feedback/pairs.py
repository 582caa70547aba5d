"""From judged samples to preference rows: who beats whom, win rates, which pairs to keep.

A preference matrix of K responses to one prompt has P(response i beats response j) in row i, column j; its diagonal is
one half and P_ij + P_ji = 1. It need not come from scores: A may beat B, B beat C and C beat A.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np

from workbench.data import Row

TOLERANCE = 1e-3  # of P_ij + P_ji = 1: what rounding to three digits leaves


# ------------------------------------------------------------------------------------------------------ sound pairs
def keep_sound(rows: Sequence[Row], *, may_be_empty: Sequence[str] = ()) -> tuple[list[Row], Counter]:
    """Rows whose two responses can teach something, and how many were dropped for which reason.

    Args:
        rows: with `chosen` and `rejected`.
        may_be_empty: sides ("chosen", "rejected") on which an empty response is kept.

    Returns:
        The kept rows in order; counts of "identical" (the same text but for white space around it), "empty chosen" and
        "empty rejected".
    """
    kept, dropped = [], Counter()
    for row in rows:
        sides = {side: row[side].strip() for side in ("chosen", "rejected")}
        empty = [side for side, text in sides.items() if not text and side not in may_be_empty]
        if sides["chosen"] == sides["rejected"]:
            dropped["identical"] += 1
        elif empty:
            dropped[f"empty {empty[0]}"] += 1
        else:
            kept.append(row)
    return kept, dropped


# -------------------------------------------------------------------------------------------------- who beats whom
def from_scores(scores: np.ndarray) -> np.ndarray:
    """P(i beats j) = sigma(score_i - score_j), [..., K, K], from one score a response.

    That is Bradley-Terry: transitive by construction, so cycles of a pairwise judge are lost. The SPPO code does this.

    Raises:
        ValueError: a score that is not finite.
    """
    scores = np.asarray(scores, dtype=float)
    if not np.isfinite(scores).all():
        raise ValueError(
            f"scores must be finite; got {scores[~np.isfinite(scores)][0]} in row {_row(~np.isfinite(scores))}"
        )
    gaps = scores[..., :, None] - scores[..., None, :]
    return np.exp(-np.logaddexp(0.0, -gaps))


def check_matrix(probability: Sequence | np.ndarray, *, symmetrise: bool = False) -> np.ndarray:
    """The preference matrices [prompt, K, K] as an array, or what is wrong with them.

    Args:
        symmetrise: replace P_ij by (P_ij + 1 - P_ji) / 2, for a judge that depends on the order of the two.

    Raises:
        ValueError: another number of responses than in the row before, fewer than two, a value that is no probability,
            a diagonal that is not one half, or P_ij + P_ji away from 1. The row is named.
    """
    sizes = {np.shape(matrix) for matrix in probability}
    if len(sizes) > 1:
        raise ValueError(f"every prompt needs the same number of responses; got matrices of shapes {sorted(sizes)}")
    array = np.asarray(probability, dtype=float)
    if array.ndim != 3 or array.shape[1] != array.shape[2]:
        raise ValueError(f"preference matrices must be [prompt, K, K]; got shape {list(array.shape)}")
    if array.shape[1] < 2:
        raise ValueError(f"need at least 2 responses a prompt to compare; got {array.shape[1]}")
    outside = ~((array >= 0) & (array <= 1))
    if outside.any():
        raise ValueError(
            f"row {_row(outside)}, column 'probability': numbers in [0, 1] are needed; got {array[outside][0]}"
        )
    diagonal = np.abs(np.diagonal(array, axis1=1, axis2=2) - 0.5) > TOLERANCE
    if diagonal.any():
        raise ValueError(f"row {_row(diagonal)}, column 'probability': a response beats itself with probability 0.5")
    if symmetrise:
        return (array + 1 - array.transpose(0, 2, 1)) / 2
    off = np.abs(array + array.transpose(0, 2, 1) - 1)
    if off.max(initial=0) > TOLERANCE:
        raise ValueError(
            f"row {_row(off > TOLERANCE)}, column 'probability': P(i beats j) + P(j beats i) is off 1 by"
            f" {off.max():.3g}; ask the judge in both orders, or pass symmetrise=True"
        )
    return array


def win_rates(probability: np.ndarray) -> np.ndarray:
    """Mean P of each response over all K, itself included, [prompt, K]: within [1/(2K), 1 - 1/(2K)].

    Source: Wu et al. 2024, section 4; prepare_score of the official code.
    """
    return probability.mean(-1)


def mean_logits(probability: np.ndarray) -> np.ndarray:
    """Mean of log P_kl / P_lk over l, [prompt, K], nats: the SPPO paper's score for picking winner and loser."""
    p = np.clip(probability, 1e-6, 1 - 1e-6)  # a judge that is certain would give infinities
    return np.log(p / (1 - p)).mean(-1)


def best_and_worst(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of the highest and the lowest score of each row, the first one where several are equal.

    Raises:
        ValueError: fewer than two responses, or a NaN.
    """
    scores = np.asarray(scores, dtype=float)
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"need at least 2 responses a prompt; got scores of shape {list(scores.shape)}")
    if np.isnan(scores).any():
        raise ValueError(f"row {_row(np.isnan(scores))}: a score is NaN; leave out the prompt instead")
    return scores.argmax(1), scores.argmin(1)


def _row(mask: np.ndarray) -> int:
    """The first row in which something is wrong."""
    return int(np.argwhere(mask)[0][0]) if np.ndim(mask) else 0


# ----------------------------------------------------------------------------------------------------- margin pairs
Kind = Literal["T>S", "S>T", "S>S"]


def margin_pairs(
    scores: Sequence[float], is_teacher: Sequence[bool], *, floor: float = 5, gap: float = 2, student_gap: float = 1
) -> list[tuple[int, int, Kind]]:
    """All pairs (chosen, rejected, kind) of one prompt's candidates that are far enough apart.

    The chosen one must reach `floor`. The rejected one must be `gap` lower, or only `student_gap` lower where a student
    wrote the chosen one. A teacher's answer is a candidate like the others: it is not chosen because it is the
    teacher's.

    Args:
        scores: one a candidate, on the judge's scale (0 to 6).
        is_teacher: which candidates the teacher wrote; pairs of two teachers are left out.

    Source: Rosset et al. 2024, Algorithm 2, step 4.
    """
    pairs: list[tuple[int, int, Kind]] = []
    for i, high in enumerate(scores):
        for j, low in enumerate(scores):
            needed = gap if is_teacher[i] else student_gap
            if i != j and not (is_teacher[i] and is_teacher[j]) and high >= floor and high - low >= needed:
                pairs.append((i, j, "T>S" if is_teacher[i] else "S>T" if is_teacher[j] else "S>S"))
    return pairs


def repeats(text: str, *, n: int = 4, limit: int = 5) -> bool:
    """Whether some run of `n` words stands in the text more than `limit` times: a response that got stuck."""
    words = text.split()
    counts = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return max(counts.values(), default=0) > limit
