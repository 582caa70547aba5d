"""LOGO: long-context alignment on short text whose positions are spread over a long window."""

from workbench.methods.align.logo.method import (
    BEYOND_SMALL,
    LONGER,
    SHORTER,
    Arm,
    Config,
    LogoRow,
    LogoStep,
    build_rows,
    check_positions,
    claims,
    held_out_margins,
    open_task,
    play,
    run,
    run_arm,
    tokenised,
)

__all__ = [
    "BEYOND_SMALL",
    "LONGER",
    "SHORTER",
    "Arm",
    "Config",
    "LogoRow",
    "LogoStep",
    "build_rows",
    "check_positions",
    "claims",
    "held_out_margins",
    "open_task",
    "play",
    "run",
    "run_arm",
    "tokenised",
]
