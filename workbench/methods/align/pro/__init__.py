"""PRO: preference ranking optimisation."""

from workbench.methods.align.pro.experiment import ARMS, claims
from workbench.methods.align.pro.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
