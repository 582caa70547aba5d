"""Rows into batches by their number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from workbench.kernels import Group


def n_tokens(row: Any) -> int:
    """Tokens of a group, or of a row that has a `group`: prompt and all responses. 0 for anything else."""
    group = getattr(row, "group", row)
    return len(group.prompt_ids) + sum(map(len, group.responses_ids)) if isinstance(group, Group) else 0


def tokens_per_microbatch(device: torch.device) -> int:
    """Tokens of a pass through the model: few enough that a CPU's caches hold them, enough that a GPU is busy."""
    return 2_048 if device.type == "cpu" else 8_192


def microbatches(
    numbers: Sequence[int], sizes: Sequence[int], *, max_tokens: int, max_rows: int = 0, at_least: int = 1
) -> Iterator[list[int]]:
    """Cuts rows into batches of like length, the longest first, so that too little memory shows at once.

    Args:
        numbers: which rows; `sizes[number]` are their tokens.
        max_tokens: of a batch; a longer row is a batch by itself. Not looked at where `max_rows` is given.
        max_rows: of a batch; 0 for no such limit.
        at_least: rows that a batch has even if it is too long then (one for every process).
    """
    batch: list[int] = []
    tokens = 0
    for number in sorted(numbers, key=lambda number: -sizes[number]):
        full = len(batch) >= max_rows if max_rows else tokens + sizes[number] > max_tokens
        if full and len(batch) >= at_least:
            yield batch
            batch, tokens = [], 0
        batch.append(number)
        tokens += sizes[number]
    if batch:
        yield batch
