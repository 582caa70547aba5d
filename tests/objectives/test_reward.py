"""The reward head's loss: closed form at a margin of 0, stable far out."""

import math

import torch

from workbench.objectives import bradley_terry


def test_bradley_terry():
    chosen = torch.tensor([0.0, 500.0, -500.0, 1.0], dtype=torch.float64, requires_grad=True)
    losses, logged = bradley_terry(chosen, torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(
        losses.detach(), torch.tensor([math.log(2), 0.0, 500.0, math.log1p(math.exp(-1))]).double()
    )
    assert logged["accuracies"].tolist() == [0, 1, 0, 1]  # equal rewards are wrong
    losses.sum().backward()
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.5, 0.0, -1.0, -1 / (1 + math.e)]).double())
