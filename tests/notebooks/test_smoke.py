"""Every notebook of the registry runs to its end at `scale="smoke"`, through the batch runner of a reader."""

from io import StringIO

import pytest
from rich.console import Console

from workbench import methods, runs
from workbench.batch import reproduce

# one that trains; one that asks is in test_other_inputs.py; the others' cells run in process, see test_contract.py
ALWAYS = ("pro",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.exhaustive) for n in methods.REGISTRY]
)
def test_notebook_runs_at_smoke(shared_starts, name):
    screen = Console(file=StringIO(), width=160)
    (job,) = reproduce.reproduce([name], scale="smoke", workers=1, root=shared_starts, console=screen)
    assert job.status == "done", screen.file.getvalue()
    path = job.run.folder / "claims.json"
    claims = runs.read_json(path) if path.is_file() else []
    assert claims or not methods.REGISTRY[name].group  # only a study may have none
    assert {claim["verdict"] for claim in claims} <= {"smoke run, no verdict", "needs full scale"}
    assert (job.run.folder / "page.html").stat().st_size > 10_000
