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
_JUDGED = dict.fromkeys(verdict for group in claims.VERDICTS.values() for verdict in group)
VERDICTS = (*_JUDGED, claims.FOLLOWS, claims.DIFFERS)
MARKS = 12  # verdicts of earlier runs beside a claim; what is older is counted
Found = tuple[runs.Run, dict[str, Any]]  # a run and its manifest


class Key(NamedTuple):
    """What makes two runs the same experiment, done twice."""

    system: str
    scale: str
    model: str
    dataset: str


def key_of(manifest: Mapping[str, Any]) -> Key:
    given = manifest["parameters"]
    return Key(manifest["system"], manifest["scale"], given.get("model", ""), given.get("dataset", ""))


def collect(root: Path) -> list[Found]:
    """Every run under `root` with its manifest, newest first."""
    every = (runs.Run(path.parent) for path in root.glob("[!.]*/[!.]*/manifest.json"))
    found = [(run, manifest) for run in every if (manifest := run.manifest)]
    return sorted(found, key=lambda item: item[1].get("finished") or item[1]["started"], reverse=True)


def newest(root: Path) -> list[Found]:
    """The newest finished run of each system, scale and input, in the order of the registry."""
    return _newest(collect(root))


def _newest(found: Sequence[Found]) -> list[Found]:
    chosen: dict[Key, Found] = {}
    for run, manifest in found:
        if manifest["status"] == "done":
            chosen.setdefault(key_of(manifest), (run, manifest))
    order = {name: position for position, name in enumerate(methods.REGISTRY)}
    place = [(order.get(one[1]["system"], len(order)), run_facts.inputs(one[1]), one) for one in chosen.values()]
    return [one for *_, one in sorted(place, key=lambda item: item[:2])]


def index(root: Path | None = None) -> Path:
    """Writes `index.html` of the runs folder, and the same as data in `index.json`; returns the path of the page."""
    root = (root or runs.default_root()).resolve()
    found = collect(root)
    best = _newest(found)
    history = _history(found, root)
    rows = [row for run, manifest in best for row in _claim_rows(run, manifest, history[key_of(manifest)], root)]
    sections = []
    for scale in _in_order({row["scale"] for row in rows}, _SCALES):
        here = [row for row in rows if row["scale"] == scale]
        counts = Counter(row["verdict"] for row in here)
        tally = [(verdict, counts[verdict]) for verdict in dict.fromkeys((*VERDICTS, *counts)) if counts[verdict]]
        sections.append({"scale": scale, "tally": tally, "rows": here})
    shown = {run.folder for run, _ in best}
    others = [(run, manifest) for run, manifest in found if run.folder not in shown]
    kinds = {"Where these numbers come from": best, "Older and unfinished runs": others}
    tables = [(title, [_run_row(*one, root) for one in some]) for title, some in kinds.items()]
    told = [row for _, table in tables for row in table]
    parts = {"sections": sections, "tables": tables, "total": len(rows), "choices": _choices(rows, told)}
    body = page_frame.template("scoreboard.html.j2").render(parts)
    footer = "At scale tiny a small model lives in an embedded world: no verdict there says that a paper is reproduced."
    title = "workbench: scoreboard"
    text = page_frame.frame(kind="scoreboard", title=title, name="workbench", body=body, footer=footer)
    with runs.atomic(root / "index.html") as file:
        file.write(text.encode(errors="replace"))
    claimed = [{name: value for name, value in row.items() if name != "kind"} for row in rows]
    runs.write_json(root / "index.json", {"claims": claimed, "runs": told})
    return root / "index.html"


def _history(found: Sequence[Found], root: Path) -> dict[Key, dict[str, list[dict[str, Any]]]]:
    """For each experiment and claim, what every finished run of it said, oldest first."""
    history: dict[Key, dict[str, list[dict[str, Any]]]] = {}
    settings: dict[Key, Any] = {}  # of the newest run
    for run, manifest in found:
        if manifest["status"] != "done":
            continue
        key, config = key_of(manifest), manifest["parameters"].get("config")
        settings.setdefault(key, config)
        by_claim = history.setdefault(key, {})
        about = {"run": str(run.folder.relative_to(root)), "page": _page(run, root)}
        about |= {"finished": run_facts.moment(manifest.get("finished")), "same_settings": config == settings[key]}
        for record in run.claims():
            said = {"measured": measured(record), "verdict": record["verdict"]}
            said["kind"] = claims.kind_of(record["verdict"])
            by_claim.setdefault(str(record["id"]), []).insert(0, about | said)
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
    about, rows = _about(run, manifest, root) | {"page": _page(run, root)}, []
    for record in run.claims():
        marks, said = history[str(record["id"])], {name: record[name] for name in ("statement", "paper", "verdict")}
        said |= {"here": claims.describe(record), "control": claims.describe_control(record)}
        said |= {"claim": str(record["id"]), "kind": claims.kind_of(record["verdict"])}
        rows.append({**about, **said, "history": marks[-MARKS:], "older": max(0, len(marks) - MARKS)})
    return rows


def _about(run: runs.Run, manifest: Mapping[str, Any], root: Path) -> dict[str, Any]:
    """What filters look at, and the folder."""
    system = manifest["system"]
    group = methods.REGISTRY[system].group or "studies" if system in methods.REGISTRY else "others"
    where = {"scale": manifest["scale"], "input": run_facts.inputs(manifest), "run": str(run.folder.relative_to(root))}
    return {"system": system, "group": group, **where}


def _run_row(run: runs.Run, manifest: Mapping[str, Any], root: Path) -> dict[str, str]:
    done, failed = manifest["status"] == "done", manifest["status"] == "failed"
    return {
        **_about(run, manifest, root),
        "title": run_facts.title(manifest["system"]),
        # the page of a run that is being done again is not its page
        "page": _page(run, root) if done else _page(run, root, "failed.html") if failed else "",
        "status": "done" if done else "failed" if failed else "not finished",
        "reason": str(manifest.get("reason") or "") if failed else "",
        "seeds": run_facts.seeds(manifest),
        "finished": run_facts.moment(manifest.get("finished")) if done else "",
        "took": run_facts.took(manifest) if done else "",
        "made_with": run_facts.made_with(manifest),
    }


def _page(run: runs.Run, root: Path, name: str = "page.html") -> str:
    page = run.folder / name
    return quote(str(page.relative_to(root)), errors="replace") if page.is_file() else ""


def _choices(rows: Sequence[Mapping[str, Any]], tables: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each filter offers, only what there is."""
    systems: dict[str, set[str]] = {}
    for row in tables:
        systems.setdefault(row["group"], set()).add(row["system"])
    return {
        "systems": {group: sorted(names) for group, names in sorted(systems.items())},
        "scales": _in_order({row["scale"] for row in tables}, _SCALES),
        "verdicts": _in_order({row["verdict"] for row in rows}, VERDICTS),
        "inputs": sorted({row["input"] for row in tables}),
    }


def _in_order(found: set[str], known: Sequence[str]) -> list[str]:
    """The known names that were found, in their order, then the others."""
    return [name for name in known if name in found] + sorted(found - set(known))
