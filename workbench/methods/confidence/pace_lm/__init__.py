"""PACE-LM: how far may a proposed root cause be trusted? Ask about the evidence first, then about the proposal."""

from workbench.methods.confidence.pace_lm.experiment import ARMS, claims
from workbench.methods.confidence.pace_lm.method import Arm, Config, open_task, run

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "run"]
