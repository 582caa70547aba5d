"""The needle map and its neighbours: tables and figures of what was stored, escapes, missing parts named."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from workbench.methods.align.logo import view
from workbench.runs.run import Run


@pytest.fixture
def experiment(tmp_path):
    run = Run(tmp_path)
    spread = {"row": ["<i>row 0</i>", "row 1"], "positions": [[0, 5, 9], [0, 7, 9]]}
    made = {"question": ["q"], "chosen": ["c"], "rejected": [["r"]], "scores": [[1, 2]], "chunks": [["a", "b"]]}
    for seed in (0, 1):
        part = run.child(f"seed-{seed}")
        for when in (0, 1):
            depth = np.tile([0.0, 0.3, 0.6, 1.0], 2)
            needles = pd.DataFrame(
                {"length": [6] * 4 + [44] * 4, "depth": depth, "right": [1.0] * 4 + [0.25 + 0.5 * when] * 4}
            )
            part.child("logo").table(f"needles-{when}", lambda t=needles: t)
            margins = pd.DataFrame({"question": ["<b>q</b>"] * 2, "margin": [when - 0.5, when + 0.5]})
            part.child("b_logo").table(f"margins-{when}", lambda t=margins: t)
        pairs = part.child("pairs")
        pairs.table("positions", lambda: pd.DataFrame(spread))
        pairs.table("train-rows", lambda: pd.DataFrame(made))
    return SimpleNamespace(run=run, seeds=[0, 1])


def test_the_map_is_the_mean_by_length_and_depth(experiment):
    display = view.needle_map(experiment)
    table = display.frame().set_index(["when", "length", "depth"])["mean"]
    assert table[0, 44, 0] == 0.25
    assert table[1, 44, 3] == 0.75
    assert "44 records: 25% found before, 75% after" in display.figure().layout.title.text
    assert np.allclose(display.figure().data[2].z, [[0] * 4, [0.5] * 4])
    assert view.needle_map(experiment, arm="sft") == "This run has no accuracy by depth for sft."


def test_positions_are_shown_as_they_are(experiment):
    display = view.position_map(experiment)
    assert display.frame()["position"].tolist() == [0, 5, 9, 0, 7, 9]
    assert display.frame()["token"].tolist() == [0, 1, 2, 0, 1, 2]
    assert "3 tokens of a prompt, spread over 10 positions" in display.figure().layout.title.text
    assert "<i>" not in display.figure().to_json().replace("\\u003c", "<")


def test_margins_by_number_of_rejected_answers(experiment):
    display = view.margins_figure(experiment)
    assert display.frame().groupby("arm")["margin"].mean().to_dict() == {"start": 0.0, "b_logo": 1.0}
    assert view.margins_figure(experiment, ["b_one"]) == "This run has none of these arms."


def numbers(recall):
    return {"retrieval_6": 0.9, "recall_6": recall, "quality": recall}


def test_retrieval_and_recall_apart():
    rows = [
        {"arm": arm, "seed": seed, "round": when, **numbers(0.5 + 0.4 * when)}
        for arm in ("b_logo", "b_one")
        for seed in (0, 1)
        for when in (0, 1)
    ]
    table = pd.DataFrame(rows)
    display = view.lengths_figure(table, "misaligned")
    means = display.frame().set_index(["measure", "arm"])["mean"]
    assert means["recall", "start"] == pytest.approx(0.5)
    assert means["recall", "b_logo"] == pytest.approx(0.9)
    assert means["retrieval", "b_one"] == pytest.approx(0.9)
    assert view.lengths_figure(table, "start") == "This run has no arm from a clean start, or no accuracy by length."


def test_rows_and_counts(experiment):
    assert view.rows_made(experiment).rows.kinds[0] == "ranking"
    results = [{"counts": {"rows": 3}}, {"counts": {"rows": 4, "empty chosen answer": 1}}]
    table = view.synthesis(experiment, results)
    assert table.loc["empty chosen answer"].tolist() == [0, 1]
    empty = SimpleNamespace(run=experiment.run.child("none"), seeds=[0])
    assert view.rows_made(empty) == "This run made no rows."
    assert view.position_map(empty) == "This run spread no positions."
