"""Models and tokenizers made here: transformers' own classes at a small size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def new_llama(tokenizer: Any, *, width: int, layers: int, heads: int, max_length: int, seed: int) -> nn.Module:
    """A randomly initialised Llama for this tokenizer: the real transformers class at a small size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    size = {"hidden_size": width, "intermediate_size": 8 * width // 3, "num_hidden_layers": layers}
    size |= {"num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": max_length}
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("eos", "bos", "pad")}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=False, **size, **special))


BOS, EOS = "<s>", "</s>"


def bpe_tokenizer(texts: Iterable[str], *, vocab_size: int):
    """A byte-level BPE tokenizer trained on `texts`: any text can be written with it, with no unknown token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [BOS, EOS, "<|user|>", "<|assistant|>"]
    options = {"initial_alphabet": pre_tokenizers.ByteLevel.alphabet(), "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, **options)
    tokenizer.train_from_iterator(texts, trainer)
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": EOS, "extra_special_tokens": special[2:]}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = (
        "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    return fast
