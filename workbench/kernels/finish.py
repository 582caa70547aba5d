"""What a model does to its logits behind the output embedding: scale, soft cap."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Logits held at once: 2**22 numbers are 16 MiB in float32, small beside any model and large enough to keep cores busy.
TILE = 2**22


class Finish(NamedTuple):
    """What a model does to its logits after the head: z -> cap·tanh(scale·z / cap), or scale·z where `cap` is 0."""

    scale: float = 1.0
    cap: float = 0.0

    def __call__(self, logits: Tensor) -> Tensor:
        logits = logits if self.scale == 1.0 else logits * self.scale
        return self.cap * torch.tanh(logits / self.cap) if self.cap else logits

    def slope(self, finished: Tensor) -> Tensor | float:
        """d finished / d logits, from the finished logits."""
        return self.scale * (1 - (finished / self.cap) ** 2) if self.cap else self.scale


PLAIN = Finish()
