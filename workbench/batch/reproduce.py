"""Batch: runs the notebooks of methods through papermill, each in its own process, with a live table.

What one child does is in `notebook_job`, where children run (this machine or a Ray cluster) in `executors`.
"""

from __future__ import annotations

import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from workbench import methods, runs
from workbench.batch import executors
from workbench.batch.notebook_job import DEAD_KERNEL, DISK_FULL, NO_SPACE, explain, keep_failure, source_hash
from workbench.config import located

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

STAGGER_S = 2.0  # between starts, because kernels that start in the same moment can pick the same port
LINE_S = 10.0  # one plain line for each running notebook, where there is no terminal
KILLED = {137, -9, DEAD_KERNEL}  # SIGKILL seen by a shell, SIGKILL seen by a parent, a kernel that died under papermill
_NOISE = re.compile(r"TCP without encryption|^\s*$")


@dataclass
class Job:
    """One notebook of a batch: what it is, where it stands; "reused" where the same run was finished already."""

    name: str
    notebook: Path
    run: runs.Run
    parameters: dict[str, Any]
    setting: str = ""  # what this job of a sweep changes, "beta=0.1"
    judged_by: str = ""  # hash of the code that judges, see `Method.judged_by`
    status: Literal["waiting", "running", "done", "reused", "failed"] = "waiting"
    reason: str = ""  # why it failed, in one line
    started: float = 0.0
    ended: float = 0.0
    log_start: int = 0  # what earlier tries wrote to the log ends here
    handle: Any = None  # of its executor, while it runs

    @property
    def title(self) -> str:
        return f"{self.name} {self.setting}".strip()

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
    sweep: Mapping[str, Sequence[Any]] | None = None,
    workers: int = 2,
    executor: str = "local",
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
        seeds: one run of the method each; None takes the number in the registry.
        overrides: fields of the methods' `Config`.
        sweep: such fields with the values that each of them takes in turn; one run for each combination.
        workers: notebooks at once; each of them runs its seeds side by side as well.
        executor: "local", or "ray" for the machines of a Ray cluster that share the runs folder.
        root: folder of all runs; None takes `$WORKBENCH_RUNS` or `runs/`.
        force: throws away what the run folder holds and starts again.
        timeout_s: a notebook that takes longer is stopped and counted as failed.
        console: where the table goes; None takes standard output.

    Raises:
        ValueError: unknown system, scale, device, executor or `Config` field, wrong type, a sweep without values or
            over what is set already, `workers` or `timeout_s` not positive.
        FileNotFoundError: a method has no notebook.
        RuntimeError: a node of the cluster cannot take part, and why.
        KeyboardInterrupt: after Ctrl-C, when all children have ended.
    """
    root = (root or runs.default_root()).expanduser().resolve()
    fixed = dict(overrides or {})
    given = {"scale": scale, "seeds": list(seeds or ()), "device": device, "overrides": fixed}
    given |= {"model": located(model), "dataset": located(dataset)}
    jobs: list[Job] = []
    points = _points(sweep or {}, fixed)
    for method in methods.find(names):
        for point in points:
            jobs.append(plan(method, root, **{**given, "overrides": {**fixed, **point}}))
            shown = {key: value if isinstance(value, str) else json.dumps(value) for key, value in point.items()}
            jobs[-1].setting = ", ".join(f"{key}={value}" for key, value in shown.items())
    for job in jobs:  # two ways to write one value (1 and 1.0) would share a run folder
        same = [other.title for other in jobs if other.run.folder == job.run.folder]
        if len(same) > 1:
            raise ValueError(f"{' and '.join(same)} are the same run; give each value once")
    return run_jobs(jobs, root, workers=workers, executor=executor, force=force, timeout_s=timeout_s, console=console)


def run_jobs(
    jobs: list[Job], root: Path, *, workers: int, executor: str, force: bool, timeout_s: float, console: Console | None
) -> list[Job]:
    """Runs planned jobs as `reproduce` does, with its options and its errors, and returns them."""
    from rich.console import Console

    if workers < 1 or timeout_s <= 0:
        raise ValueError(f"workers and timeout must be positive; got {workers} workers and {timeout_s} s")
    executors.check(executor)
    for job in jobs:
        job.status = "reused" if not force and _is_whole(job) else "waiting"
    console = console or Console()
    if not console.is_terminal:
        console = Console(file=console.file, width=max(console.width, 140), force_terminal=False)
    waiting = [job for job in jobs if job.status == "waiting"]
    device = waiting[0].parameters["device"] if waiting else "auto"
    # where everything is reused, no cluster is contacted
    where = executors.executor(executor if waiting else "local", root, [job.notebook for job in waiting], device=device)
    try:
        _watch(jobs, root, workers, timeout_s, force, console, where)
    except KeyboardInterrupt:
        console.print("stopping the notebooks ...")
        _stop(jobs, where)
        console.print("stopped; what is finished is kept: the same command goes on from here", highlight=False)
        raise
    except BaseException:
        _stop(jobs, where)
        raise
    finally:
        where.close()
    _report(jobs, root, console)
    return jobs


def _points(sweep: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of a sweep's values; one without values in it where nothing is swept."""
    for key, values in sweep.items():
        if key in fixed:
            raise ValueError(f"{key} is set to {fixed[key]!r} and swept over {list(values)}; give it once")
        if not values or len({json.dumps(value) for value in values}) < len(values):
            raise ValueError(f"a sweep needs different values, at least one; got {key} = {list(values)}")
    return [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]


def plan(method: methods.Method, root: Path, output: str = "", **given: Any) -> Job:
    """Checks the parameters against the method's own `Config` and says where the run lives; starts nothing.

    Args:
        output: the run's folder; "" computes it from the parameters and the code.
        given: what `methods.Experiment` takes.

    Raises:
        ValueError: the parameters do not fit the method, which is named.
        FileNotFoundError: the method has no notebook.
    """
    notebook = runs.PACKAGE.parent / method.notebook
    if not notebook.is_file():
        raise FileNotFoundError(f"{method.name}: no notebook {notebook}; run this from a checkout of the project")
    try:
        experiment = methods.Experiment(method.name, **given)
    except ValueError as error:
        raise ValueError(f"{method.name}: {error}") from error
    folder = Path(output) if output else experiment.computed_folder(root)
    sources = {"model": experiment.model, "dataset": experiment.dataset, "overrides": experiment.overrides}
    parameters = {**given, **sources, "seeds": experiment.seeds, "output": str(folder)}
    return Job(method.name, notebook, runs.Run(folder), parameters, judged_by=method.judged_by)


def _is_whole(job: Job) -> bool:
    """Whether the run is finished, its page made from today's notebook, its verdicts by the code that judges now."""
    files = all((job.run.folder / name).is_file() for name in ("notebook.ipynb", "page.html"))
    manifest = job.run.manifest
    made = (manifest.get("notebook"), manifest.get("judged_by"))
    return files and job.run.is_done and made == (source_hash(job.notebook), job.judged_by)


def _start(job: Job, root: Path, timeout_s: float, force: bool, executor: executors.Executor) -> None:
    """Starts the child; a job whose folder cannot be written fails alone."""
    job.started, job.status = time.monotonic(), "running"
    try:
        path = job.run.folder / "job.json"
        facts = {"notebook": job.notebook, "judged_by": job.judged_by, "folder": job.run.folder, "root": root}
        runs.write_json(path, {**facts, "parameters": job.parameters, "timeout_s": timeout_s, "force": force})
        (job.run.folder / "cell.json").unlink(missing_ok=True)  # of an earlier try
        job.log_start = job.log.stat().st_size if job.log.is_file() else 0
        job.handle = executor.start(path, job.log, root)
    except OSError as error:
        job.status, job.ended, job.reason = "failed", time.monotonic(), explain(error)


def _watch(
    jobs: list[Job], root: Path, workers: int, timeout_s: float, force: bool, console: Console, executor: Any
) -> None:
    """Keeps `workers` notebooks running until all have ended: a live table on a terminal, elsewhere plain lines."""
    from rich.live import Live

    live = Live(_table(jobs), console=console, auto_refresh=False) if console.is_terminal else None

    def say(job: Job, what: str) -> None:
        if live is None:
            _say(console, job, what)

    next_start = next_line = 0.0
    with live or nullcontext():
        while any(job.status in ("waiting", "running") for job in jobs):
            now = time.monotonic()
            running, waiting = ([job for job in jobs if job.status == status] for status in ("running", "waiting"))
            if waiting and len(running) < workers and now >= next_start:
                _start(waiting[0], root, timeout_s, force, executor)
                next_start = now + STAGGER_S
                say(waiting[0], "started" if waiting[0].status == "running" else _state(waiting[0]))
            for job in running:
                if job.elapsed_s > timeout_s:
                    _stop([job], executor)
                    job.reason = f"stopped after {timeout_s:g} s, the limit of --timeout"
                if _collect(job, root, executor):
                    _index(root)
                    say(job, f"{_state(job)} after {job.elapsed_s:.0f} s")
            if now >= next_line:
                next_line = now + (1.0 if live else LINE_S)
                if live:
                    live.update(_table(jobs), refresh=True)
                for job in running:
                    say(job, f"{_state(job)}, {job.elapsed_s:.0f} s")
            time.sleep(0.2)
        if live:
            live.update(_table(jobs), refresh=True)


def _collect(job: Job, root: Path, executor: executors.Executor) -> bool:
    """Whether the job has ended; if so, how, from the exit code and the manifest."""
    try:
        if (code := executor.poll(job.handle)) is None:
            return False
    except OSError as error:
        code, job.reason = 1, job.reason or explain(error)
    job.ended, job.status = time.monotonic(), "done" if code == 0 and _is_whole(job) else "failed"
    if job.status == "failed":
        job.reason = job.reason or _why(job, code)
        keep_failure(job.run, root, job.reason)  # a child that was killed could not do it
    return True


def _why(job: Job, code: int) -> str:
    if code in KILLED:
        return "killed (out of memory?)"
    if said := [line for line in _log_lines(job) if line.startswith("failed: ")]:
        return said[-1].removeprefix("failed: ")
    edited = "the notebook was edited while it ran; the same command runs it as it is now"
    return NO_SPACE if code == DISK_FULL else f"exit code {code}" if code else edited


def _stop(jobs: Sequence[Job], executor: executors.Executor) -> None:
    executor.stop([job.handle for job in jobs if job.status == "running" and job.handle is not None])


def _index(root: Path) -> str:
    """The scoreboard's path; a disk that is full now may have room when the next notebook ends."""
    from workbench.share import pages

    try:
        return str(pages.index(root))
    except OSError as error:
        return f"not written: {explain(error)}"


# ------------------------------------------------------------------------------------------------- what the user sees
def _state(job: Job) -> str:
    """ "cell 5/12, 18/30 parts, 60%", or how it ended, with the verdicts that exist."""
    if job.status == "failed":
        return f"failed, {job.reason}"
    parts: list[str] = [] if job.status == "running" else [job.status]
    if job.status == "running":
        with suppress(OSError, ValueError):
            cell = runs.read_json(job.run.folder / "cell.json")
            parts.append(f"cell {cell['cell']}/{cell['cells']}")
        progress = job.run.read_progress()
        if total := progress["total"]:
            parts.append(f"{progress['done']}/{total} parts, {progress['done'] / total:.0%}")
    counts = Counter(claim["verdict"] for claim in job.run.claims())
    return ", ".join([*(parts or ["starting"]), *(f"{count} {verdict}" for verdict, count in counts.items())])


def _say(console: Console, job: Job, what: str) -> None:
    """One plain line. Neither settings nor errors are markup: "[/INST]" is a frequent word of chat templates."""
    from rich.text import Text

    console.print(Text(f"{job.title}: {what}"), soft_wrap=True)


def _table(jobs: Sequence[Job]) -> Table:
    from rich.table import Table
    from rich.text import Text

    settings = ["setting"] if any(job.setting for job in jobs) else []
    table = Table("system", *settings, "state", "elapsed", box=None, padding=(0, 2, 0, 0))
    colours = {"done": "green", "reused": "green", "failed": "red", "waiting": "dim", "running": ""}
    for job in jobs:
        setting = [Text(job.setting) for _ in settings]
        table.add_row(job.name, *setting, Text(_state(job), style=colours[job.status]), f"{job.elapsed_s:.0f} s")
    return table


def _report(jobs: Sequence[Job], root: Path, console: Console) -> None:
    """The scoreboard of this batch, what failed and why, and where the pages are."""
    from rich.table import Column, Table
    from rich.text import Text

    from workbench import claims

    names = ("system", "claim", "paper", "here", "negative control", Column("verdict", no_wrap=True))
    board = Table(*names, title="Scoreboard", title_justify="left", show_lines=True)
    for job in jobs:
        for record in job.run.claims() if job.status in ("done", "reused") else ():
            cells = (job.title, f"{record['id']} {record['statement']}", record["paper"], claims.describe(record))
            board.add_row(*map(Text, map(str, (*cells, claims.describe_control(record), record["verdict"]))))
    if board.row_count:
        console.print(board)
    for job in jobs:
        if job.status == "failed":
            console.print(Text(f"{job.title} failed: {job.reason}", style="red"))
            for line in [line for line in _log_lines(job) if not line.startswith("failed: ")][-7:]:
                console.print(Text(f"  | {line}", style="dim"))
            if (job.run.folder / "failed.html").is_file():
                console.print(Text(f"  the notebook with its error: {job.run.folder / 'failed.html'}"), soft_wrap=True)
            console.print(Text(f"  whole log: {job.log}; the same command tries again"), soft_wrap=True)
    ended = Counter(job.status for job in jobs)
    console.print(Text(", ".join(f"{count} {status}" for status, count in ended.items())))
    console.print(Text(f"pages: {_index(root)}"), soft_wrap=True)


def _log_lines(job: Job) -> list[str]:
    with suppress(FileNotFoundError):
        text = job.log.read_bytes()[job.log_start :].decode(errors="replace")
        return [line for line in text.splitlines() if not _NOISE.search(line)]
    return []
