"""Real text: conversations in the files of follow-up benchmarks, and dialogues with written feedback."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.methods.reward.flr.follow_ups import POSE
from workbench.methods.reward.flr.phrases import PHRASES
from workbench.tasks.real import TextTask

ACCEPT, REJECT = "_accept.", "_reject."


def as_turns(utterances: Sequence[str], where: str) -> tuple[list[dict[str, str]], str]:
    """The history as chat turns, user first, and the last utterance, which is the assistant's response.

    Raises:
        ValueError: an odd number of utterances (the official code would silently lose the first), or an empty one.
    """
    if len(utterances) < 2 or len(utterances) % 2:
        raise ValueError(
            f"{where}: user and assistant must alternate and the assistant comes last, so the number of utterances is"
            f" even; got {len(utterances)}"
        )
    for i, text in enumerate(utterances):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: utterance {i} is empty; remove the conversation")
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(utterances[:-1])], utterances[-1]


def read_accept_reject(path: str | Path) -> list[Row]:
    """Preference rows from `<set>_accept.json` and `<set>_reject.json` beside it: two lists of conversations in one
    order.

    Raises:
        ValueError: other numbers of conversations, different histories in a row, or a broken conversation; file and row
            named.
    """
    path = Path(path).expanduser()
    sides = {ACCEPT: path, REJECT: path.with_name(path.name.replace(ACCEPT, REJECT))}
    read = {side: json.loads(file.read_text(encoding="utf-8")) for side, file in sides.items()}
    if len(read[ACCEPT]) != len(read[REJECT]):
        raise ValueError(
            f"{sides[ACCEPT].name} has {len(read[ACCEPT])} conversations and {sides[REJECT].name} {len(read[REJECT])};"
            " they must be aligned row by row"
        )
    rows = []
    for i, (better, worse) in enumerate(zip(read[ACCEPT], read[REJECT], strict=True)):
        prompt, chosen = as_turns(better, f"{sides[ACCEPT].name}, row {i}")
        other, rejected = as_turns(worse, f"{sides[REJECT].name}, row {i}")
        if prompt != other:
            raise ValueError(f"row {i}: the two files have different prompts there; they must be aligned row by row")
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return data.check(rows, "preference")


def as_feedback(rows: Sequence[Row]) -> list[Row]:
    """Rows with `prompt`, `response` and `feedback` in words; `completion` is read as the response.

    Raises:
        ValueError: a column is missing or empty; the row is named.
    """
    checked = []
    for i, row in enumerate(rows):
        row: dict[str, Any] = {**row, "response": row.get("response", row.get("completion"))}
        for column in ("prompt", "response", "feedback"):
            if not row.get(column) or (isinstance(row[column], str) and not row[column].strip()):
                raise ValueError(
                    f"row {i}, column {column!r}: it is missing or empty; feedback rows need prompt, response,"
                    f" feedback; found {', '.join(row)}"
                )
        checked.append({column: row[column] for column in ("prompt", "response", "feedback")})
    return checked


@dataclass
class FollowUpText(TextTask):
    """Pairs of a data set (or of two aligned files), a starting model, and feedback in words where there is some.

    Attributes:
        feedback_rows: hub id, folder or file of rows with prompt, response and feedback; "" for none.
    """

    kind: str = "preference"
    feedback_rows: str = ""
    follow_ups: ClassVar = PHRASES
    pose: ClassVar = POSE

    def read(self) -> list[Row]:
        return read_accept_reject(self.dataset) if ACCEPT in Path(self.dataset).name else super().read()

    def feedback(self, seed: int, *, shuffled: bool = False) -> list[Row]:
        rows = as_feedback(data.load(self.feedback_rows))
        order = np.random.default_rng([seed, 3]).permutation(len(rows)) if shuffled else range(len(rows))
        return [{**row, "feedback": rows[i]["feedback"]} for row, i in zip(rows, order, strict=True)]
