"""Short and long: tables say what was measured, figures follow, text is plain, missing arms are named."""

from types import SimpleNamespace

import pandas as pd
import pytest

from workbench.methods.align.longpo import view
from workbench.runs.run import Run


def table(**columns):
    rows = []
    for arm, rounds in (("longpo", 2), ("iterated", 3)):
        for seed in (0, 1):
            for when in range(rounds):
                numbers = {name: start + when * step for name, (start, step) in columns.items()}
                rows.append({"arm": arm, "seed": seed, "round": when, **numbers})
    return pd.DataFrame(rows)


WORLD = table(retrieval_6=(0.99, 0.0), retrieval_40=(0.5, 0.2), second_task=(1.0, 0.0), short_to_long_kl=(2.0, -0.8))
TEXT = table(short_nll=(1.0, 0.0), long_nll=(2.0, -0.25), short_to_long_kl=(2.0, -0.8))


@pytest.fixture
def experiment(tmp_path):
    part = Run(tmp_path).child("seed-0")
    for arm in ("longpo", "lam1"):
        for step in range(3):
            part.child(arm).child("round-1").log({"step": step, "loss": 1.0, "margins": -1.0 + 0.1 * step})
    turns = {"questions": [["<b>q</b>", "r"]], "chosen": [["a", "b"]], "rejected": [["c", "d"]]}
    ratios = {"chosen_ratio": [1.0], "rejected_ratio": [2.0]}
    part.child("longpo").table("ratios-1", lambda: pd.DataFrame(turns | ratios))
    return SimpleNamespace(run=Run(tmp_path), seeds=[0], config=SimpleNamespace(beta=0.1))


def test_scores_beside_the_start():
    display = view.scores_figure(WORLD)
    means = display.frame().set_index(["measure", "arm"])["mean"]
    assert means["retrieval_40", "longpo"] == pytest.approx(0.7)
    assert display.figure().layout.title.text == "LongPO, 40 records: 0.70, from 0.50 at the start"
    assert "document: 1.75, from 2.00" in view.scores_figure(TEXT).figure().layout.title.text


def test_rounds_show_arms_of_several_rounds_only():
    display = view.rounds_figure(WORLD)
    assert set(display.frame()["arm"]) == {"iterated"}
    assert display.frame()["mean"].tolist() == pytest.approx([0.5, 0.7, 0.9])
    one = WORLD[WORLD["arm"] == "longpo"]
    assert view.rounds_figure(one) == "This run has no arm of several rounds."


def test_kl_and_counts():
    assert "2.00 before, 1.20 after" in view.kl_figure(WORLD).figure().layout.title.text
    results = [{"counts": {"rows": 3}}, {"counts": {"rows": 4, "refusals": 1}}]
    assert view.made(SimpleNamespace(seeds=[0, 1]), results).loc["refusals"].tolist() == [0, 1]


def test_margins_are_log_ratios(experiment):
    display = view.margins_figure(experiment)
    assert display.frame()["margin"].tolist()[:3] == pytest.approx([-10, -9, -8])
    assert view.margins_figure(experiment, ["dpo"]) == "This run has none of these arms."


def test_answers_are_one_row_a_turn_and_escaped(experiment):
    found = view.answers(experiment)
    assert found["chosen"].tolist() == ["a", "b"]
    assert found["margin"].tolist() == (found["chosen_ratio"] - found["rejected_ratio"]).tolist()
    assert "<b>" not in found.to_html()
