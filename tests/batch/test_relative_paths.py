"""README's command with a data set, a model and a judge beside the user, who does not stand in the checkout."""

import json
import os
import subprocess
import sys

import pytest
from small import save_judge, save_policy

from workbench import runs
from workbench.methods.experiment import Experiment

GIVEN = ["sppo", "--dataset", "prompts.jsonl", "--model", "my-model", "-p", "judge", "my-reward-model"]
SETTINGS = ("samples=2", "n_prompts=6", "test_size=4", "max_new_tokens=6")
SMALL = ["--scale", "smoke", *[word for setting in SETTINGS for word in ("-p", setting)]]
PLACES = {"scale": "smoke", "model": "my-model", "dataset": "prompts.jsonl"}


@pytest.fixture
def folder(tmp_path):
    """Prompts, a small random model and a small random reward model, as a user has them: in folders of their own."""
    prompts = [f"Name a river that begins with {letter}." for letter in "ABCDEFGHIJKLMNOPQRST"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    save_policy(tmp_path / "my-model", prompts, max_length=256)
    save_judge(tmp_path / "my-reward-model", prompts)
    return tmp_path


@pytest.mark.slow
def test_relative_folders_are_found_from_any_working_folder(folder):
    environment = os.environ | {"WORKBENCH_RUNS": str(folder / "runs"), "PYTHONPATH": str(runs.PACKAGE.parent)}
    command = [sys.executable, "-m", "workbench", "reproduce", *GIVEN, *SMALL, "--seeds", "1", "--workers", "1"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    (manifest,) = [json.loads(path.read_text()) for path in (folder / "runs").glob("sppo/smoke-*/manifest.json")]
    assert manifest["status"] == "done"
    assert manifest["parameters"]["config"]["judge"] == str(folder / "my-reward-model")
    assert {entry["kind"] for entry in manifest["inputs"]} == {"model", "dataset", "judge"}


def test_a_judge_changed_in_place_makes_another_key(folder, monkeypatch):
    monkeypatch.chdir(folder)
    given = {**PLACES, "overrides": {"judge": "my-reward-model"}}
    before = Experiment("sppo", **given).folder
    assert Experiment("sppo", **given).folder == before
    weights = folder / "my-reward-model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert Experiment("sppo", **given).folder != before


def test_a_path_where_nothing_is_stops_before_anything_runs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(FileNotFoundError, match=r"no file or folder .\./my-judge"):
        Experiment("sppo", **PLACES, overrides={"judge": "./my-judge"})
