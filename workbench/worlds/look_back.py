"""A Llama that sees the two tokens before each token: looking things up in a text is learned in seconds, not hours.

A small transformer needs long to find out that a key and the value behind it belong together. Here the embedding of
every token has three parts: of the token itself, and what it adds to the next token and to the one after that. The
first layer adds them up; the others are Llama's own, with rotary positions. `Lfm2ForCausalLM`, whose short convolutions
see as much, was tried first: in the steps that the worlds allow it learned the look-up in part or not at all.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

NEIGHBOURS = 2  # tokens before the current one


class LookBackConfig(LlamaConfig):
    """Llama's; the first of `num_hidden_layers` is the one that looks back."""

    model_type = "workbench_look_back"


class LookBack(nn.Module):
    """[own, for the next, for the one after] of every token -> own + for the next of the last token + ..."""

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def forward(
        self, hidden_states: Tensor, position_ids: Any = None, past_key_values: Any = None, **rest: Any
    ) -> Tensor:
        own, one, two = hidden_states.chunk(1 + NEIGHBOURS, -1)
        n = own.shape[1]
        if past_key_values is not None:  # kept beside the keys and values of the other layers, in their shape
            one, two = past_key_values.update(self._split(one), self._split(two), 0)
            one, two = one.transpose(1, 2).flatten(2), two.transpose(1, 2).flatten(2)
        one = nn.functional.pad(one, (0, 0, 1, 0))[:, -n - 1 : -1]
        two = nn.functional.pad(two, (0, 0, 2, 0))[:, -n - 2 : -2]
        place = position_ids[..., None]  # rows may be padded on the left, where every position is 0
        return own + one * (place > 0) + two * (place > 1)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class LookBackForCausalLM(LlamaForCausalLM):
    config_class = LookBackConfig

    def __init__(self, config: LookBackConfig):
        super().__init__(config)
        self.model.embed_tokens = nn.Embedding(config.vocab_size, (1 + NEIGHBOURS) * config.hidden_size)
        nn.init.normal_(self.model.embed_tokens.weight, std=config.initializer_range)
        self.model.layers[0] = LookBack(config.num_key_value_heads or config.num_attention_heads)


AutoConfig.register(LookBackConfig.model_type, LookBackConfig)
AutoModelForCausalLM.register(LookBackConfig, LookBackForCausalLM)
