"""Preferences as tokens and positions."""

from __future__ import annotations

import logging
from itertools import chain, takewhile
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from torch import nn

from workbench.kernels import Group
from workbench.methods.align.logo.positions import spread
from workbench.models import Policy
from workbench.tasks.documents import prompt_parts
from workbench.training.reference import reference_logps

log = logging.getLogger(__name__)


class LogoRow(NamedTuple):
    """A row in one position variant: chosen first, then the rejected answers; `shared` tokens begin all of them."""

    id: str
    group: Group
    shared: int


def build_rows(policy: Policy, table: pd.DataFrame, config: Any, arm: Any, seed: int) -> list[LogoRow]:
    """Every row as tokens, once for each position variant.

    Args:
        table: as `chunks.preferences` gives it.
        config, arm: LOGO's; the arm says which answers are used and what positions the model is given.
    """
    rng, rows, too_long = np.random.default_rng([seed, 7 + arm.copied]), [], []
    entries: Any = table.itertuples()
    for entry in entries:
        answers = [entry.chosen, *entry.rejected]
        first = {"true": 0, "swapped": len(answers) - 1, "shuffled": int(rng.integers(len(answers)))}[arm.labels]
        answers = [answers[first], *(text for i, text in enumerate(answers) if i != first)]
        answers = answers[: 1 + arm.m if arm.m else None]
        answers += answers[1:] if arm.copied else []
        before, chunks, ask = tokenised(policy, entry, config)
        responses = [policy.encode_response(text) for text in answers]
        room = config.qa - len(ask)
        if room > 0 and (cut := sum(len(ids) > room for ids in responses)):
            policy.counts["responses_cut"] += cut
            too_long.append(str(entry.row))
            responses = [ids[:room] for ids in responses]
        plain = Group([*before, *chain(*chunks), *ask], responses)
        shared = len(list(takewhile(lambda tokens: len(set(tokens)) == 1, zip(*responses, strict=False))))
        shared = min(shared, min(map(len, responses)) - 1) if config.skip_common_prefix else 0
        variants: list = [None]
        if arm.positions != "real":
            sizes = {"start": len(before), "n_question": len(ask), "n_answer": max(map(len, responses))}
            sizes |= {name: getattr(config, name) for name in ("window", "qa", "choices", "max_variants")}
            variants = spread([len(chunk) for chunk in chunks], rng=rng, beacon=bool(config.beacon), **sizes)
        for number, positions in enumerate(variants):
            passed = positions if arm.positions == "synthetic" else None
            rows.append(LogoRow(f"row {entry.row}, variant {number}", plain._replace(prompt_positions=passed), shared))
    if too_long:
        log.warning(
            "rows %s have answers longer than the positions behind the question: these are cut",
            ", ".join(too_long[:10]),
        )
    return rows


def tokenised(policy: Policy, entry: Any, config: Any) -> tuple[list[int], list[list[int]], list[int]]:
    """Start, chunks and question of a row; a chunk keeps its share of `max_length` tokens and ends with any beacon."""
    before, chunks, ask = prompt_parts(policy, list(entry.chunks), entry.question)
    budget = config.max_length // len(chunks) - 1
    policy.counts["chunks_cut"] += sum(len(chunk) > budget for chunk in chunks)
    beacon = policy.encode_part(config.beacon) if config.beacon else []
    if config.beacon and len(beacon) != 1:
        raise ValueError(f"beacon={config.beacon!r} is {len(beacon)} tokens for this tokenizer; one is needed")
    return before, [[*chunk[:budget], *beacon] for chunk in chunks], ask


def check_positions(policy: Policy, window: int) -> None:
    """Refuses models whose table of absolute positions ends before the window."""
    for name, module in policy.model.named_modules():
        if (
            isinstance(module, nn.Embedding)
            and ("wpe" in name or "position" in name)
            and module.num_embeddings < window
        ):
            raise ValueError(
                f"{policy.name} has a table of {module.num_embeddings} absolute positions ({name}), fewer than the"
                f" window of {window}; take a model with rotary positions, or a smaller window"
            )


def held_out_margins(policy: Policy, table: pd.DataFrame, config: Any, arm: Any) -> pd.DataFrame:
    """log p a token of the chosen answer minus that of each rejected one, `m1`, `m2`, ..., and their mean, `margin`."""
    groups = [row.group for row in build_rows(policy, table, config, arm, 0)]
    logps = reference_logps(policy, groups)
    lengths = np.array([[*map(len, g.responses_ids), *[0] * (logps.shape[1] - len(g.responses_ids))] for g in groups])
    means = np.divide(logps, lengths, out=np.full_like(logps, np.nan), where=lengths > 0)
    apart = means[:, :1] - means[:, 1:]
    columns = {f"m{j + 1}": apart[:, j] for j in range(apart.shape[1])}
    return table[["question", "chosen", "rejected"]].assign(margin=np.nanmean(apart, 1), **columns)
