"""Objectives of simultaneous translation: by hand, at the edges, gradients, and what is refused."""

import math

import pytest
import torch

from workbench import objectives


def state(c=0.5, prefix=0.25, full=0.5, **options):
    as_logps = lambda p: torch.tensor([[[math.log(p)]]], dtype=torch.float64)  # noqa: E731
    confidence = torch.tensor([[c]], dtype=torch.float64, requires_grad=True)
    target, is_token = torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1, dtype=torch.bool)
    given = (as_logps(full), as_logps(prefix), confidence, target, is_token)
    return confidence, objectives.state_confidence(*given, **options)


def test_state_confidence_by_hand():
    _, (losses, logged) = state(confidence_weight=0.1)
    assert losses.item() == pytest.approx(-math.log(0.5) - math.log(0.375) - 0.1 * math.log(0.5))
    assert set(logged) == {"full_losses", "mixed_losses", "confidence_penalties", "n_tokens"}


def test_confidence_is_pulled_up_where_the_prefix_suffices_and_down_where_it_does_not():
    for prefix, sign in ((0.49, -1), (0.001, 1)):
        confidence, (losses, _) = state(c=0.9, prefix=prefix, confidence_weight=0.1)
        losses.sum().backward()
        assert math.copysign(1, confidence.grad.item()) == sign  # of the loss: negative pulls up


def test_padding_costs_nothing():
    logps, c = torch.full((1, 3, 1), -1.0), torch.tensor([[0.5, 0.5, 1e-30]])
    is_token = torch.tensor([[True, True, False]])
    losses, _ = objectives.state_confidence(logps, logps, c, torch.zeros(1, 3, dtype=torch.long), is_token)
    assert losses.item() == pytest.approx(4 + 0.2 * math.log(2), abs=1e-5)


def test_extremes_stay_finite():
    for c in (0.0 + 1e-6, 1 - 1e-6):
        confidence, (losses, _) = state(c=c, prefix=1e-200, full=1e-300)
        losses.sum().backward()
        assert torch.isfinite(losses).all()
        assert torch.isfinite(confidence.grad).all()


def test_expected_delays_by_hand():
    c = torch.tensor([[[0.5, 0.5, 0.1], [0.9, 0.5, 0.1]]])
    delays = objectives.expected_delays(c, torch.tensor([[1.0, 2.0, 3.0]]))
    assert delays[0, 0].item() == pytest.approx(0.5 + 2 * 0.25 + 3 * 0.25)
    assert delays[0, 1] == delays[0, 0]  # never falls, although the second token alone would be earlier
    repeated = objectives.expected_delays(torch.tensor([[[0.5, 0.3, 0.3]]]), torch.tensor([[1.0, 2.0, 2.0]]))
    assert repeated.item() == pytest.approx(1.5)  # a source repeated behind its end changes nothing


def test_delay_penalty_by_hand():
    is_token = torch.tensor([[True, True, True, False]])
    found = objectives.delay_penalty(torch.tensor([[2.0, 2.5, 4.0, 9.0]]), torch.tensor([4.0]), is_token)
    ideal = [0, 4 / 3, 8 / 3]
    assert found.item() == pytest.approx(sum(max(0, d - i) for d, i in zip([2, 2.5, 4], ideal, strict=True)) / 3 / 4)
    early = objectives.delay_penalty(
        torch.tensor([[0.0, 1.0]]), torch.tensor([4.0]), torch.ones(1, 2, dtype=torch.bool)
    )
    assert early.item() == 0.0


def pair(**options):
    four = [torch.tensor([value], dtype=torch.float64) for value in (-1.0, -2.0, -1.5, -1.0)]
    msft, lags = torch.tensor([3.0], dtype=torch.float64), [torch.tensor([v], dtype=torch.float64) for v in (0.4, 0.1)]
    return objectives.simul_dpo(*four, msft, *lags, **options)


def test_simul_dpo_by_hand():
    h = (-1.0 + 1.5) - (-2.0 + 1.0)
    dpo = math.log1p(math.exp(-0.1 * h))
    losses, logged = pair(kappa=2.0, alpha=5.0)
    assert losses.item() == pytest.approx(dpo + 2 * 3 + 5 * 0.4)
    assert logged["pair_losses"].item() == pytest.approx(dpo)
    assert pair(kappa=0.0, alpha=0.0)[0].item() == pytest.approx(dpo)
    margin, _ = pair(kappa=0.0, alpha=5.0, form="margin")
    assert margin.item() == pytest.approx(math.log1p(math.exp(-(0.1 * h - 5 * 0.3))))
    assert pair(kappa=0.0, alpha=0.0, loss_type="ipo")[0].item() == pytest.approx((h - 5) ** 2)
    assert pair(kappa=0.0, alpha=0.0, loss_type="simpo", beta=2.0)[0].item() == pytest.approx(
        math.log1p(math.exp(-(2.0 - 1.0)))
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": -1.0}, "alpha and kappa must be at least 0"),
        ({"loss_type": "hinge"}, "known loss types: sigmoid, ipo, simpo"),
        ({"form": "margin", "loss_type": "ipo"}, "the margin form is that of loss_type='sigmoid'"),
        ({"beta": 0.0}, "beta must be above 0"),
    ],
)
def test_bad_weights(options, message):
    with pytest.raises(ValueError, match=message):
        pair(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence_weight": -0.1}, "need confidence_weight >= 0"),
        ({"label_smoothing": 0.1}, "label smoothing needs log-probabilities of the whole vocabulary"),
        ({"c": 1.5}, "confidences are probabilities"),
    ],
)
def test_bad_states(options, message):
    with pytest.raises(ValueError, match=message):
        state(**options)
