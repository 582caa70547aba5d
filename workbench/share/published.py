"""What README shows: the newest finished tiny run of each system, written to one file, and the table made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench import methods, runs
from workbench.share.scoreboard import VERDICTS, collect


def publish(scoreboard: Path, root: Path | None = None) -> list[str]:
    """Writes the newest finished tiny run of each system, with default settings, to a JSON file for README.

    Systems without such a run keep what the file says about them already.

    Returns:
        One line for each system of the registry that was not written from a run.
    """
    published = {entry["system"]: entry for entry in runs.read_json(scoreboard)} if scoreboard.is_file() else {}
    found = {}
    for run, manifest in reversed(collect((root or runs.default_root()).resolve())):  # the newest one stays
        if (manifest["scale"], manifest["status"]) == ("tiny", "done") and _is_default(manifest):
            facts = {key: manifest[key] for key in ("system", "scale", "finished", "provenance")}
            found[manifest["system"]] = {**facts, "seeds": manifest["parameters"]["seeds"], "claims": run.claims()}
    merged = published | found
    runs.write_json(scoreboard, [merged[name] for name in methods.REGISTRY if name in merged])
    return [
        f"{name}: no finished tiny run with default settings; "
        + ("kept what was published" if name in published else "not in the table")
        for name in methods.REGISTRY
        if name not in found
    ]


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


def update_readme(readme: Path, scoreboard: Path) -> bool:
    """Puts the table of the published systems between README's `<!-- scoreboard -->` and `<!-- /scoreboard -->`.

    Returns:
        Whether the text changed.

    Raises:
        ValueError: a marker is missing.
        FileNotFoundError: there is no README, or nothing was published yet.
    """
    text = readme.read_text(encoding="utf-8")
    table = readme_table(runs.read_json(scoreboard))
    markers = re.compile(r"(<!-- scoreboard -->\n).*?(<!-- /scoreboard -->)", re.DOTALL)
    new, count = markers.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
    if count != 1:
        raise ValueError(
            f"{readme} has {count} pairs of markers, one is needed: put <!-- scoreboard --> and <!-- /scoreboard --> "
            "on lines of their own where the table belongs"
        )
    if new != text:
        with runs.atomic(readme) as file:
            file.write(new.encode())
    return new != text
