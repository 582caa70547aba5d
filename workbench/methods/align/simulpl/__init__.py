"""SimulPL: preferences of listeners to simultaneous translation, in the text and in when it is written."""

from workbench.methods.align.simulpl.method import (
    LEVELS,
    UNKNOWN,
    Arm,
    Config,
    check_nothing_moved,
    claims,
    fine_tuned,
    msft_step,
    open_task,
    play,
    readers,
    run,
    run_arm,
    simul_step,
    supervised,
    token_pairs,
)

__all__ = [
    "LEVELS",
    "UNKNOWN",
    "Arm",
    "Config",
    "check_nothing_moved",
    "claims",
    "fine_tuned",
    "msft_step",
    "open_task",
    "play",
    "readers",
    "run",
    "run_arm",
    "simul_step",
    "supervised",
    "token_pairs",
]
