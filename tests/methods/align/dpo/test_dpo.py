"""DPO: starts at log 2, tells held-out pairs apart, and does not when its labels are wrong."""

import math

import numpy as np
import pandas as pd
import pytest
from small import Told

from workbench import methods
from workbench.methods.align.dpo import method as dpo
from workbench.methods.align.dpo.experiment import ARMS, claims
from workbench.methods.experiment import Results
from workbench.runs.run import Run
from workbench.training.checkpoints import load_weights
from workbench.training.reference import reference_logps
from workbench.worlds.planted_chain import PlantedChain


def train(tmp_path, loss_type, **changes):
    """Task and numbers before and after one short training of DPO with this loss."""
    world = {"pretrain_steps": 30, "sft_epochs": 1, "test_draws": 60}
    sizes = {"n_pairs": 64, "test_size": 30, "batch_size": 32, "probe_every": 0, "world": world}
    config = dpo.Config.at("smoke", **{**sizes, "loss_type": loss_type, **changes})
    task = dpo.open_task(config)
    return task, dpo.train_arm(task, config, ARMS["dpo"], 0, Run(tmp_path))


@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "nca_pair", "kto_pair"])
def test_every_loss_passes_the_step_zero_check(shared_starts, tmp_path, loss_type):
    _, (before, after) = train(tmp_path, loss_type)
    assert before["reward_accuracy"] == 0.0
    assert after["reward_accuracy"] > 0
    if loss_type == "sigmoid":
        assert before["held_out_loss"] == pytest.approx(math.log(2))
        assert Run(tmp_path / "round-1").metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("loss_type", ["simpo", "orpo"])
def test_losses_without_a_reference(shared_starts, tmp_path, loss_type):
    """Rewards are those of the policy alone, so some pairs are told apart before any training."""
    _, (before, _) = train(tmp_path, loss_type, batch_size=64, epochs=8, beta=1.0)
    assert 0 < before["reward_accuracy"] < 1
    steps = Run(tmp_path / "round-1").metrics()
    assert steps[-1]["loss"] < steps[0]["loss"]


def test_ipo_takes_log_probs_a_token(shared_starts, tmp_path):
    """At the start (0 - 1/(2 beta))^2 = 25; after some steps the margins are those of means over eleven tokens."""
    task, (before, after) = train(tmp_path, "ipo", max_steps=2)
    assert before["held_out_loss"] == pytest.approx(25.0)
    assert after["reward_accuracy"] > 0
    assert len(Run(tmp_path / "round-1").metrics()) == 2
    rewards = pd.read_parquet(tmp_path / "held_out_rewards.parquet")
    policy, start, row = task.start(0), task.start(0), rewards.iloc[0]
    load_weights(policy.model, tmp_path / "round-1" / "weights.safetensors")
    group = policy.group(row.prompt, [row.chosen])
    change = reference_logps(policy, [group]) - reference_logps(start, [group])
    assert row.chosen_rewards == pytest.approx(0.1 * change[0, 0] / len(group.responses_ids[0]), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"), ({"loss_type": "kto"}, "loss_type = 'kto'")],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        dpo.Config.at("tiny", **changes)


def results(accuracy, shuffled=0.5):
    """Made-up results of five seeds with this held-out accuracy and a little noise."""
    rng = np.random.default_rng(0)

    def arm(level):
        noisy = level + rng.normal(0, 0.01)
        before = {"reward_accuracy": 0.0, "held_out_loss": math.log(2), "quality": 0.3}
        loss = math.log(2) - 2 * level + 0.5 + noisy
        return [before, {"reward_accuracy": noisy, "held_out_loss": loss, "quality": noisy - 0.2}]

    return Results({"arms": {"dpo": arm(accuracy), "shuffled": arm(shuffled)}} for _ in Told.seeds)


def test_verdicts_follow_the_numbers():
    assert set(claims(Told(), results(0.8)).verdicts().values()) == {"shown in small"}
    assert set(claims(Told(), results(0.5)).verdicts().values()) == {"not shown"}
    assert set(claims(Told(), results(0.8, shuffled=0.8)).verdicts().values()) == {"not shown"}


@pytest.mark.slow
@pytest.mark.exhaustive
def test_swapped_labels_are_not_shown(shared_starts, monkeypatch):
    """Sabotage: chosen and rejected swapped where the rows are read; the held-out pairs stay as they are."""
    overrides = {"arms": ["dpo", "shuffled"], "n_pairs": 300, "test_size": 100, "probe_every": 0}
    experiment = methods.Experiment("dpo", scale="tiny", seeds=[0, 1, 2], overrides=overrides)
    true = PlantedChain.preferences

    def swapped(self, split, seed):
        rows = true(self, split, seed)
        return rows if split == "test" else [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]

    monkeypatch.setattr(PlantedChain, "preferences", swapped)
    verdicts = claims(experiment, experiment.results(workers=1)).verdicts()
    assert set(verdicts.values()) == {"not shown"}
