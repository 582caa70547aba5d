"""Drawing: next tokens from logits, by inverting the cumulative distribution at given uniforms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

# Entries that one cumulative sum runs over. A wide vocabulary is first narrowed to a block of this many tokens: summing
# blocks in float32 is one cheap pass, a float64 sum over 32,000 tokens costs more than the output head.
BLOCK = 128


class SamplingParams(NamedTuple):
    """The distribution that a next token is drawn from: softmax(logits / temperature), cut by top_k and then top_p.

    Attributes:
        temperature: 0 is greedy.
        top_p: keeps the smallest set of tokens with at least this probability; 1.0 keeps all.
        top_k: keeps this many tokens, and those that tie with the last of them; 0 keeps all.
        barred: True for ids that are never drawn; None bars none.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    barred: Bool[Tensor, " vocab"] | None = None

    @property
    def is_policy(self) -> bool:
        """Whether it is the model's own distribution."""
        return self.temperature == 1 and self.top_p == 1 and not self.top_k and self.barred is None


def draw(
    logits: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"], params: SamplingParams
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Next tokens, their log-probabilities (nats) under the policy, and under `params` (0 for greedy).

    A row with a NaN or positive infinity among its logits, or with nothing but negative infinities, gets a NaN
    log-probability: callers must look for it.
    """
    if params.temperature == 0:
        tokens = _allowed(logits, params).argmax(-1)
        logps = logits.log_softmax(-1).gather(-1, tokens[:, None]).squeeze(-1)
        return tokens, logps, torch.zeros_like(logps)
    if params.is_policy:
        probabilities = logits.softmax(-1)
        tokens, _ = _invert(probabilities, uniforms)
        logps = probabilities.gather(-1, tokens[:, None]).squeeze(-1).log()
        return tokens, logps, logps
    tokens, _ = _invert(_sampling_logps(logits, params).exp(), uniforms)
    return tokens, *logps_of(logits, tokens, params)


def logps_of(
    logits: Float[Tensor, "row vocab"], tokens: Int[Tensor, " row"], params: SamplingParams
) -> tuple[Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Log-probabilities (nats) of given tokens under the policy and under `params`: -inf for what `params` cuts off.

    Greedy decoding has no distribution: 0 for every token, also for one that greedy would not have taken.
    """
    pick = tokens[:, None]
    logps = logits.log_softmax(-1).gather(-1, pick).squeeze(-1)
    if params.temperature == 0:
        return logps, torch.zeros_like(logps)
    return logps, logps if params.is_policy else _sampling_logps(logits, params).gather(-1, pick).squeeze(-1)


def _allowed(logits: Float[Tensor, "row vocab"], params: SamplingParams) -> Float[Tensor, "row vocab"]:
    return logits if params.barred is None else logits.masked_fill(params.barred.to(logits.device), -torch.inf)


def _sampling_logps(logits: Float[Tensor, "row vocab"], params: SamplingParams) -> Float[Tensor, "row vocab"]:
    scaled = (_allowed(logits, params) / params.temperature).log_softmax(-1)
    if params.top_k:
        smallest = scaled.topk(min(params.top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf).log_softmax(-1)
    if params.top_p < 1:
        ordered, places = scaled.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # the token that crosses top_p stays
        beyond = before >= params.top_p
        scaled = scaled.masked_fill(beyond.scatter(-1, places, beyond), -torch.inf).log_softmax(-1)
    return scaled


def _invert(
    weights: Float[Tensor, "row entry"], uniforms: Float[Tensor, " row"]
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """The first entry whose cumulative weight exceeds u times the total, and where in it u fell, in [0, 1].

    Float64 sums; an entry of weight 0 is never chosen. More than `BLOCK` entries are searched block first.
    """
    n_rows, n_entries = weights.shape
    if n_entries > 4 * BLOCK:
        blocks = torch.nn.functional.pad(weights, (0, -n_entries % BLOCK)).view(n_rows, -1, BLOCK)
        block, rest = _invert(blocks.sum(-1), uniforms)
        entry, rest = _invert(blocks[torch.arange(n_rows, device=weights.device), block], rest)
        return block * BLOCK + entry, rest
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    # strictly below the total, so that the search (right=True) ends on an entry that adds something
    target = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    entry = torch.searchsorted(cumulative, target, right=True).clamp(max=n_entries - 1)
    weight = weights.gather(-1, entry).double()
    rest = (target - cumulative.gather(-1, entry) + weight) / weight
    return entry.squeeze(-1), rest.squeeze(-1).clamp(0, 1)
