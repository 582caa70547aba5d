"""SimPO and ORPO against TRL's own functions, by hand, and at their edges."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.objectives import logo, orpo, simpo

cpo = pytest.importorskip("trl.experimental.cpo")
their_orpo = pytest.importorskip("trl.experimental.orpo")
means = st.lists(st.floats(-20, -1e-3), min_size=2, max_size=6)


def two(chosen, rejected):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (chosen, rejected)]


@given(means, st.floats(0.1, 5), st.floats(0, 3))
def test_simpo_is_trls(values, beta, gamma):
    given = {"alpha": 0.0, "loss_type": "simpo", "simpo_gamma": gamma, "beta": beta, "label_smoothing": 0.0}
    given |= {"accelerator": SimpleNamespace(device="cpu")}
    trainer = SimpleNamespace(**given)
    chosen, rejected = two(values, values[::-1])
    theirs, *rewards = cpo.CPOTrainer.cpo_loss(trainer, chosen, rejected)
    ours, logged = simpo(chosen, rejected, beta=beta, gamma=gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(logged["chosen_rewards"], rewards[0])
    gradients = [torch.autograd.grad(loss.sum(), [chosen, rejected]) for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)


@given(means, st.floats(0.01, 2))
def test_orpo_is_trls_odds_ratio_behind_the_likelihood(values, weight):
    """TRL computes in float32, so the comparison is as exact as that."""
    trainer = SimpleNamespace(beta=weight, accelerator=SimpleNamespace(device="cpu"))
    chosen, rejected = two(values, values[::-1])
    theirs = their_orpo.ORPOTrainer.odds_ratio_loss(trainer, chosen, rejected)[0]
    ours, _ = orpo(chosen, rejected, weight=weight)
    torch.testing.assert_close(ours, -chosen - theirs.double(), rtol=1e-4, atol=1e-4)


def test_hand_worked():
    """w = log 1/2, l = log 1/4: odds 1 and 1/3, so the odds ratio is 3 and sigma(log 3) = 3/4."""
    chosen, rejected = two([math.log(0.5)], [math.log(0.25)])
    assert orpo(chosen, rejected, weight=2.0)[0].item() == pytest.approx(math.log(2) - 2 * math.log(0.75))
    assert simpo(chosen, rejected, beta=1.0, gamma=math.log(2))[0].item() == pytest.approx(math.log(2))


def test_a_certain_response_has_a_finite_loss():
    chosen, rejected = two([0.0, 0.0], [0.0, -600.0])
    losses, logged = orpo(chosen, rejected)
    losses.sum().backward()
    for values in (losses, chosen.grad, logged["margins"]):
        assert values.isfinite().all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: simpo(a, b, beta=0.0), "beta > 0"),
        (lambda a, b: simpo(a, b, gamma=-1.0), "gamma >= 0"),
        (lambda a, b: orpo(a, b, weight=0.0), "weight > 0"),
    ],
)
def test_out_of_range(call, message):
    with pytest.raises(ValueError, match=message):
        call(*two([-1.0], [-2.0]))


# ---------------------------------------------------------------------------------------------------------------- LOGO
def test_logo_hand_worked():
    """w = -1, l = -2 and -4: mean -3, x = 2 - 0.5 = 1.5, beta 2: log(1 + e^-3), and lambda 0.1 adds 0.1."""
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([[-2.0, -4.0]])
    options = {"beta": 2.0, "gamma_beta_ratio": 0.5}
    losses, logged = logo(chosen, rejected, **options, sft_weight=0.1)
    assert losses.item() == pytest.approx(math.log1p(math.exp(-3)) + 0.1)
    assert logged["margins"].item() == pytest.approx(4.0)
    assert logo(chosen, rejected, **options, loss_type="hinge", sft_weight=0.0)[0].item() == 0.0
    assert logo(chosen, -rejected, **options, loss_type="hinge", sft_weight=0.0)[0].item() == pytest.approx(1 + 2 * 4.5)
    assert logo(chosen, rejected, **options, chosen_token_nll=torch.tensor([3.0]))[0].item() == pytest.approx(
        math.log1p(math.exp(-3)) + 0.3
    )


@given(means, st.floats(0.1, 5), st.floats(0, 1))
def test_logo_with_one_rejected_answer_is_simpo(values, beta, ratio):
    chosen, rejected = two(values, values[::-1])
    ours, logged = logo(chosen, rejected[:, None], beta=beta, gamma_beta_ratio=ratio, sft_weight=0.0)
    theirs, rewards = simpo(chosen, rejected, beta=beta, gamma=beta * ratio)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logged, rewards)


def test_logo_mask_leaves_out_what_is_not_there():
    """What stands under the mask, NaN too, changes neither losses nor gradients."""
    chosen = torch.tensor([-1.0, -1.0], requires_grad=True)
    rejected = torch.tensor([[-2.0, -4.0], [-2.0, math.nan]], requires_grad=True)
    losses, _ = logo(chosen, rejected, is_rejected=torch.tensor([[True, True], [True, False]]), sft_weight=0.0)
    losses.sum().backward()
    assert losses[1].item() == pytest.approx(
        logo(torch.tensor([-1.0]), torch.tensor([[-2.0]]), sft_weight=0.0)[0].item()
    )
    assert rejected.grad[1, 1] == 0
    assert rejected.grad.isfinite().all()


@pytest.mark.parametrize("gap", [-500.0, 500.0])
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge"])
def test_logo_extremes_stay_finite(gap, loss_type):
    chosen, rejected = two([gap], [-gap])
    losses, logged = logo(chosen, rejected[:, None], loss_type=loss_type)
    losses.sum().backward()
    assert all(v.isfinite().all() for v in (losses, chosen.grad, rejected.grad))
    assert not any(v.requires_grad for v in logged.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "logo needs beta > 0"),
        ({"gamma_beta_ratio": -0.1}, "gamma_beta_ratio >= 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing in \[0, 0.5\)"),
        ({"loss_type": "ipo"}, "unknown loss_type 'ipo'; known: sigmoid, hinge"),
        ({"is_rejected": torch.tensor([[False]])}, "pair 0 has no rejected response"),
    ],
)
def test_logo_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        logo(torch.tensor([-1.0]), torch.tensor([[-2.0]]), **options)
