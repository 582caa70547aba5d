"""LOGO: long-context alignment on short text whose positions are spread over a long window."""

from workbench.methods.align.logo.experiment import ARMS, claims
from workbench.methods.align.logo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
