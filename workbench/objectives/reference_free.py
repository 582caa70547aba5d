"""Objectives over a chosen and rejected responses that need no reference model: SimPO, ORPO and LOGO."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

from workbench.objectives.pairwise import Logged, PairValues, pair_rewards

LOGO_LOSSES = ("sigmoid", "hinge")
# facts of a loss, by the names of `dpo(loss_type=)` and of the functions here
REFERENCE_FREE = ("simpo", "orpo")
AVERAGED = ("ipo", *REFERENCE_FREE)  # takes log-probs per token, not their sums
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
        policy_chosen_mean_logps, policy_rejected_mean_logps: w and l, log p_policy of the two responses divided by
            their numbers of tokens, nats a token.
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

    -w - weight log sigma(log odds(w) - log odds(l)), odds(m) = e^m / (1 - e^m), with mean log-probs w and l: imitation
    of the chosen response and a penalty that keeps the rejected one behind, in one loss.

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


def logo(
    policy_chosen_mean_logps: PairValues,
    policy_rejected_mean_logps: Float[Tensor, "pair k"],
    *,
    is_rejected: Bool[Tensor, "pair k"] | None = None,
    chosen_token_nll: PairValues | None = None,
    beta: float = 10.0,
    gamma_beta_ratio: float = 0.3,
    sft_weight: float = 0.1,
    label_smoothing: float = 0.0,
    loss_type: str = "sigmoid",
) -> tuple[PairValues, Logged]:
    """Long-context alignment, several rejected responses: SimPO against their mean, and imitation of the chosen one.

    With x = w - (1/M) sum_j l_j - gamma/beta:

    - sigmoid: -(1-s) log sigma(beta x) - s log sigma(-beta x) + lambda NLL   (Tang 2024)
    - hinge: max(0, 1 - beta x) + lambda NLL

    Args:
        policy_chosen_mean_logps: w, log p_policy of the chosen response divided by its number of tokens, nats a token.
        policy_rejected_mean_logps: l_j, the same of the rejected responses; where there is none it is not read.
        is_rejected: True where there is a rejected response, None: everywhere; the mean is over these, M may differ.
        chosen_token_nll: NLL, mean over all tokens of the chosen response, nats a token; None takes -w. It differs from
            -w where w leaves tokens out (a beginning that all responses share).
        beta: scale of the rewards, above 0; the paper takes 2.5 to 10.
        gamma_beta_ratio: gamma / beta, the margin in nats a token, at least 0; the paper takes 0.1 to 0.3.
        sft_weight: lambda, at least 0; the paper takes 0.1, the released scripts 0.
        label_smoothing: s, in [0, 0.5); not of the hinge.
        loss_type: one of `LOGO_LOSSES`.

    Returns:
        Losses [pair], and `chosen_rewards`, `rejected_rewards` (beta times the mean l), `accuracies`, `margins` [pair],
        detached.

    Raises:
        ValueError: a hyperparameter out of range, or a chosen response without any rejected one.

    Source: Tang et al. 2024, arXiv 2410.18533; LOGOTrainer.simpo_loss of ZetangForward/LCM_Stack. Not followed: its
    slicing, which at batch size 1 averages two losses instead of two rejected responses, and its unshifted
    cross-entropy.
    """
    if not beta > 0 or not gamma_beta_ratio >= 0 or not sft_weight >= 0 or not 0 <= label_smoothing < 0.5:
        needed = "beta > 0, gamma_beta_ratio >= 0, sft_weight >= 0 and label_smoothing in [0, 0.5)"
        got = f"{beta}, {gamma_beta_ratio}, {sft_weight}, {label_smoothing}"
        raise ValueError(f"logo needs {needed}; got {got}")
    if loss_type not in LOGO_LOSSES:
        raise ValueError(f"unknown loss_type {loss_type!r}; known: {', '.join(LOGO_LOSSES)}")
    if is_rejected is None:
        is_rejected = torch.ones_like(policy_rejected_mean_logps, dtype=torch.bool)
    m = is_rejected.sum(-1)
    if bool((m == 0).any()):
        raise ValueError(f"pair {int((m == 0).nonzero()[0])} has no rejected response; leave such rows out")
    rejected = policy_rejected_mean_logps.masked_fill(~is_rejected, 0.0).sum(-1) / m
    z = beta * (policy_chosen_mean_logps - rejected - gamma_beta_ratio)
    smooth = -(1 - label_smoothing) * logsigmoid(z) - label_smoothing * logsigmoid(-z)
    losses = relu(1 - z) if loss_type == "hinge" else smooth
    nll = -policy_chosen_mean_logps if chosen_token_nll is None else chosen_token_nll
    return losses + sft_weight * nll, pair_rewards(beta * policy_chosen_mean_logps, beta * rejected)
