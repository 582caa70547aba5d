"""Relative confidence: ask a model which of two questions it is surer of, and rank its answers by many such matches."""

from workbench.methods.confidence.relative_confidence.experiment import claims
from workbench.methods.confidence.relative_confidence.method import Config, open_task, run

__all__ = ["Config", "claims", "open_task", "run"]
