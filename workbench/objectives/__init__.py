"""Objectives as pure functions: log-probabilities in, one loss an example and a dict of logged tensors out.

What may live here: the formulas of the papers. What may not: models, reductions over the batch, devices, randomness,
logging, files.
"""

from workbench.objectives.pairwise import DPO_LOSSES, SPIN_LOSSES, dpo, spin
from workbench.objectives.policy_gradient import gae, ppo, token_rewards, truncate, whiten
from workbench.objectives.reference_free import orpo, simpo
from workbench.objectives.reward import bradley_terry
from workbench.objectives.self_play import SPPO_LOSSES, dno, sppo

__all__ = [
    "DPO_LOSSES",
    "SPIN_LOSSES",
    "SPPO_LOSSES",
    "bradley_terry",
    "dno",
    "dpo",
    "gae",
    "orpo",
    "ppo",
    "simpo",
    "spin",
    "sppo",
    "token_rewards",
    "truncate",
    "whiten",
]
