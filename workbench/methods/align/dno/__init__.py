"""DNO: direct Nash optimisation."""

from workbench.methods.align.dno.method import (
    BEYOND_SMALL,
    COLUMNS,
    KINDS,
    PAPER,
    Arm,
    Config,
    build_pairs,
    build_rows,
    claims,
    objective_of,
    open_task,
    pairs_of,
    play,
    run,
    run_arm,
)

__all__ = [
    "BEYOND_SMALL",
    "COLUMNS",
    "KINDS",
    "PAPER",
    "Arm",
    "Config",
    "build_pairs",
    "build_rows",
    "claims",
    "objective_of",
    "open_task",
    "pairs_of",
    "play",
    "run",
    "run_arm",
]
