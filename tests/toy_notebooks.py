"""A toy method with a toy notebook, for tests of pages, batches and recovery: no model, no torch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import psutil
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from workbench import methods, runs
from workbench.claims import Claims
from workbench.config import Presets, strict

PARAMETERS = """scale = "tiny"
model = ""
dataset = ""
seeds = [0, 1, 2]
device = "auto"
overrides = {}
output = \"\""""

OPEN = """from pathlib import Path
from workbench import runs
from workbench.claims import Claims
config = {"beta": 0.1, "name": "plain", "flag": True, "steps": 1} | overrides
given = {"config": config, "model": model, "dataset": dataset, "device": device, "seeds": seeds}
given["inputs"] = [runs.fingerprint(model), runs.fingerprint(dataset)]
run = runs.open_run("toy", "toy", scale, given, output)"""

CLAIM = """claims = Claims("toy", scale, seeds)
claims.test("C1", "one is more than nothing", paper="Table 1", measured=[1.0 + 0.1 * s for s in seeds],
            control=[0.1 * (-1.0) ** s for s in seeds], control_is="sign flipped", unit="nat")
claims"""

# a notebook of two halves, of which a killed run keeps what is finished
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
HALVES = (OPEN, FIRST, SLOW, RESULT, "run.finish(claims)")


@strict
class Config(Presets):
    beta: float = 0.1
    name: str = "plain"
    flag: bool = True
    steps: int = 1


@dataclass(frozen=True)
class ToyMethod(methods.Method):
    """A method of the registry whose notebook is any file and whose module is this one."""

    path: Path = Path()

    @property
    def module(self) -> str:
        return "toy"

    @property
    def notebook(self) -> Path:
        return self.path

    def load(self) -> Any:
        return SimpleNamespace(Config=Config)


def write_notebook(path: Path, *cells: str, title: str = "Does the toy work?", kernel: str = "python3") -> Path:
    """A notebook with a title, the tagged parameters, these code cells (or "# ..." markdown) and nothing else."""
    parameters = new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    others = [new_markdown_cell(cell[3:]) if cell.startswith("md:") else new_code_cell(cell) for cell in cells]
    book = new_notebook(cells=[new_markdown_cell(f"# {title}"), parameters, *others])
    book.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(book, path)
    return path


def toy(name: str, path: Path, **facts: Any) -> ToyMethod:
    return ToyMethod(name, f"Toy {name}", "align", "nobody 2026", (), n_seeds=3, path=path, **facts)


def stored(*outputs: dict[str, Any], markdown: str = "# A page") -> Any:
    """An executed notebook made by hand: one markdown cell and one code cell with these outputs."""
    cells = [new_markdown_cell(markdown), new_code_cell("show()", outputs=list(outputs), execution_count=1)]
    return new_notebook(cells=cells)


def display(kind: str = "display_data", **data: Any) -> dict[str, Any]:
    """An output of a cell; `text_html` stands for the mime type text/html."""
    return new_output(kind, data={mime.replace("_", "/", 1): value for mime, value in data.items()})


def stdout(text: str) -> dict[str, Any]:
    return new_output("stream", name="stdout", text=text)


def claim_records(statement: str = "one is more than nothing", scale: str = "tiny") -> list[dict[str, Any]]:
    claims = Claims("toy", scale, [0, 1, 2])
    given = {"paper": "Table 1", "measured": [1.0, 1.1, 1.2], "control": [0.1, -0.2, 0.05]}
    given |= {"control_is": "labels shuffled", "unit": "nat"}
    claims.test("C1", statement, **given)
    claims.test("C2", "never", paper="Fig. 2", measured=[0.0, 0.1, -0.1], control=[0.0, 0.0, 0.1], control_is="off")
    claims.needs_full_scale("C3", "large models agree", paper="Table 9", why="needs 7B weights")
    return claims.records()


def ends(pid: int, within_s: float = 5.0) -> bool:
    """Whether the process is gone in time; one that nobody has waited for yet counts as gone."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.1)
    return False


def batch(root: Path, *notebooks: Path, executor: str = "local", **variables: str) -> subprocess.Popen:
    """`workbench reproduce` on toy notebooks, each named after its file, in a process of its own."""
    names = {path.stem: str(path) for path in notebooks}
    driver = f"""import pathlib, sys
from toy_notebooks import toy
from workbench import methods
from workbench.batch import reproduce
methods.REGISTRY = {{name: toy(name, pathlib.Path(path)) for name, path in {names!r}.items()}}
try:
    jobs = reproduce.reproduce({list(names)!r}, root=pathlib.Path({str(root)!r}), executor={executor!r})
except KeyboardInterrupt:
    sys.exit(130)
sys.exit(any(job.status == "failed" for job in jobs))"""
    path = os.pathsep.join([str(Path(__file__).parent), str(runs.PACKAGE.parent)])
    given = {"env": os.environ | {"PYTHONPATH": path} | variables, "start_new_session": True}
    given |= {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-c", driver], **given)


def finish(process: subprocess.Popen, within_s: float = 120.0) -> str:
    """What a batch that has to end well printed."""
    printed, _ = process.communicate(timeout=within_s)
    assert process.returncode == 0, printed
    return printed


def appears(root: Path, name: str, within_s: float = 60.0) -> Path:
    """The first file of this name in a run folder under `root` that holds something."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if found := [path for path in root.glob(f"*/*/{name}") if path.stat().st_size]:
            return found[0]
        time.sleep(0.05)
    raise TimeoutError(f"no {name} under {root}")
