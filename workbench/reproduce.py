"""Batch: runs the notebooks of methods through papermill, each in its own process, with a live table.

What may live here: starting, watching, stopping and resuming notebook processes. What may not: any method, any
number, any verdict; what happened is read from the run folder and from the exit code, never from notebook metadata.

`reproduce` is the parent. Each notebook runs in a child, `python -m workbench.reproduce <job.json>`, which needs only
the job file: it locks the run folder, executes the notebook, renames it into place when whole and renders the page.
A child ends when its parent is gone, and its kernel when the child is gone, so a SIGKILL leaves nothing running.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench import methods, runs
from workbench.seeds import exit_with

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STAGGER_S = 2.0  # kernels that start in the same moment can pick the same port (papermill issue 511)
LINE_S = 10.0  # one plain line for each running notebook, where there is no terminal
GRACE_S = 10.0  # a kernel gets this long to shut down before it is killed
KILLED = {137, -9, 138}  # SIGKILL seen by a shell, SIGKILL seen by a parent, a kernel that died under papermill
_PART = "notebook.part.ipynb"  # the name an executed notebook has until it is whole
_NOISE = re.compile(r"TCP without encryption|^\s*$")


@dataclass
class Job:
    """One notebook of a batch: what it is, where it stands.

    Attributes:
        status: "reused" means that a finished run with the same parameters, code and notebook was there already.
        reason: why it failed, in one line.
    """

    name: str
    notebook: Path
    run: runs.Run
    parameters: dict[str, Any]
    status: Literal["waiting", "running", "done", "reused", "failed"] = "waiting"
    reason: str = ""
    started: float = 0.0
    ended: float = 0.0
    log_start: int = 0  # what earlier tries wrote to the log ends here
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def log(self) -> Path:
        return self.run.folder / "log.txt"

    @property
    def elapsed_s(self) -> float:
        return (self.ended or time.monotonic()) - self.started if self.started else 0.0


# ------------------------------------------------------------------------------------------------------------ parent
def reproduce(
    names: Sequence[str] = (),
    *,
    scale: str = "tiny",
    seeds: Sequence[int] | None = None,
    model: str = "",
    dataset: str = "",
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    workers: int = 2,
    root: Path | None = None,
    force: bool = False,
    timeout_s: float = 6 * 3600,
    console: Console | None = None,
) -> list[Job]:
    """Runs the notebooks of these systems, two at once, and returns how each of them ended.

    Everything is checked before anything starts. A run that is finished is reused, one that was killed goes on where
    it stopped, one that fails is reported while the others go on. Ctrl-C stops all of them and loses nothing.

    Args:
        names: systems or groups; none takes the quick set.
        seeds: one run of the method each; None takes as many as its specification asks for.
        overrides: fields of the methods' `Config`.
        workers: notebooks at once; each of them runs its seeds side by side as well.
        root: folder of all runs; None takes `$WORKBENCH_RUNS` or `runs/`.
        force: throws away what the run folder holds and starts again.
        timeout_s: a notebook that takes longer is stopped and counted as failed.
        console: where the table goes; None takes standard output.

    Raises:
        ValueError: unknown system, scale, device or `Config` field, wrong type, `workers` or `timeout_s` not positive.
        FileNotFoundError: a method has no notebook.
        KeyboardInterrupt: after Ctrl-C, when all children have ended.
    """
    from rich.console import Console

    if workers < 1 or timeout_s <= 0:
        raise ValueError(f"workers and timeout must be positive; got {workers} workers and {timeout_s} s")
    root = (root or runs.default_root()).expanduser().resolve()
    files = {
        key: _absolute(value)
        for key, value in (overrides or {}).items()
        if isinstance(value, str) and Path(value).is_file()
    }
    given = {"scale": scale, "seeds": list(seeds or ()), "device": device, "overrides": {**(overrides or {}), **files}}
    given |= {"model": _absolute(model), "dataset": _absolute(dataset)}
    jobs = []
    for method in methods.find(names):
        quick = method.quick or {} if not names and scale == "tiny" and not model and not dataset else {}
        jobs.append(_plan(method, root, **{**given, "overrides": {**quick, **given["overrides"]}}))
    if not force:
        for job in jobs:
            job.status = "reused" if _is_whole(job) else "waiting"
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 140), force_terminal=False)
    try:
        _watch(jobs, root, workers, timeout_s, force, console)
    except KeyboardInterrupt:
        console.print("stopping the notebooks ...")
        _stop(jobs)
        console.print("stopped; what is finished is kept: the same command goes on from here", highlight=False)
        raise
    except BaseException:
        _stop(jobs)
        raise
    _report(jobs, root, console)
    return jobs


def _absolute(source: str) -> str:
    """A local path as an absolute one, because the kernel runs in the notebook's folder; a hub id as it is."""
    path = Path(source).expanduser()
    if source and path.exists():
        return str(path.resolve())
    if source.startswith((".", "/", "~")) or path.suffix in (".jsonl", ".gz", ".parquet"):
        raise FileNotFoundError(f"no file or folder {source!r}; give one that exists, or the id of a hub repository")
    return source


def _plan(method: methods.Method, root: Path, **given: Any) -> Job:
    """Checks the parameters against the method's own `Config` and says where the run lives; starts nothing."""
    notebook = runs.PACKAGE.parent / method.notebook
    if not notebook.is_file():
        raise FileNotFoundError(f"{method.name}: no notebook {notebook}; run this from a checkout of the project")
    try:
        experiment = methods.Experiment(method.name, **given)
    except ValueError as error:
        raise ValueError(f"{method.name}: {error}") from error
    folder = runs.run_folder(method.name, method.module, given["scale"], experiment.parameters, root)
    parameters = {**given, "seeds": experiment.seeds, "output": str(folder)}
    return Job(method.name, notebook, runs.Run(folder), parameters)


def _is_whole(job: Job) -> bool:
    """True when the run is finished and its notebook and page were made from the notebook as it is now."""
    files = all((job.run.folder / name).is_file() for name in ("notebook.ipynb", "page.html"))
    return files and job.run.is_done and job.run.manifest.get("notebook") == _source_hash(job.notebook)


def _source_hash(notebook: Path) -> str:
    """Hash of what the cells say; outputs, counts and ids, which an editor writes too, do not make a notebook new."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in runs.read_json(notebook)["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def _start(job: Job, root: Path, timeout_s: float, force: bool) -> None:
    path = job.run.folder / "job.json"
    runs.write_json(
        path, {"notebook": job.notebook, "folder": job.run.folder, "parameters": job.parameters,
               "timeout_s": timeout_s, "force": force, "root": root},
    )  # fmt: skip
    search = [str(runs.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # kernel and parent: same code
    ours = {"WORKBENCH_BATCH": "1", "WORKBENCH_RUNS": str(root), "PYTHONPATH": os.pathsep.join(search)}
    ours |= {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # bars of libraries would fill the pages
    (job.run.folder / "cell.json").unlink(missing_ok=True)
    with open(job.log, "ab") as log:
        job.log_start = log.tell()
        job.process = subprocess.Popen(
            [sys.executable, "-m", "workbench.reproduce", str(path)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=os.environ | ours,
            start_new_session=True,
        )  # fmt: skip
    job.status, job.started = "running", time.monotonic()


def _watch(jobs: list[Job], root: Path, workers: int, timeout_s: float, force: bool, console: Console) -> None:
    """Keeps `workers` notebooks running until all have ended."""
    from rich.live import Live

    from workbench import pages

    live = Live(_table(jobs), console=console, auto_refresh=False) if console.is_terminal else None
    next_start = next_line = 0.0
    with live or nullcontext():
        while any(job.status in ("waiting", "running") for job in jobs):
            now = time.monotonic()
            running = [job for job in jobs if job.status == "running"]
            waiting = [job for job in jobs if job.status == "waiting"]
            if waiting and len(running) < workers and now >= next_start:
                _start(waiting[0], root, timeout_s, force)
                next_start = now + STAGGER_S
                if live is None:
                    console.print(f"{waiting[0].name}: started", highlight=False)
            for job in running:
                if job.elapsed_s > timeout_s:
                    _stop([job])
                    job.reason = f"stopped after {timeout_s:g} s, the limit of --timeout"
                if _collect(job):
                    pages.index(root)
                    if live is None:
                        console.print(f"{job.name}: {_state(job)} after {job.elapsed_s:.0f} s", highlight=False)
            if now >= next_line:
                next_line = now + (LINE_S if live is None else 1.0)
                if live is not None:
                    live.update(_table(jobs), refresh=True)
                for job in running if live is None else []:
                    console.print(f"{job.name}: {_state(job)}, {job.elapsed_s:.0f} s", highlight=False)
            time.sleep(0.2)
        if live is not None:
            live.update(_table(jobs), refresh=True)


def _collect(job: Job) -> bool:
    """Whether the job has ended; if so, how, from the exit code and the manifest."""
    code = job.process.poll() if job.process else None
    if code is None:
        return False
    job.ended = time.monotonic()
    job.status = "done" if code == 0 and _is_whole(job) else "failed"
    if job.status == "failed" and not job.reason:
        said = next((line for line in reversed(_log_lines(job)) if line.startswith("failed: ")), f"exit code {code}")
        job.reason = "killed (out of memory?)" if code in KILLED else said.removeprefix("failed: ")
    return True


def _stop(jobs: Sequence[Job]) -> None:
    """Ends children and their kernels: politely, then by force."""
    alive = [job.process for job in jobs if job.process and job.process.poll() is None]
    for process in alive:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in alive:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.1))
        _signal(process, signal.SIGKILL)  # also what is left in the group of a child that has ended
        process.wait()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


# ------------------------------------------------------------------------------------------------- what the user sees
def _state(job: Job) -> str:
    """ "cell 5/12, 18/30 parts, 60%", or how it ended, with the verdicts that exist."""
    parts = []
    if job.status == "running":
        with suppress(OSError, ValueError):
            cell = runs.read_json(job.run.folder / "cell.json")
            parts.append(f"cell {cell['cell']}/{cell['cells']}")
        progress = job.run.read_progress()
        if progress["total"]:
            parts.append(f"{progress['done']}/{progress['total']} parts, {progress['done'] / progress['total']:.0%}")
    else:
        parts.append(f"failed, {job.reason}" if job.status == "failed" else job.status)
    if job.status != "failed":
        parts += [f"{count} {verdict}" for verdict, count in Counter(c["verdict"] for c in job.run.claims()).items()]
    return ", ".join(parts)


def _table(jobs: Sequence[Job]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("system", "state", "elapsed", box=None, padding=(0, 2, 0, 0))
    colours = {"done": "green", "reused": "green", "failed": "red", "waiting": "dim", "running": ""}
    for job in jobs:
        table.add_row(job.name, Text(_state(job), style=colours[job.status]), f"{job.elapsed_s:.0f} s")
    return table


def _report(jobs: Sequence[Job], root: Path, console: Console) -> None:
    """The scoreboard of this batch, what failed and why, and where the pages are."""
    from rich.table import Column, Table
    from rich.text import Text

    from workbench import claims, pages

    names = ("system", "claim", "paper", "here", "negative control", Column("verdict", no_wrap=True))
    board = Table(*names, title="Scoreboard", title_justify="left", show_lines=True)
    for job in jobs:
        if job.status in ("done", "reused"):
            records = [{**record, "system": job.name} for record in job.run.claims()]
            for row in claims.frame(records).to_dict("records"):
                cells = (row["system"], f"{row['claim']} {row['statement']}", row["paper"], row["here"], row["control"])
                board.add_row(*[Text(str(cell)) for cell in cells], Text(row["verdict"]))
    if board.row_count:
        console.print(board)
    for job in jobs:
        if job.status == "failed":
            console.print(Text(f"{job.name} failed: {job.reason}", style="red"))
            for line in [line for line in _log_lines(job) if not line.startswith("failed: ")][-7:]:
                console.print(Text(f"  | {line}", style="dim"))
            console.print(Text(f"  whole log: {job.log}; the same command tries again"), soft_wrap=True)
    console.print(Text(f"pages: {pages.index(root)}"), soft_wrap=True)


def _log_lines(job: Job) -> list[str]:
    with suppress(FileNotFoundError):
        text = job.log.read_bytes()[job.log_start :].decode(errors="replace")
        return [line for line in text.splitlines() if not _NOISE.search(line)]
    return []


# ------------------------------------------------------------------------------------------------------------- child
def run_job(path: Path) -> int:
    """Runs one notebook in its run folder and renders its page: the body of a child process.

    Returns: 0 done, 1 failed (the last line on standard output says why), 138 the kernel was killed.
    """
    from nbclient.exceptions import DeadKernelError

    from workbench import pages

    job = runs.read_json(path)
    run, notebook = runs.Run(Path(job["folder"])), Path(job["notebook"])
    source = _source_hash(notebook)
    try:
        with run.locked():
            if job["force"]:
                _clear(run.folder)
            if run.manifest:
                run.update_manifest(status="running")
            try:
                _execute(job, run.folder)
                if not run.is_done:
                    raise RuntimeError("the notebook ended without experiment.run.finish(claims): nothing was recorded")
                with runs.atomic(run.folder / "notebook.ipynb") as file:
                    file.write((run.folder / _PART).read_bytes())
                (run.folder / _PART).unlink()
                pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=Path(job["root"]))
                run.update_manifest(notebook=source)
            except BaseException:
                if run.manifest:
                    run.update_manifest(status="failed")
                raise
    except DeadKernelError:
        return 138
    except Exception as error:
        traceback.print_exc()
        print(f"failed: {_explain(error)}", flush=True)
        return 1
    return 0


def _explain(error: Exception) -> str:
    cell = getattr(error, "exec_count", None)
    if cell is not None:  # papermill's own error: name the notebook's error, not the wrapper
        return " ".join(f"cell {cell}: {getattr(error, 'ename', '')}: {getattr(error, 'evalue', '')}".split())
    return " ".join(f"{type(error).__name__}: {error}".split())


def _clear(folder: Path) -> None:
    """Empties a run folder but for what this process stands on."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name not in {".lock", "log.txt", "job.json"}:
            item.unlink()


def _execute(job: Mapping[str, Any], folder: Path) -> None:
    """papermill with our parameters; the executed notebook grows under a temporary name.

    Raises:
        ValueError: the notebook's parameters cell lacks one of the names that are passed.
        papermill.PapermillExecutionError: a cell raised.
        nbclient.exceptions.DeadKernelError: the kernel was killed.
    """
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines

    notebook, begun = Path(job["notebook"]), threading.Event()
    known = set(papermill.inspect_notebook(str(notebook)))
    # a study without a model need not name one; what the user asked for must never get lost, and papermill only warns
    missing = {name for name, value in job["parameters"].items() if name not in known and value not in ("", "auto", {})}
    if missing:
        raise ValueError(f"{notebook.name}: the parameters cell lacks {', '.join(sorted(missing))}")
    parameters = {name: value for name, value in job["parameters"].items() if name in known}

    class Engine(NBClientEngine):
        """papermill's engine, which also says which cell it is at."""

        @classmethod
        def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **options: Any) -> Any:
            start = nb_man.cell_start

            def cell_start(cell: Any, cell_index: int, **more: Any) -> Any:
                begun.set()
                runs.write_json(folder / "cell.json", {"cell": cell_index + 1, "cells": len(nb_man.nb.cells)})
                return start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            return super().execute_managed_notebook(nb_man, kernel_name, **options)

    papermill_engines.register("workbench", Engine)
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(
                str(notebook), str(folder / _PART), parameters, engine_name="workbench",
                cwd=str(notebook.parent), progress_bar=False, store_widget_state=False,
                execution_timeout=max(int(job["timeout_s"]), 1),
            )  # fmt: skip
            return
        except RuntimeError as error:
            if begun.is_set() or attempt == 2:
                raise
            print(f"the kernel did not start ({error}); once more", flush=True)
            time.sleep(STAGGER_S)


def main(arguments: Sequence[str]) -> int:
    """`python -m workbench.reproduce job.json`: the child of `reproduce`, not for users."""
    threading.Thread(target=exit_with, args=(os.getppid(),), daemon=True).start()
    return run_job(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
