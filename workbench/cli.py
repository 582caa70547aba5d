"""The `workbench` command.

What may live here: reading of command lines, and printing. What may not: anything that another program would want to
call; that is in the module which a command names. Heavy modules load inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import methods, runs

ROOT = runs.PACKAGE.parent  # the checkout, where there is one

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


@app.callback(
    epilog="Start with `workbench reproduce`: it runs the quick set and ends with a scoreboard. "
    "Wrong input gives one line; add `--debug` to any command to see where it came from."
)
def _workbench() -> None:
    """Reproduce, compare and inspect the methods that align language models to preferences."""


@app.command("list")
def list_methods() -> None:
    """List the systems: name, group, paper, and whether the quick set runs them."""
    from rich.console import Console
    from rich.table import Column, Table

    name, paper = Column("name", no_wrap=True), Column("paper", no_wrap=True)
    table = Table(name, "group", "title", paper, "quick set", box=None, padding=(0, 2, 0, 0))
    for method in methods.REGISTRY.values():
        quick = "yes" if method.in_quick_set else ""
        table.add_row(method.name, method.group or "study", method.title, method.paper, quick)
    Console().print(table)


@app.command()
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help="Systems or groups; none takes the quick set.")] = None,
    scale: Annotated[
        str, typer.Option(help="smoke (a minute, no verdicts), tiny (minutes), full (the paper's)")
    ] = "tiny",
    seeds: Annotated[int, typer.Option(min=0, help="How many; 0 takes what the specification asks for.")] = 0,
    model: Annotated[str, typer.Option(help="Hub id or folder; none takes the embedded world's own.")] = "",
    dataset: Annotated[str, typer.Option(help="Hub id, folder or JSONL/JSONL.gz/Parquet file.")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    parameter: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameter", metavar="KEY VALUE", help="A field of the method's Config; repeatable."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Notebooks at once.")] = 2,
    force: Annotated[bool, typer.Option("--force", help="Throw stored results away and start again.")] = False,
    timeout: Annotated[float, typer.Option(help="Limit for one notebook, in seconds.")] = 6 * 3600,
) -> None:
    """Run notebooks, each in its own process, and print the scoreboard.

    Finished runs with the same parameters and code are reused; stopped ones go on where they were. Ctrl-C is safe.

    Examples:

    - `workbench reproduce` runs the quick set in minutes on two cores
    - `workbench reproduce align --scale smoke` runs every method of the group align, briefly
    - `workbench reproduce spin --seeds 3 -p beta 0.5` changes a field of the method's Config
    - `workbench reproduce dpo --dataset my/pairs.jsonl.gz --model my/folder --device cuda` takes your own input
    """
    from workbench.reproduce import reproduce

    jobs = reproduce(
        names or (), scale=scale, seeds=range(seeds), model=model, dataset=dataset, device=device,
        overrides=_overrides(parameter or ()), workers=workers, force=force, timeout_s=timeout,
    )  # fmt: skip
    if any(job.status == "failed" for job in jobs):
        raise typer.Exit(1)


@app.command()
def confidence(
    questions: Annotated[
        str, typer.Argument(help="JSONL, JSONL.gz or Parquet: qid, question; choices, gold, dataset where known.")
    ],
    model: Annotated[str, typer.Option(help="Folder, hub id, or a server: http://localhost:8000/v1#name")],
    budget: Annotated[
        int, typer.Option(min=0, help="Calls to the model, answers included; 0 takes six a question.")
    ] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder; by default confidence-NAME, after the file.")] = None,
    opponents: Annotated[str, typer.Option(help="random, both-orders or active (by expected information)")] = "random",
    seed: Annotated[int, typer.Option(help="Of opponents and sides.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; for a model of this machine")] = "auto",
    explain: Annotated[
        bool, typer.Option("--explain", help="Let the model explain each judgment; needs more tokens.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=8, help="Of one reply.")] = 64,
    max_unparsed: Annotated[float, typer.Option(min=0, max=1, help="Share of unread judgments that is borne.")] = 0.05,
) -> None:
    """Rank a model's answers by how far it trusts them, and write the ranking, its page and its judgments.

    Every question is answered once; then the model is asked, pair by pair, of which answer it is surer. A killed call
    goes on where it stopped. A server's key is read from `$OPENAI_API_KEY`.

    Examples:

    - `workbench confidence quiz.jsonl --model my/folder` asks a model of this machine
    - `workbench confidence quiz.jsonl --model "https://host/v1?price=0.15,0.6#name" --budget 900` asks a server
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Column, Table

    from workbench import confidence_report

    kinds: dict[str, confidence_report.How] = {
        "random": "random_opponents",
        "both-orders": "both_orders",
        "active": "active",
    }
    if opponents not in kinds:
        raise ValueError(f"--opponents must be one of {', '.join(kinds)}; got {opponents!r}")
    reports = confidence_report.write(
        questions, model=model, budget=budget, output=output, how=kinds[opponents], seed=seed, device=device, cot=explain,
        max_tokens=max_tokens, max_unparsed=max_unparsed,
    )  # fmt: skip
    for report in reports:
        table = Table(
            "rank", "strength, 95 %", "", "answer", Column("question", overflow="ellipsis", no_wrap=True), box=None
        )
        for row in confidence_report.rows_to_show(report):
            table.add_row(*map(escape, row))
        Console().print(escape(report.summary()), table)
        typer.echo(f"ranking: {report.folder / 'ranking.csv'}")
    typer.echo(f"page: {reports[0].folder.parent / 'page.html'}")


@app.command()
def new_model(
    dataset: Annotated[str, typer.Option(help="Hub id, folder or file with demonstrations or preferences.")],
    output: Annotated[Path, typer.Option(help="Folder for the model; it must not exist yet.")],
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps.")] = 400,
    width: Annotated[int, typer.Option(min=32, help="Hidden size.")] = 128,
    layers: Annotated[int, typer.Option(min=1)] = 3,
    max_length: Annotated[int, typer.Option(min=16, help="Tokens of prompt and answer together.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
) -> None:
    """Train a small model from scratch on your own text, where no hub can be reached.

    Tokenizer and model are saved in the hub's format, so that `--model` takes the folder. The rows that methods hold
    out are left out of its training. Example: `workbench new-model --dataset my.jsonl --output my-model`
    """
    from workbench.from_scratch import new_model

    if output.exists():
        raise ValueError(f"{output} exists already; name a new folder or delete it")
    facts = new_model(dataset, output, steps=steps, width=width, layers=layers, max_length=max_length, device=device)
    typer.echo(f"{output}: " + ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))


def _overrides(pairs: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as Config fields: a value is JSON where it reads as JSON, else text; Config checks it."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"-p takes a key and a value, as in -p beta 0.1; got {pair!r}")
        try:
            overrides[key] = json.loads(value)
        except json.JSONDecodeError:
            overrides[key] = value
    return overrides


@app.command()
def report(
    readme: Annotated[
        bool, typer.Option("--readme", help="Also write README's table from figures/scoreboard.json.")
    ] = False,
    publish: Annotated[
        bool, typer.Option("--publish", help="First write figures/ from the newest finished tiny runs.")
    ] = False,
) -> None:
    """Render all pages and the index again from what runs left on disk; runs nothing."""
    from workbench import pages

    root = runs.default_root()
    for run, _ in pages.collect(root):
        if (run.folder / "notebook.ipynb").is_file():
            pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=root)
    typer.echo(f"pages: {pages.index(root)}")
    scoreboard = ROOT / "figures" / "scoreboard.json"
    if publish:
        for note in pages.publish(scoreboard, root):
            typer.echo(note)
        from workbench import figures

        records = [
            {"system": entry["system"], **claim} for entry in runs.read_json(scoreboard) for claim in entry["claims"]
        ]
        paths = figures.claims_forest(records).save(scoreboard.parent, "claims", ("svg", "csv"))
        typer.echo(f"published: {', '.join(str(path) for path in [scoreboard, *paths])}")
    if readme:
        changed = pages.update_readme(ROOT / "README.md", scoreboard)
        typer.echo("README.md: " + ("table written" if changed else "unchanged"))


@app.command()
def serve_pages(port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000) -> None:
    """Serve runs/ on this machine only, for a browser that cannot open files."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from workbench import pages

    root = pages.index().parent
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        typer.echo(f"http://127.0.0.1:{server.server_port}/index.html (Ctrl-C stops)")
        server.serve_forever()


@app.command()
def bench(
    name: Annotated[str, typer.Argument(help="File of benchmarks/; none runs all of them.")] = "",
    full: Annotated[bool, typer.Option("--full", help="All cases and more rounds; writes figures/bench-*.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
) -> None:
    """Run speed and memory benchmarks against named peers, each in its own process; see benchmarks/README.md.

    Without `--full` each takes about a minute. Ends with an error if sides do not compute the same numbers.

    Examples: `workbench bench training_step` and `workbench bench --full`
    """
    folder = ROOT / "benchmarks"
    files = {path.stem: path for path in sorted(folder.glob("[!_]*.py")) if path.stem != "harness"}
    if name and name not in files:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(files) or 'none, run this from a checkout'}")
    chosen = [path for stem, path in files.items() if name in ("", stem)]
    options = ["--full" if full else "--quick", *(["--device", device] if device != "cpu" else [])]
    failed = [path.stem for path in chosen if subprocess.call([sys.executable, str(path), *options], cwd=ROOT)]
    if failed:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------------ doctor
@app.command()
def doctor() -> None:
    """Check this machine: Python, pinned packages, kernel, browser, GPU, disk; say how to mend what is wrong."""
    broken = False
    for name, (needed, fine, found, fix) in _examine().items():
        broken |= needed and not fine
        mark = "ok" if fine else "WRONG" if needed else "none"
        typer.echo(f"{mark:<6}{name}: {found}" + ("" if fine else f"\n      -> {fix}"))
    if broken:
        raise typer.Exit(1)


def _examine() -> dict[str, tuple[bool, bool, str, str]]:
    """For each part: is it needed, is it fine, what was found, how to mend it."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    constraints = ROOT / "constraints.txt"
    wrong = _wrong_pins(constraints) if constraints.is_file() else []
    pins = "as pinned" if constraints.is_file() else "no constraints.txt beside the package: versions not compared"
    try:
        launcher = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
        # a bare "python" stands for this interpreter; a path left over from another environment does not
        kernel_fine = not launcher.is_absolute() or launcher.resolve() == Path(sys.executable).resolve()
        kernel = f"python3 starts {launcher}"
    except NoSuchKernel:
        kernel, kernel_fine = "no kernel named python3", False
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), "")
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    root = runs.default_root()
    free_gib = shutil.disk_usage(next(path for path in (root, *root.parents) if path.is_dir())).free / 2**30
    python = ".".join(map(str, sys.version_info[:3]))
    return {
        "python": (True, sys.version_info >= (3, 11), python, "make the environment with Python 3.11 or newer"),
        "packages": (True, not wrong, "; ".join(wrong) or pins, "pip install -c constraints.txt -e '.[dev]'"),
        "kernel": (True, kernel_fine, kernel, f"{sys.executable} -m ipykernel install --sys-prefix --name python3"),
        "browser": (False, bool(browser), browser or "no chromium",
                    "only browser tests and png export need it: install chromium with the system's packages"),
        "gpu": (False, bool(gpu), gpu or f"torch {torch.__version__} sees none", "not needed at scale tiny"),
        "disk": (True, free_gib > 2, f"{free_gib:.0f} GiB free for {root}",
                 "free 2 GiB, or set WORKBENCH_RUNS to a folder on another disk"),
    }  # fmt: skip


def _wrong_pins(constraints: Path) -> list[str]:
    """Pinned packages that are installed in another version; what is not installed is an extra nobody asked for."""
    wrong = []
    for line in constraints.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)==([^\s;#]+)", line):
            try:
                installed = importlib.metadata.version(match[1])
            except importlib.metadata.PackageNotFoundError:
                continue
            if installed.split("+")[0] != match[2].split("+")[0]:  # 2.13.0+cpu is torch 2.13.0 for a CPU
                wrong.append(f"{match[1]} {installed}, pinned {match[2]}")
    return wrong


# -------------------------------------------------------------------------------------------------------------- main
def main(arguments: Sequence[str] | None = None) -> int:
    """The entry point: exit code 0, 1 when a notebook or a check failed, 2 on wrong input, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    try:
        code = app(_joined([word for word in given if word != "--debug"]), prog_name="workbench", standalone_mode=True)
    except SystemExit as end:
        code = end.code
    except KeyboardInterrupt:
        code = 130
    except (ValueError, OSError, RuntimeError) as error:
        if debug:
            raise
        typer.echo(f"error: {' '.join(str(error).split())}", err=True)
        code = 2
    return code if isinstance(code, int) else 0


def _joined(words: Sequence[str]) -> list[str]:
    """`-p key value` as `-p key=value`: typer has no repeatable option of two words."""
    joined: list[str] = []
    rest = iter(words)
    for word in rest:
        joined.append(word)
        if word in ("-p", "--parameter"):
            key = next(rest, None)
            if key is not None:
                value = None if "=" in key else next(rest, None)
                joined.append(key if value is None else f"{key}={value}")
    return joined
