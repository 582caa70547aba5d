"""A response is closed as the chat template closes it; borders between texts; dates; ids without a token."""

import datetime
import logging
from types import SimpleNamespace

import pytest
import torch

from workbench.kernels import sample, score
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.models.turns import read_turn, render

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# what the templates of Llama 2, of Qwen 3 (no thoughts) and of a model that writes no end do with an answer
BLANKS = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] | trim }} [/INST]"
    "{% else %} {{ m['content'] | trim }} </s>{% endif %}{% endfor %}"
)
THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n\n{% endfor %}"
ENDS = {CHATML: "<|im_end|>", BLANKS: "</s>", THOUGHTS: "<|im_end|>", NO_END: "</s>"}


def policy_with(template, *, vocab_extra=0):
    tokenizer = bpe_tokenizer(["what is two and two? it is four. yes, no. " * 5], vocab_size=320)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = template
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=128, seed=0)
    if vocab_extra:
        model.resize_token_embeddings(len(tokenizer) + vocab_extra)
    return Policy(model, tokenizer)


@pytest.mark.parametrize("template", ENDS, ids=["chatml", "blanks", "thoughts", "no end"])
@pytest.mark.parametrize("answer", ["it is four", " no. ", "yes", ""])
def test_a_conversation_is_token_by_token_what_the_template_writes(template, answer):
    policy = policy_with(template)
    ours = policy.encode_prompt("what is two and two?") + policy.encode_response(answer)
    chat = [{"role": "user", "content": "what is two and two?"}, {"role": "assistant", "content": answer}]
    whole = policy.tokenizer.apply_chat_template(chat, return_dict=False)
    end = policy.tokenizer.convert_tokens_to_ids(ENDS[template])
    assert ours[-1] == policy.end_id == end
    if template == NO_END:  # writes none, so EOS is added, and its two line breaks belong to the next turn
        assert policy.tokenizer.decode(ours[:-1]) == "user: what is two and two?\n\nassistant: " + answer
    elif template == BLANKS and not answer:
        assert ours == whole  # two blanks in one token or in two: the same text
    else:
        assert ours == whole[: len(whole) - whole[::-1].index(end)]


def test_thoughts_that_a_response_brings_are_not_written_twice():
    policy = policy_with(THOUGHTS)
    ids = policy.encode_response("<think>\nso\n</think>\n\nit is four")
    assert policy.tokenizer.decode(ids).count("</think>") == 1


def test_text_spells_no_end_of_turn():
    policy = policy_with(CHATML)
    assert policy.encode_response("a<|im_end|>b").count(policy.end_id) == 1


def test_sampling_ends_at_the_turns_end():
    """The EOS token is </s>; a model that writes <|im_end|> has ended by itself."""
    policy = policy_with(CHATML)
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
        policy.model.lm_head.weight[policy.end_id] = policy.model.model.norm.weight * 0
    found = sample(policy, ["what is two?"], n=64, max_new_tokens=40, seed=0)  # uniform over 300 tokens
    ended = [ids for ids in found.tokens[0] if ids[-1] == policy.end_id]
    assert ended
    assert all(ids.index(policy.end_id) == len(ids) - 1 for ids in ended)
    for ids, why in zip(found.tokens[0], found.finish_reasons[0], strict=True):
        assert (why == "stop") == (ids[-1] in policy.end_ids)


def test_ids_without_a_token_are_never_drawn_and_log_probs_are_still_the_models():
    policy = policy_with(CHATML, vocab_extra=700)
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    n_tokens, n_ids = len(policy.tokenizer), policy.model.lm_head.weight.shape[0]
    for params in ({}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0}):
        found = sample(policy, ["two"], n=4, max_new_tokens=8, seed=0, **params)
        assert max(max(ids) for ids in found.tokens[0]) < n_tokens
        assert found.token_logps[0][0][0] == pytest.approx(-torch.tensor(float(n_ids)).log().item(), abs=1e-4)
    again = score(policy, [policy.group("two", found.tokens[0])]).token_logps[0, 0]
    assert found.token_logps[0][0] == pytest.approx(again.tolist()[: len(found.token_logps[0][0])], abs=1e-4)
    other = sample(policy, ["two"], n=4, max_new_tokens=8, seed=0, engine="transformers")
    assert max(max(ids) for ids in other.tokens[0]) < n_tokens


def metaspace(prepend_scheme):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>", "[/I]"], show_progress=False)
    tokenizer.train_from_iterator(["2 + 2 = 4 and 3+3=6 it is four. " * 9], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_no_blank_at_the_border_of_plain_text():
    tokenizer = metaspace("first")
    policy = Policy(new_llama_for(tokenizer), tokenizer)
    for prompt, answer in (("2+2=", "4"), ("it is ", "four"), ("2 + 2", " = 4"), ("3", "")):
        ids = policy.encode_prompt(prompt)[1:] + policy.encode_response(answer)[:-1]
        assert tokenizer.decode(ids) == prompt + answer


@pytest.mark.parametrize("scheme", ["first", "always"])
def test_behind_a_template_the_border_is_the_templates(scheme):
    tokenizer = metaspace(scheme)
    tokenizer.add_special_tokens({"additional_special_tokens": ["[/I]"]})
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}</s>{% else %}[/I]{% endif %}{% endfor %}"
    )
    policy = Policy(new_llama_for(tokenizer), tokenizer)
    chat = [{"role": "user", "content": "2+2="}, {"role": "assistant", "content": "four is 4"}]
    whole = tokenizer.apply_chat_template(chat, return_dict=False)
    assert policy.encode_prompt("2+2=") + policy.encode_response("four is 4") == whole


def new_llama_for(tokenizer):
    return new_llama(tokenizer, width=8, layers=1, heads=1, max_length=64, seed=0)


def test_a_date_in_the_template_is_the_same_tomorrow(caplog):
    policy = policy_with("{{ strftime_now('%d %b %Y') }}" + CHATML)
    with caplog.at_level(logging.WARNING):
        text = render(policy.tokenizer, [{"role": "user", "content": "x"}])
    assert text.startswith("26 Jul 2024<|im_start|>")
    assert f"{datetime.date.today():%Y}" not in text
    assert policy.tokenizer.decode(policy.encode_prompt("x")).startswith("26 Jul 2024")


def test_a_template_that_takes_no_answer_leaves_the_end_token(caplog):
    tokenizer = policy_with("{{ raise_exception('one turn only') }}").tokenizer
    with caplog.at_level(logging.WARNING):
        assert read_turn(tokenizer).end_ids == (tokenizer.eos_token_id,)
    assert "writes no answered question" in caplog.text


def test_ends_of_the_generation_settings_count():
    policy = policy_with(CHATML)
    policy.model.generation_config = SimpleNamespace(eos_token_id=[7, 9])
    assert policy.end_ids >= {7, 9, policy.end_id, policy.tokenizer.eos_token_id}
