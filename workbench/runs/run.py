"""The run folder: parameters, environment, progress, metrics, results and claims of one experiment, on disk.

Two rules make a run safe to kill at any point:
1. every file appears whole or not at all (written under a temporary name, flushed, renamed);
2. a run counts as finished only when its own `manifest.json` says `"status": "done"`, which is written last.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.runs import provenance
from workbench.runs.code import code_hash
from workbench.runs.files import atomic, default_root, digest, plain, read_json, write_json

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

DIFF = "code.diff"  # in a run folder: what turns the recorded commit into the code of the run


@dataclass(frozen=True)
class Run:
    """One run folder, or a named part of one (a seed, an arm). Cheap to make, safe to send to another process."""

    folder: Path

    def child(self, name: str) -> Run:
        """The part `name` of this run: a sub-folder with metrics, caches and progress of its own."""
        return Run(self.folder / name)

    def beside(self, name: str) -> Run:
        """The part `name` next to this one: what all arms of a seed share."""
        return Run(self.folder.parent / name)

    # -- results that are computed once
    def cached(self, name: str, compute: Callable[[], Any]) -> Any:
        """The JSON value stored under `name`, computed and stored when it is not there yet."""
        path = self.folder / f"{name}.json"
        if not path.is_file():
            write_json(path, compute())
        return read_json(path)

    def table(self, name: str, compute: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """The table stored as `name`.parquet, computed and stored when it is not there yet."""
        import pandas as pd

        path = self.folder / f"{name}.parquet"
        if not path.is_file():
            frame = compute()
            with atomic(path) as file:
                frame.to_parquet(file, index=False)
        return pd.read_parquet(path)

    # -- metrics: one row a step, appended and flushed
    def log(self, row: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "metrics.jsonl", "ab+") as file:
            if size := file.tell():
                file.seek(size - 1)
                # a killed process or a full disk left half a row: it must not swallow this one
                file.write(b"" if file.read(1) == b"\n" else b"\n")
            file.write((json.dumps(plain(row)) + "\n").encode())

    def metrics(self) -> list[dict[str, Any]]:
        """Every whole metrics row; the torn last line of a killed process is left out."""
        rows: list[dict[str, Any]] = []
        with suppress(FileNotFoundError):
            for line in (self.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
                with suppress(json.JSONDecodeError):
                    rows.append(json.loads(line))
        return rows

    def rewind_metrics(self, step: int) -> None:
        """Drops rows of steps at or after `step`: a resumed training writes them again."""
        kept = [row for row in self.metrics() if row["step"] < step]
        with atomic(self.folder / "metrics.jsonl") as file:
            file.write("".join(json.dumps(row) + "\n" for row in kept).encode())

    # -- progress, for whoever watches from outside
    def progress(self, done: int, total: int, stage: str) -> None:
        write_json(self.folder / "progress.json", {"done": done, "total": total, "stage": stage})

    def read_progress(self) -> dict[str, Any]:
        """`{"done", "total", "stage"}` in units of work; total 0 before anything started."""
        path = self.folder / "progress.json"
        return read_json(path) if path.is_file() else {"done": 0, "total": 0, "stage": ""}

    # -- the manifest
    @property
    def manifest(self) -> dict[str, Any]:
        """What is known about the run; empty where nothing has started yet.

        Raises:
            ValueError: the file is not a manifest.
        """
        path = self.folder / "manifest.json"
        if not path.is_file():
            return {}
        try:
            value = read_json(path)
        except ValueError:  # of JSON and of text alike
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{path} cannot be read as a manifest; delete {self.folder} and run it again")
        return value

    def update_manifest(self, **values: Any) -> None:
        write_json(self.folder / "manifest.json", {**self.manifest, **values})

    @property
    def is_done(self) -> bool:
        return self.manifest.get("status") == "done"

    def finish(self, claims: Any = None) -> None:
        """Writes `claims.json`, then marks the run done. The last call of every notebook."""
        if claims is not None:
            write_json(self.folder / "claims.json", claims.records())
        self.update_manifest(status="done", finished=_now())

    def claims(self) -> list[dict[str, Any]]:
        path = self.folder / "claims.json"
        return read_json(path) if path.is_file() else []

    @contextmanager
    def locked(self, wait_s: float = 0.0) -> Iterator[None]:
        """Holds the folder for this process; a second process gets an error instead of a mixed-up run.

        Args:
            wait_s: how long to wait for the other process: one whose parent was killed takes a moment to notice.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        with open(self.folder / ".lock", "w", encoding="utf-8") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        told = f"{self.folder} is being written by another process; wait for it or stop it"
                        raise RuntimeError(told) from None
                    time.sleep(0.2)
            yield


def run_folder(system: str, module: str, scale: str, parameters: Mapping[str, Any], root: Path | None = None) -> Path:
    """Where the run with these parameters (what the key holds of them) and this code lives:
    `<root>/<system>/<scale>-<hash>`."""
    key = digest([system, scale, parameters, code_hash(module)])
    return (root or default_root()) / system / f"{scale}-{key}"


def key_of(folder: Path) -> str:
    """The key in the name of a computed run folder."""
    return folder.name.rpartition("-")[2]


def open_run(
    system: str,
    module: str,
    scale: str,
    parameters: Mapping[str, Any],
    output: str = "",
    *,
    keyed: Mapping[str, Any] | None = None,
) -> Run:
    """Opens the run of `system` with these parameters: a new folder, or the one that a killed run left behind.

    Args:
        system: registry name, the first folder under the root.
        module: dotted name of the method's module; its code decides whether an older folder may be reused.
        scale: "smoke", "tiny" or "full".
        parameters: everything that can change a number, JSON types only.
        output: a folder to use instead of the computed one ("" for the computed one).
        keyed: what stands for `parameters` in the key; None takes them as they are.

    Raises:
        ValueError: `output` holds a run with other parameters or other code.
    """
    computed = run_folder(system, module, scale, parameters if keyed is None else keyed)
    run, key = Run(Path(output) if output else computed), key_of(computed)
    manifest = run.manifest
    if manifest and manifest.get("key") != key:
        other = f"with other parameters or code (key {manifest.get('key')}, asked {key})"
        remedy = "choose another output folder or delete this one"
        raise ValueError(f"{run.folder} holds a run of {manifest.get('system')} {other}; {remedy}")
    if not manifest:
        code = provenance.code()
        if code.diff:
            with atomic(run.folder / DIFF) as file:
                file.write(code.diff.encode(errors="replace"))
        known = {"hash": code_hash(module), "commit": code.commit, "changed": list(code.changed)}
        known["diff"] = DIFF if code.diff else ""
        asked = {"system": system, "scale": scale, "parameters": plain(parameters), "key": key, "status": "running"}
        made = {"provenance": provenance.machine(), "inputs": provenance.inputs(parameters), "code": known}
        run.update_manifest(**asked, started=_now(), **made)
    return run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def is_locked(folder: Path) -> bool:
    """Whether a process holds this folder's run; read from the system's list: trying the lock could get in its way."""
    table = Path("/proc/locks")
    for place in (folder, *list(folder.parents)[:4]):
        lock = place / ".lock"
        if lock.is_file() and table.is_file():
            facts = lock.stat()
            name = f"{os.major(facts.st_dev):02x}:{os.minor(facts.st_dev):02x}:{facts.st_ino}"
            return name in table.read_text(encoding="ascii", errors="replace")
    return False
