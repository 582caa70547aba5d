"""ranking.py and stats/bradley_terry.py: oracles (choix, finite differences, simulation) and invariances."""

import warnings

import choix
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from workbench import ranking
from workbench.stats import bradley_terry as inside


def simulate(n, games, seed=0, ties=0.0, position=0.0):
    """Matches between random pairs with planted strengths."""
    rng = np.random.default_rng(seed)
    strength = rng.normal(size=n)
    left = rng.integers(n, size=games)
    right = (left + rng.integers(1, n, size=games)) % n
    outcome = (rng.random(games) < expit(strength[left] - strength[right] + position)).astype(float)
    outcome[rng.random(games) < ties] = 0.5
    return np.stack([left, right, outcome], axis=1), strength


@st.composite
def tables(draw):
    n = draw(st.integers(2, 7))
    row = st.tuples(st.integers(0, n - 1), st.integers(1, n - 1), st.sampled_from([0, 0.5, 1]))
    rows = draw(st.lists(row, min_size=1, max_size=25))
    return np.array([(i, (i + step) % n, y) for i, step, y in rows]), n


def quiet(*args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ranking.bradley_terry(*args, **options)


@given(tables(), st.sampled_from([0.01, 0.1, 1.0]))
def test_bradley_terry_is_stationary_and_centred(table, l2):
    matches, n = table
    fit = quiet(matches, n, l2=l2)
    left, right, y = matches[:, 0].astype(int), matches[:, 1].astype(int), matches[:, 2]
    residual = expit(fit.scores[left] - fit.scores[right]) - y
    gradient = np.bincount(left, residual, n) - np.bincount(right, residual, n) + 2 * l2 * fit.scores
    assert np.abs(gradient).max() <= 1.1e-8
    assert abs(fit.scores.mean()) < 1e-12
    played = fit.n_matches > 0
    assert np.all(fit.lower[played] <= fit.scores[played])
    assert np.all(fit.scores[played] <= fit.upper[played])
    assert np.isnan(fit.upper[~played]).all()


@settings(max_examples=25)
@given(tables(), st.randoms())
def test_relabelling_flipping_and_order(table, random):
    matches, n = table
    names = list(range(n))
    random.shuffle(names)
    renamed = np.c_[np.array(names)[matches[:, :2].astype(int)], matches[:, 2]]
    flipped = np.c_[matches[:, [1, 0]], 1 - matches[:, 2]]
    rows = list(range(len(matches)))
    random.shuffle(rows)
    for system, order_matters in (
        (quiet, False),
        (ranking.win_rate_ranking, False),
        (lambda m, k: ranking.elo(m, k, intervals="none"), True),
        (lambda m, k: ranking.trueskill(m, k, draw_probability=0.1), True),
    ):
        before = system(matches, n)
        for field in ("scores", "lower", "upper"):
            expected = getattr(before, field)
            np.testing.assert_allclose(getattr(system(renamed, n), field)[names], expected, atol=1e-7)
            np.testing.assert_allclose(getattr(system(flipped, n), field), expected, atol=1e-7)
            if not order_matters:
                np.testing.assert_allclose(getattr(system(matches[rows], n), field), expected, atol=1e-7)


@given(tables())
def test_swapped_outcomes_turn_the_ranking_over(table):
    matches, n = table
    swapped = np.c_[matches[:, :2], 1 - matches[:, 2]]
    np.testing.assert_allclose(quiet(swapped, n).scores, -quiet(matches, n).scores, atol=1e-6)
    elo = ranking.elo(matches, n, intervals="none").scores
    np.testing.assert_allclose(ranking.elo(swapped, n, intervals="none").scores, 2000 - elo, atol=1e-8)


@given(tables(), st.floats(1, 400), st.integers(1, 3))
def test_elo_conserves_the_sum(table, k, passes):
    matches, n = table
    assert ranking.elo(matches, n, k=k, passes=passes, intervals="none").scores.sum() == pytest.approx(1000 * n)


def test_likelihood_depends_on_differences_only():
    margin, outcome = np.array([0.3, -2.0, 1.0]), np.array([1.0, 0.0, 0.5])
    cells = inside.Cells(np.array([0, 0, 1]), np.array([1, 2, 2]), outcome, np.ones(3), 3, False)
    np.testing.assert_allclose(cells.margins(np.array([5.3, 5.0, 7.3])), cells.margins(np.array([0.3, 0.0, 2.3])))
    for ties in ("half", "rao_kupper", "davidson"):  # three outcomes exhaust the probability
        total = sum(np.exp(-inside.likelihood(ties, margin, np.full(3, y), 0.7).loss) for y in (0.0, 0.5, 1.0))
        if ties != "half":
            np.testing.assert_allclose(total, 1)


@pytest.mark.parametrize("ties", ["half", "rao_kupper", "davidson"])
@pytest.mark.parametrize("y", [0.0, 0.5, 1.0])
def test_derivatives_by_finite_differences(ties, y):
    outcome = np.array([y])

    def at(x):
        return inside.likelihood(ties, x[:1], outcome, x[1])

    for x in ([0.4, 0.8], [-3.0, 0.2], [2.0, 1.5]):
        assert check_grad(lambda x: at(x).loss[0], lambda x: np.r_[at(x).d, at(x).t], x) < 1e-6
        assert check_grad(lambda x: at(x).d[0], lambda x: np.r_[at(x).dd, at(x).dt], x) < 1e-6
        assert check_grad(lambda x: at(x).t[0], lambda x: np.r_[at(x).dt, at(x).tt], x) < 1e-5
    extreme = inside.likelihood(ties, np.array([-500.0, 500.0]), np.array([y, y]), 0.5)
    assert all(np.isfinite(part).all() for part in extreme)


@pytest.mark.parametrize(("n", "games", "alpha"), [(5, 60, 0.01), (20, 400, 0.1), (40, 200, 0.01)])
def test_agrees_with_choix(n, games, alpha):
    matches, _ = simulate(n, games)
    pairs = [(int(i), int(j)) if y else (int(j), int(i)) for i, j, y in matches]
    oracle = choix.opt_pairwise(n, pairs, alpha=alpha, method="BFGS", tol=1e-9)
    np.testing.assert_allclose(quiet(matches, n, l2=alpha).scores, oracle - oracle.mean(), atol=1e-5)


@pytest.mark.parametrize("ties", ["half", "rao_kupper", "davidson"])
@pytest.mark.parametrize("position", [False, True])
def test_conjugate_gradients_agree_with_cholesky(monkeypatch, ties, position):
    matches, _ = simulate(30, 600, ties=0.2)
    dense = ranking.bradley_terry(matches, 30, ties=ties, position=position)
    monkeypatch.setattr(inside, "DENSE_NEWTON", 1)
    sparse = ranking.bradley_terry(matches, 30, ties=ties, position=position)
    np.testing.assert_allclose(sparse.scores, dense.scores, atol=1e-8)
    assert sparse.position == pytest.approx(dense.position, abs=1e-8)
    assert sparse.tie == pytest.approx(dense.tie, abs=1e-8)


def test_intercept_and_ties_against_a_general_optimiser():
    matches, _ = simulate(6, 300, ties=0.3, position=0.5)
    left, right, y = matches[:, 0].astype(int), matches[:, 1].astype(int), matches[:, 2]
    for ties in ("half", "rao_kupper", "davidson"):
        ours = ranking.bradley_terry(matches, 6, ties=ties, position=True)
        assert ours.position is not None

        def objective(x, ties=ties):
            local = inside.likelihood(ties, x[left] - x[right] + x[6], y, x[7] if ties != "half" else 0.0)
            return local.loss.sum() + 0.01 * x[:6] @ x[:6]

        best = minimize(objective, np.r_[ours.scores, 0.0, 0.5], method="BFGS", options={"gtol": 1e-6}).x
        np.testing.assert_allclose(ours.scores, best[:6], atol=1e-4)
        assert ours.position == pytest.approx(best[6], abs=1e-4)
        if ties != "half":
            assert ours.tie == pytest.approx(best[7], abs=1e-4)


def test_position_bias_is_recovered():
    matches, strength = simulate(40, 8000, position=0.43)
    plain, fitted = ranking.bradley_terry(matches, 40), ranking.bradley_terry(matches, 40, position=True)
    assert plain.position is None
    assert fitted.position == pytest.approx(0.43, abs=0.1)
    assert np.corrcoef(fitted.scores, strength)[0, 1] > 0.98


def sandwich_by_hand(matches, n, l2, clusters):
    """H^-1 M H^-1 with one row of scores per match, the textbook way."""
    fit = ranking.bradley_terry(matches, n, l2=l2, intervals="none")
    design = np.zeros((len(matches), n))
    rows = np.arange(len(matches))
    design[rows, matches[:, 0].astype(int)], design[rows, matches[:, 1].astype(int)] = 1, -1
    p = expit(design @ fit.scores)
    scores = design * (p - matches[:, 2])[:, None]
    scores = np.array([scores[clusters == label].sum(0) for label in np.unique(clusters)])
    bread = np.linalg.inv(design.T @ (design * (p * (1 - p))[:, None]) + 2 * l2 * np.eye(n))
    return np.sqrt(np.diag(bread @ scores.T @ scores @ bread))


def test_sandwich_and_clusters_against_the_textbook():
    matches, _ = simulate(8, 200, ties=0.1)
    for clusters in (np.arange(200), np.arange(200) // 5):
        ours = ranking.bradley_terry(matches, 8, l2=0.1, clusters=clusters)
        expected = 1.959963984540054 * sandwich_by_hand(matches, 8, 0.1, clusters)
        np.testing.assert_allclose(ours.upper - ours.scores, expected, rtol=1e-6)
    plain = ranking.bradley_terry(matches, 8, l2=0.1)
    apart = ranking.bradley_terry(matches, 8, l2=0.1, clusters=np.arange(200))
    np.testing.assert_allclose(plain.upper, apart.upper, rtol=1e-9)


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
def test_sandwich_of_tie_models_is_the_same_with_one_match_a_cluster(ties):
    matches, _ = simulate(8, 300, ties=0.2)
    plain = ranking.bradley_terry(matches, 8, ties=ties, position=True)
    apart = ranking.bradley_terry(matches, 8, ties=ties, position=True, clusters=np.arange(300))
    np.testing.assert_allclose(plain.upper, apart.upper, rtol=1e-9)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    """95 % intervals hold the planted differences in 95 % of 200 worlds (binomial band 0.93 to 0.97 over 2,000)."""
    inside_interval = []
    for seed in range(200):
        matches, strength = simulate(10, 1500, seed=seed)
        fit = ranking.bradley_terry(matches, 10, l2=1e-6)
        truth = strength - strength.mean()
        inside_interval += list((fit.lower < truth) & (truth < fit.upper))
    assert 0.93 < np.mean(inside_interval) < 0.97


def test_bootstrap_agrees_with_the_sandwich_and_repeats():
    matches, _ = simulate(8, 800)
    clusters = np.arange(800) // 4
    robust = ranking.bradley_terry(matches, 8, clusters=clusters)
    boot = ranking.bradley_terry(matches, 8, clusters=clusters, intervals="bootstrap", rounds=400, seed=3)
    np.testing.assert_allclose(boot.upper - boot.lower, robust.upper - robust.lower, rtol=0.2)
    again = ranking.bradley_terry(matches, 8, clusters=clusters, intervals="bootstrap", rounds=400, seed=3)
    np.testing.assert_array_equal(boot.lower, again.lower)
    assert boot.interval == "95 % bootstrap, 200 clusters"


def test_copied_matches_do_not_shorten_clustered_intervals():
    matches, _ = simulate(6, 200)
    once = ranking.bradley_terry(matches, 6, l2=1e-6)
    copied = ranking.bradley_terry(np.tile(matches, (4, 1)), 6, l2=4e-6, clusters=np.tile(np.arange(200), 4))
    np.testing.assert_allclose(copied.upper, once.upper, rtol=1e-6)


def test_paper_mode_stops_and_says_so():
    matches, _ = simulate(30, 300)
    with pytest.warns(UserWarning, match="stopped after 2 Newton steps with a gradient of .* raise max_iter=2"):
        ranking.bradley_terry(matches, 30, max_iter=2)


def test_disconnected_graph_is_named():
    with pytest.warns(UserWarning, match=r"3 components that never meet, \{0, 1\}, \{2, 3\}, \{4\}"):
        fit = ranking.bradley_terry([[0, 1, 1], [2, 3, 1]], 5)
    assert fit.n_matches[4] == 0
    assert fit.scores[4] == pytest.approx(0, abs=1e-12)
    assert np.isnan(fit.lower[4])
    assert np.isnan(ranking.elo([[0, 1, 1]], 3).upper[2])


def test_when_maximum_likelihood_does_not_exist():
    with pytest.raises(ValueError, match=r"maximum likelihood does not exist: of the 2 groups .*Set l2 > 0"):
        ranking.bradley_terry([[0, 1, 1], [0, 1, 1]], 2, l2=0)
    ranking.bradley_terry([[0, 1, 1], [0, 1, 0.5]], 2, l2=0)
    # Two ties hold 0 and 2 together while 0 beats 2: strengths and tie parameter would grow without end.
    loose = [[0, 2, 1], [0, 1, 0.5], [1, 2, 0.5]]
    with pytest.raises(ValueError, match="ties are too many to bound the tie parameter"):
        ranking.bradley_terry(loose, 3, l2=0, ties="davidson")
    for ties in ("rao_kupper", "davidson"):
        held = ranking.bradley_terry([*loose, [2, 0, 1]], 3, l2=0, ties=ties)
        assert held.details["gradient"] <= 1e-8
        assert np.abs(ranking.bradley_terry(loose, 3, ties=ties).scores).max() < 20


@pytest.mark.parametrize("ties", ["rao_kupper", "davidson"])
@settings(max_examples=60)
@given(tables())
def test_existence_rule_of_tie_models_matches_the_optimiser(ties, table):
    """Where the rule finds an estimate Newton converges to it; where it finds none the penalised one runs away."""
    matches, n = table
    assume(0.5 in matches[:, 2])
    assume(set(matches[:, 2]) - {0.5})
    links = coo_array((np.ones(len(matches)), matches[:, :2].T.astype(int)), shape=(n, n))
    assume(connected_components(links, directed=False)[0] == 1)
    try:
        fit = quiet(matches, n, l2=0, ties=ties)
    except ValueError:
        weak, weaker = (quiet(matches, n, l2=l2, ties=ties) for l2 in (1e-4, 1e-7))
        assert np.abs([*weaker.scores, weaker.tie]).max() > np.abs([*weak.scores, weak.tie]).max() + 0.5
    else:
        assert fit.details["gradient"] <= 1e-8
        assert np.abs(fit.scores).max() < 30


@pytest.mark.parametrize(
    ("matches", "n", "message"),
    [
        ([[0, 1, 1], [1, 1, 0]], 3, "matches row 1: self match"),
        (
            [[0, 1, 1], [0, 3, 0]],
            3,
            "matches row 1: unknown player on the right side; players are whole numbers 0 to 2",
        ),
        ([[0.5, 1, 1]], 3, "matches row 0: unknown player on the left side.* got 0.5"),
        ([[np.nan, 1, 1]], 3, "matches row 0: unknown player on the left side.* got nan"),
        (
            [[0, 1, 1], [0, 1, 0.7], [0, 1, 2]],
            3,
            r"matches row 1: outcome must be 0, 0.5 or 1.* got 0.7 \(2 such rows\)",
        ),
        ([[0, 1, np.nan]], 3, "matches row 0: outcome must be 0, 0.5 or 1.* got nan"),
        ([[0, 1]], 3, r"matches must have shape \[n, 3\].* got \[1, 2\]"),
        ([], 3, "no matches"),
        ([[0, 1, 1]], 1, "at least 2 players; got n_players=1"),
    ],
)
def test_bad_matches_are_named(matches, n, message):
    for system in ("bradley_terry", "elo", "trueskill", "win_rate_ranking", "transitivity"):
        with pytest.raises(ValueError, match=message):
            getattr(ranking, system)(matches, n)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ties": "x"}, "ties must be 'half', 'rao_kupper' or 'davidson'; got 'x'"),
        ({"intervals": "x"}, "intervals must be 'sandwich', 'bootstrap' or 'none'; got 'x'"),
        ({"l2": -1}, "l2 must be 0 or more"),
        ({"confidence": 1}, r"confidence inside \(0, 1\)"),
        ({"l2": 0, "position": True}, "position=True needs l2 > 0"),
        ({"l2": 0, "intervals": "bootstrap"}, "bootstrap rounds can lack the wins or ties"),
        ({"clusters": [1, 2, 3]}, r"one label per match, shape \[2\]; got \[3\]"),
        ({"ties": "davidson"}, "needs at least one tie and one decided match; set ties='half'"),
        ({"position": True}, "a match that the other side won"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ranking.bradley_terry([[0, 1, 1], [1, 0, 1]], 2, **options)


def test_other_systems_name_bad_options():
    with pytest.raises(ValueError, match=r"elo needs k > 0.* got k=0"):
        ranking.elo([[0, 1, 1]], 2, k=0)
    with pytest.raises(ValueError, match=r"draw_probability in \[0, 1\); got .*draw_probability=1"):
        ranking.trueskill([[0, 1, 1]], 2, draw_probability=1)


def test_elo_interval_holds_the_spread_over_shuffles():
    matches, _ = simulate(10, 400)
    rng = np.random.default_rng(1)
    fit = ranking.elo(matches, 10, rounds=300)
    shuffled = np.array([ranking.elo(rng.permutation(matches), 10, intervals="none").scores for _ in range(50)])
    assert np.mean((fit.lower < shuffled) & (shuffled < fit.upper)) > 0.9
    assert np.isnan(ranking.elo(matches, 10, intervals="none").lower).all()


def test_elo_bootstrap_rounds_are_elo():
    """With one match every resample is the listed order, so the interval closes on the score."""
    for passes in (1, 3):
        fit = ranking.elo([[0, 1, 1]], 2, passes=passes, base=np.e, scale=173.7)
        np.testing.assert_allclose(fit.lower, fit.scores)
        np.testing.assert_allclose(fit.upper, fit.scores)


@given(st.floats(-60, 60), st.floats(0.5, 8), st.floats(0.5, 8), st.sampled_from([0.0, 0.1, 0.6]), st.booleans())
def test_trueskill_update_is_the_posterior(gap, sigma_i, sigma_j, margin, tie):
    """Against the moments of the Gaussian cut to the observed outcome, by quadrature over the performance gap."""
    beta, margin = 25 / 6, margin * 25 / 6
    (mean, variance), _ = ranking._trueskill_update(gap, sigma_i**2, 0.0, sigma_j**2, beta, margin, tie)
    c = np.sqrt(2 * beta**2 + sigma_i**2 + sigma_j**2)
    low, high = (-margin, margin) if tie else (margin, max(margin, gap) + 12 * c)
    points = np.array([0.0]) if low == high else np.linspace(low, high, 200_001)
    weight = np.exp(-0.5 * ((points - gap) / c) ** 2 + 0.5 * (np.clip(gap, low, high) - gap) ** 2 / c**2)
    weight[[0, -1]] /= 1 if low == high else 2
    first = weight @ points / weight.sum()
    spread = weight @ (points - first) ** 2 / weight.sum()
    slope = sigma_i**2 / c**2
    assert mean == pytest.approx(gap + slope * (first - gap), abs=1e-4)
    assert variance == pytest.approx(sigma_i**2 - slope**2 * (c**2 - spread), abs=1e-4)


def test_trueskill_far_tails_stay_finite():
    for gap in (-500.0, 500.0):
        for tie in (False, True):
            for margin in (0.0, 1.0):
                (mean, variance), _ = ranking._trueskill_update(gap, 1.0, 0.0, 1.0, 1.0, margin, tie)
                assert np.isfinite(mean)
                assert 0 < variance <= 1


def test_win_rate_ranking():
    fit = ranking.win_rate_ranking([[0, 1, 1], [0, 1, 0.5], [1, 0, 1], [0, 1, 1]], 3)
    np.testing.assert_allclose(fit.scores, [2.5 / 4, 1.5 / 4, np.nan])
    assert fit.order().tolist() == [0, 1, 2]
    half = np.sqrt(0.25 / 4)  # Wilson at rate 1/2 keeps the centre and divides the width by sqrt(1 + z^2/n)
    even = ranking.win_rate_ranking([[0, 1, 0.5]] * 4, 2)
    z = 1.959963984540054
    np.testing.assert_allclose(even.upper - 0.5, z * half / np.sqrt(1 + z**2 / 4))


def test_transitivity_counts_triples():
    cycle, chain = [[0, 1, 1], [1, 2, 1], [2, 0, 1]], [[0, 1, 1], [1, 2, 1], [0, 2, 1]]
    assert ranking.transitivity(cycle, 3) == 0
    assert ranking.transitivity(chain, 3) == 1
    assert np.isnan(ranking.transitivity(chain[:2], 3))
    assert np.isnan(ranking.transitivity([*chain, [2, 0, 1]], 3))  # the pair 0, 2 has no majority
    rng = np.random.default_rng(0)
    left, right = np.triu_indices(12, 1)
    outcome = rng.integers(0, 2, len(left))
    beats = np.zeros((12, 12), int)
    beats[left, right], beats[right, left] = outcome, 1 - outcome
    triples = [(i, j, k) for i in range(12) for j in range(i) for k in range(j)]
    cycles = sum(beats[i, j] == beats[j, k] == beats[k, i] for i, j, k in triples)
    ours = ranking.transitivity(np.stack([left, right, outcome], axis=1), 12)
    assert ours == pytest.approx(1 - cycles / len(triples))


def test_frame_rank_and_display():
    matches, _ = simulate(5, 200)
    for fit in (
        ranking.bradley_terry(matches, 5),
        ranking.elo(matches, 5),
        ranking.trueskill(matches, 5),
        ranking.win_rate_ranking(matches, 5),
    ):
        frame = fit.frame(list("abcde"))
        assert frame["score"].is_monotonic_decreasing
        assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
        assert [frame["player"][0]] == ["abcde"[fit.order()[0]]]
        assert frame["n_matches"].sum() == 400
        assert frame["display"].between(0, 1).all()
        if fit.method != "trueskill":  # its sigmas differ, so its display need not keep the order
            assert frame["display"].is_monotonic_decreasing
        assert ("sigma" in frame) == (fit.method == "trueskill")
    with pytest.raises(ValueError, match="names needs one entry per player, 5; got 2"):
        fit.frame(["a", "b"])
    tied = ranking.win_rate_ranking([[0, 1, 0.5], [2, 3, 1]], 4)
    assert tied.rank.tolist() == [2, 2, 1, 4]
    assert tied.order().tolist() == [2, 0, 1, 3]
    nearly = ranking.Ratings("win_rate", np.array([0.3, 0.1 + 0.2]), np.zeros(2), np.ones(2), np.ones(2, int))
    assert nearly.rank.tolist() == [1, 1]  # rounding is no rank
    assert nearly.order().tolist() == [0, 1]


def test_display_scales_by_hand():
    one = [[0, 1, 1]]
    elo = ranking.elo(one, 2, intervals="none")
    np.testing.assert_allclose(elo.display()[0], 1 / (1 + 10 ** (-16 / 400)))
    theta = ranking.bradley_terry(one, 2)
    np.testing.assert_allclose(theta.display(), expit(theta.scores))
    skill = ranking.trueskill(one, 2)
    assert skill.display()[0] == pytest.approx(1 - skill.display()[1])
    assert 0.5 < skill.display()[0] < 1


@pytest.mark.slow
def test_many_matches_are_exact():
    matches, strength = simulate(2_000, 200_000)
    fit = ranking.bradley_terry(matches, 2_000, intervals="none")
    assert fit.details["gradient"] <= 1e-8
    assert np.corrcoef(fit.scores, strength)[0, 1] > 0.98


def test_sandwich_refuses_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(inside, "DENSE_SANDWICH", 3)
    with pytest.raises(ValueError, match=r"at most 3 players; got 4\. Set intervals='bootstrap' or 'none'"):
        ranking.bradley_terry([[0, 1, 1], [1, 2, 1], [2, 3, 1]], 4)
