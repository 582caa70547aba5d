"""First meeting: before a model's numbers are trusted, a few tokens go through its own forward pass too.

The kernels take a model apart into body, head and what it does to its logits. Whether the parts give the model's own
numbers is measured, once a process for every class and configuration. Where no scale or soft cap of the model's
configuration explains its logits, its own are used: slower, [tokens, vocabulary] in memory, and right.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from workbench.kernels.finish import PLAIN, Finish
from workbench.kernels.heads import body_and_head, token_logps

log = logging.getLogger(__name__)

# What two ways to the same log-probabilities must agree to, per token in nats, before the faster one is used on a
# model; times the spread of the model's logits where that is below 1.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.bfloat16: 0.3, torch.float16: 0.1}
PROBE = (9, 5)  # tokens of the two rows that a model is met with


class Parts(NamedTuple):
    """A causal language model as the kernels use it.

    Attributes:
        body: gives `last_hidden_state`, [row, tok, d_model].
        head: from hidden states to logits.
        finish: what the model does to its logits after the head.
        key: the module that remembers stand under: the same for a model with its adapter on and off.
    """

    body: nn.Module
    head: nn.Module
    finish: Finish
    key: nn.Module


_met: WeakKeyDictionary[nn.Module, Finish | None] = WeakKeyDictionary()  # None: the model's own logits
_met_before: dict[str, Finish | None] = {}  # by class and configuration


def parts_of(model: nn.Module) -> Parts:
    """Body, head and finish of a causal language model (plain or with an adapter), measured on first meeting.

    Raises:
        ValueError: no language model; or its log-probabilities of a text depend on what stands behind it.
    """
    body, head = body_and_head(model)
    if body not in _met:
        causal = _causal(model)
        if isinstance(getattr(head, "weight", None), DTensor):  # in pieces the model has no forward pass of its own
            return Parts(body, head, _finishes(causal.config)[0], body)
        signature = f"{type(causal).__name__} {causal.config.to_json_string()} {compute_dtype(model)}"
        signature = hashlib.sha256(signature.encode()).hexdigest()
        found = _met_before[signature] if signature in _met_before else _measure(model, body, head)
        if isinstance(found, _Unknown):  # weights that are not finite, or all equal: nothing was seen, so ask again
            return Parts(body, head, found.finish, body)
        _met[body] = _met_before[signature] = found
    finish = _met[body]
    return Parts(body, head, finish, body) if finish is not None else Parts(_OwnLogits(model), _AsIs(), PLAIN, body)


class _Unknown(NamedTuple):
    finish: Finish


@torch.no_grad()
def _measure(model: nn.Module, body: nn.Module, head: nn.Module) -> Finish | _Unknown | None:
    """The finish under which body and head, on two rows padded on the right, give the model's own log-probs of each
    row alone; None where only its own logits do."""
    whole: Any = model
    n_ids = int(whole.get_input_embeddings().weight.shape[0])
    generator = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    rows = [torch.randint(n_ids, (1, n), generator=generator).to(device) for n in PROBE]
    batch = torch.cat([nn.functional.pad(row, (0, PROBE[0] - row.shape[1]), value=int(row[0, -1])) for row in rows])
    with resting(model):
        own = torch.cat([_own_logits(model, row)[0] for row in rows])
        hidden: Tensor = body(input_ids=batch, use_cache=False).last_hidden_state
        hidden = torch.cat([states[:n] for states, n in zip(hidden, PROBE, strict=True)])
        spread = float(own.std(-1).mean())
        candidates = _finishes(_causal(model).config)
        if not own.isfinite().all() or not spread > 0:
            return _Unknown(candidates[0])
        targets = torch.cat([own.argmax(-1), own.argmin(-1)])
        wanted = own.log_softmax(-1).repeat(2, 1).gather(-1, targets[:, None])[:, 0]
        tolerance = TOLERANCE[compute_dtype(model)] * min(1.0, spread)
        worst = []
        for finish in candidates:
            worst.append(_difference(hidden.repeat(2, 1), targets, head, finish, wanted))
            if worst[-1] <= tolerance:
                return finish
        behind = torch.cat([z[:n] for z, n in zip(_own_logits(model, batch), PROBE, strict=True)])
        if agreed_largest(float((behind.log_softmax(-1) - own.log_softmax(-1)).abs().max())) > tolerance:
            raise ValueError(
                f"{type(_causal(model)).__name__} reads what stands behind a token (its log-probs change with padding),"
                " so it is no causal language model; one of BERT's kind can be an encoder or a reward model"
            )
    log.warning(
        "%s: output head and body give other log-probs than the model's own forward, by %.2g nats a token; its"
        " own logits are used, slower and with more memory",
        type(_causal(model)).__name__,
        min(worst),
    )
    return None


def _difference(hidden: Tensor, targets: Tensor, head: nn.Module, finish: Finish, wanted: Tensor) -> float:
    """Largest, in nats; infinite where the head does not even take the body's states (layers of its own before it)."""
    weight: Any = getattr(getattr(head, "base_layer", head), "weight", None)
    if weight is not None and weight.shape[-1] != hidden.shape[-1]:
        return float("inf")
    return agreed_largest(float((token_logps(hidden, targets, head, finish=finish) - wanted).abs().max()))


def _finishes(settings: Any) -> list[Finish]:
    """What a model may do to its logits, by its configuration: the likeliest first.

    Cohere multiplies by `logit_scale`, Granite divides by `logits_scaling`, HyperCLOVA X multiplies by it, Falcon-H1
    multiplies by `lm_head_multiplier`, Gemma 2 caps by c·tanh(z/c): every number with such a name is tried both ways.
    """
    of_text = settings.get_text_config()
    cap = float(getattr(of_text, "final_logit_softcapping", None) or 0.0)
    numbers = {
        name: float(value)
        for name, value in of_text.to_dict().items()
        if isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        if ("logit" in name or "lm_head" in name) and "softcap" not in name
    }
    scale = (
        numbers.get("logit_scale", 1.0) / numbers.get("logits_scaling", 1.0) * numbers.get("lm_head_multiplier", 1.0)
    )
    scales = [scale, 1.0, *numbers.values(), *(1 / number for number in numbers.values())]
    return list(dict.fromkeys(Finish(*pair) for pair in itertools.product(scales, dict.fromkeys([cap, 0.0]))))


def _own_logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    if logits.shape[:2] != ids.shape:
        raise ValueError(
            f"{type(model).__name__} gives {logits.shape[1]} predictions for {ids.shape[1]} tokens; adapters that add"
            " tokens (prompt or prefix tuning) are not supported, LoRA and DoRA are"
        )
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


class _OwnLogits(nn.Module):
    """The whole model in the place of its body; its logits stand where hidden states did."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, body_and_head(model)[0].config

    def forward(self, **inputs: Any) -> SimpleNamespace:
        out = self.model(**inputs)
        past = getattr(out, "past_key_values", None)
        return SimpleNamespace(last_hidden_state=out.logits, past_key_values=past)


class _AsIs(nn.Identity):
    """A head behind `_OwnLogits`."""

    out_features = 2**18  # only sizes chunks


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    """Without dropout; every module back in its mode afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def agreed_largest(number: float) -> float:
    """The largest over all processes: they score together, so they must take the same route."""
    if not torch.distributed.is_initialized():
        return number
    largest = torch.tensor(number, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
    return float(largest)


def compute_dtype(model: nn.Module) -> torch.dtype:
    parameter = next(model.parameters())
    kind = parameter.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else parameter.dtype


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore[operator]
