"""Tensors in, tensors out: the two operations that every method is built from, `score` and `sample`."""

from workbench.kernels.heads import TokenScores, token_logps, token_scores
from workbench.kernels.meter import metered, unmetered
from workbench.kernels.sampling import Samples, sample
from workbench.kernels.scoring import Group, NanScore, Scores, score

__all__ = [
    "Group",
    "NanScore",
    "Samples",
    "Scores",
    "TokenScores",
    "metered",
    "sample",
    "score",
    "token_logps",
    "token_scores",
    "unmetered",
]
