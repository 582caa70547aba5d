"""Where the rows of a preference browser come from: tables, and the tables that methods leave in run folders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import data
from workbench.widgets.preference_browser.rows import COLUMNS, PLACES, SOURCES, Origin, Row, Rows, kind_of, natural

LISTS = {"list", "prompt", "response", "score"}  # columns of rankings that have one row an answer
UNKNOWN = ("margin", "score")  # a missing value of these stays, as unknown
PROBES = "probe"  # the folder of `workbench.training.probes`, which brings torch


def of_frame(frame: pd.DataFrame) -> list[Row]:
    """Rows of a table. Missing values of a table that mixes kinds are left out; answers of lists become rankings."""
    if set(frame.columns) >= LISTS and "responses" not in frame:
        return _gathered(frame)
    rows: Any = frame.to_dict("records")
    for name in frame.columns.difference(UNKNOWN, sort=False):
        for k in np.flatnonzero(frame[name].isna()):
            del rows[k][name]
    return rows


def _gathered(frame: pd.DataFrame) -> list[Row]:
    """One ranking a list, from a table with one row an answer; what all answers share stays one value."""
    rows = []
    for _, part in frame.groupby("list", sort=False):
        texts, scores = part["response"].tolist(), part["score"].tolist()
        row = {"prompt": part["prompt"].iloc[0], "responses": texts, "scores": scores}
        for name in map(str, part.columns.difference(list(LISTS), sort=False)):
            values = part[name].tolist()
            row[name] = values[0] if name in (*SOURCES, *PLACES) else values
        rows.append(row)
    return rows


def of_run(folder: str | Path, tables: Sequence[str] = ()) -> Rows:
    """Rows of every Parquet table below a run folder that holds one of the three kinds.

    Two tables of one folder with the very same pairs (as `held_out` and `held_out_rewards`) are one, with the columns
    of both. What a probe saw (`probes`) belongs to `TrainingMonitor`: its pairs stand elsewhere too. Arguments and
    errors are those of `PreferenceBrowser.of_run`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no run folder {folder}")
    names = (path.relative_to(folder) for path in folder.rglob("*.parquet"))
    names = sorted(names, key=lambda name: natural(str(name)))
    paths = [folder / name for name in names if not any(part.startswith(".") or part == PROBES for part in name.parts)]
    raw: list[Row] = []
    origins, owner, number = [], [], []
    for home in dict.fromkeys(path.parent for path in paths):
        for name, table in _tables([path for path in paths if path.parent == home], tables).items():
            found, about = of_frame(table), {"source": name, **_place(home)}
            origins.append(Origin((Path(folder.resolve().name) / home.relative_to(folder)).as_posix(), name))
            raw += [{**about, **row} for row in found]
            owner += [len(origins) - 1] * len(found)
            number += range(len(found))
    if not raw:
        seen = ", ".join(dict.fromkeys(path.stem for path in paths)) or "no table at all"
        raise ValueError(f"{folder} holds no pairs, rankings or rated rows; found {seen[:300]}")
    return Rows(raw, origins, np.array(owner), np.array(number))


def _tables(paths: Sequence[Path], wanted: Sequence[str]) -> dict[str, pd.DataFrame]:
    """The tables of one folder that hold such rows, by name; those with the very same pairs as one."""
    import pyarrow.parquet as pq

    stems = {path.stem for path in paths}
    parts: dict[str, pd.DataFrame] = {}
    for path in paths:
        shard = re.fullmatch(r"(.+)-[0-9]+", path.stem)
        if (wanted and path.stem not in wanted) or (shard and shard[1] in stems):
            continue
        names = set(pq.read_schema(path).names)
        columns = names | {column for column, aliases in data.ALIASES.items() if names & set(aliases)}
        kind = kind_of(dict.fromkeys(columns, 0))
        if not (columns & {"scores", "ranks"} if kind == "ranking" else kind or columns >= LISTS):
            continue
        table = pd.read_parquet(path)
        same = next((name for name, other in parts.items() if _same_pairs(table, other)), None)
        if same is None:
            parts[path.stem] = table
        else:
            other = parts.pop(same)
            new = {str(name): table[name] for name in table.columns.difference(other.columns, sort=False)}
            parts[f"{same} + {path.stem}"] = other.assign(**new)
    return parts


def _same_pairs(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    pair = list(COLUMNS["pair"])
    both = set(pair) <= set(table.columns) and set(pair) <= set(other.columns) and len(table) == len(other)
    return both and table[pair].equals(other[pair])


def _place(home: Path) -> Row:
    """Seed, arm and round, as the names of folders tell them: `seed-0/spin/round-2`."""
    parts = home.resolve().parts
    at = max((i for i, part in enumerate(parts) if re.fullmatch(r"seed-\d+", part)), default=-1)
    if at < 0:
        return {}
    rounds = [i for i in range(at + 1, len(parts)) if re.fullmatch(r"round-\d+", parts[i])]
    arm = "/".join(parts[at + 1 : rounds[0] if rounds else len(parts)])
    place: Row = {"seed": int(parts[at][5:])}
    return place | ({"arm": arm} if arm else {}) | ({"iteration": int(parts[rounds[0]][6:])} if rounds else {})
