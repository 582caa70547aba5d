"""The scoreboard: one page over all runs, with filters, and what each claim's verdict was in every run before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from workbench import claims, methods, runs
from workbench.share import page_frame, run_facts

_SCALES = ("full", "tiny", "smoke")
VERDICTS = (
    *dict.fromkeys(verdict for group in claims.VERDICTS.values() for verdict in group),
    claims.FOLLOWS,
    claims.DIFFERS,
)
MARKS = 12  # verdicts of earlier runs beside a claim; what is older is counted
EMBEDDED = "embedded world"


class Key(NamedTuple):
    """What makes two runs the same experiment, done twice."""

    system: str
    scale: str
    model: str
    dataset: str


def key_of(manifest: Mapping[str, Any]) -> Key:
    given = manifest["parameters"]
    return Key(manifest["system"], manifest["scale"], given.get("model", ""), given.get("dataset", ""))


def collect(root: Path) -> list[tuple[runs.Run, dict[str, Any]]]:
    """Every run under `root` with its manifest, newest first."""
    found = []
    for path in root.glob("[!.]*/[!.]*/manifest.json"):
        run = runs.Run(path.parent)
        if manifest := run.manifest:
            found.append((run, manifest))
    return sorted(found, key=lambda item: item[1].get("finished") or item[1]["started"], reverse=True)


def newest(root: Path) -> list[tuple[runs.Run, dict[str, Any]]]:
    """The newest finished run of each system, scale and input, in the order of the registry."""
    return _newest(collect(root))


def _newest(found: Sequence[tuple[runs.Run, dict[str, Any]]]) -> list[tuple[runs.Run, dict[str, Any]]]:
    chosen: dict[Key, tuple[runs.Run, dict[str, Any]]] = {}
    for run, manifest in found:
        if manifest["status"] == "done":
            chosen.setdefault(key_of(manifest), (run, manifest))
    order = {name: position for position, name in enumerate(methods.REGISTRY)}
    return sorted(
        chosen.values(), key=lambda item: (order.get(item[1]["system"], len(order)), run_facts.inputs(item[1]))
    )


def index(root: Path | None = None) -> Path:
    """Writes `index.html` of the runs folder, and the same as data in `index.json`; returns the path of the page."""
    root = (root or runs.default_root()).resolve()
    found = collect(root)
    best = _newest(found)
    history = _history(found, root)
    rows = [row for run, manifest in best for row in _claim_rows(run, manifest, history[key_of(manifest)], root)]
    sections = []
    for scale in dict.fromkeys((*_SCALES, *(row["scale"] for row in rows))):
        here = [row for row in rows if row["scale"] == scale]
        if here:
            counts = Counter(row["verdict"] for row in here)
            tally = [(verdict, counts.pop(verdict)) for verdict in VERDICTS if verdict in counts]
            sections.append({"scale": scale, "tally": [*tally, *counts.items()], "rows": here})
    shown = {run.folder for run, _ in best}
    tables = [
        ("Where these numbers come from", [_run_row(run, manifest, root) for run, manifest in best]),
        (
            "Older and unfinished runs",
            [_run_row(run, manifest, root) for run, manifest in found if run.folder not in shown],
        ),
    ]
    body = page_frame.template("scoreboard.html.j2").render(
        sections=sections,
        tables=tables,
        total=len(rows),
        choices=_choices(rows, [row for _, table in tables for row in table]),
    )
    text = page_frame.frame(
        kind="scoreboard",
        title="workbench: scoreboard",
        name="workbench",
        body=body,
        footer=(
            "At scale tiny a small model lives in an embedded world: no verdict there says that a paper is reproduced."
        ),
    )
    with runs.atomic(root / "index.html") as file:
        file.write(text.encode(errors="replace"))
    data = {
        "claims": [{k: v for k, v in row.items() if k != "kind"} for row in rows],
        "runs": [r for _, t in tables for r in t],
    }
    runs.write_json(root / "index.json", data)
    return root / "index.html"


def _history(
    found: Sequence[tuple[runs.Run, dict[str, Any]]], root: Path
) -> dict[Key, dict[str, list[dict[str, Any]]]]:
    """For each experiment and claim, what every finished run of it said, oldest first."""
    history: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    settings: dict[Key, Any] = {}  # of the newest run
    for run, manifest in found:
        if manifest["status"] != "done":
            continue
        key, config = key_of(manifest), manifest["parameters"].get("config")
        settings.setdefault(key, config)
        for record in run.claims():
            history.setdefault(key, {}).setdefault(str(record["id"]), []).insert(
                0,
                {
                    "run": str(run.folder.relative_to(root)),
                    "page": _page(run, root),
                    "finished": run_facts.moment(manifest.get("finished")),
                    "measured": measured(record),
                    "verdict": record["verdict"],
                    "kind": claims.kind_of(record["verdict"]),
                    "same_settings": config == settings[key],
                },
            )
        history.setdefault(key, {})
    for said in (marks for by_claim in history.values() for marks in by_claim.values()):
        for before, mark in zip([None, *said], said, strict=False):
            mark["changed_from"] = before["verdict"] if before and before["verdict"] != mark["verdict"] else ""
    return history


def measured(record: Mapping[str, Any]) -> str:
    """The effect alone, with its unit; "" for a claim that measures nothing."""
    if record["test"] in ("none", "rederived") or record["effect"] is None:
        return ""
    return f"{record['effect']:+.3g}" + (f" {record['unit']}" if record["unit"] else "")


def _claim_rows(
    run: runs.Run, manifest: Mapping[str, Any], history: Mapping[str, list[dict[str, Any]]], root: Path
) -> list[dict[str, Any]]:
    system = manifest["system"]
    group = methods.REGISTRY[system].group or "studies" if system in methods.REGISTRY else "others"
    return [
        {
            "system": system,
            "group": group,
            "scale": manifest["scale"],
            "input": run_facts.inputs(manifest),
            "run": str(run.folder.relative_to(root)),
            "page": _page(run, root),
            "claim": str(record["id"]),
            "statement": record["statement"],
            "paper": record["paper"],
            "here": claims.describe(record),
            "control": claims.describe_control(record),
            "verdict": record["verdict"],
            "kind": claims.kind_of(record["verdict"]),
            "history": history[str(record["id"])][-MARKS:],
            "older": max(0, len(history[str(record["id"])]) - MARKS),
        }
        for record in run.claims()
    ]


def _run_row(run: runs.Run, manifest: Mapping[str, Any], root: Path) -> dict[str, str]:
    done, failed = manifest["status"] == "done", manifest["status"] == "failed"
    system = manifest["system"]
    return {
        "title": run_facts.title(system),
        "system": system,
        "group": methods.REGISTRY[system].group or "studies" if system in methods.REGISTRY else "others",
        "run": str(run.folder.relative_to(root)),
        # the page of a run that is being done again is not its page
        "page": _page(run, root) if done else _page(run, root, "failed.html") if failed else "",
        "status": "done" if done else "failed" if failed else "not finished",
        "reason": str(manifest.get("reason") or "") if failed else "",
        "scale": manifest["scale"],
        "seeds": run_facts.seeds(manifest),
        "input": run_facts.inputs(manifest),
        "finished": run_facts.moment(manifest.get("finished")) if done else "",
        "took": run_facts.took(manifest) if done else "",
        "made_with": run_facts.made_with(manifest),
    }


def _page(run: runs.Run, root: Path, name: str = "page.html") -> str:
    page = run.folder / name
    return quote(str(page.relative_to(root)), errors="replace") if page.is_file() else ""


def _choices(rows: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each filter offers, only what there is."""
    systems: dict[str, list[str]] = {}
    for row in tables:
        if row["system"] not in systems.setdefault(row["group"], []):
            systems[row["group"]].append(row["system"])
    verdicts = {row["verdict"] for row in rows}
    scales, inputs = {row["scale"] for row in tables}, {row["input"] for row in tables}
    return {
        "systems": {group: sorted(names) for group, names in sorted(systems.items())},
        "scales": [scale for scale in _SCALES if scale in scales] + sorted(scales - set(_SCALES)),
        "verdicts": [verdict for verdict in VERDICTS if verdict in verdicts] + sorted(verdicts - set(VERDICTS)),
        "inputs": sorted(inputs),
    }
