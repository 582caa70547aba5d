"""What a piece of work spent, counted where it is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_open: ContextVar[tuple[Counter, ...]] = ContextVar("meters", default=())


@contextmanager
def count_cost() -> Iterator[Counter]:
    """Counts what is spent inside, also within meters inside it.

    Yields:
        A counter with `generated_tokens` (drawn by `sample`, end tokens included, prefixes not), `optimizer_steps`, and
        `trained_tokens` (prompts and responses that a loss was computed for, once each time).
    """
    meter: Counter = Counter()
    token = _open.set((*_open.get(), meter))
    try:
        yield meter
    finally:
        _open.reset(token)


@contextmanager
def without_cost() -> Iterator[None]:
    """Nothing inside is counted: evaluations are not part of what a method costs."""
    token = _open.set(())
    try:
        yield
    finally:
        _open.reset(token)


def add_cost(**amounts: int) -> None:
    """Adds to every open meter; costs nothing where none is open."""
    for meter in _open.get():
        meter.update(amounts)
