"""What every world is built from: a word-level tokenizer and a small real model, in the hub's formats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from workbench.models import BOS, EOS

# The prompt is everything before the response; no role words, since the smallest worlds have no room for them.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"


def word_tokenizer(words: Sequence[str]):
    """A real fast tokenizer that knows these words and nothing else; the end token is also the padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([BOS, EOS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=None))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    fast.chat_template = CHAT_TEMPLATE
    return fast


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index for every row of `probabilities` [n, k]."""
    uniforms = rng.random((len(probabilities), 1))
    return (uniforms > probabilities.cumsum(1)[:, :-1]).sum(1)
