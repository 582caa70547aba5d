"""LongPO's loss by hand, at its edges, and what a row without a difference does."""

import math

import pytest
import torch

from workbench.objectives import dpo, longpo


def four(*values):
    return [torch.tensor([float(v)], dtype=torch.float64, requires_grad=True) for v in values]


def test_hand_worked():
    """Ratios -4 and +6 at beta 0.1: margin -1, preference log(1 + e); lam 0.01 weights it, the NLL has weight 1."""
    losses, logged = longpo(*four(-9, -4, -5, -10), chosen_token_nll=torch.tensor([2.0], dtype=torch.float64))
    assert losses.item() == pytest.approx(2 + 0.01 * math.log1p(math.e))
    assert logged["preference_losses"].item() == pytest.approx(math.log1p(math.e))
    assert logged["margins"].item() == pytest.approx(-1.0)


def test_it_is_dpo_behind_the_nll():
    values = four(-9, -4, -5, -10)
    nll = torch.tensor([2.0], dtype=torch.float64)
    ours = longpo(*values, chosen_token_nll=nll, beta=0.3, lam=0.5)[0]
    torch.testing.assert_close(ours, nll + 0.5 * dpo(*values, beta=0.3)[0])


def test_lam_stands_at_the_preference_term():
    """Catch: lam 0.01 on the NLL instead would leave almost no imitation."""
    nll = torch.tensor([2.0], dtype=torch.float64, requires_grad=True)
    longpo(*four(-9, -4, -5, -10), chosen_token_nll=nll, lam=0.01)[0].sum().backward()
    assert nll.grad.item() == 1.0


def test_equal_rows_are_imitated_only():
    values = [torch.tensor([-3.0, -3.0], dtype=torch.float64, requires_grad=True) for _ in range(4)]
    nll = torch.tensor([1.0, 1.0], dtype=torch.float64)
    losses, logged = longpo(*values, chosen_token_nll=nll, is_pair=torch.tensor([True, False]), lam=1.0)
    losses.sum().backward()
    assert losses.tolist() == pytest.approx([1 + math.log(2), 1.0])
    assert values[0].grad[1] == 0
    assert logged["preference_losses"][1] == 0


@pytest.mark.parametrize("gap", [-500.0, 500.0])
def test_extremes_stay_finite(gap):
    values = four(gap, -gap, 0, 0)
    losses, logged = longpo(*values, chosen_token_nll=torch.zeros(1, dtype=torch.float64), beta=1.0, lam=1.0)
    losses.sum().backward()
    assert all(v.isfinite().all() for v in (losses, values[0].grad, *logged.values()))
    assert not any(v.requires_grad for v in logged.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0"),
        ({"lam": -1.0}, "must be at least 0 and not both 0; got -1.0 and 1.0"),
        ({"lam": 0.0, "nll_weight": 0.0}, "not both 0"),
    ],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        longpo(*four(0, 0, 0, 0), chosen_token_nll=torch.zeros(1, dtype=torch.float64), **options)
