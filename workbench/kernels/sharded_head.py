"""The output head when its matrix lies in pieces on several processes: log-probs without ever gathering the matrix.

Hidden states are far smaller than the matrix, so they travel and the matrix stays: every process computes the logits of
all tokens over its own words, and two numbers a token (log-sum-exp and target logit) make them one distribution.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from workbench.kernels.finish import TILE, Finish


def sharded_token_logps(
    hidden: Float[Tensor, "tok d_model"],
    targets: Int[Tensor, " tok"],
    weight: DTensor,
    bias: DTensor | None = None,
    *,
    scale: float = 1.0,
    cap: float | None = None,
    tile: int = TILE,
) -> Float[Tensor, " tok"]:
    """Log-probability of each of this process's target tokens, in nats; differentiable in `hidden`, `weight`, `bias`.

    Every process of the weight's mesh calls it at the same time, forward and backward, each with its own tokens: any
    number of them, also none.

    Args:
        hidden: last hidden states at the positions that predict the targets.
        targets: token ids of the whole vocabulary.
        weight: [vocab, d_model], sharded over the vocabulary: one mesh axis, `Shard(0)`.
        bias: [vocab], sharded likewise.
        scale, cap: what the model does to its logits, see `heads.Finish`.
        tile: logits held at once on each process; more are computed in turn, and again in the backward pass.

    Raises:
        ValueError: the weight is not sharded over the vocabulary alone, or a process would hold no word.

    Notes:
        The gradients of weight and bias are those of the *sum* of all processes' losses, each shard's on its process:
        FSDP's units beside it must add gradients too (divide factor 1), not average them.
    """
    mesh = weight.device_mesh
    vocab, world = weight.shape[0], mesh.size()
    rows = -(-vocab // world)  # words of a process; the last one may have fewer
    if mesh.ndim != 1 or tuple(weight.placements) != (Shard(0),) or rows * (world - 1) >= vocab:
        raise ValueError(
            f"the head must be sharded over its vocabulary with a word or more on every process; got {vocab} words "
            f"as {weight.placements} on {world} processes"
        )
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    group = mesh.get_group()
    counts = torch.tensor(len(targets), device=hidden.device)
    dist.all_reduce(counts, dist.ReduceOp.MAX, group=group)
    longest = int(counts)
    size = min(max(1, tile // vocab), longest)
    shard = _Shard(group, mesh.get_local_rank() * rows, longest, size, Finish(scale, cap or 0.0))
    local_bias = None if bias is None else bias.to_local()
    return _ShardedLogps.apply(hidden, weight.to_local(), local_bias, targets, shard, dtype)  # type: ignore[return-value]


class _ShardedLogps(torch.autograd.Function):
    """Chunks of as many tokens from every process, [world * size] together; rows beyond a process's last are
    padding."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, shard, dtype):
        matrix, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        totals = hidden.new_empty(len(targets), dtype=torch.promote_types(dtype, torch.float32))
        logps = torch.empty_like(totals)
        for rows in shard.chunks():
            logits = shard.logits(shard.gather(hidden[rows].to(dtype)), matrix, bias)
            place, here = shard.places(targets[rows], len(matrix))
            at_target = logits.gather(-1, place[:, None]).squeeze(-1) * here
            parts = torch.stack([logits.logsumexp(-1), at_target], -1)  # [world * size, 2]
            every = shard.own(shard.gather(parts, pad=False).view(-1, *parts.shape), len(targets[rows]))
            totals[rows] = every[..., 0].logsumexp(0)
            logps[rows] = every[..., 1].sum(0) - totals[rows]
        ctx.save_for_backward(hidden, matrix, bias, targets, totals)
        ctx.shard, ctx.weight_dtype = shard, weight.dtype
        return logps

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        hidden, matrix, bias, targets, totals = ctx.saved_tensors
        shard: _Shard = ctx.shard
        need_hidden, need_weight, need_bias = ctx.needs_input_grad[:3]
        d_hidden = torch.empty_like(hidden) if need_hidden else None
        d_weight = torch.zeros_like(matrix, dtype=ctx.weight_dtype) if need_weight else None
        d_bias = torch.zeros_like(bias, dtype=ctx.weight_dtype) if need_bias else None
        for rows in shard.chunks():
            inputs = shard.gather(hidden[rows].to(matrix.dtype))
            g, total = shard.gather(torch.stack([grad[rows], totals[rows]], -1)).unbind(-1)
            logits = shard.logits(inputs, matrix, bias)
            place, here = shard.places(targets[rows], len(matrix))
            # d logp = onehot - softmax; padding has g = 0, and its total 0 must not make an exponential overflow
            slopes = -torch.exp(logits - torch.where(g == 0, torch.inf, total)[:, None])
            slopes.scatter_add_(-1, place[:, None], here.to(slopes.dtype)[:, None])
            slopes = (slopes * (g[:, None] * shard.finish.slope(logits))).to(matrix.dtype)
            if d_hidden is not None:
                d_hidden[rows] = shard.reduce(slopes @ matrix, len(hidden[rows])).to(hidden.dtype)
            if d_weight is not None:
                d_weight += slopes.T @ inputs
            if d_bias is not None:
                d_bias += slopes.sum(0)
        return d_hidden, d_weight, d_bias, None, None, None


class _Shard:
    """The words first, first + 1, ... of the vocabulary, and the exchange of rows with the processes of the others."""

    def __init__(self, group: dist.ProcessGroup, first: int, longest: int, size: int, finish: Finish):
        self.group, self.first, self.longest, self.size, self.finish = group, first, longest, size, finish
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def chunks(self) -> list[slice]:
        """The same number on every process, so that none waits for a chunk that another one does not have."""
        return [slice(start, start + self.size) for start in range(0, self.longest, self.size or 1)]

    def gather(self, rows: Tensor, *, pad: bool = True) -> Tensor:
        """Every process's rows, one process after the other, each padded with zeros to a whole chunk."""
        if pad and len(rows) < self.size:
            rows = torch.cat([rows, rows.new_zeros(self.size - len(rows), *rows.shape[1:])])
        out = rows.new_empty(self.world * len(rows), *rows.shape[1:])
        dist.all_gather_single(out, rows.contiguous(), group=self.group)
        return out

    def reduce(self, rows: Tensor, n: int) -> Tensor:
        """The sum over processes of this process's first `n` rows of a chunk."""
        out = rows.new_empty(self.size, *rows.shape[1:])
        dist.reduce_scatter_single(out, rows.contiguous(), group=self.group)
        return out[:n]

    def own(self, every: Tensor, n: int) -> Tensor:
        """From [world, world * size, ...], the first `n` rows of this process."""
        return every[:, self.rank * self.size : self.rank * self.size + n]

    def logits(self, inputs: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        logits = torch.nn.functional.linear(inputs, matrix, bias)
        return self.finish(logits.to(torch.promote_types(logits.dtype, torch.float32)))

    def places(self, targets: Tensor, n_words: int) -> tuple[Tensor, Tensor]:
        """Where every process's targets stand among this process's words, and whether they do."""
        places = self.gather(targets) - self.first
        return places.clamp(0, n_words - 1), (places >= 0) & (places < n_words)
