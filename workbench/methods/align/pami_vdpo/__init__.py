"""PaMi-VDPO: prompt-aware multi-instance video preferences."""

from workbench.methods.align.pami_vdpo.method import (
    UNKNOWN,
    Arm,
    Config,
    annotated,
    claims,
    make_chooser,
    open_task,
    play,
    run,
    run_arm,
    vdpo_step,
)

__all__ = [
    "UNKNOWN",
    "Arm",
    "Config",
    "annotated",
    "claims",
    "make_chooser",
    "open_task",
    "play",
    "run",
    "run_arm",
    "vdpo_step",
]
