"""Prepacked decoding: the same tokens and log-probs as the model's own layers, and when it is left."""

import pytest
import torch
import transformers

from workbench.kernels import prepacked, sample, slots
from workbench.models import add_lora

SIZE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZE |= {"num_key_value_heads": 2, "max_position_embeddings": 128, "tie_word_embeddings": False}
PROMPTS = [[5, 6, 7], [8] * 20, [9, 10], [11, 12, 13, 14], [15]]


def model(kind="Llama", seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    one = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**SIZE))
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))  # norms and biases too
    return one.to(dtype).eval()


@pytest.fixture
def fast(monkeypatch):
    """Texts of tests are short and their models small."""
    monkeypatch.setattr(slots, "SHORT", 0)
    monkeypatch.setattr(prepacked, "SMALLEST", 0)


def assert_same(one, found, **how):
    prepacked.leave(one, "the model's own layers, to compare with")
    plain = sample(one, PROMPTS, **how)
    assert found.tokens == plain.tokens
    for a, b in zip(found.token_logps, plain.token_logps, strict=True):
        for x, y in zip(a, b, strict=True):
            assert x == pytest.approx(y, abs=3e-5)


@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2"])
@pytest.mark.parametrize("n", [1, 3])
def test_the_same_as_the_models_own_layers(fast, kind, n):
    """Rows leave one after the other, so both few and many rows occur; with n = 3 prompts are shared."""
    one, how = model(kind), {"n": n, "max_new_tokens": [6, 9, 3, 12, 20], "seed": 3, "max_rows": 8}
    found = sample(one, PROMPTS, **how)
    assert one in prepacked._packed
    assert_same(one, found, **how)


def test_changed_weights_are_packed_anew(fast):
    one, how = model(), {"max_new_tokens": 12, "seed": 0}
    sample(one, PROMPTS, **how)
    with torch.no_grad():
        one.model.layers[1].mlp.up_proj.weight.mul_(2)
    assert_same(one, sample(one, PROMPTS, **how), **how)


def test_half_precision_weights(fast):
    one = model(dtype=torch.bfloat16)
    found = sample(one, PROMPTS, max_new_tokens=8, seed=0)
    assert one in prepacked._packed
    assert all(len(row[0]) for row in found.tokens)


@pytest.mark.parametrize("change", ["adapter", "class", "hook", "small", "bias of the head"])
def test_what_does_not_fit_is_not_packed(fast, change, monkeypatch):
    one = model("Gemma" if change == "class" else "Llama")
    if change == "adapter":
        one = add_lora(one, r=2)
    elif change == "hook":
        one.model.layers[0].mlp.up_proj.register_forward_hook(lambda *_: None)
    elif change == "small":
        monkeypatch.setattr(prepacked, "SMALLEST", 10**9)
    elif change == "bias of the head":
        one.lm_head = torch.nn.Linear(32, 64)
    assert prepacked.packed_model(one) is None


def test_where_the_operators_fail_the_models_own_layers_are_used(fast, monkeypatch):
    """They are missing; they give other numbers; the whole gives other numbers than scoring."""
    how = {"max_new_tokens": 8, "temperature": 0.0}
    wanted = sample(model(), PROMPTS, engine="transformers", **how).tokens
    own = prepacked.Packed.into

    def wrong(self, x, other, op):
        return own(self, x, other, op) * 1.5

    def missing(*_):
        raise AttributeError("no such operator")

    for fault in (("__init__", missing), ("into", wrong)):
        one = model()
        with monkeypatch.context() as patch:
            patch.setattr(prepacked.Packed, *fault)
            assert sample(one, PROMPTS, **how).tokens == wanted
        assert one in prepacked._left
    one = model()
    with monkeypatch.context() as patch:
        patch.setattr(prepacked, "_try", lambda dtype: None)
        patch.setattr(prepacked.Packed, "into", wrong)
        assert sample(one, PROMPTS * 4, **how).tokens == wanted * 4
    assert "differ from a re-scoring" in prepacked._left[one]
