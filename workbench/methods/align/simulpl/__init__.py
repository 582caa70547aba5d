"""SimulPL: preferences of listeners to simultaneous translation."""

from workbench.methods.align.simulpl.experiment import ARMS, claims
from workbench.methods.align.simulpl.method import Arm, Config, beside_arms, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "beside_arms", "claims", "open_task", "train_arm"]
