"""Step-DPO: preferences on single reasoning steps."""

from workbench.methods.align.step_dpo.experiment import ARMS, claims
from workbench.methods.align.step_dpo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
