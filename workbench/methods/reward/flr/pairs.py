"""Bookkeeping of mining: which samples are candidates, which pairs they make, and what to look at before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.feedback.pairs import best_and_worst
from workbench.methods.reward.flr.follow_ups import Likelihoods
from workbench.methods.reward.flr.ranking import length_bias


def candidates_of(drawn: pd.DataFrame) -> list[dict[str, list[int]]]:
    """The samples of each prompt, text: token ids. The same text twice is one candidate, nothing said is none."""
    both = zip(drawn.responses, drawn.responses_ids, strict=True)
    return [{text: list(i) for text, i in zip(texts, ids, strict=True) if text.strip()} for texts, ids in both]


def best_worst_pairs(
    prompts: Sequence, candidates: Sequence[dict[str, list[int]]], scored: Likelihoods, min_margin: float
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """One pair a prompt, from its candidates with the highest and the lowest score; and the report on all of them.

    Prompts whose samples are all the same, or all score the same, are skipped and counted. The report says whether the
    score follows length.
    """
    pairs, counts, at = [], Counter(), 0
    for prompt, texts in zip(prompts, candidates, strict=True):
        values, names, at = scored.flr[at : at + len(texts)], list(texts), at + len(texts)
        if len(names) < 2 or np.ptp(values) == 0:
            counts["samples all the same" if len(names) < 2 else "scores all the same"] += 1
            continue
        best, worst = (int(place[0]) for place in best_and_worst(values[None]))
        pair = {"prompt": prompt, "margin": values[best] - values[worst], "key": scored.key}
        if pair["margin"] <= min_margin:
            counts["margin too small"] += 1
            continue
        for side, place in (("chosen", best), ("rejected", worst)):
            pair |= {side: names[place], f"{side}_ids": texts[names[place]], f"{side}_score": values[place]}
        pairs.append(pair)
    longer = float(np.mean([len(p["chosen_ids"]) > len(p["rejected_ids"]) for p in pairs])) if pairs else 0.0
    bias = length_bias(scored.flr, [text for texts in candidates for text in texts])
    return pairs, {"prompts": len(prompts), "pairs": len(pairs), **counts, **bias, "chosen_is_longer": longer}
