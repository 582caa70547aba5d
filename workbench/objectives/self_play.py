"""Objectives that fit a policy to win rates against itself: SPPO and soft DNO.

Notation: the log-ratio of a response is log p_policy(y|x) - log p_reference(y|x), nats; the reference is the policy at
the start of the round. The two papers use the letter eta for inverse things: SPPO's eta multiplies a win rate, DNO's
eta divides it. Here `beta` is 1/eta for SPPO (its code does so) and `eta` is DNO's.
"""

from __future__ import annotations

import torch
from torch.nn.functional import softplus

from workbench.objectives.pairwise import Logged, PairValues, pair_rewards

SPPO_LOSSES = ("sppo", "sppo_single")


def sppo(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    *,
    chosen_probs_win: PairValues,
    chosen_probs_lose: PairValues,
    chosen_probs: PairValues | None = None,
    beta: float = 0.001,
    loss_type: str = "sppo",
) -> tuple[PairValues, Logged]:
    """Self-play preference optimisation: each log-ratio is fitted to its own win rate, not to the other's.

    With log-ratios a (chosen) and b (rejected) and eta = 1 / beta:

    - sppo: 1/2 [(a - eta (p_win - 1/2))^2 + (b - eta (p_lose - 1/2))^2]   (Wu 2024, eq. 4.4 with 1/2 for log Z)
    - sppo_single: the same with targets +-eta (p - 1/2), p = P(chosen beats rejected)

    At a = b = 0 the first one is eta^2/2 [(p_win - 1/2)^2 + (p_lose - 1/2)^2]: 60,000 where eta = 1000 and both win
    rates are 1/4 away from 1/2. That is how large the paper's loss is.

    Args:
        policy_chosen_logps, policy_rejected_logps: log p_policy of the two responses, summed over tokens, nats.
        reference_chosen_logps, reference_rejected_logps: the same under the policy at the start of the round.
        chosen_probs_win: win rate of the chosen response against the samples of its prompt, itself included.
        chosen_probs_lose: win rate of the rejected response against the same samples (the official name misleads).
        chosen_probs: P(chosen beats rejected); needed by sppo_single alone.
        beta: 1 / eta, above 0.
        loss_type: one of `SPPO_LOSSES`.

    Returns:
        Losses [pair]; detached `chosen_rewards`, `rejected_rewards` (beta times log-ratios), `accuracies`, `margins`.

    Raises:
        ValueError: an unknown loss type, beta not above 0, or sppo_single without `chosen_probs`.

    Source: Wu et al. 2024, arXiv 2405.00675, eq. 4.4 and 4.8; SPPOTrainer.sppo_loss of uclaml/SPPO.
    """
    if not beta > 0:
        raise ValueError(f"beta = 1/eta must be above 0; got {beta}")
    if loss_type not in SPPO_LOSSES:
        raise ValueError(f"unknown loss_type {loss_type!r}; known: {', '.join(SPPO_LOSSES)}")
    a, b = policy_chosen_logps - reference_chosen_logps, policy_rejected_logps - reference_rejected_logps
    if loss_type == "sppo":
        chosen_target, rejected_target = (chosen_probs_win - 0.5) / beta, (chosen_probs_lose - 0.5) / beta
    elif chosen_probs is None:
        raise ValueError("sppo_single needs chosen_probs, P(chosen beats rejected) of each pair")
    else:
        chosen_target, rejected_target = (chosen_probs - 0.5) / beta, (0.5 - chosen_probs) / beta
    losses = 0.5 * ((a - chosen_target) ** 2 + (b - rejected_target) ** 2)
    return losses, pair_rewards(beta * a, beta * b)


def dno(
    policy_first_logps: PairValues,
    policy_second_logps: PairValues,
    reference_first_logps: PairValues,
    reference_second_logps: PairValues,
    *,
    first_win_rate: PairValues,
    second_win_rate: PairValues,
    eta: float = 0.1,
    reward_scale: float = 1.0,
) -> tuple[PairValues, Logged]:
    """Direct Nash optimisation, the soft version: cross-entropy with the judge's preference, squashed, as the target.

    With Delta = eta [log-ratio of the first - log-ratio of the second] and z = sigma(c (r_1 - r_2)):

        z softplus(-Delta) + (1 - z) softplus(Delta)   (Rosset 2024, eq. 12)

    The minimum is at Delta = c (r_1 - r_2), so the exact minimiser is p_reference exp(c r / eta), normalised. z = 1
    would be the DPO loss; with r in [0, 1] and c = 1, z stays within [0.269, 0.731].

    Args:
        policy_first_logps, policy_second_logps: log p_policy of the two responses, summed over tokens, nats.
        reference_first_logps, reference_second_logps: the same under the policy at the start of the round.
        first_win_rate, second_win_rate: r, the win rates against the policy at the start of the round, in [0, 1].
        eta: above 0; (eta, c) and (2 eta, 2 c) have the same minimiser.
        reward_scale: c, above 0.

    Returns:
        Losses [pair], and `target` (z), `chosen_rewards`, `rejected_rewards` (eta times the log-ratios of the first and
        the second response), `accuracies` (the response with the higher win rate has the higher reward) and `margins`
        (of rewards, in that direction), [pair], detached.

    Raises:
        ValueError: eta or reward_scale not above 0, or a win rate outside [0, 1].

    Source: Rosset et al. 2024, arXiv 2404.03715, Algorithm 1.
    """
    if not eta > 0 or not reward_scale > 0:
        raise ValueError(f"eta and reward_scale must be above 0; got {eta}, {reward_scale}")
    for name, rates in (("first_win_rate", first_win_rate), ("second_win_rate", second_win_rate)):
        if bool(((rates < 0) | (rates > 1) | rates.isnan()).any()):
            raise ValueError(f"{name}: win rates in [0, 1] are needed; got {rates.tolist()}")
    first = eta * (policy_first_logps - reference_first_logps)
    second = eta * (policy_second_logps - reference_second_logps)
    delta, gap = first - second, first_win_rate - second_win_rate
    target = torch.sigmoid(reward_scale * gap)
    losses = target * softplus(-delta) + (1 - target) * softplus(delta)
    logged = pair_rewards(first, second)
    margins = delta.detach() * torch.sign(gap)
    agreeing = {"accuracies": (margins > 0).to(delta.dtype), "margins": margins, "target": target.detach()}
    return losses, {**logged, **agreeing}
