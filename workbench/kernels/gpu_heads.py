"""The output head on GPUs: kernels in which logits live in a chip's fast memory alone.

`head_kernel` says which one a head on a GPU takes. No figures of a GPU stand behind the choice yet: cut-cross-entropy
is taken for half-precision weights where it is installed, because its authors measured it there; our own kernel has to
be asked for, with `WORKBENCH_HEAD=triton`, until `benchmarks/scoring_memory.py --device cuda` has shown where it wins.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU build of torch: nothing here is called
    triton = None

KERNELS = ("torch", "triton", "cce")


def head_kernel(weight: Tensor, bias: Tensor | None) -> str:
    """ "torch", "triton" or "cce" (cut-cross-entropy) for this head; the environment's WORKBENCH_HEAD decides if set.

    Raises:
        ValueError: WORKBENCH_HEAD names no kernel.
    """
    wish = os.environ.get("WORKBENCH_HEAD", "")
    if wish and wish not in KERNELS:
        raise ValueError(f"WORKBENCH_HEAD must be one of {', '.join(KERNELS)}; got {wish!r}")
    if not weight.is_cuda or bias is not None:  # both take a bare matrix
        return "torch"
    if wish:
        return wish
    return "cce" if find_spec("cut_cross_entropy") and weight.dtype in (torch.bfloat16, torch.float16) else "torch"


def cce_logps(hidden: Tensor, weight: Tensor, targets: Tensor, scale: float, cap: float) -> Tensor:
    """Log-probs by cut-cross-entropy, forward and backward. "cce_exact" keeps the small gradients that its default
    drops."""
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return -linear_cross_entropy(
        hidden * scale, weight, targets, softcap=cap or None, reduction="none", impl="cce_exact"
    ).float()


if triton is not None:

    @triton.jit
    def _logps_kernel(
        hidden,
        weight,
        targets,
        logps,
        totals,
        n_tokens,
        vocab,
        d_model,
        scale,
        cap,
        TOKENS: tl.constexpr,
        WORDS: tl.constexpr,
        WIDTH: tl.constexpr,
        CAPPED: tl.constexpr,
    ):
        """One program: `TOKENS` tokens against the whole vocabulary, `WORDS` at a time, under a running log-sum-exp."""
        rows = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
        real = rows < n_tokens
        target = tl.load(targets + rows, mask=real, other=0)
        largest = tl.full((TOKENS,), float("-inf"), tl.float32)
        total = tl.zeros((TOKENS,), tl.float32)
        picked = tl.zeros((TOKENS,), tl.float32)
        for start in range(0, vocab, WORDS):
            words = start + tl.arange(0, WORDS)
            logits = tl.zeros((TOKENS, WORDS), tl.float32)
            for begin in range(0, d_model, WIDTH):
                columns = begin + tl.arange(0, WIDTH)
                inside = columns < d_model
                h = tl.load(
                    hidden + rows[:, None] * d_model + columns[None, :], mask=real[:, None] & inside[None, :], other=0.0
                )
                w = tl.load(
                    weight + words[None, :] * d_model + columns[:, None],
                    mask=(words < vocab)[None, :] & inside[:, None],
                    other=0.0,
                )
                logits = tl.dot(h, w, logits, input_precision="ieee")
            logits = logits * scale
            if CAPPED:
                logits = cap * (1 - 2 / (tl.exp(2 * logits / cap) + 1))
            picked += tl.sum(tl.where(words[None, :] == target[:, None], logits, 0.0), 1)
            logits = tl.where((words < vocab)[None, :], logits, float("-inf"))
            new = tl.maximum(largest, tl.max(logits, 1))
            total = total * tl.exp(largest - new) + tl.sum(tl.exp(logits - new[:, None]), 1)
            largest = new
        total = largest + tl.log(total)
        tl.store(totals + rows, total, mask=real)
        tl.store(logps + rows, picked - total, mask=real)


def triton_logps(
    hidden: Float[Tensor, "tok d_model"],
    weight: Float[Tensor, "vocab d_model"],
    targets: Int[Tensor, " tok"],
    *,
    scale: float = 1.0,
    cap: float = 0.0,
) -> tuple[Float[Tensor, " tok"], Float[Tensor, " tok"]]:
    """Log-probs of the targets and the log-sum-exp of their logits, nats, float32; forward only.

    Raises:
        ImportError: Triton is not installed.
    """
    if triton is None:
        raise ImportError("Triton is not installed: use WORKBENCH_HEAD=torch, or install triton")
    logps = torch.empty(len(targets), device=hidden.device, dtype=torch.float32)
    totals = torch.empty_like(logps)
    tokens = 64
    launch: Any = _logps_kernel[(triton.cdiv(len(targets), tokens),)]
    launch(
        hidden.contiguous(),
        weight.contiguous(),
        targets,
        logps,
        totals,
        len(targets),
        len(weight),
        weight.shape[1],
        scale,
        cap,
        TOKENS=tokens,
        WORDS=128,
        WIDTH=64,
        CAPPED=cap > 0,
    )
    return logps, totals
