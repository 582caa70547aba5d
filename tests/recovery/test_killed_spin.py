"""SPIN killed with SIGKILL half-way, the whole batch: the second call goes on and ends with the same numbers."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from workbench import runs

COMMAND = [sys.executable, *["-m", "workbench", "reproduce", "spin", "--scale", "smoke", "--seeds", "1", "-p", "arms"]]
COMMAND += ['["spin", "sft", "shuffled"]']


def start(root):
    environment = {**os.environ, "WORKBENCH_RUNS": str(root), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        COMMAND, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def only_run(root):
    (folder,) = (root / "spin").glob("smoke-*")
    return runs.Run(folder)


def numbers(run):
    return {path.parent.name: runs.read_json(path) for path in sorted(run.folder.glob("seed-*/result.json"))}


def running_under(folder):
    """Processes whose command line or environment names the folder."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in Path(f"/proc/{entry}/environ").read_bytes():
                    found.append(int(entry))
    return found


@pytest.mark.slow
@pytest.mark.exhaustive
def test_killed_half_way_ends_with_the_same_numbers(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    broken.mkdir()
    (broken / ".cache").symlink_to(whole / ".cache")  # the start is not what is killed here
    assert start(whole).wait(timeout=240) == 0

    process = start(broken)
    deadline = time.monotonic() + 200
    while not list(broken.glob("spin/smoke-*/seed-*/arm-*.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for pid in running_under(broken):  # parent, child, kernel and workers, all at once
        os.kill(pid, signal.SIGKILL)
    process.wait()
    run = only_run(broken)
    assert not run.is_done
    assert not numbers(run)  # its one seed has an arm left
    kept = {path: path.stat().st_mtime_ns for path in run.folder.glob("seed-*/arm-*.json")}
    assert kept

    assert start(broken).wait(timeout=240) == 0
    assert run.is_done
    assert numbers(run) == numbers(only_run(whole))
    assert run.claims() == only_run(whole).claims()
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in kept.items()), "finished work was done again"
