"""PRO: preference ranking optimisation."""

from workbench.methods.align.pro.method import (
    BEYOND_SMALL,
    HINTS,
    IN_THE_WORLD,
    METHODS,
    Arm,
    Config,
    chains,
    claims,
    correlations,
    keep_best,
    open_task,
    play,
    run,
    run_arm,
    training_of,
    with_hint,
)

__all__ = [
    "BEYOND_SMALL",
    "HINTS",
    "IN_THE_WORLD",
    "METHODS",
    "Arm",
    "Config",
    "chains",
    "claims",
    "correlations",
    "keep_best",
    "open_task",
    "play",
    "run",
    "run_arm",
    "training_of",
    "with_hint",
]
