"""Tensors in, tensors out: the two operations that every method is built from, `score` and `sample`.

What may live here: GPU and CPU kernels over transformers models and token ids. What may not: files, configuration,
data sets, methods, or anything of the project outside this folder and `objectives`.
"""

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
