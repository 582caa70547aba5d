"""Data: loading from a hub id, a folder or a file, the column conventions, and checks that name row and column.

Rows are dicts. Kinds of rows and their columns:

- prompt: `prompt` alone, for methods that write the answers themselves
- demonstration: `prompt` (text or chat), `completion` (text)
- preference: `prompt`, `chosen`, `rejected`; optionally `p_chosen` in [0, 1] (how sure the judge is)
- ranking: `prompt`, `responses` (list of texts), `scores` (list of numbers, higher is better)
- rating: `prompt`, `completion`, `score`
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]

KINDS = {
    "prompt": ("prompt",),
    "demonstration": ("prompt", "completion"),
    "preference": ("prompt", "chosen", "rejected"),
    "ranking": ("prompt", "responses", "scores"),
    "rating": ("prompt", "completion", "score"),
}
# What other projects call our columns. The first name found is taken.
ALIASES = {
    "prompt": ("question", "instruction", "query"),
    "completion": ("answer", "response", "output", "solution"),
    "chosen": ("real",),
    "rejected": ("generated",),
}


def load(source: str, *, split: str = "train") -> list[Row]:
    """Rows of a JSONL, JSONL.gz, JSON, CSV or Parquet file, a saved data set, a folder of such files, or a hub id.

    Raises:
        FileNotFoundError: nothing there, and no such data set on the hub (or no network).
        ValueError: a broken line (its number is named), an empty file, a split that does not exist.
    """
    path = Path(source).expanduser()
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz", ".json.gz")):
        rows = _read_jsonl(path)
    else:
        rows = _load_with_datasets(source, path, split)
    if not rows:
        raise ValueError(f"{source} holds no rows")
    return rows


def _read_jsonl(path: Path) -> list[Row]:
    # Read here and not by `datasets`, whose error for a broken line does not say which line it is.
    opener = gzip.open if path.suffix == ".gz" else open
    rows = []
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            at = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                why = f"broken JSON ({error.msg} at column {error.colno})"
                raise ValueError(f"{at}: {why}; mend or remove the line") from None
            if not isinstance(row, dict):
                raise ValueError(f"{at}: a row must be an object with named columns; got {type(row).__name__}")
            rows.append(row)
    return rows


def _load_with_datasets(source: str, path: Path, split: str) -> list[Row]:
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    readers = {".parquet": "parquet", ".csv": "csv", ".json": "json"}
    try:
        if path.is_file():
            if path.suffix not in readers:
                raise ValueError(f"{path}: unknown kind of file; known: .jsonl, .jsonl.gz, {', '.join(readers)}")
            found = datasets.load_dataset(readers[path.suffix], data_files=str(path), split="train")
        elif path.is_dir() and ((path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists()):
            found = datasets.load_from_disk(str(path))
            found = found[split] if isinstance(found, datasets.DatasetDict) else found
        elif source.startswith((".", "/", "~")) and not path.exists():
            raise FileNotFoundError(f"no file or folder {source}")
        else:
            found = datasets.load_dataset(source, split=split)
    except FileNotFoundError:
        raise
    except KeyError:
        raise ValueError(f"{source} has no split {split!r}") from None
    except (OSError, ValueError, DatasetNotFoundError) as error:
        if isinstance(error, ValueError) and ("unknown kind" in str(error) or "split" in str(error)):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Give a .jsonl, .jsonl.gz or .parquet file, a folder, or a hub id that can be reached"
        raise FileNotFoundError(f"cannot load a data set from {source!r}: {reason}. {remedy}") from error
    return [dict(row) for row in found]


# ---------------------------------------------------------------------------------------------------- column names
def as_demonstrations(rows: Sequence[Row]) -> list[Row]:
    """Rows with `prompt` and `completion`, from our names, their aliases, or a `messages` chat.

    Of a chat the first user turn and the first assistant turn are taken, as SPIN does.
    """
    renamed = []
    for index, row in enumerate(rows):
        if "messages" in row and "completion" not in row:
            row = {**row, **_first_turns(row["messages"], index)}
        renamed.append(_rename(row, ("prompt", "completion")))
    return check(renamed, "demonstration")


def as_prompts(rows: Sequence[Row]) -> list[Row]:
    """Rows with `prompt`, from our name, its aliases, or the turns of a `messages` chat before the first answer."""
    renamed = []
    for index, row in enumerate(rows):
        if "messages" in row and "prompt" not in row:
            row = {"prompt": _first_turns(row["messages"], index)["prompt"]}
        renamed.append(_rename(row, ("prompt",)))
    return check(renamed, "prompt")


def as_preferences(rows: Sequence[Row]) -> list[Row]:
    """Rows with `prompt`, `chosen`, `rejected` (and `p_chosen` where known).

    Understands our names, SPIN's `real`/`generated`, chat lists whose last turn is the response, and judged pairs
    `response_a`, `response_b`, `p_b_preferred` (the one with probability above one half is chosen; exactly one half
    prefers neither, and such rows are left out).
    """
    renamed = []
    for index, row in enumerate(rows):
        if "p_b_preferred" in row:
            p = row["p_b_preferred"]
            _probability(row, index, "p_b_preferred")
            if p == 0.5:
                continue
            chosen, rejected = ("b", "a") if p > 0.5 else ("a", "b")
            sides = {"chosen": row.get(f"response_{chosen}"), "rejected": row.get(f"response_{rejected}")}
            row = {**row, **sides, "p_chosen": max(p, 1 - p)}
        row = _rename(row, ("prompt", "chosen", "rejected"))
        for side in ("chosen", "rejected"):
            if isinstance(row.get(side), list):
                row = {"prompt": row[side][:-1], **row, side: row[side][-1]["content"] if row[side] else None}
        renamed.append(row)
    return check(renamed, "preference")


def as_rankings(rows: Sequence[Row]) -> list[Row]:
    """Rows with `prompt`, `responses`, `scores` (and `names`), from our names or from solutions marked right or wrong.

    The second form has one column a model, each `{"solution": text, "is_correct": bool}`: right scores 1, wrong 0.
    """
    renamed = []
    for row in rows:
        row = _rename(row, ("prompt",))
        marked = {name: value for name, value in row.items() if isinstance(value, dict) and "is_correct" in value}
        if marked and "responses" not in row:
            scores = [float(value["is_correct"]) for value in marked.values()]
            responses = [value["solution"] for value in marked.values()]
            row = {"prompt": row.get("prompt"), "names": list(marked), "responses": responses, "scores": scores}
        renamed.append(row)
    return check(renamed, "ranking")


def ranking_matches(rows: Sequence[Row]) -> tuple[list[str], list[tuple[int, int, float]]]:
    """Every pair of named responses to the same prompt as a match (left, right, outcome for left; equal scores tie)."""
    names = sorted({name for row in rows for name in row["names"]})
    place = {name: i for i, name in enumerate(names)}
    matches = [
        (place[left], place[right], 0.5 + 0.5 * ((a > b) - (a < b)))
        for row in rows
        for i, (left, a) in enumerate(zip(row["names"], row["scores"], strict=True))
        for right, b in list(zip(row["names"], row["scores"], strict=True))[i + 1 :]
    ]
    return names, matches


def _rename(row: Row, columns: Sequence[str]) -> Row:
    row = dict(row)
    for column in columns:
        alias = next((name for name in (column, *ALIASES.get(column, ())) if name in row), None)
        if alias is not None:
            row[column] = row[alias]
    return row


def _first_turns(messages: Any, index: int) -> Row:
    turns = [turn for turn in messages if turn.get("role") != "system"] if isinstance(messages, list) else []
    if len(turns) < 2 or turns[0]["role"] != "user" or turns[1]["role"] != "assistant":
        needed = "a chat must begin with a user turn and an assistant turn"
        raise ValueError(f"row {index}, column 'messages': {needed}; got {[t.get('role') for t in turns]}")
    system = [turn for turn in messages if turn.get("role") == "system"][:1]
    return {"prompt": [*system, turns[0]], "completion": turns[1]["content"]}


# --------------------------------------------------------------------------------------------------------- checks
def check(rows: Sequence[Row], kind: str) -> list[Row]:
    """Returns the rows of this kind, or says which row and column is wrong and what would be right.

    Identical pairs are legal, carry no signal and are counted by `identical_share`; a rejected response may be empty,
    because a model may really have said nothing.

    Raises:
        ValueError: no rows; a missing column (those found are listed); an empty prompt, completion or chosen response;
            a score that is no finite number; another number of scores than responses; `p_chosen` outside [0, 1].
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; known: {', '.join(KINDS)}")
    if not rows:
        raise ValueError(f"no {kind} rows")
    need = f"{kind} rows need {', '.join(KINDS[kind])}"
    for index, row in enumerate(rows):
        for column in KINDS[kind]:
            if row.get(column) is None:
                raise ValueError(f"row {index}: column {column!r} is missing; {need}; found {', '.join(map(str, row))}")
        if not row["prompt"] or (isinstance(row["prompt"], str) and not row["prompt"].strip()):
            raise ValueError(f"row {index}, column 'prompt': it is empty; give the question, or remove the row")
        for column in [name for name in KINDS[kind] if name in ("completion", "chosen", "rejected")]:
            at = f"row {index}, column {column!r}"
            if not isinstance(row[column], str):
                raise ValueError(f"{at}: text is needed; got {type(row[column]).__name__}")
            if column != "rejected" and not row[column].strip():
                raise ValueError(f"{at}: it is empty; only generated (rejected) responses may be empty")
        if "p_chosen" in row:
            _probability(row, index, "p_chosen")
        scores = {"rating": [row.get("score")], "ranking": row.get("scores")}.get(kind, [])
        for score in scores or []:
            if not isinstance(score, (int, float)) or not math.isfinite(score):
                column = "score" if kind == "rating" else "scores"
                raise ValueError(f"row {index}, column {column!r}: finite numbers are needed; got {score!r}")
        if kind == "ranking" and len(row["responses"]) != len(row["scores"]):
            raise ValueError(f"row {index}: {len(row['responses'])} responses but {len(row['scores'])} scores")
    return list(rows)


def _probability(row: Row, index: int, column: str) -> None:
    if not isinstance(row[column], (int, float)) or not 0 <= row[column] <= 1:
        at = f"row {index}, column {column!r}"
        raise ValueError(f"{at}: a probability in [0, 1] is needed; got {row[column]!r}")


def identical_share(rows: Sequence[Row]) -> float:
    """Share of preference rows whose two responses are the same text: pairs without any signal."""
    return sum(row["chosen"] == row["rejected"] for row in rows) / len(rows)


def held_out(rows: Sequence[Row], *, test_size: int, seed: int = 0) -> tuple[list[Row], list[Row]]:
    """Splits rows into training and test rows so that no prompt is in both; the same rows whatever their order.

    The split follows a hash of the prompt, so a row does not change sides when rows are added.
    """
    import hashlib

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}|{json.dumps(row['prompt'], sort_keys=True)}".encode()).hexdigest()

    if not 0 < test_size < len(rows):
        raise ValueError(f"test_size must be between 1 and {len(rows) - 1}; got {test_size}")
    by_rank: dict[str, list[Row]] = {}
    for row in rows:
        by_rank.setdefault(rank(row), []).append(row)
    test: list[Row] = []
    for key in sorted(by_rank):
        if len(test) < test_size:
            test += by_rank.pop(key)
    return [row for row in rows if rank(row) in by_rank], test


def prompt_of(written: str) -> Any:
    """A prompt as it was before `draw_samples` wrote it: a chat from its JSON, any other text as it is."""
    try:
        return json.loads(written) if written.startswith('[{"') else written
    except json.JSONDecodeError:
        return written
