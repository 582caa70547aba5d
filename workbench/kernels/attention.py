"""Attention in layouts of our own, inside any transformers model that calls its attention through the library's
registry.

A layout travels as a keyword argument of the model's forward pass down to every attention layer. So it is there again
when gradient checkpointing runs a layer a second time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "workbench"


class Unsupported(Exception):
    """This model's attention does something that a layout cannot reproduce; the text says what."""


@runtime_checkable
class Layout(Protocol):
    """Where the queries, keys and values of a forward pass belong.

    Attributes:
        span: most positions between a query and the keys that it sees; a sliding window below it is refused.
    """

    span: int

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [row, head, tok, d_head], key and value with the model's key/value heads -> [row, head, tok,
        d_head]."""
        ...


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    if layout is None:  # a call that is not ours: the model keeps its usual attention
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    window = kwargs.get("sliding_window")
    if window is not None and window < layout.span:
        raise Unsupported(f"attention slides over {window} tokens and the texts have {layout.span}")
    for name in ("softcap", "s_aux", "position_bias", "head_mask"):
        if kwargs.get(name) is not None:
            raise Unsupported(f"attention uses {name}")
    if query.shape[-1] != value.shape[-1] or dropout:
        raise Unsupported("attention uses dropout" if dropout else "keys and values have different widths")
    if getattr(module, "is_cross_attention", False) or not getattr(module, "is_causal", True):
        raise Unsupported("attention is not causal self-attention")
    if torch.is_autocast_enabled(kind := query.device.type):  # as it does for the library's own attention
        query, key, value = (x.to(torch.get_autocast_dtype(kind)) for x in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module, query, key, value, scale).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def own_attention(model: nn.Module) -> Iterator[dict[str, Any]]:
    """Sends the attention of `model` through layouts; yields what every forward pass needs beside `layout`.

    With gradient checkpointing the model stays on our attention function, because its layers run again in the
    backward pass; calls without a layout get what they got before.

    Raises:
        Unsupported: the model does not use the library's scaled dot product attention.
    """
    config: Any = model.config
    with _lock:  # threads may score one model at the same time: the last to leave gives its attention back
        users, before = _users.get(id(config), (0, config._attn_implementation))
        if before not in ("sdpa", NAME):
            raise Unsupported(f"the model was loaded with attn_implementation={before!r}")
        config._attn_implementation = NAME
        _users[id(config)] = users + 1, before
    try:
        # a mask of four dimensions is passed through as it is, so no mask over all the tokens is made
        yield {"attention_mask": torch.zeros(1, 1, 1, 1, device=next(model.parameters()).device)}
    finally:
        with _lock:
            users, before = _users.pop(id(config))
            if users > 1:
                _users[id(config)] = users - 1, before
            elif not any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
                config._attn_implementation = before


_lock = threading.Lock()
_users: dict[int, tuple[int, str]] = {}  # by configuration: calls inside, and the attention to give back


def repeat_heads(x: Tensor, n_heads: int) -> Tensor:
    """Keys or values of grouped-query attention, one copy a query head; as they are where the counts are equal."""
    groups = n_heads // x.shape[1]
    return x if groups == 1 else x.repeat_interleave(groups, dim=1)
