"""Decoding: rows of text that grow token by token until each ends, and the textbook loop that grows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from workbench.kernels.drawing import SamplingParams, draw, logps_of
from workbench.kernels.meeting import parts_of

GIVEN_TOKENS = 256  # of a given beginning that pass the head at once


@dataclass(eq=False)
class Row:
    """One response while it is written; `uniforms` has one number for each token that it may have, prefix included."""

    prompt: int
    k: int
    uniforms: Any
    tokens: list[int] = field(default_factory=list)
    logps: list[float] = field(default_factory=list)
    sampling_logps: list[float] = field(default_factory=list)
    finish_reason: str = "length"


@dataclass(eq=False)
class Prefix:
    """What several responses continue: a prompt and, from `start` on, the given beginning of the response."""

    ids: list[int]
    start: int
    rows: list[Row]


class StopTexts:
    """Texts that end a response.

    A token that is text has at least one byte, so a stop text never reaches back over more tokens than it has bytes.
    """

    def __init__(self, texts: Sequence[str], tokenizer: Any):
        self.texts = [texts] if isinstance(texts, str) else list(texts)
        self._decode = lambda tokens: tokenizer.decode(tokens, skip_special_tokens=True)
        self._special = set(tokenizer.all_special_ids) if self.texts else set()
        # some tokens more, because decoding may strip the first one or see half a character in it
        self._reach = 8 + max((len(text.encode()) for text in self.texts), default=0)

    def completed_by_last(self, tokens: list[int]) -> bool:
        """Whether the last token completed a stop text; one that was there before it does not count."""
        window = list(islice((t for t in reversed(tokens) if t not in self._special), self._reach))[::-1]
        if not self.texts or not any(text in self._decode(window) for text in self.texts):
            return False
        before, after = self._decode(window[:-1]).rstrip("\ufffd"), self._decode(window)
        return any(after.find(text, max(0, len(before) - len(text) + 1)) >= 0 for text in self.texts)


@dataclass(frozen=True)
class Rules:
    """How tokens are drawn, and which tokens and texts end a row."""

    params: SamplingParams
    ends: frozenset[int] = frozenset()
    stop: StopTexts | None = None

    def ends_with(self, response: list[int]) -> bool:
        """Whether the last token of a response ends it."""
        return response[-1] in self.ends or (self.stop is not None and self.stop.completed_by_last(response))

    def record(self, rows: Sequence[Row], drawn: Sequence[Tensor]) -> list[int]:
        """Appends what `draw` gave to each row; the places of the rows that it ended.

        Raises:
            FloatingPointError: a row's logits were no distribution; its prompt is named.
        """
        ended = []
        for place, (row, token, logp, sampling_logp) in enumerate(
            zip(rows, *(values.tolist() for values in drawn), strict=True)
        ):
            if math.isnan(logp):
                raise _no_distribution(row, len(row.tokens))
            row.tokens.append(token)
            row.logps.append(logp)
            row.sampling_logps.append(sampling_logp)
            if self.ends_with(row.tokens):
                row.finish_reason = "stop"
                ended.append(place)
            elif len(row.tokens) == len(row.uniforms):
                ended.append(place)
        return ended


def _no_distribution(row: Row, token: int) -> FloatingPointError:
    return FloatingPointError(
        f"prompt {row.prompt}, response {row.k}: the logits of token {token} are NaN or infinite, so nothing can be"
        " drawn from them; check the weights (did training diverge?) and the precision"
    )


class Network:
    """A causal language model as the loops see it: body, head, and what it does to its logits."""

    def __init__(self, model: Any):
        self.model = model
        self.body, self.head, self._finish, self.key = parts_of(model)
        self.config: Any = self.body.config
        self.device = next(model.parameters()).device

    def logits(self, hidden: Float[Tensor, "row d_model"]) -> Float[Tensor, "row vocab"]:
        return self.finished(self.head(hidden))

    def finished(self, logits: Float[Tensor, "row vocab"]) -> Float[Tensor, "row vocab"]:
        """What comes out of the head, with what the model does to it, in at least float32."""
        return self._finish(logits if logits.dtype == torch.float64 else logits.float())

    def read_given(
        self,
        prefixes: Sequence[Prefix],
        hidden: Float[Tensor, "prefix tok d_model"],
        first: list[int],
        params: SamplingParams,
    ) -> None:
        """Writes the given beginning of each prefix's responses, with its log-probs, into its rows.

        Args:
            hidden: last hidden states of the prefixes, whose first token stands in column `first`.

        Raises:
            FloatingPointError: as `Rules.record` does.
        """
        for prefix, states, column in zip(prefixes, hidden, first, strict=True):
            if prefix.start == len(prefix.ids):
                continue
            given = torch.tensor(prefix.ids[prefix.start :], dtype=torch.long, device=self.device)
            states = states[column + prefix.start - 1 :][: len(given)]
            for chunk, targets in zip(states.split(GIVEN_TOKENS), given.split(GIVEN_TOKENS), strict=True):
                logps, sampling_logps = (x.tolist() for x in logps_of(self.logits(chunk), targets, params))
                for row in prefix.rows:
                    if any(map(math.isnan, logps)):
                        raise _no_distribution(row, len(row.tokens) + list(map(math.isnan, logps)).index(True))
                    row.tokens += targets.tolist()
                    row.logps += logps
                    row.sampling_logps += sampling_logps


def batches(prefixes: Sequence[Prefix], max_rows: int) -> list[list[Prefix]]:
    """Whole prefixes in batches of at most `max_rows` rows, or one alone; equal lengths side by side: little
    padding."""
    found: list[list[Prefix]] = []
    free = 0
    for prefix in sorted(prefixes, key=lambda prefix: len(prefix.ids)):
        if not found or len(prefix.rows) > free:
            found.append([])
            free = max_rows
        found[-1].append(prefix)
        free -= len(prefix.rows)
    return found


def next_uniforms(rows: Sequence[Row], device: torch.device) -> Float[Tensor, " row"]:
    return torch.tensor([row.uniforms[len(row.tokens)] for row in rows], dtype=torch.float64, device=device)


# -- the textbook
def decode_plain(network: Network, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
    """Completes the rows of all prefixes, one batch of whole prefixes after another."""
    for batch in batches(prefixes, max_rows):
        _decode_batch(network, batch, rules)


def _decode_batch(network: Network, prefixes: list[Prefix], rules: Rules) -> None:
    """Each prompt once, then its branches; a row that ends leaves the batch."""
    device, width = network.device, max(len(prefix.ids) for prefix in prefixes)
    padding = [width - len(prefix.ids) for prefix in prefixes]
    input_ids = torch.tensor(
        [[0] * pad + prefix.ids for pad, prefix in zip(padding, prefixes, strict=True)], device=device
    )
    columns, starts = torch.arange(width, device=device), torch.tensor(padding, device=device)
    mask = (columns >= starts[:, None]).long() if any(padding) else None  # without a mask attention takes its fast path
    positions = (columns - starts[:, None]).clamp(min=0)
    cache = DynamicCache(config=network.config)
    out = network.body(
        input_ids=input_ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
    )
    if getattr(out, "past_key_values", None) is not cache:
        raise ValueError(
            f"{type(network.model).__name__} does not keep its past in a DynamicCache, without which its next token"
            ' would see only the last one; use engine="transformers"'
        )
    network.read_given(prefixes, out.last_hidden_state, padding, rules.params)

    rows = [row for prefix in prefixes for row in prefix.rows]
    kept = torch.tensor([i for i, prefix in enumerate(prefixes) for _ in prefix.rows], device=device)
    hidden, next_position = out.last_hidden_state[kept, -1], (width - starts)[kept]
    cache.reorder_cache(kept)  # type: ignore[arg-type]
    mask = mask[kept] if mask is not None else None
    while True:
        drawn = draw(network.logits(hidden), next_uniforms(rows, device), rules.params)
        ended = set(rules.record(rows, drawn))
        if len(ended) == len(rows):
            return
        tokens = drawn[0]
        if ended:
            places = [i for i in range(len(rows)) if i not in ended]
            kept, rows = torch.tensor(places, device=device), [rows[i] for i in places]
            cache.reorder_cache(kept)  # type: ignore[arg-type]
            tokens, next_position = tokens[kept], next_position[kept]
            mask = mask[kept] if mask is not None else None
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], 1) if mask is not None else None
        out = network.body(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=next_position[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        hidden, next_position = out.last_hidden_state[:, -1], next_position + 1
