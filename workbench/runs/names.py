"""Names of runs: which run folder a user means by what stands on a command line."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from workbench import runs

_LISTED = 6


def find_run(text: str, root: Path | None = None) -> runs.Run:
    """The run that `text` names: a folder, `system/scale-hash` under the runs folder, or the start of such a name.

    The start may be that of the whole name, of the folder's name or of the hash alone, as long as one run begins so.

    Args:
        text: "runs/dpo/tiny-0f3a52c1b7de", "dpo/tiny-0f3a52c1b7de", "dpo/tiny-0f", "0f3a"; "dpo" when it has one run.
        root: folder of all runs; None takes `$WORKBENCH_RUNS` or `runs/`.

    Raises:
        ValueError: no run or several are called so; the nearest names, or those that fit, are listed.
    """
    root = (root or runs.default_root()).resolve()
    folder = Path(text).expanduser()
    if text and (folder / "manifest.json").is_file():
        return runs.Run(folder.resolve())
    names = known_runs(root)
    asked = text.strip().strip("/")
    whole = [name for name in names if asked in _beginnings(name)]
    fitting = [name for name in names if asked and any(part.startswith(asked) for part in _beginnings(name))]
    for found in (whole, fitting):  # the whole first: a rerun's name begins like that of its original
        if len(found) == 1:
            return runs.Run(root / found[0])
    if fitting:
        remedy = "give more of the name of the one you mean"
        raise ValueError(f"{text!r} fits {len(fitting)} runs: {_some(fitting)}; {remedy}")
    if not names:
        raise ValueError(f"no run {text!r}: {root} holds no runs yet; `workbench reproduce` makes some")
    near = difflib.get_close_matches(asked, names, n=_LISTED, cutoff=0.4)
    near = [name for name in names if name.split("/")[0] == asked.split("/")[0]] or near
    hint = f"did you mean {_some(near)}?" if near else f"known: {_some(names)}"
    wrong = " (that folder holds no manifest.json)" if text and folder.is_dir() else ""
    raise ValueError(f"no run {text!r} in {root}{wrong}; {hint}")


def known_runs(root: Path) -> list[str]:
    """`system/scale-hash` of every run under `root`, in order of their letters."""
    return sorted(f"{path.parent.parent.name}/{path.parent.name}" for path in root.glob("[!.]*/[!.]*/manifest.json"))


def name_of(run: runs.Run, root: Path | None = None) -> str:
    """What `find_run` finds this run by: `system/scale-hash` under the runs folder, the whole path elsewhere."""
    folder, root = run.folder.resolve(), (root or runs.default_root()).resolve()
    return f"{folder.parent.name}/{folder.name}" if folder.parent.parent == root else str(folder)


def _beginnings(name: str) -> tuple[str, str, str]:
    folder = name.split("/")[1]
    return name, folder, folder.rpartition("-")[2]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
