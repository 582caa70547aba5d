"""Calibration maps: planted truth, what each family needs, the null, and properties for any numbers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench import metrics
from workbench.methods.confidence.pace_lm import calibration
from workbench.methods.confidence.pace_lm.calibration import (
    apply_map,
    calibration_report,
    choose_family,
    fit_transform_map,
)

RNG = np.random.default_rng(0)
FAMILIES = ("grid", "grid_rce", "logistic", "additive", "rce", "coe", "binned")


def grounded(n, rng):
    """Ratings that mean something where coe is high, and nothing where it is low: an interaction and nothing else."""
    coe, rce = rng.random(n), rng.random(n)
    p = 1 / (1 + np.exp(-8 * (coe > 0.5) * (rce - 0.5)))
    return coe, rce, (rng.random(n) < p).astype(float)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_map_keeps_to_probabilities_and_to_json(family):
    coe, rce, z = grounded(200, np.random.default_rng(1))
    fitted = fit_transform_map(coe, rce, z, family)
    again = calibration.TransformMap(family, __import__("json").loads(__import__("json").dumps(fitted.parameters)))
    c = apply_map(again, coe, rce)
    assert ((c >= 0) & (c <= 1)).all()
    assert again.transform_id == fitted.transform_id
    assert fitted.transform_id.startswith(family)


def test_the_product_term_is_needed_where_ratings_count_only_if_grounded(monkeypatch):
    """Without it (the sabotage) the logistic map is no better than the one that cannot have it."""
    fit, held = grounded(2000, np.random.default_rng(2)), grounded(2000, np.random.default_rng(3))

    def brier(family):
        return metrics.brier(apply_map(fit_transform_map(*fit, family), *held[:2]), held[2])

    assert brier("logistic") < brier("additive") - 0.01
    assert brier("binned") < brier("additive") - 0.01
    monkeypatch.setitem(calibration.FEATURES, "logistic", calibration.FEATURES["additive"])
    assert brier("logistic") == pytest.approx(brier("additive"))


def test_an_objective_of_ece_alone_ends_near_a_constant(monkeypatch):
    """Ratings worth something: with ECE alone the grid throws them away, and the Brier score shows it."""
    rng = np.random.default_rng(4)
    coe, rce = rng.random(300), rng.random(300)
    z = (rng.random(300) < np.clip(0.5 + 0.9 * (rce - 0.5) + 0.25 * np.sin(12 * rce), 0, 1)).astype(float)
    honest = apply_map(fit_transform_map(coe, rce, z, "grid_rce"), coe, rce)
    monkeypatch.setattr(calibration, "grid_objective", calibration.calibration_errors)
    alone = apply_map(fit_transform_map(coe, rce, z, "grid_rce"), coe, rce)
    assert np.std(alone) < np.std(honest) / 2
    assert metrics.brier(alone, z) > metrics.brier(honest, z) + 0.01
    assert metrics.expected_calibration_error(alone, z) <= metrics.expected_calibration_error(honest, z)


def test_binned_follows_the_groups_and_ties_stay_together():
    coe = np.repeat([0.0, 1.0], 100)
    rce = np.tile(np.linspace(0, 1, 100), 2)
    z = np.where(coe == 1, rce > 0.5, np.arange(200) % 2).astype(float)
    fitted = fit_transform_map(coe, rce, z, "binned")
    assert len(fitted.parameters["edges"]) == 1
    np.testing.assert_allclose(apply_map(fitted, [1, 1, 0], [0.1, 0.9, 0.9]), [0, 1, 0.5], atol=0.06)


@given(st.lists(st.sampled_from([0.0, 0.5, 0.75, 1.0]), min_size=60, max_size=60), st.integers(0, 60))
@settings(max_examples=40, deadline=None)
def test_no_group_of_the_binned_map_is_ever_empty(coe, first):
    z = np.array([1.0, 0.0] * 30)
    fitted = fit_transform_map(coe, np.linspace(0, 1, 60), z, "binned")
    assert np.isfinite(apply_map(fitted, [0, 0.25, 0.5, 0.75, 1], [first / 60] * 5)).all()


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 15))
@settings(max_examples=40, deadline=None)
def test_many_calibration_errors_at_once_are_the_metric(pairs, bins):
    c, z = np.array([p[0] for p in pairs]), np.array([float(p[1]) for p in pairs])
    both = calibration.calibration_errors(np.stack([c, 1 - c]), z, bins)
    assert both[0] == pytest.approx(metrics.expected_calibration_error(c, z, bins=bins), abs=1e-9)
    assert both[1] == pytest.approx(metrics.expected_calibration_error(1 - c, z, bins=bins), abs=1e-9)


def test_cross_validation_prefers_what_generalises():
    ranked = choose_family(*grounded(400, np.random.default_rng(5)), families=("logistic", "additive", "coe"))
    assert ranked["family"][0] == "logistic"
    assert ranked["cv_brier"].is_monotonic_increasing


def test_the_report_shows_the_null_beside_ece():
    """A constant at the base rate: no ECE, no order, the Brier score of the last row."""
    z = np.array([1.0, 0.0] * 100)
    report = calibration_report(np.full(200, 0.5), z, rounds=50).set_index("metric")
    assert report.loc["ece", "value"] == 0
    assert report.loc["auroc", "value"] == 0.5
    assert report.loc["brier", "value"] == report.loc["base_rate_brier", "value"] == 0.25
    assert (report["lower"] <= report["upper"]).all()
    better = calibration_report(np.where(z == 1, 0.8, 0.2), z, rounds=50).set_index("metric")
    assert better.loc["brier", "upper"] < 0.25
    assert set(report["n"]) == {200}


def test_an_interval_of_a_difference_is_paired():
    rng = np.random.default_rng(6)
    z = (rng.random(300) < 0.5).astype(float)
    c = np.clip(0.5 + 0.3 * (z - 0.5) + 0.3 * rng.normal(size=300), 0, 1)
    low, high = calibration.interval(calibration.MEASURES["brier"], c, z, against=c, rounds=50)
    assert (low, high) == (0, 0)
    low, _ = calibration.interval(calibration.MEASURES["brier"], np.full(300, 0.5), z, against=c, rounds=200)
    assert low > 0


def test_reliability_table_has_counts_and_intervals():
    table = calibration.reliability_table([0.05, 0.05, 0.95, 0.95], [0, 0, 1, 0])
    assert table["count"].tolist() == [2, 2]
    assert (table["lower"] <= table["accuracy"]).all()
    assert table["upper"][0] > 0.5  # two cases say little


@pytest.mark.parametrize(
    ("coe", "rce", "z", "message"),
    [
        ([0.5] * 49, [0.5] * 49, [0, 1] * 24 + [1], "49 labelled calibration cases, 25 of them right: .* at least 50"),
        ([0.5] * 60, [0.5] * 60, [1] * 60, "60 labelled calibration cases, 60 of them right: .* of both kinds"),
        ([0.5] * 60, [float("nan")] * 60, [0, 1] * 30, "rce row 0: nan where a number in"),
        ([1.5] * 60, [0.5] * 60, [0, 1] * 30, "coe row 0: 1.5 where a number in"),
        ([0.5] * 60, [0.5] * 60, [0, 2] * 30, "z row 1: 2.0 where 0 or 1 is needed"),
        ([0.5] * 60, [0.5] * 59, [0, 1] * 30, "lists of one length; got shapes"),
    ],
)
def test_bad_input_is_named(coe, rce, z, message):
    with pytest.raises(ValueError, match=message):
        fit_transform_map(coe, rce, z)


def test_unknown_family():
    with pytest.raises(ValueError, match="family must be one of grid, grid_rce, binned, logistic"):
        fit_transform_map([0.5] * 60, [0.5] * 60, [0, 1] * 30, "spline")
    assert calibration.check_labels(np.array([0.0, 1.0] * 30)) is False
