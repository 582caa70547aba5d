"""Text in, text out: requests, replies, planted models, the transcript of all calls, and readers of replies.

Readers follow one rule: the last match counts, because models think aloud before they answer. A reply that cannot be
read is "unparsed"; it never becomes a 0, and where a method counts it as a tie it says so and counts how many.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

Finish = Literal["stop", "length", "refused", "empty"]
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class Request(NamedTuple):
    """One call. `sample` tells repeated draws apart; at temperature 0 it means nothing, so it is not looked at."""

    messages: Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}
    temperature: float = 0.0
    max_tokens: int = 256
    sample: int = 0

    def key(self, model: str) -> str:
        """Hash of everything that the reply depends on, the model's name included (80 bits, hexadecimal)."""
        sample = self.sample if self.temperature > 0 else 0
        content = json.dumps(
            [model, [[m["role"], m["content"]] for m in self.messages], self.temperature, self.max_tokens, sample]
        )
        return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()


class Reply(NamedTuple):
    """What came back.

    Attributes:
        logps: log-probabilities of the reply's tokens, nats, where the model gives them.
        usage: tokens of prompt and reply that a server counted.
        finish: why it ended: "stop", by itself; "length", cut at `max_tokens`; "refused", by a filter or in so many
            words of the server; "empty", nothing was said.
    """

    text: str
    logps: list[float] | None = None
    usage: tuple[int, int] | None = None
    finish: Finish = "stop"


class ChatModel(Protocol):
    """Anything that answers requests. `name` must change whenever the replies can: it is part of the cache's key."""

    name: str

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; a reply depends on its own request only.

        A model whose replies come one by one has `stream(requests)` too: (place, reply) as they come.
        """
        ...

    def fits(self, request: Request) -> bool:
        """Whether prompt and reply fit into the model's context."""
        ...


def user(text: str) -> tuple[dict[str, str], ...]:
    """The messages of a request that is one user turn."""
    return ({"role": "user", "content": text},)


# ---------------------------------------------------------------------------------------------------- planted models


# -------------------------------------------------------------------------------------------------------- transcript


# ---------------------------------------------------------------------------------------------------- reading replies
