"""Prepacked decoding on a CPU: a Llama-like network as one function over weights laid out for the matrix library.

A step of a few rows reads every weight once and does little else, so its time is the layout of the weights and the
number of small operations between the products. The packed copy is made once for a model's present weights. The
operators are private ones of torch: they are tried against the plain product first, and left where they fail.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

log = logging.getLogger(__name__)

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
SMALLEST = 20_000_000  # parameters: below, a step costs what its calls cost, not what its weights do
ROWS_HINT = 16  # rows that the packed layout is made for
FEWEST = 4  # rows: fewer go through the model's own weights, because packed ones are read more slowly than plain ones


class Packed:
    """One linear map, [n, d_in] -> [n, d_out], with what is done to its output fused in."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None):
        self.bias = bias
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, activation, [], "")

    def into(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        """`other` plus ("add") or times ("mul") the map of x."""
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.weight, self.bias, how)


class Plain:
    """The same over weights as they are: one matrix, or several side by side."""

    def __init__(self, *linear: nn.Linear):
        self.linear = linear

    def __call__(self, x: Tensor, activation: str = "none") -> Tensor:
        made = [functional.linear(x, part.weight, part.bias) for part in self.linear]
        y = made[0] if len(made) == 1 else torch.cat(made, -1)
        return functional.silu(y, inplace=True) if activation == "swish" else y

    def into(self, x: Tensor, other: Tensor, how: str) -> Tensor:
        return self(x).add_(other) if how == "add" else self(x).mul_(other)


class PackedModel:
    """The layers of a causal language model, ready to add one token to every row of a cache.

    Args:
        model: of one of `CLASSES`, on a CPU, without an adapter.
    """

    def __init__(self, model: Any):
        body, settings = model.base_model, model.config
        self.body, self.epsilon = body, settings.rms_norm_eps
        self.heads, self.key_heads = settings.num_attention_heads, settings.num_key_value_heads
        self.d_head = getattr(settings, "head_dim", None) or settings.hidden_size // self.heads
        self.matrix = model.lm_head.weight.detach()
        self.head = Packed(self.matrix)
        self.packed = [self._packed(layer) for layer in body.layers]
        self.plain = [self._plain(layer) for layer in body.layers]
        self.attentions = [layer.self_attn for layer in body.layers]

    @staticmethod
    def _plain(layer: Any) -> tuple[Any, ...]:
        attention, mlp = layer.self_attn, layer.mlp
        products = map(Plain, (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        norms = (layer.input_layernorm.weight, layer.post_attention_layernorm.weight)
        return Plain(attention.q_proj, attention.k_proj, attention.v_proj), *products, *norms

    @staticmethod
    def _packed(layer: Any) -> tuple[Any, ...]:
        """Products of a layer; the scale of a norm goes into the weights behind it."""
        attention, mlp = layer.self_attn, layer.mlp
        three = (attention.q_proj, attention.k_proj, attention.v_proj)
        before, between = layer.input_layernorm.weight.detach(), layer.post_attention_layernorm.weight.detach()
        qkv = torch.cat([part.weight.detach() for part in three]) * before
        bias = None if three[0].bias is None else torch.cat([part.bias.detach() for part in three])
        gate, up = (part.weight.detach() * between for part in (mlp.gate_proj, mlp.up_proj))
        weights = (attention.o_proj.weight.detach(), gate, up, mlp.down_proj.weight.detach())
        return Packed(qkv, bias), *map(Packed, weights), None, None

    def step(self, tokens: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Hidden states behind the final norm, [row, d_model], of one new token a row; `cache` is a `Slots`."""
        rows, scale = len(tokens), self.d_head**-0.5
        x = self.body.embed_tokens(tokens)
        cos, sin = self.body.rotary_emb(x[:, None], positions)  # [row, 1, d_head], both halves alike
        half, n = self.d_head // 2, self.heads + self.key_heads
        cos, sin = cos[..., :half], sin[..., :half]
        layers = self.plain if rows < FEWEST else self.packed
        for attention, (qkv, out, gate, up, down, before, between) in zip(self.attentions, layers, strict=True):
            made = qkv(self._normed(x, before)).view(rows, -1, self.d_head)
            a, b = made[:, :n, :half], made[:, :n, half:]
            turned = torch.cat([a * cos - b * sin, b * cos + a * sin], -1)[:, :, None]
            keys, values = cache.update(turned[:, self.heads :], made[:, n:, None], attention.layer_idx)
            seen = cache.attend(attention, turned[:, : self.heads], keys, values, scale).reshape(rows, -1)
            x = out.into(seen, x, "add")
            normed = self._normed(x, between)
            x = down.into(up.into(normed, gate(normed, "swish"), "mul"), x, "add")
        return self.body.norm(x)

    def _normed(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """RMS norm; without its scale where the weights behind it have that in them."""
        wide = x.float()
        normed = (wide * wide.square().mean(-1, keepdim=True).add_(self.epsilon).rsqrt_()).to(x.dtype)
        return normed if scale is None else normed * scale

    def logits(self, hidden: Tensor) -> Tensor:
        return self.head(hidden) if len(hidden) >= FEWEST else functional.linear(hidden, self.matrix)


_packed: WeakKeyDictionary[nn.Module, tuple[int, PackedModel]] = WeakKeyDictionary()
_left: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # models for which it was given up, and why


def packed_model(model: Any) -> PackedModel | None:
    """The model's present weights, packed; None where it does not fit or the operators fail. One copy is kept a
    process, and made anew when a weight has changed."""
    if model in _left or not _fits(model):
        return None
    versions = sum(parameter._version for parameter in model.parameters())
    kept = _packed.get(model)
    if kept is None or kept[0] != versions:
        _packed.clear()
        try:
            _try(model.lm_head.weight.dtype)
            with torch.no_grad():
                kept = versions, PackedModel(model)
        except (AttributeError, RuntimeError, NotImplementedError) as error:
            leave(model, str(error).splitlines()[0])
            return None
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        log.info("%s: a packed copy for decoding takes %.0f MB", type(model).__name__, size / 1e6)
        _packed[model] = kept
    return kept[1]


def leave(model: Any, why: str) -> None:
    """Decodes this model the usual way from now on."""
    _packed.pop(model, None)
    _left[model] = why
    log.info("%s is decoded with its own layers: %s", type(model).__name__, why)


def _fits(model: Any) -> bool:
    """Whether every part is what `PackedModel` takes it for."""
    if type(model).__name__ not in CLASSES or not torch.backends.mkldnn.is_available():
        return False
    weight = model.lm_head.weight
    if weight.is_cuda or weight.dtype not in (torch.float32, torch.bfloat16) or model.config.hidden_act != "silu":
        return False
    if torch.is_autocast_enabled("cpu") or sum(parameter.numel() for parameter in model.parameters()) < SMALLEST:
        return False
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    plain = all(type(module) is nn.Linear and not module._forward_hooks for module in linear)
    attention, mlp = model.base_model.layers[0].self_attn, model.base_model.layers[0].mlp
    biased = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj, model.lm_head)
    return plain and all(module.bias is None for module in biased)


def _try(dtype: torch.dtype) -> None:
    """The operators against the plain product.

    Raises:
        RuntimeError: they give other numbers here.
    """
    generator = torch.Generator().manual_seed(0)
    x, w, other = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 64), (48, 64), (5, 48)))
    one, plain = Packed(w), functional.linear(x, w).float()
    found = [one(x), one(x, "swish"), one.into(x, other, "add"), one.into(x, other, "mul")]
    wanted = [plain, functional.silu(plain), plain + other.float(), plain * other.float()]
    worst = max(float((a.float() - b).abs().max()) for a, b in zip(found, wanted, strict=True))
    if not worst <= (1e-3 if dtype == torch.float32 else 1.0):
        raise RuntimeError(f"torch's packed products differ from plain ones by {worst:.2g}")
