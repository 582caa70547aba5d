"""What every world is built from: a word-level tokenizer and a small real model, in the hub's formats.

What may live here: parts that two worlds share. What may not: the truth of any world.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

BOS, EOS = "<s>", "</s>"
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


def bpe_tokenizer(texts: Iterable[str], *, vocab_size: int):
    """A byte-level BPE tokenizer trained on `texts`: any text can be written with it, with no unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [BOS, EOS, "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS, extra_special_tokens=special[2:]
    )
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return fast


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index for every row of `probabilities` [n, k]."""
    uniforms = rng.random((len(probabilities), 1))
    return (uniforms > probabilities.cumsum(1)[:, :-1]).sum(1)
