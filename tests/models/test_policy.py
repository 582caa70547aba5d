"""Text to tokens in one way: templates, borders, end tokens, truncation, and what cannot be loaded."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from workbench.models import Policy, bpe_tokenizer, new_llama, pick_device
from workbench.worlds.language import word_tokenizer

LONG = list(range(4, 104))


@pytest.fixture(scope="module")
def policy():
    tokenizer = bpe_tokenizer(["the quick brown fox jumps over the lazy dog " * 5], vocab_size=300)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=64, seed=0)
    return Policy(model, tokenizer)


@given(st.text(max_size=40))
@example("</s>")
@example("a</s>b")
@example("<|assistant|>")
@example("<s>")
def test_a_response_has_exactly_one_end_token_and_reads_back(policy, text):
    """Whatever the text says, `</s>` included: no text spells a special token, and nothing is lost."""
    *ids, last = policy.encode_response(text)
    assert last == policy.tokenizer.eos_token_id
    assert not set(ids) & set(policy.tokenizer.all_special_ids)
    assert policy.tokenizer.decode(ids) == text


def test_no_token_merges_across_the_border(policy):
    group = policy.group("the quick", ["brown fox", "dog"])
    whole = policy.encode_prompt("the quick")
    assert group.prompt_ids == whole
    assert group.responses_ids[0] == policy.encode_response("brown fox")


def test_a_text_is_one_user_turn(policy):
    assert policy.encode_prompt("the fox") == policy.encode_prompt([{"role": "user", "content": "the fox"}])
    assert policy.tokenizer.decode(policy.encode_prompt("the fox")) == "<s><|user|>the fox<|assistant|>"


@pytest.mark.parametrize(
    ("responses", "kept", "cut"), [([[5] * 20], [[5] * 20], 0), ([list(range(50)), [7]], [list(range(32)), [7]], 1)]
)
def test_a_prompt_is_cut_on_the_left_and_a_response_keeps_its_beginning_and_both_are_counted(
    policy, responses, kept, cut
):
    """Context 64: a prompt of 100 tokens keeps its last 32."""
    policy.counts.clear()
    group = policy.group(LONG, responses)
    assert (group.prompt_ids, group.responses_ids) == (list(range(72, 104)), kept)
    assert policy.counts == {"prompts_cut": 1, "responses_cut": cut}


def test_a_prompt_leaves_room_for_what_will_be_sampled(policy):
    """Context 64, 10 new tokens: a prompt of 100 tokens keeps its last 54."""
    policy.counts.clear()
    assert policy.encode_prompt(LONG, room=10) == LONG[-54:]
    assert policy.counts["prompts_cut"] == 1
    assert policy.encode_prompt(LONG) == LONG
    with pytest.raises(ValueError, match="64 new tokens leave no room for a prompt in a context of 64"):
        policy.encode_prompt([5], room=64)


def test_limits_are_those_of_the_context_and_leave_room(policy):
    assert len(policy.group([5] * 50, [[6] * 50], max_length=1_000).prompt_ids) == 32
    with pytest.raises(ValueError, match="leaves no room for a response behind 4 prompt tokens"):
        policy.group([5, 6, 7, 8], [[5]], max_length=4, max_prompt_length=4)
    with pytest.raises(ValueError, match="an empty prompt"):
        policy.encode_prompt("")


def test_tokenizer_without_template_or_end_token(policy):
    import copy

    bare = copy.deepcopy(policy.tokenizer)
    bare.chat_template = None
    plain = Policy(policy.model, bare)
    assert plain.encode_prompt("fox") == [bare.bos_token_id, *bare("fox", add_special_tokens=False).input_ids]
    with pytest.raises(ValueError, match="has no chat template, so a chat cannot become text"):
        plain.encode_prompt([{"role": "user", "content": "fox"}])
    bare.eos_token = None
    with pytest.raises(ValueError, match="has no end token, so no response would ever end"):
        Policy(policy.model, bare)


@pytest.mark.parametrize("source", ["/nowhere/model", "no-such-owner/no-such-model"])
def test_unknown_model(source, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=r"no model folder|cannot load a model"):
        Policy.load(source)


def test_no_gpu_where_one_was_asked_for():
    if torch.cuda.is_available():
        assert pick_device("cuda").type == "cuda"
    else:
        with pytest.raises(ValueError, match='device="cuda" was asked for but torch sees no GPU'):
            pick_device("cuda")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda; got 'tpu'"):
        pick_device("tpu")


def test_save_and_load_round_trip(policy, tmp_path):
    policy.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = Policy.load(tmp_path, device="cpu")
    for a, b in zip(policy.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.encode_prompt("the fox") == policy.encode_prompt("the fox")


def test_lora_trains_only_the_adapter_and_can_be_switched_off(policy, tmp_path):
    from workbench.training.reference import reference_logps

    policy.save(tmp_path)
    adapted = Policy.load(tmp_path, device="cpu", lora={"r": 2})
    trained = [name for name, p in adapted.model.named_parameters() if p.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)
    group = policy.group("the fox", ["dog"])
    with torch.no_grad():
        for name, p in adapted.model.named_parameters():
            if "lora_B" in name:
                p.add_(0.5)
    with adapted.without_adapter() as base:
        assert reference_logps(base, [group]) == pytest.approx(reference_logps(policy, [group]))
    assert abs(reference_logps(adapted, [group]) - reference_logps(policy, [group])).max() > 1e-3
    with pytest.raises(ValueError, match="no LoRA adapter to switch off"), policy.without_adapter():
        pass


def test_word_tokenizer_knows_its_words_and_no_others():
    tokenizer = word_tokenizer(["t0", "s0", "s1"])
    assert tokenizer("s1 s0", add_special_tokens=False).input_ids == [4, 3]
    assert tokenizer.apply_chat_template([{"role": "user", "content": "t0"}], return_dict=False) == [0, 2]
