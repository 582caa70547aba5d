"""Synthetic positions: short text, spread over a long window, so that a model is trained at positions that it has never
seen.

The window of `window` positions is divided: `start` positions for what stands before the document, then one region for
each chunk, all of the same length, then `qa` positions for question and answer. Inside a chunk positions are
consecutive; between chunks they jump. A chunk shorter than its region may stand in any of a few *covering windows*,
which overlap little and together cover the region.

Source: Tang et al. 2024, LOGO, arXiv 2410.18533, section 3; ZetangForward/LCM_Stack
data/positional_indices_synthesis.ipynb (`create_covering_position_ids`), which drops the last chunk where the regions
divide the window evenly; here it stays.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, product

import numpy as np


def covering_starts(n_tokens: int, region: int) -> list[int]:
    """Where the covering windows of a chunk begin, counted from the start of its region.

    w = ceil(region / n_tokens) windows at floor(i (region - n_tokens) / (w - 1)), i = 0 .. w - 1; one window at 0 if w
    = 1.

    Raises:
        ValueError: an empty chunk, or one longer than its region; both numbers are named.
    """
    if n_tokens < 1:
        raise ValueError(f"a chunk needs at least one token; got {n_tokens}")
    if n_tokens > region:
        raise ValueError(
            f"a chunk of {n_tokens} tokens does not fit into its region of {region} positions; take fewer tokens a"
            " chunk, fewer chunks, or a larger window"
        )
    n_windows = -(-region // n_tokens)
    return [0] if n_windows == 1 else [i * (region - n_tokens) // (n_windows - 1) for i in range(n_windows)]


def region_length(window: int, n_chunks: int, *, start: int, qa: int, n_tokens: int) -> int:
    """Positions that each chunk owns: floor((window - start - qa) / n_chunks).

    Args:
        n_tokens: real tokens of document, question and answer together.

    Raises:
        ValueError: no room for chunks, or a window that is not larger than the real text.
    """
    if n_chunks < 1:
        raise ValueError("a document needs at least one chunk to have positions")
    if window - start - qa <= 0:
        raise ValueError(
            f"a window of {window} positions has no room for chunks behind {start} positions of the start and {qa} of"
            " question and answer; take a larger window or a smaller qa"
        )
    if window <= n_tokens:
        raise ValueError(
            f"a window of {window} positions is not larger than the text of {n_tokens} tokens: nothing would be spread;"
            " take a larger window"
        )
    return (window - start - qa) // n_chunks


def spread(
    chunk_lengths: Sequence[int],
    *,
    window: int,
    start: int,
    qa: int,
    n_question: int,
    n_answer: int,
    rng: np.random.Generator,
    beacon: bool = False,
    choices: int = 2,
    max_variants: int = 0,
) -> list[list[int]]:
    """Positions of a prompt (start, chunks, question), one list for each variant.

    For every chunk up to `choices` random covering windows are taken; the variants are their Cartesian product.

    Args:
        chunk_lengths: tokens of each chunk, its beacon included where there is one.
        window: the target window; the question begins at window - qa + 1, the answer goes on behind it.
        start: tokens before the first chunk; they keep the positions 0, 1, ...
        n_question, n_answer: tokens of the question and of the longest answer.
        beacon: the last token of every chunk stands at the last position of its region, wherever the rest of it is.
        max_variants: a random draw of so many variants; 0 keeps all.

    Raises:
        ValueError: what does not fit, with the numbers.
    """
    if n_question + n_answer > qa:
        raise ValueError(
            f"question and answer have {n_question} + {n_answer} tokens but only {qa} positions; raise qa or shorten"
            " the answer"
        )
    n_tokens = start + sum(chunk_lengths) + n_question + n_answer
    region = region_length(window, len(chunk_lengths), start=start, qa=qa, n_tokens=n_tokens)
    options = []
    for number, length in enumerate(chunk_lengths):
        first = start + number * region
        body, room = (length - 1, region - 1) if beacon else (length, region)
        starts = covering_starts(body, room)
        picked = sorted(rng.permutation(len(starts))[:choices].tolist())
        ends = [first + region - 1] if beacon else []
        options.append([[*range(first + starts[i], first + starts[i] + body), *ends] for i in picked])
    variants = list(product(*options))
    if max_variants and len(variants) > max_variants:
        variants = [variants[i] for i in sorted(rng.permutation(len(variants))[:max_variants].tolist())]
    ask = window - qa + 1
    return [[*range(start), *chain(*variant), *range(ask, ask + n_question)] for variant in variants]


def reach(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> dict[str, float]:
    """What spreading saves: how far positions reach, real tokens of a row, and the tokens of a row with its answers as
    separate texts and with the prompt computed once; means over rows.

    Args:
        prompts: positions of every prompt.
        answers: tokens of every answer to it.
    """
    real = [len(prompt) + max(lengths) for prompt, lengths in zip(prompts, answers, strict=True)]
    last = [prompt[-1] + max(lengths) for prompt, lengths in zip(prompts, answers, strict=True)]
    apart = [len(prompt) * len(lengths) + sum(lengths) for prompt, lengths in zip(prompts, answers, strict=True)]
    once = [len(prompt) + sum(lengths) for prompt, lengths in zip(prompts, answers, strict=True)]
    names = ("real tokens", "last position", "tokens with answers apart", "tokens with the prompt once")
    means = [float(np.mean(numbers)) for numbers in (real, last, apart, once)]
    return {**dict(zip(names, means, strict=True)), "positions a real token": (means[1] + 1) / means[0]}
