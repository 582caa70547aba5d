"""Time travel: has a model seen this benchmark partition? Name it, ask for the rest of an instance, and compare."""

from workbench.methods.confidence.time_travel.method import (
    CLAIMS,
    HUMANS_SAY,
    PUBLISHED_GAINS,
    PUBLISHED_RIGHT,
    Config,
    Evidence,
    claims,
    collect,
    measured_by,
    open_task,
    overlap,
    prepare,
    recorded_claims,
    run,
    run_arm,
    truth,
)

__all__ = [
    "CLAIMS",
    "HUMANS_SAY",
    "PUBLISHED_GAINS",
    "PUBLISHED_RIGHT",
    "Config",
    "Evidence",
    "claims",
    "collect",
    "measured_by",
    "open_task",
    "overlap",
    "prepare",
    "recorded_claims",
    "run",
    "run_arm",
    "truth",
]
