"""The fast loop against the textbook: every family, ragged groups, any number of slots; and the models that it
refuses."""

import copy
import logging

import numpy as np
import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.kernels import Group, sample, score, slots
from workbench.kernels.decoding import Network, Prefix, Row, Rules, decode_plain
from workbench.kernels.drawing import SamplingParams
from workbench.kernels.slots import Block, decode, decode_in_slots
from workbench.models import add_lora

PROMPTS = [[3, 4, 5], [6], [7, 8], [9, 10, 11, 12, 13], [2, 2], [5, 4, 3]]
FAMILIES = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": 64},
    "Gemma": {"head_dim": 8},
    "Gemma3Text": {"head_dim": 8, "sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]},
    "Cohere": {"logit_scale": 0.3},
    "Granite": {"logits_scaling": 4.0},
    "Phi3": {},
    "GPTNeoX": {},
    "GPT2": {},
}


def family(kind, **extra):
    """A random model of a family, with logits of some size; grouped queries where the family has them."""
    torch.manual_seed(1)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=1,
        **{**FAMILIES.get(kind, {}), **extra},
    )
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def prefixes(groups, new, start=0):
    """Stems of (ids, lengths of its rows) with uniforms of their own."""
    rng = np.random.default_rng(7)
    return [
        Prefix(
            ids,
            max(1, len(ids) - start),
            [Row(i, k, rng.random(n + min(start, len(ids) - 1))) for k, n in enumerate(lengths)],
        )
        for i, (ids, lengths) in enumerate(groups)
    ]


@torch.no_grad()
def finished(loop, model, groups, params=SamplingParams(), max_rows=6, start=0):  # noqa: B008
    made = prefixes(groups, 8, start)
    loop(Network(model), made, Rules(params, ends=frozenset({1})), max_rows)
    return [row for prefix in made for row in prefix.rows]


def assert_equal_rows(got, expected, atol):
    for a, b in zip(got, expected, strict=True):
        assert a.tokens == b.tokens
        assert a.finish_reason == b.finish_reason
        for x, y in ((a.logps, b.logps), (a.sampling_logps, b.sampling_logps)):
            torch.testing.assert_close(torch.tensor(x), torch.tensor(y), rtol=0, atol=atol)


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_runs_in_slots_and_equals_the_textbook(kind, caplog):
    model = family(kind)
    groups = [(prompt, [8, 3, 5][: 1 + i % 3]) for i, prompt in enumerate(PROMPTS)]
    for max_rows in (2, 100):
        got = finished(decode, model, groups, max_rows=max_rows)
        assert_equal_rows(got, finished(decode_plain, model, groups), 1e-10)
    assert not [record for record in caplog.records if record.name.startswith("workbench")]


@pytest.mark.parametrize("kind", ["Llama", "GPT2"])
def test_float32_is_within_1e_5(kind):
    model = family(kind).float()
    groups = [(prompt, [8, 8]) for prompt in PROMPTS]
    assert_equal_rows(finished(decode_in_slots, model, groups), finished(decode_plain, model, groups), 1e-5)


ROWS = st.tuples(
    st.lists(st.integers(2, 22), min_size=1, max_size=12), st.lists(st.integers(4, 9), min_size=1, max_size=6)
)


@pytest.mark.slow
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(ROWS, min_size=1, max_size=6),
    max_rows=st.integers(1, 12),
    start=st.integers(0, 3),
    params=st.sampled_from(
        [SamplingParams(), SamplingParams(0.0), SamplingParams(0.7, 0.9), SamplingParams(1.3, 1.0, 5)]
    ),
)
def test_ragged_groups_equal_the_textbook(tiny_llama, groups, max_rows, start, params):
    """Any prompts, any number of rows a prompt, lengths that differ, given beginnings, any number of slots."""
    got = finished(decode_in_slots, tiny_llama, groups, params, max_rows, start)
    assert_equal_rows(got, finished(decode_plain, tiny_llama, groups, params, max_rows, start), 1e-10)
    for row, (ids, n) in zip(got, [(ids, n) for ids, lengths in groups for n in lengths], strict=True):
        given_tokens = ids[max(1, len(ids) - start) :]
        assert row.tokens[: len(given_tokens)] == given_tokens
        assert len(row.tokens) == n + min(start, len(ids) - 1) or row.tokens[-1] == 1


def test_long_rows_make_the_blocks_grow(tiny_llama):
    """Own parts of more than `COLUMNS` tokens, while short rows come and go beside them."""
    groups = [([3, 4], [50, 2, 2]), ([5, 6, 7], [1, 45]), ([8], [3, 3, 3, 55])]
    model = copy.deepcopy(tiny_llama)
    model.get_output_embeddings().weight.data[1] = 0  # seldom ends by itself
    before, slots.COLUMNS = slots.COLUMNS, 8
    try:
        got = finished(decode_in_slots, model, groups, max_rows=3)
    finally:
        slots.COLUMNS = before
    assert max(len(row.tokens) for row in got) > 20
    assert_equal_rows(got, finished(decode_plain, model, groups), 1e-10)


def test_a_prompt_is_computed_once_and_held_once(tiny_llama, monkeypatch):
    """Counts the tokens that pass through the body, and the rows of the shared block."""
    seen, shared_rows = [], []
    body, add = tiny_llama.model.forward, Block.add

    def watched(*args, **kwargs):
        seen.append(kwargs["input_ids"].numel())
        return body(*args, **kwargs)

    def watched_add(block, like, lengths, rows):
        shared_rows.append([n for n in lengths if n])
        return add(block, like, lengths, rows)

    monkeypatch.setattr(tiny_llama.model, "forward", watched)
    monkeypatch.setattr(Block, "add", watched_add)
    finished(decode_in_slots, tiny_llama, [([3] * 20, [1] * 8), ([4] * 20, [1] * 8)], max_rows=5)
    assert sum(seen) == 40  # one new token a row: nothing but the two prompts passes
    assert [n for added in shared_rows for n in added] == [20, 20]


@pytest.mark.parametrize(
    ("kind", "extra", "reason"),
    [
        ("Mistral", {"sliding_window": 6}, "attention slides over 6 tokens, fewer than its texts may have"),
        ("Gemma2", {"head_dim": 8}, "attn_implementation='eager'"),
        ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "its cache has a LinearAttentionLayer"),
        ("StableLm", {}, "its log-probs differ from a re-scoring"),
    ],
)
def test_what_cannot_run_in_slots_says_so_once_and_is_right(kind, extra, reason, caplog, monkeypatch):
    """StableLM does not hand extra arguments on to its attention: found by the check of the first prefixes."""
    monkeypatch.setattr(slots, "_said", set())
    monkeypatch.setattr(slots, "SHORT", 0)
    model = family(kind, **extra).float()
    with caplog.at_level(logging.WARNING):
        drawn = sample(model, PROMPTS, n=2, max_new_tokens=8, seed=3)
        sample(model, PROMPTS, n=2, max_new_tokens=8, seed=3)
    said = [record.message for record in caplog.records if "plain loop" in record.message]
    assert len(said) == 1
    assert reason in said[0]
    scores = score(model, [Group(p, r) for p, r in zip(PROMPTS, drawn.tokens, strict=True)], route="padded")
    for i in range(len(PROMPTS)):
        for k, logps in enumerate(drawn.token_logps[i]):
            expected = scores.token_logps[i, k, : len(logps)].detach().tolist()
            assert logps == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("new_tokens", "loop"), [(8, "decode_plain"), (60, "decode_in_slots")])
def test_short_texts_take_the_plain_loop(tiny_llama, new_tokens, loop, monkeypatch):
    """Below some forty tokens slots cost more than they save."""
    taken = []
    sample(tiny_llama, PROMPTS, max_new_tokens=50)  # the check of a new model runs in slots as well
    for name in ("decode_plain", "decode_in_slots"):
        monkeypatch.setattr(slots, name, lambda *args, name=name: taken.append(name))
    sample(tiny_llama, [[3, 4]], max_new_tokens=new_tokens)
    assert taken == [loop]


def test_a_window_as_long_as_the_texts_is_no_obstacle(caplog, monkeypatch):
    monkeypatch.setattr(slots, "SHORT", 0)
    model = family("Mistral", sliding_window=13)
    groups = [(prompt, [8, 8]) for prompt in PROMPTS]
    assert_equal_rows(finished(decode, model, groups), finished(decode_plain, model, groups), 1e-10)
    assert not [record for record in caplog.records if record.name.startswith("workbench")]


def test_lora_and_its_base_after_each_other():
    model = family("Llama")
    groups = [(prompt, [8, 8]) for prompt in PROMPTS]
    base = finished(decode, model, groups)
    adapted = add_lora(copy.deepcopy(model), r=2).double()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.3)
    with_adapter = finished(decode, adapted, groups)
    assert [row.tokens for row in with_adapter] != [row.tokens for row in base]
    assert_equal_rows(with_adapter, finished(decode_plain, adapted, groups), 1e-10)
    with adapted.disable_adapter():
        assert_equal_rows(finished(decode, adapted, groups), base, 1e-10)


def test_the_model_is_left_as_it_was(tiny_llama):
    before = tiny_llama.config._attn_implementation
    bad = copy.deepcopy(tiny_llama)
    bad.model.embed_tokens.weight.data[:] = torch.nan
    with pytest.raises(FloatingPointError):
        finished(decode_in_slots, bad, [([3, 4], [4])])
    finished(decode_in_slots, tiny_llama, [([3, 4], [4])])
    assert tiny_llama.config._attn_implementation == bad.config._attn_implementation == before


def test_rows_that_leave_are_replaced_from_the_end():
    block = Block()
    like = [
        (torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 3, 4), torch.arange(5.0).view(5, 1, 1, 1).expand(5, 2, 3, 4))
    ]
    block.add(like, [3, 1, 2, 3, 1], 5)
    assert block.remove([1, 4]) == [(1, 3)]
    assert block.lengths == [3, 3, 2]
    assert block.keys[0][:3, 0, 0, 0].tolist() == [0.0, 3.0, 2.0]
    assert block.mask().shape == (6, 1, 3)
    assert block.mask()[4:, 0].tolist() == [[0.0, 0.0, -torch.inf]] * 2
