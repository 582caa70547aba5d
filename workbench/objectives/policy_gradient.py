"""Policy gradients with a critic: token rewards, generalised advantages, and PPO's clipped losses.

Notation: one row a response, one column a position. A mask's name says what True means; None takes every position,
which is what Cornell-RL/drpo does (there, positions behind the end token are ordinary ones). With a mask, what lies
outside it has no part in any mean, variance, advantage or loss.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Values = Float[Tensor, "row tok"]
Mask = Bool[Tensor, "row tok"]


def truncate(
    tokens: Int[Tensor, "row tok"], *, end_id: int, pad_id: int, needs_pad: bool = False
) -> tuple[Int[Tensor, "row tok"], Int[Tensor, " row"], Bool[Tensor, " row"]]:
    """Everything behind the first end token becomes padding.

    Args:
        needs_pad: count a response as ended only where padding follows the end token, as the official code does: an end
            token in the very last position is then missing and the response gets the fixed penalty.

    Returns:
        The tokens; the place of the last kept token (the end token, or the last column); whether the response ended.

    Source: Cornell-RL/drpo src/tldr/drpo.py, truncate_response and first_true_indices.
    """
    is_end = tokens == end_id
    columns = torch.arange(tokens.shape[1], device=tokens.device)
    last = torch.where(is_end, columns, tokens.shape[1] - 1).amin(-1)
    cut = torch.where(columns > last[:, None], pad_id, tokens)
    ended = is_end.any(-1)
    return cut, last, ended & (last < tokens.shape[1] - 1) if needs_pad else ended


def token_rewards(
    policy_token_logps: Values,
    reference_token_logps: Values,
    scores: Float[Tensor, " row"],
    last: Int[Tensor, " row"],
    *,
    kl_coef: float,
    is_token: Mask | None = None,
) -> tuple[Values, Values]:
    """-kl_coef (log pi - log pi_ref) at every position, plus the score of the response at its last kept token.

    Args:
        policy_token_logps, reference_token_logps: of the tokens drawn, at the temperature they were drawn with, nats.
        scores: r(x, y), one a response.
        last: place of each response's last kept token.

    Returns:
        The rewards, and their part without the scores.

    Raises:
        ValueError: a score that is NaN or infinite (the rows are named), or a place outside the response.
    """
    if not bool(scores.isfinite().all()):
        rows = torch.nonzero(~scores.isfinite()).flatten().tolist()
        raise ValueError(f"scores of rows {rows[:10]} are NaN or infinite; look at these responses")
    if bool((last < 0).any()) or bool((last >= policy_token_logps.shape[1]).any()):
        raise ValueError(f"`last` must be a place in 0..{policy_token_logps.shape[1] - 1}; got {last.tolist()[:10]}")
    penalty = _only(-kl_coef * (policy_token_logps - reference_token_logps), is_token)
    rewards = penalty.clone()
    rewards[torch.arange(len(scores), device=scores.device), last] += scores.to(rewards.dtype)
    return rewards, penalty


def whiten(values: Values, is_token: Mask | None = None, *, shift_mean: bool = True, eps: float = 1e-8) -> Values:
    """(v - mean) / sqrt(var + eps) over all positions, with the mean put back unless `shift_mean`; population variance.

    Raises:
        ValueError: fewer than two positions, whose variance says nothing.
    """
    inside = values if is_token is None else values[is_token]
    if inside.numel() < 2:
        raise ValueError(f"whitening needs at least two positions; got {inside.numel()}")
    mean, variance = inside.mean(), inside.var(unbiased=False)
    whitened = (values - mean) * torch.rsqrt(variance + eps)
    return _only(whitened if shift_mean else whitened + mean, is_token)


def gae(
    rewards: Values, values: Values, *, gamma: float = 1.0, lam: float = 0.95, is_token: Mask | None = None
) -> tuple[Values, Values]:
    """Generalised advantage estimates: A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t.

    Nothing is bootstrapped: the value behind the last position is 0.

    Returns:
        Advantages, and returns = advantages + values. Neither is whitened.

    Raises:
        ValueError: gamma or lambda outside [0, 1].

    Source: Schulman et al. 2015, arXiv 1506.02438, eq. 16.
    """
    if not (0 <= gamma <= 1 and 0 <= lam <= 1):
        raise ValueError(f"gamma and lam must be in [0, 1]; got {gamma}, {lam}")
    rewards, values = _only(rewards, is_token), _only(values, is_token)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    deltas = rewards + gamma * following - values
    advantages, ahead = torch.zeros_like(deltas), torch.zeros_like(deltas[:, 0])
    for t in range(deltas.shape[1] - 1, -1, -1):
        ahead = advantages[:, t] = deltas[:, t] + gamma * lam * ahead
    return _only(advantages, is_token), _only(advantages + values, is_token)


def ppo(
    policy_token_logps: Values,
    old_token_logps: Values,
    advantages: Values,
    values: Values,
    old_values: Values,
    returns: Values,
    *,
    cliprange: float = 0.2,
    cliprange_value: float = 0.2,
    is_generated: Mask | None = None,
    is_token: Mask | None = None,
) -> tuple[tuple[Values, Values], dict[str, Tensor]]:
    """PPO's clipped losses, one a position: of the policy where it chose the token, of the critic on every token.

    With the ratio rho = exp(log pi - log pi_old),

        policy: max(-A rho, -A clip(rho, 1-c, 1+c))
        value:  1/2 max((V - R)^2, (clip(V, V_old - c_v, V_old + c_v) - R)^2)

    Args:
        is_generated: True where the policy drew the token. A token of a reset prefix was given to it: it has no policy
            loss, and so no policy gradient, whatever its advantage.
        is_token: True on real tokens, the prefix included.

    Returns:
        Policy and value losses [row, tok], 0 outside their masks, to be divided by the number of True in these masks;
        and `ratios`, `policy_clipped`, `value_clipped`, detached.

    Raises:
        ValueError: a clip range not above 0, or a generated position that is no token.

    Source: Schulman et al. 2017, arXiv 1707.06347, eq. 7; Chang et al. 2024, arXiv 2404.08495, with the mask of
        Cornell-RL/drpo src/tldr/drpo.py.
    """
    if not (cliprange > 0 and cliprange_value > 0):
        raise ValueError(f"clip ranges must be above 0; got {cliprange}, {cliprange_value}")
    if is_generated is not None and is_token is not None and bool((is_generated & ~is_token).any()):
        raise ValueError("is_generated is True at a position where is_token is False: padding cannot have been drawn")
    of_policy = is_token if is_generated is None else is_generated
    ratios = torch.exp(_only(policy_token_logps - old_token_logps, of_policy))
    plain, clipped = -advantages * ratios, -advantages * ratios.clamp(1 - cliprange, 1 + cliprange)
    near = old_values + (values - old_values).clamp(-cliprange_value, cliprange_value)
    error, clipped_error = (values - returns) ** 2, (near - returns) ** 2
    losses = _only(torch.maximum(plain, clipped), of_policy), _only(0.5 * torch.maximum(error, clipped_error), is_token)
    logged = {"policy_clipped": (clipped > plain).detach(), "value_clipped": (clipped_error > error).detach()}
    return losses, {"ratios": ratios.detach(), **logged}


def _only(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values.masked_fill(~mask, 0.0)
