"""Scoring: how likely does a policy find given responses? Groups of a prompt with K responses in, log-probs out.

What may live here: routes from token ids to log-probabilities per response token. What may not: tokenisation, losses,
files. The `padded` route is the textbook against which every other route is tested.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench.kernels.heads import body_and_head, logit_finish, token_logps

ROUTES = ("auto", "padded")


class Group(NamedTuple):
    """One prompt with its K responses, as token ids; each response ends with the end token if it ended."""

    prompt_ids: list[int]
    responses_ids: list[list[int]]


@dataclass(frozen=True)
class Scores:
    """Log-probabilities of every response token, in nats.

    Attributes:
        token_logps: zero where there is no token.
        is_token: True on real response tokens. A group with fewer than K responses has rows without any.
    """

    token_logps: Float[Tensor, "group k tok"]
    is_token: Bool[Tensor, "group k tok"]

    @property
    def mask(self) -> Bool[Tensor, "group k tok"]:
        return self.is_token

    @property
    def sums(self) -> Float[Tensor, "group k"]:
        """log p(response | prompt), end token included."""
        return self.token_logps.sum(-1)

    @property
    def lengths(self) -> Int[Tensor, "group k"]:
        return self.is_token.sum(-1)

    @property
    def means(self) -> Float[Tensor, "group k"]:
        """Mean log-probability a token; NaN for a response that the group does not have."""
        return self.sums / self.lengths


def score(policy: Any, groups: Sequence[Group], *, route: str = "auto") -> Scores:
    """Log-probabilities of the responses of every group under `policy`; differentiable.

    Args:
        policy: a `Policy` or a bare transformers model (plain, or with a LoRA adapter).
        groups: prompts and responses as token ids; the number of responses may differ between groups.
        route: "padded", one row a response; "auto" picks the fastest route that there is.

    Returns:
        Scores with axes group, response, token of the response.

    Raises:
        ValueError: no groups, an empty prompt or a response without tokens (the group is named), an unknown route.

    Notes:
        Rows are padded on the right and no attention mask is passed: under causal attention no real token can see
        the padding behind it, and attention without a mask takes the fast path. Only response positions reach the head.
    """
    if route not in ROUTES:
        raise ValueError(f"route must be one of {', '.join(ROUTES)}; got {route!r}")
    check_groups(groups)
    if isinstance(policy, nn.Module):
        return _score_padded(policy, groups)
    with policy.autocast():
        return _score_padded(policy.model, groups)


def check_groups(groups: Sequence[Group]) -> None:
    """Refuses what has no log-probability: nothing to score, a prompt or a response without tokens."""
    if not groups:
        raise ValueError("nothing to score: the list of groups is empty")
    for index, group in enumerate(groups):
        if not group.prompt_ids:
            raise ValueError(
                f"group {index} has an empty prompt: nothing predicts its first response token; add a start token"
            )
        for k, response in enumerate(group.responses_ids):
            if not response:
                raise ValueError(f"group {index}, response {k} has no tokens; even an empty text has its end token")


def _score_padded(model: nn.Module, groups: Sequence[Group]) -> Scores:
    device = next(model.parameters()).device
    body, head = body_and_head(model)
    n_groups, k = len(groups), max(len(group.responses_ids) for group in groups)
    rows = [(len(g.prompt_ids), g.prompt_ids + response) for g in groups for response in g.responses_ids]
    width = max(len(ids) for _, ids in rows)
    input_ids = torch.tensor([ids + [0] * (width - len(ids)) for _, ids in rows], device=device)
    starts = torch.tensor([start for start, _ in rows], device=device)
    lengths = torch.tensor([len(ids) for _, ids in rows], device=device) - starts

    hidden = body(input_ids=input_ids, use_cache=False).last_hidden_state
    steps = torch.arange(int(lengths.max()), device=device)
    real = steps < lengths[:, None]  # [row, tok]
    row, step = real.nonzero(as_tuple=True)
    position = starts[row] + step
    logps = token_logps(
        hidden[row, position - 1], input_ids[row, position], head,
        vocab=head.out_features if hasattr(head, "out_features") else head.weight.shape[0],  # type: ignore[arg-type, union-attr]
        finish=logit_finish(model.config),
    )  # fmt: skip

    slot = torch.tensor([i * k + j for i, g in enumerate(groups) for j in range(len(g.responses_ids))], device=device)
    token_logps_all = logps.new_zeros(n_groups * k, len(steps)).index_put((slot[row], step), logps)
    is_token = torch.zeros(n_groups * k, len(steps), dtype=torch.bool, device=device)
    is_token[slot] = real
    return Scores(token_logps_all.view(n_groups, k, -1), is_token.view(n_groups, k, -1))
