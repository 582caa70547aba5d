"""References that a model wrote: rows and their checks, numbered lists, yes and no, and labels from a bibliography.

A reference is a row `ref_id`, `topic`, `gen_title`, `list_text` (the whole numbered answer), `position` (its number in
that list), `grounded` (1: the title exists, 0: it does not, missing: unknown). Its position is stored with it, because
a list may have lost an entry, and the number of a row says nothing.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench import data
from workbench.feedback.chat import ChatModel
from workbench.feedback.open_model import open_model

COLUMNS = ["ref_id", "topic", "gen_title", "list_text", "position", "model", "grounded", "duplicate_of"]
DIRECT = ("DQ1", "DQ2", "DQ3")
_QUOTES = "\"'“”‘’«»*_` \t"
_ENTRY = re.compile(r"\s*[*_]*(\d+)\s*[.)][*_]*\s*(.*)")


class Part(NamedTuple):
    """One thing to run on: a model, and topics to write references about or references that are there already.

    Attributes:
        labels: title -> 1 it exists, 0 it does not; what is not in it is unknown.
        direct: direct questions that this model can be asked.
        judges: whether the model can be asked to compare two lists.
    """

    model: ChatModel
    topics: list[str]
    references: pd.DataFrame | None
    labels: Mapping[str, int]
    direct: tuple[str, ...] = DIRECT
    judges: bool = True


# ------------------------------------------------------------------------------------------------------ reading replies
def read_titles(text: str) -> list[tuple[int, str]]:
    """(number, title) of every numbered line with a title, without quotes, marks and the final dot.

    Numbers are those printed, which is what a model is asked about later; where one repeats, lines are counted instead.
    """
    entries = [(int(found[1]), _title(found[2])) for line in text.splitlines() if (found := _ENTRY.match(line))]
    numbers = [number for number, _ in entries]
    if len(set(numbers)) < len(numbers):
        entries = [(place, title) for place, (_, title) in enumerate(entries, start=1)]
    return [(number, title) for number, title in entries if title and title.upper() != "NOTHING"]


def _title(text: str) -> str:
    return text.strip(_QUOTES).removesuffix(".").strip(_QUOTES)


def read_yes(text: str, *, official: bool = False) -> float:
    """1 yes, 0 no, NaN neither: by the first word; officially yes is any reply with "yes" in it, and all else is no."""
    if official:
        return float("yes" in text.lower())
    first = re.search(r"[^\W\d_]+", text)
    return {"yes": 1.0, "no": 0.0}.get(first[0].casefold(), math.nan) if first else math.nan


def yes_share(replies: Sequence[str]) -> float:
    """The official score of a direct question: the share of replies that contain "yes"."""
    return float(np.mean([read_yes(text, official=True) for text in replies]))


# ---------------------------------------------------------------------------------------------------------------- rows
def references(rows: Sequence[Mapping[str, Any]], model: str = "") -> pd.DataFrame:
    """The rows as a table with the columns above; `duplicate_of` names the first row with the same title.

    Raises:
        ValueError: a missing column, empty text, a repeated `ref_id`, a position that is no whole number from 1 or that
            the list gives another title, or a label that is not 0, 1 or empty. Row and column are named.
    """
    seen: dict[str, int] = {}
    titles: dict[str, str] = {}
    checked = []
    for number, row in enumerate(rows):
        for column in ("ref_id", "topic", "gen_title"):
            if not str(row.get(column) if row.get(column) is not None else "").strip():
                got = f"got {row.get(column)!r}; found {', '.join(map(str, row))}"
                raise ValueError(f"row {number}, column {column!r}: text is needed; {got}")
        ref_id, title, listed = str(row["ref_id"]), str(row["gen_title"]), str(row.get("list_text") or "")
        if ref_id in seen:
            raise ValueError(
                f"row {number}, column 'ref_id': {ref_id!r} stands in row {seen[ref_id]} too; every reference needs"
                " its own"
            )
        position, grounded = row.get("position"), row.get("grounded")
        if isinstance(position, bool) or not isinstance(position, int | np.integer) or position < 1:
            raise ValueError(
                f"row {number}, column 'position': the title's number in its list is needed, from 1; got {position!r}"
            )
        entry = dict(read_titles(listed)).get(int(position))
        if entry is not None and comparable(entry) != comparable(title):
            raise ValueError(
                f"row {number}, column 'position': entry {position} of list_text is {entry!r}, not {title!r}; store the"
                " number under which the title was written"
            )
        missing = grounded is None or (isinstance(grounded, float) and math.isnan(grounded))
        if not missing and grounded not in (0, 1):
            raise ValueError(
                f"row {number}, column 'grounded': 1 (exists), 0 (invented) or null is needed; got {grounded!r}"
            )
        seen[ref_id] = number
        same = titles.setdefault(comparable(title), ref_id)
        extra = {key: value for key, value in row.items() if key not in COLUMNS}
        reference: dict[str, Any] = {
            "ref_id": ref_id,
            "topic": str(row["topic"]),
            "gen_title": title,
            "list_text": listed,
        }
        reference |= {"position": int(position), "model": model}
        reference["grounded"] = math.nan if grounded is None else float(grounded)
        checked.append({**reference, "duplicate_of": "" if same == ref_id else same, **extra})
    return pd.DataFrame(checked, columns=None if checked else COLUMNS)


def topics(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The topics of rows with that column.

    Raises:
        ValueError: an empty or repeated topic; the row is named.
    """
    found: dict[str, int] = {}
    for number, row in enumerate(rows):
        topic = str(row.get("topic") or "").strip()
        if not topic or topic in found:
            why = f"{topic!r} stands in row {found[topic]} too" if topic else f"text is needed; found {', '.join(row)}"
            raise ValueError(f"row {number}, column 'topic': {why}; a topic is asked for once")
        found[topic] = number
    return list(found)


def comparable(title: str) -> str:
    """A title as it is looked up: small letters and digits, no accents, no marks."""
    split = unicodedata.normalize("NFKD", title.casefold())
    return " ".join(re.findall(r"[^\W_]+", "".join(letter for letter in split if not unicodedata.combining(letter))))


class Bibliography(Mapping):
    """Labels without a search engine: a title exists if a file of titles has it, letters and digits being the same."""

    def __init__(self, path: str | Path):
        self.titles = {comparable(line) for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()}
        self.titles.discard("")
        if not self.titles:
            raise ValueError(f"{path} holds no titles; one title a line is needed")

    def __getitem__(self, title: str) -> int:
        return int(comparable(title) in self.titles)

    def __iter__(self):
        return iter(self.titles)

    def __len__(self) -> int:
        return len(self.titles)


# --------------------------------------------------------------------------------------------------------------- tasks
@dataclass(frozen=True)
class ReferenceFile:
    """A real model with topics, or with references of the user's own; rows are checked at once, weights load later."""

    topics: list[str]
    references: pd.DataFrame | None
    labels: Mapping[str, int]
    model: str
    device: str
    direct: tuple[str, ...]
    is_simulated: bool = False

    @classmethod
    def load(
        cls, dataset: str, *, model: str, device: str, bibliography: str = "", direct: Sequence[str] = DIRECT
    ) -> ReferenceFile:
        """Reads a JSONL, CSV or Parquet file with `topic`, or with the columns of references.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a row that is neither, or a list that DQ3 needs and that is not there (row and column are
                named).
        """
        rows = data.load(dataset)
        given = references(rows, model) if "gen_title" in rows[0] else None
        if given is not None and "DQ3" in direct and (given["list_text"].str.strip() == "").any():
            number = int((given["list_text"].str.strip() == "").argmax())
            raise ValueError(
                f"row {number}, column 'list_text': DQ3 shows the list that the title came from; give it, or leave DQ3"
                " out of `direct`"
            )
        labels = Bibliography(bibliography) if bibliography else {}
        return cls(topics(rows) if given is None else [], given, labels, model, device, tuple(direct))

    def arms(self, seed: int) -> tuple[str, ...]:
        return ("references",)

    def part(self, arm: str, seed: int) -> Part:
        model = open_model(self.model, device=self.device, seed=seed)
        return Part(model, self.topics, self.references, self.labels, self.direct)
