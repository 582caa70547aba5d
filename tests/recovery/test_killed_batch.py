"""A batch that is killed half-way with SIGKILL: nothing half-written counts, and the next call ends with the same."""

import os
import signal
from pathlib import Path

import pytest
from toy_notebooks import HALVES, OPEN, appears, batch, ends, finish, toy, write_notebook

from workbench import runs
from workbench.batch import notebook_job, reproduce
from workbench.share import pages


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    """The run folder of the same notebook when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("unbroken")
    finish(batch(folder / "runs", write_notebook(folder / "toy.ipynb", *HALVES)))
    return next(run.folder for run, _ in pages.newest(folder / "runs"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim", ["batch", *[pytest.param(name, marks=pytest.mark.exhaustive) for name in ("child", "kernel")]]
)
def test_killed_run_resumes_to_the_same_numbers(tmp_path, victim, unbroken):
    notebook = write_notebook(tmp_path / "toy.ipynb", *HALVES)
    (tmp_path / "slow").touch()
    root = tmp_path / "runs"
    process = batch(root, notebook)
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
    finish(batch(root, notebook))
    for name in ("first.json", "second.json", "claims.json"):
        assert (run.folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert (run.folder / "first.count").read_text() == "x"  # not computed again
    assert (run.folder / "second.count").read_text() == "xx"  # was half-way, so it was
    assert run.is_done
    assert (run.folder / "page.html").is_file()


def test_run_without_its_notebook_or_page_is_not_whole(tmp_path):
    notebook = write_notebook(tmp_path / "toy.ipynb", OPEN)
    run = runs.open_run("toy", "toy", "tiny", {}, str(tmp_path / "run"))
    run.update_manifest(status="done", notebook=notebook_job.source_hash(notebook), judged_by="")
    job = reproduce.Job("toy", notebook, run, {})
    states = []
    for name in ("notebook.ipynb", "page.html"):
        states.append(reproduce._is_whole(job))
        (run.folder / name).touch()
    assert [*states, reproduce._is_whole(job)] == [False, False, True]
    run.update_manifest(status="running")  # what a child writes before it touches anything
    assert not reproduce._is_whole(job)
    assert toy("toy", notebook).notebook == notebook
