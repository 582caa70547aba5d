"""A model whose behaviour is planted: it answers prompts, a few replies garbled."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Sequence
from statistics import NormalDist

from workbench.feedback.chat import Reply, Request

_NORMAL = NormalDist()


class Noise:
    """Random draws that are a function of one request and one seed, whatever was asked before or beside it."""

    def __init__(self, key: str):
        self._key, self._block, self._left = key, 0, []

    def uniform(self) -> float:
        """Uniform on the open interval (0, 1)."""
        if not self._left:
            digest = hashlib.blake2b(f"{self._key}/{self._block}".encode()).digest()
            self._left, self._block = list(struct.unpack("<8Q", digest)), self._block + 1
        return ((self._left.pop() >> 11) + 0.5) * 2.0**-53

    def normal(self) -> float:
        return _NORMAL.inv_cdf(self.uniform())

    def logistic(self) -> float:
        u = self.uniform()
        return math.log(u / (1.0 - u))


class SimulatedModel:
    """A model with planted behaviour that reads nothing but the text of its prompt.

    Args:
        name: part of the cache's key; a model with other planted behaviour needs another name.
        respond: (prompt text, temperature, noise) -> reply text.
        seed: another seed gives other draws to the same requests.
        garbled: share of replies, 0 to 1, that come out cut off, empty or beside the point.
    """

    def __init__(self, name: str, respond: Callable[[str, float, Noise], str], *, seed: int = 0, garbled: float = 0.0):
        if not 0.0 <= garbled <= 1.0:
            raise ValueError(f"garbled is a share of replies between 0 and 1; got {garbled}")
        self.name = f"{name}/seed-{seed}/garbled-{garbled:g}"
        self._respond, self._garbled = respond, garbled

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def fits(self, request: Request) -> bool:
        return True

    def _reply(self, request: Request) -> Reply:
        noise = Noise(request.key(self.name))
        is_garbled, kind = noise.uniform() < self._garbled, noise.uniform()
        text = self._respond("\n".join(m["content"] for m in request.messages), request.temperature, noise)
        if is_garbled:
            text = ("", text[: len(text) // 2], "I would rather not say.", "It could be either of them, or neither.")[
                int(4 * kind)
            ]
        return Reply(text)
