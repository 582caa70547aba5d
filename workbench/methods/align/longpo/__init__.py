"""LongPO: a model that is good on short text teaches itself to be good on long text."""

from workbench.methods.align.longpo.experiment import ARMS, claims
from workbench.methods.align.longpo.method import Arm, Config, open_task, train_arm

__all__ = ["ARMS", "Arm", "Config", "claims", "open_task", "train_arm"]
