"""The run folder: parameters, environment, progress, metrics, results and claims of one experiment, on disk.

What may live here: reading and writing of run folders, the cache of expensive intermediate files, and the loop that
runs an experiment over its seeds. What may not: anything that knows a model, a method or a figure; no torch at import.

Two rules make a run safe to kill at any point:
1. every file appears whole or not at all (written under a temporary name, flushed, renamed);
2. a run counts as finished only when its own `manifest.json` says `"status": "done"`, which is written last.
"""

from __future__ import annotations

import ast
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from workbench import provenance

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent
DIFF = "code.diff"  # in a run folder: what turns the recorded commit into the code of the run


# ---------------------------------------------------------------------------------------------- files, whole or not
_UMASK = os.umask(0)  # there is no other way to read it
os.umask(_UMASK)


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """Opens `path` for writing so that a reader sees the old file or the whole new one, never a part.

    Raises:
        OSError: the disk is full or the folder is not writable; the old file is untouched and nothing is left over.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp makes files that only this user could read
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno, f"could not write {path}: {error.strerror}; nothing half-written was kept"
        ) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically. NaN and infinities are kept, as Python's reader understands them; claims write null
    instead."""
    text = json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=True)
    with atomic(path) as file:
        file.write(text.encode(errors="replace"))  # half a character of a model's text must not lose a run its results


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def plain(value: Any) -> Any:
    """JSON types only: dataclasses, paths, numpy scalars and arrays become what they stand for."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, type) and (as_list := getattr(value, "tolist", None)):
        return plain(as_list())
    return value


def cached_folder(key: Mapping[str, Any], build: Callable[[Path], None], *, root: Path | None = None) -> Path:
    """A folder whose content is a function of `key`; `build(folder)` fills it when it is not there yet.

    A process that wants what another one is building waits for it; where the disk knows no locks both build, and the
    first rename wins.
    """
    digest = _digest(key)
    target = (root or default_root() / ".cache") / f"{key.get('kind', 'item')}-{digest}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w", encoding="utf-8") as lock:
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            build(temporary)
            with suppress(OSError):  # somebody else was first: theirs is as good
                os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------- code and inputs
def code_hash(module: str) -> str:
    """Hash of the source of `module` and of every workbench module it imports, directly or not.

    A run is reused only while this stays the same, so an edit to a kernel reruns what stands on it and an edit to a
    page template reruns nothing.
    """
    seen: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source_of(name)
        if name in seen or path is None:
            continue
        source = path.read_text(encoding="utf-8")
        seen[name] = source
        queue += _imported(source, name if path.name == "__init__.py" else name.rpartition(".")[0])
    return _digest(sorted(seen.items()))


@cache  # by content: the hash is asked for at every cached piece of work, and parsing is most of it
def _imported(source: str, package: str) -> list[str]:
    """Every name that an import in `source` can mean, modules and what is taken from them alike."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                stem = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*stem, *([node.module] if node.module else [])])
            names += [base, *[f"{base}.{alias.name}" for alias in node.names]]
    return names


def _source_of(module: str) -> Path | None:
    if module != "workbench" and not module.startswith("workbench."):
        return None
    stem = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def fingerprint(source: str) -> str:
    """Content hash of a local file, name-size-time hash of a local folder, the text itself for a hub id or "".

    It goes into a run's key, so that a run is not reused after its data changed on disk.
    """
    path = Path(source).expanduser() if source else None
    if path is None or not path.exists():
        return source
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        return _digest([(str(item.relative_to(path)), item.stat().st_size, item.stat().st_mtime_ns) for item in files])
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


def default_root() -> Path:
    """`$WORKBENCH_RUNS`, else `runs/` of the checkout, else `runs/` of the current folder."""
    if "WORKBENCH_RUNS" in os.environ:
        return Path(os.environ["WORKBENCH_RUNS"]).expanduser().resolve()
    checkout = PACKAGE.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def in_batch() -> bool:
    """True where a runner shows the progress itself, so that a notebook stays free of progress bars."""
    return os.environ.get("WORKBENCH_BATCH") == "1"


# ------------------------------------------------------------------------------------------------------- run folder
@dataclass(frozen=True)
class Run:
    """One run folder, or a named part of one (a seed, an arm). Cheap to make, safe to send to another process."""

    folder: Path

    def child(self, name: str) -> Run:
        """The part `name` of this run: a sub-folder with metrics, caches and progress of its own."""
        return Run(self.folder / name)

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
                        raise RuntimeError(
                            f"{self.folder} is being written by another process; wait for it or stop it"
                        ) from None
                    time.sleep(0.2)
            yield


def run_folder(system: str, module: str, scale: str, parameters: Mapping[str, Any], root: Path | None = None) -> Path:
    """Where the run with these parameters and this code lives: `<root>/<system>/<scale>-<hash>`."""
    key = _digest([system, scale, parameters, code_hash(module)])
    return (root or default_root()) / system / f"{scale}-{key}"


def key_of(folder: Path) -> str:
    """The key in the name of a computed run folder."""
    return folder.name.rpartition("-")[2]


def open_run(system: str, module: str, scale: str, parameters: Mapping[str, Any], output: str = "") -> Run:
    """Opens the run of `system` with these parameters: a new folder, or the one that a killed run left behind.

    Args:
        system: registry name, the first folder under the root.
        module: dotted name of the method's module; its code decides whether an older folder may be reused.
        scale: "smoke", "tiny" or "full".
        parameters: everything that can change a number, JSON types only.
        output: a folder to use instead of the computed one ("" for the computed one).

    Raises:
        ValueError: `output` holds a run with other parameters or other code.
    """
    run = Run(Path(output) if output else run_folder(system, module, scale, parameters))
    key = _digest([system, scale, parameters, code_hash(module)])
    manifest = run.manifest
    if manifest and manifest.get("key") != key:
        raise ValueError(
            f"{run.folder} holds a run of {manifest.get('system')} with other parameters or code "
            f"(key {manifest.get('key')}, asked {key}); choose another output folder or delete this one"
        )
    if not manifest:
        code = provenance.code()
        if code.diff:
            with atomic(run.folder / DIFF) as file:
                file.write(code.diff.encode(errors="replace"))
        run.update_manifest(
            system=system,
            scale=scale,
            parameters=plain(parameters),
            key=key,
            status="running",
            started=_now(),
            provenance=provenance.machine(),
            inputs=provenance.inputs(parameters),
            code={
                "hash": code_hash(module),
                "commit": code.commit,
                "changed": list(code.changed),
                "diff": DIFF if code.diff else "",
            },
        )
    return run


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
