"""Objectives that compare one response under two inputs: VDPO and mDPO; and the divergence between answers."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from workbench.objectives.pairwise import Logged, PairValues, dpo


def vdpo(
    policy_original_logps: PairValues,
    policy_altered_logps: PairValues,
    reference_original_logps: PairValues,
    reference_altered_logps: PairValues,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[PairValues, Logged]:
    """Video DPO: one response, preferred under the original evidence to under the altered one.

    r(v) = beta log[p_theta(y|v,q) / p_ref(y|v,q)],  L = -log sigma(r(v) - r(v')): DPO with one response and two inputs.

    Args:
        policy_original_logps, policy_altered_logps: log p_theta(y | evidence, prompt), summed over tokens, nats.
        reference_original_logps, reference_altered_logps: the same under the frozen reference, **each under the
            evidence of its policy's side**.

    Returns:
        Losses [pair]; `chosen_rewards` (original), `rejected_rewards` (altered), `accuracies`, `margins`, detached.
    """
    four = (policy_original_logps, policy_altered_logps, reference_original_logps, reference_altered_logps)
    return dpo(*four, beta=beta, label_smoothing=label_smoothing)


def anchor(policy_logps: PairValues, reference_logps: PairValues, *, beta: float = 0.1) -> PairValues:
    """mDPO's anchor: -log sigma(beta log[p_theta(y|v,q) / p_ref(y|v,q)]) keeps the chosen response likely."""
    if not beta > 0:
        raise ValueError(f"beta must be above 0; got {beta}")
    return -logsigmoid(beta * (policy_logps - reference_logps))


def mdpo(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    policy_altered_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    reference_altered_logps: PairValues,
    *,
    beta: float = 0.1,
) -> tuple[PairValues, Logged]:
    """mDPO (Wang 2024, arXiv 2406.11839): DPO on the responses, VDPO on the chosen one, and its anchor, weight 1 each.

    Args:
        policy_altered_logps, reference_altered_logps: of the chosen response under the altered evidence.

    Returns:
        Losses [pair] and DPO's logged tensors, beside `altered_rewards`, detached.
    """
    chosen = policy_chosen_logps, reference_chosen_logps
    responses, logged = dpo(chosen[0], policy_rejected_logps, chosen[1], reference_rejected_logps, beta=beta)
    inputs, of_inputs = vdpo(chosen[0], policy_altered_logps, chosen[1], reference_altered_logps, beta=beta)
    losses = responses + inputs + anchor(*chosen, beta=beta)
    return losses, {**logged, "altered_rewards": of_inputs["rejected_rewards"]}


def js_divergence(p_logps: Float[Tensor, "row vocab"], q_logps: Float[Tensor, "row vocab"]) -> Float[Tensor, " row"]:
    """Jensen-Shannon divergence in nats: (KL(p||m) + KL(q||m)) / 2 with m = (p + q)/2; between 0 and log 2.

    Args:
        p_logps, q_logps: log-probabilities; -inf for what cannot happen.

    Raises:
        FloatingPointError: a divergence is NaN although it was computed from log-probabilities.
    """
    mean = torch.logaddexp(p_logps, q_logps) - math.log(2)

    def towards_mean(logps: Tensor) -> Tensor:
        terms = logps.exp() * (logps - mean)
        return torch.where(logps == -math.inf, 0.0, terms).sum(-1)

    found = (0.5 * (towards_mean(p_logps) + towards_mean(q_logps))).clamp(0.0, math.log(2))
    if bool(found.isnan().any()):
        why = "the model's log-probabilities are; look at its weights"
        raise FloatingPointError(f"a Jensen-Shannon divergence is NaN: {why}")
    return found
