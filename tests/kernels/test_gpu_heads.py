"""Kernels for GPUs, run by the Triton interpreter on a CPU: their numbers, not their speed."""

import os
import subprocess
import sys

import pytest
import torch

from workbench.kernels.gpu_heads import head_kernel

INTERPRETED = """
import torch
from workbench.kernels.gpu_heads import triton_logps

torch.manual_seed(0)
for n, vocab, width, dtype in ((1, 2, 3, torch.float32), (70, 300, 80, torch.float32), (5, 129, 64, torch.float16)):
    for scale, cap in ((1.0, 0.0), (0.5, 3.0)):
        hidden, weight = torch.randn(n, width).to(dtype), torch.randn(vocab, width).to(dtype)
        targets = torch.randint(vocab, (n,))
        logits = hidden.float() @ weight.float().T * scale
        logits = cap * torch.tanh(logits / cap) if cap else logits
        logps, totals = triton_logps(hidden, weight, targets, scale=scale, cap=cap)
        torch.testing.assert_close(totals, logits.logsumexp(-1), rtol=1e-5, atol=1e-5)
        expected = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
        torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)

# the forward pass of the kernel under the backward pass of torch
from workbench.kernels.heads import PLAIN, _LinearLogps

hidden, weight = torch.randn(20, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
targets, g = torch.randint(11, (20,)), torch.randn(20)
plain = (hidden @ weight.T).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
expected = torch.autograd.grad((plain * g).sum(), [hidden, weight])
fused = _LinearLogps.apply(hidden, weight, None, targets, PLAIN, 33, 0, None, "triton")
torch.testing.assert_close(torch.autograd.grad((fused * g).sum(), [hidden, weight]), expected, rtol=1e-5, atol=1e-5)
print("all equal")
"""


@pytest.mark.slow
def test_the_triton_kernel_is_the_plain_head():
    """Sizes off every block, a capped head, half-precision inputs. In a process of its own: Triton reads its mode at
    import."""
    pytest.importorskip("triton", reason="Triton is installed for Linux on x86-64 alone")
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "all equal", done.stderr


def test_a_cpu_head_is_torch(monkeypatch):
    weight = torch.zeros(3, 2)
    assert head_kernel(weight, None) == "torch"
    monkeypatch.setenv("WORKBENCH_HEAD", "triton")
    assert head_kernel(weight, None) == "torch"
    monkeypatch.setenv("WORKBENCH_HEAD", "cuda")
    with pytest.raises(ValueError, match="WORKBENCH_HEAD must be one of torch, triton, cce; got 'cuda'"):
        head_kernel(weight, None)
