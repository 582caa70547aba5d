"""PaMi-VDPO: prompt-aware multi-instance video preferences."""

from workbench.methods.align.pami_vdpo.experiment import ARMS, claims
from workbench.methods.align.pami_vdpo.method import Arm, Config, beside_arms, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "beside_arms", "claims", "open_task", "train_arm"]
