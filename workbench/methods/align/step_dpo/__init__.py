"""Step-DPO: preferences on single reasoning steps."""

from workbench.methods.align.step_dpo.method import (
    BEYOND_SMALL,
    LOOKS,
    RATES,
    TABLE_3,
    Arm,
    Config,
    claims,
    counts,
    group_pairs,
    make_pairs,
    open_task,
    play,
    run,
    run_arm,
)

__all__ = [
    "BEYOND_SMALL",
    "LOOKS",
    "RATES",
    "TABLE_3",
    "Arm",
    "Config",
    "claims",
    "counts",
    "group_pairs",
    "make_pairs",
    "open_task",
    "play",
    "run",
    "run_arm",
]
