"""Where real rows come from, and the protocols that worlds and real rows fill."""

from workbench.tasks.protocols import (
    DemonstrationTask,
    DocumentTask,
    EnumeratedTask,
    EvidenceTask,
    FollowUpTask,
    JudgedTask,
    PreferenceTask,
    RankingTask,
    ReasoningTask,
    RewardedTask,
    TranslationTask,
)
from workbench.tasks.real import RealRows, TextTask, open_task

__all__ = [
    "DemonstrationTask",
    "DocumentTask",
    "EnumeratedTask",
    "EvidenceTask",
    "FollowUpTask",
    "JudgedTask",
    "PreferenceTask",
    "RankingTask",
    "RealRows",
    "ReasoningTask",
    "RewardedTask",
    "TextTask",
    "TranslationTask",
    "open_task",
]
