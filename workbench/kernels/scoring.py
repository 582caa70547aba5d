"""Scoring: how likely does a policy find given responses? Groups of a prompt with K responses in, log-probs out.

The `padded` route is the textbook against which every other route is tested, and against which a fast route tests
itself before it is trusted with a model.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.kernels.attention import Unsupported, own_attention
from workbench.kernels.finish import Finish
from workbench.kernels.heads import token_logps
from workbench.kernels.meeting import TOLERANCE, Parts, agreed_largest, compute_dtype, parts_of
from workbench.kernels.trees import Blocks, Flex, Packed, Segments, pack

log = logging.getLogger(__name__)

ROUTES = ("auto", "padded", "shared")


class Group(NamedTuple):
    """One prompt with its K responses, as token ids; each response ends with the end token if it ended.

    Attributes:
        prompt_positions: position of every prompt token, rising; None for 0, 1, 2, ... The responses go on behind the
            last one. Attention stays causal in the order of the tokens; only what the model knows of positions changes.
        features: [n, d_model] embeddings in the places of the prompt's n image tokens, in order; see `Policy.features`.
    """

    prompt_ids: list[int]
    responses_ids: list[list[int]]
    prompt_positions: list[int] | None = None
    features: Tensor | None = None


class NanScore(FloatingPointError):
    """A log-probability is NaN. `groups` holds the indices of the groups, for callers that know their names."""

    def __init__(self, groups: list[int]):
        self.groups = groups
        super().__init__(
            f"NaN log-probabilities in group {', '.join(map(str, groups[:10]))}: look at these texts, and at the"
            " weights"
        )


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of every response token, in nats.

    Attributes:
        token_logps: zero where there is no token.
        is_token: True on real response tokens. A group with fewer than K responses has rows without any.
    """

    token_logps: Float[Tensor, "group k tok"]
    is_token: Bool[Tensor, "group k tok"]

    @property
    def mask(self) -> Bool[Tensor, "group k tok"]:
        return self.is_token

    @property
    def sums(self) -> Float[Tensor, "group k"]:
        """log p(response | prompt), end token included."""
        return self.token_logps.sum(-1)

    @property
    def lengths(self) -> Int[Tensor, "group k"]:
        return self.is_token.sum(-1)

    @property
    def means(self) -> Float[Tensor, "group k"]:
        """Mean log-probability a token; NaN for a response that the group does not have."""
        return self.sums / self.lengths


def score(
    policy: Any, groups: Sequence[Group], *, route: str = "auto", check: bool = True, temperature: float = 1.0
) -> Scores:
    """Log-probabilities of the responses of every group under `policy`; differentiable.

    Args:
        policy: a `Policy` or a bare transformers model (plain, or with a LoRA adapter).
        groups: prompts and responses as token ids; the number of responses may differ between groups.
        route: "padded", one row a response; "shared", each prompt once with its responses as branches (see `trees`);
            "auto", whichever computes less for these lengths.
        check: refuse NaN; False returns it. Where several processes score together it is always returned, because one
            of them must not leave the others waiting.
        temperature: of the distribution that is scored: logits are divided by it, as in sampling. Above 0.

    Returns:
        Scores with axes group, response, token of the response.

    Raises:
        ValueError: no groups; an empty prompt or a response without tokens, positions that do not fit the prompt or do
            not rise, features that do not fit its image tokens (the group is named); an unknown route; a model that
            takes no positions where a group gives them.
        NanScore: a log-probability is NaN (the group is named).

    Notes:
        A model meets the shared route for the first time with two of its groups, which are scored by the padded route
        too. Where the two differ, or where the model's attention cannot be shared (a sliding window shorter than the
        text, soft-capped attention, recurrent layers), every call takes the padded route, and a warning says so once.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0 to have log-probabilities; got {temperature}")
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}; got {route!r}")
    check_groups(groups)
    if isinstance(policy, nn.Module):
        logps = _logps(policy, groups, route, temperature)
    else:
        with policy.autocast():
            logps = _logps(policy.model, groups, route, temperature)
    if check and not torch.distributed.is_initialized() and bool(logps.isnan().any()):
        owner = np.repeat(np.arange(len(groups)), [sum(map(len, group.responses_ids)) for group in groups])
        raise NanScore(np.unique(owner[logps.isnan().cpu().numpy()]).tolist())
    return _scores(groups, logps)


def route_taken(policy: Any, groups: Sequence[Group], route: str = "auto") -> str:
    """What `score` does with these groups: "padded", or the shared route's attention: "segments", "blocks", "flex".

    Args:
        route: as in `score`; "shared" comes back as "padded" where the model's attention cannot be shared.
    """
    model = policy if isinstance(policy, nn.Module) else policy.model
    return _route_taken(model, parts_of(model), groups, route)


def _route_taken(model: nn.Module, parts: Parts, groups: Sequence[Group], route: str) -> str:
    can_share = route != "padded" and _can_share(model, parts, groups)
    return _layout(groups, route, model) if can_share else "padded"


def check_groups(groups: Sequence[Group]) -> None:
    """Refuses what has no log-probability: nothing to score, a prompt or a response without tokens, wrong positions."""
    if not groups:
        raise ValueError("nothing to score: the list of groups is empty")
    for index, group in enumerate(groups):
        if not group.prompt_ids:
            raise ValueError(
                f"group {index} has an empty prompt: nothing predicts its first response token; add a start token"
            )
        for k, response in enumerate(group.responses_ids):
            if not response:
                raise ValueError(f"group {index}, response {k} has no tokens; even an empty text has its end token")
        positions = group.prompt_positions
        if positions is not None and (
            len(positions) != len(group.prompt_ids) or min(np.diff(positions, prepend=-1)) < 1
        ):
            raise ValueError(
                f"group {index}: prompt_positions must be {len(group.prompt_ids)} rising numbers from 0 on, one a"
                " prompt token"
            )


def _logps(model: nn.Module, groups: Sequence[Group], route: str, temperature: float) -> Float[Tensor, " tok"]:
    """One after the other: group by group, response by response, token by token."""
    parts = parts_of(model)
    taken = _route_taken(model, parts, groups, route)
    if taken == "padded":
        return _padded(model, parts, groups, temperature)
    return _shared(model, parts, groups, taken, temperature)


# ----------------------------------------------------------------------------------------------------------- the choice
# Costs on a CPU, forward and backward together, in pairs of tokens that attention multiplies; measured at widths from
# 64 to 512. What a token costs outside attention grows with the width; what a call costs does not, so it counts in its
# inverse.
TOKEN = 3.5  # times the width
CALL = 4e5  # over the width: one part of `Segments`
MOVED = 0.5  # times the width: a token that `Blocks` moves to its padded place and back


def _layout(groups: Sequence[Group], route: str, model: nn.Module) -> str:
    """The cheapest route, and for the shared one its attention layout: "padded", "segments", "blocks" or "flex"."""
    if route == "padded":
        return "padded"
    prompt = np.array([len(group.prompt_ids) for group in groups])
    lengths = [[len(response) for response in group.responses_ids] for group in groups]
    responses, k = np.array([sum(row) for row in lengths]), np.array([len(row) for row in lengths])
    own = np.array([sum(length**2 for length in row) for row in lengths])
    longest_row = (prompt + np.array([max(row, default=0) for row in lengths])).max()
    longest_group = (prompt + responses).max()
    tokens, padded_tokens = (prompt + responses).sum(), k.sum() * longest_row
    if next(model.parameters()).is_cuda:
        return "flex" if route == "shared" or tokens < padded_tokens else "padded"
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr, operator]
    cost = {
        # causal kernels skip half of a square; a block mask skips nothing
        "padded": padded_tokens * (TOKEN * width + longest_row / 2),
        "segments": (
            tokens * TOKEN * width + ((prompt**2 + own) / 2 + prompt * responses).sum() + (1 + k).sum() * CALL / width
        ),
        "blocks": tokens * TOKEN * width + len(groups) * longest_group * (longest_group + MOVED * width),
    }
    if route == "shared":
        del cost["padded"]
    return min(cost, key=cost.__getitem__)


_verdicts: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # "" where the routes agreed, else why not
_warned: set[str] = set()
_NUMBER = re.compile(r"\d[\d.e+-]*")  # warn once a reason: the same one with other figures is no new one


def _can_share(model: nn.Module, parts: Parts, groups: Sequence[Group]) -> bool:
    """Whether the shared route gives this model's numbers on these texts; all processes come to the same answer."""
    if parts.key not in _verdicts:
        _verdicts[parts.key] = _verify(model, parts, groups)
    reason = _verdicts[parts.key]
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    window = getattr(config, "sliding_window", None)
    if not reason and window and "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
        longest = agreed_largest(float(pack(groups).longest))
        reason = f"attention slides over {window} tokens and a text has {longest:.0f}" if longest > window else ""
    if reason:
        name = type(model.get_base_model() if hasattr(model, "peft_config") else model).__name__  # type: ignore[operator]
        if (kind := f"{name} {_NUMBER.sub('#', reason)}") not in _warned:
            _warned.add(kind)
            log.warning("%s is scored by the padded route: %s", name, reason)
    return not reason


@torch.no_grad()
def _verify(model: nn.Module, parts: Parts, groups: Sequence[Group]) -> str:
    """Scores the two shortest groups by both routes; says how they differ, "" if they do not."""
    short = sorted(groups, key=lambda g: len(g.prompt_ids) + sum(map(len, g.responses_ids)))[:2]
    padded = _padded(model, parts, short)
    try:
        shared = _shared(model, parts, short, _layout(short, "shared", model))
    except Unsupported as reason:
        return str(reason)
    worst = agreed_largest(float((shared - padded).abs().max()))
    # weights that are not finite fail on every route alike, which says nothing about this one
    agreed = worst <= TOLERANCE[compute_dtype(model)] or not padded.isfinite().all()
    return "" if agreed else f"its log-probs differ from the padded route's by {worst:.2g} nats a token"


# ----------------------------------------------------------------------------------------------------------- the routes
def _shared(model: nn.Module, parts: Parts, groups: Sequence[Group], layout: str, temperature: float = 1.0) -> Tensor:
    """Each prompt once, its responses as branches behind it."""
    parameter = next(model.parameters())
    packed = pack(groups)
    with own_attention(parts.body) as settings:
        tree = _attention_layout(packed, layout, parameter)
        input_ids = torch.from_numpy(packed.input_ids).to(parameter.device)[None]
        hidden = parts.body(
            **inputs(model, input_ids, groups),
            position_ids=torch.from_numpy(packed.positions).to(parameter.device)[None],
            use_cache=False,
            layout=tree,
            **settings,
        ).last_hidden_state[0]
    layers = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr, operator]
    if tree.calls < layers:
        raise Unsupported(f"only {tree.calls} of its {layers} layers are attention of the usual kind")
    predictors = torch.from_numpy(packed.predictors).to(parameter.device)
    targets = torch.from_numpy(packed.targets).to(parameter.device)
    return token_logps(hidden.index_select(0, predictors), targets, parts.head, finish=_at(parts.finish, temperature))


def _attention_layout(packed: Packed, layout: str, parameter: Tensor) -> Segments | Blocks | Flex:
    if layout == "segments":
        return Segments(packed)
    if layout == "flex":
        return Flex(packed, parameter.device)
    return Blocks(packed, parameter.dtype, parameter.device)


def _padded(model: nn.Module, parts: Parts, groups: Sequence[Group], temperature: float = 1.0) -> Tensor:
    """The same numbers from one row a response, padded on the right.

    No attention mask is passed: under causal attention no real token can see the padding behind it, and attention
    without a mask takes the fast path. Only response positions reach the head.
    """
    device = next(model.parameters()).device
    owners = [group for group in groups for _ in group.responses_ids]
    rows = [(len(g.prompt_ids), g.prompt_ids + response) for g in groups for response in g.responses_ids]
    width = max(len(ids) for _, ids in rows)
    # the last token again, because models warn of their padding token where no mask is given
    input_ids = torch.tensor([ids + ids[-1:] * (width - len(ids)) for _, ids in rows], device=device)
    hidden = parts.body(
        **inputs(model, input_ids, owners), **_positions(model, parts.body, owners, input_ids), use_cache=False
    ).last_hidden_state
    places = torch.from_numpy(
        np.concatenate([np.arange(i * width + start, i * width + len(ids)) for i, (start, ids) in enumerate(rows)])
    ).to(device)
    predicting = hidden.flatten(0, 1).index_select(0, places - 1)
    return token_logps(predicting, input_ids.flatten()[places], parts.head, finish=_at(parts.finish, temperature))


def inputs(model: nn.Module, input_ids: Tensor, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Tokens, or their embeddings where groups (in the order of the tokens) bring features for their image tokens."""
    if all(group.features is None for group in groups):
        return {"input_ids": input_ids}
    image: int = getattr(model.config, "image_token_id", -1)
    for index, group in enumerate(groups):
        wanted, there = group.prompt_ids.count(image), 0 if group.features is None else len(group.features)
        if wanted != there or any(image in response for response in group.responses_ids):
            raise ValueError(
                f"group {index} has {there} features for {wanted} image tokens (id {image}); each prompt's image tokens"
                " need one feature each, and a response has none"
            )
    embeds = model.get_input_embeddings()(input_ids)  # type: ignore[operator]
    features = torch.cat([group.features for group in groups if group.features is not None])
    return {"inputs_embeds": embeds.masked_scatter((input_ids == image)[..., None], features.to(embeds))}


def _positions(model: nn.Module, body: nn.Module, owners: Sequence[Group], input_ids: Tensor) -> dict[str, Tensor]:
    """Positions of padded rows, one owner a row; nothing where all are the usual ones."""
    if all(group.prompt_positions is None for group in owners):
        return {}
    if "position_ids" not in inspect.signature(body.forward).parameters:
        raise ValueError(f"{type(model).__name__} takes no position_ids, so it cannot be scored at other positions")
    rows = torch.arange(input_ids.shape[1]).repeat(len(owners), 1)
    for row, group in zip(rows, owners, strict=True):
        if group.prompt_positions is not None:
            p = len(group.prompt_ids)
            row[p:] += group.prompt_positions[-1] + 1 - p
            row[:p] = torch.tensor(group.prompt_positions)
    # without a mask the library takes jumps in the positions for the borders of packed texts
    return {"position_ids": rows.to(input_ids.device), "attention_mask": torch.ones_like(input_ids)}


def _at(finish: Finish, temperature: float) -> Finish:
    """What the model does to its logits, then their division by the temperature."""
    return Finish(finish.scale / temperature, finish.cap / temperature)


def _scores(groups: Sequence[Group], logps: Tensor) -> Scores:
    """From one log-prob after the other to [group, k, tok]."""
    k = max(len(group.responses_ids) for group in groups)
    lengths = np.zeros((len(groups), k), int)
    for row, group in enumerate(groups):
        lengths[row, : len(group.responses_ids)] = [len(response) for response in group.responses_ids]
    is_token = torch.from_numpy(np.arange(lengths.max()) < lengths[:, :, None]).to(logps.device)
    return Scores(logps.new_zeros(is_token.shape).masked_scatter(is_token, logps), is_token)
