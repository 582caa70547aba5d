"""Objectives over a chosen and a rejected response that need no reference model: SimPO and ORPO.

What may live here: losses of pairs of log-probabilities averaged over the tokens of a response. What may not: losses
that compare with a reference (`pairwise`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from workbench.objectives.pairwise import Logged, PairValues, pair_rewards

CERTAIN = -1e-7  # nats a token: above this the odds of a response cannot be told from infinite ones


def simpo(
    policy_chosen_mean_logps: PairValues,
    policy_rejected_mean_logps: PairValues,
    *,
    beta: float = 2.0,
    gamma: float = 1.0,
) -> tuple[PairValues, Logged]:
    """Simple preference optimisation (Meng 2024, arXiv 2405.14734, eq. 6): -log sigma(beta (w - l) - gamma).

    Args:
        policy_chosen_mean_logps, policy_rejected_mean_logps: w and l, log p_policy of the two responses divided by their
            numbers of tokens, nats a token.
        beta: scale of the rewards beta w and beta l, above 0; the paper takes 2.0 to 2.5.
        gamma: margin by which the chosen reward must win, at least 0; the paper takes 0.3 to 1.6.

    Returns:
        Losses [pair], and `chosen_rewards`, `rejected_rewards`, `accuracies`, `margins` [pair], detached.

    Raises:
        ValueError: beta or gamma out of range.
    """
    if not beta > 0 or not gamma >= 0:
        raise ValueError(f"simpo needs beta > 0 and gamma >= 0; got {beta} and {gamma}")
    chosen, rejected = beta * policy_chosen_mean_logps, beta * policy_rejected_mean_logps
    return -logsigmoid(chosen - rejected - gamma), pair_rewards(chosen, rejected)


def orpo(
    policy_chosen_mean_logps: PairValues, policy_rejected_mean_logps: PairValues, *, weight: float = 0.1
) -> tuple[PairValues, Logged]:
    """Odds-ratio preference optimisation (Hong 2024, arXiv 2403.07691, eqs. 6 and 7).

    -w - weight log sigma(log odds(w) - log odds(l)), odds(m) = e^m / (1 - e^m), with mean log-probs w and l: imitation of
    the chosen response and a penalty that keeps the rejected one behind, in one loss.

    Args:
        policy_chosen_mean_logps, policy_rejected_mean_logps: w and l as in `simpo`.
        weight: the paper's lambda, above 0; the paper takes 0.1.

    Returns:
        Losses [pair], nats a token, and what `simpo` returns, with the log odds as rewards.

    Raises:
        ValueError: weight not above 0.
    """
    if not weight > 0:
        raise ValueError(f"orpo needs weight > 0; got {weight}")
    chosen, rejected = _log_odds(policy_chosen_mean_logps), _log_odds(policy_rejected_mean_logps)
    losses = -policy_chosen_mean_logps - weight * logsigmoid(chosen - rejected)
    return losses, pair_rewards(weight * chosen, weight * rejected)


def _log_odds(mean_logps: Tensor) -> Tensor:
    """log(p / (1 - p)) from log p. For p near 1, 1 - e^m loses its digits; -expm1(m) keeps them."""
    m = mean_logps.clamp(max=CERTAIN)
    return m - (-torch.expm1(m)).log()
