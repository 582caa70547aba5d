"""Metrics files of run folders: found, followed while they grow, and made into lines of few points."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from workbench import runs

NAME = "metrics.jsonl"
_AXES = ("step", "round")
CLOCKS = ("elapsed_s", "seconds", "wall_s")  # columns that say when a row was written, seconds since the start


class Tail:
    """One growing file of JSON lines: every call of `read` takes what is new.

    A file that became shorter, was replaced (a resumed training drops rows) or differs before the place that was read
    up to is read anew. A last line without its end counts if it is whole JSON, else it is waited for.
    """

    def __init__(self, path: Path):
        self.path = path
        self._begin((0, 0))

    def _begin(self, file: tuple[int, int]) -> None:
        """Forgets what was read; `file` says by its device and number which file is read from now on."""
        self.rows: list[dict[str, Any]] = []
        self.broken = 0  # whole lines that are no JSON object
        self._place, self._file, self._mark, self._open_row = 0, file, b"", False

    def read(self) -> bool:
        """True where something changed."""
        try:
            with open(self.path, "rb") as file:
                facts = os.fstat(file.fileno())
                file.seek(max(0, self._place - len(self._mark)))
                same = file.read(len(self._mark)) == self._mark
                if (facts.st_dev, facts.st_ino) != self._file or facts.st_size < self._place or not same:
                    self._begin((facts.st_dev, facts.st_ino))
                file.seek(self._place)
                new = file.read()
        except FileNotFoundError:
            changed = bool(self.rows)
            self._begin((0, 0))
            return changed
        whole, _, rest = new.rpartition(b"\n")
        before = len(self.rows)
        if self._open_row and (whole or not rest):
            self.rows.pop()
            self._open_row = False
        lines = [(line, _parsed(line)) for line in whole.split(b"\n")]
        self.rows += [row for _, row in lines if row is not None]
        self.broken += sum(row is None and bool(line.strip()) for line, row in lines)
        if whole or new.endswith(b"\n"):
            taken = len(new) - len(rest)
            self._place += taken
            self._mark = (self._mark + new[:taken])[-64:]
        if rest and not self._open_row and (row := _parsed(rest)) is not None:
            self.rows.append(row)
            self._open_row = True
        return bool(whole) or len(self.rows) != before


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return row if isinstance(row, dict) else None


# ---------------------------------------------------------------------------------------------------------- whose it is
@dataclass
class Part:
    """The metrics of one arm and seed: its rounds one behind the other.

    Attributes:
        folders: of the rounds, in order.
        borders: steps at which a round ends, but for the last one.
    """

    arm: str
    seed: int | None
    folders: list[Path]
    tails: list[Tail]

    @property
    def name(self) -> str:
        return self.arm if self.seed is None else f"{self.arm} · seed {self.seed}"

    def offsets(self) -> list[int]:
        """Steps before each round."""
        steps = [[int(_number(row.get("step"), k)) for k, row in enumerate(tail.rows)] for tail in self.tails]
        return np.cumsum([0, *(max(found, default=-1) + 1 for found in steps)])[:-1].tolist()

    @property
    def borders(self) -> list[int]:
        return self.offsets()[1:]

    @property
    def n_rows(self) -> int:
        return sum(len(tail.rows) for tail in self.tails)

    def columns(self) -> tuple[np.ndarray, dict[str, np.ndarray], int]:
        """Steps [row], every numeric column [row] (NaN where a row lacks it), and how many values were not finite.

        Steps count through the rounds; a row without `step` counts by its place.
        """
        rows, steps, bad = [], [], 0
        for offset, tail in zip(self.offsets(), self.tails, strict=True):
            steps += [offset + _number(row.get("step"), k) for k, row in enumerate(tail.rows)]
            rows += tail.rows
        names = dict.fromkeys(name for row in rows for name, value in row.items() if _is_number(value))
        names = [name for name in names if name not in _AXES]
        found = {name: np.array([_number(row.get(name), math.nan) for row in rows]) for name in names}
        for name, values in found.items():
            bad += sum(name in row and not math.isfinite(x) for row, x in zip(rows, values, strict=True))
            values[~np.isfinite(values)] = math.nan
        return np.array(steps, dtype=float), found, bad


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any, otherwise: float) -> float:
    return float(value) if _is_number(value) else otherwise


def place_of(path: Path, root: Path) -> tuple[str, int | None, int]:
    """Arm, seed and round that the folder `path` below `root` names: `seed-0/dpo/round-1` is ("dpo", 0, 1)."""
    seed, number, arm = None, 0, []
    # a part of a run that was asked for by itself: what it belongs to stands above it
    above = [part for part in root.parts if re.fullmatch(r"seed-\d+|round-\d+", part)]
    for part in (*above, *path.relative_to(root).parts):
        if match := re.fullmatch(r"seed-(\d+)", part):
            seed = int(match[1])
        elif match := re.fullmatch(r"round-(\d+)", part):
            number = int(match[1])
        else:
            arm.append(part)
    named = next((part for part in reversed(root.parts) if part not in above), "run")
    return "/".join(arm) or named, seed, number


class Files:
    """All metrics files below some folders, by arm and seed.

    Args:
        sources: label -> folder; with more than one, arms are named `label · arm`.
    """

    def __init__(self, sources: dict[str, Path]):
        self.sources = sources
        self.parts: list[Part] = []
        self._tails: dict[Path, Tail] = {}

    def refresh(self) -> bool:
        """Looks for new files and reads the new end of each; True where something changed."""
        changed, found = False, defaultdict(list)
        for label, root in self.sources.items():
            for path in sorted(root.rglob(NAME)):
                arm, seed, number = place_of(path.parent, root)
                if len(self.sources) > 1:
                    arm = label if path.parent == root or arm == root.name else f"{label} · {arm}"
                tail = self._tails.setdefault(path, Tail(path))
                changed |= tail.read()
                found[arm, seed].append((number, path.parent, tail))
        new = []
        for (arm, seed), rounds in found.items():
            rounds.sort(key=lambda one: one[0])
            new.append(Part(arm, seed, [folder for _, folder, _ in rounds], [tail for *_, tail in rounds]))
        new.sort(key=lambda part: (part.arm, -1 if part.seed is None else part.seed))
        changed |= [part.name for part in new] != [part.name for part in self.parts]
        self.parts = new
        return changed


# -------------------------------------------------------------------------------------------------------- run folders
def folders(sources: Sequence[Any]) -> dict[str, Path]:
    """Label -> folder of what the user named."""
    found: dict[str, Path] = {}
    pairs = [pair for one in sources for pair in (one.items() if isinstance(one, Mapping) else [("", one)])]
    for label, source in pairs:
        path = Path(getattr(source, "folder", source)).expanduser().resolve()
        path = path.parent if path.is_file() else path
        if not path.is_dir():
            remedy = "give a run folder, such as experiment.run.folder, before or while it is trained"
            raise ValueError(f"no folder {path}; {remedy}")
        label = str(label) or _label(path, found)
        if label in found:
            raise ValueError(f"two sources are called {label!r}; name them: TrainingMonitor({{'a': ..., 'b': ...}})")
        found[label] = path
    if not found:
        raise ValueError("no run folder given; for example TrainingMonitor(experiment.run.folder)")
    return found


def _label(path: Path, taken: Mapping[str, Any]) -> str:
    """What the manifest in the folder calls it, or its name; longer where another source is called so."""
    manifest = runs.Run(path).manifest
    names = [f"{manifest['system']} {manifest['scale']}"] if {"system", "scale"} <= set(manifest) else []
    return next((n for n in (*names, path.name) if n not in taken), f"{path.parent.name}/{path.name}")


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the run that a folder is, or is a part of."""
    for place in (folder, *list(folder.parents)[:4]):
        if (place / "manifest.json").is_file():
            return runs.Run(place).manifest
    return {}


# --------------------------------------------------------------------------------------------------------- fewer points
def thinned(x: np.ndarray, y: np.ndarray, most: int) -> np.ndarray:
    """Places of at most `most` points of a line that keep its look: first, last, lowest and highest of each stretch.

    A gap (NaN) stays a gap: one of the points of a stretch without any number is kept.
    """
    if len(x) <= most:
        return np.arange(len(x))
    kept = {0, len(x) - 1}
    a_stretch = 3 if np.isnan(y).any() else 2
    for stretch in np.array_split(np.arange(len(x)), max(1, (most - 2) // a_stretch)):
        bad = np.isnan(values := y[stretch])
        if not bad.all():
            kept |= {int(stretch[np.nanargmin(values)]), int(stretch[np.nanargmax(values)])}
        if bad.any():
            kept.add(int(stretch[np.argmax(bad)]))
    return np.array(sorted(kept))
