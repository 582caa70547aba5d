"""A finished run once more: the same numbers in a folder beside it, or one line that says why not."""

import json
import shutil
from io import StringIO

import nbformat
import pytest
from rich.console import Console
from toy_notebooks import CLAIM, OPEN, toy, write_notebook

from workbench import cli, methods, runs
from workbench.batch import reproduce
from workbench.batch.rerun import changed_inputs, rerun
from workbench.runs import provenance

NUMBERS = """import random
for seed in seeds:
    run.child(f"seed-{seed}").cached("result", lambda: {"beta": config["beta"], "x": random.Random(seed).random()})"""
FINISH = "run.finish(claims)"


@pytest.fixture
def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def edit(book, cell, old, new):
    edited = nbformat.read(book, 4)
    edited.cells[cell].source = edited.cells[cell].source.replace(old, new, 1)
    nbformat.write(edited, book)


@pytest.fixture
def book(tmp_path, monkeypatch):
    """The registry with one toy method, whose notebook is the file that comes back."""
    path = write_notebook(tmp_path / "toy.ipynb", OPEN, NUMBERS, CLAIM, FINISH)
    monkeypatch.setattr(methods, "REGISTRY", {"toy": toy("toy", path)})
    return path


def made(runs_root, quiet, **options) -> runs.Run:
    (job,) = reproduce.reproduce(["toy"], root=runs_root, console=quiet, **options)
    assert job.status == "done"
    return job.run


def recorded(runs_root, name="tiny-0123", **changes) -> runs.Run:
    """A finished run as a manifest alone; nothing is executed."""
    config = {"beta": 0.1, "name": "plain", "flag": True, "steps": 1}
    parameters = {"config": config, "model": "", "dataset": "", "device": "auto", "seeds": [0], "inputs": ["", ""]}
    facts = {"system": "toy", "scale": "tiny", "status": "done", "started": "1", "key": "old", "parameters": parameters}
    runs.write_json(runs_root / "toy" / name / "manifest.json", facts | changes)
    return runs.Run(runs_root / "toy" / name)


# ------------------------------------------------------------------------------------------------------ whole reruns
@pytest.mark.slow
def test_rerun_repeats_the_recorded_run_and_compares(runs_root, book, quiet, capsys):
    run = made(runs_root, quiet, seeds=[4, 7], device="cpu", overrides={"beta": 0.25, "name": "007"})
    again = rerun(run, console=quiet)
    assert again.job.run.folder == run.folder.with_name(f"{run.folder.name}-again-1")
    assert again.job.status == "done"
    assert again.comparison.same_results
    assert again.job.run.manifest["parameters"] == run.manifest["parameters"]
    assert again.job.run.manifest["rerun_of"] == f"toy/{run.folder.name}"
    assert (again.job.run.folder / "page.html").is_file()
    assert quiet.file.getvalue().rstrip().splitlines()[-1].startswith("identical: 1 claims and 4 numbers of 2 seeds")
    assert "note:" not in quiet.file.getvalue()

    edit(book, 3, "random.Random(seed)", "random.Random(seed + 1)")
    assert cli.main(["rerun", f"toy/{run.folder.name}"]) == 0  # again-1 is finished: this one is another
    out = capsys.readouterr().out
    assert "note: the notebook differs from that of the original" in out
    assert "seed-4" in out
    assert out.rstrip().splitlines()[-1] == "not identical: 0 of 1 claims, 2 of 2 seeds differ"
    assert (run.folder.parent / f"{run.folder.name}-again-2" / "claims.json").is_file()


@pytest.mark.slow
def test_a_rerun_that_fails_is_exit_code_1_and_goes_on_in_its_folder(runs_root, book, quiet):
    run = made(runs_root, quiet)
    stop = book.parent / "stop"
    edit(book, 4, "", "import os\nassert not os.path.exists('stop'), 'not yet'\n")
    stop.touch()
    assert cli.main(["rerun", str(run.folder)]) == 1
    stop.unlink()
    again = rerun(run, console=quiet)
    assert again.job.run.folder.name == f"{run.folder.name}-again-1"
    assert again.comparison.same_results
    again = rerun(again.job.run, console=quiet)  # of a rerun: counted on, not nested
    assert again.job.run.folder.name == f"{run.folder.name}-again-2"


# ------------------------------------------------------------------------------------------- what cannot be repeated
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"status": "running"}, " is not finished (status running): `workbench reproduce toy` with the same"),
        ({"status": "failed"}, " is not finished (status failed)"),
        ({"system": "gone"}, " is a run of 'gone', which this version does not know; known: toy"),
        ({"system": ["toy"]}, " is a run of ['toy'], which this version does not know"),
        ({"parameters": {"seeds": [0]}}, ": its manifest lacks parameters that a rerun needs (config, seeds"),
        ({"parameters": None}, ": its manifest lacks parameters that a rerun needs (config, seeds"),
    ],
)
def test_what_cannot_be_repeated_says_why_in_one_line(runs_root, book, capsys, changes, message):
    recorded(runs_root, **changes)
    assert cli.main(["rerun", "0123"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: toy/tiny-0123{message}")
    assert err.count("\n") == 1
    assert [path.name for path in (runs_root / "toy").iterdir()] == ["tiny-0123"]


def test_a_field_that_the_code_lost_is_named_with_the_commit(runs_root, book):
    run = recorded(runs_root, code={"hash": "h", "commit": "abc123", "changed": [], "diff": ""})
    parameters = run.manifest["parameters"]
    run.update_manifest(parameters={**parameters, "config": {"gamma": 1.0}})
    with pytest.raises(ValueError, match=r"do not fit today's code: toy: gamma = 1\.0: .*; its code was commit abc123"):
        rerun(run)


def test_an_unreadable_manifest_and_a_near_miss_are_one_line(runs_root, book, capsys):
    run = recorded(runs_root)
    assert cli.main(["rerun", "toy/tiny-0132"]) == 2
    assert "did you mean toy/tiny-0123?" in capsys.readouterr().err
    (run.folder / "manifest.json").write_text("{")
    assert cli.main(["rerun", "toy/tiny-0123"]) == 2
    assert "manifest.json cannot be read as a manifest; delete" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- inputs and code
def test_a_changed_input_is_refused_and_named(runs_root, tmp_path, book, monkeypatch):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    run = recorded(runs_root)
    given = {**run.manifest["parameters"], "dataset": str(rows), "inputs": ["", runs.fingerprint(str(rows))]}
    run.update_manifest(parameters=given)
    assert changed_inputs(run.manifest) == []
    rows.write_text("[]")
    said = r"toy/tiny-0123: the dataset .*rows\.jsonl has changed since; --anyway runs it"
    with pytest.raises(ValueError, match=said):
        rerun(run)
    rows.unlink()
    assert changed_inputs(run.manifest) == [f"the dataset {rows} is not there any more"]


def test_another_snapshot_of_a_hub_id_is_a_changed_input(runs_root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    refs = tmp_path / "hub" / "models--org--name" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("old" * 10)
    parameters = {"model": "org/name", "dataset": "", "inputs": ["org/name", ""]}
    manifest = {"parameters": parameters, "inputs": provenance.inputs(parameters)}
    assert changed_inputs(manifest) == []
    (refs / "main").write_text("new" * 10)
    assert changed_inputs(manifest) == ["the model org/name was snapshot oldoldoldold and is newnewnewnew"]
    shutil.rmtree(tmp_path / "hub")
    assert changed_inputs(manifest) == ["the model org/name was snapshot oldoldoldold and is not stored here"]


def test_anyway_and_other_code_go_on_and_say_so(runs_root, tmp_path, book, quiet, monkeypatch):
    """Nothing is executed: the job is caught where it would start."""
    planned = []
    monkeypatch.setattr("workbench.batch.rerun.run_jobs", lambda jobs, root, **_: planned.extend(jobs))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("{}")
    code = {"hash": "h", "commit": "abc123", "changed": ["workbench/x.py"], "diff": "code.diff"}
    run = recorded(runs_root, code=code)
    run.update_manifest(parameters={**run.manifest["parameters"], "dataset": str(rows), "inputs": ["", "other"]})
    monkeypatch.setattr("workbench.batch.rerun.comparison.show", lambda *_: None)
    monkeypatch.setattr("workbench.batch.rerun.comparison.compare", lambda *_: None)
    rerun(run, anyway=True, console=quiet)
    text = quiet.file.getvalue()
    assert "rows.jsonl has changed since" in text
    at = "commit abc123; code.diff in its folder holds what was changed"
    assert f"note: the code differs from that of the original ({at}" in text
    (job,) = planned
    assert job.parameters["overrides"] == run.manifest["parameters"]["config"]
    assert job.parameters["output"] == str(run.folder.with_name("tiny-0123-again-1"))


@pytest.mark.parametrize("name", sorted(methods.REGISTRY))
def test_the_recorded_config_of_every_method_is_taken_back(name):
    """What went into a manifest as JSON is the same Config when it comes out again, at every scale."""
    for scale in methods.SCALES:
        recorded = json.loads(json.dumps(methods.Experiment(name, scale=scale, seeds=[0]).parameters))
        again = methods.Experiment(name, scale=scale, seeds=recorded["seeds"], overrides=recorded["config"])
        assert json.loads(json.dumps(again.parameters)) == recorded
