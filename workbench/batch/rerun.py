"""Rerun: a finished run once more, from what its manifest recorded, and whether the same comes out."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench import methods, runs
from workbench.batch import comparison
from workbench.batch.notebook_job import source_hash
from workbench.batch.reproduce import Job, plan, run_jobs
from workbench.runs import names, provenance

if TYPE_CHECKING:
    from rich.console import Console


class Again(NamedTuple):
    """A repeated run: how its job ended and, where it finished, how it compares with the original."""

    job: Job
    comparison: comparison.Comparison | None


def rerun(
    run: runs.Run,
    *,
    root: Path | None = None,
    anyway: bool = False,
    executor: str = "local",
    timeout_s: float = 6 * 3600,
    console: Console | None = None,
) -> Again:
    """Repeats a run with its recorded system, scale, seeds, model, data set, device and config, in a folder beside it.

    The new folder is called like the old one with `-again-1`, 2, ... behind; one that was stopped goes on. Starting
    checkpoints of the embedded worlds, which are cached by content, are used again.

    Args:
        anyway: run also if the model or the data set is not what it was.
        root, executor, timeout_s, console: as in `reproduce`.

    Raises:
        ValueError: no run, an unfinished one, an unknown system, parameters that today's code refuses, a changed input.
    """
    from rich.console import Console
    from rich.text import Text

    root = (root or runs.default_root()).expanduser().resolve()
    name, manifest = names.name_of(run, root), run.manifest
    method, given = _recorded(name, run, manifest)
    changed = changed_inputs(manifest)
    if changed and not anyway:
        raise ValueError(f"{name}: {'; '.join(changed)}; --anyway runs it with what is there now")
    try:
        key = runs.key_of(plan(method, root, **given).run.folder)
        job = plan(method, root, str(_beside(run, key)), **given)
    except ValueError as error:
        at = (manifest.get("code") or {}).get("commit")
        hint = f"; its code was commit {at}" if at else ""
        raise ValueError(f"{name}: its parameters do not fit today's code: {error}{hint}") from error
    console = console or Console()
    for note in [*changed, *_changed_code(method, manifest)]:
        console.print(Text(f"note: {comparison.printable(note, widest=1000)}"), soft_wrap=True)
    run_jobs([job], root, workers=1, executor=executor, force=False, timeout_s=timeout_s, console=console)
    if job.status == "failed":
        return Again(job, None)
    job.run.update_manifest(rerun_of=name)
    found = comparison.compare(run, job.run, root)
    comparison.show(found, console)
    return Again(job, found)


def changed_inputs(manifest: dict[str, Any]) -> list[str]:
    """A line for each recorded input that is not what it was: content of a file or folder, snapshot of a hub id."""
    parameters = manifest["parameters"]
    revisions = {item["kind"]: item.get("revision", "") for item in manifest.get("inputs") or []}
    changed = []
    marks = parameters.get("inputs") or ("", "")
    given = [(kind, parameters.get(kind), mark) for kind, mark in zip(provenance.INPUTS, marks, strict=True)]
    given += [(kind, parameters["config"].get(kind), mark) for kind, mark in (parameters.get("sources") or {}).items()]
    for kind, source, mark in given:
        if not source:
            continue
        shown = provenance.public(source)
        if (now := runs.fingerprint(source)) != mark:
            gone = now == source  # the fingerprint of what is no file is its name
            changed.append(f"the {kind} {shown} " + ("is not there any more" if gone else "has changed since"))
        elif revisions.get(kind) and (at := provenance.revision(source, kind)) != revisions[kind]:
            then, now = revisions[kind][:12], at[:12] or "not stored here"
            changed.append(f"the {kind} {shown} was snapshot {then} and is {now}")
    return changed


def _recorded(name: str, run: runs.Run, manifest: dict[str, Any]) -> tuple[methods.Method, dict[str, Any]]:
    """The method and what `plan` takes, or an error that says why this run cannot be repeated."""
    if not manifest:
        raise ValueError(f"{run.folder} is no run: it holds no manifest.json")
    system, parameters = manifest.get("system"), manifest.get("parameters")
    if not isinstance(system, str) or system not in methods.REGISTRY:
        known = ", ".join(methods.REGISTRY)
        raise ValueError(f"{name} is a run of {system!r}, which this version does not know; known: {known}")
    needed = ("config", "seeds", "model", "dataset", "device")
    if not isinstance(parameters, dict) or any(key not in parameters for key in needed) or "scale" not in manifest:
        raise ValueError(f"{name}: its manifest lacks parameters that a rerun needs ({', '.join(needed)}, scale)")
    if (status := manifest.get("status")) != "done":
        remedy = f"`workbench reproduce {system}` with the same parameters goes on with it"
        raise ValueError(f"{name} is not finished (status {status}): {remedy}")
    given = {key: parameters[key] for key in needed[1:]}
    return methods.REGISTRY[system], {"scale": manifest["scale"], "overrides": parameters["config"], **given}


def _changed_code(method: methods.Method, manifest: dict[str, Any]) -> list[str]:
    code = manifest.get("code") or {}
    at = f"commit {code['commit']}" if code.get("commit") else "no commit was recorded"
    at += f"; {code['diff']} in its folder holds what was changed on top" if code.get("diff") else ""
    folder = runs.run_folder(method.name, method.module, manifest["scale"], manifest["parameters"])
    book = source_hash(runs.PACKAGE.parent / method.notebook)
    is_new = {"code": runs.key_of(folder) != manifest.get("key")}  # parameters and code: old manifests have it too
    is_new["notebook"] = manifest.get("notebook") not in (None, book)
    return [f"the {what} differs from that of the original ({at})" for what in is_new if is_new[what]]


def _beside(run: runs.Run, key: str) -> Path:
    """The first folder `-again-n` that is free, or that an unfinished rerun with the same parameters and code left."""
    stem = re.sub(r"-again-\d+$", "", run.folder.name)
    for number in itertools.count(1):
        folder = run.folder.with_name(f"{stem}-again-{number}")
        manifest = runs.Run(folder).manifest
        if not manifest or (manifest.get("key") == key and manifest.get("status") != "done"):
            break
    return folder
