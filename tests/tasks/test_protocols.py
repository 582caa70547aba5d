"""Real text through the task protocol, with a small model made from the same text in the hub's format."""

import json
from pathlib import Path

import pytest

from workbench import methods
from workbench.methods.align.dpo import experiment as dpo
from workbench.methods.align.spin import experiment as spin
from workbench.models import Policy
from workbench.tasks.real import TextTask
from workbench.training.from_scratch import new_model

ROOT = Path(__file__).resolve().parents[2]
TINY = {"vocab_size": 400, "width": 32, "layers": 1, "max_length": 128, "steps": 20, "held_out": 40}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A file of made-up sums, and a model folder trained on it."""
    folder = tmp_path_factory.mktemp("text")
    rows = [
        {"question": f"What is {a} plus {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"}
        for a in range(20)
        for b in range(10)
    ]
    (folder / "sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    facts = new_model(str(folder / "sums.jsonl"), folder / "model", **TINY)
    return folder, facts


def test_new_model_learns_and_is_an_ordinary_folder(made):
    folder, facts = made
    assert facts["held_out_token_nll"] < facts["held_out_token_nll_before"] - 1
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in (folder / "model").iterdir()}
    policy = Policy.load(folder / "model", device="cpu")
    assert policy.tokenizer.decode(policy.encode_prompt("What is 1 plus 2?")).endswith("<|assistant|>")


def test_task_holds_out_what_the_model_never_saw(made):
    folder, _ = made
    task = TextTask(str(folder / "sums.jsonl"), str(folder / "model"), test_size=20, train_size=30)
    train, test = task.demonstrations("train", 0), task.demonstrations("test", 0)
    assert len(train) == 30
    assert len(test) == 20
    assert {r["prompt"] for r in train}.isdisjoint(r["prompt"] for r in test)
    assert task.demonstrations("train", 1) != train
    assert task.demonstrations("test", 1) == test
    numbers = task.evaluate(task.start(0), 0)
    assert numbers["token_nll"] == -numbers["quality"] > 0


@pytest.mark.slow
def test_spin_runs_on_text(made, runs_root):
    folder, _ = made
    overrides = {
        "arms": ["spin", "shuffled"],
        "rounds": 1,
        "epochs": 1,
        "n_prompts": 32,
        "test_size": 16,
        "batch_size": 16,
        "max_new_tokens": 16,
        "max_length": 128,
        "world": {},
    }
    experiment = methods.Experiment(
        "spin",
        scale="tiny",
        model=str(folder / "model"),
        dataset=str(folder / "sums.jsonl"),
        seeds=[0, 1, 2],
        overrides=overrides,
    )
    results = experiment.results(workers=1)
    verdicts = spin.claims(experiment, results).verdicts()
    assert set(verdicts) == {"C5", "C6", "C8", "H1", "H2"}
    assert verdicts["C5"] == "needs full scale"
    assert 0 <= results[0]["arms"]["spin"][1]["reward_accuracy"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", pytest.param("spin", marks=pytest.mark.exhaustive)])
def test_the_notebook_runs_on_text_to_its_last_cell(made, tmp_path, monkeypatch, name):
    """Every view must cope with a task that has no planted truth."""
    import papermill

    folder, _ = made
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    if name == "dpo":
        rows = [{"prompt": f"What is {a} plus 1?", "chosen": str(a + 1), "rejected": str(a)} for a in range(60)]
        (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    dataset = folder / ("sums.jsonl" if name == "spin" else "pairs.jsonl")
    source = methods.REGISTRY[name].notebook
    parameters = {"scale": "smoke", "seeds": [0, 1, 2], "model": str(folder / "model"), "dataset": str(dataset)}
    papermill.execute_notebook(
        str(ROOT / source),
        str(tmp_path / "out.ipynb"),
        {**parameters, "output": str(tmp_path / "run")},
        progress_bar=False,
        cwd=str(ROOT / source.parent),
    )
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["status"] == "done"


@pytest.mark.slow
def test_lora_and_micro_batches_on_text(made, runs_root):
    """The full-scale path: an adapter, micro-batches, checkpoints, the adapter's start as reference."""
    folder, _ = made
    overrides = {
        "arms": ["spin"],
        "rounds": 2,
        "epochs": 1,
        "n_prompts": 16,
        "test_size": 8,
        "batch_size": 8,
        "micro_batch_size": 2,
        "max_new_tokens": 8,
        "max_length": 64,
        "lora_rank": 2,
        "checkpoint_every": 1,
        "learning_rate": [1e-3],
        "world": {},
    }
    experiment = methods.Experiment(
        "spin",
        scale="full",
        model=str(folder / "model"),
        dataset=str(folder / "sums.jsonl"),
        seeds=[0],
        overrides=overrides,
    )
    (result,) = experiment.results(workers=1)
    assert len(result["arms"]["spin"]) == 3


@pytest.mark.slow
def test_real_demonstrations_and_preferences(shared, tmp_path, runs_root):
    """A few steps on real rows: SPIN on grade-school problems, DPO on judged pairs, from models of the same text."""
    for name, file, module, arms in (
        ("spin", "gsm8k/train.jsonl", spin, ["spin", "shuffled"]),
        ("dpo", "alpaca_eval/pairs.jsonl.gz", dpo, ["dpo", "shuffled"]),
    ):
        dataset = str(shared / "data" / file)
        new_model(dataset, tmp_path / name, **{**TINY, "steps": 5, "held_out": 100})
        size = {"n_prompts": 16, "max_new_tokens": 8, "rounds": 1} if name == "spin" else {"n_pairs": 16}
        overrides = {**size, "arms": arms, "epochs": 1, "test_size": 8, "batch_size": 8, "max_length": 96}
        if name == "spin":
            overrides["world"] = {}
        experiment = methods.Experiment(
            name, scale="tiny", model=str(tmp_path / name), dataset=dataset, seeds=[0, 1, 2], overrides=overrides
        )
        results = experiment.results(workers=1)
        after = results[0]["arms"][arms[0]][1]
        assert 0 <= after["reward_accuracy"] <= 1
        assert after["held_out_loss"] > 0
        assert module.claims(experiment, results).verdicts()


def test_a_data_set_without_a_model_is_refused(tmp_path):
    (tmp_path / "x.jsonl").touch()
    for name in ("spin", "dpo"):
        with pytest.raises(ValueError, match="give both for real text, or none for the embedded world"):
            methods.Experiment(name, dataset=str(tmp_path / "x.jsonl"), overrides={}).task  # noqa: B018
