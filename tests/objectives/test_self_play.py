"""SPPO and soft DNO by hand: targets, gradients, closed form at the start, exact minimisers, errors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.objectives import dno, dpo, sppo
from workbench.stats import games

RATES = {"chosen_probs_win": 0.74, "chosen_probs_lose": 0.21, "chosen_probs": 0.92}


def pair(chosen, rejected, reference_chosen=0.0, reference_rejected=0.0, dtype=torch.float64):
    return [
        torch.tensor([float(v)], dtype=dtype, requires_grad=True)
        for v in (chosen, rejected, reference_chosen, reference_rejected)
    ]


def told(dtype=torch.float64, **values):
    return {name: torch.tensor([float(value)], dtype=dtype) for name, value in values.items()}


def test_hand_worked_sppo():
    """eta = 4, a = 1, b = -1: targets 0.96 and -1.16, loss (0.04^2 + 0.16^2) / 2."""
    losses, logged = sppo(*pair(-4, -7, -5, -6), **told(**RATES), beta=0.25)
    assert losses.item() == pytest.approx((0.04**2 + 0.16**2) / 2)
    assert (logged["chosen_rewards"].item(), logged["rejected_rewards"].item()) == (0.25, -0.25)


def test_hand_worked_single():
    """The same with targets +-4 (0.92 - 0.5)."""
    losses, _ = sppo(*pair(-4, -7, -5, -6), **told(**RATES), beta=0.25, loss_type="sppo_single")
    assert losses.item() == pytest.approx(((1 - 1.68) ** 2 + (-1 + 1.68) ** 2) / 2)


def test_first_loss_of_the_paper_is_sixty_thousand():
    """eta = 1000, both win rates 1/4 away from 1/2, no update yet: eta^2/2 (1/16 + 1/16) = 62,500."""
    values = told(chosen_probs_win=0.75, chosen_probs_lose=0.25)
    assert sppo(*pair(-9, -9, -9, -9), **values, beta=0.001)[0].item() == pytest.approx(62_500)


def test_gradient_is_the_distance_to_the_target():
    values = pair(2, -1, 0.5, 0.25)
    sppo(*values, **told(**RATES), beta=0.5)[0].sum().backward()
    assert values[0].grad.item() == pytest.approx(1.5 - 2 * 0.24)
    assert values[1].grad.item() == pytest.approx(-1.25 + 2 * 0.29)


def test_certain_single_is_half_of_hard():
    """P = 1 gives targets +-eta/2; the hard loss of TRL has no factor 1/2."""
    single = sppo(
        *pair(3, -2, 1, 1),
        **told(chosen_probs_win=1, chosen_probs_lose=0, chosen_probs=1),
        beta=0.2,
        loss_type="sppo_single",
    )
    assert 2 * single[0].item() == pytest.approx(dpo(*pair(3, -2, 1, 1), beta=0.2, loss_type="sppo_hard")[0].item())


def test_a_winner_and_a_loser_have_targets_of_their_own():
    """Read 1 - p_win for p_lose, or leave out the 1/2, and the loss is another."""
    right = sppo(*pair(0.5, -0.5), **told(**RATES), beta=0.25)[0].item()
    complement = sppo(*pair(0.5, -0.5), **told(chosen_probs_win=0.74, chosen_probs_lose=0.26), beta=0.25)[0].item()
    no_shift = sppo(*pair(0.5, -0.5), **told(chosen_probs_win=1.24, chosen_probs_lose=0.71), beta=0.25)[0].item()
    assert abs(right - complement) > 0.01
    assert abs(right - no_shift) > 1


def test_soft_dno_with_a_certain_judge_is_dpo():
    """z = 1: reward_scale so large that the target is certain."""
    soft = dno(*pair(-3, -5, -4, -4), **told(first_win_rate=1, second_win_rate=0), eta=0.3, reward_scale=100.0)
    assert soft[0].item() == pytest.approx(dpo(*pair(-3, -5, -4, -4), beta=0.3)[0].item())
    assert soft[1]["target"].item() == pytest.approx(1)


def test_equal_win_rates_are_fitted_best_by_no_change():
    rates = told(first_win_rate=0.4, second_win_rate=0.4)
    values = pair(0, 0)
    losses, logged = dno(*values, **rates)
    losses.sum().backward()
    assert losses.item() == pytest.approx(math.log(2))
    assert values[0].grad.item() == 0
    assert dno(*pair(1, 0), **rates)[0].item() > losses.item()
    assert logged["accuracies"].item() == 0


@given(gap=st.floats(-1, 1), c=st.sampled_from([0.5, 1.0, 4.0]), eta=st.sampled_from([0.1, 1.0]))
def test_the_minimum_is_at_the_gap_of_the_win_rates(gap, c, eta):
    """Delta = c (r1 - r2) has no gradient, and z stays within [sigma(-c), sigma(c)]."""
    values = pair(c * gap / eta, 0)
    losses, logged = dno(
        *values, **told(first_win_rate=max(gap, 0), second_win_rate=max(-gap, 0)), eta=eta, reward_scale=c
    )
    losses.sum().backward()
    assert values[0].grad.item() == pytest.approx(0, abs=1e-12)
    assert 1 / (1 + math.exp(c)) <= logged["target"].item() + 1e-12 <= 1 / (1 + math.exp(-c)) + 2e-12


def minimise(objective, policy, names, rates, max_iter=2_000, **options):
    """Free logits under the expected loss over all ordered pairs of responses, from `policy` as reference."""
    n = len(policy)
    first, second = (grid.flatten() for grid in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
    start = torch.tensor(policy).log()
    free = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [free], max_iter=max_iter, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )
    weight = torch.tensor(policy)[first] * torch.tensor(policy)[second]
    known = {names[0]: torch.tensor(rates)[first], names[1]: torch.tensor(rates)[second]}

    def closure():
        optimizer.zero_grad()
        logps = free.log_softmax(-1)
        loss = (
            weight * objective(logps[first], logps[second], start[first], start[second], **known, **options)[0]
        ).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return free.detach().softmax(-1).numpy()


DNO_RATES, SPPO_RATES = ("first_win_rate", "second_win_rate"), ("chosen_probs_win", "chosen_probs_lose")


@pytest.fixture
def game():
    rng = np.random.default_rng(5)
    upper = np.triu(rng.uniform(0, 1, (12, 12)), 1)
    return rng.dirichlet(np.full(12, 2.0)), upper + np.tril(1 - upper.T, -1) + 0.5 * np.eye(12)


@pytest.mark.parametrize(("eta", "scale"), [(0.25, 1.0), (1.0, 4.0), (0.5, 2.0)])
def test_exact_minimiser_of_soft_dno(game, eta, scale):
    """pi exp(r / eta) normalised, to 1e-4; the three settings share it, because (c r, c eta) changes nothing."""
    policy, judge = game
    found = minimise(dno, policy, DNO_RATES, games.against(policy, judge), eta=eta, reward_scale=scale)
    np.testing.assert_allclose(found, games.exact_step(policy, judge, scale / eta), atol=1e-4)
    np.testing.assert_allclose(found, games.exact_step(policy, judge, 4.0), atol=1e-4)


def test_hard_labels_are_not_soft_dno(game):
    """Sabotage: targets of 0 and 1 push the log-ratios apart without bound instead of to the exact minimiser."""
    policy, judge = game
    found = minimise(dno, policy, DNO_RATES, games.against(policy, judge), max_iter=100, eta=0.25, reward_scale=1e4)
    assert np.abs(found - games.exact_step(policy, judge, 4.0)).max() > 0.1
    assert found.max() > 0.99


def test_the_two_papers_use_inverse_etas(game):
    policy, judge = game
    found = minimise(dno, policy, DNO_RATES, games.against(policy, judge), eta=4.0)
    assert np.abs(found - games.exact_step(policy, judge, 4.0)).max() > 0.05


def test_sppo_regression_is_exact_with_the_true_normaliser(game):
    """With eta/2 replaced by the true log Z (win rates shifted so that the targets are those of a distribution)."""
    policy, judge = game
    rates, eta = games.against(policy, judge), 2.0
    log_z = math.log((policy * np.exp(eta * rates)).sum())
    found = minimise(sppo, policy, SPPO_RATES, rates - log_z / eta + 0.5, beta=1 / eta)
    np.testing.assert_allclose(found, games.exact_step(policy, judge, eta), atol=1e-4)


@pytest.mark.parametrize("gap", [-500.0, -50.0, 50.0, 500.0])
def test_extremes_stay_finite(gap):
    for losses, _ in (
        sppo(*pair(gap, -gap), **told(**RATES), beta=1.0),
        dno(*pair(gap, -gap), **told(first_win_rate=1, second_win_rate=0), eta=1.0),
    ):
        assert torch.isfinite(losses).all()


def test_bfloat16_stays_near_float64():
    exact = sppo(*pair(-98.3, -101.7, -99.1, -100.2), **told(**RATES), beta=0.25)[0].item()
    rough = sppo(*pair(-98.3, -101.7, -99.1, -100.2, dtype=torch.bfloat16), **told(torch.bfloat16, **RATES), beta=0.25)[
        0
    ].item()
    assert rough == pytest.approx(exact, abs=0.6)  # log-probs near 100 are off by 0.25 each, log-ratios are about 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sppo(*pair(0, 0), **told(**RATES), beta=0.0), "beta = 1/eta must be above 0; got 0.0"),
        (
            lambda: sppo(*pair(0, 0), **told(**RATES), loss_type="dpo"),
            "unknown loss_type 'dpo'; known: sppo, sppo_single",
        ),
        (
            lambda: sppo(*pair(0, 0), **told(chosen_probs_win=0.5, chosen_probs_lose=0.5), loss_type="sppo_single"),
            "sppo_single needs chosen_probs",
        ),
        (
            lambda: dno(*pair(0, 0), **told(first_win_rate=1, second_win_rate=0), eta=0.0),
            "eta and reward_scale must be above 0",
        ),
        (
            lambda: dno(*pair(0, 0), **told(first_win_rate=1, second_win_rate=0), reward_scale=-1.0),
            "must be above 0; got 0.1, -1.0",
        ),
        (
            lambda: dno(*pair(0, 0), **told(first_win_rate=1.5, second_win_rate=0)),
            "first_win_rate: win rates in [0, 1]",
        ),
        (
            lambda: dno(*pair(0, 0), **told(first_win_rate=1, second_win_rate=float("nan"))),
            "second_win_rate: win rates in [0, 1]",
        ),
    ],
)
def test_errors_say_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert message in str(error.value)
