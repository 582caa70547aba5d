"""First meeting: every causal class of transformers gives its own forward's numbers, or is refused."""

import inspect
import logging

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL

from workbench.kernels import Group, meeting, sample, score
from workbench.kernels.meeting import parts_of

GROUPS = [Group([5, 6, 7, 8], [[9, 10, 2], [11, 2]]), Group([12], [[13, 2]])]
# every class takes of these what its configuration knows
TINY = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "d_embed"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "d_inner", "n_inner"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "decoder_attention_heads", "encoder_attention_heads"), 4),
    **dict.fromkeys(("num_heads", "num_experts", "num_local_experts", "n_routed_experts", "mamba_n_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_experts_per_tok", "mamba_expand", "expand"), 2),
    **dict.fromkeys(("n_shared_experts", "n_group", "topk_group", "mamba_n_groups", "n_groups"), 1),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "v_head_dim", "d_head", "state_size", "mamba_d_state"), 8),
    **dict.fromkeys(("qk_rope_head_dim", "rotary_dim", "time_step_rank"), 4),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "mamba_d_head"), 16),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), 64),
    **dict.fromkeys(("dropout", "attention_dropout", "hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "chunk_size": 8, "is_decoder": True},
    "first_k_dense_replace": 1,
}
LATENT = {"num_key_value_heads": 4}  # attention over latents: no grouped heads
MIXED = {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "attn_layer_indices": [1, 3]}
OWN = {
    **dict.fromkeys(
        (
            "axk1",
            "deepseek_v2",
            "deepseek_v3",
            "deepseek_v32",
            "axk2",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "minicpm3",
            "youtu",
        ),
        LATENT,
    ),
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.02},
    "mamba2": {"head_dim": 16, "num_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "jamba": MIXED,
    "bamba": MIXED,
    "xmod": {"default_language": "en_XX"},
    "granite": {"logits_scaling": 4.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "qwen3_next": {"num_hidden_layers": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
}
CLASSES = {of[0] if isinstance(of, (tuple, list)) else of: kind for kind, of in reversed(CAUSAL.items())}
# one of each kind: scaled by a number of the configuration (twice), capped, recurrent, mixed, layers before the head
READ_AHEAD = ("ProphetNetForCausalLM", "XLNetLMHeadModel")
FEW = ("FalconH1ForCausalLM", "GraniteForCausalLM", "Gemma2ForCausalLM", "MambaForCausalLM", "BertLMHeadModel")


def tiny(name):
    kind = CLASSES[name]
    config_class = CONFIG_MAPPING[kind]
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= {field for base in config_class.__mro__ for field in getattr(base, "__annotations__", {})}
    config = config_class(**{key: value for key, value in {**TINY, **OWN.get(kind, {})}.items() if key in known})
    if config.get_text_config() is not config:
        raise ValueError("made of several models")
    with torch.device("meta"):
        size = sum(p.numel() for p in getattr(transformers, name)(config).parameters())
    if size > 3e6:
        raise ValueError(f"has {size:,} parameters at these settings")
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    model(input_ids=torch.tensor([[3, 4, 5, 6]]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3)  # logits of some size, or a scale would not be seen
    return model


@torch.no_grad()
def own_logps(model, group, response):
    ids = torch.tensor([group.prompt_ids + response])
    logps = model(input_ids=ids).logits.float().log_softmax(-1)[0, :-1].gather(-1, ids[0, 1:, None])[:, 0]
    return logps[len(group.prompt_ids) - 1 :]


def assert_own_numbers(model):
    with torch.no_grad():
        scores = score(model, GROUPS)
    for i, group in enumerate(GROUPS):
        for k, response in enumerate(group.responses_ids):
            found = scores.token_logps[i, k, : len(response)]
            torch.testing.assert_close(found, own_logps(model, group, response), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    "name", [name if name in FEW else pytest.param(name, marks=pytest.mark.exhaustive) for name in CLASSES]
)
def test_a_class_is_scored_as_its_own_forward_does(name):
    try:
        model = tiny(name)
    except Exception as error:
        if name in FEW:
            raise
        pytest.skip(f"{name} cannot be built tiny from its configuration here: {error}")
    if name in READ_AHEAD:
        with pytest.raises(ValueError, match="reads what stands behind a token"):
            parts_of(model)
    else:
        assert_own_numbers(model)


@pytest.mark.exhaustive
def test_most_classes_can_be_built_tiny():
    """Or the sweep would say nothing."""
    built = 0
    for name in CLASSES:
        try:
            tiny(name)
            built += 1
        except Exception:
            continue
    assert built >= 120


def test_which_way_a_model_takes(caplog):
    meeting._met_before.clear()
    with caplog.at_level(logging.WARNING):
        for name, finish in (("FalconH1ForCausalLM", (0.02, 0)), ("GraniteForCausalLM", (0.25, 0))):
            assert parts_of(tiny(name)).finish == pytest.approx(finish)
        assert parts_of(tiny("Gemma2ForCausalLM")).finish == (1.0, 30.0)
        assert not caplog.records
        parts = parts_of(tiny("BertLMHeadModel"))
    assert type(parts.body).__name__ == "_OwnLogits"
    assert "BertLMHeadModel: output head and body give other log-probs than the model's own forward" in caplog.text


class Shifted(transformers.LlamaForCausalLM):
    """What no configuration tells: a bias on the logits that belongs to no head."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits = out.logits + torch.linspace(0, 5, out.logits.shape[-1], dtype=out.logits.dtype)
        return out


def test_own_logits_have_gradients_samples_and_a_shared_prompt(both_loops):
    model = Shifted(transformers.LlamaConfig(**{key: TINY[key] for key in ("vocab_size", "hidden_size")} | SMALL))
    model = model.double().eval()
    scores = score(model, GROUPS)
    for i, group in enumerate(GROUPS):
        for k, response in enumerate(group.responses_ids):
            own = own_logps(model, group, response).double()
            torch.testing.assert_close(scores.token_logps[i, k, : len(response)], own, atol=1e-5, rtol=1e-5)
    grad = torch.autograd.grad(scores.sums.sum(), model.lm_head.weight)[0]
    ids = [(torch.tensor([g.prompt_ids + r]), len(g.prompt_ids)) for g in GROUPS for r in g.responses_ids]
    plain = sum(
        model(input_ids=row).logits.log_softmax(-1)[0, :-1].gather(-1, row[0, 1:, None])[start - 1 :].sum()
        for row, start in ids
    )
    torch.testing.assert_close(grad, torch.autograd.grad(plain, model.lm_head.weight)[0], atol=1e-8, rtol=1e-6)
    found = sample(model, [[5, 6, 7], [8]], n=2, max_new_tokens=12, temperature=0.0)
    for prompt, row in zip([[5, 6, 7], [8]], found.tokens, strict=True):
        ids = torch.tensor([prompt])
        for token in row[0]:
            assert int(model(input_ids=ids).logits[0, -1].argmax()) == token
            ids = torch.cat([ids, torch.tensor([[token]])], 1)


SMALL = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64}


def test_a_masked_language_model_is_refused():
    config = transformers.BertConfig(**SMALL, vocab_size=64, hidden_size=32)
    with pytest.raises(ValueError, match="BertLMHeadModel reads what stands behind a token"):
        score(transformers.BertLMHeadModel(config).eval(), GROUPS)


def test_adapters_that_add_tokens_are_refused():
    from peft import PromptTuningConfig, get_peft_model

    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=64, hidden_size=32))
    model = get_peft_model(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with pytest.raises(ValueError, match="predictions for 9 tokens; adapters that add tokens"):
        score(model, GROUPS)


def test_it_is_met_once_and_a_model_in_training_stays_so(monkeypatch):
    meeting._met_before.clear()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=65, hidden_size=32))
    model.train()
    score(model, GROUPS)
    assert model.training
    monkeypatch.setattr(meeting, "_measure", lambda *_: pytest.fail("met again"))
    score(model, GROUPS)
    again = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=65, hidden_size=32))
    score(again, GROUPS)


def test_weights_that_say_nothing_are_met_again():
    meeting._met_before.clear()
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, vocab_size=66, hidden_size=32))
    with torch.no_grad():
        model.lm_head.weight.zero_()
    score(model, GROUPS)
    assert model.base_model not in meeting._met
    assert not meeting._met_before
