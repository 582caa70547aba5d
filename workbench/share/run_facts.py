"""What a run's manifest tells a reader: its header line, and the provenance at the end of its page.

A manifest of an older version may lack any of the later keys; what is not known is left out, never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from workbench import methods, runs
from workbench.runs import names
from workbench.share import sendable

DIFF_LINES, DIFF_CHARACTERS = 400, 40_000  # of a diff, on a page
_VALUE_CHARACTERS = 1_000
_HARDWARE = {"system": "operating system", "machine": "machine", "processor": "processor", "cores": "cores"}
_HARDWARE |= {"memory_gib": "memory (GiB)", "gpu": "GPU"}


# ------------------------------------------------------------------------------------------------------- header line
def title(system: str) -> str:
    return methods.REGISTRY[system].title if system in methods.REGISTRY else system


def facts(manifest: Mapping[str, Any]) -> list[str]:
    finished = moment(manifest.get("finished"))
    return [f"scale {manifest['scale']}", f"seeds {seeds(manifest)}", *filter(None, (inputs(manifest), finished))]


def seeds(manifest: Mapping[str, Any]) -> str:
    used = manifest["parameters"].get("seeds", [])
    if len(used) > 2 and used == list(range(used[0], used[0] + len(used))):
        return f"{used[0]} to {used[-1]}"
    return ", ".join(map(str, used))


def inputs(manifest: Mapping[str, Any]) -> str:
    """Names of the user's own model and data set; "" for the embedded world."""
    sources = [manifest["parameters"].get(kind, "") for kind in ("model", "dataset")]
    return ", ".join(_name(source) for source in sources if source)


def moment(text: str | None) -> str:
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M") if text else ""


def took(manifest: Mapping[str, Any]) -> str:
    """From the first start to the finish; a run that was stopped and resumed counts the pause too."""
    if not manifest.get("finished"):
        return ""
    duration = datetime.fromisoformat(manifest["finished"]) - datetime.fromisoformat(manifest["started"])
    minutes, left = divmod(int(duration.total_seconds()), 60)
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def made_with(manifest: Mapping[str, Any]) -> str:
    known = manifest.get("provenance", {})
    parts = [f"{name} {known[name]}" for name in ("workbench", "python", "torch", "transformers") if name in known]
    return ", ".join([*parts, f"{known['cores']} cores"] if "cores" in known else parts)


def _name(source: str) -> str:
    """A source without what is nobody else's business: the folders that a file lies in, the key in an address."""
    is_local = source.startswith(("/", "~")) or Path(source).is_absolute()
    return sendable.without_keys(Path(source).name if is_local else source)


# -------------------------------------------------------------------------------------------------------- provenance
def provenance(run: runs.Run, manifest: Mapping[str, Any], root: Path, asked: Collection[str] = ()) -> dict[str, Any]:
    """What the template `provenance.html.j2` shows of a run.

    Args:
        asked: fields of `Config` that were set for this run instead of taken from the scale's preset.
    """
    given, known = manifest.get("parameters", {}), manifest.get("provenance", {})
    config = given.get("config", {})
    name = names.name_of(run, root)
    others = {key: value for key, value in given.items() if key not in ("config", "inputs", "model", "dataset")}
    times = {when: moment(manifest.get(when)) for when in ("started", "finished")} | {"took": took(manifest)}
    return {
        "command": "" if Path(name).is_absolute() else f"workbench rerun {name}",
        "name": run.folder.name if Path(name).is_absolute() else name,
        "times": [(label, text) for label, text in times.items() if text],
        "settings": [(key, _shown(value), key in asked) for key, value in config.items()],
        "asked": sorted(set(asked) & set(config)),
        "others": [(key, _shown(value)) for key, value in others.items()],
        "inputs": [row for row in _input_rows(manifest) if row["source"]],
        "code": _code(run, manifest),
        "hardware": [(label, str(known[key])) for key, label in _HARDWARE.items() if known.get(key)],
        "packages": [(key, str(value)) for key, value in known.items() if key not in _HARDWARE],
    }


def _input_rows(manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    given = manifest.get("parameters", {})
    rows = manifest.get("inputs")
    if rows is None:  # an older manifest: the fingerprints of model and data set stand among the parameters
        prints = zip(("model", "dataset"), [*given.get("inputs", []), "", ""], strict=False)
        rows = [{"kind": kind, "source": given.get(kind, ""), "fingerprint": found} for kind, found in prints]
    shown = []
    for row in rows:
        source, found = row.get("source"), row.get("fingerprint")
        about = {"kind": str(row.get("kind", "")), "source": _name(str(source or ""))}
        about["fingerprint"] = "" if found == source else str(found or "")
        shown.append(about | {"revision": str(row.get("revision") or "")})
    return shown


def _code(run: runs.Run, manifest: Mapping[str, Any]) -> dict[str, Any]:
    code = manifest.get("code") or {}
    diff, cut = "", ""
    # only a file of the run folder itself, whatever the manifest says
    path = run.folder / Path(str(code.get("diff") or "")).name
    if code.get("diff") and path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        diff = "\n".join(lines[:DIFF_LINES])[:DIFF_CHARACTERS]
        if len(diff) < len("\n".join(lines)):
            some = f"the first {diff.count(chr(10)) + 1} of {len(lines)} lines"
            cut = f"Shown are {some}; all of it is {path.name} of the run folder."
    known = {"hash": str(code.get("hash") or manifest.get("key") or ""), "is_key": not code.get("hash")}
    known |= {"commit": str(code.get("commit") or ""), "changed": [str(name) for name in code.get("changed") or ()]}
    return {**known, "diff": diff, "cut": cut}


def _shown(value: Any) -> str:
    if isinstance(value, str):
        text = _name(value) or '""'
    elif isinstance(value, Sequence) and all(isinstance(item, (str, int, float)) for item in value):
        text = ", ".join(map(str, value))
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[:_VALUE_CHARACTERS]} … ({len(text)} characters)"
