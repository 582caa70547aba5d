"""Steps of training: what a batch loses, for pairs, lists and demonstrations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.kernels import Group, score
from workbench.models import Policy
from workbench.training.reference import PairRow

Step = Callable[[Policy, Sequence[Any]], tuple[Tensor, dict[str, Tensor]]]


def preference_step(
    objective: Callable[..., tuple[Tensor, dict[str, Tensor]]], *, average: bool = False, **options: Any
) -> Step:
    """A step over `PairRow`s from an objective of four log-probs and the rows' targets. `options` go to it (beta,
    loss_type).

    Args:
        average: hand over log-probs divided by the number of tokens, as IPO, SimPO and ORPO take them.
    """

    def step(policy: Policy, batch: Sequence[PairRow]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = score(policy, [row.group for row in batch])
        reference = scores.sums.new_tensor([row.reference_logps for row in batch])
        now, then = (scores.means, reference / scores.lengths) if average else (scores.sums, reference)
        targets = {name: now.new_tensor([row.targets[name] for row in batch]) for name in batch[0].targets}
        losses, logged = objective(now[:, 0], now[:, 1], then[:, 0], then[:, 1], **targets, **options)
        sums = scores.sums.detach()
        return losses, {**logged, "chosen_logps": sums[:, 0], "rejected_logps": sums[:, 1]}

    return step


class SupervisedStep:
    """Losses [row]: negative log-likelihood of a row's first response, nats; an optimiser step divides by its
    tokens."""

    def __call__(self, policy: Policy, batch: Sequence[Group]) -> tuple[Tensor, dict[str, Tensor]]:
        scores = score(policy, batch)
        return -scores.sums[:, 0], {"token_nll": (-scores.means[:, 0]).detach()}

    @staticmethod
    def denominator(batch: Sequence[Group]) -> int:
        return sum(len(group.responses_ids[0]) for group in batch)


supervised_step = SupervisedStep()


def pair_numbers(
    after: np.ndarray, before: np.ndarray, objective: Callable[..., tuple[Tensor, dict[str, Tensor]]], **options: Any
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """How well a policy tells chosen from rejected: log-probs [pair, 2] after and before training, chosen first.

    Returns:
        `likelihood_before`, `likelihood_after`: share of pairs with log p(chosen) > log p(rejected); `reward_accuracy`
        and `held_out_loss`: of the objective's rewards, 0 and its value at margin 0 before training; and what the
        objective logged for each pair.
    """
    now, then = torch.as_tensor(after, dtype=torch.float64), torch.as_tensor(before, dtype=torch.float64)
    losses, logged = objective(now[:, 0], now[:, 1], then[:, 0], then[:, 1], **options)
    numbers = {
        "likelihood_before": (then[:, 0] > then[:, 1]).double().mean(),
        "likelihood_after": (now[:, 0] > now[:, 1]).double().mean(),
        "reward_accuracy": logged["accuracies"].mean(),
        "held_out_loss": losses.mean(),
    }
    return {name: float(value) for name, value in numbers.items()}, logged
