"""What DR-PO is compared with beside PPO: training on the references (SFT) or on the pairs (DPO), without rollouts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from workbench import objectives
from workbench.data import Row
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.training.checkpoints import save_weights
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import pair_rows
from workbench.training.steps import preference_step, supervised_step


def train_supervised(
    policy: Policy,
    rows: Sequence[Row],
    pairs: Sequence[Row] | None,
    evaluate: Callable[[Policy, int], dict[str, float]],
    training: TrainConfig,
    run: Run,
    *,
    seed: int,
    dpo_beta: float,
    max_length: int,
) -> list[dict[str, float]]:
    """Trains `policy` in place; returns its evaluations before and after.

    Args:
        rows: with `prompt` and `reference`, for SFT; those without a reference are left out.
        pairs: with `prompt`, `chosen` and `rejected`, for DPO in its place; None for SFT.
    """
    first, metrics = run.cached("evaluation-0", lambda: evaluate(policy, 0)), run.child("round-1")
    if pairs is None:
        rows = [row for row in rows if row["reference"]]
        groups = [policy.group(row["prompt"], [row["reference"]], max_length=max_length) for row in rows]
        train(policy, groups, supervised_step, training, metrics, seed=seed)
    else:
        groups = [policy.group(r["prompt"], [r["chosen"], r["rejected"]], max_length=max_length) for r in pairs]
        sided = pair_rows(policy, [f"row {i}" for i in range(len(groups))], groups)
        train(policy, sided, preference_step(objectives.dpo, beta=dpo_beta), training, metrics, seed=seed)
    save_weights(policy.model, metrics.folder / "weights.safetensors")
    return [first, run.cached("evaluation-1", lambda: evaluate(policy, 1))]
