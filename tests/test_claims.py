"""Verdicts: what they need, what turns them down, and the statistics behind them against scipy and by hand."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workbench.claims import (
    DIFFERS,
    FOLLOWS,
    Claims,
    describe,
    describe_control,
    holm,
    interval,
    p_value,
    standardised,
    table_html,
)

SEEDS = [0, 1, 2, 3, 4]
STRONG, NOISE = [0.9, 1.1, 1.0, 1.2, 0.8], [0.1, -0.1, 0.05, -0.08, 0.01]


def made(scale="tiny", **changes):
    claims = Claims("x", scale, changes.pop("seeds", SEEDS))
    claims.test("C1", "s", **{"paper": "p", "measured": STRONG, "control": NOISE, "control_is": "off", **changes})
    return claims


def verdict(*scale, **changes):
    return made(*scale, **changes).verdicts()["C1"]


def test_a_strong_effect_with_a_silent_control_is_shown():
    """A control that points the other way is silent: swapped labels make things worse, which is no claim."""
    assert verdict() == verdict(control=[-v for v in STRONG]) == "shown in small"


@pytest.mark.parametrize(
    "changes",
    [
        {"measured": NOISE},
        {"measured": [-v for v in STRONG]},
        {"control": None},
        {"control": STRONG},
        {"also": {"a": True, "b": False}},
        {"direction": "less"},
        {"margin": 2.0},
        {"seeds": [0, 1], "measured": [1.0, 1.1], "control": [0.0, 0.1]},
    ],
)
def test_everything_that_must_turn_it_down(changes):
    assert verdict(**changes) == "not shown"


def test_an_effect_that_does_not_differ_from_its_control_is_not_shown():
    """Significant here and just not significant there: the two may still be the same."""
    measured, control = [0.04, 0.02, 0.035, 0.03, 0.025], [0.05, -0.02, 0.035, 0.03, 0.02]
    assert p_value(np.array(measured), "greater") < 0.01 < 0.05 < p_value(np.array(control), "greater")
    (record,) = made(measured=measured, control=control).records()
    assert record["verdict"] == "not shown"
    expected = stats.ttest_rel(measured, control, alternative="greater").pvalue
    assert record["difference_p_value"] == pytest.approx(expected)
    assert "not apart from it" in describe_control(record)


def test_verdicts_of_each_scale():
    assert verdict("smoke") == "smoke run, no verdict"
    assert verdict("full", paper_effect=1.0) == "reproduced"
    assert verdict("full", paper_effect=0.5) == "reproduced"  # ours is larger than the paper's
    assert verdict("full", paper_effect=3.0) == verdict("full") == "direction only"
    assert verdict("full", measured=NOISE) == "not reproduced"


def test_equivalence_needs_the_margin_and_fails_far_away():
    near = {"measured": NOISE, "direction": "equivalent"}
    assert verdict(**near, control=STRONG, margin=0.3) == "shown in small"
    assert verdict(**near, control=STRONG, margin=0.05) == "not shown"
    assert verdict(**near, control=NOISE, margin=0.3) == "not shown"  # control holds too


def test_holm_by_hand():
    """Sorted .01 .02 .03 times 3, 2, 1: .03, .04, .04 (never smaller than the one before)."""
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, math.nan, 0.4])[1:] == pytest.approx([math.nan, 0.8], nan_ok=True)


def test_other_claims_of_the_notebook_count_against_each_other():
    values = [0.4, 0.1, 0.5, 0.2, 0.1]  # p = .015 alone
    alone = made(measured=values)
    assert alone.verdicts()["C1"] == "shown in small"
    for i in range(2, 6):
        alone.test(f"C{i}", "s", paper="", measured=NOISE, control=NOISE)
    assert alone.verdicts()["C1"] == "not shown"


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=12))
def test_paired_t_equals_scipy_and_its_sides_add_to_one(values):
    array = np.array(values)
    if np.ptp(array) < 1e-9:
        return
    greater, less = p_value(array, "greater"), p_value(array, "less")
    assert greater == pytest.approx(stats.ttest_rel(array, np.zeros_like(array), alternative="greater").pvalue)
    assert greater + less == pytest.approx(1)


def test_equal_values_fall_back_to_the_sign_test():
    assert p_value(np.ones(5), "greater") == pytest.approx(1 / 32)
    assert p_value(np.zeros(5), "greater") == 1.0
    assert math.isnan(p_value(np.ones(2), "greater"))


@pytest.mark.parametrize("test", ["paired_t", "sign", "wilcoxon", "bootstrap"])
def test_every_test_tells_signal_from_noise(test):
    rng = np.random.default_rng(0)
    assert p_value(rng.normal(2, 1, 20), "greater", test) < 0.01
    assert p_value(rng.normal(0, 1, 20), "greater", test) > 0.05
    assert p_value(rng.normal(-2, 1, 20), "less", test) < 0.01


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [low <= 0.3 <= high for low, high in (interval(rng.normal(0.3, 1, 5)) for _ in range(1_000))]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_standardised_by_hand():
    """1, 2, 3: mean 2, standard deviation 1."""
    assert standardised(np.array([1.0, 2.0, 3.0])) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"measured": [1.0]}, "claim C1: measured has 1 values for 5 seeds"),
        (
            {"control": [0.0, 0.0, math.nan, 0.0, 0.0]},
            "claim C1: control of seed 2 is nan; a claim needs finite numbers",
        ),
    ],
)
def test_bad_measurements_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        verdict(**changes)


def test_records_are_json_and_hold_what_checks_read():
    claims = made(control=None)
    claims.needs_full_scale("C2", "t", paper="q", why="too small")
    first, second = json.loads(json.dumps(claims.records(), allow_nan=False))
    names = "id statement paper direction seeds measured control test p_value effect interval scale verdict"
    assert set(names.split()) <= set(first)
    assert second["verdict"] == "needs full scale"
    assert describe(second) == "too small"
    assert describe_control(first) == "no control"
    assert "+1 [+0.804, +1.2], p = 7.3e-05" in describe(first)


def test_table_escapes_everything():
    claims = Claims("<b>x</b>", "tiny", SEEDS)
    words = {"statement": "<script>alert(1)</script>", "paper": "<img src=x>", "control_is": "<i>", "note": "</td>"}
    claims.test("C1", measured=STRONG, control=NOISE, **words)
    text = table_html([{"system": "<b>x</b>", **record} for record in claims.records()])
    assert not any(bad in text for bad in ("<script", "<img", "<i>", "<b>"))
    assert "&lt;script&gt;alert(1)" in text


@pytest.mark.parametrize(
    ("here", "holds", "verdict"),
    [(0.8391, True, FOLLOWS), (0.8391, False, DIFFERS), (0.8451, True, DIFFERS), (math.nan, True, DIFFERS)],
)
def test_published_figures_computed_again(here, holds, verdict):
    """Every figure within the tolerance and every condition: nothing less follows, and nothing is ever called shown."""
    claims = Claims("x", "full", SEEDS)
    figures = {"mean AUC": (here, 0.839), "another": (0.5, 0.5)}
    claims.rederive("C1", "s", paper=".839", figures=figures, tolerance=5e-4, also={"the first is larger": holds})
    claims.test("C2", "t", paper="q", measured=STRONG, control=NOISE)
    (first, second) = claims.records()
    assert (first["verdict"], first["scale"]) == (verdict, "recorded")
    assert second["p_holm"] == second["p_value"]  # what is computed again is no test and costs none
    assert describe(first).startswith("2 figures computed again")
    assert ("fails: the first is larger" in describe(first)) == (not holds)
    assert describe_control(first) == ""
    with pytest.raises(ValueError, match="C3: neither a figure nor a condition"):
        claims.rederive("C3", "s", paper="", figures={}, tolerance=0.1)


def test_randomisation_is_the_exact_share_of_assignments():
    """Lady tasting tea: 4 of 8 cups right has p = 1/70; three such seeds 1/70^3, though they do not vary at all."""
    scores = np.array([1.0, 1, 1, 1, 0, 0, 0, 0])
    null = np.array([scores[list(c)].mean() - np.delete(scores, list(c)).mean() for c in combinations(range(8), 4)])

    def exact(values, null=null, direction="greater", seeds=3):
        return p_value(np.array(values), direction, "randomisation", null=[null] * seeds)

    assert exact([1.0] * 3) == exact([-1.0] * 3, direction="less") == pytest.approx(70.0**-3)
    assert exact([0.0] * 3) > 0.5
    assert exact([1.0] * 3, np.ones(70)) == 1.0  # any assignment gives it
    share = np.mean([a + b + c >= 1.5 - 1e-9 for a in null for b in null for c in null])
    assert exact([0.5, 1.0, 0.0]) == pytest.approx(share)
    with pytest.raises(ValueError, match="needs one null distribution a seed"):
        exact([1.0] * 3, seeds=2)
    with pytest.raises(ValueError, match=r"0\.9 of place 0 is no value of its null distribution"):
        exact([0.9] * 3)


def test_a_randomised_claim_is_decided_where_seeds_do_not_vary():
    null, same = [np.array([10.0, *[0.0] * 69])] * 3, [np.array([0.0] * 70)] * 3
    claims = Claims("x", "tiny", [0, 1, 2])
    options = {"paper": "p", "measured": [10.0] * 3, "control": [0.0] * 3}
    claims.test("C1", "s", **options, test="randomisation", null=null, control_null=same)
    claims.test("C2", "s", **options)
    assert claims.verdicts() == {"C1": "shown in small", "C2": "not shown"}  # the sign test of three cannot


def test_a_claim_may_have_fewer_seeds_than_the_run():
    claims = Claims("x", "tiny", range(20))
    claims.test("A", "s", paper="p", measured=[1, 2, 3], control=[0, 1, -1], seeds=[0, 7, 9])
    with pytest.raises(ValueError, match="measured has 20 values for 2 seeds"):
        claims.test("B", "s", paper="p", measured=range(20), control=None, seeds=[0, 1])
    assert claims.decided()[0].seeds == [0, 7, 9]
