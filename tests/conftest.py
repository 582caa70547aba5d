"""Fixtures that every test may use: the shared data and golden folders, and a run folder in a temporary place."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
GOLDEN = ROOT / "tests" / "golden" / "data"
# golden files that hold extracts of others' data: read in place, never copied into the project
NOT_COPIED = ("real_", "published_", "judge_scores_", "preference_dissection_coefs", "preference_dissection_expected")


DURATIONS = Path(__file__).with_name("durations.json")  # seconds of each file; `make durations` measures them again


def pytest_addoption(parser):
    parser.addoption("--store-durations", action="store_true", help="write what each file took to tests/durations.json")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """The longest files first: a file goes to one worker, so that what its tests share is made once."""
    known = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -known.get(item.nodeid.partition("::")[0], 0.0))


_seconds: dict[str, float] = {}


def pytest_runtest_logreport(report):
    name = report.nodeid.partition("::")[0]
    _seconds[name] = _seconds.get(name, 0.0) + report.duration


def pytest_sessionfinish(session):
    if session.config.getoption("--store-durations") and not hasattr(session.config, "workerinput"):
        rounded = {name: round(seconds, 1) for name, seconds in sorted(_seconds.items()) if seconds >= 0.5}
        DURATIONS.write_text(json.dumps(rounded, indent=1) + "\n")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real data; tests that need it say why they skip."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no ../shared/data beside the project: real data not tested")
    return SHARED


def golden_folders() -> list[Path]:
    """Folders with golden numbers: `$WORKBENCH_GOLDEN` alone, else the project's own and the one beside the project."""
    if named := os.environ.get("WORKBENCH_GOLDEN"):
        return [Path(named)]
    return [GOLDEN, *filter(Path.is_dir, [SHARED / "golden"])]


@pytest.fixture(scope="session")
def golden_path() -> Callable[[str], Path]:
    """Finds one golden file by its name.

    A file that is missing is an error, so that a renamed one cannot turn its test off. Two things skip: a folder named
    by `$WORKBENCH_GOLDEN`, which may hold some of the files, and a clone without `../shared`, which has all files but
    those whose licence does not let them be copied.
    """

    def find(name: str) -> Path:
        folders = golden_folders()
        if found := [folder / name for folder in folders if (folder / name).is_file()]:
            return found[0]
        if folders[0] != GOLDEN and folders[0].is_dir():
            pytest.skip(f"no {name} in {folders[0]}")
        if name.startswith(NOT_COPIED) and folders == [GOLDEN]:
            pytest.skip(f"no ../shared/golden beside the project: {name} is read there and not copied")
        raise FileNotFoundError(f"no {name} in {' or '.join(map(str, folders))}")

    return find


@pytest.fixture(scope="session")
def not_copied() -> tuple[str, ...]:
    """How the names of the golden files begin that stay beside the project."""
    return NOT_COPIED


@pytest.fixture(scope="session")
def golden_names() -> set[str]:
    """The names of all golden files that there are."""
    return {path.name for folder in golden_folders() for path in folder.glob("*.json")}


@pytest.fixture(scope="session")
def golden(golden_path) -> Callable[[str], Any]:
    """Reads one golden file by its name, see `golden_path`."""
    return lambda name: json.loads(golden_path(name).read_text())


@pytest.fixture
def runs_root(tmp_path, monkeypatch) -> Path:
    """An empty folder that stands for runs/ during one test."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def _named_model(name: str) -> str:
    """A named model that was fetched before; tests fetch nothing."""
    from workbench.runs.named_models import where

    try:
        where(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return name


@pytest.fixture(scope="session")
def real_chat_model() -> str:
    return _named_model("smollm2-135m-instruct-q4")


@pytest.fixture(scope="session")
def real_encoder() -> str:
    return _named_model("all-minilm-l6-v2")


@pytest.fixture(scope="session")
def starts(tmp_path_factory) -> Callable[[str], Path]:
    """`starts(name)` makes an empty runs folder that shares the starting checkpoints of all tests and their workers,
    which
    are kept by content: each is trained once."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "starts"
    cache.mkdir(exist_ok=True)

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name) / "runs"
        folder.mkdir()
        (folder / ".cache").symlink_to(cache)
        return folder

    return make


@pytest.fixture
def shared_starts(starts, monkeypatch) -> Path:
    """An empty folder that stands for runs/ during one test, with the starting checkpoints of all tests."""
    folder = starts("shared")
    monkeypatch.setenv("WORKBENCH_RUNS", str(folder))
    return folder
