"""Objectives as pure functions: log-probabilities in, one loss an example and a dict of logged tensors out.

What may live here: the formulas of the papers. What may not: models, reductions over the batch, devices, randomness,
logging, files.
"""

from workbench.objectives.pairwise import DPO_LOSSES, SPIN_LOSSES, dpo, spin

__all__ = ["DPO_LOSSES", "SPIN_LOSSES", "dpo", "spin"]
