"""FLR: follow-up likelihood as reward."""

from workbench.methods.reward.flr.experiment import ARMS, claims
from workbench.methods.reward.flr.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
