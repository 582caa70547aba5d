"""Chain of hindsight, a baseline: a bad and a good answer are asked for by name; later a good one is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.data import Row
from workbench.kernels import Group
from workbench.models import Policy


def with_hint(prompt: Any, hint: str) -> Any:
    """The prompt with a few words behind its last turn."""
    if not hint:
        return prompt
    if isinstance(prompt, str):
        return f"{prompt} {hint}"
    return [*prompt[:-1], {**prompt[-1], "content": f"{prompt[-1]['content']} {hint}"}]


def chains(policy: Policy, lists: Sequence[Row], hints: tuple[str, str], seed: int, *, max_length: int) -> list[Group]:
    """The worst and the best answer of a list asked for by name, one after the other, in random order.

    Two rows a list: the first answer, and the second one behind the first. Hints are context and are not learned.
    """
    rng, rows = np.random.default_rng([seed, 6]), []
    for row in lists:
        sides = [(hints[0], row["responses"][-1]), (hints[1], row["responses"][0])]
        (hint, first), (next_hint, second) = sides if rng.random() < 0.5 else sides[::-1]
        asked = with_hint(row["prompt"], hint)
        chat = [{"role": "user", "content": asked}] if isinstance(asked, str) else list(asked)
        chat += [{"role": "assistant", "content": first}, {"role": "user", "content": next_hint}]
        rows += [
            policy.group(asked, [first], max_length=max_length),
            policy.group(chat, [second], max_length=max_length),
        ]
    return rows
