"""LongPO: a model that is good on short text teaches itself to be good on long text."""

from workbench.methods.align.longpo.method import (
    BEYOND_SMALL,
    METHOD,
    Arm,
    Config,
    LongStep,
    claims,
    conditioning,
    open_task,
    pairs_of_round,
    play,
    run,
    run_arm,
    set_rope_theta,
    start_losses,
)

__all__ = [
    "BEYOND_SMALL",
    "METHOD",
    "Arm",
    "Config",
    "LongStep",
    "claims",
    "conditioning",
    "open_task",
    "pairs_of_round",
    "play",
    "run",
    "run_arm",
    "set_rope_theta",
    "start_losses",
]
