"""What holds for every system: one short training, and what it left half-way goes on, at the preset `micro`.

A system's own test file holds its hand-worked numbers, its rules and its sabotage; what all have in common is here, and
a new line in the registry is all that a new system needs to be held to it.
"""

from __future__ import annotations

import importlib
import inspect
import math
import shutil
from types import SimpleNamespace

import nbformat
import pytest
from in_process import execute

from workbench import methods, runs
from workbench.figures import Display
from workbench.methods.experiment import Experiment, evaluations
from workbench.share import pages

SYSTEMS = [name for name, method in methods.REGISTRY.items() if method.group]


def opened(name, **options):
    """The system at `micro`, on one seed."""
    micro = dict(methods.REGISTRY[name].load().Config.PRESETS["micro"])
    return Experiment(name, scale="smoke", seeds=[0], overrides=micro, **options)


@pytest.fixture(scope="module", params=SYSTEMS)
def trained(request, starts, tmp_path_factory):
    """A finished run: its name, experiment, results and folder, how many files with results it wrote, and a copy of its
    folder as it was before one of the writes in its second half."""
    root, half, writes = starts("contract"), tmp_path_factory.mktemp("half") / "run", []

    def write(path, content):
        writes.append(path)
        is_noted = len(writes) & (len(writes) - 1) == 0  # 1, 2, 4, 8: the last of them lies behind the middle
        if is_noted and experiment.folder.is_dir():
            shutil.rmtree(half, ignore_errors=True)
            shutil.copytree(experiment.folder, half)
        runs.write_json(path, content)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKBENCH_RUNS", str(root))
        patch.setenv("WORKBENCH_BATCH", "1")
        experiment = opened(request.param)
        with pytest.MonkeyPatch.context() as count:
            count.setattr("workbench.runs.run.write_json", write)
            results, folder = experiment.results(workers=1), experiment.run.folder
        facts = {"experiment": experiment, "results": results, "folder": folder, "half": half, "writes": len(writes)}
        yield SimpleNamespace(name=request.param, **facts)


@pytest.mark.slow
def test_every_number_is_one(trained):
    def numbers(value):
        values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        for item in values:
            yield from numbers(item) if isinstance(item, (dict, list)) else [item]

    found = [x for x in numbers(list(trained.results)) if isinstance(x, float)]
    assert found
    assert not any(math.isinf(x) for x in found)
    if hasattr(importlib.import_module(trained.experiment.config.__module__), "train_arm"):
        assert set(trained.results[0]["arms"]) == set(trained.experiment.config.arms)


@pytest.mark.slow
def test_a_second_call_computes_nothing(trained, monkeypatch):
    code = importlib.import_module(trained.experiment.config.__module__)
    for entry in {"train_arm", "run", "open_task"} & set(vars(code)):
        monkeypatch.setattr(code, entry, lambda *a, **o: pytest.fail("computed again"))
    again = opened(trained.name, output=str(trained.folder))
    monkeypatch.setattr(Experiment, "task", None)
    assert again.results(workers=1) == trained.results


@pytest.mark.slow
def test_what_a_killed_run_left_goes_on_to_the_same_numbers(trained):
    """The folder as a SIGKILL leaves it; SIGKILL itself is in tests/recovery."""
    half = opened(trained.name, output=str(trained.half))
    assert not half.run.is_done
    assert half.results(workers=1) == trained.results


ONE_OF_THEM = ("simulpl",)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trained",
    [name if name in ONE_OF_THEM else pytest.param(name, marks=pytest.mark.exhaustive) for name in SYSTEMS],
    indirect=True,
    scope="module",
)
def test_an_interrupted_run_goes_on_to_the_same_numbers(trained, tmp_path, monkeypatch):
    """Stopped in the middle of its writing, by the interrupt that a kernel gets."""
    left = [max(trained.writes // 2, 1)]

    def write(*a):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        runs.write_json(*a)

    killed = opened(trained.name, output=str(tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr("workbench.runs.run.write_json", write)
        with pytest.raises(KeyboardInterrupt):
            killed.results(workers=1)
    assert opened(trained.name, output=str(tmp_path / "killed")).results(workers=1) == trained.results


@pytest.mark.slow
def test_claims_judge_or_name_the_arms_they_need(trained):
    try:
        records = trained.experiment.claims(trained.results).records()
    except ValueError as error:
        message, records = str(error), []
    assert records or "arm" in message
    assert {record["verdict"] for record in records} <= {"smoke run, no verdict", "needs full scale"}


@pytest.mark.slow
def test_every_view_draws(trained):
    name = f"{methods.REGISTRY[trained.name].module}.view"
    if importlib.util.find_spec(name) is None:
        pytest.skip("its views are those of its group; the notebook draws them")
    view = importlib.import_module(name)
    given = {"experiment": trained.experiment, "results": trained.results}
    if {"arm", "seed"} <= set(getattr(evaluations_of(trained), "columns", ())):
        given["table"] = evaluations_of(trained)
    drawn = 0
    for function in vars(view).values():
        if not inspect.isfunction(function) or function.__module__ != name or function.__name__.startswith("_"):
            continue
        needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
        if not set(needed) <= set(given):
            continue  # a piece of another view, or one of a single row: the notebook shows them
        shown = function(**{key: given[key] for key in needed})
        drawn += 1
        if isinstance(shown, Display):
            assert shown.figure().data or shown.frame().empty
    assert drawn


def evaluations_of(trained):
    try:
        return evaluations(trained.experiment, trained.results)
    except (AttributeError, TypeError, ValueError):  # results of another shape, which its views take as they are
        return None


@pytest.mark.slow
def test_the_notebook_runs_and_its_page_renders(trained, tmp_path):
    path = runs.PACKAGE.parent / methods.REGISTRY[trained.name].notebook
    micro = dict(methods.REGISTRY[trained.name].load().Config.PRESETS["micro"])
    given = {"scale": "smoke", "seeds": [0], "overrides": micro, "output": str(trained.folder)}
    node, names = execute(path, **given)
    assert names["experiment"].run.is_done
    nbformat.write(node, trained.folder / "notebook.ipynb")
    page = pages.render(trained.folder / "notebook.ipynb", tmp_path / "page.html")
    assert page.stat().st_size > 10_000


# ------------------------------------------------------------------------------------------------------------ bad input
@pytest.mark.parametrize("name", SYSTEMS)
class TestBadInput:
    def test_an_unknown_arm_is_named_with_those_there_are(self, name):
        cls = methods.REGISTRY[name].load().Config
        if not cls.ARMS:
            pytest.skip("has no arms")
        with pytest.raises(ValueError, match=rf"unknown arms \['no such arm'\]; known: .*{next(iter(cls.ARMS))}"):
            cls.at("smoke", arms=["no such arm"])

    @pytest.mark.parametrize(
        ("field", "said"), [({"no_such_field": 1}, "no_such_field"), ({"processes": "2"}, "processes")]
    )
    def test_a_wrong_field_is_named_in_one_line(self, name, field, said):
        cls = methods.REGISTRY[name].load().Config
        with pytest.raises(ValueError, match=said) as caught:
            cls.at("smoke", **field)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("given", [{"model": "someone/model"}, {"dataset": "someone/rows"}])
    def test_model_and_dataset_come_together(self, name, given):
        module = methods.REGISTRY[name].load()
        with pytest.raises(ValueError, match=r"model=.*dataset=.*embedded world"):
            module.open_task(module.Config.at("smoke", True), **given)

    def test_an_unknown_scale_is_named_with_those_there_are(self, name):
        with pytest.raises(ValueError, match="scale must be one of smoke, tiny, full; got 'huge'"):
            Experiment(name, scale="huge")

    def test_every_preset_is_one(self, name):
        cls = methods.REGISTRY[name].load().Config
        for scale in ("micro", "smoke", "tiny", "full"):
            assert cls.at(scale).at(scale, True)
