"""A round of self-play begins here: prompts of the round, K samples each, and who beats whom among them."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.kernels import sample
from workbench.models import Policy
from workbench.runs.run import Run

log = logging.getLogger(__name__)

SHARD = 5_000  # prompts answered between two writes; minutes of a GPU


def prompts_of_round(
    task: Any, seed: int, t: int, *, rounds: int, n_prompts: int, prompt_repeats: int, may_overlap: bool = False
) -> list:
    """The prompts of round t: a part of its own, or with `prompt_repeats` all prompts that often in every round.

    Args:
        prompt_repeats: 0 gives every round a part that shares no prompt with the others; a small world that has too
            few prompts for that repeats all of them.
        n_prompts: at most so many of a part; 0 for all.
        may_overlap: warn of parts that share prompts instead of refusing them.

    Raises:
        ValueError: parts that should be disjoint share prompts; says how many.
    """
    if prompt_repeats:
        return list(task.prompts("train", seed)) * prompt_repeats
    parts = [task.prompts("train", seed, part=part, parts=rounds) for part in range(rounds)]
    keys = [{json.dumps(prompt) for prompt in part} for part in parts]
    shared = sum(map(len, keys)) - len(set().union(*keys))
    if shared and may_overlap:
        log.warning(
            "the prompt parts of %d rounds overlap in %d prompts; the recipe has a part of its own for each",
            rounds,
            shared,
        )
    elif shared:
        raise ValueError(
            f"the prompt parts of {rounds} rounds overlap in {shared} prompts; remove repeated prompts from the data,"
            " or set prompt_repeats=1 to use all prompts in every round"
        )
    if not parts[t]:
        raise ValueError(f"round {t} has no prompts: {sum(map(len, parts))} prompts in {rounds} parts; lower rounds")
    return parts[t][:n_prompts] if n_prompts else parts[t]


def draw_samples(
    policy: Policy,
    prompts: Sequence,
    k: int,
    run: Run,
    *,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
) -> pd.DataFrame:
    """K responses to each prompt, stored shard by shard in `run`, so that a killed round draws no shard twice.

    Returns:
        One row a prompt: `prompt` (chats as JSON), `responses` (K texts) and `responses_ids` (K lists of token ids).
    """

    def draw(start: int) -> pd.DataFrame:
        shard = prompts[start : start + SHARD]
        drawn = sample(
            policy,
            shard,
            n=k,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=seed + 1_000_000 * start,
        )
        written = [prompt if isinstance(prompt, str) else json.dumps(prompt) for prompt in shard]
        return pd.DataFrame({"prompt": written, "responses": drawn.texts, "responses_ids": drawn.tokens})

    def gather() -> pd.DataFrame:
        shards = [run.table(f"samples-{start}", partial(draw, start)) for start in range(0, len(prompts), SHARD)]
        return pd.concat(shards, ignore_index=True)

    return run.table("samples", gather if len(prompts) > SHARD else partial(draw, 0))


def preference_matrices(task: Any, prompts: Sequence, responses: Sequence[Sequence[str]]) -> np.ndarray:
    """P(response i beats response j) for each prompt, [prompt, K, K], from one question a pair and prompt.

    The judge is asked about i < j only; P_ji = 1 - P_ij and the diagonal is one half. NaN where it could not be read.

    Raises:
        ValueError: another number of responses for some prompt, fewer than two, or an answer outside [0, 1].
    """
    sizes = {len(texts) for texts in responses}
    if len(sizes) != 1:
        raise ValueError(f"every prompt needs the same number of responses; got {sorted(sizes)}")
    (k,) = sizes
    if k < 2:
        raise ValueError(f"need at least 2 responses a prompt to compare; got {k}")
    matrices = np.full((len(responses), k, k), 0.5)
    for i in range(k):
        for j in range(i + 1, k):
            p = np.asarray(
                task.prefer(prompts, [texts[i] for texts in responses], [texts[j] for texts in responses]), float
            )
            if bad := np.flatnonzero((p < 0) | (p > 1)).tolist():
                raise ValueError(
                    f"row {bad[0]}: the judge gave {p[bad[0]]} for responses {i} and {j}; it must give a probability in"
                    " [0, 1]"
                )
            matrices[:, i, j], matrices[:, j, i] = p, 1 - p
    return matrices


def readable(matrices: np.ndarray) -> np.ndarray:
    """Which prompts the judge could be read on for every pair; the others are dropped and counted in the log."""
    fine = np.isfinite(matrices.reshape(len(matrices), -1)).all(axis=1)
    if not fine.all():
        dropped = int(np.sum(~fine))
        log.warning("%d of %d prompts dropped: the judge could not be read on some pair", dropped, fine.size)
    return np.asarray(fine)
