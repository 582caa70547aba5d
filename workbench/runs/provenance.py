"""Provenance: on what machine, with which packages, code and inputs a run was made.

No host name, user name or environment variable is among them. Nothing here may fail: an unknown fact is left out.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

CHECKOUT = Path(__file__).resolve().parents[2]
WATCHED = ("workbench", "notebooks", "constraints.txt")  # what can change a number; of it the differences are kept
# what a user's settings of git would change
PLAIN = ("--relative", "--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
DIFF_LIMIT = 2**20  # bytes of code.diff; the list of changed files is whole in any case
GIT_S = 10.0  # a repository on a slow disk must not hold up a run for longer
INPUTS = ("model", "dataset")
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "numpy", "scipy", "pandas", "plotly")
_ADDRESS_OPTIONS = {"concurrency", "per_minute", "price", "retries", "timeout"}  # of an endpoint; none is a secret


class Code(NamedTuple):
    """The checkout that a run was made from.

    Attributes:
        commit: of HEAD; "" outside of a git checkout, or without git.
        changed: files of the package, the notebooks and constraints.txt that differ from the commit, new ones included.
        diff: what turns the commit into the code as it was; `git apply` takes it if it was not cut short.
    """

    commit: str = ""
    changed: tuple[str, ...] = ()
    diff: str = ""


def machine() -> dict[str, str]:
    """Versions and hardware, each as text.

    Notes:
        `gpu` is there when torch is loaded and sees one: a run that never loads torch computes nothing on a GPU.
    """
    found = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.system()}
    found |= {"cores": str(os.cpu_count()), "processor": _processor(), "memory_gib": _memory_gib()}
    found |= {"gpu": ", ".join(_gpus()), **versions()}
    return {name: value for name, value in found.items() if value}


@cache
def versions() -> dict[str, str]:
    """Versions of this package and of those that its numbers stand on."""
    found = {}
    for package in ("workbench", *_PACKAGES):
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def _memory_gib() -> str:
    with suppress(OSError, ValueError):
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f}"
    return ""


def _gpus() -> list[str]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


# -------------------------------------------------------------------------------------------------------------- code
def code(checkout: Path = CHECKOUT) -> Code:
    """Commit of the checkout and what was changed in it since.

    Args:
        checkout: the project's folder. What is not one, or has no git, gives an empty `Code`.
    """
    if not (checkout / "pyproject.toml").is_file():  # installed without its repository; one around it is another's
        return Code()
    commit = _git(checkout, "rev-parse", "HEAD").strip()
    if not commit:
        return Code()
    diff = _git(checkout, "diff", "HEAD", *PLAIN, "--", *WATCHED)
    names = _git(checkout, "diff", "HEAD", "--relative", "--name-only", "-z", "--", *WATCHED)
    new = _git(checkout, "ls-files", "--others", "--exclude-standard", "-z", "--", *WATCHED)
    others = [name for name in new.split("\0") if name]
    diff += "".join(_as_new(checkout, name) for name in others)
    return Code(commit, tuple(sorted({*filter(None, names.split("\0")), *others})), _cut(diff))


def _git(checkout: Path, *words: str) -> str:
    """What git prints; "" where it is missing, fails or takes too long."""
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    quiet |= {"GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    how: dict[str, Any] = {"capture_output": True, "check": True, "timeout": GIT_S, "stdin": subprocess.DEVNULL}
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(["git", "-C", str(checkout), *words], env=quiet, **how)
        return done.stdout.decode(errors="replace")
    return ""


def _as_new(checkout: Path, name: str) -> str:
    """A file that git does not know yet, in the form of a diff."""
    path = checkout / name
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return f"# {name}: new, not a text that could be read\n"
    head = f"diff --git a/{name} b/{name}\nnew file mode 100{'755' if os.access(path, os.X_OK) else '644'}\n"
    if not text:
        return head
    lines = text.removesuffix("\n").split("\n")
    body = "".join(f"+{line}\n" for line in lines) + ("" if text[-1] == "\n" else "\\ No newline at end of file\n")
    return f"{head}--- /dev/null\n+++ b/{name}\n@@ -0,0 +1,{len(lines)} @@\n{body}"


def _cut(diff: str) -> str:
    size = len(diff.encode(errors="replace"))
    if size <= DIFF_LIMIT:
        return diff
    kept = diff.encode(errors="replace")[:DIFF_LIMIT].decode(errors="ignore").rpartition("\n")[0]
    return f"{kept}\n# cut here: {DIFF_LIMIT} of {size} bytes are kept; the manifest lists all changed files\n"


# ------------------------------------------------------------------------------------------------------------ inputs
def inputs(parameters: Mapping[str, Any]) -> list[dict[str, str]]:
    """The user's own model, data set, judge and the like, as a run's parameters name them: kind, source, fingerprint,
    revision.

    Returns:
        One entry for each that was given. `revision` is the commit of a hub snapshot on this machine, "" for anything
        else. An address holds no key: what could be one is left out.
    """
    prints = parameters.get("inputs") or [""] * len(INPUTS)
    config = parameters.get("config") or {}
    given = [(kind, parameters.get(kind), mark) for kind, mark in zip(INPUTS, prints, strict=False)]
    given += [(kind, config.get(kind), mark) for kind, mark in (parameters.get("sources") or {}).items()]
    found = [(kind, str(value), public(str(mark))) for kind, value, mark in given if value]
    return [
        {"kind": kind, "source": public(source), "fingerprint": mark, "revision": revision(source, kind)}
        for kind, source, mark in found
    ]


def revision(source: str, kind: str) -> str:
    """Commit of the snapshot of a hub id in the hub's cache on this machine; "" where there is none."""
    if not source or "://" in source or Path(source).expanduser().exists():
        return ""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()
    with suppress(OSError, UnicodeDecodeError):
        return (hub / f"{kind}s--{source.replace('/', '--')}" / "refs" / "main").read_text().strip()
    return ""


def public(source: str) -> str:
    """The same source without a user, a password or an unknown option in its address."""
    if "://" not in source:
        return source
    parts = urlsplit(source)
    options = [(name, value) for name, value in parse_qsl(parts.query) if name in _ADDRESS_OPTIONS]
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query=urlencode(options, safe=",")))
