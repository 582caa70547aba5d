"""Files of a run folder: each appears whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import IO, Any

PACKAGE = Path(__file__).resolve().parents[1]

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
        told = f"could not write {path}: {error.strerror}; nothing half-written was kept"
        raise OSError(error.errno, told) from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON atomically. NaN and infinities are kept: Python's reader understands them; claims write null."""
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
    as_list = None if isinstance(value, type) else getattr(value, "tolist", None)
    return str(value) if isinstance(value, Path) else plain(as_list()) if as_list else value


def cached_folder(key: Mapping[str, Any], build: Callable[[Path], None], *, root: Path | None = None) -> Path:
    """A folder whose content is a function of `key`; `build(folder)` fills it when it is not there yet.

    A process that wants what another one is building waits for it; on a disk without locks the first rename wins.
    """
    target = (root or default_root() / ".cache") / f"{key.get('kind', 'item')}-{digest(key)}"
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


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True, default=str).encode()).hexdigest()[:12]


def default_root() -> Path:
    """`$WORKBENCH_RUNS`, else `runs/` of the checkout, else `runs/` of the current folder."""
    if "WORKBENCH_RUNS" in os.environ:
        return Path(os.environ["WORKBENCH_RUNS"]).expanduser().resolve()
    checkout = PACKAGE.parent
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def in_batch() -> bool:
    """True where a runner shows the progress itself, so that a notebook stays free of progress bars."""
    return os.environ.get("WORKBENCH_BATCH") == "1"
