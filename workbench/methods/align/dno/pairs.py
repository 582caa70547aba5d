"""A round's pairs: those that can teach something, what was counted on the way, and the replay of earlier rounds."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.data import Row, prompt_of
from workbench.feedback.pairs import keep_sound
from workbench.methods.align.dno.candidates import Candidate, Judgement
from workbench.runs.run import Run

log = logging.getLogger(__name__)

KINDS = ("T>S", "S>T", "S>S")  # teacher over student, student over teacher, student over student
COLUMNS = (
    *("prompt", "chosen", "rejected", "chosen_ids", "rejected_ids", "kind"),
    *("score_chosen", "score_rejected", "rate_chosen", "rate_rejected", "iteration"),
)


def sound_pairs(
    rows: Sequence[Row], candidates: Sequence[Sequence[Candidate]], judged: Sequence[Judgement], *, floor: float
) -> tuple[pd.DataFrame, dict[str, float]]:
    """The pairs whose sides differ and whose chosen side is not empty, and what a round counts of all its prompts."""
    kept, dropped = keep_sound(rows, may_be_empty=("rejected",))
    counts: dict[str, float] = {
        "prompts without a positive": sum(max(judgement[1]) < floor for judgement in judged if judgement),
        **{f"pairs {kind}": sum(row["kind"] == kind for row in kept) for kind in KINDS},
        "pairs dropped": sum(dropped.values()),
        "samples degenerate": sum(c.is_stuck for members in candidates for c in members),
        "prompts without a teacher": sum(not any(c.is_teacher for c in members) for members in candidates),
    }
    if unread := sum(judgement is None for judgement in judged):
        counts["prompts unreadable"] = unread
    with_teacher = counts["pairs S>T"] + counts["pairs T>S"]
    counts["student_over_teacher"] = counts["pairs S>T"] / max(with_teacher, 1)
    return pd.DataFrame(kept, columns=COLUMNS), counts


def check_round(counts: Mapping[str, float], n_pairs: int, n_prompts: int, t: int, *, floor: float | None) -> None:
    """Warns where hardly any candidate reaches the floor, if there is one.

    Raises:
        ValueError: round 0 has no pair.
    """
    if floor is not None and (share := counts["prompts without a positive"] / n_prompts) > 0.8:
        told = "round %d: no candidate of %.0f %% of the prompts reaches %g points: judge too strict or model too weak"
        log.warning(told, t, 100 * share, floor)
    if not n_pairs and t == 0:
        raise ValueError(
            f"round 0: no pair is left of {n_prompts} prompts ({dict(counts)}); lower floor or gap, or draw more"
        )


def sign_accuracy(task: Any, pairs: pd.DataFrame, table: np.ndarray) -> float:
    """Share of pairs whose chosen response truly wins more often against the policy; ties count half."""
    prompts = [prompt_of(prompt) for prompt in pairs.prompt]
    chosen, rejected = (task.win_rates(table, prompts, pairs[side].tolist()) for side in ("chosen", "rejected"))
    tied = np.isclose(chosen, rejected, atol=1e-6)
    return float(np.where(tied, 0.5, chosen > rejected).mean())


def with_replay(pairs: pd.DataFrame, run: Run, t: int, *, seed: int, share: float) -> pd.DataFrame:
    """Step 5: new pairs and, as at most `share` of all, a draw of those of the round before, half as many of the one
    before that, ..."""
    shares = [share / 2**i for i in range(t)]
    total = len(pairs) / (1 - sum(shares))
    tables = [pairs]
    for back, share_of_round in enumerate(shares, start=1):
        old = pd.read_parquet(run.child(f"round-{t + 1 - back}").folder / "pairs.parquet")
        taken = np.random.default_rng([seed, t, 7, back]).permutation(len(old))[: int(share_of_round * total)]
        tables.append(old.iloc[np.sort(taken)])
    return pd.concat(tables, ignore_index=True)
