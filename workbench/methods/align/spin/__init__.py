"""SPIN: self-play fine-tuning."""

from workbench.methods.align.spin.experiment import ARMS, claims
from workbench.methods.align.spin.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
