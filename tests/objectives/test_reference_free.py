"""SimPO and ORPO against TRL's own functions, by hand, and at their edges."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.objectives import orpo, simpo

cpo = pytest.importorskip("trl.experimental.cpo")
their_orpo = pytest.importorskip("trl.experimental.orpo")
means = st.lists(st.floats(-20, -1e-3), min_size=2, max_size=6)


def two(chosen, rejected):
    return [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (chosen, rejected)]


@given(means, st.floats(0.1, 5), st.floats(0, 3))
def test_simpo_is_trls(values, beta, gamma):
    trainer = SimpleNamespace(alpha=0.0, loss_type="simpo", simpo_gamma=gamma, beta=beta, label_smoothing=0.0,
                              accelerator=SimpleNamespace(device="cpu"))  # fmt: skip
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
