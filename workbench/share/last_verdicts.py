"""The last verdicts on a system: what its newest finished runs on this machine said, and what was published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench import claims, runs

SOURCES = 4  # finished runs of a system that are told of
_NEEDED = ("id", "statement", "paper", "verdict")


@dataclass(frozen=True)
class Verdicts:
    """What one finished run said, or what was published.

    Attributes:
        label: where it comes from: scale, seeds, input, what was changed, day.
        folder: the run's; None for what was published.
        records: its claims, as `claims.json` holds them.
    """

    label: str
    scale: str
    folder: Path | None
    records: list[dict[str, Any]]

    @property
    def counts(self) -> dict[str, int]:
        """How many claims have which verdict."""
        return dict(Counter(str(record["verdict"]) for record in self.records))

    @property
    def rows(self) -> list[dict[str, str]]:
        """`id`, `statement`, `paper`, `here`, `control`, `verdict` and its `kind` ("yes", "no", "open"), as text."""
        shown = []
        for record in self.records:
            told = {"here": claims.describe(record), "control": claims.describe_control(record)}
            told["kind"] = claims.kind_of(str(record["verdict"]))
            shown.append({key: str(record[key]) for key in _NEEDED} | told)
        return shown


def verdicts_of(name: str, root: Path, published: Path) -> list[Verdicts]:
    """The newest finished run of each scale and setting, newest first, then what is published of it."""
    found: dict[str, Verdicts] = {}
    for _, folder, manifest in sorted(_finished(root / name), key=lambda item: item[0], reverse=True):
        what = _setting(folder, manifest)
        if what not in found and len(found) < SOURCES:
            label = f"run here, {what}{_day(manifest.get('finished'))}"
            records = _valid(_json(folder / "claims.json"))
            found[what] = Verdicts(label, str(manifest.get("scale", "")), folder, records)
    entry = _json(published / f"{name}.json")
    if isinstance(entry, dict):
        label = f"published, {entry.get('scale')}, {_counted(entry.get('seeds'))}{_day(entry.get('finished'))}"
        found["published"] = Verdicts(label, str(entry.get("scale", "")), None, _valid(entry.get("claims")))
    return list(found.values())


def decisive(known: Sequence[Verdicts]) -> Verdicts | None:
    """The first that is no smoke run, because those decide nothing; else the first."""
    return next((one for one in known if one.scale != "smoke"), next(iter(known), None))


def _finished(folder: Path) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """When a run was finished, its folder and its manifest; one that cannot be read is as good as none."""
    for path in folder.glob("[!.]*/manifest.json"):
        manifest = _json(path)
        is_done = isinstance(manifest, dict) and manifest.get("status") == "done"
        if is_done and isinstance(manifest.get("parameters"), dict):
            yield str(manifest.get("finished", "")), path.parent, manifest


def _setting(folder: Path, manifest: Mapping[str, Any]) -> str:
    """Scale, seeds, the user's own input and what was changed in the method's `Config`."""
    given, job = manifest["parameters"], _json(folder / "job.json")
    inputs = [Path(str(source)).name for source in (given.get("model"), given.get("dataset")) if source]
    asked = job.get("parameters") if isinstance(job, dict) else None  # none: run by hand in its notebook
    changed = asked.get("overrides") if isinstance(asked, dict) else None
    settings = [f"{key}={value}"[:60] for key, value in (changed if isinstance(changed, dict) else {}).items()]
    return ", ".join([str(manifest.get("scale")), _counted(given.get("seeds")), *inputs, *settings])


def _counted(seeds: Any) -> str:
    count = len(seeds) if isinstance(seeds, list) else 0
    return f"{count} seed{'' if count == 1 else 's'}"


def _day(moment: Any) -> str:
    try:
        return f", {datetime.fromisoformat(str(moment)):%Y-%m-%d %H:%M}"
    except ValueError:
        return ""


def _json(path: Path) -> Any:
    try:
        return runs.read_json(path)
    except (OSError, ValueError):
        return None


def _valid(records: Any) -> list[dict[str, Any]]:
    """The records that have what a table of claims shows; another version may have written others."""
    return [record for record in (records if isinstance(records, list) else ()) if _is_readable(record)]


def _is_readable(record: Any) -> bool:
    try:
        told = claims.describe(record), claims.describe_control(record)
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    return all(isinstance(text, str) for text in told) and set(_NEEDED) <= set(record)
