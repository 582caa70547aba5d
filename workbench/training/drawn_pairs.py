"""Pairs of a round as rows to train on, and their log-probs under the policy that drew them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench.data import prompt_of
from workbench.kernels import Group
from workbench.models import Policy
from workbench.training.reference import PairRow, reference_logps


def pair_groups(policy: Policy, pairs: pd.DataFrame, *, max_length: int, max_prompt_length: int) -> list[Group]:
    """The pairs as tokens, chosen first: the very tokens that were drawn."""
    entries: Any = pairs.itertuples()
    limits = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    return [
        policy.group(prompt_of(row.prompt), [list(row.chosen_ids), list(row.rejected_ids)], **limits) for row in entries
    ]


def pair_logps(policy: Policy, pairs: pd.DataFrame, **limits: int) -> np.ndarray:
    """log p of the chosen and the rejected response of each pair, [pair, 2] in nats."""
    return reference_logps(policy, pair_groups(policy, pairs, **limits))


def start_losses(objective: Callable[..., Any], options: dict[str, Any], rows: Sequence[PairRow]) -> list[float]:
    """What each row must lose before any update, where every log-ratio is 0."""
    zeros = torch.zeros(len(rows), dtype=torch.float64)
    targets = {name: zeros.new_tensor([row.targets[name] for row in rows]) for name in rows[0].targets}
    return objective(zeros, zeros, zeros, zeros, **targets, **options)[0].tolist()
