"""FLR: follow-up likelihood as reward."""

from workbench.methods.reward.flr.method import (
    BEYOND_SMALL,
    HEARD,
    IN_THE_WORLD,
    SYSTEM_DRAWS,
    SYSTEMS,
    UNSEEN,
    Arm,
    Config,
    best_worst_pairs,
    claims,
    mined_pairs,
    open_task,
    over_systems,
    play,
    run,
    run_arm,
)

__all__ = [
    "BEYOND_SMALL",
    "HEARD",
    "IN_THE_WORLD",
    "SYSTEMS",
    "SYSTEM_DRAWS",
    "UNSEEN",
    "Arm",
    "Config",
    "best_worst_pairs",
    "claims",
    "mined_pairs",
    "open_task",
    "over_systems",
    "play",
    "run",
    "run_arm",
]
