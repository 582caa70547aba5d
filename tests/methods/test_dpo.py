"""DPO: starts at log 2, tells held-out pairs apart, and does not when its labels are wrong."""

import math

import numpy as np
import pytest

from workbench import methods
from workbench.methods.align import dpo
from workbench.runs import Run

SMALL = {"n_pairs": 64, "test_size": 30, "batch_size": 32}


@pytest.fixture
def small_world(runs_root, monkeypatch):
    from workbench.worlds.planted_chain import PlantedChain

    sizes = {"pretrain_steps": 30, "sft_epochs": 1, "test_draws": 60}
    monkeypatch.setattr(dpo, "PlantedChain", lambda **options: PlantedChain(**options, **sizes))


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "nca_pair"])
def test_every_loss_passes_the_step_zero_check(small_world, tmp_path, loss_type):
    config = dpo.Config.at("smoke", arms=["dpo"], loss_type=loss_type, **SMALL)
    result = dpo.run(dpo.open_task(config), config, 0, Run(tmp_path))
    before, after = result["arms"]["dpo"]
    assert before["reward_accuracy"] == 0.0
    assert after["reward_accuracy"] > 0
    if loss_type == "sigmoid":
        assert before["held_out_loss"] == pytest.approx(math.log(2))
        assert Run(tmp_path / "dpo" / "round-1").metrics()[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)


def test_a_second_call_computes_nothing(small_world, tmp_path, monkeypatch):
    config = dpo.Config.at("smoke", **SMALL)
    task = dpo.open_task(config)
    first = dpo.run(task, config, 0, Run(tmp_path))
    monkeypatch.setattr(dpo, "play", lambda *a: pytest.fail("played again"))
    assert dpo.run(task, config, 0, Run(tmp_path)) == first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": 0.0}, "beta = 0.0: Input should be greater than 0"),
        ({"loss_type": "kto"}, "loss_type = 'kto'"),
        ({"arms": ["spin"]}, r"unknown arms \['spin'\]; known: dpo, sft, shuffled"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ValueError, match=message):
        dpo.Config.at("tiny", **changes)


class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


def results(accuracy, shuffled=0.5):
    """Made-up results of five seeds with this held-out accuracy and a little noise."""
    rng = np.random.default_rng(0)

    def arm(level):
        noise = rng.normal(0, 0.01)
        before = {"reward_accuracy": 0.0, "held_out_loss": math.log(2), "quality": 0.3}
        return [
            before,
            {
                "reward_accuracy": level + noise,
                "held_out_loss": math.log(2) - (level - 0.5) + noise,
                "quality": level + noise - 0.2,
            },
        ]

    return [{"arms": {"dpo": arm(accuracy), "shuffled": arm(shuffled)}} for _ in Told.seeds]


def test_verdicts_follow_the_numbers():
    assert set(dpo.claims(Told(), results(0.8)).verdicts().values()) == {"shown in small"}
    assert set(dpo.claims(Told(), results(0.5)).verdicts().values()) == {"not shown"}
    assert set(dpo.claims(Told(), results(0.8, shuffled=0.8)).verdicts().values()) == {"not shown"}


@pytest.mark.slow
def test_swapped_labels_are_not_shown(runs_root, monkeypatch):
    """Sabotage: chosen and rejected swapped where the rows are read; the held-out pairs stay as they are."""
    overrides = {"arms": ["dpo", "shuffled"], "n_pairs": 300, "test_size": 100}
    experiment = methods.Experiment("dpo", scale="tiny", seeds=[0, 1, 2], overrides=overrides)
    from workbench.worlds.planted_chain import PlantedChain

    true = PlantedChain.preferences

    def swapped(self, split, seed):
        rows = true(self, split, seed)
        return rows if split == "test" else [{**r, "chosen": r["rejected"], "rejected": r["chosen"]} for r in rows]

    monkeypatch.setattr(PlantedChain, "preferences", swapped)
    verdicts = dpo.claims(experiment, experiment.results(workers=1)).verdicts()
    assert set(verdicts.values()) == {"not shown"}
