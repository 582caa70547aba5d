"""Sampling: K responses to each prompt, with their log-probabilities.

What may live here: decoding loops over transformers models. What may not: training, judging, files. A prompt's keys
and values are computed once for its K responses; a finished response leaves the batch; every response has a random
stream of its own, so its text does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from workbench.kernels.heads import body_and_head, logit_finish


@dataclass(frozen=True)
class Samples:
    """K responses a prompt; every field is indexed [prompt][k].

    Attributes:
        tokens: response ids, with the end token where the response ended by itself.
        texts: decoded without special tokens, leading white space stripped; empty strings for a bare model.
        token_logps: log-probability of each token under the policy (temperature 1, nothing cut off), nats.
        sampling_token_logps: the same under the distribution it was drawn from; 0 for greedy decoding.
        finish_reasons: "stop" (end token or stop string) or "length".
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    token_logps: list[list[list[float]]]
    sampling_token_logps: list[list[list[float]]]
    finish_reasons: list[list[str]]


@torch.no_grad()
def sample(
    policy: Any,
    prompts: Sequence[Any],
    *,
    n: int = 1,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: Sequence[str] = (),
    seed: int = 0,
    max_rows: int = 256,
) -> Samples:
    """Draws `n` responses to every prompt.

    Args:
        policy: a `Policy`, or a bare transformers model with prompts as token ids.
        prompts: texts, chats or lists of token ids, as `Policy.encode_prompt` takes them; one too long for the context
            keeps its end.
        n: responses a prompt (K).
        temperature: 0 is greedy; 1 samples the policy itself.
        top_p, top_k: keep the smallest set with this much probability / this many tokens; 1.0 and 0 keep all.
        stop: texts that end a response (they stay in it).
        seed: the same seed gives the same text for prompt number i and response number k whatever `max_rows` is, up
            to rounding differences between batch shapes, which matter once in about 10^6 tokens in float32.
        max_rows: responses decoded side by side.

    Raises:
        ValueError: an option out of its range, an empty prompt (named by number), or a stop text without a tokenizer.
    """
    bare = isinstance(policy, nn.Module)
    model: Any = policy if bare else policy.model
    tokenizer: Any = None if bare else policy.tokenizer
    _check_options(n, max_new_tokens, temperature, top_p, top_k, stop, tokenizer)
    encode: Any = getattr(policy, "encode_prompt", None)
    ids = [list(p) if encode is None else encode(p, room=max_new_tokens) if p else [] for p in prompts]
    for index, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(f"prompt {index} has no tokens; a response needs at least a start token before it")
    ends = _end_tokens(model, tokenizer)
    rows: list[_Row] = [_Row(seed, i, k, max_new_tokens) for i in range(len(ids)) for k in range(n)]
    per_batch = max(1, max_rows // n)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))  # equal lengths side by side: little or no padding
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), per_batch):
            batch = order[start : start + per_batch]
            live = [rows[i * n + k] for i in batch for k in range(n)]
            with nullcontext() if bare else policy.autocast():
                _decode(model, [ids[i] for i in batch], n, live, ends, temperature, top_p, top_k, stop, tokenizer)
    finally:
        model.train(was_training)

    def nested(values: list) -> list:
        return [values[i * n : (i + 1) * n] for i in range(len(ids))]

    texts = [tokenizer.decode(row.tokens, skip_special_tokens=True).lstrip() if tokenizer else "" for row in rows]
    return Samples(
        nested([row.tokens for row in rows]), nested(texts), nested([row.logps for row in rows]),
        nested([row.sampling_logps for row in rows]), nested([row.finish_reason for row in rows]),
    )  # fmt: skip


class _Row:
    """One response while it is being written. Its uniforms come from a counter, so no other row can shift them."""

    __slots__ = ("finish_reason", "logps", "sampling_logps", "tokens", "uniforms")

    def __init__(self, seed: int, prompt: int, k: int, length: int):
        stream = np.random.Philox(key=seed % 2**64, counter=[0, 0, k, prompt])
        self.uniforms = np.random.Generator(stream).random(length)
        self.tokens: list[int] = []
        self.logps: list[float] = []
        self.sampling_logps: list[float] = []
        self.finish_reason = "length"


def _decode(model, prompts, n, rows: list[_Row], ends, temperature, top_p, top_k, stop, tokenizer) -> None:
    """Decodes one batch: prefill each prompt once, branch it into `n` rows, drop rows as they finish."""
    device = next(model.parameters()).device
    body, head = body_and_head(model)
    finish = logit_finish(model.config)
    width = max(map(len, prompts))
    padding = torch.tensor([width - len(ids) for ids in prompts], device=device)
    input_ids = torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts], device=device)
    # Without padding no mask is passed: attention then takes its fast path.
    padded = bool(padding.any())
    columns = torch.arange(width, device=device)
    mask = (columns >= padding[:, None]).long() if padded else None
    positions = (columns - padding[:, None]).clamp(min=0)

    cache = DynamicCache(config=model.config)
    out = body(input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    hidden = out.last_hidden_state[:, -1].repeat_interleave(n, 0)
    cache = out.past_key_values
    if n > 1:
        cache.batch_repeat_interleave(n)
    mask = mask.repeat_interleave(n, 0) if mask is not None else None
    next_position = (width - padding).repeat_interleave(n)

    for step in range(len(rows[0].uniforms)):
        logits = head(hidden)
        logits = logits.double() if logits.dtype == torch.float64 else logits.float()
        logits = finish(logits) if finish is not None else logits
        uniforms = torch.tensor([row.uniforms[step] for row in rows], device=device, dtype=torch.float64)
        tokens, logps, sampling_logps = _draw(logits, uniforms, temperature, top_p, top_k)
        keep = []
        for index, (row, token, logp, sampling_logp) in enumerate(
            zip(rows, tokens.tolist(), logps.tolist(), sampling_logps.tolist(), strict=True)
        ):
            row.tokens.append(token)
            row.logps.append(logp)
            row.sampling_logps.append(sampling_logp)
            if token in ends or (stop and _has_stop(tokenizer, row.tokens, stop)):
                row.finish_reason = "stop"
            else:
                keep.append(index)
        if not keep or step + 1 == len(rows[0].uniforms):
            return
        if len(keep) < len(rows):
            kept = torch.tensor(keep, device=device)
            cache.batch_select_indices(kept)
            rows, tokens, next_position = [rows[i] for i in keep], tokens[kept], next_position[kept]
            mask = mask[kept] if mask is not None else None
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1) if mask is not None else None
        out = body(input_ids=tokens[:, None], attention_mask=mask, position_ids=next_position[:, None],
                   past_key_values=cache, use_cache=True)  # fmt: skip
        hidden, cache = out.last_hidden_state[:, -1], out.past_key_values
        next_position = next_position + 1


def _draw(
    logits: Float[Tensor, "row vocab"], uniforms: Float[Tensor, " row"], temperature: float, top_p: float, top_k: int
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"], Float[Tensor, " row"]]:
    """Next tokens by inverting the cumulative distribution at `uniforms`, and their two log-probabilities."""
    policy_logps = logits.log_softmax(-1)
    if temperature == 0:
        tokens = logits.argmax(-1)
        logps = policy_logps.gather(-1, tokens[:, None]).squeeze(-1)
        return tokens, logps, torch.zeros_like(logps)
    scaled = (logits / temperature).log_softmax(-1)
    if top_k:
        smallest = scaled.topk(min(top_k, scaled.shape[-1]), -1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < smallest, -torch.inf).log_softmax(-1)
    if top_p < 1:
        ordered, places = scaled.sort(-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()  # the token that crosses top_p stays
        scaled = scaled.masked_fill((before >= top_p).scatter(-1, places, before >= top_p), -torch.inf).log_softmax(-1)
    cumulative = scaled.double().exp().cumsum(-1)
    # right=True: the first token whose cumulative probability exceeds u, so a token of probability 0 is never drawn
    tokens = torch.searchsorted(cumulative, (uniforms[:, None] * cumulative[:, -1:]), right=True).squeeze(-1)
    tokens = tokens.clamp(max=logits.shape[-1] - 1)
    pick = tokens[:, None]
    return tokens, policy_logps.gather(-1, pick).squeeze(-1), scaled.gather(-1, pick).squeeze(-1)


def _has_stop(tokenizer, tokens: list[int], stop: Sequence[str]) -> bool:
    text = tokenizer.decode(tokens[-32:], skip_special_tokens=True)
    return any(s in text for s in stop)


def _end_tokens(model, tokenizer) -> set[int]:
    """Every id that ends a response: the tokenizer's, and those of the model's own generation settings."""
    found: set[int] = set()
    for owner in (tokenizer, getattr(model, "generation_config", None), model.config):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
    return found


def _check_options(n, max_new_tokens, temperature, top_p, top_k, stop, tokenizer) -> None:
    if n < 1 or max_new_tokens < 1:
        raise ValueError(f"n and max_new_tokens must be at least 1; got n={n}, max_new_tokens={max_new_tokens}")
    if not temperature >= 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(f"need temperature >= 0, 0 < top_p <= 1, top_k >= 0; got {temperature}, {top_p}, {top_k}")
    if stop and tokenizer is None:
        raise ValueError("stop texts need a tokenizer: pass a Policy instead of a bare model")
