"""Rows whose answers are scored behind a long text by one model and behind short texts by another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from workbench.kernels import Group, score
from workbench.models import Policy
from workbench.tasks.documents import next_question, prompt_ids
from workbench.training.reference import reference_logps


class LongRow(NamedTuple):
    """A document with both conversations (chosen first), and which of their tokens are answers.

    Attributes:
        reference_logps: log-probs of the same answer tokens under the reference, summed over all turns, nats.
        is_pair: False where both conversations are the same.
    """

    id: str
    group: Group
    is_answer: tuple[list[bool], ...]
    reference_logps: tuple[float, float]
    is_pair: bool

    def side(self, number: int) -> LongRow:
        """The row with one conversation alone."""
        group = self.group._replace(responses_ids=[self.group.responses_ids[number]])
        return self._replace(group=group, is_answer=(self.is_answer[number],))


def build_rows(
    policy: Policy,
    reference: Policy,
    table: pd.DataFrame,
    *,
    scope: str = "answers",
    reference_reads: str = "short",
) -> list[LongRow]:
    """Long conversations as tokens, each answer with its EOS token, and what the reference says of the same answer
    tokens.

    Args:
        table: from `pairs.make_pairs`.
        scope: "all" scores everything behind the first token, so that a loss may take the document in; "answers" what
            follows the first question. Which tokens are answers is the same.
        reference_reads: "short", each answer behind its own short text, summed over turns; "long", as the policy does.

    Raises:
        ValueError: a short text with its answer that does not fit into the reference's window, or a row without
            answers.
        FloatingPointError: the reference gives NaN or infinite log-probs; the rows are named.
    """
    rows, shorts, owner = [], [], []
    entries: Any = table.itertuples()
    for n, entry in enumerate(entries):
        sides = [[list(map(int, ids)) for ids in side] for side in (entry.chosen_ids, entry.rejected_ids)]
        if not all(ids for side in sides for ids in side) or not sides[0]:
            raise ValueError(f"row {entry.row}: an answer has no tokens, so nothing would be scored; remove the row")
        prompt = prompt_ids(policy, list(entry.chunks), entry.questions[0])
        between = [next_question(policy, question) for question in entry.questions[1:]]
        texts, masks = zip(*(_conversation(side, between) for side in sides), strict=True)
        if scope == "all":  # everything behind the first token is scored; only answers count as answers
            masks = tuple([False] * (len(prompt) - 1) + mask for mask in masks)
            prompt, texts = prompt[:1], [prompt[1:] + text for text in texts]
        rows.append(LongRow(f"row {entry.row}", Group(prompt, list(texts)), masks, (0.0, 0.0), sides[0] != sides[1]))
        for question, short, chosen, rejected in zip(entry.questions, entry.shorts, *sides, strict=True):
            group = Group(prompt_ids(reference, [short], question), [chosen, rejected])
            if (n_tokens := len(group.prompt_ids) + max(len(chosen), len(rejected))) > reference.max_length:
                raise ValueError(
                    f"row {entry.row}: a short text with its answer has {n_tokens} tokens, the reference's window"
                    f" {reference.max_length}; take shorter chunks"
                )
            shorts.append(group)
            owner.append(n)
    sums = np.zeros((len(rows), 2))
    if reference_reads == "short":
        np.add.at(sums, owner, reference_logps(reference, shorts))
    else:
        sums = answer_sums(reference, rows)
    if bad := [row.id for row, fine in zip(rows, np.isfinite(sums), strict=True) if not fine.all()]:
        raise FloatingPointError(
            f"the reference gives NaN or infinite log-probs to {', '.join(bad[:10])}; look at these rows first"
        )
    return [row._replace(reference_logps=(float(c), float(r))) for row, (c, r) in zip(rows, sums, strict=True)]


def _conversation(answers: Sequence[list[int]], between: Sequence[list[int]]) -> tuple[list[int], list[bool]]:
    """Answers with the questions between them, and where the answers are; later turns see the answers before them."""
    ids, is_answer = list(answers[0]), [True] * len(answers[0])
    for question, answer in zip(between, answers[1:], strict=True):
        ids += [*question, *answer]
        is_answer += [False] * len(question) + [True] * len(answer)
    return ids, is_answer


def scored_answers(policy: Policy, batch: Sequence[LongRow]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of tokens behind the prompts, where they are tokens, and where they are answers, [row, side, tok]."""
    scores = score(policy, [row.group for row in batch])
    inside = torch.zeros_like(scores.is_token)
    for i, row in enumerate(batch):
        for k, mask in enumerate(row.is_answer):
            inside[i, k, : len(mask)] = torch.tensor(mask)
    return scores.token_logps, scores.is_token, inside


@torch.no_grad()
def answer_sums(policy: Policy, rows: Sequence[LongRow], at_once: int = 8) -> np.ndarray:
    """log p of the answers of both conversations behind the long text, [row, 2] in nats."""
    sums = []
    for first in range(0, len(rows), at_once):
        logps, _, inside = scored_answers(policy, rows[first : first + at_once])
        sums.append((logps.double() * inside).sum(-1).cpu().numpy())
    return np.concatenate(sums)


def start_losses(policy: Policy, rows: Sequence[LongRow], beta: float) -> list[float]:
    """The preference loss that every pair must have before any update, from log-probs alone. It is log 2 only where
    policy and reference read the same text."""
    pairs = [row for row in rows if row.is_pair]
    if not pairs:
        return []
    apart = answer_sums(policy, pairs) - np.array([row.reference_logps for row in pairs])
    return np.logaddexp(0, -beta * (apart[:, 0] - apart[:, 1])).tolist()


@torch.no_grad()
def short_to_long_kl(policy: Policy, reference: Policy, table: pd.DataFrame) -> float:
    """KL(policy behind long text || reference behind short text) at tokens of the chosen answers, nats a token."""
    total, n = 0.0, 0
    entries: Any = table.itertuples()
    for entry in entries:
        answers = [list(map(int, ids)) for ids in entry.chosen_ids]
        between = [next_question(policy, question) for question in entry.questions[1:]]
        ids, is_answer = _conversation(answers, between)
        long = _log_probs(policy, prompt_ids(policy, list(entry.chunks), entry.questions[0]), ids, is_answer)
        short = torch.cat(
            [
                _log_probs(reference, prompt_ids(reference, [text], question), answer, [True] * len(answer))
                for text, question, answer in zip(entry.shorts, entry.questions, answers, strict=True)
            ]
        )
        total += float((long.exp() * (long - short)).sum())
        n += len(long)
    return total / n


def _log_probs(policy: Policy, prompt: list[int], response: list[int], wanted: list[bool]) -> Tensor:
    """Log-probs of all tokens of the vocabulary where wanted response tokens are predicted, [tok, vocab]."""
    places = torch.tensor([len(prompt) - 1 + i for i, want in enumerate(wanted) if want], device=policy.device)
    ids = torch.tensor([[*prompt, *response]], device=policy.device)
    with policy.autocast():
        logits = policy.model(input_ids=ids, use_cache=False, logits_to_keep=places).logits[0]
    return logits.double().log_softmax(-1)
