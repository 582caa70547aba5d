"""Views of DR-PO: tables hold what was measured, missing arms are said, text is escaped."""

import pandas as pd
import pytest

from workbench.methods.align.dr_po import view
from workbench.runs.run import Run


class Told:
    """An experiment of which only the folder and the seeds matter."""

    seeds = (0, 1)

    def __init__(self, folder):
        self.run = Run(folder)
        self.config = type("Config", (), {"updates": 20, "evaluations": 2})


@pytest.fixture
def experiment(tmp_path):
    for seed in (0, 1):
        part = Run(tmp_path).child(f"seed-{seed}").child("dr_po_50")
        rows = {"prefix_tokens": [0, 3] * 2, "when": ["before"] * 2 + ["after"] * 2, "reward": [0.0, 0.5, 1.0, 1.5]}
        part.table("by_prefix", lambda rows=rows: pd.DataFrame({**rows, "n": 8}))
        for step in range(2):
            part.log(
                {
                    "step": step,
                    "reset_share": 0.5,
                    "reset_tokens": 4.0,
                    "response_tokens": 19.0,
                    "score": 1.0,
                    "missing_end": 0.0,
                }
            )
    return Told(tmp_path)


TABLE = pd.DataFrame(
    {"arm": arm, "seed": seed, "round": t, "quality": 0.1 * t + base, "kl_nats": float(t), "reward": base + t}
    for arm, base in (("dr_po_50", 0.2), ("ppo", 0.0), ("sft", 0.1))
    for seed in (0, 1)
    for t in range(3)
)


def test_curves_are_over_updates_and_leave_out_arms_without_rollouts(experiment):
    shown = view.over_updates(experiment, TABLE, ["dr_po_50", "ppo", "sft"])
    frame = shown.frame()
    assert set(frame.arm) == {"dr_po_50", "ppo"}
    assert sorted(set(frame["update"])) == [0, 10, 20]
    assert "DR-PO, beta 0.5 0.40" in shown.figure().layout.title.text
    assert (
        view.over_updates(experiment, TABLE, ["dense"])
        == "This run has no quality of dense; see `arms` and the columns of the table."
    )


def test_success_by_prefix(experiment):
    frame = view.by_prefix(experiment, ["dr_po_50", "ppo"]).frame()
    after = frame[(frame.arm == "dr_po") & (frame.prefix_tokens == 3)]
    assert after["mean"].item() == 1.5
    assert after["n"].item() == 2
    assert view.by_prefix(experiment, ["wrong"]) == "This run has none of the arms wrong."


def test_frontier_has_one_path_an_arm():
    shown = view.frontier(TABLE, ["dr_po_50", "ppo"])
    assert len(shown.figure().data) == 2
    assert shown.frame().groupby("arm").kl_nats.apply(list)["ppo"] == [0, 1, 2]


def test_reset_points(experiment):
    shown = view.reset_points(experiment)
    assert "50% of the rollouts" in shown.figure().layout.title.text
    assert shown.figure().data[1].y.tolist() == [15, 15]


def test_arm_table_shows_the_end():
    table = view.arm_table(TABLE)
    assert table.loc["PPO", "quality"] == 0.2
