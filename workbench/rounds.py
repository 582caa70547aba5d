"""What methods of self-play measure after each round, and how a round's pairs become rows.

What may live here: steps that SPPO, DNO and their kin share between sampling and claims. What may not: choices of one
method, losses, worlds.

A round's folder holds `pairs.parquet` (columns `prompt`, `chosen`, `rejected`, `chosen_ids`, `rejected_ids` and what
the method adds; chosen is the truth even where an arm trains on other labels), `before.json` (log-probs of each pair
under the reference, before training) and, in worlds where all responses can be listed, `policy.parquet` (the policy as
a table).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench import games
from workbench.feedback.samples import prompt_of
from workbench.kernels import Group
from workbench.models import Policy
from workbench.reference import PairRow, reference_logps
from workbench.runs import Run, read_json
from workbench.tasks import TextTask


def open_judged(config: Any, world: Callable[..., Any], *, model: str, dataset: str, device: str, kind: str) -> Any:
    """The embedded world, or a data set with a starting model and a judge, from the fields that judged methods share.

    Args:
        kind: what the rows of the data set are, see `TextTask`.

    Raises:
        ValueError: one of model, dataset and judge without the others.
    """
    if not dataset and not model:
        return world(device=device, **{name: int(v) if v == int(v) else v for name, v in config.world.items()})
    if not dataset or not model or not config.judge:
        raise ValueError(
            f"model={model!r}, dataset={dataset!r}, judge={config.judge!r}: give all three for real text (the judge by "
            "overrides={'judge': ...}), or none for the embedded world"
        )
    lora = {"r": config.lora_rank, "lora_alpha": 2 * config.lora_rank} if config.lora_rank else None
    return TextTask(
        dataset,
        model,
        kind=kind,
        device=device,
        test_size=config.test_size,
        max_new_tokens=config.max_new_tokens,
        max_length=config.max_length,
        lora=lora,
        precision=config.precision,
        judge=config.judge,
        judge_kind=config.judge_kind,
    )


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


def movement(policy: Policy, part: Run, **limits: int) -> dict[str, float]:
    """Where a round moved its chosen and its rejected responses: mean log-ratios on its pairs, nats."""
    pairs = pd.read_parquet(part.folder / "pairs.parquet")
    if pairs.empty:
        return {"winner_moved": math.nan, "loser_moved": math.nan, "n_pairs": 0}
    moved = pair_logps(policy, pairs, **limits) - np.array(read_json(part.folder / "before.json"))
    rewards = {"chosen_rewards": moved[:, 0], "rejected_rewards": moved[:, 1]}
    part.table("moved", lambda: pairs[["prompt", "chosen", "rejected"]].assign(**rewards))
    return {"winner_moved": float(moved[:, 0].mean()), "loser_moved": float(moved[:, 1].mean()), "n_pairs": len(pairs)}


def game_numbers(task: Any, policy: Policy, t: int, run: Run) -> dict[str, float]:
    """Exact numbers of an `EnumeratedTask` after round t: of this policy, and of the average of all rounds' policies.

    The average leaves out the start: it is the uniform mixture of what the rounds made.
    """

    def as_frame() -> pd.DataFrame:
        return pd.DataFrame(task.table(policy).astype(np.float32)).rename(columns=str)

    now = run.child(f"round-{t}").table("policy", as_frame).to_numpy(float)
    average = np.mean([stored_table(run, i) for i in range(1, t + 1)], axis=0) if t else now
    start, last = stored_table(run, 0), stored_table(run, max(t - 1, 0))
    return {
        **task.measure(now),
        **{f"average_{name}": value for name, value in task.measure(average).items()},
        "win_against_start": task.win_rate(now, start),
        "average_win_against_start": task.win_rate(average, start),
        "outside_win_against_start": task.win_rate(now, start, outside_judge=True),
        "win_against_last": task.win_rate(now, last),
        "kl_to_last": float(games.divergence(now, last).mean()),
    }


def stored_table(run: Run, t: int) -> np.ndarray:
    """The policy after round t of one arm, [prompt, response]."""
    return pd.read_parquet(run.child(f"round-{t}").folder / "policy.parquet").to_numpy(float)


def with_replay(pairs: pd.DataFrame, run: Run, t: int, *, seed: int, share: float) -> pd.DataFrame:
    """New pairs and, as at most `share` of all, a draw of those of the round before, half as many of the one before
    that, ..."""
    shares = [share / 2**i for i in range(t)]
    total = len(pairs) / (1 - sum(shares))
    tables = [pairs]
    for back, part in enumerate(shares, start=1):
        old = pd.read_parquet(run.child(f"round-{t + 1 - back}").folder / "pairs.parquet")
        taken = np.random.default_rng([seed, t, 7, back]).permutation(len(old))[: int(part * total)]
        tables.append(old.iloc[np.sort(taken)])
    return pd.concat(tables, ignore_index=True)


def sign_accuracy(task: Any, pairs: pd.DataFrame, table: np.ndarray) -> float:
    """Share of pairs whose chosen response truly wins more often against the policy than the rejected one; ties count
    half."""
    prompts = [prompt_of(prompt) for prompt in pairs.prompt]
    chosen, rejected = (task.win_rates(table, prompts, pairs[side].tolist()) for side in ("chosen", "rejected"))
    tied = np.isclose(chosen, rejected, atol=1e-6)
    return float(np.where(tied, 0.5, chosen > rejected).mean())


def slopes(values: np.ndarray) -> np.ndarray:
    """Least-squares slope of each row against its index; 0 for a single value."""
    rounds = np.arange(values.shape[1]) - (values.shape[1] - 1) / 2
    return values @ rounds / (rounds @ rounds) if values.shape[1] > 1 else np.zeros(len(values))


def rank_correlations(values: np.ndarray) -> np.ndarray:
    """Spearman's correlation of each row with its index; 0 for a single value or values that are all the same."""
    from scipy import stats

    def correlation(row: np.ndarray) -> float:
        found: Any = stats.spearmanr(np.arange(len(row)), row)
        return float(found.statistic)

    return np.array([correlation(row) if len(row) > 1 and np.ptp(row) > 0 else 0.0 for row in values])


def weakest_round(values: np.ndarray) -> int:
    """All rounds must pass, so the one with the smallest mean over standard error speaks for them [seed, round]."""
    return int(np.argmin(values.mean(0) / (values.std(0, ddof=min(1, len(values) - 1)) + 1e-9)))
