"""What will be trained on, token by token, before it is."""

from workbench.widgets.training_preview.preview import TrainingPreview

__all__ = ["TrainingPreview"]
