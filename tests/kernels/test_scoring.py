"""Scoring against a plain loop over single sequences with all logits."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.kernels import Group, score
from workbench.models import add_lora

TOKENS = st.integers(2, 22)
GROUPS = st.lists(
    st.builds(
        Group,
        st.lists(TOKENS, min_size=1, max_size=9),
        st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)
QUIET = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def plain(model, group, response):
    """The textbook: one sequence, all logits, log-softmax, gather."""
    ids = torch.tensor([group.prompt_ids + response])
    logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(group.prompt_ids) - 1 :]


def assert_equals_plain_loop(model, groups):
    scores = score(model, groups)
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses_ids):
            expected = plain(model, group, response)
            torch.testing.assert_close(scores.token_logps[i, k, : len(response)], expected, rtol=1e-10, atol=1e-10)
            assert scores.lengths[i, k] == len(response)
            torch.testing.assert_close(scores.sums[i, k], expected.sum(), rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(scores.means[i, k], expected.mean(), rtol=1e-10, atol=1e-10)
        for k in range(len(group.responses_ids), scores.lengths.shape[1]):
            assert scores.lengths[i, k] == 0


@QUIET
@given(groups=GROUPS)
def test_llama_equals_the_plain_loop(tiny_llama, groups):
    assert_equals_plain_loop(tiny_llama, groups)


@QUIET
@given(groups=GROUPS)
def test_gpt2_equals_the_plain_loop(tiny_gpt2, groups):
    assert_equals_plain_loop(tiny_gpt2, groups)


@pytest.mark.parametrize("kind", ["Qwen2", "Qwen3", "Mistral", "Gemma2", "Cohere", "Granite"])
def test_other_architectures(kind):
    """Gemma 2 caps its logits, Cohere and Granite scale them: the score must be what the whole model says."""
    import transformers

    torch.manual_seed(1)
    extra = {"Gemma2": {"head_dim": 8, "final_logit_softcapping": 1.5}, "Qwen3": {"head_dim": 8}, "Cohere": {"logit_scale": 0.3},
             "Granite": {"logits_scaling": 4.0}}.get(kind, {})  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        max_position_embeddings=64, pad_token_id=0, bos_token_id=0, eos_token_id=1, **extra,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits of some size, or a cap would not be seen
        assert_equals_plain_loop(model, [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9], [[2, 1]])])


def test_gradients_equal_the_plain_loop(tiny_llama):
    groups = [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9], [[2, 1], [4, 4, 4, 1]])]
    weights = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (score(tiny_llama, groups).sums * weights).sum().backward()
    got = {name: p.grad.clone() for name, p in tiny_llama.named_parameters()}
    tiny_llama.zero_grad()
    sum(
        weights[i, k] * plain(tiny_llama, g, r).sum()
        for i, g in enumerate(groups)
        for k, r in enumerate(g.responses_ids)
    ).backward()
    for name, parameter in tiny_llama.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, rtol=1e-9, atol=1e-10, msg=name)
    tiny_llama.zero_grad()


def test_lora_policy_and_its_base(tiny_llama):
    """With an adapter the scores are the adapted model's; with the adapter off they are the base model's to the bit."""
    import copy

    group = Group([3, 4, 5], [[6, 7, 1]])
    base = score(tiny_llama, [group]).sums
    model = add_lora(copy.deepcopy(tiny_llama), r=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    adapted = score(model, [group]).sums
    assert not torch.allclose(adapted, base, atol=1e-3)
    torch.testing.assert_close(adapted[0, 0], plain(model, group, group.responses_ids[0]).sum(), rtol=1e-6, atol=1e-6)
    with model.disable_adapter():
        assert torch.equal(score(model, [group]).sums, base)


def test_prompt_and_padding_are_not_scored(tiny_llama):
    """Longer neighbours in the batch must not change a score."""
    group = Group([3, 4], [[5, 1]])
    alone = score(tiny_llama, [group]).sums[0, 0]
    beside = score(tiny_llama, [group, Group([7] * 30, [[8] * 20, [9, 1]])]).sums[0, 0]
    torch.testing.assert_close(alone, beside, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "the list of groups is empty"),
        ([Group([3], [[4]]), Group([], [[4]])], "group 1 has an empty prompt"),
        ([Group([3], [[4], []])], "group 0, response 1 has no tokens"),
    ],
)
def test_what_cannot_be_scored_is_named(tiny_llama, groups, message):
    with pytest.raises(ValueError, match=message):
        score(tiny_llama, groups)


def test_unknown_route(tiny_llama):
    with pytest.raises(ValueError, match="route must be one of auto, padded; got 'fast'"):
        score(tiny_llama, [Group([3], [[4]])], route="fast")
