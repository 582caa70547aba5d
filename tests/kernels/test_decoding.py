"""Rows and when they end: stop texts over several tokens, rules, and the plain loop's own guards."""

import pytest
import torch

from workbench.kernels.decoding import Network, Prefix, Row, Rules, StopTexts, batches, decode_plain
from workbench.kernels.drawing import SamplingParams


@pytest.fixture(scope="module")
def tokenizer():
    from workbench.models import bpe_tokenizer

    return bpe_tokenizer(["The answer is 42.\nNext question"] * 3, vocab_size=290)


def first_stop(stop, tokens):
    """The number of tokens after which the text is stopped, None if it is not."""
    return next((i for i in range(1, len(tokens) + 1) if stop.completed_by_last(tokens[:i])), None)


@pytest.mark.parametrize("text", ["\n", "42.", "answer is 42.\nNext", "é", "€uro"])
def test_a_stop_text_is_found_with_the_token_that_completes_it(tokenizer, text):
    """Byte-level tokens: `text` is spread over one to many of them, and a character over several."""
    before, after = "Well, no. " * 20 + "The ", " and more of it"
    before, text, after = (tokenizer(part, add_special_tokens=False).input_ids for part in (before, text, after))
    at = first_stop(StopTexts([tokenizer.decode(text), "never there"], tokenizer), before + text + after)
    assert at == len(before) + len(text)


def test_special_tokens_are_no_text(tokenizer):
    """A stop text whose tokens have end tokens between them is still one text."""
    ids = tokenizer("answer is", add_special_tokens=False).input_ids
    scattered = [t for token in ids for t in [token, *[tokenizer.eos_token_id] * 12]]
    assert first_stop(StopTexts("answer is", tokenizer), scattered) == len(scattered) - 12


def test_a_stop_text_that_was_there_before_does_not_stop(tokenizer):
    given = tokenizer("x\ny", add_special_tokens=False).input_ids
    stop = StopTexts(["\n"], tokenizer)
    assert not stop.completed_by_last([*given, *tokenizer("z", add_special_tokens=False).input_ids])
    assert stop.completed_by_last([*given, *tokenizer("\n", add_special_tokens=False).input_ids])


def test_batches_hold_whole_stems():
    prefixes = [Prefix([1] * (7 - i), 1, [Row(i, k, [0.5]) for k in range(2)]) for i in range(4)]
    found = batches(prefixes, 5)
    assert [[len(prefix.ids) for prefix in batch] for batch in found] == [[4, 5], [6, 7]]
    assert [len(batch) for batch in batches(prefixes, 1)] == [1, 1, 1, 1]


def test_rules_record_until_the_end():
    rules = Rules(SamplingParams(), ends=frozenset({7}))
    rows = [Row(0, 0, [0.5] * 3), Row(1, 0, [0.5] * 2), Row(2, 0, [0.5] * 3)]
    numbers = torch.tensor([-1.0, -2.0, -3.0])
    assert rules.record(rows, (torch.tensor([4, 5, 7]), numbers, numbers / 2)) == [2]
    assert rules.record(rows[:2], (torch.tensor([4, 5]), numbers[:2], numbers[:2])) == [1]
    assert [row.finish_reason for row in rows] == ["length", "length", "stop"]
    assert rows[2].tokens == [7]
    assert (rows[2].logps, rows[2].sampling_logps) == ([-3.0], [-1.5])


def test_a_model_without_a_usual_cache_is_refused():
    """Mamba names its cache otherwise: without this check every token would see only the one before it."""
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=23, hidden_size=8, state_size=2, num_hidden_layers=1)).eval()
    with pytest.raises(
        ValueError, match=r'MambaForCausalLM does not keep its past in a DynamicCache.*engine="transformers"'
    ):
        decode_plain(Network(model), [Prefix([3, 4], 2, [Row(0, 0, [0.5] * 2)])], Rules(SamplingParams()), 1)
