"""Objectives over ranked lists: one prompt, n responses from best to worst, each with a score.

Notation: s_k is the mean log-probability a token of response k, S_k its sum, R_k its score (a reward). Lists of
different lengths share a batch: a response that a list does not have has length 0.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import relu

ListValues = Float[Tensor, "list"]
CandidateValues = Float[Tensor, "list k"]
Lengths = Int[Tensor, "list k"]
Logged = dict[str, Tensor]


def pro(
    logps: CandidateValues,
    lengths: Lengths,
    scores: CandidateValues,
    *,
    sft_weight: float = 0.05,
    temperature: bool = True,
    eps: float = 1e-10,
    in_order: bool = True,
) -> tuple[ListValues, Logged]:
    """Preference ranking optimisation (Song 2024): at step k response k is the positive, all worse ones are negatives.

    With d_ki = R_k - R_i for i > k (the inverse temperature of a negative) and d_kk = max_i d_ki (of the positive):

        term_k = log(eps + exp(s_k d_kk) + sum_{i>k} exp(s_i d_ki)) - s_k d_kk
        loss   = sum_{k<n} term_k - sft_weight (n-1)^2 S_1

    S_1 is a sum over tokens and not a mean. Responses with equal scores have d = 0: a term without gradient.

    Args:
        logps: log p_policy of each response, summed over its tokens, nats.
        lengths: scored tokens of each response; 0 where the list has no such response.
        scores: R, falling along a list; not looked at where the length is 0.
        sft_weight: w, of the likelihood of the best response.
        temperature: False takes d = 1 everywhere (eq. 4 of the paper instead of eq. 7).
        eps: inside the logarithm, as in the official code; 0 leaves it out. Matters where every s d is below log eps.
        in_order: refuse lists whose scores rise somewhere; False takes them as they stand, as the official code does.

    Returns:
        Losses [list], and detached: `rank_1`, `rank_2`, ... (the terms; 0 where the list is too short), `sft_nll`
        (-S_1) and `agreement` (share of pairs of different scores that s orders as R; equal s count half, no pair 1/2).

    Raises:
        ValueError: fewer than two responses in a list, scores that rise, a gap in a list, or eps or weight below 0.

    Source: Song et al. 2024, "Preference Ranking Optimization for Human Alignment", arXiv 2306.17492, eq. 4 to 8;
    official code compute_loss of AlibabaResearch/DAMO-ConvAI, folder PRO.
    """
    if eps < 0 or sft_weight < 0:
        raise ValueError(f"eps and sft_weight must not be below 0; got {eps} and {sft_weight}")
    is_there = _check_lists(lengths)
    if in_order:
        remedy = "sort the list from best to worst, or pass in_order=False"
        what = "the scores rise from one response to the next, which would turn the contrast round"
        _refuse(((scores[:, 1:] > scores[:, :-1]) & is_there[:, 1:]).any(1), f": {what}; {remedy}")
    means = logps / lengths.clamp(min=1)
    n = is_there.sum(1)
    worse = is_there[:, None, :] & torch.ones_like(is_there[0]).expand(is_there.shape[1], -1).triu(1)  # i > k
    gaps = scores[:, :, None] - scores[:, None, :]  # d_ki = R_k - R_i
    widest = gaps.masked_fill(~worse, -math.inf).amax(2)
    has_worse = worse.any(2)
    inverse = torch.where(has_worse, widest, 0.0) if temperature else torch.ones_like(widest)
    positive = means * inverse  # s_k d_kk
    negatives = (means[:, None, :] * (gaps if temperature else 1.0)).masked_fill(~worse, -math.inf)
    totals = torch.logsumexp(torch.cat([positive[:, :, None], negatives], 2), 2)
    if eps:
        totals = torch.logaddexp(totals, totals.new_tensor(math.log(eps)))
    terms = torch.where(has_worse, totals - positive, 0.0)
    sft = -logps[:, 0]
    losses = terms.sum(1) + sft_weight * (n - 1) ** 2 * sft
    ranks = {f"rank_{k + 1}": terms[:, k].detach() for k in range(terms.shape[1] - 1)}
    logged = {**ranks, "sft_nll": sft.detach(), "agreement": agreement(means.detach(), scores, is_there)}
    return losses, logged


def rrhf(
    logps: CandidateValues,
    lengths: Lengths,
    scores: CandidateValues,
    *,
    rank_weight: float = 1.0,
    length_penalty: float = 1.0,
    width: int = 0,
) -> tuple[ListValues, Logged]:
    """Rank responses to align with human feedback (Yuan 2023): a hinge on every pair that stands the wrong way round.

        s_k = S_k / |y_k|^length_penalty
        loss = rank_weight sum_{R_j > R_i} max(0, s_i - s_j) - S_best / width

    Args:
        logps, lengths, scores: as for `pro`; the order of a list does not matter.
        width: positions that the official code averages the best row's likelihood over, masked ones included; 0 takes
            the longest response of the list.

    Returns:
        Losses [list], and `rank_loss`, `sft_nll` (both as above, unweighted) and `agreement`, detached.

    Raises:
        ValueError: fewer than two responses in a list, or a gap in it.

    Source: Yuan et al. 2023, arXiv 2304.05302, eq. 2 to 4; official code GanjinZero/RRHF, train.py.
    """
    is_there = _check_lists(lengths)
    values = logps / lengths.clamp(min=1) ** length_penalty
    pairs = is_there[:, :, None] & is_there[:, None, :] & (scores[:, None, :] > scores[:, :, None])  # R_j > R_i
    gaps = values[:, :, None] - values[:, None, :]
    rank = torch.where(pairs, relu(gaps), 0.0).sum((1, 2))
    best = scores.masked_fill(~is_there, -math.inf).argmax(1, keepdim=True)
    sft = -logps.gather(1, best)[:, 0] / (width or lengths.amax(1))
    logged = {"rank_loss": rank.detach(), "sft_nll": sft.detach()}
    return rank_weight * rank + sft, {**logged, "agreement": agreement(values.detach(), scores, is_there)}


def agreement(values: CandidateValues, scores: CandidateValues, is_there: Tensor) -> ListValues:
    """Share of a list's pairs with different scores that `values` orders as the scores do; equal values count half."""
    better = is_there[:, :, None] & is_there[:, None, :] & (scores[:, :, None] > scores[:, None, :])
    right = (torch.sign(values[:, :, None] - values[:, None, :]) + 1) / 2
    n = better.sum((1, 2))
    return torch.where(n > 0, (right * better).sum((1, 2)) / n.clamp(min=1), 0.5)


def _check_lists(lengths: Tensor) -> Tensor:
    is_there = lengths > 0
    _refuse(is_there.sum(1) < 2, " has fewer than two responses with tokens: nothing can be ranked; leave it out")
    gap = (is_there[:, 1:] & ~is_there[:, :-1]).any(1)
    _refuse(gap, " has a response without tokens before one with tokens; missing ones stand last")
    return is_there


def _refuse(bad: Tensor, what: str) -> None:
    if bool(bad.any()):
        raise ValueError(f"list {int(torch.nonzero(bad)[0])}{what}")
