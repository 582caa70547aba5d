"""PRO and RRHF by hand, on lists of different lengths, at extremes, and what they refuse."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workbench.objectives import pro, rrhf


def lists(means, lengths, scores):
    """Tensors of lists given by mean log-probs; the sums carry a gradient."""
    n = torch.tensor(lengths)
    sums = (torch.tensor(means, dtype=torch.float64) * n).requires_grad_()
    return sums, n, torch.tensor(scores, dtype=torch.float64)


def test_two_answers_by_hand():
    """s = -1, -2, R = 2, 0.5: d = 1.5 for both; log(1 + exp(1.5 (-2 + 1))); w (2-1)^2 4 tokens x 1 nat."""
    losses, logged = pro(*lists([[-1.0, -2.0]], [[4, 3]], [[2.0, 0.5]]), eps=0.0)
    term = math.log(1 + math.exp(-1.5))
    assert logged["rank_1"].item() == pytest.approx(term)
    assert logged["sft_nll"].item() == pytest.approx(4.0)  # a sum over tokens
    assert losses.item() == pytest.approx(term + 0.05 * 4)
    assert logged["agreement"].item() == 1.0


def test_three_answers_by_hand():
    """R = 1, 0, -2: step 1 has d = 1, 3 and 3 for the positive; step 2 leaves the best out; the weight is 4 w."""
    losses, logged = pro(*lists([[-1.0, -0.5, -3.0]], [[2, 2, 2]], [[1.0, 0.0, -2.0]]), eps=0.0)
    first = math.log(math.exp(-3) + math.exp(-0.5) + math.exp(-9)) + 3
    second = math.log(math.exp(-1) + math.exp(-6)) + 1
    assert [logged["rank_1"].item(), logged["rank_2"].item()] == pytest.approx([first, second])
    assert losses.item() == pytest.approx(first + second + 0.05 * 4 * 2)
    assert logged["agreement"].item() == pytest.approx(2 / 3)


def test_without_temperatures():
    losses, _ = pro(*lists([[-1.0, -2.0]], [[1, 1]], [[5.0, 0.0]]), temperature=False, sft_weight=0.0, eps=0.0)
    assert losses.item() == pytest.approx(math.log(1 + math.exp(-1)))


def test_lists_of_different_lengths_share_a_batch():
    """Padded with answers of length 0, whatever stands there, each list loses what it loses alone."""
    alone = [
        lists([[-1.0, -2.0]], [[3, 2]], [[1.0, 0.0]]),
        lists([[-1.0, -0.5, -2.0]], [[3, 2, 4]], [[3.0, 1.0, 0.5]]),
    ]
    sums, n, scores = lists(
        [[-1.0, -2.0, 7.0], [-1.0, -0.5, -2.0]], [[3, 2, 0], [3, 2, 4]], [[1.0, 0.0, 99.0], [3.0, 1.0, 0.5]]
    )
    for objective in (pro, rrhf):
        together, _ = objective(sums, n, scores)
        assert together.tolist() == pytest.approx([objective(*one)[0].item() for one in alone])
        gradient = torch.autograd.grad(together.sum(), sums)[0]
        assert gradient[0, 2] == 0
        assert torch.isfinite(gradient).all()
    assert pro(sums, n, scores)[1]["rank_2"][0] == 0


def test_equal_scores_have_no_gradient():
    """log(n - k + 1), a constant; the likelihood of the first answer is left."""
    sums, n, scores = lists([[-1.0, -2.0, -3.0]], [[1, 1, 1]], [[1.0, 1.0, 1.0]])
    losses, logged = pro(sums, n, scores, sft_weight=0.0)
    assert [logged["rank_1"].item(), logged["rank_2"].item()] == pytest.approx([math.log(3), math.log(2)], abs=1e-9)
    assert torch.autograd.grad(losses.sum(), sums)[0].abs().max() < 1e-12
    assert logged["agreement"].item() == 0.5


def test_eps_where_everything_underflows():
    """s d = -90 and -120: log(1e-10) + 90 with eps; log(exp(-90) + exp(-120)) + 90 = 0 without."""
    values = lists([[-3.0, -4.0]], [[1, 1]], [[30.0, 0.0]])
    assert pro(*values, sft_weight=0.0)[0].item() == pytest.approx(math.log(1e-10) + 90)
    assert pro(*values, sft_weight=0.0, eps=0.0)[0].item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("objective", [pro, rrhf])
@pytest.mark.parametrize("size", [50.0, 500.0])
def test_extremes_stay_finite(objective, size):
    sums, n, scores = lists([[-size, -0.01, -size]], [[2, 2, 2]], [[size, 0.0, -size]])
    losses, _ = objective(sums, n, scores)
    assert torch.isfinite(losses).all()
    assert torch.isfinite(torch.autograd.grad(losses.sum(), sums)[0]).all()


@given(st.lists(st.floats(-20, -0.01), min_size=3, max_size=3), st.floats(0.01, 1.0))
def test_a_more_likely_best_answer_never_costs(means, step):
    before = pro(*lists([means], [[2, 2, 2]], [[2.0, 1.0, 0.0]]))[0].item()
    after = pro(*lists([[means[0] + step, *means[1:]]], [[2, 2, 2]], [[2.0, 1.0, 0.0]]))[0].item()
    assert after <= before + 1e-9


def test_rrhf_by_hand_in_any_order():
    """R = 0, 2: the second is better but less likely: hinge 3 - 1 = 2 nats; SFT 2 x 3 nats over 4 positions."""
    losses, logged = rrhf(*lists([[-1.0, -3.0]], [[4, 2]], [[0.0, 2.0]]))
    assert logged["rank_loss"].item() == pytest.approx(2.0)
    assert losses.item() == pytest.approx(2.0 + 6 / 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pro(*lists([[-1.0, -1.0]], [[1, 1]], [[0.0, 1.0]])), "list 0: the scores rise from one response to"),
        (lambda: pro(*lists([[-1.0, -1.0]], [[1, 0]], [[1.0, 0.0]])), "list 0 has fewer than two responses"),
        (lambda: rrhf(*lists([[-1.0, -1.0, -1.0]], [[1, 0, 1]], [[1.0, 0.0, 0.0]])), "missing ones stand last"),
        (lambda: pro(*lists([[-1.0, -1.0]], [[1, 1]], [[1.0, 0.0]]), eps=-1.0), "must not be below 0; got -1.0"),
    ],
)
def test_errors_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
