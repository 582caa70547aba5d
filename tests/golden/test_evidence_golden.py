"""Golden numbers of VDPO: the pair loss with gradients, Jensen-Shannon divergences, the mDPO loss with gradients."""

import pytest
import torch

from workbench import objectives

TIGHT = {"rtol": 1e-6, "atol": 1e-6}
WORDS = {
    "policy_logp_original_video": "policy_original_logps",
    "policy_logp_augmented_video": "policy_altered_logps",
    "ref_logp_original_video": "reference_original_logps",
    "ref_logp_augmented_video": "reference_altered_logps",
    "policy_chosen": "policy_chosen_logps",
    "policy_rejected": "policy_rejected_logps",
    "policy_chosen_other_visual": "policy_altered_logps",
    "ref_chosen": "reference_chosen_logps",
    "ref_rejected": "reference_rejected_logps",
    "ref_chosen_other_visual": "reference_altered_logps",
}
GRADIENTS = {"grad_original": "policy_original_logps", "grad_augmented": "policy_altered_logps"}
GRADIENTS |= {"grad_policy_chosen": "policy_chosen_logps", "grad_policy_rejected": "policy_rejected_logps"}
GRADIENTS |= {"grad_policy_other_visual": "policy_altered_logps"}


@pytest.fixture(scope="module")
def cases(golden):
    return golden("vdpo.json")["cases"]


def test_losses_and_gradients(cases):
    seen = 0
    for case in cases:
        if case["id"].startswith("jsd"):
            continue
        seen += 1
        arguments = {
            WORDS[k]: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in case["inputs"].items()
        }
        is_pair = case["id"].startswith("pair")
        losses, logged = (objectives.vdpo if is_pair else objectives.mdpo)(**arguments, **case["hyperparameters"])
        losses.mean().backward()  # as the references do
        expected = {name: torch.tensor(values, dtype=torch.float64) for name, values in case["outputs"].items()}
        for name, value in expected.items():
            if name == "losses":
                got = losses.detach()
            elif name == "loss":
                got = losses.mean().detach()
            elif name in GRADIENTS:
                got = arguments[GRADIENTS[name]].grad
            else:
                got = logged[{"other_visual_rewards": "altered_rewards"}.get(name, name)]
            torch.testing.assert_close(got, value, **TIGHT, msg=lambda text, c=case, n=name: f"{c['id']}, {n}: {text}")
    assert seen == 6


def test_divergences(cases):
    seen = 0
    for case in cases:
        if case["id"].startswith("jsd"):
            seen += 1
            p, q = (torch.tensor(case["inputs"][name], dtype=torch.float64).log() for name in "pq")
            assert case["hyperparameters"] == {"base": "e"}
            torch.testing.assert_close(
                objectives.js_divergence(p, q), torch.tensor(case["outputs"]["jsd"], dtype=torch.float64), **TIGHT
            )
    assert seen == 4
