"""Objectives for text that is longer than what the reference can read: LongPO."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor

from workbench.objectives.pairwise import Logged, PairValues, dpo

Pairs = Bool[Tensor, " pair"]


def longpo(
    policy_chosen_logps: PairValues,
    policy_rejected_logps: PairValues,
    reference_chosen_logps: PairValues,
    reference_rejected_logps: PairValues,
    *,
    chosen_token_nll: PairValues,
    is_pair: Pairs | None = None,
    beta: float = 0.1,
    lam: float = 0.01,
    nll_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[PairValues, Logged]:
    """Short-to-long preference optimisation: DPO with the policy on the long input and the reference on the short one.

        NLL - lam log sigma(beta log [p_theta(y_S|x_L) / p_S(y_S|x_S)] - beta log [p_theta(y_L|x_L) / p_S(y_L|x_S)])

    (eqs. 12 and 14.) Of several turns each of the four log-probabilities is the sum over the answers of all turns, as
    in the released code; the paper's eq. 13 as printed sums probabilities. Before training the two ratios are not 1,
    because the inputs differ, so the loss does not begin at log 2.

    Args:
        policy_chosen_logps, policy_rejected_logps: log p_theta of the short-context and the long-context answers, both
            behind the *long* input, summed over the tokens of all answers, nats.
        reference_chosen_logps, reference_rejected_logps: log p_S of the same tokens behind the *short* inputs.
        chosen_token_nll: mean NLL a token of the long chosen text, nats; which tokens is up to the caller.
        is_pair: False where both answers are the same: such rows are imitated only. None: True everywhere.
        beta: 1/nat, above 0.
        lam: weight of the preference term, at least 0; `nll_weight`: of the NLL, 1 in the paper, 0 leaves it out.
        label_smoothing: in [0, 0.5).

    Returns:
        Losses [pair]; and `preference_losses`, `nll`, `chosen_rewards`, `rejected_rewards`, `accuracies`, `margins`
        [pair], detached. The preference loss of a row that is no pair is 0.

    Raises:
        ValueError: beta, lam, nll_weight or label_smoothing out of range, or a loss of nothing (both weights 0).

    Source: Chen et al. 2025, arXiv 2502.13922; LongPOMTLMUlyssesTrainer of DAMO-NLP-SG/LongPO.
    """
    if not (lam >= 0 and nll_weight >= 0) or lam + nll_weight == 0:
        raise ValueError(f"lam and nll_weight must be at least 0 and not both 0; got {lam} and {nll_weight}")
    four = (policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps)
    losses, logged = dpo(*four, beta=beta, label_smoothing=label_smoothing)
    if is_pair is not None:
        losses = losses.masked_fill(~is_pair, 0.0)
    total = nll_weight * chosen_token_nll + lam * losses
    return total, {**logged, "preference_losses": losses.detach(), "nll": chosen_token_nll.detach()}
