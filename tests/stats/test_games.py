"""Games by hand: rock, paper, scissors, the exact update, and what self-play does to last and averaged policy."""

import numpy as np
import pytest

from workbench.stats import games

ROCK_PAPER_SCISSORS = 0.5 + 0.35 * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])


def any_judge(n, seed):
    """A random preference over n responses, far from transitive."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(0, 1, (n, n)), 1)
    return upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(n)


def test_rock_paper_scissors_by_hand():
    rock = np.array([1.0, 0, 0])
    np.testing.assert_allclose(games.against(rock, ROCK_PAPER_SCISSORS), [0.5, 0.85, 0.15])
    assert games.exploitability(rock, ROCK_PAPER_SCISSORS) == pytest.approx(0.35)
    assert games.exploitability(np.ones(3) / 3, ROCK_PAPER_SCISSORS) == pytest.approx(0)
    assert games.win_rate(np.array([0, 1.0, 0]), rock, ROCK_PAPER_SCISSORS) == pytest.approx(0.85)


def test_exact_step_is_the_stated_formula():
    rng = np.random.default_rng(0)
    policy, judge = rng.dirichlet(np.ones(7)), any_judge(7, 1)
    weights = policy * np.exp(3.0 * games.against(policy, judge))
    np.testing.assert_allclose(games.exact_step(policy, judge, 3.0), weights / weights.sum(), atol=1e-12)
    assert np.isfinite(games.exact_step(policy, judge, 1000.0)).all()


def test_the_average_converges_while_the_last_policy_circles():
    """400 steps with eta 0.1 from a skewed start: average within 0.02 of uniform, last never comes to rest."""
    policy, seen = np.array([0.4, 0.35, 0.25]), []
    for _ in range(400):
        policy = games.exact_step(policy, ROCK_PAPER_SCISSORS, 0.1)
        seen.append(policy)
    assert np.abs(np.mean(seen, axis=0) - 1 / 3).max() < 0.02
    assert np.abs(seen[-1] - 1 / 3).max() > np.abs(seen[0] - 1 / 3).max()
    assert {int(policy.argmax()) for policy in seen} == {0, 1, 2}


@pytest.mark.parametrize("rounds", [25, 100, 400, 1600])
def test_the_gap_of_the_average_is_of_order_one_over_root_t(rounds):
    """Theorem 4.1 with eta = 1/sqrt(T): exponential weights promise (log 1/min p_1 + 1/8) / sqrt(T)."""
    policy, total = np.array([0.8, 0.15, 0.05]), np.zeros(3)
    for _ in range(rounds):
        total += policy
        policy = games.exact_step(policy, ROCK_PAPER_SCISSORS, 1 / np.sqrt(rounds))
    assert games.exploitability(total / rounds, ROCK_PAPER_SCISSORS) < (np.log(1 / 0.05) + 1 / 8) / np.sqrt(rounds)


@pytest.mark.parametrize("eta", [0.1, 0.5, 2.0])
def test_the_monotone_inequality_for_100_judges(eta):
    """P(pi_{t+1} beats pi_t) >= 1/2 + eta KL(pi_{t+1} || pi_t) with DNO's eta, the inverse of ours."""
    rng = np.random.default_rng(4)
    for seed in range(100):
        policy, judge = rng.dirichlet(np.ones(6)), any_judge(6, seed)
        after = games.exact_step(policy, judge, 1 / eta)
        assert games.win_rate(after, policy, judge) >= 0.5 + eta * games.divergence(after, policy) - 1e-12


def test_divergence_by_hand():
    assert games.divergence(np.array([0.5, 0.5]), np.array([0.25, 0.75])) == pytest.approx(
        0.5 * np.log(2) + 0.5 * np.log(2 / 3)
    )
    assert games.divergence(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(np.log(2))
