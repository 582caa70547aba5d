"""Batches of toy notebooks: what is run, reused, reported, stopped. Killed batches are in tests/recovery."""

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import nbformat
import pytest
from rich.console import Console
from toy_notebooks import CLAIM, OPEN, ends, toy, write_notebook

from workbench import methods, reproduce, runs

FINISH = "run.finish(claims)"
CHECK = """import os, json
assert overrides == {"beta": 0.5, "name": "007", "flag": False} and type(overrides["flag"]) is bool
assert (scale, seeds, device) == ("tiny", [0, 1, 2], "auto")
assert os.environ["WORKBENCH_BATCH"] == os.environ["TQDM_DISABLE"] == "1" and os.getcwd() == os.path.dirname(model)
open(output + "/count", "a").write("x")
print("started")"""


@pytest.fixture
def quiet() -> Console:
    return Console(file=StringIO(), width=160)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Writes toy notebooks and registers them: `book(name, *cells)`."""
    registry: dict[str, methods.Method] = {}
    monkeypatch.setattr(methods, "REGISTRY", registry)

    def add(name: str, *cells: str, **options) -> Path:
        path = write_notebook(tmp_path / "books" / f"{name}.ipynb", *cells, **options)
        registry[name] = toy(name, path, quick={})
        return path

    return add


def text_of(console: Console) -> str:
    return console.file.getvalue()


# ------------------------------------------------------------------------------------------ wrong input starts nothing
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overrides": {"bete": 1.0}}, "good: bete = 1.0: Unexpected keyword argument. Fields: beta, name"),
        ({"overrides": {"flag": "false"}}, "good: flag = 'false': Input should be a valid boolean"),
        ({"overrides": {"beta": float("nan")}}, "good: beta = nan: Input should be a finite number"),
        ({"scale": "huge"}, "good: scale must be one of smoke, tiny, full; got 'huge'"),
        ({"names": ["god"]}, "unknown system 'god'; known: good"),
        ({"workers": 0}, "workers and timeout must be positive; got 0 workers"),
        ({"dataset": "no/pairs.jsonl"}, "no file or folder 'no/pairs.jsonl'"),
        ({"model": "./nothing"}, "no file or folder './nothing'"),
    ],
)
def test_wrong_input_is_one_line_and_starts_nothing(tmp_path, book, quiet, options, message):
    book("good")
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        reproduce.reproduce(root=tmp_path / "runs", console=quiet, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_method_without_notebook_is_named(tmp_path, book, quiet):
    book("good").unlink()
    with pytest.raises(FileNotFoundError, match="good: no notebook"):
        reproduce.reproduce(root=tmp_path / "runs", console=quiet)


def test_hub_ids_stay_and_local_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").touch()
    assert reproduce._absolute("rows.jsonl") == str(tmp_path / "rows.jsonl")
    assert reproduce._absolute("someone/model-1.5") == "someone/model-1.5"
    assert reproduce._absolute("") == ""


# -------------------------------------------------------------------------------------------------------- whole batches
@pytest.mark.slow
def test_good_run_is_reused_until_its_notebook_changes(tmp_path, book, quiet):
    path = book("good", "md:## Look", OPEN, CHECK, CLAIM, FINISH)
    (path.parent / "weights.bin").touch()
    root = tmp_path / "runs"
    options = {
        "root": root, "console": quiet, "overrides": {"beta": 0.5, "name": "007", "flag": False},
        "model": str(path.parent / "weights.bin"),
    }  # fmt: skip
    (job,) = reproduce.reproduce(["good"], **options)
    assert (job.status, job.reason) == ("done", "")
    left = {item.name for item in job.run.folder.iterdir()}
    assert left >= {"manifest.json", "notebook.ipynb", "page.html", "claims.json"}
    assert not any("part" in name for name in left)
    assert "started" in (job.run.folder / "page.html").read_text()
    assert "shown in small" in text_of(quiet)
    assert str(root / "index.html") in text_of(quiet)
    assert "one is more than nothing" in (root / "index.html").read_text()

    edited = nbformat.read(path, 4)
    edited.cells[-1].outputs = [nbformat.v4.new_output("stream", text="somebody ran it in an editor")]
    nbformat.write(edited, path)
    (again,) = reproduce.reproduce(["good"], **options)
    assert (again.status, again.process) == ("reused", None)
    assert (job.run.folder / "count").read_text() == "x"

    edited.cells[2].source = "## Look again"
    edited.cells[-1].source = "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)"
    nbformat.write(edited, path)
    (failed,) = reproduce.reproduce(["good"], **options)
    assert (failed.status, failed.reason, failed.run.folder) == ("failed", "killed (out of memory?)", job.run.folder)
    assert "one is more than nothing" not in (root / "index.html").read_text()  # its claims are not this notebook's


@pytest.mark.slow
def test_failures_are_named_and_the_others_go_on(tmp_path, book, quiet):
    book("raises", OPEN, "raise ValueError('the 3rd row\\nis bad')")
    book("dies", OPEN, "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    book("forgets", OPEN, CLAIM)
    short = book("short", OPEN)
    nbformat_book = nbformat.read(short, 4)
    nbformat_book.cells[1].source = "seeds = [0]\noutput = ''"
    nbformat.write(nbformat_book, short)
    book("good", OPEN, CLAIM, FINISH)
    jobs = {
        job.name: job
        for job in reproduce.reproduce(root=tmp_path / "runs", console=quiet, workers=3, overrides={"beta": 0.2})
    }
    assert {name: job.status for name, job in jobs.items()} == {
        "raises": "failed", "dies": "failed", "forgets": "failed", "short": "failed", "good": "done",
    }  # fmt: skip
    assert jobs["raises"].reason == "cell 4: ValueError: the 3rd row is bad"
    assert jobs["dies"].reason == "killed (out of memory?)"
    assert "without experiment.run.finish(claims)" in jobs["forgets"].reason
    assert jobs["short"].reason == "ValueError: short.ipynb: the parameters cell lacks overrides, scale"
    for name in ("raises", "dies", "forgets", "short"):
        assert not (jobs[name].run.folder / "notebook.ipynb").exists()
        assert not (jobs[name].run.folder / "page.html").exists()
        assert not jobs[name].run.is_done
    assert "ValueError: the 3rd row" in jobs["raises"].log.read_text()
    assert "raises failed: cell 4" in text_of(quiet)


@pytest.mark.slow
def test_force_computes_again(tmp_path, book, quiet):
    book("good", OPEN, "import time\nrun.cached('number', time.time)", CLAIM, FINISH)
    (first,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet)
    before = runs.read_json(first.run.folder / "number.json")
    (second,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet, force=True)
    assert second.status == "done"
    assert runs.read_json(second.run.folder / "number.json") > before


@pytest.mark.slow
def test_notebook_over_its_time_is_stopped_with_its_kernel(tmp_path, book, quiet):
    book(
        "slow",
        OPEN,
        "import os, pathlib, time\npathlib.Path(output, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)",
    )
    (job,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet, timeout_s=6)
    assert (job.status, job.reason) == ("failed", "stopped after 6 s, the limit of --timeout")
    assert ends(int((job.run.folder / "pid").read_text()))


@pytest.mark.slow
def test_folder_that_another_process_writes_is_left_alone(tmp_path, book, quiet):
    book("good", OPEN, CLAIM, FINISH)
    plan = reproduce._plan(methods.REGISTRY["good"], (tmp_path / "runs").resolve(), scale="tiny", seeds=[])
    with plan.run.locked():
        (job,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet)
    assert job.status == "failed"
    assert "is being written by another process" in job.reason
    assert not job.run.manifest


@pytest.mark.slow
def test_kernel_that_does_not_start_gets_one_more_try(tmp_path, book, quiet, monkeypatch):
    script = f"""import os, sys
if not os.path.exists({str(tmp_path / "tried")!r}):
    open({str(tmp_path / "tried")!r}, "w").close()
    sys.exit(1)
os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", *sys.argv[1:]])"""
    spec = {
        "argv": [sys.executable, "-c", script, "-f", "{connection_file}"],
        "display_name": "shy",
        "language": "python",
    }
    (tmp_path / "jupyter" / "kernels" / "shy").mkdir(parents=True)
    (tmp_path / "jupyter" / "kernels" / "shy" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    book("good", OPEN, CLAIM, FINISH, kernel="shy")
    (job,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet)
    assert (job.status, job.reason) == ("done", "")
    assert "the kernel did not start" in job.log.read_text()


@pytest.mark.slow
def test_ctrl_c_stops_children_and_keeps_what_is_finished(tmp_path):
    notebook = write_notebook(
        tmp_path / "toy.ipynb", OPEN, "run.cached('first', lambda: 1)",
        "import os, pathlib, time\npathlib.Path(output, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)",
    )  # fmt: skip
    driver = f"""import pathlib, sys
from toy_notebooks import toy
from workbench import methods, reproduce
methods.REGISTRY = {{"toy": toy("toy", pathlib.Path({str(notebook)!r}))}}
try:
    reproduce.reproduce(["toy"], root=pathlib.Path({str(tmp_path / "runs")!r}))
except KeyboardInterrupt:
    sys.exit(130)"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(runs.PACKAGE.parent)])}
    batch = subprocess.Popen(
        [sys.executable, "-c", driver], env=environment, stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job starts with Ctrl-C switched off
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (found := list(tmp_path.glob("runs/toy/*/pid"))) and time.monotonic() < deadline:
        time.sleep(0.1)
    batch.send_signal(signal.SIGINT)
    printed, _ = batch.communicate(timeout=30)
    assert batch.returncode == 130
    assert "the same command goes on from here" in printed
    assert ends(int(found[0].read_text()))
    run = runs.Run(found[0].parent)
    assert runs.read_json(run.folder / "first.json") == 1
    assert not run.is_done
