"""Views of DR-PO: tables hold what was measured, and missing arms are said."""

from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.methods.align.dr_po import view
from workbench.runs.run import Run

TABLE = pd.DataFrame(
    {"arm": arm, "seed": seed, "round": t, "quality": 0.1 * t + base, "kl_nats": float(t), "reward": base + t}
    for arm, base in (("dr_po_50", 0.2), ("ppo", 0.0), ("sft", 0.1))
    for seed in (0, 1)
    for t in range(3)
)


@pytest.fixture
def experiment(tmp_path):
    run = Run(tmp_path)
    table = {"prefix_tokens": [0, 3] * 2, "when": ["before"] * 2 + ["after"] * 2, "reward": [0.0, 0.5, 1.0, 1.5]}
    row = {"reset_share": 0.5, "reset_tokens": 4.0, "response_tokens": 19.0, "score": 1.0, "missing_end": 0.0}
    for seed in (0, 1):
        arm = run.child(f"seed-{seed}").child("dr_po_50")
        arm.table("by_prefix", lambda: pd.DataFrame(table))
        for step in range(2):
            arm.log({"step": step, **row})
    return SimpleNamespace(seeds=(0, 1), run=run, config=SimpleNamespace(updates=20, evaluations=2))


def test_curves_are_over_updates_and_leave_out_arms_without_rollouts(experiment):
    shown = view.over_updates(experiment, TABLE, ["dr_po_50", "ppo", "sft"])
    assert set(shown.frame().arm) == {"dr_po_50", "ppo"}
    assert sorted(set(shown.frame()["update"])) == [0, 10, 20]
    assert "DR-PO, beta 0.5 0.40" in shown.figure().layout.title.text
    missing = "This run has no quality of dense; see `arms` and the columns of the table."
    assert view.over_updates(experiment, TABLE, ["dense"]) == missing


def test_success_by_prefix_and_reset_points(experiment):
    frame = view.by_prefix(experiment).frame()
    (after,) = frame[(frame.arm == "after") & (frame.prefix_tokens == 3)].itertuples()
    assert (after.mean, after.n) == (1.5, 2)
    assert view.by_prefix(experiment, ["wrong"]) == "This run has none of the arms wrong."
    shown = view.reset_points(experiment)
    assert "50% of the rollouts" in shown.figure().layout.title.text
    assert shown.figure().data[1].y.tolist() == [15, 15]


def test_one_path_an_arm_and_its_end():
    shown = view.frontier(TABLE, ["dr_po_50", "ppo"])
    assert len(shown.figure().data) == 2
    assert shown.frame().groupby("arm").kl_nats.apply(list)["ppo"] == [0, 1, 2]
    assert view.arm_table(TABLE).loc["PPO", "quality"] == 0.2
