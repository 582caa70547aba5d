"""Evidence: altering a sequence of frames, how near an altered one is, and how much it moves the answer.

A task knows how evidence becomes a prompt (`group`) and what a frame looks like (`embed`); nothing here looks into a
frame.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench import objectives
from workbench.data import Row
from workbench.kernels import Group
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meeting import parts_of
from workbench.kernels.scoring import inputs
from workbench.models import Policy

log = logging.getLogger(__name__)

Frames = Sequence[Any]
TILE = 2**22  # logits held at once


# ------------------------------------------------------------------------------------------------------- alterations
Alteration = Callable[[list, np.random.Generator, list, Any], list]  # of frames; others to mix with, a blank frame


def _half(n: int, rng: np.random.Generator) -> set[int]:
    """Half of n places, rounded up, at random."""
    return set(rng.permutation(n)[: (n + 1) // 2].tolist())


def _freeze(frames: list, rng: np.random.Generator, other: list, blank: Any) -> list:
    start = int(rng.integers(len(frames)))
    return [*frames[: start + 1], *[frames[start]] * (len(frames) - start - 1)]


def _sub_clip(frames: list, rng: np.random.Generator, other: list, blank: Any) -> list:
    half = max(1, len(frames) // 2)
    start = int(rng.integers(len(frames) - half + 1))
    return frames[start : start + half]


def _replaced(frames: list, places: set[int], by: list) -> list:
    return [by[i % len(by)] if i in places else frame for i, frame in enumerate(frames)]


ALTERATIONS: dict[str, Alteration] = {
    "shuffle": lambda frames, rng, other, blank: [frames[i] for i in rng.permutation(len(frames))],
    "reverse": lambda frames, rng, other, blank: frames[::-1],
    "drop": lambda frames, rng, other, blank: [
        frames[i] for i in np.sort(rng.permutation(len(frames))[: max(1, len(frames) // 2)])
    ],
    "freeze": _freeze,
    "sub_clip": _sub_clip,  # of time
    "crop": lambda frames, rng, other, blank: _replaced(frames, _half(len(frames), rng), [blank]),
    "mix": lambda frames, rng, other, blank: _replaced(frames, _half(len(frames), rng), other),  # another row's
    "blank": lambda frames, rng, other, blank: [blank] * len(frames),
}


class Candidate(NamedTuple):
    kind: str
    evidence: list


def same(a: Frames, b: Frames) -> bool:
    """Exact comparison, frame by frame."""
    return len(a) == len(b) and all(x is y or np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def candidates(
    row: Row, kinds: Sequence[str], n: int, rng: np.random.Generator, *, other: Frames, blank: Any
) -> tuple[list[Candidate], int]:
    """`n` altered versions of a row's evidence with fresh parameters, kinds in turn in random order; and how many drawn
    ones were left out because they are the original.

    Raises:
        ValueError: the evidence has one frame and every drawn alteration leaves it as it is.
    """
    frames = list(row["evidence"])
    order: list[str] = [kinds[int(i)] for i in rng.permutation(len(kinds))]
    drawn = [
        Candidate(kind, ALTERATIONS[kind](frames, rng, list(other), blank))
        for kind in (order[i % len(order)] for i in range(n))
    ]
    kept = [candidate for candidate in drawn if not same(candidate.evidence, frames)]
    if not kept and len(frames) < 2:
        raise ValueError(
            f"the evidence of {row['prompt'][:60]!r} has one frame, which {', '.join(sorted(set(order)))} leave as it"
            " is; add kinds that change a frame (crop, mix, blank), or remove the row"
        )
    return kept, n - len(kept)


# ---------------------------------------------------------------------------------------------------- close and far
def closeness(a: np.ndarray, b: np.ndarray) -> float:
    """Cosine of the pooled features [frame, d] of two pieces of evidence; 0 where one has none. It knows no prompt."""
    x, y = a.mean(0), b.mean(0)
    norms = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norms if norms else 0.0


@torch.no_grad()
def divergences(policy: Policy, originals: Sequence[Group], altered: Sequence[Sequence[Group]]) -> list[list[float]]:
    """How far each altered input moves the answer: Jensen-Shannon divergence in nats, mean over all response positions.

    Teacher-forced: both inputs are followed by the same response. No gradient. Full next-token distributions exist for
    a few positions at a time.

    Args:
        originals: one group a row, with one response.
        altered: for each row the groups of its candidates, with the same response.

    Raises:
        ValueError: a candidate's response is not the original's, token for token.
    """
    for i, (original, others) in enumerate(zip(originals, altered, strict=True)):
        if any(other.responses_ids != original.responses_ids for other in others):
            raise ValueError(
                f"row {i}: the response has other tokens under altered evidence; it must be the same, token for token"
            )
    flat = [*originals, *(group for others in altered for group in others)]
    hidden = _predicting(policy, flat)
    _, head, finish, _ = parts_of(policy.model)
    size, place, moved = max(1, TILE // policy.model.config.get_text_config().vocab_size), len(originals), []
    for i, others in enumerate(altered):
        moved.append([])
        for _ in others:
            pairs = zip(hidden[i].split(size), hidden[place].split(size), strict=True)
            parts = [[finish(head(side).float()).log_softmax(-1) for side in pair] for pair in pairs]
            moved[-1].append(float(torch.cat([objectives.js_divergence(*pair) for pair in parts]).mean()))
            place += 1
    return moved


def _predicting(policy: Policy, groups: Sequence[Group]) -> list[Tensor]:
    """Hidden states [token, d_model] that predict each group's response."""
    body = parts_of(policy.model).body
    states: list[Any] = [None] * len(groups)
    for places in microbatches(
        range(len(groups)), [n_tokens(group) for group in groups], max_tokens=2 * tokens_per_microbatch(policy.device)
    ):
        rows = [groups[i].prompt_ids + groups[i].responses_ids[0] for i in places]
        width = max(map(len, rows))
        ids = torch.tensor([row + row[-1:] * (width - len(row)) for row in rows], device=policy.device)
        with policy.autocast():
            hidden = body(**inputs(policy.model, ids, [groups[i] for i in places]), use_cache=False).last_hidden_state
        for i, row in zip(places, hidden, strict=True):
            start = len(groups[i].prompt_ids)
            states[i] = row[start - 1 : start - 1 + len(groups[i].responses_ids[0])]
    return states


# ------------------------------------------------------------------------------------------------------------- rows
def check_triples(rows: Sequence[Row]) -> list[Row]:
    """Rows with `evidence` (a sequence of frames), `prompt` and `response`.

    Raises:
        ValueError: one is missing or empty; row and column are named.
    """
    for index, row in enumerate(rows):
        for column in ("prompt", "response"):
            if not isinstance(row.get(column), str) or not row[column].strip():
                raise ValueError(f"row {index}, column {column!r}: text is needed; got {row.get(column)!r}")
        if isinstance(row.get("evidence"), str) or not len(row.get("evidence") or ()):
            raise ValueError(
                f"row {index}, column 'evidence': a sequence of frames is needed; got {row.get('evidence')!r}"
            )
    return list(rows)


def bag_of_words(frames: Frames, blank: Any) -> np.ndarray:
    """Features of frames of text: counts of their words, [frame, different words]; a blank frame has none."""
    counts = [Counter() if same([frame], [blank]) else Counter(str(frame).lower().split()) for frame in frames]
    return _as_array(counts)


def _as_array(counts: Sequence[Counter]) -> np.ndarray:
    # 512 places are enough to tell sentences apart; the place is a hash that is the same in every process
    import zlib

    features = np.zeros((len(counts), 512))
    for row, count in zip(features, counts, strict=True):
        for word, n in count.items():
            row[zlib.crc32(word.encode()) % 512] += n
    return features
