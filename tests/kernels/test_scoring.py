"""Every route against a plain loop over single sequences with all logits; the choice between routes; what is
refused."""

import logging

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workbench.kernels import Group, NanScore, score, scoring
from workbench.models import add_lora

TOKENS = st.integers(2, 22)
RESPONSES = st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=16)
GROUPS = st.lists(
    st.builds(
        lambda prompt, responses: Group(prompt, responses),
        st.lists(TOKENS, min_size=1, max_size=9),
        st.one_of(RESPONSES, RESPONSES.map(lambda r: r + r[:2])),
    ),
    min_size=1,
    max_size=4,
)
QUIET = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LAYOUTS = ["padded", "segments", "blocks"]


@pytest.fixture
def force(monkeypatch):
    """Makes `score` take one layout whatever the lengths."""
    return lambda layout: monkeypatch.setattr(scoring, "_layout", lambda groups, route, model: layout)


def plain(model, group, response):
    """The textbook: one sequence, all logits, log-softmax, gather."""
    ids = torch.tensor([group.prompt_ids + response])
    logps = model(input_ids=ids).logits.log_softmax(-1)[0, :-1]
    return logps.gather(-1, ids[0, 1:, None]).squeeze(-1)[len(group.prompt_ids) - 1 :]


def gradients(model, groups, sums):
    """Of a sum of the responses' log-probs, each with a weight of its own."""
    weights = torch.linspace(-1, 2, sum(len(g.responses_ids) for g in groups), dtype=sums[0].dtype)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(sum(w * s for w, s in zip(weights, sums, strict=True)), parameters)


def assert_equals_plain_loop(model, groups, tolerance=1e-10, grad_tolerance=1e-10):
    scores = score(model, groups)
    sums, expected_sums = [], []
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses_ids):
            expected = plain(model, group, response)
            torch.testing.assert_close(
                scores.token_logps[i, k, : len(response)], expected, rtol=tolerance, atol=tolerance
            )
            torch.testing.assert_close(scores.means[i, k], expected.mean(), rtol=tolerance, atol=tolerance)
            assert scores.lengths[i, k] == len(response)
            sums.append(scores.sums[i, k])
            expected_sums.append(expected.sum())
        for k in range(len(group.responses_ids), scores.lengths.shape[1]):
            assert scores.lengths[i, k] == 0
    expected_grads = gradients(model, groups, expected_sums)
    # a gradient whose terms cancel is the rounding of terms of about one: nothing to be relative to
    scale = max(1.0, *(float(grad.abs().max()) for grad in expected_grads))
    for a, b in zip(gradients(model, groups, sums), expected_grads, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=grad_tolerance * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt2"])
@QUIET
@given(groups=GROUPS)
@example(groups=[Group([2], [[2, 2, 2, 2], [2, 2]])])  # one token throughout: all gradients of the Llama vanish
def test_log_probs_and_gradients_equal_the_plain_loop(name, layout, groups, request, force):
    """float64, 1e-10: ragged, one-token and repeated responses, K from 1 to 18."""
    force(layout)
    assert_equals_plain_loop(request.getfixturevalue(name), groups)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_float32_within_a_hundred_thousandth(tiny_llama, layout, force):
    import copy

    force(layout)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, 23, (4, 60), generator=generator).tolist()
    groups = [Group(row[: 8 * (i + 1)], [row[i:20], row[30:], row[50:]]) for i, row in enumerate(ids)]
    assert_equals_plain_loop(copy.deepcopy(tiny_llama).float(), groups, tolerance=1e-5, grad_tolerance=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_bfloat16_stays_near_float32(tiny_llama, layout, force):
    """Stated error: 0.1 nats a token in the worst case at this size, 0.02 in the mean."""
    import copy

    force(layout)
    groups = [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9], [[2, 1], [4, 4, 4, 1]])]
    exact = score(copy.deepcopy(tiny_llama).float(), groups).token_logps
    rough = score(copy.deepcopy(tiny_llama).bfloat16(), groups).token_logps
    assert rough.dtype == torch.float32
    difference = (rough - exact).abs()
    assert difference.max() < 0.1
    assert difference.sum() / 11 < 0.02


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_masks_of_a_usual_batch_give_the_same(tiny_llama, side):
    """A padded batch with an attention mask, as other trainers make it, on either side."""
    group = Group([3, 4, 5, 6], [[7, 8, 9, 1], [10, 1]])
    rows = [group.prompt_ids + response for response in group.responses_ids]
    width = max(map(len, rows)) + 3
    pad = {"left": lambda row: [0] * (width - len(row)) + row, "right": lambda row: row + [0] * (width - len(row))}
    ids = torch.tensor([pad[side](row) for row in rows])
    mask = torch.tensor([pad[side]([1] * len(row)) for row in rows])
    logits = tiny_llama(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(-1) - 1).clamp(min=0)).logits
    logps = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    for route in ("padded", "shared"):
        scores = score(tiny_llama, [group], route=route)
        for k, response in enumerate(group.responses_ids):
            end = width if side == "left" else len(rows[k])
            expected = logps[k, end - len(response) - 1 : end - 1]
            torch.testing.assert_close(scores.token_logps[0, k, : len(response)], expected, rtol=1e-10, atol=1e-10)


FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Gemma": {"head_dim": 8},
    "Gemma3": {"head_dim": 8},
    "Phi3": {},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},
    "Gemma2": {"head_dim": 8, "final_logit_softcapping": 1.5, "attn_logit_softcapping": 2.0},
}


def family(kind, **extra):
    import transformers

    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}{'TextConfig' if kind == 'Gemma3' else 'Config'}")(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        **{**FAMILIES[kind], **extra},
    )
    model = getattr(transformers, f"{kind}ForCausalLM")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)  # logits of some size, or a cap would not be seen
    return model


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", FAMILIES)
def test_families(kind, layout, force):
    """Grouped keys, norms of queries, capped and scaled logits: the score must be what the whole model says.

    transformers computes norms in float32, so gradients agree to its rounding.
    """
    force(layout)
    groups = [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9], [[2, 1]])]
    assert_equals_plain_loop(family(kind), groups, tolerance=1e-6, grad_tolerance=1e-5)


def test_families_that_share():
    """All but Gemma 2, whose attention scores are capped, take the shared route, and the model keeps its attention."""
    groups = [Group([3, 4, 5] * 4, [[6, 7, 1], [8, 1]])]
    for kind in FAMILIES:
        model = family(kind)
        before = model.config._attn_implementation
        score(model, groups, route="shared")
        assert (scoring._verdicts[model.base_model] == "") == (kind != "Gemma2"), kind
        assert model.config._attn_implementation == before


def test_sliding_window_falls_back_and_says_so_once(caplog):
    """A window that covers the text changes nothing; a shorter one is not shared."""
    short, long = Group([3, 4], [[5, 1], [6, 1]]), Group([3, 4] * 6, [[5, 1], [6, 1]])
    model = family("Mistral", sliding_window=6)
    scoring._warned.clear()
    with caplog.at_level(logging.WARNING):
        torch.testing.assert_close(
            score(model, [short], route="shared").sums, score(model, [short], route="padded").sums
        )
        assert not caplog.records
        for _ in range(2):
            assert torch.equal(score(model, [long], route="shared").sums, score(model, [long], route="padded").sums)
    assert [r.message for r in caplog.records] == [
        "MistralForCausalLM is scored by the padded route: attention slides over 6 tokens and a text has 14"
    ]


def test_a_route_that_is_wrong_on_a_model_is_found_and_not_used(caplog, monkeypatch):
    """Sabotage: branches see each other. The first batch finds out, and every batch gets the padded numbers."""
    model = family("Llama")
    group = Group([3, 4, 5], [[6, 7, 1], [8, 9, 1], [2, 2, 1]])
    true = score(model, [group], route="padded").sums
    monkeypatch.setattr(
        "workbench.kernels.trees._parts", lambda span: iter([(span.start, span.end, span.start, span.end, True)])
    )
    monkeypatch.setattr(scoring, "_layout", lambda groups, route, model: "segments")
    scoring._warned.clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.equal(score(model, [group]).sums, true)
    (record,) = caplog.records
    assert "its log-probs differ from the padded route's by" in record.message


def test_models_without_the_usual_attention_fall_back():
    """ALiBi (Bloom) and recurrent layers (Mamba) are scored by the padded route."""
    from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

    group = Group([3, 4, 5] * 3, [[6, 7, 1], [8, 9, 1]])
    for model in (
        BloomForCausalLM(BloomConfig(vocab_size=23, hidden_size=16, n_layer=2, n_head=2)).eval(),
        MambaForCausalLM(MambaConfig(vocab_size=23, hidden_size=16, num_hidden_layers=2)).eval(),
    ):
        expected = torch.stack([plain(model, group, response).sum() for response in group.responses_ids])
        torch.testing.assert_close(score(model, [group], route="shared").sums[0], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradient_checkpointing_changes_nothing(layout, force):
    """Layers run again in the backward pass, after the call that chose the attention has ended."""
    force(layout)
    groups = [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9, 2, 3, 4], [[2, 1], [5, 5, 5, 1]])]
    found = []
    for checkpointing in (False, True):
        model = family("Llama")
        if checkpointing:
            model.activation_checkpointing_enable()
            model.train()
        found.append(gradients(model, groups, list(score(model, groups).sums.flatten())))
        assert_equals_plain_loop(model, groups, tolerance=1e-6, grad_tolerance=1e-5)  # plain calls are what they were
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_lora_gradients_with_a_frozen_head(tiny_llama, layout, force):
    import copy

    force(layout)
    model = add_lora(copy.deepcopy(tiny_llama), r=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.1)
    groups = [Group([3, 4, 5], [[6, 7, 1], [8, 1]]), Group([9], [[2, 1], [4, 4, 4, 1]])]
    assert_equals_plain_loop(model, groups, tolerance=1e-6, grad_tolerance=1e-5)  # peft computes adapters in float32


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([Group([3] * 400, [[4] * 40, [5] * 40])], "segments"),
        ([Group([3] * 20, [[4] * 20, [5] * 29])] * 8, "blocks"),
        ([Group([3] * 50, [[4] * 9])] * 4, "padded"),  # one response, equal lengths: nothing to share or to save
        ([Group([3] * 2, [[4] * 20, [5] * 20])] * 64, "padded"),  # what is shared costs less than the mask
        ([Group([3] * 60, [[4] * 9])] + [Group([3], [[4]])] * 9, "blocks"),  # packing saves the padding
    ],
)
def test_the_choice_follows_the_lengths(groups, expected):
    from workbench.models import new_llama
    from workbench.worlds.language import word_tokenizer

    model = new_llama(word_tokenizer(["a"]), width=64, layers=1, heads=2, max_length=8, seed=0)
    assert scoring._layout(groups, "auto", model) == expected
    assert scoring._layout(groups, "shared", model) in ("segments", "blocks")
    assert scoring._layout(groups, "padded", model) == "padded"


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
    with pytest.raises(ValueError, match="route must be one of auto, padded, shared; got 'fast'"):
        score(tiny_llama, [Group([3], [[4]])], route="fast")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_nan_names_the_group(tiny_llama, layout, bad, force):
    """Wherever it stands in the batch, and no other group."""
    import copy

    force(layout)
    model = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        model.get_input_embeddings().weight[7] = torch.nan
    groups = [Group([3], [[4, 1]]), Group([3, 5], [[4, 1], [5, 1]])]
    groups.insert(bad, Group([3, 7, 5, 6], [[4, 2, 2, 1], [5, 1]]))
    with pytest.raises(NanScore, match=f"NaN log-probabilities in group {bad}: look at"):
        score(model, groups)
    assert score(model, groups, check=False).sums.isnan().any(-1).tolist() == [i == bad for i in range(3)]
