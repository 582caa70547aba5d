"""The chunked head: same numbers and gradients as the plain one, and never more than a tile of logits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from workbench.kernels import token_logps, token_scores
from workbench.kernels.finish import PLAIN, Finish

FINISHES = st.sampled_from([PLAIN, Finish(0.3), Finish(1.0, 2.0), Finish(0.5, 4.0)])


def inputs(n, width, vocab, dtype=torch.float64, bias=True):
    torch.manual_seed(n * vocab)
    head = nn.Linear(width, vocab, bias=bias, dtype=dtype)
    return torch.randn(n, width, dtype=dtype, requires_grad=True), torch.randint(vocab, (n,)), head


def plain(hidden, targets, head, finish=PLAIN):
    return finish(head(hidden)).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)


@settings(max_examples=80, deadline=None)
@given(
    n=st.integers(1, 40),
    vocab=st.integers(2, 50),
    chunk=st.integers(1, 45),
    kept=st.integers(0, 45),
    finish=FINISHES,
    bias=st.booleans(),
    trained=st.sampled_from(["all", "head", "hidden"]),
)
def test_numbers_and_gradients_are_those_of_the_plain_head(n, vocab, chunk, kept, finish, bias, trained):
    """Trained and frozen, with and without bias, scaled and capped, whatever is kept and whatever is computed again."""
    hidden, targets, head = inputs(n, 6, vocab, bias=bias)
    hidden.requires_grad_(trained != "head")
    head.requires_grad_(trained != "hidden")
    wanted = [x for x in (hidden, *head.parameters()) if x.requires_grad]
    weights = torch.linspace(-1, 2, n, dtype=torch.float64)
    expected_logps = plain(hidden, targets, head, finish)
    expected = torch.autograd.grad((expected_logps * weights).sum(), wanted)
    logps = token_logps(hidden, targets, head, finish=finish, tile=chunk * vocab, keep=kept * vocab)
    got = torch.autograd.grad((logps * weights).sum(), wanted)
    torch.testing.assert_close(logps, expected_logps, rtol=1e-10, atol=1e-10)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_log_probs_far_below_the_smallest_number():
    """A target of log-prob -2000 has probability 0 in every format; its log-prob and gradient are exact all the
    same."""
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[0.0], [1000.0], [2000.0]]))
    hidden = torch.ones(1, 1, requires_grad=True)
    logps = token_logps(hidden, torch.tensor([0]), head)
    logps.sum().backward()
    assert logps.item() == -2000.0
    assert hidden.grad.item() == -2000.0


def test_head_that_was_adapted_goes_through_its_adapter():
    """LoRA on the head itself, and a head that is trained whole beside an adapter on the body."""
    from peft import LoraConfig, get_peft_model

    class Toy(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.lm_head = nn.Linear(6, 6), nn.Linear(6, 11)

        def forward(self, x):
            return self.lm_head(self.body(x))

    hidden, targets, _ = inputs(9, 6, 11, torch.float32)
    for options in ({"target_modules": ["lm_head"]}, {"target_modules": ["body"], "modules_to_save": ["lm_head"]}):
        torch.manual_seed(0)
        model = get_peft_model(Toy(), LoraConfig(r=2, **options))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1)
        head = model.base_model.model.lm_head
        for context in (torch.enable_grad(), torch.no_grad()):
            with context:
                torch.testing.assert_close(token_logps(hidden, targets, head, tile=33), plain(hidden, targets, head))
        trained = [p for p in head.parameters() if p.requires_grad]
        got = torch.autograd.grad(token_logps(hidden, targets, head, tile=33).sum(), trained)
        expected = torch.autograd.grad(plain(hidden, targets, head).sum(), trained)
        torch.testing.assert_close(got, expected)


class Watch(TorchDispatchMode):
    """Sizes of every tensor that any operation makes, in numbers."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes.extend(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))
        return out


@pytest.mark.parametrize("train_head", [True, False])
def test_no_tokens_by_vocabulary_tensor_in_forward_or_backward(train_head):
    n, width, vocab, tile = 512, 8, 1_000, 40_000
    hidden, targets, head = inputs(n, width, vocab, torch.float32, bias=False)
    head.requires_grad_(train_head)
    with Watch() as watch:
        token_logps(hidden, targets, head, tile=tile, keep=2 * tile).sum().backward()
    assert max(watch.sizes) <= tile < n * vocab


def test_a_frozen_head_is_not_needed_in_the_backward_pass():
    """Beyond the kept slopes the backward pass is one product of [tokens, 1] with [tokens, d_model]."""
    hidden, targets, head = inputs(64, 8, 1_000, torch.float32)
    logps = token_logps(hidden, targets, head.requires_grad_(False))
    with Watch() as watch:
        logps.sum().backward()
    assert max(watch.sizes) <= hidden.numel()


@pytest.mark.parametrize("frozen", [True, False])
def test_half_precision_is_summed_in_float32(frozen):
    """bfloat16 hidden states and weights: the log-prob keeps float32, within the rounding of bf16 logits."""
    hidden, targets, head = inputs(20, 16, 30, torch.float32)
    head.requires_grad_(not frozen)
    exact = token_logps(hidden, targets, head)
    rough = token_logps(hidden.bfloat16(), targets, head.bfloat16())
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("frozen", [True, False])
def test_autocast_is_autocast_of_the_plain_head(frozen):
    hidden, targets, head = inputs(20, 16, 30, torch.float32)
    head.requires_grad_(not frozen)
    grads = []
    for logps in (plain, token_logps):
        with torch.autocast("cpu", torch.bfloat16):
            out = logps(hidden, targets, head)
        grads.append(torch.autograd.grad(out.sum(), [x for x in (hidden, *head.parameters()) if x.requires_grad]))
    assert out.dtype == torch.float32
    for a, b in zip(*grads, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 20), chunk=st.integers(1, 25), finish=FINISHES)
def test_other_numbers_of_the_same_pass(n, chunk, finish):
    hidden, targets, head = inputs(n, 6, 13)
    labels = torch.tensor([3, 7])
    got = token_scores(
        hidden, targets, head, logsumexp=True, entropy=True, labels=labels, finish=finish, tile=chunk * 13
    )
    logits = finish(head(hidden))
    every = logits.log_softmax(-1)
    torch.testing.assert_close(got.logps, token_logps(hidden, targets, head, finish=finish))
    torch.testing.assert_close(got.logsumexp, logits.logsumexp(-1))
    torch.testing.assert_close(got.entropy, -(every.exp() * every).sum(-1))
    torch.testing.assert_close(got.label_logps, every[:, labels])
    assert token_scores(hidden, targets, head).entropy is None
