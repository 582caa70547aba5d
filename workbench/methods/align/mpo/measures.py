"""What is measured of a policy of MPO on held-out pairs, beside what its task says of it."""

from __future__ import annotations

from typing import Any

from workbench import objectives
from workbench.models import Policy
from workbench.training import ppo
from workbench.training.reference import reference_logps
from workbench.training.steps import pair_numbers


def held_out_numbers(
    task: Any, policy: Policy, sft: Policy, reward: ppo.Reward, config: Any, seed: int
) -> dict[str, float]:
    """On held-out pairs: the reward model's opinion of the policy's responses (`proxy`), their KL to pi_SFT in nats,
    and the share of pairs whose chosen response the policy moved towards more than the rejected one."""
    test = task.preferences("test", seed)
    prompts = [row["prompt"] for row in test][: config.test_size]
    scores, kl, ended = ppo.answers(policy, sft, prompts, [[]] * len(prompts), reward, config, seed)
    groups = [policy.group(r["prompt"], [r["chosen"], r["rejected"]], max_length=config.max_length) for r in test]
    pairs, _ = pair_numbers(reference_logps(policy, groups), reference_logps(sft, groups), objectives.dpo)
    numbers = {"proxy": scores.mean(), "kl_sft": kl.mean(), "missing_end": 1 - ended.mean()}
    return {name: float(value) for name, value in numbers.items()} | {"implicit_accuracy": pairs["reward_accuracy"]}
