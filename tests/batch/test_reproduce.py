"""Batches of toy notebooks: what is run, reused, reported, stopped. Killed batches are in tests/recovery."""

import json
import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from rich.console import Console
from toy_notebooks import CLAIM, FIRST, OPEN, ToyMethod, ends, toy, write_notebook

from workbench import methods, runs
from workbench.batch import notebook_job, reproduce
from workbench.config import located

FINISH = "run.finish(claims)"
CHECK = """import os, json
assert overrides == {"beta": 0.5, "name": "007", "flag": False} and type(overrides["flag"]) is bool
assert (scale, seeds, device) == ("tiny", [0, 1, 2], "auto")
assert os.environ["WORKBENCH_BATCH"] == os.environ["TQDM_DISABLE"] == "1" and os.getcwd() == os.path.dirname(model)
open(output + "/count", "a").write("x")
print("started")"""


SLEEP = "import os, pathlib, time\npathlib.Path(output, 'pid').write_text(str(os.getpid()))\ntime.sleep(600)"


@pytest.fixture
def quiet() -> Console:
    return Console(file=StringIO(), width=160)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """Writes toy notebooks and registers them: `book(name, *cells)`."""
    registry: dict[str, methods.Method] = {}
    monkeypatch.setattr(methods, "REGISTRY", registry)
    monkeypatch.setattr(reproduce, "STAGGER_S", 0.5)

    def add(name: str, *cells: str, **options) -> Path:
        path = write_notebook(tmp_path / "books" / f"{name}.ipynb", *cells, **options)
        registry[name] = toy(name, path, quick=True)
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
        ({"sweep": {"beta": [0.1, 0.1]}}, "a sweep needs different values, at least one; got beta = [0.1, 0.1]"),
        ({"sweep": {"beta": []}}, "a sweep needs different values, at least one; got beta = []"),
        ({"sweep": {"beta": [1.0]}, "overrides": {"beta": 2.0}}, "beta is set to 2.0 and swept over [1.0]; give it"),
        ({"sweep": {"beta": [1, 1.0]}}, "good beta=1 and good beta=1.0 are the same run; give each value once"),
        ({"executor": "slurm"}, "executor must be local or ray; got 'slurm'"),
        ({"sweep": {"flag": [True, "false"]}}, "good: flag = 'false': Input should be a valid boolean"),
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
    assert located("rows.jsonl") == str(tmp_path / "rows.jsonl")
    assert located("someone/model-1.5") == "someone/model-1.5"
    assert located("") == ""


def test_what_is_said_of_a_job_is_never_markup(tmp_path, quiet):
    """Chat templates are full of "[/INST]", which would end a batch with an error of the printer."""
    job = reproduce.Job("toy", Path(), runs.Run(tmp_path), {}, setting="name=[/x]", status="failed", reason="[/INST]")
    reproduce._say(quiet, job, reproduce._state(job))
    quiet.print(reproduce._table([job]))
    reproduce._report([job], tmp_path, quiet)
    assert "toy name=[/x]: failed, [/INST]" in text_of(quiet)
    assert "toy name=[/x] failed: [/INST]" in text_of(quiet)


@pytest.mark.parametrize(
    ("code", "said", "reason"),
    [
        (1, "noise\nfailed: cell 3: ValueError: no\n", "cell 3: ValueError: no"),
        (notebook_job.DISK_FULL, "", notebook_job.NO_SPACE),
        (notebook_job.DEAD_KERNEL, "", "killed (out of memory?)"),
        (-9, "", "killed (out of memory?)"),
        (3, "", "exit code 3"),
        (0, "", "the notebook was edited while it ran; the same command runs it as it is now"),
    ],
)
def test_why_a_child_ended(tmp_path, code, said, reason):
    job = reproduce.Job("toy", write_notebook(tmp_path / "toy.ipynb"), runs.Run(tmp_path), {}, status="running")
    job.log.write_text(said)
    job.handle = code
    poll = SimpleNamespace(poll=lambda handle: handle)
    assert reproduce._collect(job, tmp_path, poll)
    assert (job.status, job.reason) == ("failed", reason)


def test_a_child_that_could_not_start_on_its_node_says_why(tmp_path):
    def poll(_):
        raise PermissionError(13, "no write access to log.txt")

    job = reproduce.Job("toy", write_notebook(tmp_path / "toy.ipynb"), runs.Run(tmp_path), {}, status="running")
    assert reproduce._collect(job, tmp_path, SimpleNamespace(poll=poll))
    assert (job.status, job.reason) == ("failed", "PermissionError: [Errno 13] no write access to log.txt")


# -------------------------------------------------------------------------------------------------------- whole batches
@pytest.mark.slow
def test_a_changed_statistic_judges_stored_results_again_and_trains_nothing(tmp_path, book, quiet, monkeypatch):
    """The code that judges is no part of the key: the notebook runs once more, on the results that are there."""
    book("judged", OPEN, FIRST, CLAIM, "run.finish(claims)")
    statuses, computed = [], []
    for statistic in ("one", "one", "another"):
        monkeypatch.setattr(ToyMethod, "judged_by", statistic)
        (job,) = reproduce.reproduce(["judged"], root=tmp_path / "runs", console=quiet)
        statuses.append(job.status)
        computed.append((job.run.folder / "first.count").read_text())
    assert statuses == ["done", "reused", "done"]
    assert computed == ["x", "x", "x"]


@pytest.mark.slow
def test_good_run_is_reused_until_its_notebook_changes(tmp_path, book, quiet):
    path = book("good", "md:## Look", OPEN, CHECK, CLAIM, FINISH)
    (path.parent / "weights.bin").touch()
    root = tmp_path / "runs"
    options = {"root": root, "console": quiet, "model": str(path.parent / "weights.bin")}
    options["overrides"] = {"beta": 0.5, "name": "007", "flag": False}
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
    assert (again.status, again.handle) == ("reused", None)
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
    ended = reproduce.reproduce(root=tmp_path / "runs", console=quiet, workers=3, overrides={"beta": 0.2})
    jobs = {job.name: job for job in ended}
    bad = ("raises", "dies", "forgets", "short")
    assert {name: job.status for name, job in jobs.items()} == {**dict.fromkeys(bad, "failed"), "good": "done"}
    assert jobs["raises"].reason == "cell 4: ValueError: the 3rd row is bad"
    assert jobs["dies"].reason == "killed (out of memory?)"
    assert "without experiment.run.finish(claims)" in jobs["forgets"].reason
    assert jobs["short"].reason == "ValueError: short.ipynb: the parameters cell lacks overrides, scale"
    for run in (jobs[name].run for name in bad):
        assert not any((run.folder / file).exists() for file in ("notebook.ipynb", "page.html"))
        assert not run.is_done
    assert (jobs["dies"].run.folder / "failed.html").is_file()
    assert jobs["dies"].run.manifest["status"] == "failed"
    assert "ValueError: the 3rd row" in jobs["raises"].log.read_text()
    kept = nbformat.read(jobs["raises"].run.folder / "failed.ipynb", 4)
    outputs = [output for cell in kept.cells for output in cell.get("outputs", ())]
    assert [output.ename for output in outputs if "ename" in output] == ["ValueError"]
    assert "the 3rd row" in (jobs["raises"].run.folder / "failed.html").read_text()
    assert str(jobs["raises"].run.folder / "failed.html") in text_of(quiet)
    assert "4 failed, 1 done" in text_of(quiet)
    assert "raises failed: cell 4" in text_of(quiet)


@pytest.mark.slow
def test_a_sweep_is_a_run_for_each_combination(tmp_path, book, quiet):
    book("good", OPEN, "open(output + '/seen', 'w').write(f'{config}')", CLAIM, FINISH)
    options = {"root": tmp_path / "runs", "console": quiet, "sweep": {"beta": [0.1, 0.5], "name": ["a", "b"]}}
    jobs = reproduce.reproduce(["good"], overrides={"flag": False}, workers=4, **options)
    assert [job.setting for job in jobs] == [f"beta={beta}, name={name}" for beta in (0.1, 0.5) for name in "ab"]
    assert {job.status for job in jobs} == {"done"}
    assert len({job.run.folder for job in jobs}) == 4
    for job, beta, name in zip(jobs, (0.1, 0.1, 0.5, 0.5), "abab", strict=True):
        assert f"{{'beta': {beta}, 'name': '{name}', 'flag': False" in (job.run.folder / "seen").read_text()
    assert "good beta=0.5, name=b" in text_of(quiet)
    fixed = {"flag": False, "beta": 0.5, "name": "b"}
    (one,) = reproduce.reproduce(["good"], root=tmp_path / "runs", console=quiet, overrides=fixed)
    assert (one.status, one.run.folder) == ("reused", jobs[3].run.folder)


@pytest.mark.slow
def test_force_computes_again(tmp_path, book, quiet):
    book("good", OPEN, "import time\nrun.cached('number', time.time)", CLAIM, FINISH)
    (first,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet)
    before = runs.read_json(first.run.folder / "number.json")
    (second,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet, force=True)
    assert second.status == "done"
    # a second try of this child, after the death of a Ray worker, must not throw away what the first had
    assert runs.read_json(second.run.folder / "job.json")["force"] is False
    assert runs.read_json(second.run.folder / "number.json") > before


@pytest.mark.slow
def test_notebook_over_its_time_is_stopped_with_its_kernel(tmp_path, book, quiet, monkeypatch):
    """The clock jumps as soon as the notebook is in its slow cell, however busy the machine is."""
    book("slow", OPEN, SLEEP)
    jumps = property(lambda job: 99.0 * (job.run.folder / "pid").is_file())
    monkeypatch.setattr(reproduce.Job, "elapsed_s", jumps)
    (job,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet, timeout_s=60)
    assert (job.status, job.reason) == ("failed", "stopped after 60 s, the limit of --timeout")
    assert (job.run.manifest["status"], job.run.manifest["reason"]) == ("failed", job.reason)
    assert "time.sleep(600)" in (job.run.folder / "failed.ipynb").read_text()
    assert (job.run.folder / "failed.html").is_file()
    assert ends(int((job.run.folder / "pid").read_text()))


@pytest.mark.slow
def test_folder_that_another_process_writes_is_left_alone(tmp_path, book, quiet):
    book("good", OPEN, CLAIM, FINISH)
    plan = reproduce.plan(methods.REGISTRY["good"], (tmp_path / "runs").resolve(), scale="tiny", seeds=[])
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
    words = [sys.executable, "-c", script, "-f", "{connection_file}"]
    spec = {"argv": words, "display_name": "shy", "language": "python"}
    (tmp_path / "jupyter" / "kernels" / "shy").mkdir(parents=True)
    (tmp_path / "jupyter" / "kernels" / "shy" / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    book("good", OPEN, CLAIM, FINISH, kernel="shy")
    (job,) = reproduce.reproduce(root=tmp_path / "runs", console=quiet)
    assert (job.status, job.reason) == ("done", "")
    assert "the kernel did not start" in job.log.read_text()


@pytest.mark.slow
def test_ctrl_c_stops_children_and_keeps_what_is_finished(tmp_path):
    notebook = write_notebook(tmp_path / "toy.ipynb", OPEN, "run.cached('first', lambda: 1)", SLEEP)
    driver = f"""import pathlib, sys
from toy_notebooks import toy
from workbench import methods
from workbench.batch import reproduce
methods.REGISTRY = {{"toy": toy("toy", pathlib.Path({str(notebook)!r}))}}
try:
    reproduce.reproduce(["toy"], root=pathlib.Path({str(tmp_path / "runs")!r}))
except KeyboardInterrupt:
    sys.exit(130)"""
    search = [str(Path(__file__).parents[1]), str(runs.PACKAGE.parent)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(search)}
    # a background job starts with Ctrl-C switched off
    options = {"text": True, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
    batch = subprocess.Popen([sys.executable, "-c", driver], env=environment, stdout=subprocess.PIPE, **options)
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
