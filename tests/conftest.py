"""Fixtures that every test may use: the shared data and golden folders, and a run folder in a temporary place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; tests that need it say why they skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside the project: real data not tested")
    return SHARED


@pytest.fixture(scope="session")
def golden_folder() -> Path:
    """The folder with golden numbers: `$WORKBENCH_GOLDEN`, else ../shared/golden."""
    folder = Path(os.environ.get("WORKBENCH_GOLDEN", SHARED / "golden"))
    if not folder.is_dir():
        pytest.skip(f"no golden numbers in {folder}; set WORKBENCH_GOLDEN")
    return folder


@pytest.fixture(scope="session")
def golden(golden_folder) -> Callable[[str], Any]:
    """Reads one golden file by its name.

    A file that is missing beside the project is an error, so that a renamed one cannot turn its test off. Only a folder
    named by `$WORKBENCH_GOLDEN`, which may hold some of the files, skips the tests of the others.
    """

    def read(name: str) -> Any:
        path = golden_folder / name
        if not path.is_file() and "WORKBENCH_GOLDEN" in os.environ:
            pytest.skip(f"no {name} in {golden_folder}")
        return json.loads(path.read_text())

    return read


@pytest.fixture
def runs_root(tmp_path, monkeypatch) -> Path:
    """An empty folder that stands for runs/ during one test."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


@pytest.fixture
def shared_starts(runs_root, tmp_path_factory) -> Path:
    """`runs_root` with the starting checkpoints of all tests and their workers, which are kept by content: each is
    trained once."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "starts"
    cache.mkdir(exist_ok=True)
    runs_root.mkdir()
    (runs_root / ".cache").symlink_to(cache)
    return runs_root
