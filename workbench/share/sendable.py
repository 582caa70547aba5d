"""What leaves this machine: texts and notebooks without the folders of this machine and without keys.

A folder is replaced by "…", what stands behind it stays: "…/workbench/training/loop.py". A key that an environment
variable holds, or that looks like one, is replaced by a note.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from copy import deepcopy
from pathlib import Path
from typing import Any

from workbench import runs

REMOVED = "[key removed]"
_NAMES_A_SECRET = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_KEYS = re.compile(
    r"\b(?:sk|pk|rk)-[A-Za-z0-9_-]{16,}|\bhf_[A-Za-z0-9]{16,}|\bgh[pousr]_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b"
    r"|(?<=Bearer )[A-Za-z0-9._~+/=-]{12,}|(?<=://)[^\s/@:\"'<>]+:[^\s/@\"'<>]+(?=@)"
    r"|(?<=[?&](?:key|sig)=)[^\s&\"'<>#]+|(?<=[?&](?:token)=)[^\s&\"'<>#]+|(?<=[?&](?:api_key)=)[^\s&\"'<>#]+"
)
# where a path begins: not inside another one or a URL, but right after a code that colours it
_BEFORE = r"(^|[^\w/:.…~]|\x1b\[[\d;]*m)"
_TRACED = re.compile(_BEFORE + r"(/(?:[^\s/:'\"<>\x1b]+/)+[^\s/:'\"<>\x1b]+)", re.MULTILINE)


def cleaner(*folders: Path | None) -> Callable[[str], str]:
    """A function that takes this machine's folders, those given too, and keys out of a text."""
    import sysconfig

    places = {str(place) for folder in filter(None, folders) for place in (folder, folder.resolve())}
    places |= {str(place) for place in (runs.PACKAGE.parent, runs.default_root(), Path.home(), Path.cwd())}
    places |= {sysconfig.get_path("purelib"), sysconfig.get_path("stdlib"), sys.prefix, sys.base_prefix}
    places.add(tempfile.gettempdir())
    longest_first = sorted((place for place in places if len(place) > 3), key=len, reverse=True)
    names = re.compile(rf"{_BEFORE}(?:{'|'.join(map(re.escape, longest_first))})(?=[^\w.-]|\.?(?:\s|$))")
    secrets = _secrets()
    return lambda text: without_keys(names.sub(r"\1…", text), secrets)


def without_keys(text: str, secrets: Iterable[str] | None = None) -> str:
    """The text with every value of a secret environment variable, and what looks like a key, replaced by a note."""
    for secret in _secrets() if secrets is None else secrets:
        text = text.replace(secret, REMOVED)
    return _KEYS.sub(REMOVED, text)


def _secrets() -> list[str]:
    return [value for name, value in os.environ.items() if len(value) >= 8 and _NAMES_A_SECRET.search(name)]


def cleaned(node: Any, *folders: Path | None) -> Any:
    """A copy of an executed notebook in which no cell, output or note holds a folder of this machine or a key."""
    clean = cleaner(*folders, *_inputs(node))
    book = deepcopy(node)
    kept = [key for key in ("kernelspec", "language_info") if key in book.metadata]
    book.metadata = {key: _deep(book.metadata[key], clean) for key in kept}
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if "injected-parameters" in tags or "parameters" in tags:
            cell.source = _without_folders(cell.source)
        cell.source = clean(cell.source)
        for output in cell.get("outputs", []):
            output.update(_deep({key: value for key, value in output.items() if key != "output_type"}, clean))
            if output.output_type == "error":
                output.traceback = [_traced(line) for line in output.traceback]
                output.evalue = _traced(output.evalue)
            elif output.get("name") == "stderr":
                output.text = _traced(output.text)
    return book


def _traced(text: str) -> str:
    """The paths of a traceback, whichever machine it comes from, cut to their last three names."""
    return _TRACED.sub(lambda match: f"{match[1]}…/{'/'.join(match[2].split('/')[-3:])}", text)


def _inputs(node: Any) -> Iterable[Path]:
    """The folders that the notebook's own inputs lie in."""
    given = node.metadata.get("papermill", {}).get("parameters", {})
    paths = [Path(value) for name in ("model", "dataset") if isinstance(value := given.get(name), str)]
    return [path.parent for path in paths if path.is_absolute()]


def _without_folders(source: str) -> str:
    """A parameters cell whose paths are names alone, and whose `output` is the computed folder again."""
    source = re.sub(r"^output = .*$", 'output = ""', source, flags=re.MULTILINE)
    try:
        texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    except SyntaxError:
        return source
    for text in texts:
        if isinstance(text, str) and Path(text).is_absolute():
            source = source.replace(text, Path(text).name)
    return source


def _deep(value: Any, clean: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return type(value)({clean(str(key)): _deep(item, clean) for key, item in value.items()})
    if isinstance(value, list):
        return [_deep(item, clean) for item in value]
    return value
