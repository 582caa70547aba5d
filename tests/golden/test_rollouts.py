"""Golden numbers of PPO, DR-PO and the reward model, from Cornell-RL/drpo and tril: values and gradients."""

import numpy as np
import pytest
import torch
from test_objectives import TIGHT, cases, tensor

from workbench import objectives
from workbench.methods.align.dr_po.method import reset_lengths


def matrix(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def close(got, expected, what):
    expected = torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(got.detach().double(), expected, **TIGHT, msg=lambda text: f"{what}: {text}")


@pytest.mark.parametrize("name", ["ppo_loss.json", "drpo_ppo_loss.json"])
def test_clipped_losses(golden, name):
    for number, case in enumerate(cases(golden, name)):
        where, inputs, options = f"{name}, case {number}", dict(case["inputs"]), dict(case["hyperparameters"])
        mask = inputs.pop("loss_mask", None)
        is_generated = None if mask is None else torch.tensor(mask) > 0
        policy, values = matrix(inputs["new_logprobs"], requires_grad=True), matrix(inputs["vpred"], requires_grad=True)
        coefficient = options.pop("vf_coef")
        old = [matrix(inputs[name]) for name in ("old_logprobs", "advantages", "old_values", "returns")]
        (policy_losses, value_losses), logged = objectives.ppo(
            policy, *old[:2], values, *old[2:], is_generated=is_generated, **options
        )
        drawn = policy_losses.numel() if is_generated is None else is_generated.sum()
        pg_loss, vf_loss = policy_losses.sum() / drawn, value_losses.mean()
        loss = pg_loss + coefficient * vf_loss
        loss.backward()
        expected = case["outputs"]
        got = {"pg_loss": pg_loss, "vf_loss": vf_loss, "loss": loss}
        got |= {"grad_new_logprobs": policy.grad, "grad_vpred": values.grad}
        for key, ours in got.items():
            close(ours, expected[key], f"{where}, {key}")
        assert float(logged["value_clipped"].double().mean()) == pytest.approx(expected["vf_clipfrac"], abs=1e-6)


def test_rewards_and_advantages(golden):
    for number, case in enumerate(cases(golden, "drpo_advantages.json")):
        inputs, options, expected = case["inputs"], case["hyperparameters"], case["outputs"]
        values = matrix(inputs["values"])
        rewards, penalty = objectives.token_rewards(
            matrix(inputs["logprobs"]),
            matrix(inputs["ref_logprobs"]),
            tensor(inputs["scores"]),
            torch.tensor(inputs["sequence_lengths"]),
            kl_coef=options["kl_coef"],
        )
        close(penalty, expected["non_score_reward"], f"case {number}, non_score_reward")
        if options["whiten_rewards"]:
            rewards = objectives.whiten(rewards, shift_mean=False)
        close(rewards, expected["rewards"], f"case {number}, rewards")
        advantages, returns = objectives.gae(rewards, values, gamma=options["gamma"], lam=options["lam"])
        close(returns, expected["returns"], f"case {number}, returns")
        close(objectives.whiten(advantages), expected["advantages"], f"case {number}, advantages")


def test_truncation(golden):
    for case in cases(golden, "drpo_truncate.json"):
        options, expected = case["hyperparameters"], case["outputs"]
        cut, last, ended = objectives.truncate(
            torch.tensor(case["inputs"]["responses"]),
            end_id=options["eos_token_id"],
            pad_id=options["pad_token_id"],
            needs_pad=True,
        )
        assert cut.tolist() == expected["truncated"]
        assert last.tolist() == expected["sequence_lengths"]
        assert ended.int().tolist() == expected["has_eos"]


def test_reset_lengths_follow_the_law(golden):
    """Two samples of the same law: every count within five standard errors of the other's."""
    for case in cases(golden, "drpo_reset_lengths.json"):
        options, rng = case["hyperparameters"], np.random.default_rng(0)
        for length, counts in zip(case["inputs"]["reference_lengths"], case["outputs"]["counts"], strict=True):
            drawn = reset_lengths([length] * options["draws"], options["beta"], rng)
            ours = np.bincount(drawn, minlength=options["max_length"] + 1)
            share = np.array(counts) / options["draws"]
            error = np.sqrt(2 * options["draws"] * share * (1 - share))
            assert np.all(np.abs(ours - counts) <= 5 * error + 1e-9), (length, ours, counts)
            assert case["outputs"]["mask_is_prefix"]


def test_forced_scores_say_what_our_prefixes_say(golden):
    """Where the mask is 1 the processed scores leave the reference token alone, else they are the model's own."""
    for case in cases(golden, "drpo_forced_scores.json"):
        inputs = case["inputs"]
        # "-inf" is text there
        rows = [[[float(v) for v in row] for row in step] for step in case["outputs"]["processed"]]
        processed = matrix(rows)
        mask, scores = torch.tensor(inputs["mask"]), matrix(inputs["scores"])
        for row, (reference, n) in enumerate(zip(inputs["reference_ids"], mask.sum(1).tolist(), strict=True)):
            prefix = reference[:n]  # what `ppo.roll_out` hands to `sample`
            assert processed[:n, row].argmax(-1).tolist() == prefix
            assert torch.all(processed[:n, row].softmax(-1).amax(-1) == 1)
            torch.testing.assert_close(processed[n:, row], scores[n:, row])


def test_dpo_baseline(golden):
    for number, case in enumerate(cases(golden, "drpo_dpo_baseline.json")):
        options, expected = dict(case["hyperparameters"]), case["outputs"]
        arguments = {name: tensor(values, requires_grad=True) for name, values in case["inputs"].items()}
        losses, _ = objectives.dpo(**arguments, loss_type="ipo" if options.pop("ipo") else "sigmoid", **options)
        losses.sum().backward()
        close(losses, expected["losses"], f"case {number}")
        for side in ("chosen", "rejected"):
            close(
                arguments[f"policy_{side}_logps"].grad, expected[f"grad_policy_{side}_logps"], f"case {number}, {side}"
            )


def test_reward_model_loss(golden):
    for case in cases(golden, "reward_model_loss.json"):
        chosen, rejected = (
            tensor(case["inputs"][f"{side}_rewards"], requires_grad=True) for side in ("chosen", "rejected")
        )
        losses, _ = objectives.bradley_terry(chosen, rejected)
        losses.mean().backward()
        close(losses.mean(), case["outputs"]["loss"], "loss")
        close(chosen.grad, case["outputs"]["grad_chosen"], "grad_chosen")
        close(rejected.grad, case["outputs"]["grad_rejected"], "grad_rejected")
