"""Objectives as pure functions: log-probabilities in, one loss an example and a dict of logged tensors out."""

from workbench.objectives.evidence import anchor, js_divergence, mdpo, vdpo
from workbench.objectives.long_context import longpo
from workbench.objectives.pairwise import DPO_LOSSES, SPIN_LOSSES, dpo, spin
from workbench.objectives.policy_gradient import gae, ppo, token_rewards, truncate, whiten
from workbench.objectives.ranked_lists import pro, rrhf
from workbench.objectives.reference_free import AVERAGED, LOGO_LOSSES, REFERENCE_FREE, logo, orpo, simpo
from workbench.objectives.reward import bradley_terry
from workbench.objectives.self_play import SPPO_LOSSES, dno, sppo
from workbench.objectives.simultaneous import delay_penalty, expected_delays, simul_dpo, state_confidence

__all__ = [
    "AVERAGED",
    "DPO_LOSSES",
    "LOGO_LOSSES",
    "REFERENCE_FREE",
    "SPIN_LOSSES",
    "SPPO_LOSSES",
    "anchor",
    "bradley_terry",
    "delay_penalty",
    "dno",
    "dpo",
    "expected_delays",
    "gae",
    "js_divergence",
    "logo",
    "longpo",
    "mdpo",
    "orpo",
    "ppo",
    "pro",
    "rrhf",
    "simpo",
    "simul_dpo",
    "spin",
    "sppo",
    "state_confidence",
    "token_rewards",
    "truncate",
    "vdpo",
    "whiten",
]
