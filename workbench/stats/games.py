"""Symmetric two-player games over responses that can be listed: win rates, exploitability, exact steps of self-play.

A policy is a table of probabilities [..., response]; a preference is P(row beats column) [..., response, response],
with P_ij + P_ji = 1, so the value of the game is 1/2. Leading axes (prompts) go through unchanged.
"""

from __future__ import annotations

import numpy as np


def against(policy: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """P(y beats a response of `policy`) for every response y, [..., response]."""
    return (preference @ policy[..., None])[..., 0]


def win_rate(policy: np.ndarray, opponent: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """P(a response of `policy` beats one of `opponent`), [...]."""
    return (policy * against(opponent, preference)).sum(-1)


def exploitability(policy: np.ndarray, preference: np.ndarray) -> np.ndarray:
    """How much the best answer to `policy` wins beyond 1/2, [...]; 0 at a symmetric Nash equilibrium alone."""
    return against(policy, preference).max(-1) - 0.5


def exact_step(policy: np.ndarray, preference: np.ndarray, eta: float) -> np.ndarray:
    """One multiplicative update, policy(y) exp(eta P(y beats policy)), normalised.

    It is what a round of SPPO approximates, and a round of soft DNO with its own eta at 1 / eta.

    Source: Wu et al. 2024, eq. 3.2 (Freund and Schapire 1999); Rosset et al. 2024, Algorithm 1.
    """
    weights = policy * np.exp(eta * (against(policy, preference) - 0.5))  # the shift keeps large eta finite
    return weights / weights.sum(-1, keepdims=True)


def divergence(policy: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(policy || other), [...], nats."""
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = policy * (np.log(policy) - np.log(other))
    return np.where(policy > 0, terms, 0.0).sum(-1)
