"""The output head: log-probabilities of given tokens from hidden states, without a [tokens, vocabulary] tensor.

Two backward passes, for d logp_i = g_i (e_y - p_i) J_i, where p_i is the softmax of token i and J_i the slope of a
soft cap, if the model has one:
- frozen head (LoRA): the forward pass keeps u_i = W[y_i] - sum_v p_iv W_v, one [tokens, d_model] tensor; the gradient
  of the hidden states is g_i u_i for any loss, with no product with the head and nothing computed again;
- trained head: p_i is kept for the first tokens, as many as fit in `KEEP` numbers, and computed again for the others.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

from workbench.kernels.finish import PLAIN, TILE, Finish
from workbench.kernels.gpu_heads import cce_logps, head_kernel, triton_logps

# Probabilities kept for the backward pass of a trained head; more are computed again, at a fourth product with the
# head.
KEEP = 2**24


class TokenScores(NamedTuple):
    """Numbers of every token, from one pass over the logits. All but `logps` are for reading: they carry no gradient.

    Attributes:
        logps: log-probability of the target, nats.
        logsumexp: of the logits, nats. None unless asked for, like the others.
        entropy: of the distribution, nats.
        label_logps: log-probabilities of the tokens asked for.
    """

    logps: Float[Tensor, " tok"]
    logsumexp: Float[Tensor, " tok"] | None = None
    entropy: Float[Tensor, " tok"] | None = None
    label_logps: Float[Tensor, "tok label"] | None = None


def token_logps(
    hidden: Float[Tensor, "tok d_model"],
    targets: Int[Tensor, " tok"],
    head: nn.Module,
    *,
    finish: Finish = PLAIN,
    tile: int = TILE,
    keep: int = KEEP,
) -> Float[Tensor, " tok"]:
    """Log-probability of each target token, in nats; differentiable in `hidden` and in the head's weights.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids.
        head: the model's output embedding: [n, d_model] to logits [n, vocab], with bias or LoRA if any.
        finish: what the model does to its logits after the head; see `meeting`.
        tile: logits held at once.
        keep: probabilities kept for the backward pass of a trained head.

    Notes:
        Half-precision logits are raised to float32 before the log-sum-exp; float32 and float64 stay as they are.
        A head that is more than a matrix and a bias (an adapter on the head) is differentiated by autograd, a chunk at
        a time, with the chunks computed again in the backward pass.
    """
    linear = _plain_linear(head)
    if linear is None:
        return _logps_of_any_head(hidden, targets, head, finish, tile)
    weight: Any = linear.weight
    bias: Any = linear.bias
    if isinstance(weight, DTensor):
        from workbench.kernels.sharded_head import sharded_token_logps

        return sharded_token_logps(hidden, targets, weight, bias, scale=finish.scale, cap=finish.cap or None, tile=tile)
    kernel = head_kernel(weight, bias)
    if kernel == "cce":
        return cce_logps(hidden, weight, targets, finish.scale, finish.cap)
    dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
    return _LinearLogps.apply(hidden, weight, bias, targets, finish, tile, keep, dtype, kernel)  # type: ignore[return-value]


@torch.no_grad()
def token_scores(
    hidden: Float[Tensor, "tok d_model"],
    targets: Int[Tensor, " tok"],
    head: nn.Module,
    *,
    logsumexp: bool = False,
    entropy: bool = False,
    labels: Int[Tensor, " label"] | None = None,
    finish: Finish = PLAIN,
    tile: int = TILE,
) -> TokenScores:
    """Like `token_logps`, with what else the same pass over the logits can tell; no gradients.

    Args:
        labels: token ids whose log-probabilities are wanted at every position (the letters of a judgement).
    """
    found: list[TokenScores] = []
    size = max(1, tile // _vocab(head))
    for hidden_chunk, target_chunk in zip(hidden.split(size), targets.split(size), strict=True):
        logits = _logits(head, hidden_chunk, finish)
        total = logits.logsumexp(-1)
        found.append(
            TokenScores(
                logits.gather(-1, target_chunk[:, None]).squeeze(-1) - total,
                total if logsumexp else None,
                total - torch.einsum("tv,tv->t", logits.softmax(-1), logits) if entropy else None,
                logits[:, labels] - total[:, None] if labels is not None else None,
            )
        )
    return TokenScores(*(None if parts[0] is None else torch.cat(parts) for parts in zip(*found, strict=True)))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------------- linear head
class _LinearLogps(torch.autograd.Function):
    """logp(target) of a linear head, chunk by chunk. `dtype` is what autocast computes products in, or None."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, finish, tile, keep, dtype, kernel):
        train_head = any(ctx.needs_input_grad[1:3])
        frozen = ctx.needs_input_grad[0] and not train_head
        matrix = weight.to(dtype or weight.dtype)
        chunks = _Chunks(matrix, bias, finish, tile)
        logps = hidden.new_empty(len(targets), dtype=chunks.wide)
        totals = torch.empty_like(logps)
        slopes = hidden.new_empty(hidden.shape, dtype=matrix.dtype) if frozen else None
        kept: list[Tensor] = []
        in_chip = kernel == "triton" and not frozen
        if in_chip:
            logps, totals = triton_logps(hidden.to(matrix.dtype), matrix, targets, scale=finish.scale, cap=finish.cap)
        for rows in [] if in_chip else chunks.split(len(targets)):
            inputs, target = hidden[rows].to(matrix.dtype), targets[rows]
            keeping = train_head and (rows.stop * len(matrix) <= keep or rows.start == 0)
            logits, probs = chunks.softmax(inputs, fresh=keeping)
            # the largest probability is never below 1/vocab, so this log-sum-exp is exact where an exponential is not
            totals[rows] = logits.amax(-1) - probs.amax(-1).log()
            logps[rows] = logits.gather(-1, target[:, None]).squeeze(-1) - totals[rows]
            if not (frozen or keeping):
                continue
            at_target = chunks.weigh(probs, logits, target)
            if slopes is not None:
                slopes[rows] = at_target * matrix[target] - probs.to(matrix.dtype) @ matrix
            if keeping:
                kept += [probs, at_target]
        ctx.save_for_backward(hidden, weight, bias, targets, totals, slopes, *kept)
        ctx.finish, ctx.tile, ctx.matrix_dtype = finish, tile, matrix.dtype
        return logps

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        hidden, weight, bias, targets, totals, slopes, *kept = ctx.saved_tensors
        if slopes is not None:
            return (slopes * grad[:, None]).to(hidden.dtype), *[None] * 8
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        matrix = weight.to(ctx.matrix_dtype)
        chunks = _Chunks(matrix, bias, ctx.finish, ctx.tile)
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(weight) if need_weight else None
        d_bias = torch.zeros_like(bias) if need_bias else None
        for number, rows in enumerate(chunks.split(len(targets))):
            inputs, target, g = hidden[rows].to(matrix.dtype), targets[rows], grad[rows, None]
            if 2 * number < len(kept):
                probs, at_target = kept[2 * number : 2 * number + 2]
            else:
                logits, probs = chunks.softmax(inputs, totals[rows])
                at_target = chunks.weigh(probs, logits, target)
            narrow = probs.to(matrix.dtype)
            if d_hidden is not None:
                d_hidden[rows] = (g * (at_target * matrix[target] - narrow @ matrix)).to(hidden.dtype)
            if d_weight is not None:
                weighted = g.to(matrix.dtype) * inputs
                _subtract_product(d_weight, narrow.T, weighted)
                d_weight.index_add_(0, target, (at_target * weighted).to(d_weight.dtype))
            if d_bias is not None:
                d_bias -= (probs.T @ g).squeeze(-1).to(bias.dtype)
                d_bias.index_add_(0, target, (g * at_target).squeeze(-1).to(bias.dtype))
        return d_hidden, d_weight, d_bias, *[None] * 6


class _Chunks:
    """Logits and probabilities of a few tokens at a time, in buffers that are used again."""

    def __init__(self, matrix: Tensor, bias: Tensor | None, finish: Finish, tile: int):
        self.matrix, self.finish = matrix, finish
        self.bias = None if bias is None else bias.to(matrix.dtype)
        self.size = max(1, tile // len(matrix))
        self.wide = torch.promote_types(matrix.dtype, torch.float32)
        self.buffers: dict[str, Tensor] = {}

    def split(self, n: int) -> list[slice]:
        self.size = min(self.size, n)
        return [slice(start, min(start + self.size, n)) for start in range(0, n, max(1, self.size))]

    def softmax(self, inputs: Tensor, totals: Tensor | None = None, *, fresh: bool = False) -> tuple[Tensor, Tensor]:
        """Finished logits and their softmax, [n, vocab] in at least float32; from known log-sum-exps where given."""
        logits = self._buffer("logits", len(inputs), self.matrix.dtype)
        torch.mm(inputs, self.matrix.T, out=logits)
        if self.bias is not None:
            logits += self.bias
        logits = self.finish(logits.to(self.wide))
        if totals is not None and self.finish.cap == 0:
            return logits, logits.sub_(totals[:, None]).exp_()
        probs = torch.empty_like(logits) if fresh else self._buffer("probs", len(inputs), self.wide)
        return logits, torch.softmax(logits, -1, out=probs)

    def weigh(self, probs: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        """Multiplies `probs` in place by the slope of the finish; returns that slope at the targets, [n, 1]."""
        if self.finish == PLAIN:
            return probs.new_ones(len(target), 1)
        slope = self.finish.slope(logits)
        probs *= slope
        return (
            slope.gather(-1, target[:, None]) if isinstance(slope, Tensor) else probs.new_full((len(target), 1), slope)
        )

    def _buffer(self, name: str, n: int, dtype: torch.dtype) -> Tensor:
        if name not in self.buffers:
            self.buffers[name] = self.matrix.new_empty(self.size, len(self.matrix), dtype=dtype)
        return self.buffers[name][:n]


def _subtract_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total -= a @ b; the sum stays in the precision of `total` where the factors are narrower."""
    if a.dtype == total.dtype:
        total.addmm_(a, b, alpha=-1)
    else:
        total -= a @ b


# ------------------------------------------------------------------------------------------------------ any other head
def _logps_of_any_head(hidden: Tensor, targets: Tensor, head: nn.Module, finish: Finish, tile: int) -> Tensor:
    def chunk_logps(hidden_chunk: Tensor, target_chunk: Tensor) -> Tensor:
        logits = _logits(head, hidden_chunk, finish)
        return logits.gather(-1, target_chunk[:, None]).squeeze(-1) - logits.logsumexp(-1)

    size = max(1, tile // _vocab(head))
    if len(targets) <= size:
        return chunk_logps(hidden, targets)
    pairs = zip(hidden.split(size), targets.split(size), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([chunk_logps(*pair) for pair in pairs])
    return torch.cat([checkpoint(chunk_logps, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs])


def _logits(head: nn.Module, hidden: Tensor, finish: Finish) -> Tensor:
    logits = head(hidden)
    return finish(logits.to(torch.promote_types(logits.dtype, torch.float32)))


def _vocab(head: Any) -> int:
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])


def _plain_linear(head: nn.Module) -> nn.Linear | None:
    """The head as a matrix and a bias, or None where it is more: an adapter, a subclass, something hooked on."""
    if hasattr(head, "modules_to_save"):  # trained whole beside a LoRA adapter
        active = head if getattr(head, "disable_adapters", False) else head.modules_to_save  # type: ignore[union-attr]
        head = head.original_module if active is head else active[head.active_adapters[0]]  # type: ignore[index, union-attr, assignment]
    hooked = head._forward_hooks or head._forward_pre_hooks or head._backward_hooks
    return head if type(head) is nn.Linear and not hooked else None


# --------------------------------------------------------------------------------------------------------- whole models
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


def merged(model: nn.Module) -> Any:
    """A copy without adapter whose weights have it in them.

    An input embedding that shares its matrix with the output head is given one of its own first, or an adapter on one
    would be added to both.
    """
    model = copy.deepcopy(model)
    if not hasattr(model, "peft_config"):
        return model
    base: Any = model.get_base_model()  # type: ignore[operator]
    embedding, head = base.get_input_embeddings(), base.get_output_embeddings()
    inner = [getattr(layer, "base_layer", layer) for layer in (embedding, head)]
    if head is not None and inner[0].weight is inner[1].weight and (inner[0] is not embedding or inner[1] is not head):
        inner[1].weight = nn.Parameter(inner[1].weight.detach().clone())
        base.config.tie_word_embeddings = base.config.get_text_config().tie_word_embeddings = False
    return model.merge_and_unload()  # type: ignore[operator]
