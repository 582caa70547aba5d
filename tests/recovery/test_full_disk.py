"""Batches on a full disk: who failed and the way out are named, the others finish, and the next call goes on."""

import os
import subprocess
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from toy_notebooks import CLAIM, FIRST, OPEN, toy, write_notebook

from workbench import methods, runs
from workbench.batch import notebook_job, reproduce

pytestmark = pytest.mark.slow

FINISH = "run.finish(claims)"
REMEDY = "the disk is full: free some space or set WORKBENCH_RUNS to a folder on another disk"
# one value too large for the disk as long as the file `small` lies beside the notebook
LARGE = 'run.cached("large", lambda: "x" * (30 * 2**20 if os.path.exists("small") else 10))'
# every last byte, not through our own writer: not even the log has room for the reason
FILL = """if os.path.exists("small"):
    with open(Path(output).parent.parent / "filler", "wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()"""
# a disk that is full for the kernel alone: needs no rights on the machine
NO_ROOM = """import errno
def full(handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
if os.path.exists("small"):
    os.fsync = full
run.cached("second", lambda: 2)"""


@pytest.fixture
def disk(tmp_path):
    """A file system of 24 MiB, for the runs folder."""
    folder = tmp_path / "runs"
    folder.mkdir()
    size = ["-o", "size=24m"]
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", *size, "tmpfs", str(folder)], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no mount command: a really full disk is not tested")
    if done.returncode:
        pytest.skip(f"this user may not mount a small disk ({done.stderr.strip()}): a really full one is not tested")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def run_all(tmp_path, monkeypatch):
    """Runs these notebooks, and afterwards nothing half-written is left of any of them."""

    def run(**books: tuple[str, ...]) -> tuple[dict[str, reproduce.Job], str]:
        paths = {name: write_notebook(tmp_path / f"{name}.ipynb", *cells) for name, cells in books.items()}
        monkeypatch.setattr(methods, "REGISTRY", {name: toy(name, path) for name, path in paths.items()})
        console = Console(file=StringIO(), width=200)
        jobs = reproduce.reproduce(list(books), root=tmp_path / "runs", console=console, workers=1)
        left = [path.name for path in (tmp_path / "runs").rglob("*") if ".part" in path.name]
        assert left == []
        return {job.name: job for job in jobs}, console.file.getvalue()

    (tmp_path / "small").touch()
    return run


def goes_on(run_all, folder: Path, **books: tuple[str, ...]) -> None:
    """With space again: what is missing is done, what was finished is kept."""
    (folder / "small").unlink()
    (folder / "runs" / "filler").unlink(missing_ok=True)
    jobs, _ = run_all(**books)
    assert {job.status for job in jobs.values()} <= {"done", "reused"}
    assert jobs["other"].status == "reused"
    for name in set(books) - {"other"}:
        assert (jobs[name].run.folder / "first.count").read_text() == "x"
        assert not (jobs[name].run.folder / notebook_job.FAILED).exists()


@pytest.mark.exhaustive
def test_a_result_that_does_not_fit_fails_its_notebook_alone(tmp_path, disk, run_all):
    books = {"large": (OPEN, FIRST, LARGE, CLAIM, FINISH), "other": (OPEN, CLAIM, FINISH)}
    jobs, printed = run_all(**books)
    assert {name: job.status for name, job in jobs.items()} == {"large": "failed", "other": "done"}
    assert jobs["large"].reason.startswith("cell 5: OSError: [Errno 28] could not write ")
    assert jobs["large"].reason.endswith(f"nothing half-written was kept; {REMEDY}")
    assert "large failed: cell 5" in printed
    assert jobs["large"].run.manifest["status"] == "failed"
    assert (jobs["large"].run.folder / notebook_job.FAILED).is_file()
    goes_on(run_all, tmp_path, **books)


@pytest.mark.exhaustive
def test_a_disk_without_one_free_byte_fails_all_that_must_write_and_says_why(tmp_path, disk, run_all):
    other = (OPEN, CLAIM, FINISH)
    assert run_all(other=other)[0]["other"].status == "done"
    books = {"other": other, "fills": (OPEN, FIRST, FILL, CLAIM, FINISH), "next": (OPEN, FIRST, CLAIM, FINISH)}
    jobs, printed = run_all(**books)
    assert {name: job.status for name, job in jobs.items()} == {"other": "reused", "fills": "failed", "next": "failed"}
    assert jobs["fills"].reason.endswith(REMEDY)
    assert jobs["next"].reason.endswith(REMEDY)
    assert "fills failed: " in printed
    assert "next failed: " in printed
    goes_on(run_all, tmp_path, **books)


def test_a_kernel_that_finds_no_space_is_named_with_the_remedy(tmp_path, run_all):
    books = {"full": (OPEN, FIRST, NO_ROOM, CLAIM, FINISH), "other": (OPEN, CLAIM, FINISH)}
    jobs, printed = run_all(**books)
    assert {name: job.status for name, job in jobs.items()} == {"full": "failed", "other": "done"}
    assert jobs["full"].reason.endswith(REMEDY)
    assert not (jobs["full"].run.folder / "second.json").exists()
    assert runs.read_json(jobs["full"].run.folder / "first.json") > 0
    assert "full failed: cell 5: OSError" in printed
    goes_on(run_all, tmp_path, **books)


@pytest.mark.exhaustive
def test_a_disk_that_refuses_the_job_file_fails_that_notebook_alone(tmp_path, run_all, monkeypatch):
    """The parent itself cannot write: in this process, so no rights are needed."""
    real = os.fsync

    def full(handle):
        if "/bad/" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(28, os.strerror(28))
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    jobs, printed = run_all(bad=(OPEN, FIRST, CLAIM, FINISH), other=(OPEN, CLAIM, FINISH))
    assert {name: job.status for name, job in jobs.items()} == {"bad": "failed", "other": "done"}
    assert jobs["bad"].reason.endswith(REMEDY)
    assert jobs["bad"].run.manifest == {}
    assert "bad failed: OSError: [Errno 28] could not write" in printed
