"""The part of a run key that code and inputs decide."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from pathlib import Path

from workbench.runs.files import PACKAGE, digest
from workbench.runs.named_models import NAMED

# What can change no number of a training: verdicts are computed again from stored results, the values of shared
# fields and of arms are in the key themselves, and the rest says where and when.
OUTSIDE = frozenset(
    ["workbench", *(f"workbench.{name}" for name in ("claims", "config", "methods", "runs.provenance"))]
)


def code_hash(module: str, outside: frozenset[str] = OUTSIDE) -> str:
    """Hash of what `module` and every workbench module it imports, directly or not, say to the computer.

    A run is used again only while this stays the same: an edit to a kernel runs again what stands on it; one to a page
    template, a comment or a docstring runs nothing. A name that is taken from a package counts for the module that
    defines it, so a new objective leaves the methods of the others alone. Imports under TYPE_CHECKING do not count.

    Args:
        outside: modules that do not count.
    """
    seen: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        path = _source_of(name)
        if name in seen or path is None or name in outside - {module}:
            continue
        source = path.read_text(encoding="utf-8")
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        seen[name] = _tree(source)
        queue += [target for wanted in _imported(source, package) for target in _defined_in(wanted)]
    return digest(sorted(seen.items()))


@cache  # by content: the hash is asked for at every cached piece of work, and parsing is most of it
def _tree(source: str) -> str:
    """The syntax tree without docstrings; comments and layout are no part of it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        is_scope = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if is_scope and ast.get_docstring(node, clean=False) is not None:
            del node.body[0]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


@cache
def _imported(source: str, package: str) -> tuple[str, ...]:
    """Dotted names of what `source` imports; of a package that is imported whole, the names that are used of it."""
    tree = ast.parse(source)
    typed = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inside) for node in typed for part in node.body for inside in ast.walk(part)}
    names: list[str] = []
    local: dict[str, str] = {}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".") if node.level else []
            base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            local |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    uses: dict[str, set[str]] = {name: set() for name in local}
    whole = set()
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in uses:
            uses[node.value.id].add(node.attr)
        elif isinstance(node, ast.Name) and node.id in uses and id(node) not in inner:
            whole.add(node.id)  # handed on: nobody can say what is used of it
    for name, target in local.items():
        is_package = (path := _source_of(target)) is not None and path.name == "__init__.py"
        names += [target] if not is_package or name in whole else [f"{target}.{used}" for used in sorted(uses[name])]
    return tuple(names)


def _defined_in(name: str) -> list[str]:
    """The module behind a dotted name: itself, or the one that defines what a package takes in and hands on."""
    if _source_of(name) is not None:
        return [name]
    base, _, last = name.rpartition(".")
    if (path := _source_of(base)) is None:
        return []
    handed_on = _handed_on(path.read_text(encoding="utf-8")) if path.name == "__init__.py" else {}
    return _defined_in(handed_on[last]) if last in handed_on else [base]


@cache
def _handed_on(source: str) -> dict[str, str]:
    """Names that a package's `__init__` takes from elsewhere, and from where."""
    nodes = [node for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) and node.module]
    return {alias.asname or alias.name: f"{node.module}.{alias.name}" for node in nodes for alias in node.names}


def _source_of(module: str) -> Path | None:
    if module != "workbench" and not module.startswith("workbench."):
        return None
    stem = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def fingerprint(source: str) -> str:
    """Content hash of a local file, name-size-time hash of a local folder, the text itself for a hub id or "".

    It goes into a run's key, so that a run is not reused after its data changed on disk. A named model stands for the
    weights that its checksum names.
    """
    path = Path(source).expanduser() if source else None
    if source in NAMED and path is not None and not path.exists():
        return f"{source}@{NAMED[source].sha256[:12]}"
    if path is None or not path.exists():
        return source
    if path.is_dir():
        files = sorted(item for item in path.rglob("*") if item.is_file())
        return digest([(str(item.relative_to(path)), item.stat().st_size, item.stat().st_mtime_ns) for item in files])
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]
