"""DR-PO: dataset reset policy optimisation."""

from workbench.methods.align.dr_po.experiment import ARMS, claims
from workbench.methods.align.dr_po.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
