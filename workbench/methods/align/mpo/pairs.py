"""The pairs that MPO learns from: whole dialogues cut into prompt and responses, unusable pairs dropped."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.feedback.pairs import keep_sound
from workbench.tasks.real import TextTask

log = logging.getLogger(__name__)


@dataclass
class DialoguePairs(TextTask):
    """Preference pairs of a data set whose `chosen` and `rejected` may be whole dialogues, without a prompt."""

    kind: str = "preference"

    def read(self) -> list[Row]:
        rows = data.load(self.dataset)
        are_dialogues = set(rows[0]) == {"chosen", "rejected"} and isinstance(rows[0]["chosen"], str)
        return data.as_preferences(split_dialogues(rows) if are_dialogues else rows)


def split_dialogues(rows: Sequence[Row], *, turn: str = "Assistant:") -> list[Row]:
    """Prompt and responses of pairs of whole dialogues: the prompt is what both share, up to their last assistant turn.

    Raises:
        ValueError: a pair without a shared prompt that ends at an assistant turn; the row is named.
    """
    pairs = []
    for index, row in enumerate(rows):
        chosen, rejected = row["chosen"], row["rejected"]
        same = len(os.path.commonprefix([chosen, rejected]))  # noqa: RUF071, texts and not paths
        border = chosen.rfind(turn, 0, same)
        if border < 0:
            raise ValueError(
                f"row {index}: chosen and rejected share no prompt that ends at {turn!r}; give a `prompt` column, or "
                "dialogues that differ in their last assistant turn only"
            )
        border += len(turn)
        pairs.append({"prompt": chosen[:border], "chosen": chosen[border:], "rejected": rejected[border:]})
    return pairs


def sound_pairs(task: Any, seed: int, *, n_pairs: int = 0, shuffled: bool = False) -> list[Row]:
    """The training pairs without identical and empty ones; shuffled, chosen and rejected change places in half."""
    rows, dropped = keep_sound(task.preferences("train", seed)[: n_pairs or None])
    if dropped:
        log.warning("pairs dropped: %s", ", ".join(f"{count} {reason}" for reason, count in dropped.items()))
    if shuffled:
        swap = np.random.default_rng([seed, 5]).random(len(rows)) < 0.5
        rows = [
            {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if s else row
            for row, s in zip(rows, swap, strict=True)
        ]
    return rows
