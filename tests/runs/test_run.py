"""Run folders: nothing half-written is ever read as finished, and what is there is never computed twice."""

import errno
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest

from workbench import runs
from workbench.runs import code
from workbench.runs.run import Run


def test_full_disk_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    runs.write_json(path, {"old": 1})

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    said = r"could not write .*x\.json: No space left on device; nothing half-written was kept"
    with pytest.raises(OSError, match=said):
        runs.write_json(path, {"new": 2})
    assert runs.read_json(path) == {"old": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_killed_while_writing_leaves_the_old_file(tmp_path):
    """SIGKILL between writing and renaming: the reader still sees the old content."""
    runs.write_json(tmp_path / "x.json", {"old": 1})
    script = (
        "import os, signal, sys; from pathlib import Path; from workbench import runs\n"
        "os.fsync = lambda fd: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"runs.write_json(Path({str(tmp_path / 'x.json')!r}), {{'new': 2}})"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert runs.read_json(tmp_path / "x.json") == {"old": 1}


def test_cached_values_and_tables_are_computed_once(tmp_path):
    run, calls = Run(tmp_path), []

    def compute():
        calls.append(1)
        return {"a": [1, 2]}

    assert run.cached("x", compute) == run.cached("x", compute) == {"a": [1, 2]}
    frame = run.table("t", lambda: calls.append(1) or pd.DataFrame({"ids": [[1, 2], [3]]}))
    assert (
        run.table("t", lambda: pytest.fail("computed twice")).ids.tolist()[1].tolist() == frame.ids.tolist()[1].tolist()
    )
    assert len(calls) == 2


def test_a_failed_computation_is_not_stored(tmp_path):
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError):
        run.cached("x", lambda: 1 / 0)
    assert run.cached("x", lambda: 3) == 3


def test_metrics_survive_a_torn_last_line_and_rewind(tmp_path):
    run = Run(tmp_path)
    for step in range(4):
        run.log({"step": step, "loss": 1.0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert [row["step"] for row in run.metrics()] == [0, 1, 2, 3]
    run.rewind_metrics(2)
    run.log({"step": 2})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


def test_half_a_row_does_not_swallow_the_next_one(tmp_path):
    """A full disk leaves half a row; the process that goes on appends behind it."""
    run = Run(tmp_path)
    run.log({"step": 0})
    with open(tmp_path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 1, "lo')
    run.log({"step": 1})
    run.log({"step": 2})
    assert [row["step"] for row in run.metrics()] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_manifest_that_cannot_be_read_is_named_with_the_remedy(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read as a manifest; delete .* and run it again"):
        _ = Run(tmp_path).manifest


def test_only_the_manifest_says_done(runs_root):
    run = runs.open_run("x", "workbench.claims", "tiny", {"a": 1})
    assert not run.is_done
    assert run.manifest["status"] == "running"
    run.finish()
    assert run.is_done
    assert runs.open_run("x", "workbench.claims", "tiny", {"a": 1}).is_done


def test_other_parameters_or_code_are_another_run(runs_root, tmp_path, monkeypatch):
    a = runs.run_folder("x", "workbench.claims", "tiny", {"a": 1})
    assert a != runs.run_folder("x", "workbench.claims", "tiny", {"a": 2})
    assert a != runs.run_folder("x", "workbench.ranking", "tiny", {"a": 1})
    runs.open_run("x", "workbench.claims", "tiny", {"a": 1}, output=str(tmp_path / "mine"))
    with pytest.raises(ValueError, match="holds a run of x with other parameters or code"):
        runs.open_run("x", "workbench.claims", "tiny", {"a": 2}, output=str(tmp_path / "mine"))


def test_code_hash_follows_imports(tmp_path, monkeypatch):
    """An edit of a kernel changes SPIN's hash; an edit of a page does not."""
    package = tmp_path / "workbench"
    subprocess.run(["cp", "-r", str(runs.PACKAGE), str(package)], check=True)
    monkeypatch.setattr(code, "PACKAGE", package)
    before = runs.code_hash("workbench.methods.align.spin.method")
    with open(package / "share" / "pages.py", "a", encoding="utf-8") as file:
        file.write("\nx = 1\n")
    assert runs.code_hash("workbench.methods.align.spin.method") == before
    with open(package / "kernels" / "heads.py", "a", encoding="utf-8") as file:
        file.write("\nx = 1\n")
    assert runs.code_hash("workbench.methods.align.spin.method") != before


def test_changed_input_files_change_the_fingerprint(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("a")
    before = runs.fingerprint(str(path))
    path.write_text("b")
    assert runs.fingerprint(str(path)) != before
    assert runs.fingerprint("org/name") == "org/name"
    assert runs.fingerprint("") == ""


def test_two_writers_are_refused(tmp_path):
    run = Run(tmp_path)
    with run.locked(), pytest.raises(RuntimeError, match="is being written by another process"), Run(tmp_path).locked():
        pass


def test_who_wants_what_another_one_builds_waits_for_it(tmp_path):
    built = []

    def build(folder):
        built.append(folder)
        time.sleep(0.3)
        (folder / "x").write_text("whole")

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: runs.cached_folder({"kind": "k"}, build, root=tmp_path), range(3)))
    assert len(built) == len({*found}) == 1
    assert (found[0] / "x").read_text() == "whole"
    assert [path.name for path in tmp_path.glob("[!.]*")] == [found[0].name]
