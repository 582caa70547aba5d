"""DPO: direct preference optimisation, the baseline that most methods here are compared with."""

from workbench.methods.align.dpo.method import (
    ARMS,
    AVERAGED,
    REFERENCE_FREE,
    Config,
    claims,
    objective_of,
    open_probe,
    open_task,
    play,
    run,
    run_arm,
)

__all__ = [
    "ARMS",
    "AVERAGED",
    "REFERENCE_FREE",
    "Config",
    "claims",
    "objective_of",
    "open_probe",
    "open_task",
    "play",
    "run",
    "run_arm",
]
