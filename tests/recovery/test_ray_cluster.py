"""Batches on a Ray cluster of two nodes: the same files as on one machine, also when a worker and a node are killed."""

import os
import signal
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest
from rich.console import Console
from toy_notebooks import HALVES, OPEN, batch, ends, finish, toy, write_notebook

from workbench import methods, runs
from workbench.batch import executors, reproduce
from workbench.share import pages

pytestmark = pytest.mark.slow

# which node it ran on; and, while `meet` lies beside the notebook, each waits until the other has started as well
WHERE = """import os, time
run.cached("where", lambda: os.environ.get("RAY_RAYLET_PID", ""))
deadline = time.monotonic() + 60
while os.path.exists("meet") and len(list(Path(output).parent.parent.glob("*/*/where.json"))) < 2:
    assert time.monotonic() < deadline, "the other notebook did not start"
    time.sleep(0.05)
run.cached("settings", lambda: [os.environ.get("OMP_NUM_THREADS"), os.environ.get("CUDA_VISIBLE_DEVICES")])"""
CELLS = (OPEN, WHERE, *HALVES[1:])
SAME = ("claims.json", "first.json", "second.json", "settings.json")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, so that two notebooks must be on two nodes."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    # a node that is gone is noticed in seconds, but one on a busy machine is not taken for gone
    health = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
    health |= {"health_check_failure_threshold": 8}
    head = {**size, "include_dashboard": False, "_system_config": health}
    found = again(lambda: Cluster(True, head_node_args=head))
    try:
        again(lambda: found.add_node(**size))
        yield found
    finally:
        found.shutdown()


def again(start):
    """A second and a third try: Ray gives a node 30 s to start, and that is not enough beside other tests."""
    for left in (2, 1, 0):
        try:
            return start()
        except Exception as error:  # Ray raises nothing more special
            if not left or "timed out during startup" not in str(error):
                raise


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> dict[str, runs.Run]:
    """The same two notebooks on this machine, undisturbed."""
    folder = tmp_path_factory.mktemp("local")
    finish(batch(folder / "runs", *books(folder)))
    return by_name(folder / "runs")


def books(folder: Path) -> list[Path]:
    return [write_notebook(folder / f"{name}.ipynb", *CELLS) for name in ("a", "b")]


def by_name(root: Path) -> dict[str, runs.Run]:
    return {run.folder.parent.name: run for run, _ in pages.collect(root)}


def assert_same(ours: dict[str, runs.Run], theirs: dict[str, runs.Run]) -> None:
    assert sorted(ours) == sorted(theirs) == ["a", "b"]
    for name, run in ours.items():
        for file in SAME:
            assert (run.folder / file).read_bytes() == (theirs[name].folder / file).read_bytes(), (name, file)
        assert run.manifest["key"] == theirs[name].manifest["key"]
        assert {path.name for path in run.folder.iterdir()} == {path.name for path in theirs[name].folder.iterdir()}


def test_the_same_command_gives_the_same_files_on_both_nodes(tmp_path, cluster, local, monkeypatch):
    paths = books(tmp_path)
    (tmp_path / "meet").touch()
    monkeypatch.setattr(methods, "REGISTRY", {path.stem: toy(path.stem, path) for path in paths})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    options = {"root": tmp_path / "runs", "executor": "ray", "console": Console(file=StringIO(), width=160)}
    jobs = reproduce.reproduce(["a", "b"], **options)
    assert [(job.status, job.reason) for job in jobs] == [("done", "")] * 2
    assert len({runs.read_json(job.run.folder / "where.json") for job in jobs}) == 2
    assert_same(by_name(tmp_path / "runs"), local)
    monkeypatch.setattr(executors, "OnRay", None)  # nothing to run asks no cluster
    assert [job.status for job in reproduce.reproduce(["a", "b"], **options)] == ["reused"] * 2


@pytest.mark.exhaustive
def test_a_node_that_sees_something_else_is_refused(tmp_path, cluster, monkeypatch):
    import ray

    monkeypatch.chdir(tmp_path)
    here = Path("/proc/self/cwd/runs")  # a path that means another folder in every process
    with ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR"):
        said = r"^Ray node \w{8} does not see the runs folder /proc/self/cwd/runs; put"
        with pytest.raises(RuntimeError, match=said):
            executors.executor("ray", here)
        seen = executors._view([])
        monkeypatch.setattr(executors, "_view", lambda books: {**seen, "code": "an older version"})
        with pytest.raises(RuntimeError, match=r"^Ray node \w{8} has other code of workbench in .*; install the same"):
            executors.executor("ray", tmp_path / "runs")
        assert ray.is_initialized()  # a cluster that was joined by somebody else is not left
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.exhaustive
def test_killed_worker_and_killed_node_lose_nothing(tmp_path, cluster, local):
    """SIGKILL to the worker process of one notebook and to the whole node of the other, both half-way."""
    paths, root = books(tmp_path), tmp_path / "runs"
    (tmp_path / "meet").touch()
    (tmp_path / "slow").touch()
    process = batch(root, *paths, executor="ray", RAY_ADDRESS=cluster.address)
    head = str(cluster.head_node.all_processes["raylet"][0].process.pid)
    started = {}
    deadline = time.monotonic() + 90
    while len(started) < 2 and time.monotonic() < deadline:
        started = {run.folder.parent.name: run for run, _ in pages.collect(root) if (run.folder / "pids").is_file()}
        time.sleep(0.1)
    assert len(started) == 2, process.communicate(timeout=30)[0]
    on = {runs.read_json(run.folder / "where.json"): run for run in started.values()}
    pids = {node: list(map(int, (run.folder / "pids").read_text().split())) for node, run in on.items()}
    (other,) = set(on) - {head}
    os.kill(psutil.Process(pids[head][0]).ppid(), signal.SIGKILL)
    os.kill(int(other), signal.SIGKILL)
    assert all(ends(pid, 20) for both in pids.values() for pid in both)  # neither child nor kernel outlives its worker
    (tmp_path / "slow").unlink()
    finish(process)
    assert_same(by_name(root), local)
    for run in by_name(root).values():
        assert (run.folder / "first.count").read_text() == "x"  # cached
        assert (run.folder / "second.count").read_text() == "xx"  # was half-way
