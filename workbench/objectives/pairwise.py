"""Objectives over a chosen and a rejected response: the DPO family and SPIN.

Notation: the log-ratio of a response is log p_policy(y|x) - log p_reference(y|x); the margin h is the log-ratio of
the chosen response minus that of the rejected one. Rewards are beta times the log-ratio, in nats, detached.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

PairValues = Float[Tensor, "pair"]
Logged = dict[str, Tensor]

DPO_LOSSES = ("sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "sppo_hard", "kto_pair", "bco_pair")
DPO_LOSSES += ("apo_zero", "apo_down", "aot_pair", "aot")
SPIN_LOSSES = ("sigmoid", "hinge", "exponential")


def dpo(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> tuple[PairValues, Logged]:
    """Direct preference optimisation and the losses that share its inputs.

    With margin h and log-ratios w (chosen) and l (rejected):

    - sigmoid: -(1-s) log sigma(beta h) - s log sigma(-beta h)   (Rafailov 2023 eq. 7; s: conservative DPO)
    - robust: the same minus twice the second term, over 1-2s   (Chowdhury 2024)
    - hinge: max(0, 1 - beta h)   (SLiC, Zhao 2023)
    - ipo: (h - 1/(2 beta))^2, on *averaged* log-probs   (Azar 2023 eq. 17)
    - exo_pair: KL(sigma(beta h) || 1-s)   (Ji 2024 eq. 16)
    - nca_pair: -log sigma(beta w) - [log sigma(-beta w) + log sigma(-beta l)] / 2   (Chen 2024)
    - sppo_hard: (w - 1/(2 beta))^2 + (l + 1/(2 beta))^2   (Wu 2024; no factor 1/2)
    - kto_pair: 2 - sigma(beta (w - K_l)) - sigma(beta (K_w - l)), K = max(0, mean of the side)   (Ethayarajh 2024)
    - bco_pair: -log sigma(beta w) - log sigma(-beta l)   (Jung 2024, its running mean of rewards at its first value, 0)
    - apo_zero: 1 - sigma(beta w) + sigma(beta l); apo_down: 1 + sigma(beta w) - sigma(beta h)   (D'Oosterlinck 2024)
    - aot_pair, aot: sigmoid on sorted margins, or on separately sorted log-ratio parts   (Melnyk 2024)

    Args:
        policy_chosen_logps, policy_rejected_logps: log p_policy of the two responses, summed over tokens, nats.
        reference_chosen_logps, reference_rejected_logps: the same under the frozen reference.
        beta: strength of the KL term, 1/nat, above 0.
        loss_type: one of `DPO_LOSSES`.
        label_smoothing: s, the assumed share of wrong labels, in [0, 0.5).

    Returns:
        Losses [pair], and `chosen_rewards`, `rejected_rewards`, `accuracies`, `margins` [pair], detached. Equal
        rewards count as wrong. `aot` and `aot_pair` return the losses in sorted order.

    Raises:
        ValueError: an unknown loss type, or beta or label_smoothing out of range.
    """
    _check(beta, loss_type, DPO_LOSSES)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing is a share of wrong labels in [0, 0.5); got {label_smoothing}")
    s = label_smoothing
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    margin = chosen_ratio - rejected_ratio  # h, Rafailov 2023 eq. 7
    right, wrong = logsigmoid(beta * margin), logsigmoid(-beta * margin)
    if loss_type == "sigmoid":
        losses = -(1 - s) * right - s * wrong
    elif loss_type == "robust":
        losses = (-(1 - s) * right + s * wrong) / (1 - 2 * s)
    elif loss_type == "hinge":
        losses = relu(1 - beta * margin)
    elif loss_type == "ipo":
        losses = (margin - 1 / (2 * beta)) ** 2
    elif loss_type == "exo_pair":
        s = s or 1e-3  # the reverse KL needs a target inside (0, 1); 1e-3 is what the reference implementation takes
        losses = right.exp() * (right - math.log(1 - s)) + wrong.exp() * (wrong - math.log(s))
    elif loss_type == "nca_pair":
        falling = logsigmoid(-beta * chosen_ratio) + logsigmoid(-beta * rejected_ratio)
        losses = -logsigmoid(beta * chosen_ratio) - 0.5 * falling
    elif loss_type == "sppo_hard":
        losses = (chosen_ratio - 0.5 / beta) ** 2 + (rejected_ratio + 0.5 / beta) ** 2
    elif loss_type == "kto_pair":
        chosen_kl, rejected_kl = chosen_ratio.mean().clamp(min=0), rejected_ratio.mean().clamp(min=0)
        losses = 2 - (beta * (chosen_ratio - rejected_kl)).sigmoid() - (beta * (chosen_kl - rejected_ratio)).sigmoid()
    elif loss_type == "bco_pair":
        losses = -logsigmoid(beta * chosen_ratio) - logsigmoid(-beta * rejected_ratio)
    elif loss_type == "apo_zero":
        losses = 1 - (beta * chosen_ratio).sigmoid() + (beta * rejected_ratio).sigmoid()
    elif loss_type == "apo_down":
        losses = 1 + (beta * chosen_ratio).sigmoid() - right.exp()
    else:  # alignment via optimal transport: the margins of the sorted (stochastically ordered) log-ratios
        is_pair = loss_type == "aot_pair"
        better = chosen_ratio if is_pair else policy_chosen_logps - policy_rejected_logps
        worse = rejected_ratio if is_pair else reference_chosen_logps - reference_rejected_logps
        margin = better.sort().values - worse.sort().values
        losses = -(1 - s) * logsigmoid(beta * margin) - s * logsigmoid(-beta * margin)
    return losses, pair_rewards(beta * chosen_ratio, beta * rejected_ratio)


def spin(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    *,
    beta: float = 0.1,
    loss_type: str = "sigmoid",
    reference_free: bool = False,
) -> tuple[PairValues, Logged]:
    """Self-play fine-tuning (Chen 2024, eq. 4.7): ell(beta * h) for a decreasing convex ell.

    The chosen response is the human one, the rejected one was written by the reference, which is the policy as it
    was at the start of the round. At that start every log-ratio is 0: the sigmoid loss is log 2 and the accuracy 0.

    - sigmoid: log(1 + exp(-u)); hinge: max(0, 1 - u); exponential: exp(-u), with u = beta h

    Args:
        beta: the paper's lambda, 1/nat, above 0.
        loss_type: one of `SPIN_LOSSES` (the paper's "correlation" loss 1 - u is unbounded: not for training).
        reference_free: take both reference log-probs as 0.

    Returns:
        Losses [pair], and `chosen_rewards`, `rejected_rewards`, `accuracies`, `margins` [pair], detached.

    Raises:
        ValueError: an unknown loss type, or beta not above 0.
    """
    _check(beta, loss_type, SPIN_LOSSES)
    chosen_ratio = policy_chosen_logps - reference_chosen_logps
    rejected_ratio = policy_rejected_logps - reference_rejected_logps
    margin = policy_chosen_logps - policy_rejected_logps if reference_free else chosen_ratio - rejected_ratio
    u = beta * margin
    losses = -logsigmoid(u) if loss_type == "sigmoid" else relu(1 - u) if loss_type == "hinge" else torch.exp(-u)
    return losses, pair_rewards(beta * chosen_ratio, beta * rejected_ratio)


def pair_rewards(chosen_rewards: Tensor, rejected_rewards: Tensor) -> Logged:
    """What every pairwise objective logs, detached; equal rewards count as wrong."""
    chosen_rewards, rejected_rewards = chosen_rewards.detach(), rejected_rewards.detach()
    return {
        "chosen_rewards": chosen_rewards,
        "rejected_rewards": rejected_rewards,
        "accuracies": (chosen_rewards > rejected_rewards).to(chosen_rewards.dtype),
        "margins": chosen_rewards - rejected_rewards,
    }


def _check(beta: float, loss_type: str, known: tuple[str, ...]) -> None:
    if not beta > 0:
        raise ValueError(f"beta must be above 0; got {beta}")
    if loss_type not in known:
        raise ValueError(f"unknown loss_type {loss_type!r}; known: {', '.join(known)}")
