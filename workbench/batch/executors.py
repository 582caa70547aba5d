"""Executors: where the child processes of a batch run, on this machine or on a Ray cluster.

Both start the same child, `python -m workbench.batch.notebook_job job.json`, in a process group of its own, so a
notebook's numbers do not depend on where it ran. A Ray cluster must see the runs folder, the same code and the same
packages on every node; that is asked before anything starts.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from workbench import runs
from workbench.batch.notebook_job import source_hash
from workbench.runs import provenance

NAMES = ("local", "ray")
GRACE_S = 10.0  # a kernel gets this long to shut down before it is killed
KILLED = -9  # exit code of a child that nobody can ask any more
# a worker or a node that dies takes its notebook along; it goes on elsewhere from what its run folder holds
TRIES_AFTER_A_DEATH = 3
ANSWER_S = 5.0  # for a cluster to answer at its address: Ray itself would wait for hours
LOOK_AGAIN_S = 0.2  # between two looks at a child on a node
LOOK_S = 120.0  # for a node to load the package and look around


class Executor(Protocol):
    """Starts children and says how they ended. A handle is whatever `start` returned.

    `start` and `poll` raise OSError where a child could not be started.
    """

    def start(self, job_file: Path, log: Path, root: Path) -> Any: ...
    def poll(self, handle: Any) -> int | None: ...
    def stop(self, handles: Sequence[Any]) -> None: ...
    def close(self) -> None: ...


def environment(root: Path) -> dict[str, str]:
    """What a child's environment has beside its parent's own."""
    search = [str(runs.PACKAGE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]  # kernel and parent: same code
    ours = {"WORKBENCH_BATCH": "1", "WORKBENCH_RUNS": str(root), "PYTHONPATH": os.pathsep.join(search)}
    return ours | {"TQDM_DISABLE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}  # bars of libraries would fill the pages


def spawn(job_file: Path, log: Path, variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """The child process. It is told who its parent is, so that it ends even if that is gone before it can ask."""
    words = [sys.executable, "-m", "workbench.batch.notebook_job", str(job_file), str(os.getpid())]
    with open(log, "ab") as file:
        pipes: Any = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        return subprocess.Popen[bytes](words, env=variables, start_new_session=True, **pipes)


def end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


# ----------------------------------------------------------------------------------------------------- this machine
class Local:
    """Child processes of this one."""

    def start(self, job_file: Path, log: Path, root: Path) -> subprocess.Popen[bytes]:
        return spawn(job_file, log, os.environ | environment(root))

    def poll(self, handle: subprocess.Popen[bytes]) -> int | None:
        return handle.poll()

    def stop(self, handles: Sequence[subprocess.Popen[bytes]]) -> None:
        """Ends children and their kernels: politely, then by force."""
        alive = [process for process in handles if process.poll() is None]
        for process in alive:
            end_group(process, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for process in alive:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0.1))
            end_group(process, signal.SIGKILL)  # also what is left in the group of a child that has ended
            process.wait()

    def close(self) -> None:
        pass


# -------------------------------------------------------------------------------------------------------------- Ray
class OnRay:
    """Tasks of a Ray cluster: that of `$RAY_ADDRESS`, the one that runs on this machine, or a new one of this machine.

    Every node must see the runs folder `root` and have the notebooks; with `gpu` each notebook takes one.

    Raises:
        ValueError: Ray is not installed, or a GPU is asked for and no node has one.
        RuntimeError: no cluster at `$RAY_ADDRESS`; or a node does not see the runs folder, or has other code or other
            packages. The node is named.
    """

    def __init__(self, root: Path, notebooks: Sequence[Path] = (), *, gpu: bool = False):
        try:
            import ray
        except ImportError:
            raise ValueError("--executor ray needs Ray: pip install -c constraints.txt 'workbench[ray]'") from None
        self.ray, self.options = ray, {"num_cpus": 1, "num_gpus": 1 if gpu else 0}
        self.was_there = ray.is_initialized()
        if not self.was_there:
            # a task without a GPU keeps CUDA_VISIBLE_DEVICES as it is: device "auto" means the same as on one machine
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            path = {"env_vars": {"PYTHONPATH": environment(root)["PYTHONPATH"]}}
            self._join(log_to_driver=False, logging_level="ERROR", runtime_env=path)
        try:
            if gpu and not ray.cluster_resources().get("GPU"):
                why = "no node of the Ray cluster has a GPU"
                raise ValueError(f"--device cuda was asked for but {why}; use auto or cpu")
            self._ask_every_node(root, notebooks)
        except BaseException:
            self.close()
            raise

    def _join(self, **options: Any) -> None:
        address = os.environ.get("RAY_ADDRESS", "")
        host, _, port = address.rpartition(":")
        if host and port.isdigit() and "://" not in address:
            try:
                socket.create_connection((host, int(port)), ANSWER_S).close()
            except OSError as error:
                remedy = "start one with `ray start --head`, or unset RAY_ADDRESS"
                raise RuntimeError(f"no Ray cluster at {address} ({error.strerror or error}); {remedy}") from None
        try:
            self.ray.init(address=address or "auto", **options)
        except ConnectionError as error:
            if address:
                raise RuntimeError(f"no Ray cluster at {address}: {str(error).splitlines()[0]}") from None
            try:
                self.ray.init(include_dashboard=False, **options)
            except Exception as failure:  # Ray raises nothing more special
                why = f"Ray did not start on this machine: {str(failure).strip().splitlines()[0]}"
                raise RuntimeError(f"{why}; try again, or use --executor local") from None

    def _ask_every_node(self, root: Path, notebooks: Sequence[Path]) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        root.mkdir(parents=True, exist_ok=True)
        mark = root / f".seen-{uuid.uuid4().hex}"
        runs.write_json(mark, _view(notebooks))
        try:
            ask, asked = self.ray.remote(num_cpus=0)(_look), {}
            for node in [facts["NodeID"] for facts in self.ray.nodes() if facts["Alive"]]:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                asked[node] = ask.options(scheduling_strategy=there).remote(str(mark))
            for node, answer in asked.items():
                try:
                    trouble = self.ray.get(answer, timeout=LOOK_S)
                except self.ray.exceptions.RayError as error:
                    trouble = f"cannot run workbench ({type(error).__name__}); install the same version there"
                if trouble:
                    raise RuntimeError(f"Ray node {node[:8]} {trouble}")
        finally:
            mark.unlink(missing_ok=True)

    def start(self, job_file: Path, log: Path, root: Path) -> Any:
        task = self.ray.remote(max_retries=TRIES_AFTER_A_DEATH, scheduling_strategy="SPREAD", **self.options)(_child)
        ours = {name: value for name, value in os.environ.items() if name.startswith("WORKBENCH_")}
        threads = {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
        return task.remote(str(job_file), str(log), ours | threads | environment(root))

    def poll(self, handle: Any) -> int | None:
        ready, _ = self.ray.wait([handle], timeout=0)
        if not ready:
            return None
        try:
            return self.ray.get(handle)
        except self.ray.exceptions.RayTaskError as error:  # the child did not start: no log tells why
            raise OSError(f"on its Ray node: {type(error.cause).__name__}: {error.cause}") from error
        except self.ray.exceptions.RayError:  # cancelled, or it died more often than it may
            return KILLED

    def stop(self, handles: Sequence[Any]) -> None:
        """Ends the tasks by force. A child ends by itself when its worker is gone, and its kernel with it."""
        for handle in handles:
            self.ray.cancel(handle, force=True)
        if handles:
            self.ray.wait(list(handles), num_returns=len(handles), timeout=GRACE_S)

    def close(self) -> None:
        if not self.was_there:
            self.ray.shutdown()


def _view(notebooks: Sequence[Path]) -> dict[str, Any]:
    """What driver and nodes must have in common: code, packages, notebooks."""
    sources = [path.read_bytes() for path in sorted(runs.PACKAGE.rglob("*.py"))]
    books = {str(path): source_hash(path) if path.is_file() else "" for path in notebooks}
    code = hashlib.sha256(b"".join(sources)).hexdigest()
    return {"code": code, "packages": provenance.versions(), "notebooks": books}


def _look(mark: str) -> str:
    """On a node: "" when it sees what the driver sees, else what is wrong."""
    path = Path(mark)
    if not path.is_file():
        return f"does not see the runs folder {path.parent}; put it on a disk that all nodes share (WORKBENCH_RUNS)"
    theirs = runs.read_json(path)
    ours = _view([Path(book) for book in theirs["notebooks"]])
    if ours["code"] != theirs["code"]:
        return f"has other code of workbench in {runs.PACKAGE}; install the same version there"
    for name in sorted({*ours["packages"], *theirs["packages"]}):
        there, here = (view["packages"].get(name, "none") for view in (ours, theirs))
        if there != here:
            return f"has {name} {there}, this machine has {here}; install with the same constraints.txt there"
    for book, found in ours["notebooks"].items():
        if found != theirs["notebooks"][book]:
            return f"{'has another' if found else 'does not see'} {book}; give it the same checkout"
    return ""


def _child(job_file: str, log: str, variables: dict[str, str]) -> int:
    """On a node: the child process, and its exit code. When this worker is killed the child ends by itself."""
    # Ray sets the number of threads to the number of CPUs of the task, which is no limit of ours
    inherited = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    node = os.getppid()
    process = spawn(Path(job_file), Path(log), inherited | variables)
    try:
        while process.poll() is None and os.getppid() == node:
            time.sleep(LOOK_AGAIN_S)
    finally:
        end_group(process, signal.SIGKILL)
    if os.getppid() != node:  # Ray would let this task run to its end while the same one starts on another node
        os._exit(1)
    return process.wait()


def check(name: str) -> None:
    """ValueError where there is no executor of this name."""
    if name not in NAMES:
        raise ValueError(f"executor must be {' or '.join(NAMES)}; got {name!r}")


def executor(name: str, root: Path, notebooks: Sequence[Path] = (), *, device: str = "auto") -> Executor:
    """The executor of this name, ready to start children; device "cuda" makes each wait for a GPU of its own on Ray.

    Raises:
        ValueError: an unknown name.
    """
    check(name)
    return Local() if name == "local" else OnRay(root, notebooks, gpu=device == "cuda")
