"""Prompts at positions of their own and prompts with pictures in them, against the library's own forward pass."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.kernels import Group, score, scoring
from workbench.models import Policy, new_llama
from workbench.training import reference
from workbench.worlds.language import word_tokenizer

LAYOUTS = ["padded", "segments", "blocks"]
QUIET = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKENS = st.integers(2, 22)
IMAGE = 20


@pytest.fixture
def force(monkeypatch):
    return lambda layout: monkeypatch.setattr(scoring, "_layout", lambda groups, route, model: layout)


@st.composite
def placed(draw):
    """A group whose prompt has jumps in its positions; sometimes one without."""
    prompt = draw(st.lists(TOKENS, min_size=1, max_size=8))
    gaps = draw(st.lists(st.integers(1, 9), min_size=len(prompt), max_size=len(prompt)))
    positions = (np.cumsum(gaps) - draw(st.sampled_from([0, 1]))).tolist()
    responses = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=5), min_size=1, max_size=3))
    return Group(prompt, responses, draw(st.sampled_from([positions, None])))


def by_hand(model, group, response, **inputs):
    """One sequence with its position ids and a mask of ones, all logits."""
    ids = torch.tensor([group.prompt_ids + response])
    prompt = list(group.prompt_positions or range(len(group.prompt_ids)))
    positions = torch.tensor([prompt + [prompt[-1] + 1 + i for i in range(len(response))]])
    out = model(input_ids=ids, position_ids=positions, attention_mask=torch.ones_like(ids), **inputs)
    logps = out.logits.log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1)
    return logps[len(group.prompt_ids) - 1 :]


def assert_by_hand(model, groups, inputs=({},) * 9, tolerance=1e-10):
    scores = score(model, groups)
    for i, group in enumerate(groups):
        for k, response in enumerate(group.responses_ids):
            expected = by_hand(model, group, response, **inputs[i])
            torch.testing.assert_close(
                scores.token_logps[i, k, : len(response)], expected, rtol=tolerance, atol=tolerance
            )
    return scores


@pytest.mark.parametrize("layout", LAYOUTS)
@QUIET
@given(groups=st.lists(placed(), min_size=1, max_size=3))
def test_positions_equal_a_forward_pass_at_these_positions(tiny_llama, layout, groups, force):
    """With and without jumps in one batch; the library must not take a jump for the border of a packed text."""
    force(layout)
    assert_by_hand(tiny_llama, groups)


def test_positions_matter(tiny_llama):
    """The same tokens further apart have other log-probs; moved all together they have the same (rotary embeddings)."""
    model = copy.deepcopy(tiny_llama).requires_grad_(False)
    for parameter in model.parameters():
        parameter.mul_(5.0)  # fresh weights hardly attend
    group = Group([3, 4, 5, 6], [[7, 8, 1]])
    near = score(model, [group]).sums
    apart = score(model, [group._replace(prompt_positions=[0, 9, 20, 41])]).sums
    moved = score(model, [group._replace(prompt_positions=[30, 31, 32, 33])]).sums
    assert abs(float(near - apart)) > 1e-2
    torch.testing.assert_close(near, moved, rtol=1e-6, atol=1e-6)


def test_a_reference_knows_positions_apart(tiny_llama, monkeypatch, runs_root):
    """Numbers kept on disk must not be handed out for the same tokens at other positions or with other pictures."""
    group, far = Group([3, 4], [[7, 1]]), Group([3, 4], [[7, 1]], [0, 30])
    pictures = [Group([3, 4], [[7, 1]], None, torch.full((1, 16), value)) for value in (0.0, 1.0)]
    keys = {reference._row_key(g, 0) for g in (group, far, *pictures)}
    assert len(keys) == 4
    monkeypatch.setattr(reference, "WORTH", 0)
    monkeypatch.setattr(reference, "MIN_TOKENS", 0)
    policy = Policy(copy.deepcopy(tiny_llama), word_tokenizer([f"s{i}" for i in range(21)]))
    first, again = (reference.reference_logps(policy, [group, far]) for _ in range(2))
    assert first[0, 0] != first[1, 0]
    np.testing.assert_array_equal(first, again)
    np.testing.assert_allclose(first[1, 0], float(score(tiny_llama, [far]).sums.detach()), rtol=1e-10)


@pytest.mark.parametrize("positions", [[0], [0, 0, 1], [3, 2, 4], [-1, 0, 1]])
def test_wrong_positions_are_named(tiny_llama, positions):
    with pytest.raises(ValueError, match="group 0: prompt_positions must be 3 rising numbers from 0 on"):
        score(tiny_llama, [Group([3, 4, 5], [[6]], positions)])


def test_a_model_without_positions_is_refused():
    """ALiBi looks at distances between tokens and takes no positions: its scores would be those of other places."""
    from transformers import BloomConfig, BloomForCausalLM

    model = BloomForCausalLM(BloomConfig(vocab_size=23, hidden_size=16, n_layer=1, n_head=2)).eval()
    score(model, [Group([3, 4], [[5]])])
    with pytest.raises(ValueError, match="BloomForCausalLM takes no position_ids"):
        score(model, [Group([3, 4], [[5]], [0, 7])])


# ---------------------------------------------------------------------------------------------------------- pictures
@pytest.fixture(scope="module")
def tiny_llava():
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    text = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, vision_feature_select_strategy="full"
    )
    return Policy(LlavaForConditionalGeneration(config).eval(), word_tokenizer([f"s{i}" for i in range(21)]))


@pytest.fixture(scope="module")
def clips():
    """Two clips, of two frames and of one; a frame is five tokens (four patches and the class token)."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(frames, 3, 8, 8, generator=generator) for frames in (2, 1)]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pictures_equal_the_models_own_forward_pass(tiny_llava, clips, layout, force):
    force(layout)
    groups = [
        Group([3, *[IMAGE] * 10, 4], [[5, 1], [6, 7, 1]], None, tiny_llava.features(clips[0])),
        Group([3, 4], [[8, 9, 1]]),
        Group([*[IMAGE] * 5, 4, 9], [[8, 1]], None, tiny_llava.features(clips[1])),
    ]
    inputs = [{"pixel_values": clips[0]}, {}, {"pixel_values": clips[1]}]
    scores = assert_by_hand(tiny_llava.model, groups, inputs, tolerance=2e-5)
    scores.sums.sum().backward()
    projector = tiny_llava.model.model.multi_modal_projector.linear_1.weight
    assert float(projector.grad.abs().max()) > 0  # features carry a gradient into what made them
    tiny_llava.model.zero_grad()


def test_pictures_take_the_shared_route(tiny_llava, clips):
    """A clip once with its answers as branches; the model keeps its own attention afterwards."""
    group = Group([*[IMAGE] * 10, 4], [[5, 1], [6, 7, 1]], None, tiny_llava.features(clips[0]))
    with torch.no_grad():
        shared, padded = (score(tiny_llava, [group], route=route).sums for route in ("shared", "padded"))
    assert scoring._verdicts[tiny_llava.model.base_model] == ""
    torch.testing.assert_close(shared, padded, rtol=1e-5, atol=1e-5)
    assert tiny_llava.model.model.language_model.config._attn_implementation == "sdpa"


def test_features_must_fit_the_image_tokens(tiny_llava, clips):
    features = tiny_llava.features(clips[1])
    with pytest.raises(ValueError, match=r"group 0 has 5 features for 4 image tokens \(id 20\)"):
        score(tiny_llava, [Group([*[IMAGE] * 4, 4], [[5, 1]], None, features)])
    with pytest.raises(ValueError, match="group 0 has 5 features for 5 image tokens"):
        score(tiny_llava, [Group([*[IMAGE] * 5, 4], [[5, IMAGE]], None, features)])


def test_a_model_that_sees_pictures_is_loaded_as_one(tiny_llava, clips, tmp_path):
    tiny_llava.save(tmp_path)
    again = Policy.load(tmp_path, device="cpu")
    torch.testing.assert_close(again.features(clips[0]), tiny_llava.features(clips[0]))
    assert again.features(clips[0]).shape == (10, 16)


def test_a_model_that_reads_only_says_so(clips):
    tokenizer = word_tokenizer([f"s{i}" for i in range(21)])
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=16, seed=0)
    with pytest.raises(ValueError, match=r"policy \(LlamaForCausalLM\) sees no pictures"):
        Policy(model, tokenizer).features(clips[0])
