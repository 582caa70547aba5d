"""What README shows: the newest finished tiny run of each system, a file each, and the table made from them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import methods, runs
from workbench.share.scoreboard import VERDICTS, collect

LIMIT = 1_000_000  # bytes of one system's file; larger results stay in the run folder


def entries(folder: Path) -> list[dict[str, Any]]:
    """What is published of each system, in the order of the registry."""
    paths = [folder / f"{name}.json" for name in methods.REGISTRY]
    return [runs.read_json(path) for path in paths if path.is_file()]


def publish(folder: Path, root: Path | None = None) -> list[str]:
    """Writes the newest finished tiny run of each system, with default settings, to a file of its own: the results of
    every seed and the claims that were judged from them. Systems without such a run keep what is published already.

    Returns:
        One line for each system of the registry that was not written from a run.
    """
    known = reversed(collect((root or runs.default_root()).resolve()))  # the newest one stays
    done = [(run, manifest) for run, manifest in known if (manifest["scale"], manifest["status"]) == ("tiny", "done")]
    found = {manifest["system"]: (run, manifest) for run, manifest in done if _is_default(manifest)}
    for name, (run, manifest) in found.items():
        facts = {key: manifest[key] for key in ("system", "scale", "finished", "provenance")}
        seeds = manifest["parameters"]["seeds"]
        stored = [run.folder / f"seed-{seed}" / "result.json" for seed in seeds]
        whole = all(path.is_file() for path in stored) and sum(path.stat().st_size for path in stored) < LIMIT
        results = {"results": [runs.read_json(path) for path in stored]} if stored and whole else {}
        runs.write_json(folder / f"{name}.json", {**facts, "seeds": seeds, "claims": run.claims(), **results})
    left = {name: (folder / f"{name}.json").is_file() for name in methods.REGISTRY if name not in found}
    told = {True: "kept what was published", False: "not in the table"}
    return [f"{name}: no finished tiny run with default settings; {told[kept]}" for name, kept in left.items()]


def judged(entry: Mapping[str, Any]) -> Any:
    """The claims of a published system judged again from its published results, without training.

    Raises:
        ValueError: its results are not published, only what its claims measured.
    """
    if "results" not in entry:
        raise ValueError(f"{entry['system']}: the file holds what its claims measured, not the results of its seeds")
    experiment = methods.Experiment(entry["system"], scale=entry["scale"], seeds=entry["seeds"])
    return experiment.claims(methods.Results(entry["results"]))


def _is_default(manifest: Mapping[str, Any]) -> bool:
    """True when the run had the settings that the method has by default: nobody publishes a tuned run by accident."""
    if manifest["system"] not in methods.REGISTRY:
        return False
    default = methods.Experiment(manifest["system"], scale=manifest["scale"]).parameters
    return json.loads(json.dumps(default)) == manifest["parameters"]


def readme_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the published systems: paper, notebook, cost, and the claims under each verdict."""
    lines = ["| system | paper | notebook | cost | verdicts (scale tiny) |", "|---|---|---|---|---|"]
    for entry in entries:
        method = methods.REGISTRY[entry["system"]]
        by_verdict = {verdict: [c["id"] for c in entry["claims"] if c["verdict"] == verdict] for verdict in VERDICTS}
        verdicts = "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in by_verdict.items() if ids)
        notebook = f"[{method.notebook.stem}]({method.notebook.as_posix()})"
        cells = (method.title, method.paper, notebook, method.cost, verdicts)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def update_readme(readme: Path, folder: Path) -> bool:
    """Puts the table between README's `<!-- scoreboard -->` and `<!-- /scoreboard -->`; returns whether it changed.

    Raises:
        ValueError: a marker is missing.
        FileNotFoundError: there is no README.
    """
    text = readme.read_text(encoding="utf-8")
    table = readme_table(entries(folder))
    markers = re.compile(r"(<!-- scoreboard -->\n).*?(<!-- /scoreboard -->)", re.DOTALL)
    new, count = markers.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
    if count != 1:
        remedy = "put <!-- scoreboard --> and <!-- /scoreboard --> on lines of their own where the table belongs"
        raise ValueError(f"{readme} has {count} pairs of markers, one is needed: {remedy}")
    if new != text:
        with runs.atomic(readme) as file:
            file.write(new.encode())
    return new != text
