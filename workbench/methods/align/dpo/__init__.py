"""DPO: direct preference optimisation, the baseline that most methods here are compared with."""

from workbench.methods.align.dpo.experiment import ARMS, claims
from workbench.methods.align.dpo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
