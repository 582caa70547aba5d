"""How much of a training step of a small world is spent inside torch operators; the rest is Python around them.

    python benchmarks/world_step.py            seconds
    python benchmarks/world_step.py --full     more rounds

The step is SPIN's, in the planted chain at width 64 (0.1 million parameters), 64 pairs, RMSprop, through
`training.train` with its metrics written to a run folder. The share is the time covered by `aten::` operators in the
trace of torch.profiler over the time of the steps. The profiler itself takes time, most of it outside the operators, so
the true share is a little larger. There is no peer.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import results

MUST, AIM = 0.70, 0.85


def covered(intervals: Sequence[tuple[float, float]]) -> float:
    """Length of the union of intervals (start, end)."""
    total, reach = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reach))
        reach = max(reach, end)
    return total


def make_round(given: argparse.Namespace) -> tuple[Any, Any]:
    """The world's start and one round of SPIN's pairs."""
    import math

    from workbench import objectives
    from workbench.kernels import sample
    from workbench.training.loop import TrainConfig
    from workbench.training.reference import pair_rows
    from workbench.training.rounds import Round
    from workbench.training.steps import preference_step
    from workbench.worlds.planted_chain import PlantedChain

    steps = 2 if given.size == "smoke" else 20
    world = PlantedChain(width=64, n_demonstrations=64 * steps, pretrain_steps=20, sft_epochs=1)
    policy, rows = world.start(0), world.demonstrations("train", 0)
    drawn = sample(policy, [row["prompt"] for row in rows], max_new_tokens=world.max_new_tokens, seed=0)
    groups = [
        policy.group(row["prompt"], [row["completion"], own[0]]) for row, own in zip(rows, drawn.tokens, strict=True)
    ]
    pairs = pair_rows(policy, [str(i) for i in range(len(rows))], groups)
    config = TrainConfig(
        learning_rate=1.5e-4, batch_size=64, optimizer="rmsprop", schedule="constant", warmup_ratio=0.0
    )
    return policy, Round(pairs, preference_step(objectives.spin, beta=0.5), config, math.log(2))


def main() -> None:
    given = harness.arguments(__doc__)
    os.environ.update(harness.QUIET)  # before torch reads it
    import torch
    from torch.profiler import ProfilerActivity, profile

    from workbench.runs.run import Run
    from workbench.training.loop import train
    from workbench.training.rounds import check_start

    torch.set_num_threads(1)
    policy, round_ = make_round(given)
    check_start(policy, round_)
    parameters = sum(p.numel() for p in policy.model.parameters())
    n_steps = -(-len(round_.rows) // round_.config.batch_size)
    shares, traced_ms, plain_ms = [], [], []

    def epoch(seed: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            train(policy, round_.rows, round_.step, round_.config, Run(Path(folder)), seed=seed)

    epoch(0)  # imports and first calls
    for number in range({"smoke": 1, "quick": 5, "full": 15}[given.size]):
        start = time.process_time()
        epoch(number)
        plain_ms.append((time.process_time() - start) / n_steps * 1e3)
        with profile(activities=[ProfilerActivity.CPU]) as trace:
            start = time.perf_counter()
            epoch(number)
            seconds = time.perf_counter() - start
        operators = [e for e in trace.events() or [] if e.name.startswith("aten::")]
        shares.append(covered([(e.time_range.start, e.time_range.end) for e in operators]) / (seconds * 1e6))
        traced_ms.append(seconds / n_steps * 1e3)
    print(f"  {parameters:,} parameters, {n_steps} steps a round, {len(operators) // n_steps} operators a step")
    print(
        f"  CPU ms a step, not traced: {results.spread(plain_ms)}; wall ms a step, traced: {results.spread(traced_ms)}"
    )
    print(f"  share of time inside torch operators: {results.spread(shares)}; to reach {MUST}, aim {AIM}")
    rows = [
        {
            "case": "SPIN step, 0.1M parameters",
            "side": "inside torch operators",
            "share": shares,
            "step_ms": plain_ms,
            "traced_step_ms": traced_ms,
            "must": MUST,
        }
    ]
    results.write("world_step", rows, given, "", "")


if __name__ == "__main__":
    main()
