"""Launches: one system run by `workbench reproduce` in its own process, started, watched and stopped from anywhere.

A launch outlives the kernel that started it. What is known of it lies in `<root>/<system>/`: `.launch.json` (what was
asked), `.launch.txt` (what the command said) and `.launch.lock`, which the process holds as long as it lives: so it is
never taken for another one that got its number, and two presses in two kernels cannot start two. No method is imported.
"""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from workbench import methods, runs
from workbench.runs.run import is_locked

COMMAND = [sys.executable, "-m", "workbench"]
MOST_SEEDS = 1000
GRACE_S = 10.0  # a launch that was asked to stop is ended by force after this time
_CLOCK_S = 0.1  # a file system's clock may be this much behind
# what a kernel's environment says for its own cells: colours where there is no terminal, and whose child it is
_COLOURS = {"FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "MPLBACKEND"}
_OF_A_KERNEL = {*_COLOURS, "JPY_PARENT_PID", "JPY_SESSION_NAME"}

Status = Literal["none", "starting", "running", "stopping", "done", "failed", "stopped"]
GOING_ON = ("starting", "running", "stopping")


@dataclass(frozen=True)
class State:
    """Where the run of a system stands.

    Attributes:
        status: "none" where nothing was started from here and nothing goes on. "stopped" keeps what was computed.
        reason: why it failed, in one line.
        folder: its run folder, once that is known.
        cell, cells: the cell that is run, of how many.
        done, total, stage: parts (seeds, arms) that are finished; total is 0 where a notebook counts none, or not yet.
        share: all of it, from 0 to 1.
        verdicts: how many claims have which verdict so far.
        reused: a finished run with the same parameters, code and notebook was there already.
        ours: it was started by `start`, so `stop` can end it.
    """

    name: str
    status: Status = "none"
    scale: str = ""
    seeds: int = 0
    reason: str = ""
    folder: Path | None = None
    cell: int = 0
    cells: int = 0
    done: int = 0
    total: int = 0
    stage: str = ""
    share: float = 0.0
    elapsed_s: float = 0.0
    verdicts: dict[str, int] = field(default_factory=dict)
    reused: bool = False
    ours: bool = True

    @property
    def goes_on(self) -> bool:
        return self.status in GOING_ON

    @property
    def page(self) -> Path | None:
        """The finished run's page, or that of the notebook with its error."""
        names = {"done": "page.html", "failed": "failed.html"}
        path = self.folder / names[self.status] if self.folder and self.status in names else None
        return path if path and path.is_file() else None


# ------------------------------------------------------------------------------------------------- start, stop, watch
def check(name: str, scale: str, seeds: int) -> methods.Method:
    """The system of this name.

    Raises:
        ValueError: an unknown system or scale, or a number of seeds that nobody can want.
    """
    if name not in methods.REGISTRY:
        raise ValueError(f"unknown system {name!r}; known: {', '.join(methods.REGISTRY)}")
    if scale not in methods.SCALES:
        raise ValueError(f"scale must be one of {', '.join(methods.SCALES)}; got {scale!r}")
    if isinstance(seeds, bool) or not isinstance(seeds, int) or not 0 <= seeds <= MOST_SEEDS:
        raise ValueError(f"seeds is how many, 1 to {MOST_SEEDS}, or 0 for the number in the registry; got {seeds!r}")
    return methods.REGISTRY[name]


def start(name: str, root: Path, *, scale: str = "tiny", seeds: int = 0) -> bool:
    """Starts `workbench reproduce name` and returns at once: True, or False where a run of this system goes on already.

    Raises:
        ValueError: an unknown system or scale, or a wrong number of seeds.
        OSError: the runs folder cannot be written; nothing was started.
    """
    method = check(name, scale, seeds)
    seeds = seeds or len(methods.default_seeds(method, scale))
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder) as lock:
        if lock is None or _locked_runs(folder):
            return False
        asked = {"system": name, "scale": scale, "seeds": seeds, "started": time.time(), "pid": 0}
        runs.write_json(folder / ".launch.json", asked)  # first, so that a full disk is found out before anything runs
        words = [*COMMAND, "reproduce", name, "--scale", scale, "--seeds", str(seeds)]
        options: dict[str, Any] = {"cwd": runs.PACKAGE.parent, "start_new_session": True, "pass_fds": (lock,)}
        with open(folder / ".launch.txt", "wb") as log:
            options |= {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            process = subprocess.Popen[bytes](words, env=_environment(root), **options)
        _CHILDREN.append(process)
        try:
            runs.write_json(folder / ".launch.json", {**asked, "pid": process.pid})
        except OSError:
            process.kill()  # nobody could stop it later
            raise
    return True


def stop(name: str, root: Path) -> bool:
    """Asks the launch to end and returns at once; what it has computed stays. False where none of ours goes on.

    Its notebook and kernel end by themselves, within seconds, when they find their parent gone.
    """
    folder = root / name
    asked = _read(folder / ".launch.json")
    pid = asked.get("pid")
    if not isinstance(pid, int) or pid <= 1 or not _is_held(folder):
        return False
    if "stopped" not in asked:
        with suppress(OSError):  # on a full disk it ends as killed
            runs.write_json(folder / ".launch.json", {**asked, "stopped": time.time()})
    late = time.time() - asked.get("stopped", time.time()) > GRACE_S
    # SIGINT would not do: a kernel ignores it, and so do the processes that it starts
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL if late else signal.SIGTERM)
    return True


def state(name: str, root: Path) -> State:
    """Where the last launch of this system stands, or a run of it that something else started."""
    folder = root / name
    if not folder.is_dir():
        return State(name)
    is_alive = _is_held(folder)  # asked before anything is read, so that nothing written before the end is missed
    locked = _locked_runs(folder)
    asked = _read(folder / ".launch.json")
    for process in [child for child in _CHILDREN if child.poll() is not None]:
        _CHILDREN.remove(process)
    own = _written_since(folder, asked) if asked else None
    if is_alive or (own in locked and "stopped" in asked):  # a notebook ends a moment after the launch
        return _going_on(name, own, asked, is_alive, root)
    if locked:
        return _elsewhere(name, locked[0])
    return _ended(name, folder, asked, own) if asked else State(name)


_CHILDREN: list[subprocess.Popen[bytes]] = []  # polled, so that none that has ended stays as a zombie


def _environment(root: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key not in _OF_A_KERNEL}
    search = os.pathsep.join([str(runs.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    # wide lines: a reason that is wrapped could not be read back whole
    return kept | {"WORKBENCH_RUNS": str(root), "PYTHONPATH": search, "TERM": "dumb", "COLUMNS": "4000"}


# ---------------------------------------------------------------------------------------------------------- the lock
@contextmanager
def _lock(folder: Path) -> Iterator[int | None]:
    """Descriptor of this system's lock, taken; None where a launch holds it. A child that gets it holds it on."""
    with open(folder / ".launch.lock", "w", encoding="utf-8") as file:
        for attempt in range(10):  # whoever only looks holds it for a moment
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                yield file.fileno()
                return
            time.sleep(0.02 * (attempt < 9))
        yield None


def _is_held(folder: Path) -> bool:
    try:
        with suppress(FileNotFoundError), open(folder / ".launch.lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _locked_runs(folder: Path) -> list[Path]:
    return [path.parent for path in sorted(folder.glob("[!.]*/.lock")) if is_locked(path.parent)]


# ------------------------------------------------------------------------------------------------------ what is read
def _read(path: Path) -> dict[str, Any]:
    """A JSON object, {} where there is none that can be read."""
    with suppress(OSError, ValueError):
        if isinstance(found := runs.read_json(path), dict):
            return found
    return {}


def _going_on(name: str, own: Path | None, asked: dict[str, Any], is_alive: bool, root: Path) -> State:
    started = _number(asked.get("started"))
    facts = _progress(name, own, started) if own else {}
    status: Status = "stopping" if "stopped" in asked else "running" if facts.get("cells") else "starting"
    if is_alive and status == "stopping" and time.time() - _number(asked["stopped"]) > GRACE_S:
        stop(name, root)
    return State(name, status, **_asked(asked), folder=own, elapsed_s=_since(started), **facts)


def _elsewhere(name: str, folder: Path) -> State:
    """A run that a terminal or another machine's batch started: its job file says what was asked, and when."""
    job = folder / "job.json"
    started = (job if job.is_file() else folder / ".lock").stat().st_mtime
    parameters = _read(job).get("parameters", {})
    asked = {"scale": str(parameters.get("scale", "")), "seeds": len(parameters.get("seeds", []))}
    facts = {"folder": folder, "elapsed_s": _since(started), "ours": False, **_progress(name, folder, started)}
    return State(name, "running", **asked, **facts)


def _ended(name: str, folder: Path, asked: dict[str, Any], own: Path | None) -> State:
    """How a launch ended, from what the command said and from the run's own manifest."""
    started, log = _number(asked.get("started")), folder / ".launch.txt"
    said, elapsed = [], 0.0
    with suppress(OSError):
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()
        elapsed = max(0.0, log.stat().st_mtime - started)
    reused = "1 reused" in said
    own = _same_code(name, folder, asked) if reused else own
    common: dict[str, Any] = {**_asked(asked), "folder": own, "elapsed_s": elapsed, "reused": reused}
    if failed := [line for line in said if line.startswith((f"{name} failed: ", "error: "))]:
        reason = failed[-1].removeprefix(f"{name} failed: ").removeprefix("error: ").strip()
        return State(name, "failed", reason=reason, **common)
    manifest = _read(own / "manifest.json") if own else {}
    if manifest.get("status") == "done" and own and (own / "page.html").is_file():
        return State(name, "done", **common, **{**_progress(name, own, 0.0 if reused else started), "share": 1.0})
    if "stopped" in asked:
        return State(name, "stopped", **common)
    reason = next((line.strip() for line in reversed(said) if line.strip()), "it said nothing")[:300]
    if not any(line.startswith("Traceback (most recent call last)") for line in said):
        reason = f"killed (out of memory?); its last words: {reason}"
    return State(name, "failed", reason=reason, **common)


def _asked(asked: dict[str, Any]) -> dict[str, Any]:
    return {"scale": str(asked.get("scale", "")), "seeds": int(_number(asked.get("seeds")))}


def _written_since(folder: Path, asked: dict[str, Any]) -> Path | None:
    """The run folder whose job file this launch wrote; None while it has written none."""
    started = _number(asked.get("started")) - _CLOCK_S
    found = [(job.stat().st_mtime, job.parent) for job in _jobs(folder, asked)]
    newest = max(found, default=(0.0, None))
    return newest[1] if newest[0] >= started else None


def _same_code(name: str, folder: Path, asked: dict[str, Any]) -> Path | None:
    """The finished run folder with these parameters that today's code made: what the command has found again."""
    module, scale = methods.REGISTRY[name].module, str(asked.get("scale"))
    for job in sorted(_jobs(folder, asked), key=lambda path: -path.stat().st_mtime):
        manifest = _read(job.parent / "manifest.json")
        given = manifest.get("parameters") if manifest.get("status") == "done" else None
        if given is not None and runs.run_folder(name, module, scale, given, folder.parent) == job.parent:
            return job.parent
    return None


def _jobs(folder: Path, asked: dict[str, Any]) -> list[Path]:
    """Job files of runs with the same scale and seeds, nothing else changed."""
    found, seeds = [], list(range(int(_number(asked.get("seeds")))))
    for job in folder.glob(f"{re.sub(r'[^a-z]', '', str(asked.get('scale')))}-*/job.json"):
        given = _read(job).get("parameters", {})
        own = [given.get(key) for key in ("model", "dataset", "device", "overrides")]
        if given.get("seeds") == seeds and all(value in ("", "auto", {}, None) for value in own):
            found.append(job)
    return found


def _progress(name: str, folder: Path, started: float) -> dict[str, Any]:
    """Cell, parts and verdicts of a run, leaving out what an earlier try of the same run wrote."""

    def fresh(file: str) -> Any:
        path = folder / file
        with suppress(OSError, ValueError):
            if path.stat().st_mtime >= started - _CLOCK_S:
                return runs.read_json(path)
        return None

    claims, parts = fresh("claims.json") or [], fresh("progress.json") or {}
    told = {**parts, **(fresh("cell.json") or {})}
    counts = {key: int(_number(told.get(key))) for key in ("cell", "cells", "done", "total")}
    through_cells = max(0, counts["cell"] - 1) / counts["cells"] if counts["cells"] else 0.0
    through_parts = counts["done"] / counts["total"] if counts["total"] else 0.0
    # nearly all the time goes into the one cell that computes the parts; a study may count none
    counts_parts = counts["total"] > 0 or bool(methods.REGISTRY[name].group)
    share = 0.1 * through_cells + 0.9 * through_parts if counts_parts else through_cells
    verdicts = Counter(str(claim["verdict"]) for claim in claims if isinstance(claim, dict) and "verdict" in claim)
    return {**counts, "stage": str(parts.get("stage", "")), "share": min(1.0, share), "verdicts": dict(verdicts)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _since(started: float) -> float:
    return max(0.0, time.time() - started)
