"""Trees: a prompt once, its K responses as branches, all groups of a batch packed into one row without padding.

A branch sees its prompt and itself, and its positions go on from the prompt's end, so each response gets the numbers
that it gets alone. Everything but attention runs once over the packed tokens, P + R_1 + ... + R_K a group where rows of
prompt and response have K·P + R_1 + ... + R_K. Attention is computed by one of three layouts:

- `Segments`: group by group and without masks. A softmax over [prompt, branch] is the merger of one over the prompt and
  one over the branch, so the fast kernels run on each part, and their backward pass gives the exact gradient when it is
  handed the merged output and log-sum-exp. Best where texts are long.
- `Blocks`: groups padded side by side under a block mask, inside attention only. Best where texts are short.
- `Flex`: a FlexAttention block mask over the packed row. For GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from workbench.kernels.attention import repeat_heads

flash_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Span(NamedTuple):
    """Where a group lies in the packed row: its prompt, then its branches, one behind the other."""

    start: int
    prompt_end: int
    branch_ends: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.branch_ends[-1] if self.branch_ends else self.prompt_end


@dataclass(frozen=True)
class Packed:
    """Groups as one row of tokens.

    Attributes:
        input_ids, positions: [tok].
        spans: one a group.
        predictors: [scored tok] the place in the row whose hidden state predicts each response token.
        targets: [scored tok] those response tokens.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    spans: list[Span]
    predictors: np.ndarray
    targets: np.ndarray

    @property
    def longest(self) -> int:
        """Positions of the longest prompt with its longest response."""
        return int(self.positions.max()) + 1


def pack(groups: Sequence[Any]) -> Packed:
    """Lays groups (`prompt_ids`, `responses_ids`, `prompt_positions`) behind each other."""
    ids: list[int] = []
    positions, spans, predictors, places = [], [], [], []
    for group in groups:
        start, p = len(ids), len(group.prompt_ids)
        ids += group.prompt_ids
        positions.append(np.arange(p) if group.prompt_positions is None else np.asarray(group.prompt_positions))
        behind = int(positions[-1][-1]) + 1
        ends = []
        for response in group.responses_ids:
            begin, r = len(ids), len(response)
            ids += response
            places.append(np.arange(begin, begin + r))
            predictors.append(np.arange(begin - 1, begin + r - 1))
            predictors[-1][0] = start + p - 1  # the first token is predicted by the prompt's last
            positions.append(np.arange(behind, behind + r))
            ends.append(begin + r)
        spans.append(Span(start, start + p, tuple(ends)))
    input_ids = np.asarray(ids)
    targets = input_ids[np.concatenate(places)] if places else np.empty(0, int)
    return Packed(input_ids, np.concatenate(positions), spans, np.concatenate(predictors or [targets]), targets)


# ---------------------------------------------------------------------------------------------------------- segments
class Segments:
    """Attention group by group over parts that need no mask."""

    def __init__(self, packed: Packed):
        self.spans, self.span, self.calls = packed.spans, packed.longest, 0

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.calls += 1
        key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
        return _SegmentAttention.apply(query, key, value, self.spans, scaling)  # type: ignore[return-value]


def _parts(span: Span):
    """(queries from, to, keys from, to, causal) of a group. Prompt and first branch are one causal text; every other
    branch sees all of the prompt and, causally, itself."""
    first = span.branch_ends[0] if span.branch_ends else span.prompt_end
    yield span.start, first, span.start, first, True
    if span.end > first:
        yield first, span.end, span.start, span.prompt_end, False
    for begin, end in pairwise(span.branch_ends):
        yield begin, end, begin, end, True


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, spans, scaling):
        out = torch.empty_like(query)
        total = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for span in spans:
            for begin, end, key_begin, key_end, causal in _parts(span):
                keys = slice(key_begin, key_end)
                part, part_total = flash_forward(
                    query[:, :, begin:end], key[:, :, keys], value[:, :, keys], 0.0, causal, scale=scaling
                )
                if key_begin == begin and begin != span.start:  # a branch on itself: join what it saw of the prompt
                    prompt, prompt_total = out[:, :, begin:end], total[:, :, begin:end]
                    joint = torch.logaddexp(prompt_total, part_total)
                    weight = (part_total - joint).exp()[..., None].to(part.dtype)
                    part = prompt + (part - prompt) * weight
                    part_total = joint
                out[:, :, begin:end] = part
                total[:, :, begin:end] = part_total
        ctx.save_for_backward(query, key, value, out, total)
        ctx.spans, ctx.scaling = spans, scaling
        return out

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, total = ctx.saved_tensors
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
        for span in ctx.spans:
            for begin, end, key_begin, key_end, causal in _parts(span):
                rows, keys = slice(begin, end), slice(key_begin, key_end)
                for whole, part in zip(
                    (d_query[:, :, rows], d_key[:, :, keys], d_value[:, :, keys]),
                    flash_backward(
                        grad[:, :, rows],
                        query[:, :, rows],
                        key[:, :, keys],
                        value[:, :, keys],
                        out[:, :, rows],
                        total[:, :, rows],
                        0.0,
                        causal,
                        scale=ctx.scaling,
                    ),
                    strict=True,
                ):
                    whole += part
        return d_query, d_key, d_value, None, None


# ------------------------------------------------------------------------------------------------------------ blocks
class Blocks:
    """Attention over groups padded side by side, under one mask a group. Everything else stays packed."""

    def __init__(self, packed: Packed, dtype: torch.dtype, device: torch.device):
        self.span, self.calls = packed.longest, 0
        groups, width = len(packed.spans), max(span.end - span.start for span in packed.spans)
        branch = np.full((groups, width), -1)  # -1: padding, 0: prompt, k: response k
        places = np.zeros((groups, width), int)
        for row, span in enumerate(packed.spans):
            length = span.end - span.start
            places[row] = span.start  # padding repeats a token of the same group: a NaN stays in its group
            places[row, :length] = np.arange(span.start, span.end)
            edges = [span.prompt_end - span.start, *(end - span.start for end in span.branch_ends)]
            branch[row, : edges[0]] = 0
            for k, (begin, end) in enumerate(pairwise(edges), 1):
                branch[row, begin:end] = k
        self.shape = groups, width
        self.places = torch.from_numpy(places.ravel()).to(device)
        real = torch.from_numpy(branch.ravel() >= 0).to(device)
        self.back = real.nonzero().flatten()  # packed token t sits at padded place back[t]
        self.padding = None if bool(real.all()) else (~real).view(1, 1, -1, 1)
        self.mask = torch.zeros(groups, 1, width, width, dtype=dtype, device=device).masked_fill_(
            torch.from_numpy(~block_mask(branch)).to(device)[:, None], -torch.inf
        )

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.calls += 1
        key, value = repeat_heads(key, query.shape[1]), repeat_heads(value, query.shape[1])
        return _BlockAttention.apply(query, key, value, self, scaling)  # type: ignore[return-value]

    def pad(self, x: Tensor) -> Tensor:
        """[1, head, tok, d] -> [group, head, width, d]; padding repeats a token, and no token sees it."""
        groups, width = self.shape
        return x[0].index_select(1, self.places).view(x.shape[1], groups, width, -1).transpose(0, 1)

    def unpad(self, x: Tensor) -> Tensor:
        groups, width = self.shape
        return x.transpose(0, 1).reshape(x.shape[1], groups * width, -1).index_select(1, self.back)[None]


def block_mask(branch: np.ndarray) -> np.ndarray:
    """[row, tok] branch numbers (0 prompt, k response k, -1 padding) -> [row, tok, tok], True where a token may look.

    Padding looks at the prompt, so that no row of the mask is empty; nothing looks at padding.
    """
    query, key = branch[:, :, None], branch[:, None, :]
    return ((key == 0) | (key == query)) & (key >= 0) & np.tri(branch.shape[1], dtype=bool)


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, blocks: Blocks, scaling):
        padded = [blocks.pad(x) for x in (query, key, value)]
        out, total = flash_forward(*padded, 0.0, False, attn_mask=blocks.mask.to(query.dtype), scale=scaling)
        ctx.save_for_backward(*padded, out, total)
        ctx.blocks, ctx.scaling = blocks, scaling
        return blocks.unpad(out)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        query, key, value, out, total = ctx.saved_tensors
        blocks = ctx.blocks
        if blocks.padding is not None:
            groups, width = blocks.shape
            grad = blocks.pad(grad).masked_fill(blocks.padding.view(groups, 1, width, 1), 0.0)
        else:
            grad = blocks.pad(grad)
        grads = flash_backward(
            grad, query, key, value, out, total, 0.0, False, attn_mask=blocks.mask.to(query.dtype), scale=ctx.scaling
        )
        return *(blocks.unpad(x) for x in grads), None, None


# -------------------------------------------------------------------------------------------------------------- flex
class Flex:
    """FlexAttention over the packed row; whole blocks of 128 by 128 that hold no pair are never computed."""

    def __init__(self, packed: Packed, device: torch.device):
        from torch.nn.attention.flex_attention import create_block_mask

        self.span, self.calls, self.tokens = packed.longest, 0, len(packed.input_ids)
        width = -(-self.tokens // 128) * 128  # lengths off the block size have given NaN gradients in some releases
        group = np.full(width, -1)
        branch = np.zeros(width, int)
        for number, span in enumerate(packed.spans):
            group[span.start : span.end] = number
            for k, (begin, end) in enumerate(pairwise((span.prompt_end, *span.branch_ends)), 1):
                branch[begin:end] = k
        group, branch = (torch.from_numpy(x).to(device) for x in (group, branch))

        self.mask = create_block_mask(
            lambda row, head, query, key: (
                (group[key] == group[query]) & ((branch[key] == 0) | (branch[key] == branch[query])) & (key <= query)
            ),
            None,
            None,
            width,
            width,
            device=device,
        )
        self.padding = width - self.tokens

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        self.calls += 1
        pad = (0, 0, 0, self.padding)
        query, key, value = (nn.functional.pad(x, pad) if self.padding else x for x in (query, key, value))
        out = _flex(query.is_cuda)(
            query, key, value, block_mask=self.mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
        return out[:, :, : self.tokens]


@cache
def _flex(compiled: bool) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # dynamic shapes: otherwise every new length is compiled anew, for seconds
    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention  # type: ignore[return-value]
