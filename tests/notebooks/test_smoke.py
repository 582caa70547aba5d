"""Every notebook of the registry runs to its end at `scale="smoke"`, through the same batch runner that a reader calls."""

import os
from io import StringIO

import pytest
from rich.console import Console

from workbench import methods, reproduce, runs


@pytest.mark.slow
@pytest.mark.parametrize("name", methods.REGISTRY)
def test_notebook_runs_at_smoke(tmp_path_factory, name):
    screen, root = Console(file=StringIO(), width=160), tmp_path_factory.getbasetemp()
    if (
        "PYTEST_XDIST_WORKER" in os.environ
    ):  # one folder for all workers: systems that share a world train its start once
        root = root.parent
    (job,) = reproduce.reproduce([name], scale="smoke", workers=1, root=root / "runs", console=screen)
    assert job.status == "done", screen.file.getvalue()
    path = job.run.folder / "claims.json"
    claims = runs.read_json(path) if path.is_file() else []
    assert claims or not methods.REGISTRY[name].group  # only a study may have none
    assert {claim["verdict"] for claim in claims} <= {"smoke run, no verdict", "needs full scale"}
    assert (job.run.folder / "page.html").stat().st_size > 10_000
