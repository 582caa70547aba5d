"""SPIN: self-play fine-tuning."""

from workbench.methods.align.spin.method import (
    BEYOND_SMALL,
    SHARD,
    Arm,
    Config,
    at_round,
    build_rows,
    claims,
    held_out_logps,
    held_out_pairs,
    open_task,
    play,
    run,
    run_arm,
    start_of,
    write_answers,
)

__all__ = [
    "BEYOND_SMALL",
    "SHARD",
    "Arm",
    "Config",
    "at_round",
    "build_rows",
    "claims",
    "held_out_logps",
    "held_out_pairs",
    "open_task",
    "play",
    "run",
    "run_arm",
    "start_of",
    "write_answers",
]
