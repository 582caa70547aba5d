"""DNO: direct Nash optimisation."""

from workbench.methods.align.dno.experiment import ARMS, claims
from workbench.methods.align.dno.method import Arm, Config, open_task, train_arm
from workbench.methods.align.dno.view import pair_counts

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "pair_counts", "train_arm"]
