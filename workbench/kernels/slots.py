"""Slots: the fast decoding loop. A row that ends leaves its place to one that waits.

Keys and values are written into blocks that are allocated ahead. Those of a prompt with several responses are computed
once and held once: a row attends to its prompt's block, in one product for all rows of the prompt, and to its own slot;
the two parts of the softmax are merged by their normalisers. Models whose attention is more than softmax(q·k) refuse.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workbench.kernels.attention import Unsupported, own_attention
from workbench.kernels.decoding import Network, Prefix, Row, Rules, decode_plain, next_uniforms
from workbench.kernels.drawing import SamplingParams, draw
from workbench.kernels.meeting import TOLERANCE, compute_dtype
from workbench.kernels.prepacked import leave, packed_model
from workbench.kernels.scoring import Group, score

log = logging.getLogger(__name__)

PREFILL_TOKENS = 2048  # of one pass over prompts: keeps cores busy, small beside the cache
COLUMNS = 64  # a block grows by at least so many tokens
SHORT = (
    40  # tokens of prompt and response up to which slots cost more than they save; measured at widths from 64 to 256
)


# -- blocks of keys and values
class Block:
    """Keys and values of texts side by side: in each layer a tensor [row, head, token, width], rows 0 to n-1 taken."""

    def __init__(self):
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.lengths: list[int] = []  # tokens of each row

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, like: Sequence[tuple[Tensor, Tensor]], lengths: Sequence[int], rows: int) -> None:
        """New rows: `lengths[i]` tokens of row i of `like`, a pair of keys and values a layer; 0 begins an empty one.

        `rows` says how many there will be after this call and those that follow it, so that room is made once.
        """
        first, width = len(self), max(lengths)
        if not self.keys:
            self.keys = [k.new_empty(0, k.shape[1], 0, k.shape[3]) for k, _ in like]
            self.values = [v.new_empty(0, v.shape[1], 0, v.shape[3]) for _, v in like]
        self.reserve(rows, width)
        self.lengths += lengths
        for layer, (k, v) in enumerate(like if width else ()):
            self.keys[layer][first : len(self), :, :width] = k[:, :, :width]
            self.values[layer][first : len(self), :, :width] = v[:, :, :width]

    def reserve(self, rows: int, columns: int) -> None:
        """Room for so many rows and tokens; with zeros, because 0 times what is not a number would reach the output."""
        have_rows, _, have, _ = self.keys[0].shape
        if columns > have:
            columns += -columns % COLUMNS if have == 0 else max(-columns % COLUMNS, have // 2)
        elif rows <= have_rows:
            return
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):
                new = tensors[layer] = old.new_zeros(rows, old.shape[1], max(columns, have), old.shape[3])
                new[: len(self), :, :have] = old[: len(self)]

    def remove(self, gone: Sequence[int]) -> list[tuple[int, int]]:
        """Frees rows; the last rows move into their places. Returns each move as (place, row that moved there)."""
        left = len(self) - len(gone)
        holes = sorted(row for row in gone if row < left)
        movers = sorted(set(range(left, len(self))).difference(gone))
        width = max((self.lengths[row] for row in movers), default=0)
        for tensor in [*self.keys, *self.values] if width else ():
            tensor[holes, :, :width] = tensor[movers, :, :width]
        moves = list(zip(holes, movers, strict=True))
        for place, row in moves:
            self.lengths[place] = self.lengths[row]
        del self.lengths[left:]
        return moves

    def mask(self) -> Float[Tensor, "row_head 1 tok"]:
        """What is added to scores: -inf behind the last token of a row."""
        k = self.keys[0]
        beyond = torch.arange(max(self.lengths, default=0)) >= torch.tensor(self.lengths)[:, None]
        mask = torch.zeros(beyond.shape, dtype=k.dtype).masked_fill_(beyond, -torch.inf)
        return mask.repeat_interleave(k.shape[1], 0)[:, None].to(k.device)


def attend(
    query: Float[Tensor, "row head q d_head"],
    key: Float[Tensor, "row head tok d_head"],
    value: Float[Tensor, "row head tok d_head"],
    mask: Float[Tensor, "row_head 1 tok"],
    scaling: float,
    *,
    is_part: bool = False,
) -> tuple[Float[Tensor, "row head q d_head"], Float[Tensor, "row head q 1"] | None]:
    """Attention; of a part also the logarithm of what its softmax was divided by, with which parts can be merged."""
    scores = torch.baddbmm(mask, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=scaling)
    weights = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    out = torch.bmm(weights.to(value.dtype), value.flatten(0, 1)).view(query.shape)
    if not is_part:
        return out, None
    # the largest weight is exp(largest score - normaliser), which saves a pass that would sum exponentials again
    normaliser = scores.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log()
    return out, normaliser.view(*query.shape[:3], 1)


# -- the cache
class Slots(Cache):
    """Cache and attention layout in one: what a model is called with to add one token to every live row.

    `own` holds what belongs to a row alone. Where responses share prompts, `shared` holds their prefixes; else a row's
    own part begins with its prompt, and one softmax over one block is all there is.

    Attributes:
        span: see `attention.Layout`.
        rows, prefixes: what lives in the rows of `own` and of `shared`; `prefix_of[i]` is the prefix of row i.
        hidden: last hidden state of every row, from which its next token is drawn, [row, d_model].
    """

    def __init__(self, network: Network, prefixes: Sequence[Prefix], max_rows: int):
        super().__init__(layers=[])
        self.network = network
        self.max_rows = max_rows
        self.packed = packed_model(network.model)
        self.own = Block()
        self.shared = Block() if any(len(prefix.rows) > 1 for prefix in prefixes) else None
        self.span = max(prefix.start + len(row.uniforms) for prefix in prefixes for row in prefix.rows)
        self.rows: list[Row] = []
        self.prefix_of: list[Prefix] = []
        self.prefixes: list[Prefix] = []
        self.hidden: Tensor = next(network.model.parameters()).new_empty(0)
        self._last: dict[Prefix, Tensor] = {}  # a prefix's last hidden state

    # -- rows come and go
    def admit(self, waiting: deque[tuple[Prefix, Row]], rules: Rules) -> None:
        """Gives free slots to the first that wait; computes the prefixes that are not there yet."""
        new = [waiting.popleft() for _ in range(min(len(waiting), self.max_rows - len(self.rows)))]
        unknown = list(dict.fromkeys(prefix for prefix, _ in new if prefix not in self._last))
        block = self.own if self.shared is None else self.shared
        rows = len(block) + len(unknown)
        for batch in _batches(unknown):
            block.add(self._prefill(batch, rules), [len(prefix.ids) for prefix in batch], rows)
        if self.shared is not None:
            self.prefixes += unknown
            like = list(zip(self.shared.keys, self.shared.values, strict=True))
            self.own.add(like, [0] * len(new), len(self.rows) + len(new))
        self.rows += [row for _, row in new]
        self.prefix_of += [prefix for prefix, _ in new]
        self.hidden = torch.cat([self.hidden, torch.stack([self._last[prefix] for prefix, _ in new])])
        self._forget_prefixes(waiting)

    def leave(self, ended: Sequence[int], waiting: deque[tuple[Prefix, Row]]) -> list[tuple[int, int]]:
        """Frees the slots of rows that ended. Returns the moves that closed the gaps, as `Block.remove` does."""
        moves = self.own.remove(ended)
        for place, row in moves:
            self.rows[place], self.prefix_of[place] = self.rows[row], self.prefix_of[row]
        del self.rows[len(self.own) :], self.prefix_of[len(self.own) :]
        self._forget_prefixes(waiting)
        return moves

    def _forget_prefixes(self, waiting: deque[tuple[Prefix, Row]]) -> None:
        """Drops prefixes that no row needs, and says which rows belong to which of the others."""
        # of those that wait only the first may have been computed already
        needed = {*self.prefix_of, *([waiting[0][0]] if waiting else [])}
        self._last = {
            prefix: hidden for prefix, hidden in self._last.items() if prefix in needed and self.shared is not None
        }
        if self.shared is None:
            return
        gone = [i for i, prefix in enumerate(self.prefixes) if prefix not in needed]
        for place, prefix in self.shared.remove(gone):
            self.prefixes[place] = self.prefixes[prefix]
        del self.prefixes[len(self.shared) :]
        places: dict[Prefix, list[int]] = {prefix: [] for prefix in self.prefixes}
        for row, prefix in enumerate(self.prefix_of):
            places[prefix].append(row)
        most = max(map(len, places.values()), default=0)
        device = self.hidden.device
        # [prefix, k]: the rows of a prefix, filled up with row 0, and for every row where in that table it stands
        table = [rows + [0] * (most - len(rows)) for rows in places.values()]
        where = sorted((row, i * most + k) for i, rows in enumerate(places.values()) for k, row in enumerate(rows))
        self._members = torch.tensor(table, dtype=torch.long, device=device)
        self._where = torch.tensor([place for _, place in where], dtype=torch.long, device=device)
        self._shared_mask = self.shared.mask()

    def _prefill(self, prefixes: list[Prefix], rules: Rules) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every layer. Rows are filled up on the right, where causal attention cannot look; with the
        last token again, because models warn of a padding token without a mask."""
        net, width = self.network, max(len(prefix.ids) for prefix in prefixes)
        input_ids = torch.tensor(
            [prefix.ids + prefix.ids[-1:] * (width - len(prefix.ids)) for prefix in prefixes], device=net.device
        )
        cache = DynamicCache(config=net.config)
        hidden = net.body(input_ids=input_ids, past_key_values=cache, use_cache=True).last_hidden_state
        net.read_given(prefixes, hidden, [0] * len(prefixes), rules.params)
        for prefix, states in zip(prefixes, hidden, strict=True):
            self._last[prefix] = states[len(prefix.ids) - 1].clone()  # a view would keep the states of the whole batch
        return [(layer.keys, layer.values) for layer in cache.layers]  # type: ignore[union-attr]

    # -- one more token
    def step(self, tokens: Tensor, options: dict[str, Any]) -> None:
        """Feeds one token to each row and keeps what comes out in `hidden`."""
        device = tokens.device
        before = self.own.lengths
        starts = [0] * len(before) if self.shared is None else [len(prefix.ids) for prefix in self.prefix_of]
        positions = torch.tensor([[a + b] for a, b in zip(starts, before, strict=True)], device=device)
        self._row, self._column = torch.arange(len(before), device=device), torch.tensor(before, device=device)
        self.own.lengths = [length + 1 for length in before]
        self._width = max(self.own.lengths)
        self.own.reserve(len(before), self._width)
        self._own_mask = self.own.mask()
        if self.packed is not None:
            self.hidden = self.packed.step(tokens, positions, self)
            return
        out = self.network.body(
            input_ids=tokens[:, None],
            position_ids=positions,
            past_key_values=self,
            use_cache=True,
            layout=self,
            **options,
        )
        self.hidden = out.last_hidden_state[:, -1]

    def logits(self) -> Float[Tensor, "row vocab"]:
        """Of every row's next token."""
        if self.packed is None:
            return self.network.logits(self.hidden)
        return self.network.finished(self.packed.logits(self.hidden))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return max(self.own.lengths, default=0)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args, **kwargs
    ) -> tuple[Tensor, Tensor]:
        """Writes the new key and value of every row behind its others; returns the own part of the rows."""
        keys, values = self.own.keys[layer_idx], self.own.values[layer_idx]
        keys[self._row, :, self._column] = key_states[:, :, 0].to(keys.dtype)
        values[self._row, :, self._column] = value_states[:, :, 0].to(values.dtype)
        rows = len(self.rows)
        return keys[:rows, :, : self._width], values[:rows, :, : self._width]

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """See `attention.Layout`. Query heads of one key/value head are taken as several queries of that head."""
        n_rows, heads, d_head = len(query), key.shape[1], query.shape[3]
        query = query.reshape(n_rows, heads, -1, d_head)
        if self.shared is None:
            return attend(query, key, value, self._own_mask, scaling)[0].view(n_rows, -1, 1, d_head)
        (n_stems, most), layer, per_head = self._members.shape, int(module.layer_idx), query.shape[2]  # type: ignore[arg-type]
        width = self._shared_mask.shape[-1]
        keys, values = (x[layer][:n_stems, :, :width] for x in (self.shared.keys, self.shared.values))
        asked = query[self._members].transpose(1, 2).reshape(n_stems, heads, most * per_head, d_head)

        def by_row(x: Tensor) -> Tensor:
            x = x.view(n_stems, heads, most, per_head, -1).transpose(1, 2)
            return x.reshape(n_stems * most, heads, per_head, -1)[self._where]

        own, own_norm = attend(query, key, value, self._own_mask, scaling, is_part=True)
        of_stem, stem_norm = map(by_row, attend(asked, keys, values, self._shared_mask, scaling, is_part=True))  # type: ignore[arg-type]
        out = of_stem + torch.sigmoid(own_norm - stem_norm) * (own - of_stem)  # type: ignore[operator]
        return out.to(own.dtype).view(n_rows, -1, 1, d_head)


def _batches(prefixes: Sequence[Prefix]) -> list[list[Prefix]]:
    """Stems that go through the model together: at most `PREFILL_TOKENS` with their padding, or one alone."""
    batches: list[list[Prefix]] = []
    for prefix in prefixes:
        if not batches or (len(batches[-1]) + 1) * max(len(s.ids) for s in [*batches[-1], prefix]) > PREFILL_TOKENS:
            batches.append([])
        batches[-1].append(prefix)
    return batches


# -- the loop
def decode_in_slots(network: Network, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
    """Completes the rows of all prefixes, at most `max_rows` at a time.

    Raises:
        Unsupported: by the model's attention.
    """
    # Prompts of equal length side by side, the responses of one together: least padding, fewest prompts held.
    waiting = deque(
        (prefix, row) for prefix in sorted(prefixes, key=lambda prefix: len(prefix.ids)) for row in prefix.rows
    )
    slots = Slots(network, prefixes, max_rows)
    with own_attention(network.body) as options:
        while waiting or slots.rows:
            free = max_rows - len(slots.rows)
            # several at once, because a pass over one short prompt costs nearly as much as one over eight
            if waiting and free >= min(len(waiting), max(1, max_rows // 8)):
                slots.admit(waiting, rules)
            drawn = draw(slots.logits(), next_uniforms(slots.rows, network.device), rules.params)
            tokens = drawn[0]
            ended = rules.record(slots.rows, drawn)
            if ended:
                for place, row in slots.leave(ended, waiting):
                    tokens[place] = tokens[row]
                tokens = tokens[: len(slots.rows)]
            if slots.rows:
                slots.step(tokens, options)
            else:
                slots.hidden = slots.hidden[:0]


# -- the choice
def decode(network: Network, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
    """Completes the rows of all prefixes: in slots where the model can, else by the plain loop, and says so once.

    A model meets the slots for the first time with two of its prefixes, whose greedy continuations are scored again.
    Texts of a few tokens go through the plain loop.
    """
    if max(len(prefix.ids) + len(row.uniforms) for prefix in prefixes for row in prefix.rows) <= SHORT:
        decode_plain(network, prefixes, rules, max_rows)
    elif reason := _reason_against(network, prefixes):
        name = type(network.model.get_base_model() if hasattr(network.model, "peft_config") else network.model).__name__
        if (kind := f"{name} {_NUMBER.sub('#', reason)}") not in _said:
            _said.add(kind)
            log.warning("%s is sampled by the plain loop: %s", name, reason)
        decode_plain(network, prefixes, rules, max_rows)
    else:
        decode_in_slots(network, prefixes, rules, max_rows)


_said: set[str] = set()
_NUMBER = re.compile(r"\d[\d.e+-]*")  # a reason is the same whatever its figures are
_verdicts: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()  # "" where slots and scoring agreed, else why not


def _reason_against(network: Network, prefixes: Sequence[Prefix]) -> str:
    span = max(prefix.start + len(row.uniforms) for prefix in prefixes for row in prefix.rows)
    for layer in DynamicCache(config=network.config).layers:
        if isinstance(layer, DynamicSlidingWindowLayer) and type(layer).__mro__[1] is DynamicLayer:
            if layer.sliding_window < span:
                return f"attention slides over {layer.sliding_window} tokens, fewer than its texts may have"
        elif type(layer) is not DynamicLayer:
            return f"its cache has a {type(layer).__name__}"
    if network.key not in _verdicts:
        verdict = _verdict(network, prefixes)
        if verdict and packed_model(network.model) is not None:
            leave(network.model, verdict)
            verdict = _verdict(network, prefixes)
        _verdicts[network.key] = verdict
    return _verdicts[network.key]


def _verdict(network: Network, prefixes: Sequence[Prefix]) -> str:
    """Two short prompts, two greedy rows each: their log-probs from the slots against the padded route of `score`."""
    probes = []
    for prefix in sorted(prefixes, key=lambda prefix: prefix.start)[:2]:
        rows = [Row(prefix.rows[0].prompt, k, prefix.rows[0].uniforms[:4]) for k in range(2)]
        probes.append(Prefix(prefix.ids[: prefix.start], prefix.start, rows))
    try:
        decode_in_slots(network, probes, Rules(SamplingParams(temperature=0.0)), max_rows=4)
    except Unsupported as reason:
        return str(reason)
    scores = score(network.model, [Group(p.ids, [row.tokens for row in p.rows]) for p in probes], route="padded")
    worst = max(
        abs(float(scores.token_logps[i, k, t]) - logp)
        for i, probe in enumerate(probes)
        for k, row in enumerate(probe.rows)
        for t, logp in enumerate(row.logps)
    )
    return (
        ""
        if worst <= TOLERANCE[compute_dtype(network.body)]
        else f"its log-probs differ from a re-scoring by {worst:.2g} nats a token"
    )
