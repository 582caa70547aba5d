"""Launches: started once, watched from anywhere, stopped, and read back after whoever started them is gone."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_notebooks import CLAIM, OPEN, claim_records, ends, toy, write_notebook

from workbench import methods, runs
from workbench.batch import launches

KILLED = "killed (out of memory?); its last words:"
TESTS = Path(__file__).resolve().parent.parent
SLOW = """import time, pathlib
for k in range(3):
    run.progress(k, 3, f"part {k}")
    while not pathlib.Path(output, "..", f"go-{k}").is_file():
        time.sleep(0.05)
run.progress(3, 3, "done")"""


@pytest.fixture
def root(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def register(tmp_path, monkeypatch, root):
    """`register(*cells)` makes the toy the only system, here and in processes; what goes on at the end is stopped."""

    def make(*cells, name="toy"):
        path = write_notebook(tmp_path / f"{name}.ipynb", *cells)
        monkeypatch.setattr(methods, "REGISTRY", {name: toy(name, path)})
        program = tmp_path / "program.py"
        program.write_text(f"""import pathlib, sys
sys.path.insert(0, {str(TESTS)!r})
from toy_notebooks import toy
from workbench import cli, methods
methods.REGISTRY = {{{name!r}: toy({name!r}, pathlib.Path({str(path)!r}))}}
sys.exit(cli.main())""")
        monkeypatch.setattr(launches, "COMMAND", [sys.executable, str(program)])
        return path

    yield make
    launches.stop("toy", root)


@pytest.fixture
def command(register, monkeypatch, root):
    """`command(code)` lets a small program stand for the `workbench` command; what goes on at the end is killed."""
    register(OPEN)

    def make(code):
        monkeypatch.setattr(launches, "COMMAND", [sys.executable, "-c", code])

    yield make
    for process in list(launches._CHILDREN):
        process.kill()
        process.wait()
    launches._CHILDREN.clear()


def until(root, test, within_s=60.0):
    """The first state of the toy that passes the test."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if test(found := launches.state("toy", root)):
            return found
        time.sleep(0.02)
    raise TimeoutError(f"{found}\n{(root / 'toy' / '.launch.txt').read_text()}")


def ended(root):
    return until(root, lambda state: not state.goes_on)


def run_by_hand(root, **files):
    """A run folder as an earlier try left it."""
    run = runs.Run(root / "toy" / "tiny-1")
    for name, value in files.items():
        runs.write_json(run.folder / f"{name}.json", value)
    return run


JOB = {"parameters": {"scale": "tiny", "seeds": [0, 1], "model": "", "dataset": "", "device": "auto", "overrides": {}}}


def test_nothing_started_is_nothing(command, root):
    command("")
    assert launches.state("toy", root) == launches.State("toy")
    assert not launches.stop("toy", root)


def test_two_presses_start_one(command, root, tmp_path):
    command(f"open({str(tmp_path / 'count')!r}, 'a').write('x'); import time; time.sleep(60)")
    assert launches.start("toy", root, scale="smoke")
    assert not launches.start("toy", root, scale="tiny")
    state = until(root, lambda state: (tmp_path / "count").is_file())
    assert (state.status, state.scale, state.seeds, state.ours) == ("starting", "smoke", 2, True)
    assert (tmp_path / "count").read_text() == "x"


def test_whoever_looks_does_not_keep_it_from_starting(command, root):
    command("import time; time.sleep(60)")
    (root / "toy").mkdir(parents=True)
    with open(root / "toy" / ".launch.lock", "w") as looking:
        fcntl.flock(looking, fcntl.LOCK_SH)
        assert not launches.start("toy", root)  # a look takes no longer than this
    assert launches.start("toy", root)


def test_stop_ends_it_and_it_can_be_started_again(command, root):
    command("import time; time.sleep(60)")
    launches.start("toy", root)
    (process,) = launches._CHILDREN
    assert launches.stop("toy", root)
    assert ended(root).status == "stopped"
    assert ends(process.pid)
    assert not launches.stop("toy", root)
    assert launches.start("toy", root)
    assert launches.state("toy", root).status == "starting"


def test_one_that_does_not_listen_is_killed(command, root, monkeypatch):
    monkeypatch.setattr(launches, "GRACE_S", 0.3)
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True)"
    command(f"import signal, time; {deaf}; time.sleep(60)")
    launches.start("toy", root)
    until(root, lambda _: "deaf" in (root / "toy" / ".launch.txt").read_text())
    launches.stop("toy", root)
    assert launches.state("toy", root).status == "stopping"
    assert ended(root).status == "stopped"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("print('error: no kernel named python3')", "no kernel named python3"),
        ("print('toy failed: cell 3: ValueError: beta < 0'); print('1 failed')", "cell 3: ValueError: beta < 0"),
        ("import json; json.loads('{')", "json.decoder.JSONDecodeError: Expecting property name enclosed in"),
        ("import os; print('half', flush=True); os.kill(os.getpid(), 9)", f"{KILLED} half"),
        ("", f"{KILLED} it said nothing"),
    ],
)
def test_the_reason_of_a_failure_is_one_line(command, root, code, reason):
    command(code)
    launches.start("toy", root)
    state = ended(root)
    assert state.status == "failed"
    assert state.reason.startswith(reason)
    assert "\n" not in state.reason


def test_a_kernels_colours_and_parent_do_not_reach_the_command(command, root, monkeypatch):
    for name in ("FORCE_COLOR", "JPY_PARENT_PID", "MPLBACKEND"):
        monkeypatch.setenv(name, "1")
    command("import os, json; print(json.dumps(dict(os.environ)))")
    launches.start("toy", root)
    ended(root)
    seen = json.loads((root / "toy" / ".launch.txt").read_text())
    assert not {"FORCE_COLOR", "JPY_PARENT_PID", "MPLBACKEND"} & set(seen)
    assert seen["WORKBENCH_RUNS"] == str(root)
    assert seen["PYTHONPATH"].split(os.pathsep)[0] == str(runs.PACKAGE.parent)


def test_a_run_that_a_terminal_started_is_seen_and_not_started_again(command, root):
    command("raise SystemExit('started')")
    run = run_by_hand(root, job=JOB, cell={"cell": 6, "cells": 11}, progress={"done": 1, "total": 4, "stage": "seed 0"})
    with run.locked():
        state = launches.state("toy", root)
        assert not launches.start("toy", root)
        assert not launches.stop("toy", root)
    assert (state.status, state.ours, state.scale, state.seeds) == ("running", False, "tiny", 2)
    assert (state.cell, state.cells, state.done, state.total, state.stage) == (6, 11, 1, 4, "seed 0")
    assert state.share == pytest.approx(0.1 * 5 / 11 + 0.9 / 4)
    assert launches.state("toy", root).status == "none"


def test_what_an_earlier_try_left_does_not_count(command, root, tmp_path):
    progress = {"done": 4, "total": 4, "stage": "done"}
    run = run_by_hand(root, progress=progress, claims=claim_records(), manifest={"status": "running"})
    old = time.time() - 100
    for path in run.folder.iterdir():
        os.utime(path, (old, old))
    command(f"""import json, pathlib, time
folder = pathlib.Path({str(run.folder)!r})
(folder / "job.json").write_text({json.dumps(JOB)!r})
(folder / "cell.json").write_text('{{"cell": 2, "cells": 9}}')
time.sleep(60)""")
    launches.start("toy", root, seeds=2)
    state = until(root, lambda state: state.cells)
    assert (state.status, state.folder, state.done, state.total, state.verdicts) == ("running", run.folder, 0, 0, {})


def test_half_written_files_do_not_stop_the_watching(command, root):
    command("import time; time.sleep(60)")
    (root / "toy" / "tiny-2").mkdir(parents=True)
    for name in ("job.json", "cell.json", "progress.json"):
        (root / "toy" / "tiny-2" / name).write_text("{")
    launches.start("toy", root)
    assert launches.state("toy", root).status == "starting"
    (root / "toy" / ".launch.json").write_text("[]")
    assert launches.state("toy", root).goes_on


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "spon"}, "unknown system 'spon'; known: spin, sppo"),
        ({"scale": "big"}, "scale must be one of smoke, tiny, full; got 'big'"),
        ({"seeds": -1}, "seeds is how many, 1 to 1000, or 0 for the number in the registry; got -1"),
        ({"seeds": True}, "got True"),
        ({"seeds": "3"}, "got '3'"),
    ],
)
def test_wrong_input_is_named_before_anything_starts(root, asked, said):
    with pytest.raises(ValueError, match=said):
        launches.start(**{"name": "spin", "root": root, **asked})
    assert not root.exists()


# ------------------------------------------------------------------------------------------------------- whole runs
@pytest.mark.slow
def test_it_outlives_the_process_that_started_it_and_is_found_again(register, root, tmp_path):
    register(OPEN, SLOW, CLAIM, "run.finish(claims)")
    program = tmp_path / "program.py"
    starter = f"""import sys
sys.path.insert(0, {str(TESTS)!r})
from pathlib import Path
from toy_notebooks import toy
from workbench import methods
from workbench.batch import launches
methods.REGISTRY = {{"toy": toy("toy", Path({str(tmp_path / "toy.ipynb")!r}))}}
launches.COMMAND = [sys.executable, {str(program)!r}]
print(launches.start("toy", Path({str(root)!r}), seeds=3))"""
    said = subprocess.run([sys.executable, "-c", starter], capture_output=True, text=True, check=True).stdout
    assert said == "True\n"
    assert not launches.start("toy", root)
    first = until(root, lambda state: state.total)
    assert (first.status, first.done, first.stage, first.seeds) == ("running", 0, "part 0", 3)
    assert first.cells == 7  # with the cell that papermill injects
    (root / "toy" / "go-0").touch()
    later = until(root, lambda state: state.done == 1)
    assert later.share > first.share
    for k in (1, 2):
        (root / "toy" / f"go-{k}").touch()
    state = ended(root)
    assert (state.status, state.share, state.reused) == ("done", 1.0, False)
    assert state.verdicts == {"shown in small": 1}
    assert state.page is not None
    assert state.page.parent == state.folder
    assert launches.start("toy", root, seeds=3)  # the same again is there already
    again = ended(root)
    assert (again.status, again.reused, again.folder) == ("done", True, state.folder)


@pytest.mark.slow
def test_a_failed_notebook_names_cell_and_reason_and_leaves_its_page(register, root):
    register(OPEN, "raise ValueError('<b>beta</b> must be positive')", "run.finish()")
    launches.start("toy", root, seeds=1)
    state = ended(root)
    assert (state.status, state.reason) == ("failed", "cell 4: ValueError: <b>beta</b> must be positive")
    assert state.page is not None
    assert state.page.name == "failed.html"


@pytest.mark.slow
def test_stop_ends_notebook_and_kernel_and_the_next_start_goes_on(register, root):
    pids = "import os; open(output + '/pids', 'a').write(f'{os.getppid()} {os.getpid()} ')"
    register(OPEN, pids, SLOW, CLAIM, "run.finish(claims)")
    launches.start("toy", root, seeds=3)
    folder = until(root, lambda state: state.total).folder
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    launches.stop("toy", root)
    assert launches.state("toy", root).status == "stopping"
    assert ended(root).status == "stopped"
    assert all(ends(pid, 20) for pid in pids)
    for k in range(3):
        (root / "toy" / f"go-{k}").touch()
    assert launches.start("toy", root, seeds=3)
    state = ended(root)
    assert (state.status, state.folder) == ("done", folder)
