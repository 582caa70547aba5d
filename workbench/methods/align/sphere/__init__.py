"""SPHERE: preference data for reasoning from a pruned search."""

from workbench.methods.align.sphere.experiment import ARMS, claims
from workbench.methods.align.sphere.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
