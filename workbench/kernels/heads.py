"""The output head: log-probabilities of given tokens from hidden states, without a [tokens, vocabulary] tensor.

What may live here: what happens between the last hidden state and the log-probability of a token. What may not: the
transformer body, batching and padding (see `scoring`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Logits held at once: 2**22 numbers are 16 MiB in float32, small beside any model and large enough to keep cores busy.
TILE = 2**22


def token_logps(
    hidden: Float[Tensor, "tok d_model"],
    targets: Int[Tensor, " tok"],
    head: Callable[[Tensor], Tensor],
    *,
    vocab: int,
    finish: Callable[[Tensor], Tensor] | None = None,
    tile: int = TILE,
) -> Float[Tensor, " tok"]:
    """Log-probability of each target token, in nats; differentiable in `hidden` and in the head's weights.

    The tokens are taken in chunks of `tile // vocab`. With more than one chunk the logits of a chunk are dropped
    after the forward pass and computed again in the backward pass, so neither pass ever holds more than one chunk.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids.
        head: maps [n, d_model] to logits [n, vocab]; usually the model's output embedding, with bias or LoRA if any.
        vocab: number of logits a token has.
        finish: what the model does to its logits after the head (scaling, soft-capping); see `logit_finish`.
        tile: logits held at once.

    Notes:
        Half-precision logits are raised to float32 before the log-sum-exp; float32 and float64 stay as they are.
    """

    def chunk_logps(hidden_chunk: Tensor, target_chunk: Tensor) -> Tensor:
        logits = head(hidden_chunk)
        logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
        if finish is not None:
            logits = finish(logits)
        return logits.gather(-1, target_chunk[:, None]).squeeze(-1) - logits.logsumexp(-1)

    size = max(1, tile // vocab)
    if len(targets) <= size:
        return chunk_logps(hidden, targets)
    chunks = []
    for hidden_chunk, target_chunk in zip(hidden.split(size), targets.split(size), strict=True):
        if torch.is_grad_enabled():
            chunks.append(
                checkpoint(chunk_logps, hidden_chunk, target_chunk, use_reentrant=False, preserve_rng_state=False)
            )
        else:
            chunks.append(chunk_logps(hidden_chunk, target_chunk))
    return torch.cat(chunks)


def body_and_head(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The transformer without its head, and the head, of a causal language model, with or without a LoRA adapter.

    Raises:
        ValueError: the model has no output embedding (it is not a language model).
    """
    causal = model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
    head = causal.get_output_embeddings() if hasattr(causal, "get_output_embeddings") else None  # type: ignore[operator]
    if head is None:
        raise ValueError(
            f"{type(causal).__name__} has no output embedding; scoring and sampling need a causal language model"
        )
    return causal.base_model, head  # type: ignore[return-value]


def logit_finish(config) -> Callable[[Tensor], Tensor] | None:
    """What this architecture does to its logits after the head, read from its configuration.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, Gemma 2 caps by c·tanh(z/c).
    """
    config = config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0
    scale /= getattr(config, "logits_scaling", None) or 1.0
    cap = getattr(config, "final_logit_softcapping", None)
    if scale == 1.0 and not cap:
        return None
    return lambda logits: (cap * torch.tanh(logits * scale / cap)) if cap else logits * scale
