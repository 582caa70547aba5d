"""Golden numbers of rating systems and selective classification, every case and every field of four files.

Other files of the same form can be run through by pointing WORKBENCH_GOLDEN at their folder. A field that is not named
here fails. Fields of estimators that this package does not offer are named in NOT_OURS with the reason.
"""

import re
import warnings

import numpy as np
import pytest

from workbench import metrics, ranking
from workbench.stats import bootstrap
from workbench.stats.bradley_terry import Cells, fit, sandwich

TIGHT = {"rtol": 1e-6, "atol": 1e-6}  # the files print ten digits
COMMENTS = {"name", "notes", "note", "about", "true_theta", "invariant", "tolerance", "leaderbot_total_nll"}
NOT_OURS = {"choix_ilsr": "how another library fails on this case"}
NOT_OURS |= {"mm_dirichlet": "minorise-maximise with a Dirichlet prior: another estimator"}
NOT_OURS |= {"quality_before": "match quality, for choosing opponents online"}
ELO_TO_NATS = np.log(10) / 400


def load(golden, name):
    def number(text):  # NaN and infinities are written as strings
        return float(text) if text in ("nan", "inf", "-inf") else text

    def walk(node):
        if isinstance(node, dict):
            return {key: walk(value) for key, value in node.items()}
        if isinstance(node, list):
            return [walk(value) for value in node]
        return number(node) if isinstance(node, str) else node

    return walk(golden(name))


def fields(node, known, where):
    """The fields to check; one that is neither known nor a comment fails."""
    left_over = set(node) - set(known) - COMMENTS - set(NOT_OURS)
    assert not left_over, f"{where}: fields that no check reads: {sorted(left_over)}"
    return node


def close(got, expected, where, **tolerance):
    np.testing.assert_allclose(got, expected, err_msg=where, **(tolerance or TIGHT))


def test_bradley_terry_cases(golden):
    data = fields(load(golden, "rank_bradley_terry.json"), ["cases", "bootstrap", "invalid"], "file")
    for case in data["cases"]:
        where = case["name"]
        fields(case, ["n_items", "matches", "expected"], where)
        expected = fields(
            case["expected"],
            [
                *["weak_components", "strong_components", "mle", "mle_log_strength_mean0", "mle_elo_mean1000"],
                *["mle_nll", "gradient_inf_norm", "mle_strength_sum1", "arena_sandwich_95", "l2_map", "tie_models"],
            ],
            where,
        )
        n, matches = case["n_items"], case["matches"]
        disconnected = expected["weak_components"] > 1
        for solution in expected["l2_map"]:
            fields(solution, ["alpha", "theta", "objective"], where)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                ours = ranking.bradley_terry(matches, n, l2=solution["alpha"])
            close(ours.scores, solution["theta"], where)
            close(ours.details["objective"], solution["objective"], where)
            assert bool(caught) == disconnected, where
            if disconnected:
                assert f"{expected['weak_components']} components" in str(caught[0].message)
        if "mle" in expected:
            assert expected["mle"] in ("does_not_exist", "not_identified_between_components")
            with pytest.raises(ValueError, match="maximum likelihood does not exist") as error:
                ranking.bradley_terry(matches, n, l2=0)
            groups = expected["weak_components"] if disconnected else expected["strong_components"]
            assert f"{groups} groups" in str(error.value), where
            continue
        assert expected["weak_components"] == expected["strong_components"] == 1, where
        mle = ranking.bradley_terry(matches, n, l2=0)
        close(mle.scores, expected["mle_log_strength_mean0"], where)
        close(1000 + mle.scores / ELO_TO_NATS, expected["mle_elo_mean1000"], where)
        close(mle.details["objective"], expected["mle_nll"], where)
        close(np.exp(mle.scores) / np.exp(mle.scores).sum(), expected["mle_strength_sum1"], where)
        assert mle.details["gradient"] <= 1e-8 >= expected["gradient_inf_norm"], where
        if "arena_sandwich_95" in expected:
            check_arena(expected["arena_sandwich_95"], mle, matches, n, where)
        for model, solution in expected.get("tie_models", {}).items():
            fields(solution, ["theta_mean0", "eta", "log_nu", "nll"], where)
            ours = ranking.bradley_terry(matches, n, l2=0, ties=model)
            close(ours.scores, solution["theta_mean0"], where, atol=solution["tolerance"])
            close(ours.tie, solution.get("eta", solution.get("log_nu")), where, atol=solution["tolerance"])
            close(ours.details["objective"], solution["nll"], where)
            close(ours.details["objective"], solution["leaderbot_total_nll"], where)


def check_arena(expected, mle, matches, n, where):
    """The other implementation adds 1e-5 a match to the Hessian's diagonal at the unpenalised estimate."""
    fields(expected, ["rating", "lower", "upper"], where)
    lo, hi, outcome = np.array(matches).T
    cells = Cells(lo.astype(int), hi.astype(int), outcome, np.ones(len(lo)), n, False)
    at_mle = fit(cells, "half", 0.0, 0, mle.scores).local
    half = 1.959963984540054 * np.sqrt(sandwich(cells, at_mle, 0.5e-5 * len(lo), n, None, None)) / ELO_TO_NATS
    close(1000 + mle.scores / ELO_TO_NATS, expected["rating"], where)
    close(expected["rating"] - half, expected["lower"], where)
    close(expected["rating"] + half, expected["upper"], where)
    close((mle.upper - mle.lower) / 2 / ELO_TO_NATS, half, where, rtol=1e-3)  # ours leaves that ridge out


def test_bradley_terry_bootstrap(golden):
    data = load(golden, "rank_bradley_terry.json")
    for case in data["bootstrap"]:
        where = case["name"]
        fields(case, ["n_items", "matches", "alpha", "resample_indices", "expected"], where)
        expected = fields(
            case["expected"], ["per_round_theta", "median", "lower95", "upper95", "lower90", "upper90"], where
        )
        matches = np.array(case["matches"])
        rounds = np.array(
            [
                ranking.bradley_terry(matches[rows], case["n_items"], l2=case["alpha"], intervals="none").scores
                for rows in case["resample_indices"]
            ]
        )
        close(rounds, expected["per_round_theta"], where)
        close(np.median(rounds, axis=0), expected["median"], where)
        for percent in (95, 90):
            lower, upper = bootstrap.middle(rounds, percent / 100)
            close(lower, expected[f"lower{percent}"], where)
            close(upper, expected[f"upper{percent}"], where)


def test_invalid_matches(golden):
    message = {"self match": "self match", "unknown item": "unknown player", "no matches": "no matches"}
    message |= {"outcome must be 0, 0.5 or 1": "outcome must be 0, 0.5 or 1"}
    for case in load(golden, "rank_bradley_terry.json")["invalid"]:
        fields(case, ["n_items", "matches", "expected_error"], case["name"])
        for system in (ranking.bradley_terry, ranking.elo, ranking.trueskill, ranking.win_rate_ranking):
            with pytest.raises(ValueError, match=message[case["expected_error"]]):
                system(case["matches"], case["n_items"])


ELO_FIELD = re.compile(
    r"k(?P<k>[\d.]+)(_base_(?P<base>e|[\d.]+)_scale(?P<scale>[\d.]+))?(_init(?P<initial>[\d.]+))?(_passes(?P<passes>\d+))?"
    r"(?P<order>_reversed|_mean_over_permutations|_sd_over_permutations_ddof1)?"
)


def test_elo_cases(golden):
    data = fields(load(golden, "rank_elo.json"), ["cases"], "file")
    for case in data["cases"]:
        fields(case, ["n_items", "matches", "permutations", "expected"], case["name"])
        matches, n = np.array(case["matches"]), case["n_items"]
        for name, expected in case["expected"].items():
            where, named = f"{case['name']} {name}", ELO_FIELD.fullmatch(name)
            assert named, f"{where}: a field that no check reads"
            options = {key: float(named[key]) for key in ("k", "scale", "initial") if named[key]}
            if named["base"]:
                options["base"] = np.e if named["base"] == "e" else float(named["base"])
            if named["passes"]:
                options["passes"] = int(named["passes"])

            def rate(rows, n=n, options=options):
                ratings = ranking.elo(rows, n, intervals="none", **options)
                assert ratings.scores.sum() == pytest.approx(n * options.get("initial", 1000), abs=1e-8)
                return ratings.scores

            if (named["order"] or "").endswith(("permutations", "ddof1")):
                shuffled = np.array([rate(matches[rows]) for rows in case["permutations"]])
                ours = shuffled.mean(0) if "mean" in name else shuffled.std(0, ddof=1)
            else:
                ours = rate(matches[::-1] if named["order"] else matches)
            close(ours, expected, where)


TRUESKILL_FIELD = re.compile(
    r"(default|draw(?P<draw>[\d.]+)|sigma_mu/(?P<sigma>[\d.]+)|beta_mu/(?P<beta>[\d.]+)|tau_mu/(?P<tau>[\d.]+)|tau0)"
    r"(_draw(?P<also_draw>[\d.]+))?(?P<reversed>_reversed_order)?"
)


def test_trueskill_cases(golden):
    data = fields(load(golden, "rank_trueskill.json"), ["cases", "single_updates"], "file")
    for case in data["cases"]:
        fields(case, ["n_items", "matches", "expected"], case["name"])
        matches = np.array(case["matches"])
        for name, expected in case["expected"].items():
            where, named = f"{case['name']} {name}", TRUESKILL_FIELD.fullmatch(name)
            assert named, f"{where}: a field that no check reads"
            fields(expected, ["mu", "sigma", "conservative_mu_minus_3sigma"], where)
            options = {key: 25 / float(named[key]) for key in ("sigma", "beta", "tau") if named[key]}
            if name.startswith("tau0"):
                options["tau"] = 0.0
            draw = float(named["draw"] or named["also_draw"] or 0.1)  # 0.1 is the default of the library that wrote it
            rows = matches[::-1] if named["reversed"] else matches
            ours = ranking.trueskill(rows, case["n_items"], draw_probability=draw, **options)
            assert ours.sigma is not None
            close(ours.scores, expected["mu"], where)
            close(ours.sigma, expected["sigma"], where)
            if "conservative_mu_minus_3sigma" in expected:
                close(ours.scores - 3 * ours.sigma, expected["conservative_mu_minus_3sigma"], where)


def test_trueskill_single_updates(golden):
    for index, case in enumerate(load(golden, "rank_trueskill.json")["single_updates"]):
        where = f"single update {index}"
        fields(case, ["i", "j", "outcome_for_i", "draw_probability", "after_i", "after_j"], where)
        beta, tau = 25 / 6, 25 / 300
        margin = ranking.ndtri((case["draw_probability"] + 1) / 2) * np.sqrt(2) * beta
        first, second = ("j", "i") if case["outcome_for_i"] == "loss" else ("i", "j")
        beliefs = ranking._trueskill_update(
            case[first][0],
            case[first][1] ** 2 + tau**2,
            case[second][0],
            case[second][1] ** 2 + tau**2,
            beta,
            margin,
            {"win": False, "loss": False, "draw": True}[case["outcome_for_i"]],
        )
        for player, (mean, variance) in zip((first, second), beliefs, strict=True):
            close([mean, np.sqrt(variance)], case[f"after_{player}"], where)


def strict_order(confidence, correct, right_first):
    """Scores without ties: inside each tie group the right answers first, or last."""
    order = np.lexsort((correct if right_first else 1 - correct, np.round(confidence, 9)))
    ranks = np.empty(len(order))
    ranks[order] = np.arange(len(order))
    return ranks


def test_selective_and_calibration_cases(golden):
    data = fields(load(golden, "selective_calibration.json"), ["cases", "invalid"], "file")
    for case in data["cases"]:
        where = case["name"]
        fields(case, ["confidence", "correct", "expected"], where)
        confidence, correct = np.array(case["confidence"]), np.array(case["correct"])
        pair = (confidence, correct)
        curve = metrics.accuracy_coverage(*pair)
        ours = {
            "accuracy": lambda c=correct: c.mean(),
            "random_auc": lambda c=correct: metrics.accuracy_coverage_auc(np.zeros(len(c)), c),
            "accuracy_coverage_auc": lambda p=pair: metrics.accuracy_coverage_auc(*p),
            "accuracy_coverage_auc_worst_tie_order": lambda p=pair: metrics.accuracy_coverage_auc(
                strict_order(*p, right_first=False), p[1]
            ),
            "accuracy_coverage_auc_best_tie_order": lambda p=pair: metrics.accuracy_coverage_auc(
                strict_order(*p, right_first=True), p[1]
            ),
            "accuracy_coverage_auc_trapezoid": lambda c=curve: np.trapezoid(c.accuracy, c.coverage),
            "oracle_auc": lambda c=correct: metrics.oracle_auc(c),
            "auroc": lambda p=pair: metrics.auroc(*p),
            "average_precision": lambda p=pair: metrics.average_precision(*p),
            "brier": lambda p=pair: metrics.brier(*p),
        }
        calibrated = "brier" in case["expected"]
        for name, expected in case["expected"].items():
            what = f"{where} {name}"
            if name == "accuracy_at_coverage":
                for coverage, value in expected.items():
                    close(metrics.accuracy_at_coverage(*pair, float(coverage)), value, what)
            elif expected == "undefined":
                with pytest.warns(UserWarning, match="undefined"):
                    assert np.isnan(ours[name]()), what
            elif name in ours:
                close(ours[name](), expected, what)
            elif found := re.fullmatch(r"nll_clip_(.+)", name):
                close(metrics.negative_log_likelihood(*pair, clip=float(found[1])), expected, what)
            elif found := re.fullmatch(r"ece_(\d+)_(equal_width_)?(\w+)", name):
                ece = metrics.expected_calibration_error(*pair, bins=int(found[1]), binning=found[3])
                close(ece, expected, what)
            elif found := re.fullmatch(r"mce_(\d+)", name):
                close(metrics.maximum_calibration_error(*pair, bins=int(found[1])), expected, what)
            elif found := re.fullmatch(r"reliability_bins_(\d+)", name):
                close(np.transpose(metrics.reliability(*pair, bins=int(found[1]))), expected, what)
            else:
                pytest.fail(f"{what}: a field that no check reads")
        if not calibrated:
            for metric in (metrics.brier, metrics.expected_calibration_error, metrics.negative_log_likelihood):
                with pytest.raises(ValueError, match="normalised"):
                    metric(*pair)


def test_invalid_confidences(golden):
    for case in load(golden, "selective_calibration.json")["invalid"]:
        fields(case, ["confidence", "correct", "expected_error"], case["name"])
        for metric in (metrics.accuracy_coverage_auc, metrics.auroc, metrics.brier, metrics.average_precision):
            with pytest.raises(ValueError, match=str(case["expected_error"])):
                metric(case["confidence"], case["correct"])
