"""Rows that a preference browser shows: pairs, rankings and rated rows, checked, put into plain columns, and filtered.

`js/browser.js` filters the rows of a page without a kernel in the same way; a test compares them.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from workbench import data

Row = dict[str, Any]
COLUMNS = {
    "pair": ("prompt", "chosen", "rejected"),
    "ranking": ("prompt", "responses"),
    "rated": ("prompt", "completion", "score"),
}
NEEDS = "a pair has prompt, chosen, rejected; a ranking prompt, responses and scores or ranks; a rated row prompt,"
NEEDS += " completion, score"
SOURCES = ("source", "source_chosen", "source_rejected")
PLACES = ("iteration", "arm", "seed")  # what a row can be filtered by beside its sources
STATES = ("all", "relabelled", "not relabelled", "left out", "identical", "tie", "duplicate", "margin unknown")
SORTS = ("order", "margin", "length", "iteration", "score")
VIEW: dict[str, Any] = {"text": "", "low": None, "high": None, **dict.fromkeys(("source", *PLACES), "")}
VIEW |= {"state": "all", "sort": "order", "down": False}


@dataclass(frozen=True)
class Origin:
    """Where rows came from: a file or a part of a run, and a table in it."""

    source: str
    table: str = ""


@dataclass
class Rows:
    """Checked rows and what filters look at.

    Attributes:
        raw: the rows with the project's column names; never changed.
        origins: where they came from; `origin_of[i]` says which, `number[i]` which row of it, from 0 on.
    """

    raw: list[Row]
    origins: list[Origin] = field(default_factory=lambda: [Origin("rows given in Python")])
    origin_of: np.ndarray = field(default_factory=lambda: np.zeros(0, int))
    number: np.ndarray = field(default_factory=lambda: np.zeros(0, int))

    def __post_init__(self):
        self.raw = [_checked(row, i) for i, row in enumerate(self.raw)]
        if len(self.origin_of) != len(self.raw):
            self.origin_of, self.number = np.zeros(len(self.raw), int), np.arange(len(self.raw))
        self.kinds = [kind_of(row) for row in self.raw]

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def light(self) -> pd.DataFrame:
        """What lists, filters and figures need of every row: [row], no texts."""
        parts = [responses(row) for row in self.raw]
        margins, lengths = zip(*map(_numbers, self.raw, parts, range(len(parts))), strict=True) if parts else ((), ())
        prompts = [json.dumps(row["prompt"], sort_keys=True) for row in self.raw]
        # the same pair in the tables of two arms is no repetition
        keys = [(*at, *texts) for *at, texts in zip(self.origin_of.tolist(), prompts, parts, strict=True)]
        copies, kinds = Counter(keys), enumerate(self.kinds)
        scores = [_number(self.raw[i], "score", i) if kind == "rated" else math.nan for i, kind in kinds]
        table = pd.DataFrame({"kind": self.kinds})
        marks = {"identical": [len(texts) > 1 and len(set(texts)) == 1 for texts in parts]}
        marks |= {"empty": [not all(map(str.strip, texts)) for texts in parts], "tie": list(map(is_tie, self.raw))}
        for name, values in (("margin", margins), ("length", lengths), ("score", scores), *marks.items()):
            table[name] = np.array(values, bool if name in marks else float)
        table["copies"] = np.array([copies[key] for key in keys], int)
        for name in (*SOURCES, *PLACES):
            table[name] = pd.Series([_name(row.get(name)) for row in self.raw], dtype=object)
        return table

    @cached_property
    def facets(self) -> dict[str, list[str]]:
        """The values that rows can be filtered by, in natural order; a filter of one value is none and stays empty."""
        table = self.light
        found = {name: set(table[name]) - {""} for name in PLACES}
        found["source"] = set().union(*(set(table[name]) for name in SOURCES)) - {""}
        return {name: sorted(values, key=natural) if len(values) > 1 else [] for name, values in found.items()}

    @cached_property
    def _haystack(self) -> tuple[bytes, list[int]]:
        """All texts in lower case behind each other, and where each row begins: one search over it beats one a row."""
        texts = [search_text(row).lower().replace("\0", "").encode("utf-8", "surrogatepass") for row in self.raw]
        starts = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])]).astype(int)
        return b"\0".join([*texts, b""]), starts.tolist()

    def prepare_search(self) -> None:
        """Does once what the first search would have to wait for."""
        _ = self._haystack

    def _holding(self, words: str) -> np.ndarray:
        """Which rows hold these words, whatever their case: [row]."""
        (blob, starts), hits = self._haystack, np.zeros(len(self.raw), bool)
        at = blob.find(wanted := words.encode("utf-8", "surrogatepass"))
        while at >= 0:
            row = bisect_right(starts, at) - 1
            hits[row] = True
            at = blob.find(wanted, starts[row + 1])
        return hits

    def order(self, view: Mapping[str, Any], labels: Mapping[int, str]) -> np.ndarray:
        """Row numbers that this view shows, in its order; unknown margins are in no range, and always last."""
        table, n = self.light, len(self.raw)
        keep = np.ones(n, bool)
        if words := view["text"].strip().lower().replace("\0", ""):
            keep &= self._holding(words)
        margin = table["margin"].to_numpy()
        for bound, side in (("low", np.greater_equal), ("high", np.less_equal)):
            keep &= view[bound] is None or side(margin, view[bound])
        if view["source"]:
            keep &= (table[list(SOURCES)] == view["source"]).any(axis=1).to_numpy()
        for name in PLACES:
            if view[name]:
                keep &= (table[name] == view[name]).to_numpy()
        value = np.full(n, "", object)
        value[list(labels)] = list(labels.values())
        labelled, is_tie = value != "", table["tie"].to_numpy()
        states = {"relabelled": labelled, "not relabelled": ~labelled, "left out": value == "x"}
        states |= {"tie": np.where(labelled, value == "0", is_tie), "identical": table["identical"].to_numpy()}
        states |= {"duplicate": (table["copies"] > 1).to_numpy(), "margin unknown": np.isnan(margin)}
        found = np.flatnonzero(keep & states.get(view["state"], True))
        if view["sort"] == "order":
            return found[::-1] if view["down"] else found
        column: Any = pd.to_numeric(table[view["sort"]], errors="coerce")
        values = column.to_numpy(float)[found]
        known = ~np.isnan(values)
        place = np.argsort(-values[known] if view["down"] else values[known], kind="stable")
        return np.concatenate([found[known][place], found[~known]])


def checked_view(changes: Mapping[str, Any], view: Mapping[str, Any] = VIEW) -> dict[str, Any]:
    """The view with these changes; a ValueError names an unknown filter, state, order or what is no margin."""
    if unknown := [name for name in changes if name not in VIEW]:
        raise ValueError(f"no filter {unknown[0]!r}; known: {', '.join(VIEW)}")
    view = {**view, **changes}
    for name, known in (("state", STATES), ("sort", SORTS)):
        if view[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}; got {view[name]!r}")
    for name in ("low", "high"):
        value = view[name]
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value)):
            raise ValueError(f"{name} is a number or None; got {value!r}")
    return {**view, **{name: _name(view[name]) for name in ("text", "source", *PLACES)}, "down": bool(view["down"])}


# ------------------------------------------------------------------------------------------------------------ one row
def kind_of(row: Row) -> str:
    """ "pair", "ranking" or "rated", by the columns that are there; "" for none of them."""
    return next((kind for kind, columns in COLUMNS.items() if all(row.get(name) is not None for name in columns)), "")


def responses(row: Row) -> list[str]:
    """The texts as they are shown: chosen and rejected, a ranking from best to worst, or the one that was rated."""
    if "chosen" in row:
        return [row["chosen"], row["rejected"]]
    return [row["responses"][k] for k in shown_order(row)] if "responses" in row else [row["completion"]]


def shown_order(row: Row) -> list[int]:
    """Places of a ranking's responses from best to worst; equal ones in the order given, unknown ones last."""
    by_score = row.get("scores") is not None
    values = [float(value) if value is not None else math.nan for value in row["scores" if by_score else "ranks"]]
    keys = [math.inf if math.isnan(value) else -value if by_score else value for value in values]
    return sorted(range(len(keys)), key=keys.__getitem__)


def is_tie(row: Row) -> bool:
    """Whether the row prefers nothing: `p_chosen` of one half, or two best responses with the same score or rank."""
    if "chosen" in row:
        return row.get("p_chosen") == 0.5
    if "responses" not in row or len(row["responses"]) < 2:
        return False
    values, order = row["scores"] if row.get("scores") is not None else row["ranks"], shown_order(row)
    return values[order[0]] == values[order[1]]


def prompt_text(prompt: Any) -> str:
    """A prompt as text; of a chat every turn behind its role."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def search_text(row: Row) -> str:
    return "\n".join([prompt_text(row["prompt"]), *responses(row)])


def plain_value(value: Any) -> Any:
    """JSON types only; a number that is not finite becomes null, bytes and dates become text."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_value(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str) and not value.isascii():
        return value.encode("utf-8", "replace").decode()  # half a surrogate pair is no text that a file could hold
    return value if value is None or isinstance(value, (str, int, bool)) else str(value)


def _name(value: Any) -> str:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value == int(value) else str(value)


def natural(text: str) -> list[tuple[int, int, str]]:
    """A sort key that puts 2 before 10."""
    parts = (part for part in re.split(r"([0-9]+)", text) if part)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _number(row: Row, column: str, index: int) -> float:
    value = row.get(column)
    if value is None:
        return math.nan
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.number)):
        raise ValueError(f"row {index}, column {column!r}: a number is needed; got {value!r}")
    return float(value) if math.isfinite(value) else math.nan


def _numbers(row: Row, texts: list[str], index: int) -> tuple[float, float]:
    """Margin, and length of the best response minus the worst one in characters; NaN where there is none."""
    if "responses" in row:
        values = row.get("scores")
        best = [values[k] for k in shown_order(row)[:2]] if values is not None else []
        known = len(best) == 2 and all(value is not None and math.isfinite(value) for value in best)
        margin = best[0] - best[1] if known else math.nan
        return margin, len(texts[0]) - len(texts[-1]) if len(texts) > 1 else math.nan
    if "chosen" not in row:
        return math.nan, math.nan
    length = len(texts[0]) - len(texts[1])
    if "margin" in row:
        return _number(row, "margin", index), length
    return _number(row, "chosen_rewards", index) - _number(row, "rejected_rewards", index), length


# ----------------------------------------------------------------------------------------------------------- checking
def _checked(given: Mapping[str, Any], index: int) -> Row:
    """The row with the project's column names, a copy; or what is wrong with it."""
    if not isinstance(given, Mapping):
        raise ValueError(f"row {index}: a row is a dict with named columns; got {type(given).__name__}")
    row: Row = {str(key): value.tolist() if hasattr(value, "tolist") else value for key, value in given.items()}
    if "p_b_preferred" in row and "chosen" not in row:  # one half prefers neither: shown as a tie
        swapped, sides = row["p_b_preferred"] > 0.5, (row.pop("response_a", None), row.pop("response_b", None))
        row |= {"chosen": sides[swapped], "rejected": sides[not swapped]}
        row["p_chosen"] = max(row["p_b_preferred"], 1 - row["p_b_preferred"])
    if "responses" not in row and any(isinstance(value, dict) and "is_correct" in value for value in row.values()):
        row = data.as_rankings([row])[0]
    for column, names in data.ALIASES.items():
        if row.get(column) is None and (alias := next((name for name in names if row.get(name) is not None), "")):
            row[column] = row.pop(alias)
    rejected: Any = row.get("rejected")
    if isinstance(rejected, list) and all(isinstance(x, str) for x in rejected) and isinstance(row.get("chosen"), str):
        if "scores" in row:  # of something else, such as the chunks that LOGO answers from
            row["scores given"] = row.pop("scores")
        row |= {"responses": [row.pop("chosen"), *row.pop("rejected")], "ranks": [1, *[2] * len(rejected)]}
    for side in ("chosen", "rejected"):
        if isinstance(row.get(side), list):
            turns = _chat(row[side], index, side)
            row = {"prompt": turns[:-1], **row, side: turns[-1]["content"]}
    kind = kind_of(row)
    if not kind:
        whole = (columns for columns in COLUMNS.values() if all(name in row for name in columns))
        if null := next((name for name in next(whole, ()) if row[name] is None), ""):
            told = 'it is missing (null); an empty response is written as ""'
            raise ValueError(f"row {index}, column {null!r}: {told}")
        raise ValueError(f"row {index} is no pair, ranking or rated row: {NEEDS}; found {', '.join(row) or 'nothing'}")
    if isinstance(row["prompt"], str) and row["prompt"].startswith('[{"'):  # a chat, as tables keep it
        row["prompt"] = data.prompt_of(row["prompt"])
    if not isinstance(row["prompt"], str):
        row["prompt"] = _chat(row["prompt"], index, "prompt")
    for column in {"pair": ("chosen", "rejected"), "rated": ("completion",)}.get(kind, ()):
        if not isinstance(row[column], str):
            got = f"{type(row[column]).__name__} {row[column]!r:.60}"
            raise ValueError(f"row {index}, column {column!r}: text or a chat list is needed; got {got}")
    if kind == "ranking":
        _check_ranking(row, index)
    return row


def _check_ranking(row: Row, index: int) -> None:
    texts = row["responses"]
    if not isinstance(texts, list) or not texts:
        raise ValueError(f"row {index}, column 'responses': a list of texts is needed; got {texts!r:.60}")
    for k, text in enumerate(texts):
        if not isinstance(text, str):
            got = f"response {k} is {type(text).__name__} {text!r:.60}"
            raise ValueError(f"row {index}, column 'responses': text is needed; {got}")
    if all(row.get(name) is None for name in ("scores", "ranks")):
        raise ValueError(f"row {index}: a ranking needs scores or ranks; found {', '.join(row)}")
    for name in ("scores", "ranks", "names"):
        values = row.get(name)
        if values is None:
            continue
        many = len(values) if isinstance(values, list) else repr(values)[:60]
        if many != len(texts):
            raise ValueError(f"row {index}, column {name!r}: {len(texts)} responses need as many values; got {many}")
        for k, value in enumerate(values if name != "names" else ()):
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise ValueError(f"row {index}, column {name!r}: numbers are needed; value {k} is {value!r}")


def _chat(turns: Any, index: int, column: str) -> list[dict[str, str]]:
    """Turns with a role and text; parts that are no text are named in brackets."""
    turns = turns.tolist() if hasattr(turns, "tolist") else turns
    if not isinstance(turns, (list, tuple)) or not turns:
        got = f"{type(turns).__name__} {turns!r:.60}"
        raise ValueError(f"row {index}, column {column!r}: text or a chat list is needed; got {got}")
    found = []
    for k, turn in enumerate(turns):
        content = turn.get("content") if isinstance(turn, Mapping) else None
        if isinstance(content, (list, tuple)) and all(isinstance(part, Mapping) for part in content):
            both = ((part.get("text"), part.get("type", "part")) for part in content)
            content = "".join(text if isinstance(text, str) else f"[{kind}]" for text, kind in both)
        if not isinstance(content, str):
            raise ValueError(f"row {index}, column {column!r}: turn {k} needs a role and content; got {turn!r:.80}")
        found.append({**turn, "role": str(turn.get("role", "user")), "content": content})
    return found
