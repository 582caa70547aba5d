"""Where children run: what they are given, how they end, and what is asked of a cluster before anything starts.

Ray itself is a stand-in here; tests/recovery/test_ray_cluster.py starts a real one.
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from toy_notebooks import OPEN, ends, write_notebook

from workbench import runs
from workbench.batch import executors

SLEEPS = "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
SLEEPS += "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
SLEEPS += "print(child.pid, flush=True); time.sleep(600)"


# ----------------------------------------------------------------------------------------------------- this machine
def test_an_unknown_executor_is_named():
    with pytest.raises(ValueError, match="executor must be local or ray; got 'slurm'"):
        executors.executor("slurm", Path())


def test_a_child_finds_the_same_code_and_knows_that_it_is_in_a_batch(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    variables = executors.environment(tmp_path)
    assert variables["PYTHONPATH"] == os.pathsep.join([str(runs.PACKAGE.parent), "elsewhere"])
    assert (variables["WORKBENCH_BATCH"], variables["WORKBENCH_RUNS"]) == ("1", str(tmp_path))


@pytest.mark.slow
def test_local_child_ends_with_its_code_and_says_why(tmp_path):
    local = executors.Local()
    handle = local.start(tmp_path / "no.json", tmp_path / "log.txt", tmp_path)
    assert local.poll(handle) is None
    handle.wait(60)
    assert local.poll(handle) == 1
    assert "failed: FileNotFoundError" in (tmp_path / "log.txt").read_text()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here: a full log is not tested")
def test_a_log_without_room_does_not_hide_how_the_child_ended(tmp_path):
    """Python ends with a code of its own, 120, when it cannot write what was printed."""
    with open("/dev/full", "w") as log:
        words = [sys.executable, "-m", "workbench.batch.notebook_job", str(tmp_path / "no.json")]
        environment = os.environ | executors.environment(tmp_path)
        assert subprocess.run(words, env=environment, stdout=log, stderr=log, timeout=60).returncode == 1


def test_local_stop_ends_the_whole_group_by_force(monkeypatch):
    monkeypatch.setattr(executors, "GRACE_S", 0.3)
    options = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    process = subprocess.Popen([sys.executable, "-c", SLEEPS], **options)
    kernel = int(process.stdout.readline())
    executors.Local().stop([process])
    assert process.returncode == -signal.SIGKILL  # it would not listen to SIGTERM
    assert ends(kernel)


@pytest.mark.slow
def test_a_child_whose_parent_is_gone_already_touches_nothing(tmp_path):
    """SIGKILL of the parent in the moment between starting the child and its first look."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    notebook = write_notebook(tmp_path / "toy.ipynb", OPEN, "import time\ntime.sleep(600)")
    job = {"notebook": notebook, "folder": tmp_path / "run", "root": tmp_path, "force": False, "timeout_s": 60}
    job |= {"judged_by": "", "parameters": {"output": str(tmp_path / "run")}}
    runs.write_json(tmp_path / "job.json", job)
    words = [sys.executable, "-m", "workbench.batch.notebook_job", str(tmp_path / "job.json"), str(gone.pid)]
    environment = os.environ | executors.environment(tmp_path)
    assert subprocess.run(words, env=environment, capture_output=True, timeout=30).returncode == 1
    assert not (tmp_path / "run" / "manifest.json").exists()


# ------------------------------------------------------------------------------------- what a node is asked, and says
@pytest.fixture
def mark(tmp_path) -> Path:
    """What the driver lays down in the runs folder; on one machine a node sees just that."""
    notebook = write_notebook(tmp_path / "toy.ipynb", OPEN)
    runs.write_json(tmp_path / "mark", executors._view([notebook]))
    return tmp_path / "mark"


def changed(mark: Path, name: str, **values: str) -> str:
    """What a node says when the driver saw something else."""
    view = runs.read_json(mark)
    view[name] = {**view[name], **values} if values else "other"
    runs.write_json(mark, view)
    return executors._look(str(mark))


def test_a_node_that_sees_the_same_may_take_part_and_one_without_the_runs_folder_is_told_the_remedy(mark, tmp_path):
    assert executors._look(str(mark)) == ""
    said = executors._look(str(tmp_path / "nowhere" / "mark"))
    assert said.startswith(f"does not see the runs folder {tmp_path / 'nowhere'}; put it on a disk that all nodes")


def test_a_node_with_other_code_packages_or_notebooks_is_told_which(mark):
    view = runs.read_json(mark)
    book = next(iter(view["notebooks"]))
    assert changed(mark, "code") == f"has other code of workbench in {runs.PACKAGE}; install the same version there"
    runs.write_json(mark, view)
    numpy = view["packages"]["numpy"]
    assert changed(mark, "packages", numpy="0.1").startswith(f"has numpy {numpy}, this machine has 0.1; install with")
    runs.write_json(mark, view)
    assert changed(mark, "notebooks", **{book: "other"}) == f"has another {book}; give it the same checkout"
    runs.write_json(mark, view)
    Path(book).unlink()
    assert executors._look(str(mark)) == f"does not see {book}; give it the same checkout"


# ---------------------------------------------------------------------------------------------------- a stand-in Ray
class RayError(Exception):
    pass


class RayTaskError(RayError):
    cause = PermissionError(13, "no write access to log.txt")


class FakeRay(ModuleType):
    """As much of Ray as the executor calls: nothing runs, every handle is what its task left."""

    exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def __init__(self, gpus: int = 0):
        super().__init__("ray")
        self.gpus, self.cancelled, self.ended, self.started, self.address = gpus, [], 0, [], ""

    def is_initialized(self):
        return False

    def init(self, address="", **_):
        self.address = address

    def shutdown(self):
        self.ended += 1

    def cluster_resources(self):
        return {"CPU": 2.0, "GPU": self.gpus} if self.gpus else {"CPU": 2.0}

    def nodes(self):
        return []

    def wait(self, handles, **_):
        return [handle for handle in handles if handle != "goes on"], []

    def get(self, handle, **_):
        if isinstance(handle, Exception):
            raise handle
        return handle

    def cancel(self, handle, *, force):
        self.cancelled.append((handle, force))

    def remote(self, **options):
        def call(*arguments):
            self.started.append((options, arguments))
            return "goes on"

        return lambda function: SimpleNamespace(remote=call)


@pytest.fixture
def ray(monkeypatch):
    def use(**facts) -> FakeRay:
        fake = FakeRay(**facts)
        names = {"ray": fake, "ray.util": ModuleType("ray.util")}
        names["ray.util.scheduling_strategies"] = ModuleType("ray.util.scheduling_strategies")
        names["ray.util.scheduling_strategies"].NodeAffinitySchedulingStrategy = object
        for name, module in names.items():
            monkeypatch.setitem(sys.modules, name, module)
        return fake

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # the executor sets it where it is not
    return use


def test_without_ray_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"--executor ray needs Ray: pip install .*workbench\[ray\]"):
        executors.executor("ray", tmp_path)


def test_a_gpu_that_no_node_has_is_refused_and_the_cluster_left(tmp_path, ray):
    fake = ray()
    with pytest.raises(ValueError, match="no node of the Ray cluster has a GPU"):
        executors.executor("ray", tmp_path, device="cuda")
    assert fake.ended == 1
    fake = ray(gpus=1)
    executors.executor("ray", tmp_path, device="cuda").start(tmp_path / "job.json", tmp_path / "log.txt", tmp_path)
    assert fake.started[0][0]["num_gpus"] == 1
    assert list(tmp_path.iterdir()) == []  # the mark for the nodes is gone


def test_an_address_where_nobody_answers_is_refused_at_once(tmp_path, ray, monkeypatch):
    """Ray itself waits more than ten minutes there."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    fake = ray()
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RuntimeError, match=f"no Ray cluster at {address} .*start one with `ray start --head`"):
        executors.executor("ray", tmp_path)
    assert fake.address == ""


def test_a_ray_that_does_not_start_here_is_one_line(tmp_path, ray, monkeypatch):
    def init(self, address="", **_):
        raise ConnectionError("none runs") if address == "auto" else Exception("The current node timed out.\nLogs: ...")

    monkeypatch.setattr(FakeRay, "init", init)
    ray()
    said = r"^Ray did not start on this machine: The current node timed out\.; try again"
    with pytest.raises(RuntimeError, match=said):
        executors.executor("ray", tmp_path)


def test_how_a_task_ended_is_a_code_or_a_reason(tmp_path, ray):
    ray()
    on_ray = executors.executor("ray", tmp_path)
    assert [on_ray.poll(handle) for handle in ("goes on", 0, 138)] == [None, 0, 138]
    assert on_ray.poll(RayError("the worker died four times")) == executors.KILLED
    with pytest.raises(OSError, match=r"on its Ray node: PermissionError: .*no write access to log\.txt"):
        on_ray.poll(RayTaskError())


def test_stop_and_close_leave_no_task_and_no_cluster(tmp_path, ray):
    fake = ray()
    on_ray = executors.executor("ray", tmp_path)
    on_ray.stop([])
    on_ray.stop(["a", "b"])
    on_ray.close()
    assert fake.cancelled == [("a", True), ("b", True)]
    assert fake.ended == 1


def test_a_child_on_a_node_has_the_drivers_threads_and_settings(tmp_path, ray, monkeypatch):
    """Ray would give it one thread: other numbers, and a model of the user's on one core."""
    fake, seen = ray(), {}
    monkeypatch.setattr(executors, "spawn", lambda *given: seen.update(given[2]) or subprocess.Popen(["true"]))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("WORKBENCH_HEAD", "torch")
    on_ray = executors.executor("ray", tmp_path)
    on_ray.start(Path("job.json"), Path("log.txt"), tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # what Ray does in the worker
    assert executors._child(*fake.started[0][1]) == 0
    assert "OMP_NUM_THREADS" not in seen
    assert seen["WORKBENCH_HEAD"] == "torch"
    on_ray.start(Path("job.json"), Path("log.txt"), tmp_path)  # here the driver's own limit is 1
    executors._child(*fake.started[1][1])
    assert seen["OMP_NUM_THREADS"] == "1"
