"""Time travel: has a model seen this benchmark partition? Name it, ask for the rest of an instance, and compare."""

from workbench.methods.confidence.time_travel.experiment import claims
from workbench.methods.confidence.time_travel.method import Config, open_task, run, train_arm

__all__ = ["Config", "claims", "open_task", "run", "train_arm"]
