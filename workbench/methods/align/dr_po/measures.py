"""What is measured of a policy: reward and KL from bare prompts, and reward by how much of a response is given."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from workbench.data import Row
from workbench.methods.align.dr_po.references import encode_reference
from workbench.models import Policy
from workbench.training import ppo


def from_bare_prompts(
    policy: Policy, start: Policy | None, prompts: list, reward: ppo.Reward, config: ppo.PPOConfig, seed: int
) -> dict[str, float]:
    """Reward and KL to the start of responses to held-out prompts, from the first token on: no reset at evaluation."""
    scores, kl, ended = ppo.answers(policy, start, prompts, [[]] * len(prompts), reward, config, seed)
    return {"reward": float(scores.mean()), "kl_nats": float(kl.mean()), "missing_end": float(1 - ended.mean())}


def by_prefix(
    policy: Policy,
    start: Policy | None,
    rows: Sequence[Row],
    reward: ppo.Reward,
    config: ppo.PPOConfig,
    seed: int,
) -> pd.DataFrame:
    """Mean reward after a reset to n tokens of the reference, before and after training: where the policy is good.

    Args:
        rows: held-out rows with `prompt` and `reference`.
    """
    measured = []
    rows = [row for row in rows if row["reference"]][:128]
    encoded = [encode_reference(policy, row["reference"], config.max_new_tokens) for row in rows]
    for n in range(0, config.max_new_tokens - 1, max(1, config.max_new_tokens // 6)):
        places = [i for i, tokens in enumerate(encoded) if len(tokens) > n]
        if not places:
            break
        prompts, prefixes = [rows[i]["prompt"] for i in places], [encoded[i][:n] for i in places]
        for when, model in (("before", start), ("after", policy)):
            if model is not None:
                scores, _, _ = ppo.answers(model, start, prompts, prefixes, reward, config, seed)
                measured.append({"prefix_tokens": n, "when": when, "reward": float(scores.mean()), "n": len(places)})
    return pd.DataFrame(measured)
