"""Golden numbers of simultaneous translation: latency metrics and the state-confidence loss, values and gradients."""

import pytest
import torch

from workbench import objectives
from workbench.stats.latency import latency

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def test_latency_of_the_reference_scorer(golden):
    """ATD, which the file has too, is not one of the four metrics of this workbench."""
    for case in golden("latency.json")["cases"]:
        inputs = case["inputs"]
        found = latency(
            inputs["delays"],
            inputs["source_length"],
            inputs["reference_length"],
            use_reference=case["hyperparameters"]["use_ref_len"],
        )
        assert set(case["outputs"]) == {"AL", "LAAL", "AP", "DAL", "ATD"}
        for name in ("AL", "LAAL", "AP", "DAL"):
            assert getattr(found, name) == pytest.approx(case["outputs"][name], abs=1e-9), (case["id"], name)


def test_state_confidence(golden):
    """The official code taxes padding too: penalty and gradient differ by exactly the padding's share."""
    for case in golden("simul_confidence.json")["cases"]:
        names = ("full_source_logits", "prefix_logits", "confidence")
        inputs = {
            n: torch.tensor(case["inputs"][n], dtype=torch.float64, requires_grad=n != "confidence") for n in names
        }
        confidence = inputs["confidence"].requires_grad_()
        targets = torch.tensor(case["inputs"]["targets"])
        is_token = targets != case["inputs"]["padding_id"]
        logps = [inputs[name].log_softmax(-1) for name in ("full_source_logits", "prefix_logits")]
        losses, logged = objectives.state_confidence(*logps, confidence, targets, is_token, **case["hyperparameters"])
        losses.sum().backward()
        expected = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["outputs"].items()}
        weight = case["hyperparameters"]["confidence_weight"]
        of_padding = -confidence.detach().log()[~is_token].sum()
        found = {
            "full_source_loss": logged["full_losses"].sum(),
            "mixed_prefix_loss": logged["mixed_losses"].sum(),
            "confidence_penalty": logged["confidence_penalties"].sum() + of_padding,
            "total": losses.detach().sum() + weight * of_padding,
            "grad_confidence": torch.where(is_token, confidence.grad, -weight / confidence.detach()),
            **{f"grad_{n}": inputs[n].grad for n in names[:2]},
        }
        assert set(found) == set(expected)
        for name, value in found.items():
            torch.testing.assert_close(
                value, expected[name], **TIGHT, msg=lambda text, n=name, c=case: f"{c['id']}, {n}: {text}"
            )
