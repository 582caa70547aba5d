"""Comparison of two runs: what differs in parameters, in what they were made with, and in what came out.

NaN equals NaN here: a run that gives NaN twice gave the same twice. Manifests may come from anywhere, so nothing in
them is taken for markup or reaches the terminal as a control character.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench import runs
from workbench.runs import names as run_names

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "(none)"  # what stands in place of a value that one of the two does not have
_WIDEST = 100  # characters of a value in a table


class Difference(NamedTuple):
    """One value that is not the same: dotted name, and the value of either run, `MISSING` where there is none."""

    name: str
    a: Any
    b: Any


class ClaimPair(NamedTuple):
    """One claim in both runs. Means are over seeds, NaN where there is nothing measured; verdicts "" where missing.
    `same` where every field of the two records is equal, seed by seed."""

    id: str
    statement: str
    mean_a: float
    mean_b: float
    verdict_a: str
    verdict_b: str
    same: bool


class SeedNumbers(NamedTuple):
    """How far the results of one seed agree.

    Attributes:
        numbers: that both runs have.
        differing: of those.
        largest: |a - b| / max(|a|, |b|) of the number that differs most; infinite where one is NaN or infinite.
        where: dotted name of that number.
        others: values that are no numbers and differ, or that only one of the two has.
    """

    part: str
    numbers: int
    differing: int
    largest: float
    where: str
    others: int


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side.

    Attributes:
        parameters: what was asked for: system, scale, seeds, model, data set, device, `config.*`.
        made_with: code, notebook, packages, hardware, and the content of the inputs.
        only: parts (seeds) whose results only one of the two holds: (part, "a" or "b").
    """

    a: str
    b: str
    parameters: list[Difference]
    made_with: list[Difference]
    claims: list[ClaimPair]
    seeds: list[SeedNumbers]
    only: list[tuple[str, str]]

    @property
    def same_results(self) -> bool:
        """True when every claim and every result of every seed is equal, to the last digit, and there are some."""
        equal = all(claim.same for claim in self.claims) and not any(s.differing or s.others for s in self.seeds)
        return equal and not self.only and bool(self.claims or self.seeds)

    def verdict(self) -> str:
        """In one line, whether the results are the same."""
        if self.same_results:
            numbers = sum(seed.numbers for seed in self.seeds)
            return f"identical: {len(self.claims)} claims and {numbers} numbers of {len(self.seeds)} seeds are the same"
        if not self.claims and not self.seeds and not self.only:
            return "nothing to compare: neither run holds claims or results"
        claims, seeds = [c for c in self.claims if not c.same], [s for s in self.seeds if s.differing or s.others]
        parts = [f"{len(claims)} of {len(self.claims)} claims", f"{len(seeds)} of {len(self.seeds)} seeds"]
        if changed := sum(c.verdict_a != c.verdict_b for c in self.claims):
            parts.append(f"{changed} verdicts")
        return f"not identical: {', '.join(parts)} differ" + (f"; {len(self.only)} in one only" if self.only else "")

    def record(self) -> dict[str, Any]:
        """The same as JSON types; numbers that JSON does not have are null."""
        said: dict[str, Any] = {"a": self.a, "b": self.b, "same_results": self.same_results, "verdict": self.verdict()}
        said |= {name: [row._asdict() for row in getattr(self, name)] for name in ("parameters", "made_with")}
        said["claims"] = [{**row._asdict(), "difference": row.mean_b - row.mean_a} for row in self.claims]
        said["seeds"] = [row._asdict() for row in self.seeds]
        return _finite(said | {"only": [{"part": part, "in": side} for part, side in self.only]})


def compare(a: runs.Run, b: runs.Run, root: Path | None = None) -> Comparison:
    """What differs between two runs, which are named under `root`; None takes the default folder of all runs.

    Raises:
        ValueError: one of them is no run, or its manifest cannot be read.
    """
    for run in (a, b):
        if not run.manifest:
            raise ValueError(f"{run.folder} is no run: it holds no manifest.json")
    asked, made = zip(*(_asked_and_made(run) for run in (a, b)), strict=True)
    ours, theirs = ({path.parent.name: path for path in run.folder.glob("seed-*/result.json")} for run in (a, b))
    both = sorted(ours.keys() & theirs.keys(), key=_number)
    only = [(part, "a" if part in ours else "b") for part in sorted(ours.keys() ^ theirs.keys(), key=_number)]
    seeds = [_numbers(part, runs.read_json(ours[part]), runs.read_json(theirs[part])) for part in both]
    names = run_names.name_of(a, root), run_names.name_of(b, root)
    return Comparison(*names, differences(*asked), differences(*made), _claims(a.claims(), b.claims()), seeds, only)


def differences(a: Any, b: Any) -> list[Difference]:
    """The values that are not the same in two nested mappings, by dotted name; lists count as one value."""
    left, right = dict(_leaves(a, into_lists=False)), dict(_leaves(b, into_lists=False))
    pairs = [Difference(name, left.get(name, MISSING), right.get(name, MISSING)) for name in left | right]
    return [pair for pair in pairs if not _same(pair.a, pair.b) or (pair.name in left) != (pair.name in right)]


def _asked_and_made(run: runs.Run) -> tuple[dict[str, Any], dict[str, Any]]:
    manifest = run.manifest
    parameters = dict(manifest.get("parameters") or {})
    asked = {"system": manifest.get("system"), "scale": manifest.get("scale")}
    asked |= {name: value for name, value in parameters.items() if name not in ("inputs", "sources")}
    code = dict(manifest.get("code") or {})
    if code.pop("diff", ""):
        path = run.folder / runs.DIFF
        code["diff"] = runs.fingerprint(str(path)) if path.is_file() else "lost"
    items = [item for item in manifest.get("inputs") or [] if isinstance(item, Mapping) and "kind" in item]
    told = ("fingerprint", "revision")
    known = {item["kind"]: {key: value for key, value in item.items() if key in told} for item in items}
    inputs = known or dict(zip(("model", "dataset"), parameters.get("inputs") or [], strict=False))
    made = {"code": code, "notebook": manifest.get("notebook"), "provenance": manifest.get("provenance") or {}}
    return asked, {**made, "inputs": inputs}


def _claims(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> list[ClaimPair]:
    left, right = ({str(record.get("id")): record for record in records} for records in (a, b))
    pairs = []
    for name in left | right:
        both = left.get(name, {}), right.get(name, {})
        means = [_mean(record.get("measured")) for record in both]
        verdicts = [str(record.get("verdict", "")) for record in both]
        statement = str((both[0] or both[1]).get("statement", ""))
        pairs.append(ClaimPair(name, statement, means[0], means[1], verdicts[0], verdicts[1], _same(*both)))
    return pairs


def _mean(values: Any) -> float:
    numbers = [float(value) if _is_number(value) else math.nan for value in values or ()]
    return math.fsum(numbers) / len(numbers) if numbers and all(map(math.isfinite, numbers)) else math.nan


def _numbers(part: str, a: Any, b: Any) -> SeedNumbers:
    def gap(one: float, other: float) -> float:
        finite = math.isfinite(one) and math.isfinite(other)
        return abs(one - other) / max(abs(one), abs(other)) if finite else math.inf

    left, right = dict(_leaves(a)), dict(_leaves(b))
    shared = {name: (left[name], right[name]) for name in left if name in right}
    numbers = {name: pair for name, pair in shared.items() if all(map(_is_number, pair))}
    gaps = {name: gap(*pair) for name, pair in numbers.items() if not _same(*pair)}
    others = sum(not _same(*pair) for pair in shared.values()) - len(gaps)
    where = max(gaps, key=lambda name: gaps[name], default="")
    alone = len(left) + len(right) - 2 * len(shared)
    return SeedNumbers(part, len(numbers), len(gaps), gaps.get(where, 0.0), where, others + alone)


def _leaves(value: Any, name: str = "", into_lists: bool = True) -> Iterator[tuple[str, Any]]:
    """Dotted names and values; an empty mapping or list is a value."""
    inside = dict(enumerate(value)) if into_lists and isinstance(value, list) else value
    if not (isinstance(inside, Mapping) and inside):
        yield name, value
        return
    for key, item in inside.items():
        yield from _leaves(item, f"{name}.{key}" if name else str(key), into_lists)


def _same(a: Any, b: Any) -> bool:
    """Equal in type of JSON and value; NaN equals NaN, 1 equals 1.0, true does not equal 1."""
    if _is_number(a) and _is_number(b):
        return a == b or (a != a and b != b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and a == b


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(part: str) -> tuple[int, str]:
    digits = part.removeprefix("seed-")
    return (int(digits) if digits.isdigit() else -1, part)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------------------- printing
def show(comparison: Comparison, console: Console) -> None:
    """Prints the tables of what differs, and the verdict in the last line; what is the same is said in a line."""
    from rich.text import Text

    def line(text: str) -> None:
        console.print(Text(text), soft_wrap=True)

    line(f"A: {printable(comparison.a)}\nB: {printable(comparison.b)}")
    for title, rows in (("Parameters", comparison.parameters), ("Made with", comparison.made_with)):
        line(f"{title}: {f'{len(rows)} differ' if rows else 'identical'}")
        _table(console, ("name", "A", "B"), rows)
    if comparison.claims:
        line(f"Claims: {sum(not row.same for row in comparison.claims)} of {len(comparison.claims)} differ")
    _table(console, ("claim", "statement", "A", "B", "B - A", "verdict A → B"), map(_claim_cells, comparison.claims))
    differing = [row for row in comparison.seeds if row.differing or row.others]
    if comparison.seeds:
        n = len(comparison.seeds)
        line(f"Results: {f'{len(differing)} of {n} seeds differ' if differing else f'{n} seeds, identical'}")
    names = ("seed", "numbers", "differ", "largest relative difference", "at", "other values that differ")
    _table(console, names, [(r.part, r.numbers, r.differing, _digits(r.largest), r.where, r.others) for r in differing])
    for part, side in comparison.only:
        line(f"{printable(part)}: only in {side.upper()}")
    line(comparison.verdict())


def _table(console: Console, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(*names, box=None, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*[Text(printable(cell)) for cell in row])
    if table.row_count:
        console.print(table)


def _claim_cells(row: ClaimPair) -> tuple[str, ...]:
    before, after = row.verdict_a or MISSING, row.verdict_b or MISSING
    gap = "identical" if row.same else _digits(row.mean_b - row.mean_a)
    moved = before if before == after else f"{before} → {after}"
    return (row.id, row.statement, _digits(row.mean_a), _digits(row.mean_b), gap, moved)


def _digits(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.4g}"


def printable(value: Any, *, widest: int = _WIDEST) -> str:
    """A value in one line of limited length, without what a terminal would obey."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = "".join(letter if letter.isprintable() else "�" for letter in text)
    return text if len(text) <= widest else f"{text[: widest - 1]}…"
