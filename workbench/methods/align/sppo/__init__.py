"""SPPO: self-play preference optimisation."""

from workbench.methods.align.sppo.experiment import ARMS, claims
from workbench.methods.align.sppo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
