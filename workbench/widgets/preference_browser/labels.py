"""Labels that a reader gives to rows: made, undone, written to a file, and applied to copies of the rows.

A label is "1" (the first response shown is the best), "2", ... (that one is), "0" (a tie) or "x" (left out).
`js/browser.js` applies labels to a page's rows by the same rules; a test compares them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from workbench import runs
from workbench.widgets.preference_browser.rows import Row, Rows, is_tie, plain_value, shown_order

WORDS = {"left": "1", "right": "2", "tie": "0", "out": "x"}


@dataclass
class Labels:
    """Labels by row number, each with the time it was given, and the way back."""

    given: dict[int, tuple[str, str]] = field(default_factory=dict)
    past: list[tuple[int, tuple[str, str] | None]] = field(default_factory=list)

    @property
    def values(self) -> dict[int, str]:
        return {row: value for row, (value, _) in self.given.items()}

    def set(self, row: int, value: str) -> None:
        self.past.append((row, self.given.get(row)))
        self.given[row] = (value, datetime.now(UTC).isoformat(timespec="seconds"))

    def undo(self) -> int:
        """Takes the last label back; returns its row, -1 if there is none."""
        if not self.past:
            return -1
        row, before = self.past.pop()
        if before is None:
            del self.given[row]
        else:
            self.given[row] = before
        return row


def checked(rows: Rows, row: int, value: str | int) -> str:
    """The label as "0", "1", ..., "x"; IndexError: no such row; ValueError: not for this row, and which labels are."""
    if not 0 <= row < len(rows):
        raise IndexError(f"row {row} of {len(rows)}: rows are numbered from 0 to {len(rows) - 1}")
    value, kind = WORDS.get(str(value), str(value)), rows.kinds[row]
    count = {"pair": 2, "rated": 0}.get(kind, len(rows.raw[row].get("responses", ())))
    known = [*map(str, range(count + 1)), "x"] if count else ["x"]
    if value not in known:
        said = "left, right, tie, out" if kind == "pair" else ", ".join(known)
        raise ValueError(f"row {row} is a {kind} row; its label can be {said}; got {value!r}")
    return value


def fingerprint(row: Row) -> str:
    """16 hexadecimal digits of the row's content, whatever the order of its columns."""
    text = json.dumps(plain_value(row), sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def preferred(row: Row, value: str = "") -> str:
    """Which response the row (or a label) prefers: "chosen", "rejected", "response 3", "tie" or "left out"."""
    if value == "x":
        return "left out"
    if value == "0" or (not value and is_tie(row)):
        return "tie"
    if "chosen" in row:
        return "rejected" if value == "2" else "chosen"
    return f"response {shown_order(row)[int(value or 1) - 1] + 1}" if "responses" in row else "rated"


def relabelled(row: Row, value: str) -> Row:
    """A copy of the row as the label says it.

    Pairs: what belongs to chosen and rejected changes sides (`chosen_rewards`, `source_chosen`, ...), `margin` its
    sign; `p_chosen` becomes 1, or 0.5 for a tie. Rankings: the response moves to the front and the scores (or ranks)
    are dealt out anew in that order; a tie gives all of them the mean.
    """
    row = dict(plain_value(row))
    if value == "x" or ("chosen" not in row and "responses" not in row):
        return row
    if "chosen" in row:
        if value == "2":
            for name, twin in _twins(row):
                row[name], row[twin] = row[twin], row[name]
            if isinstance(row.get("margin"), (int, float)):
                row["margin"] = 0 - row["margin"]
        if value == "0" or "p_chosen" in row:
            row["p_chosen"] = 0.5 if value == "0" else 1.0
        return row
    order = shown_order(row)
    first = order[0 if value == "0" else int(value) - 1]
    order = [first, *(k for k in order if k != first)]
    for name in [name for name in ("scores", "ranks") if row.get(name) is not None]:
        known, n = [item for item in row[name] if item is not None], len(row[name])
        dealt = sorted(known, reverse=name == "scores") + [None] * (n - len(known))
        mean = sum(known) / len(known) if known else None
        row[name] = [mean if value == "0" else dealt[order.index(k)] for k in range(n)]
    return row


def _twins(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Columns of the chosen response beside those of the rejected one."""
    pairs = [(name, "rejected" + name[6:]) for name in row if name == "chosen" or name.startswith("chosen_")]
    pairs += [(name, name[:-6] + "rejected") for name in row if name.endswith("_chosen")]
    return [(name, twin) for name, twin in pairs if twin in row]


def provenance(rows: Rows, index: int, value: str, when: str) -> Row:
    """What is said of a label beside the row: from, to, when, by what, and which row of which file it was."""
    row, origin = rows.raw[index], rows.origins[rows.origin_of[index]]
    said = {"from": preferred(row), "to": preferred(row, value), "when": when, "view": "PreferenceBrowser"}
    place = {"source": origin.source, "table": origin.table, "row": int(rows.number[index])}
    return {**said, **place, "fingerprint": fingerprint(row)}


def save(path: str | Path, rows: Rows, labels: Labels) -> Path:
    """Writes the labels alone as JSONL, whole or not at all."""
    with runs.atomic(Path(path)) as file:
        for index, (value, when) in labels.given.items():
            entry = {"label": value, "index": index, **provenance(rows, index, value, when)}
            file.write((json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass"))
    return Path(path)


def load(path: str | Path, rows: Rows) -> Labels:
    """Labels of a file that `save` wrote, found by the content of their rows: rows may have moved.

    Raises:
        ValueError: a broken line, or a label of a row that is not here (its line and source are named).
    """
    found, places = Labels(), None
    taken: set[int] = set()
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            value, index, name, when = (entry[key] for key in ("label", "index", "fingerprint", "when"))
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}, line {number}: no label; the file must be one that save_labels wrote") from None
        if not (isinstance(index, int) and 0 <= index < len(rows) and fingerprint(rows.raw[index]) == name):
            if places is None:
                places = {}
                for i, row in enumerate(rows.raw):
                    places.setdefault(fingerprint(row), []).append(i)
            index = next((i for i in places.get(name, ()) if i not in taken), None)
            if index is None:
                told = f"its row ({entry.get('source')}, row {entry.get('row')}) is not among these {len(rows)} rows"
                remedy = "open the rows that were labelled, or remove the line"
                raise ValueError(f"{path}, line {number}: {told}; {remedy}")
        taken.add(index)
        found.given[index] = (checked(rows, index, value), str(when))
    return found
