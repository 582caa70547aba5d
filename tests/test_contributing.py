"""Follows CONTRIBUTING.md: its code blocks are the toy method, and the toy method runs and gets a verdict."""

import re
import sys
import types
from pathlib import Path

import pytest

from workbench import methods

ROOT = Path(__file__).resolve().parent.parent


def blocks():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return dict(re.findall(r"```python\n# (\w+)\n(.*?)```", text, re.DOTALL))


@pytest.mark.slow
def test_the_four_steps_work(runs_root, monkeypatch):
    found = blocks()
    assert list(found) == ["objective", "method", "experiment", "registry"]
    module = types.ModuleType("workbench.methods.align.toy")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    # our own page, not a model's text
    exec(found["objective"] + found["method"] + found["experiment"], module.__dict__)
    monkeypatch.setitem(methods.REGISTRY, "toy", eval(found["registry"], vars(methods)))
    monkeypatch.setattr("workbench.runs.run.code_hash", lambda name: "toy")
    small = {"pretrain_steps": 20, "sft_epochs": 1, "test_draws": 50}
    monkeypatch.setattr(module, "PlantedChain", lambda **options: _world(**options, **small))
    experiment = methods.Experiment("toy", scale="smoke", seeds=[0, 1, 2])
    results = experiment.results(workers=1)
    assert results.arms == {"true", "shuffled"}
    assert experiment.claims(results).verdicts() == {"T1": "smoke run, no verdict"}


def _world(**options):
    from workbench.worlds.planted_chain import PlantedChain

    return PlantedChain(**options)
