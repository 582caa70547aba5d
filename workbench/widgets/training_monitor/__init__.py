"""Curves, samples and diagnoses of trainings, live or finished."""

from workbench.widgets.training_monitor.monitor import TrainingMonitor

__all__ = ["TrainingMonitor"]
