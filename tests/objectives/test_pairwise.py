"""One contract for all pairwise objectives, and hand-worked numbers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.objectives import DPO_LOSSES, SPIN_LOSSES, dpo, spin

EVERY = [(dpo, name) for name in DPO_LOSSES] + [(spin, name) for name in SPIN_LOSSES]
INCREASING = [(f, name) for f, name in EVERY if name not in ("ipo", "sppo_hard", "exo_pair", "nca_pair", "apo_down")]


def pair(chosen, rejected, reference_chosen=0.0, reference_rejected=0.0, dtype=torch.float64):
    return [
        torch.tensor([float(v)], dtype=dtype, requires_grad=True)
        for v in (chosen, rejected, reference_chosen, reference_rejected)
    ]


def test_hand_worked_sigmoid():
    """beta = 0.1, margins 0 and 10: losses ln 2 and ln(1 + 1/e)."""
    losses, logged = dpo(*(torch.tensor(v) for v in ([-5.0, 2.0], [-5.0, -8.0], [0.0, 0.0], [0.0, 0.0])), beta=0.1)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(1 + math.exp(-1))], abs=1e-6)
    assert logged["margins"].tolist() == pytest.approx([0.0, 1.0])
    assert logged["accuracies"].tolist() == [0.0, 1.0]  # equal rewards are not right


def test_hand_worked_hinge_and_ipo():
    """beta = 0.5, margin 1: hinge 1 - 0.5 = 0.5; ipo (1 - 1)^2 = 0."""
    values = pair(1, 0)
    assert dpo(*values, beta=0.5, loss_type="hinge")[0].item() == pytest.approx(0.5)
    assert dpo(*values, beta=0.5, loss_type="ipo")[0].item() == pytest.approx(0.0)


@pytest.mark.parametrize("loss_type", SPIN_LOSSES)
def test_spin_starts_at_ell_of_zero(loss_type):
    """Policy = reference: log 2 for the logistic loss, 1 for hinge and exponential."""
    losses, logged = spin(*pair(-7, -9, -7, -9), beta=0.3, loss_type=loss_type)
    assert losses.item() == pytest.approx(math.log(2) if loss_type == "sigmoid" else 1.0)
    assert logged["accuracies"].item() == 0.0


def test_spin_gradient_of_one_pair():
    """d loss / d log p(y) = -lambda sigma(-u), and the opposite for y'."""
    values = pair(2, -1, 0.5, 0.25)
    spin(*values, beta=0.7)[0].sum().backward()
    slope = 0.7 / (1 + math.exp(0.7 * (1.5 + 1.25)))
    assert values[0].grad.item() == pytest.approx(-slope)
    assert values[1].grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(("objective", "loss_type"), INCREASING)
@given(
    logps=st.lists(st.floats(-300, 0), min_size=4, max_size=4),
    beta=st.sampled_from([0.01, 0.1, 1.0]),
)
def test_a_better_chosen_response_never_raises_the_loss(objective, loss_type, logps, beta):
    better = objective(*pair(logps[0] + 1, *logps[1:]), beta=beta, loss_type=loss_type)[0]
    worse = objective(*pair(*logps), beta=beta, loss_type=loss_type)[0]
    assert better.item() <= worse.item() + 1e-12


@pytest.mark.parametrize(("objective", "loss_type"), EVERY)
@given(logps=st.lists(st.floats(-300, 0), min_size=4, max_size=4), shift=st.floats(-50, 50))
def test_shift_of_both_policy_and_reference_changes_nothing(objective, loss_type, logps, shift):
    """Adding the same number to a response's policy and reference log-prob leaves its log-ratio alone."""
    # aot compares other differences: policy with policy, reference with reference
    shifts = (shift, shift, shift, shift) if loss_type == "aot" else (shift, 0, shift, 0)
    shifted = pair(*(v + s for v, s in zip(logps, shifts, strict=True)))
    a = objective(*pair(*logps), beta=0.1, loss_type=loss_type)[0]
    b = objective(*shifted, beta=0.1, loss_type=loss_type)[0]
    assert a.item() == pytest.approx(b.item(), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("objective", "loss_type"), [e for e in EVERY if e[1] != "exponential"])
@pytest.mark.parametrize("gap", [-500.0, -50.0, 50.0, 500.0])
def test_extremes_stay_finite(objective, loss_type, gap):
    values = pair(gap, -gap)
    losses, _ = objective(*values, beta=1.0, loss_type=loss_type)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(v.grad).all() for v in values[:2])


@pytest.mark.parametrize(("objective", "loss_type"), EVERY)
def test_logged_values_carry_no_gradient(objective, loss_type):
    _, logged = objective(*pair(-1, -2, -1.5, -1.5), loss_type=loss_type)
    assert not any(value.requires_grad for value in logged.values())


def test_bfloat16_stays_near_float64():
    """bfloat16 has 8 bits: log-probs near 100 are off by 0.25, so at beta 0.1 a loss may be off by 0.05."""
    values = [-98.3, -101.7, -99.1, -100.2]
    exact = dpo(*pair(*values))[0].item()
    assert dpo(*pair(*values, dtype=torch.bfloat16))[0].item() == pytest.approx(exact, abs=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: dpo(*pair(0, 0), beta=0.0), "beta must be above 0; got 0.0"),
        (
            lambda: spin(*pair(0, 0), loss_type="correlation"),
            "unknown loss_type 'correlation'; known: sigmoid, hinge, exponential",
        ),
        (lambda: dpo(*pair(0, 0), loss_type="kto"), "known: sigmoid, hinge, ipo"),
        (lambda: dpo(*pair(0, 0), label_smoothing=0.5), "in [0, 0.5); got 0.5"),
    ],
)
def test_errors_say_what_is_accepted(call, message):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    assert message in str(error.value)
