"""A batch that is killed half-way with SIGKILL: nothing half-written counts, and the next call ends with the same."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_notebooks import CLAIM, OPEN, ends, toy, write_notebook

from workbench import pages, reproduce, runs

TESTS = Path(__file__).resolve().parent.parent
FIRST = """import os, random
def compute():
    open(output + "/first.count", "a").write("x")
    return random.Random(7).random()
first = run.cached("first", compute)"""
# the second half is slow only while the file `slow` lies beside the notebook
SLOW = """import time
def compute_slowly():
    open(output + "/second.count", "a").write("x")
    open(output + "/pids", "a").write(f"{os.getppid()} {os.getpid()}\\n")
    while os.path.exists("slow"):
        time.sleep(0.05)
    return first + random.Random(8).random()
second = run.cached("second", compute_slowly)"""
RESULT = CLAIM.replace("[1.0 + 0.1 * s for s in seeds]", "[second + 0.1 * s for s in seeds]")
CELLS = (OPEN, FIRST, SLOW, RESULT, "run.finish(claims)")


def batch(notebook: Path, root: Path) -> subprocess.Popen:
    """`workbench reproduce` on the toy, in a process of its own."""
    driver = f"""import pathlib, sys
from toy_notebooks import toy
from workbench import methods, reproduce
methods.REGISTRY = {{"toy": toy("toy", pathlib.Path({str(notebook)!r}))}}
(job,) = reproduce.reproduce(["toy"], root=pathlib.Path({str(root)!r}))
sys.exit(job.status != "done")"""
    path = os.pathsep.join([str(TESTS), str(runs.PACKAGE.parent)])
    return subprocess.Popen(
        [sys.executable, "-c", driver], env=os.environ | {"PYTHONPATH": path}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def appears(root: Path, name: str) -> Path:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := [path for path in root.glob(f"toy/*/{name}") if path.stat().st_size]:
            return found[0]
        time.sleep(0.05)
    raise TimeoutError(f"no {name} under {root}")


def finish(process: subprocess.Popen) -> None:
    printed, _ = process.communicate(timeout=90)
    assert process.returncode == 0, printed


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The run folder of the same notebook when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("unbroken")
    finish(batch(write_notebook(folder / "toy.ipynb", *CELLS), folder / "runs"))
    return next(run.folder for run, _ in pages.newest(folder / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["batch", "child", "kernel"])
def test_killed_run_resumes_to_the_same_numbers(tmp_path, victim, unbroken):
    notebook = write_notebook(tmp_path / "toy.ipynb", *CELLS)
    (tmp_path / "slow").touch()
    root = tmp_path / "runs"
    process = batch(notebook, root)
    child, kernel = map(int, appears(root, "pids").read_text().split())
    os.kill({"batch": process.pid, "child": child, "kernel": kernel}[victim], signal.SIGKILL)
    assert ends(process.pid, 20)
    assert ends(child)
    assert ends(kernel)
    process.communicate()
    assert process.returncode != 0

    (run,) = [run for run, _ in pages.collect(root)]
    assert not run.is_done
    assert pages.newest(root) == []
    assert {"notebook.ipynb", "page.html", "claims.json", "second.json"}.isdisjoint(os.listdir(run.folder))

    (tmp_path / "slow").unlink()
    finish(batch(notebook, root))
    for name in ("first.json", "second.json", "claims.json"):
        assert (run.folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert (run.folder / "first.count").read_text() == "x"  # not computed again
    assert (run.folder / "second.count").read_text() == "xx"  # was half-way, so it was
    assert run.is_done
    assert (run.folder / "page.html").is_file()


def test_run_without_its_notebook_or_page_is_not_whole(tmp_path):
    notebook = write_notebook(tmp_path / "toy.ipynb", OPEN)
    run = runs.open_run("toy", "toy", "tiny", {}, str(tmp_path / "run"))
    run.update_manifest(status="done", notebook=reproduce._source_hash(notebook))
    job = reproduce.Job("toy", notebook, run, {})
    states = []
    for name in ("notebook.ipynb", "page.html"):
        states.append(reproduce._is_whole(job))
        (run.folder / name).touch()
    assert [*states, reproduce._is_whole(job)] == [False, False, True]
    run.update_manifest(status="running")  # what a child writes before it touches anything
    assert not reproduce._is_whole(job)
    assert toy("toy", notebook).notebook == notebook
