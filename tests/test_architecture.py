"""The house rules: imports go down only, no method imports a method, every module loads and says what it is for."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "workbench"
MODULES = sorted(p for p in PACKAGE.rglob("*.py"))
# lower number: lower floor; a module may import from its own floor or below
FLOORS = {
    "kernels": 0,
    "objectives": 0,
    "config": 0,
    "games": 1,
    "latency": 1,
    "simultaneous": 2,
    "bradley_terry_fit": 1,
    "ranking": 2,
    "metrics": 1,
    "selective": 1,
    "claims": 1,
    "published_confidence": 2,
    "confidence_scores": 2,
    "confidence_grid": 4,
    "text_overlap": 1,
    "resampling": 1,
    "partition_tests": 2,
    "calibration": 2,
    "provenance": 1,
    "runs": 1,
    "run_names": 2,
    "seeds": 2,
    "data": 1,
    "models": 1,
    "token_text": 1,
    "row_checks": 2,
    "batches": 1,
    "bleu": 1,
    "distributed": 1,
    "checkpoints": 1,
    "reference": 1,
    "diagnosis": 1,
    "probes": 2,
    "training": 2,
    "ppo": 3,
    "evidence": 3,
    "tasks": 3,
    "feedback": 3,
    "worlds": 3,
    "leaderboard": 4,
    "arena": 4,
    "from_scratch": 4,
    "rounds": 4,
    "long_rows": 4,
    "ranked_lists": 4,
    "follow_up_reward": 4,
    "figure_images": 1,
    "figures": 3,
    "methods": 4,
    "widgets": 5,
    "share": 5,
    "pages": 5,
    "batch": 6,
    "reproduce": 6,
    "doctor": 6,
    "confidence_report": 6,
    "cli": 7,
    "__main__": 8,
    "": 9,
}


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Names of workbench modules that a file imports, anywhere in it."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("workbench."))
        elif isinstance(node, ast.ImportFrom):
            base = (
                ".".join([*package.split(".")[: len(package.split(".")) - node.level + 1], node.module or ""])
                if node.level
                else node.module
            )
            if base == "workbench":
                yield from (f"workbench.{a.name}" for a in node.names if not a.name.startswith("_"))
            elif base and base.startswith("workbench."):
                yield base


def room(name):
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path):
    here = name_of(path)
    for other in imports_of(path):
        assert room(other) in FLOORS, f"{other} has no floor"
        assert FLOORS[room(other)] <= FLOORS[room(here)], f"{here} imports {other}, which stands above it"
        if room(here) == "methods" and here.count(".") == 3:
            assert not (room(other) == "methods" and other.count(".") == 3), f"{here} imports another method, {other}"
    if room(here) in ("kernels", "objectives"):
        assert {room(other) for other in imports_of(path)} <= {"kernels", "objectives"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_loads_and_has_a_docstring(path):
    if path.name != "__main__.py":
        importlib.import_module(name_of(path))
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(docstring) > 30, f"{name_of(path)} does not say what it is for"


def test_files_stay_short():
    long = {name_of(p): n for p in MODULES if (n := len(p.read_text().splitlines())) > 450}
    assert not long, f"would a reader find two rooms in one? {long}"


def test_import_is_fast_and_light():
    """Under 0.3 s on a quiet machine; the test allows for a busy one and looks at what was loaded instead."""
    code = (
        "import sys, time; t = time.process_time(); import workbench; "
        "print(time.process_time() - t, 'torch' in sys.modules, 'pandas' in sys.modules)"
    )
    seconds, torch, pandas = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert (torch, pandas) == ("False", "False")
    assert float(seconds) < 0.3


@pytest.mark.parametrize("module", ["cli", "runs", "claims", "reproduce", "pages", "methods"])
def test_no_torch_at_import(module):
    code = f"import sys, workbench.{module}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
        == "False"
    )


def test_everything_stays_safe():
    """No pickle, no remote code, no unguarded torch.load anywhere in the package."""
    for path in MODULES:
        text = path.read_text()
        assert "import pickle" not in text
        assert "trust_remote_code=True" not in text
        if "torch.load(" in text:
            assert text.count("torch.load(") == text.count("weights_only=True")
