"""The chunked head: same numbers and gradients as the plain one, and never more than a tile of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from workbench.kernels import token_logps


def inputs(n, width, vocab, dtype=torch.float64, bias=True):
    torch.manual_seed(n * vocab)
    head = nn.Linear(width, vocab, bias=bias, dtype=dtype)
    return torch.randn(n, width, dtype=dtype, requires_grad=True), torch.randint(vocab, (n,)), head


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), vocab=st.integers(2, 50), chunk=st.integers(1, 45))
def test_chunks_change_nothing(n, vocab, chunk):
    hidden, targets, head = inputs(n, 6, vocab)
    plain = head(hidden).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    weights = torch.linspace(-1, 2, n, dtype=torch.float64)
    expected = torch.autograd.grad((plain * weights).sum(), [hidden, *head.parameters()])
    got_logps = token_logps(hidden, targets, head, vocab=vocab, tile=chunk * vocab)
    got = torch.autograd.grad((got_logps * weights).sum(), [hidden, *head.parameters()])
    torch.testing.assert_close(got_logps, plain, rtol=1e-10, atol=1e-10)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("train_head", [True, False])
def test_no_tokens_by_vocabulary_tensor_in_forward_or_backward(train_head):
    """Watches every tensor that any operation makes: none may hold as many numbers as tokens times vocabulary."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    n, width, vocab, tile = 512, 8, 1_000, 40_000
    hidden, targets, head = inputs(n, width, vocab, torch.float32, bias=False)
    head.requires_grad_(train_head)
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
            return out

    with Watch():
        token_logps(hidden, targets, head, vocab=vocab, tile=tile).sum().backward()
    assert max(sizes) <= tile < n * vocab


def test_half_precision_is_summed_in_float32():
    """bfloat16 hidden states and weights: the log-prob keeps float32, within the rounding of bf16 logits."""
    hidden, targets, head = inputs(20, 16, 30, torch.float32)
    exact = token_logps(hidden, targets, head, vocab=30)
    rough = token_logps(hidden.bfloat16(), targets, head.bfloat16(), vocab=30)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0.03)
