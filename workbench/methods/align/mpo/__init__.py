"""MPO: mixed preference optimisation."""

from workbench.methods.align.mpo.experiment import ARMS, claims
from workbench.methods.align.mpo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
