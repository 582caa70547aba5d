"""Objectives of reward heads: losses of scalar scores of responses."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

PairValues = Float[Tensor, "pair"]


def bradley_terry(chosen_rewards: PairValues, rejected_rewards: PairValues) -> tuple[PairValues, dict[str, Tensor]]:
    """The likelihood of the preferences under Bradley and Terry's model: -log sigma(r_w - r_l).

    Args:
        chosen_rewards, rejected_rewards: r(x, y) of the two responses, any scale.

    Returns:
        Losses [pair], nats, and `margins` (r_w - r_l) and `accuracies` [pair], detached. Equal rewards count as wrong.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, "Training language models to follow instructions", eq. 1.
    """
    margins = chosen_rewards - rejected_rewards
    found = margins.detach()
    return -logsigmoid(margins), {"margins": found, "accuracies": (found > 0).to(found.dtype)}
