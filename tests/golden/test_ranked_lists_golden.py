"""PRO and RRHF against their official codes, values and gradients with respect to the log-prob of every token."""

import pytest
import torch

from workbench import objectives

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def test_pro(golden):
    for case in golden("pro.json")["cases"]:
        given, expected = case["inputs"], case["outputs"]
        assert set(given["sft_index"]) == {0}, case["id"]
        tokens, mask = tensor(given["token_logps"]).requires_grad_(), tensor(given["response_mask"])
        losses, logged = objectives.pro(
            (tokens * mask).sum(-1),
            mask.sum(-1).long(),
            tensor(given["rewards"]),
            **case["hyperparameters"],
            in_order="unsorted" not in case["id"],
        )
        n = len(given["rewards"][0])
        torch.testing.assert_close(losses.mean().item(), expected["total_loss"], **TIGHT, msg=case["id"])
        ranks = [logged[f"rank_{k}"].mean().item() for k in range(1, n)]
        torch.testing.assert_close(ranks, expected["rank_losses"], **TIGHT)
        sft = case["hyperparameters"]["sft_weight"] * (n - 1) ** 2 * logged["sft_nll"].mean().item()
        assert sft == pytest.approx(expected["weighted_sft_loss"], rel=1e-6, abs=1e-6)
        losses.mean().backward()
        torch.testing.assert_close(tokens.grad, tensor(expected["grad_token_logps"]), **TIGHT, msg=case["id"])


def test_rrhf(golden):
    for case in golden("rrhf.json")["cases"]:
        given, expected, settings = case["inputs"], case["outputs"], case["hyperparameters"]
        tokens, mask = tensor(given["token_logps"]).requires_grad_(), tensor(given["response_mask"])
        lengths = mask.sum(-1).long()
        losses, logged = objectives.rrhf(
            (tokens * mask).sum(-1)[None],
            lengths[None],
            tensor(given["rewards"])[None],
            width=tokens.shape[-1],
            rank_weight=settings["rrhf_weight"],
            length_penalty=settings["length_penalty"],
        )
        got = {"rank_loss": logged["rank_loss"], "sft_loss": logged["sft_nll"], "total": losses.detach()}
        for name, value in got.items():
            assert value.item() == pytest.approx(expected[name], rel=1e-6, abs=1e-6), (case["id"], name)
        losses.sum().backward()
        torch.testing.assert_close(tokens.grad, tensor(expected["grad_token_logps"]), **TIGHT, msg=case["id"])
