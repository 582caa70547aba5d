"""Views of MPO's split: shares, label errors by decile, thresholds, and the table of arms."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.methods.align.mpo import view
from workbench.runs.run import Run


@pytest.fixture
def experiment(tmp_path):
    rng = np.random.default_rng(0)
    for seed in (0, 1):
        gap = rng.normal(size=400) * 2
        gap = np.where(rng.random(400) < 1 / (1 + np.exp(-2 * np.abs(gap))), np.abs(gap), -np.abs(gap))
        part = np.where(np.abs(gap) < 1, "hard", np.where(gap > 0, "easy", "conflict"))
        rows = {"prompt": "<b>", "chosen": "a", "rejected": "b", "margin": gap, "part": part, "true_gap": gap}
        Run(tmp_path).child(f"seed-{seed}").child("mpo").table("split", lambda rows=rows: pd.DataFrame(rows))
    return SimpleNamespace(seeds=(0, 1), run=Run(tmp_path))


def test_the_split_and_its_label_errors(experiment):
    shown = view.split_figure(experiment)
    assert len(shown.figure().data) == 3
    share = (shown.frame()["part"] == "hard").mean()
    assert f"{share:.0%} hard" in shown.figure().layout.title.text
    frame = view.label_errors(experiment).frame()
    by_margin = frame[frame.by == "reward model's margin"].set_index("decile").wrong
    assert by_margin[1] > 0.3
    assert by_margin[10] < 0.05


def test_sweep_over_thresholds(experiment):
    frame = view.sweep(experiment)
    assert frame["quantile"].tolist() == [0.3, 0.5, 0.7]
    assert frame["hard, share"].tolist() == pytest.approx([0.3, 0.5, 0.7], abs=0.01)
    assert frame["gamma"].is_monotonic_increasing


TABLE = pd.DataFrame(
    {"arm": arm, "seed": seed, "round": t, "quality": base + t, "proxy": 1.0}
    for arm, base in (("mpo", 0.5), ("dpo", 0.0))
    for seed in (0, 1)
    for t in range(2)
)


def test_arms_are_shown_at_their_end():
    shown = view.reached(TABLE)
    assert shown.figure().layout.title.text == "Highest: MPO (+1.50)"
    table = view.arm_table(TABLE)
    assert table.loc["MPO", "quality"] == 1.5
    assert table.loc["MPO", "start and reference of stage 2"] == "DPO on easy pairs"
    assert table.loc["DPO on all pairs", "stage 2 on"] == "none"
