"""Hallucinated references: does a title that a model gave exist? Ask the model, in fresh sessions, who wrote it."""

from workbench.methods.confidence.hallucinated_references.experiment import claims
from workbench.methods.confidence.hallucinated_references.method import Config, open_task, run

__all__ = ["Config", "claims", "open_task", "run"]
