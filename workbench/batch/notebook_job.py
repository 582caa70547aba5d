"""One notebook of a batch, executed in its run folder: the body of a child process.

`python -m workbench.batch.notebook_job <job.json>` needs only the job file: it locks the run folder, executes the
notebook, renames it into place when whole and renders its page. It ends when its parent is gone, and its kernel when it
is gone itself, so a SIGKILL leaves nothing running.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench import runs
from workbench.runs.seeds import exit_with

START_AGAIN_S = 2.0  # kernels that start in the same moment can pick the same port (papermill issue 511)
LET_GO_S = 4.0  # a child whose worker was killed lets go of the folder, and its kernel ends, within this time
DEAD_KERNEL = 138  # exit code: the kernel was killed
DISK_FULL = 28  # exit code: no space left, perhaps not even for a line in the log
NO_SPACE = "the disk is full: free some space or set WORKBENCH_RUNS to a folder on another disk"
PART = "notebook.part.ipynb"  # the name an executed notebook has until it is whole
FAILED = "failed.ipynb"  # the same notebook up to the cell that raised, with its error
FAILED_PAGE = "failed.html"
_KEPT = {".lock", "log.txt", "job.json"}  # what a child stands on


def source_hash(notebook: Path) -> str:
    """Hash of what the cells say; outputs, counts and ids, which an editor writes too, do not make a notebook new."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in runs.read_json(notebook)["cells"]]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()[:12]


def run_job(path: Path) -> int:
    """Runs one notebook in its run folder and renders its page; one that fails is kept with its error.

    Returns: 0 done, 1 failed (the line that begins with "failed: " says why), `DISK_FULL` or `DEAD_KERNEL`.
    """
    from nbclient.exceptions import DeadKernelError

    from workbench.share import pages

    try:
        job = runs.read_json(path)
        run, notebook, root = runs.Run(Path(job["folder"])), Path(job["notebook"]), Path(job["root"])
        source = source_hash(notebook)
        with run.locked(wait_s=LET_GO_S):
            if job["force"]:
                for item in run.folder.iterdir():
                    if item.is_dir():
                        shutil.rmtree(item)
                    elif item.name not in _KEPT:
                        item.unlink()
                runs.write_json(path, {**job, "force": False})  # a second try after a death goes on from the first one
            for name in (FAILED, FAILED_PAGE):
                (run.folder / name).unlink(missing_ok=True)
            if run.manifest:
                run.update_manifest(status="running")
            try:
                _execute(job, run.folder)
                if not run.is_done:
                    raise RuntimeError("the notebook ended without experiment.run.finish(claims): nothing was recorded")
                with runs.atomic(run.folder / "notebook.ipynb") as file:
                    file.write((run.folder / PART).read_bytes())
                (run.folder / PART).unlink()
                pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=root)
                run.update_manifest(notebook=source, judged_by=job["judged_by"])
            except BaseException as error:
                _keep(run, root, explain(error))
                raise
    except DeadKernelError:
        return DEAD_KERNEL
    except Exception as error:
        with suppress(OSError):  # the log may lie on a full disk; what matters most first
            print(f"failed: {explain(error)}", flush=True)
        with suppress(OSError):
            traceback.print_exc()
        return DISK_FULL if is_full(error) else 1
    return 0


def keep_failure(run: runs.Run, root: Path, reason: str) -> None:
    """Does for a child that was killed what it would have done itself; leaves a folder that somebody writes alone."""
    with suppress(RuntimeError, OSError, ValueError), run.locked():
        if (run.folder / PART).is_file() or run.manifest.get("status") == "running":
            _keep(run, root, reason)


def _keep(run: runs.Run, root: Path, reason: str) -> None:
    """Marks the run failed and keeps the notebook as far as it came; a full disk must not hide why."""
    from workbench.share import pages

    with suppress(OSError, ValueError):
        if run.manifest:
            run.update_manifest(status="failed", reason=reason)
    with suppress(OSError, ValueError):
        os.replace(run.folder / PART, run.folder / FAILED)
        pages.render(run.folder / FAILED, run.folder / FAILED_PAGE, root=root)


def explain(error: BaseException) -> str:
    """Why a notebook failed, in one line, with the way out where there is one."""
    name, said = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    cell = getattr(error, "exec_count", None)
    # papermill's own error: name the notebook's error, not the wrapper
    text = " ".join(f"{f'cell {cell}: ' if cell is not None else ''}{name}: {said}".split())
    return f"{text}; {NO_SPACE}" if is_full(error) else text


def is_full(error: BaseException) -> bool:
    """True for an error that a full disk or quota is behind, here or in the kernel, whose errors arrive as text."""
    full = (errno.ENOSPC, errno.EDQUOT)
    text = f"{getattr(error, 'evalue', '')} {error}"
    return getattr(error, "errno", None) in full or any(os.strerror(number) in text for number in full)


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
    options = {"engine_name": "workbench", "cwd": str(notebook.parent), "progress_bar": False}
    options |= {"store_widget_state": False, "execution_timeout": max(int(job["timeout_s"]), 1)}
    for attempt in (1, 2):
        try:
            papermill.execute_notebook(str(notebook), str(folder / PART), parameters, **options)
            return
        except RuntimeError as error:
            if begun.is_set() or attempt == 2:
                raise
            print(f"the kernel did not start ({error}); once more", flush=True)
            time.sleep(START_AGAIN_S)


def main(arguments: Sequence[str]) -> int:
    """`<job.json> [<process id of the parent>]`: without the second, whoever is the parent now."""
    # nbformat imports jsonschema, and that a grammar of web addresses which no notebook needs: 1.2 s of every start
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
    parent = int(arguments[1]) if len(arguments) > 1 else os.getppid()
    threading.Thread(target=exit_with, args=(parent,), daemon=True).start()
    return run_job(Path(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
