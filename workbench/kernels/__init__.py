"""Tensors in, tensors out: the two operations that every method is built from, `score` and `sample`."""

from workbench.kernels.heads import TokenScores, token_logps, token_scores
from workbench.kernels.meter import count_cost, without_cost
from workbench.kernels.sampling import Samples, sample
from workbench.kernels.scoring import Group, NanScore, Scores, score

__all__ = [
    "Group",
    "NanScore",
    "Samples",
    "Scores",
    "TokenScores",
    "count_cost",
    "sample",
    "score",
    "token_logps",
    "token_scores",
    "without_cost",
]
