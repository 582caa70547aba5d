"""Objectives of simultaneous translation: confidence of read/write states, expected delay, latency-aware preferences.

`simul_dpo` is a reconstruction: the paper's equation was not available. What is certain is that SimulPL puts latency
into the preference objective; the form here follows from maximising E[reward - alpha latency] under a KL penalty, which
separates into the DPO term on the tokens and an explicit term on the read/write head.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from workbench.objectives.pairwise import Logged, PairValues, dpo
from workbench.objectives.reference_free import simpo

SIMUL_LOSSES = ("sigmoid", "ipo", "simpo")


def state_confidence(
    full_logps: Float[Tensor, "row tok vocab"],
    prefix_logps: Float[Tensor, "row tok vocab"],
    confidence: Float[Tensor, "row tok"],
    targets: Int[Tensor, "row tok"],
    is_token: Bool[Tensor, "row tok"],
    *,
    confidence_weight: float = 0.1,
    label_smoothing: float = 0.0,
) -> tuple[Float[Tensor, " row"], Logged]:
    """Multi-task fine-tuning with state confidence (Yu 2024, "SM2"): a translator learns when a prefix is enough.

    With p^s from a source prefix, p^o from the full source and c the confidence of the state,

        p^m_i = c_i p^s_i + (1 - c_i) p^o_i,     L = CE(p^o, y) + CE(p^m, y) + lambda sum_i -log c_i

    Low confidence is bought by leaning on the full source and taxed by lambda; gradients flow through p^s, p^o and c.

    Args:
        full_logps, prefix_logps: log-probabilities, nats. Columns are the whole vocabulary, or, where `label_smoothing`
            is 0, the target alone (then `targets` are all 0).
        confidence: c in (0, 1), of the states behind the prefix.
        targets: columns of the target tokens.
        is_token: True on target tokens; nothing else counts (SM2's code sums -log c over padding too).
        confidence_weight: lambda.
        label_smoothing: share of the target's mass that goes to all columns alike, fairseq's form.

    Returns:
        Losses [row], sums over tokens, nats; and their parts `full_losses`, `mixed_losses`, `confidence_penalties`, the
        last without lambda, and `n_tokens` [row], detached.

    Raises:
        ValueError: lambda below 0, smoothing outside [0, 1), confidences outside [0, 1], or smoothing over one column.

    Source: EurekaForNLP/SM2, label_smoothed_cross_entropy_with_stream_confidence.py.
    """
    if confidence_weight < 0 or not 0 <= label_smoothing < 1:
        got = f"{confidence_weight} and {label_smoothing}"
        raise ValueError(f"need confidence_weight >= 0 and label_smoothing in [0, 1); got {got}")
    if label_smoothing and full_logps.shape[-1] < 2:
        raise ValueError("label smoothing needs log-probabilities of the whole vocabulary, not of the targets alone")
    if not bool(((confidence >= 0) & (confidence <= 1))[is_token].all()):
        raise ValueError("confidences are probabilities in [0, 1]; pass them through a sigmoid")
    c = torch.where(is_token, confidence, 0.5)
    mixed_logps = torch.logaddexp(c.log()[..., None] + prefix_logps, torch.log1p(-c)[..., None] + full_logps)
    full, mixed = (_cross_entropy(logps, targets, label_smoothing) for logps in (full_logps, mixed_logps))
    parts = {"full_losses": full, "mixed_losses": mixed, "confidence_penalties": -c.log()}
    sums = {name: torch.where(is_token, values, 0.0).sum(-1) for name, values in parts.items()}
    losses = sums["full_losses"] + sums["mixed_losses"] + confidence_weight * sums["confidence_penalties"]
    return losses, {**{name: values.detach() for name, values in sums.items()}, "n_tokens": is_token.sum(-1)}


def _cross_entropy(logps: Tensor, targets: Tensor, smoothing: float) -> Float[Tensor, "row tok"]:
    nll = -logps.gather(-1, targets[..., None]).squeeze(-1)
    if not smoothing:
        return nll
    each = smoothing / (logps.shape[-1] - 1)
    return (1 - smoothing - each) * nll - each * logps.sum(-1)


def expected_delays(
    confidence: Float[Tensor, "row tok prefix"], prefix_lengths: Float[Tensor, "row prefix"]
) -> Float[Tensor, "row tok"]:
    """Expected number of source words read when each target token is written; not decreasing along the tokens.

    w_ij = c_ij prod_{k<j} (1 - c_ik), the last c taken as 1; dbar_i = sum_j j w_ij; then the running maximum over i.

    Args:
        confidence: c of the states (i, j); the prefixes in order, the last one the whole source.
        prefix_lengths: words of each prefix.
    """
    stays = torch.cumprod(1 - confidence[..., :-1], -1)
    reached = torch.cat([torch.ones_like(confidence[..., :1]), stays], -1)
    writes = torch.cat([confidence[..., :-1], torch.ones_like(confidence[..., :1])], -1)
    return (reached * writes * prefix_lengths[:, None]).sum(-1).cummax(-1).values


def delay_penalty(
    delays: Float[Tensor, "row tok"], source_lengths: Float[Tensor, " row"], is_token: Bool[Tensor, "row tok"]
) -> Float[Tensor, " row"]:
    """Lat(y) = (1/I) sum_i max(0, dbar_i - (i-1) J/I) / J: expected lagging as a share of the source, at least 0."""
    lengths = is_token.sum(-1)
    ideal = torch.arange(delays.shape[1], device=delays.device) * (source_lengths / lengths)[:, None]
    behind = torch.where(is_token, (delays - ideal).clamp(min=0), 0.0)
    return behind.sum(-1) / lengths / source_lengths


def simul_dpo(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    supervised_losses: PairValues,
    chosen_penalties: PairValues,
    rejected_penalties: PairValues | None = None,
    *,
    beta: float = 0.1,
    kappa: float = 1.0,
    alpha: float = 1.0,
    loss_type: str = "sigmoid",
    form: Literal["terms", "margin"] = "terms",
) -> tuple[PairValues, Logged]:
    """SimulDPO, a reconstruction: preferences between translations, with latency and calibrated confidence.

    - terms: L = L_pref + kappa L_MSFT(y_w) + alpha Lat(y_w)
    - margin: L = -log sigma(beta h - alpha (Lat_w - Lat_l)) + kappa L_MSFT(y_w), with h the DPO margin

    Args:
        policy_..., reference_...: log-probs of the two translations, each token under its source prefix, the same
            prefixes for policy and reference; sums, or means over tokens for "ipo" and "simpo".
        supervised_losses: `state_confidence` of the chosen translation.
        chosen_penalties, rejected_penalties: `delay_penalty`; the second for the margin form alone.
        beta: 1/nat, above 0.
        kappa: weight of the supervised loss, at least 0; it keeps the confidence calibrated while the text moves.
        alpha: weight of latency, at least 0.
        loss_type: "sigmoid" (DPO), "ipo" or "simpo", the last without a reference.
        form: where latency enters.

    Returns:
        Losses [pair], and DPO's logged tensors beside `pair_losses` and `delay_penalties`, detached.

    Raises:
        ValueError: a weight below 0, an unknown loss type or form, the margin form of another loss than "sigmoid" or
            without the penalties of the rejected translation.
    """
    if not alpha >= 0 or not kappa >= 0:
        raise ValueError(f"alpha and kappa must be at least 0; got alpha={alpha}, kappa={kappa}")
    if loss_type not in SIMUL_LOSSES or form not in ("terms", "margin"):
        known = f"known loss types: {', '.join(SIMUL_LOSSES)}; known forms: terms, margin"
        raise ValueError(f"{known}; got {loss_type!r}, {form!r}")
    if form == "margin" and (loss_type != "sigmoid" or rejected_penalties is None):
        raise ValueError("the margin form is that of loss_type='sigmoid' and needs the delays of both translations")
    if loss_type == "simpo":
        pair_losses, logged = simpo(policy_chosen_logps, policy_rejected_logps, beta=beta)
    else:
        four = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
        pair_losses, logged = dpo(*four, beta=beta, loss_type=loss_type)
    latency_losses = alpha * chosen_penalties
    if form == "margin" and rejected_penalties is not None:
        margins = (policy_chosen_logps - reference_chosen_logps) - (policy_rejected_logps - reference_rejected_logps)
        pair_losses = -logsigmoid(beta * margins - alpha * (chosen_penalties - rejected_penalties))
        latency_losses = torch.zeros_like(pair_losses)
    losses = pair_losses + kappa * supervised_losses + latency_losses
    return losses, {**logged, "pair_losses": pair_losses.detach(), "delay_penalties": chosen_penalties.detach()}
