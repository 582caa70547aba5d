"""Log-ratios of policy and reference, token by token, with the piece of the response that each token is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch

from workbench.kernels import score
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.models import Policy
from workbench.models.turns import read_turn

Piece = list[Any]  # [text, log-ratio in nats or None where the text was cut off, "end" for the end token or ""]


class Ratios:
    """Scores rows by two policies that see the same tokens; each row is computed once.

    Args:
        policy: its tokenizer makes the tokens.
        reference: a policy, a folder or hub id, or `policy.without_adapter()`.
        max_length: of prompt and response in tokens; 0 takes the policy's context.

    Raises:
        ValueError: the two have different vocabularies, so the same numbers would be other words.
    """

    def __init__(self, policy: Policy | str | Path, reference: Any, *, max_length: int = 0):
        self.policy = Policy.load(policy) if isinstance(policy, (str, Path)) else policy
        self.reference = Policy.load(reference) if isinstance(reference, (str, Path)) else reference
        self.max_length = max_length
        self.known: dict[int, list[list[Piece]]] = {}
        other = getattr(self.reference, "tokenizer", self.policy.tokenizer)
        if other.get_vocab() != self.policy.tokenizer.get_vocab():
            both = f"{self.policy.name} and {self.reference.name}"
            raise ValueError(f"{both} have different vocabularies; log-ratios need the same tokens")

    @torch.no_grad()
    def compute(self, rows: Sequence[int], texts: Callable[[int], tuple[Any, list[str]]]) -> None:
        """Fills `known` for these rows; `texts(row)` gives the prompt and its responses."""
        asked = {row: texts(row) for row in dict.fromkeys(rows) if row not in self.known}
        if not asked:
            return
        groups = {row: self.policy.group(*both, max_length=self.max_length) for row, both in asked.items()}
        order, sizes = list(groups), [n_tokens(group) for group in groups.values()]
        places = microbatches(range(len(order)), sizes, max_tokens=tokens_per_microbatch(self.policy.device))
        batches = [[order[place] for place in batch] for batch in places]
        found: dict[int, torch.Tensor] = {}
        for sign, chosen in ((1, self.policy), (-1, self.reference)):
            with _ready(chosen) as one:
                for batch in batches:
                    logps = score(one, [groups[row] for row in batch]).token_logps.double().cpu()
                    for row, values in zip(batch, logps, strict=True):
                        found[row] = found.get(row, torch.zeros_like(values)) + sign * values
        for row, group in groups.items():
            self.known[row] = [
                pieces(self.policy.tokenizer, text, ids, values.tolist())
                for text, ids, values in zip(asked[row][1], group.responses_ids, found[row], strict=False)
            ]


@contextmanager
def _ready(policy: Any) -> Iterator[Policy]:
    """The policy as it scores, without dropout; `without_adapter()` can be entered once, so a new one is made of it."""
    if isinstance(policy, AbstractContextManager):
        again = getattr(policy, "_recreate_cm", None)
        with again() if again else policy as inner, _ready(inner) as one:
            yield one
        return
    was_training = policy.model.training
    policy.model.eval()
    try:
        yield policy
    finally:
        policy.model.train(was_training)


def pieces(tokenizer: Any, text: str, ids: Sequence[int], values: Sequence[float]) -> list[Piece]:
    """Tokens of a response as parts of its text: joined they are the text, whatever the tokenizer does to it.

    A character of several tokens (byte-level BPE) goes to the first one, the others are empty. What was cut off behind
    the last token comes as a piece without a number.
    """
    turn, at = read_turn(tokenizer), 0
    ends = [0] * len(turn.lead_ids)  # what the template writes before the text is no part of it
    if turn.lead_ids:
        ends += _ends(tokenizer, text)
    else:
        ends += [max(0, end - len(turn.lead)) for end in _ends(tokenizer, turn.lead + text)]
    found: list[Piece] = []
    for k, (_, value) in enumerate(zip(ids, values, strict=False)):
        if k >= len(ends):  # all behind the text closes the turn
            found.append(["", round(value, 5), "end"])
            continue
        end = max(ends[k], at)
        found.append([text[at:end], round(value, 5), ""])
        at = end
    if at < len(text):
        place = next((k for k, piece in enumerate(found) if piece[2] == "end"), len(found))
        found.insert(place, [text[at:], None, "" if place < len(found) else "cut"])
    return found


def _ends(tokenizer: Any, text: str) -> list[int]:
    """Where in the text each token ends."""
    options = {"add_special_tokens": False, "split_special_tokens": True}
    if tokenizer.is_fast:
        coded = tokenizer(text, return_offsets_mapping=True, **options)
        spans = zip(coded.input_ids, coded.offset_mapping, strict=True)
        return [end for token, (_, end) in spans if token != tokenizer.eos_token_id]
    ids = [token for token in tokenizer(text, **options).input_ids if token != tokenizer.eos_token_id]
    return [len(tokenizer.decode(ids[: k + 1])) for k in range(len(ids))]
