"""PPO's formulas by hand: gradients where the policy chose, masks that leave no trace, errors with the row."""

import pytest
import torch

from workbench.objectives import gae, ppo, token_rewards, truncate, whiten


def zeros(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


def test_tokens_of_a_reset_get_no_policy_gradient_but_teach_the_critic():
    logps, values = zeros(2, 4).requires_grad_(), zeros(2, 4).requires_grad_()
    is_generated = torch.tensor([[False, False, True, True], [True] * 4])
    (policy, value), _ = ppo(
        logps, zeros(2, 4), zeros(2, 4) - 1, values, zeros(2, 4), zeros(2, 4) + 1, is_generated=is_generated
    )
    (policy.sum() + value.sum()).backward()
    assert torch.equal(logps.grad != 0, is_generated)
    assert torch.all(values.grad == -1)  # on every position, the reset too


def test_an_unmasked_policy_loss_would_push_the_forced_tokens():
    """The wrong implementation: with a negative advantage the forced token of the data becomes less likely."""
    logps = zeros(1, 2).requires_grad_()
    (policy, _), _ = ppo(logps, zeros(1, 2), zeros(1, 2) - 1, zeros(1, 2), zeros(1, 2), zeros(1, 2))
    policy.sum().backward()
    assert torch.all(logps.grad > 0)  # descending lowers both log-probs, the forced one among them


def test_ratio_is_one_and_nothing_clips_before_the_first_step():
    logps = -torch.rand(3, 5, dtype=torch.float64)
    _, logged = ppo(logps, logps, torch.randn(3, 5, dtype=torch.float64), zeros(3, 5), zeros(3, 5), zeros(3, 5))
    assert torch.all(logged["ratios"] == 1)
    assert not logged["policy_clipped"].any()


def test_clipping_takes_the_pessimistic_side():
    logps = torch.tensor([[1.0, 1.0, -1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    (policy, _), logged = ppo(logps, zeros(1, 4), advantages, zeros(1, 4), zeros(1, 4), zeros(1, 4))
    e = torch.tensor(1.0, dtype=torch.float64).exp()
    torch.testing.assert_close(policy[0].detach(), torch.stack([-e * 0 - 1.2, e, -1 / e, e * 0 + 0.8]))
    assert logged["policy_clipped"].tolist() == [[True, False, False, True]]


def test_gae_by_hand():
    """Rewards 0 0 1, values .5 .5 .5, gamma 1, lambda .5: deltas 0 0 .5, advantages .125 .25 .5."""
    advantages, returns = gae(torch.tensor([[0.0, 0.0, 1.0]]), torch.full((1, 3), 0.5), gamma=1.0, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[0.125, 0.25, 0.5]]))
    torch.testing.assert_close(returns, advantages + 0.5)


def test_what_lies_behind_the_end_leaves_no_trace():
    """Garbage behind the end token changes nothing, and the numbers are those of the shorter rows."""
    g = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(4, 6, generator=g, dtype=torch.float64) for _ in range(2))
    mask = torch.arange(6) < torch.tensor([6, 4, 2, 5])[:, None]
    garbage = torch.where(mask, 0.0, 1e6)
    clean = gae(whiten(rewards, mask, shift_mean=False), values, is_token=mask)
    dirty = gae(whiten(rewards + garbage, mask, shift_mean=False), values + garbage, is_token=mask)
    for one, other in zip(clean, dirty, strict=True):
        torch.testing.assert_close(one, other)
        assert torch.all(one[~mask] == 0)
    alone = gae(whiten(rewards, mask, shift_mean=False)[2:3, :2], values[2:3, :2])
    torch.testing.assert_close(clean[0][2:3, :2], alone[0])
    inside = whiten(rewards, mask)[mask]
    assert float(inside.mean()) == pytest.approx(0, abs=1e-12)
    assert float(inside.var(unbiased=False)) == pytest.approx(1, abs=1e-6)


def test_the_score_is_added_at_the_last_kept_token():
    rewards, penalty = token_rewards(
        zeros(2, 3) - 1, zeros(2, 3) - 2, torch.tensor([5.0, 7.0]), torch.tensor([2, 0]), kl_coef=0.1
    )
    torch.testing.assert_close(rewards - penalty, torch.tensor([[0.0, 0, 5], [7, 0, 0]], dtype=torch.float64))
    torch.testing.assert_close(penalty, zeros(2, 3) - 0.1)


def test_an_end_in_the_last_place_counts_unless_the_official_rule_is_asked_for():
    tokens = torch.tensor([[3, 4, 1], [3, 1, 4], [3, 4, 5]])
    cut, last, ended = truncate(tokens, end_id=1, pad_id=9)
    assert cut.tolist() == [[3, 4, 1], [3, 1, 9], [3, 4, 5]]
    assert last.tolist() == [2, 1, 2]
    assert ended.tolist() == [True, True, False]
    assert truncate(tokens, end_id=1, pad_id=9, needs_pad=True)[2].tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: token_rewards(
                zeros(2, 2), zeros(2, 2), torch.tensor([0.0, float("nan")]), torch.tensor([1, 1]), kl_coef=0.1
            ),
            r"scores of rows \[1\] are NaN or infinite",
        ),
        (
            lambda: token_rewards(zeros(1, 2), zeros(1, 2), torch.zeros(1), torch.tensor([2]), kl_coef=0.1),
            r"`last` must be a place in 0\.\.1",
        ),
        (lambda: gae(zeros(1, 2), zeros(1, 2), lam=1.5), r"gamma and lam must be in \[0, 1\]; got 1.0, 1.5"),
        (lambda: ppo(*[zeros(1, 2)] * 6, cliprange=0.0), "clip ranges must be above 0"),
        (
            lambda: ppo(
                *[zeros(1, 2)] * 6, is_generated=torch.tensor([[True, True]]), is_token=torch.tensor([[True, False]])
            ),
            "padding cannot have been drawn",
        ),
        (lambda: whiten(zeros(1, 1)), "at least two positions; got 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
