"""Figures are drawn from their tables, and text of models cannot become markup."""

import json

import numpy as np
import pandas as pd
import pytest

from workbench import figures
from workbench.claims import Claims
from workbench.methods.align.spin import view

SEEDS = [0, 1, 2]


def tidy(arms=("spin", "sft")):
    rows = [(arm, seed, t, 0.1 * t + 0.01 * seed) for arm in arms for seed in SEEDS for t in range(3)]
    return pd.DataFrame(rows, columns=["arm", "seed", "round", "quality"])


def lines(*arms):
    return figures.lines_over_rounds(tidy(*arms), x="round", y="quality", title="t", x_title="x", y_title="y")


def test_lines_show_the_means_and_their_intervals_without_a_kernel():
    display = lines()
    row = display.frame().query("arm == 'spin' and round == 2").iloc[0]
    assert row["mean"] == pytest.approx(0.21)
    assert row.lower < row["mean"] < row.upper
    means = [list(trace.y) for trace in display.figure().data if trace.mode == "lines+markers"]
    assert means == [pytest.approx([0.01, 0.11, 0.21])] * 2
    bundle = display._repr_mimebundle_()
    assert bundle["application/vnd.plotly.v1+json"]["data"]
    json.dumps(bundle)


def test_hostile_names_are_escaped():
    hostile = "<img src=x onerror=alert(1)>"
    assert "<img" not in lines((hostile,)).figure().to_json().replace("\\u003c", "<").replace('"legendgroup":"<img', "")


def test_one_colour_an_arm_and_the_same_one_always():
    assert {figures.colour(name) for name in ("spin", "something else")} <= set(figures.PALETTE)
    assert figures.colour("something else") == figures.colour("something else")


def test_forest_turns_every_claim_to_its_claimed_side():
    claims = Claims("x", "tiny", SEEDS)
    claims.test("up", "s", paper="", measured=[1, 2, 3], control=[0, 0.1, -0.1])
    claims.test("down", "s", paper="", measured=[-1, -2, -3], control=[0, 0.1, -0.1], direction="less")
    claims.needs_full_scale("big", "s", "", "why")
    table = figures.claims_forest(claims.records()).frame()
    assert set(table.claim) == {"up", "down"}
    assert (table[table.kind == "measured"].effect > 0).all()


def test_pairs_come_worst_first():
    rewards = {"chosen_rewards": [1.0, -1.0], "rejected_rewards": [0.0, 0.0]}
    pairs = pd.DataFrame({"prompt": ["a", "b"], "chosen": "c", "rejected": "r", **rewards})
    table = figures.pair_table(pairs)
    assert table.prompt.tolist() == ["b", "a"]
    assert table.margin.tolist() == [-1.0, 1.0]
    assert "<script>" not in figures.pair_table(pairs.assign(chosen="<script>"))._repr_html_()


def test_slider_moves_the_exact_round():
    """At lambda = 1 the bars of the policy are those of the data; below they are sharper."""
    law = np.array([0.4, 0.3, 0.2, 0.1])
    display = view.overshoot_figure(np.full(4, 0.25), law, list("abcd"))
    (slider,) = display.figure().layout.sliders
    heights = {step.label: step.args[0]["y"][0] for step in slider.steps}
    assert heights["1"] == pytest.approx(law)
    assert max(heights["0.5"]) > 0.4 > max(heights["2"])


def test_rounds_figure_says_what_it_found():
    title = view.rounds_figure(tidy(), "quality").figure().layout.title.text
    assert title == "SPIN: quality 0.010 after 0 rounds, 0.210 after 2"
