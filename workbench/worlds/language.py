"""What every world is built from: a word-level tokenizer and a small real model, in the hub's formats, and starting
checkpoints that are made once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from workbench import runs
from workbench.models import BOS, EOS, Policy, new_llama, pick_device

# The prompt is everything before the response; no role words, since the smallest worlds have no room for them.
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %} {{ message['content'] }}{% endfor %}"


def word_tokenizer(words: Sequence[str], template: str = CHAT_TEMPLATE):
    """A real fast tokenizer that knows these words and nothing else; the end token is also the padding token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([BOS, EOS, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=None))  # type: ignore[call-arg]
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, pad_token=EOS)
    fast.chat_template = template
    return fast


def small_policy(world: Any, tokenizer: Any, *, max_length: int, seed: int, width: int = 0, layers: int = 0) -> Policy:
    """An untrained Llama for the tokenizer on the world's device, of the world's width and layers unless given."""
    size = {"width": width or world.width, "layers": layers or world.layers, "heads": 4, "max_length": max_length}
    return Policy(new_llama(tokenizer, **size, seed=seed).to(pick_device(world.device)), tokenizer, world.name)


def key_of_start(world: Any, kind: str, module: str, seed: int, free: Collection[str]) -> dict[str, Any]:
    """What a starting checkpoint depends on: the code of the world's module, the seed, all settings but `free`."""
    settings = {f.name: getattr(world, f.name) for f in fields(world) if f.name not in free}
    return {"kind": kind, "code": runs.code_hash(module), "seed": seed, **settings}


def made_once(key: dict[str, Any], device: str, build: Callable[[], Policy]) -> Policy:
    """The policy that is stored under the key, built and stored when it is not there yet."""
    return Policy.load(runs.cached_folder(key, lambda folder: build().save(folder)), device=device)


def draw(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One index for every row of `probabilities` [n, k]."""
    uniforms = rng.random((len(probabilities), 1))
    return (uniforms > probabilities.cumsum(1)[:, :-1]).sum(1)
