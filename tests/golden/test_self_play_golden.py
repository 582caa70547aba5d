"""Golden numbers of SPPO, soft DNO and the masked DPO family: every case, values and gradients, float64, 1e-6."""

import numpy as np
import pytest
import torch
from test_objectives import TIGHT, cases, tensor

from workbench.feedback.pairs import best_and_worst, from_scores, mean_logits, win_rates
from workbench.objectives import dno, dpo, sppo

SIDES = ("policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps")
JUDGED = ("chosen_probs", "chosen_probs_win", "chosen_probs_lose")


def test_sppo_and_its_baselines(golden):
    """The official trainer's losses on the same inputs; its paired KTO returns both halves one after the other."""
    for number, case in enumerate(cases(golden, "sppo.json")):
        where, options = f"case {number}, {case['hyperparameters']}", case["hyperparameters"]
        assert set(case["inputs"]) == {*SIDES, *JUDGED}
        values = {name: tensor(case["inputs"][name], requires_grad=name in SIDES) for name in case["inputs"]}
        logps = [values[name] for name in SIDES]
        if options["loss_type"].startswith("sppo"):
            judged = {name: values[name] for name in JUDGED}
            losses, logged = sppo(*logps, **judged, beta=options["beta"], loss_type=options["loss_type"])
        else:
            losses, logged = dpo(*logps, **options)
        losses.sum().backward()
        expected = tensor(case["outputs"].pop("losses")).reshape(-1, len(losses)).sum(0)
        torch.testing.assert_close(losses.detach(), expected, **TIGHT, msg=lambda text, w=where: f"{w}: {text}")
        for name, numbers in case["outputs"].items():
            got = values[name.removeprefix("grad_")].grad if name.startswith("grad_") else logged[name]
            torch.testing.assert_close(
                got, tensor(numbers), **TIGHT, msg=lambda text, w=where, n=name: f"{w}, {n}: {text}"
            )


def test_sppo_win_rates(golden):
    """Scores to probabilities, win rates with the self-comparison, winner and loser with the first index on ties."""
    for case in cases(golden, "sppo_win_rates.json"):
        scores = np.array(case["inputs"]["scores"])
        expected = {name: np.array(values) for name, values in case["outputs"].items()}
        probability = from_scores(scores)
        np.testing.assert_allclose(probability, expected["probability"], rtol=1e-6, atol=1e-12)
        best, worst = best_and_worst(scores)
        np.testing.assert_array_equal(best, expected["chosen_index"])
        np.testing.assert_array_equal(worst, expected["rejected_index"])
        rows, rates = np.arange(len(scores)), win_rates(probability)
        for name, got in (
            ("chosen_probs", probability[rows, best, worst]),
            ("chosen_probs_win", rates[rows, best]),
            ("chosen_probs_lose", rates[rows, worst]),
        ):
            np.testing.assert_allclose(got, expected[name], rtol=1e-6, err_msg=name)
        # the paper's score picks the same two where no probability is rounded to 1
        moderate = np.ptp(scores, axis=1) < 10
        np.testing.assert_array_equal(best_and_worst(mean_logits(probability).round(9))[0][moderate], best[moderate])


def test_soft_dno(golden):
    words = {"policy_logps_1": "policy_first_logps", "policy_logps_2": "policy_second_logps"}
    words |= {"previous_logps_1": "reference_first_logps", "previous_logps_2": "reference_second_logps"}
    for number, case in enumerate(cases(golden, "dno_soft.json")):
        logps = {ours: tensor(case["inputs"][theirs], requires_grad=True) for theirs, ours in words.items()}
        rates = {"first_win_rate": tensor(case["inputs"]["r1"]), "second_win_rate": tensor(case["inputs"]["r2"])}
        losses, logged = dno(**logps, **rates, **case["hyperparameters"])
        losses.sum().backward()
        got = {"losses": losses.detach(), "target": logged["target"]}
        got |= {f"grad_{theirs}": logps[ours].grad for theirs, ours in words.items()}
        for name, numbers in case["outputs"].items():
            torch.testing.assert_close(
                got[name], tensor(numbers), **TIGHT, msg=lambda text, n=name, i=number: f"case {i}, {n}: {text}"
            )


def test_masked_dpo_family(golden):
    """From log-probs of tokens: sums for most losses, means a side for `ipo` and `sigmoid_norm`, one mean for `sft`."""
    seen = set()
    for case in cases(golden, "trl_masked.json"):
        options = dict(case["hyperparameters"])
        name = options["loss_type"]
        seen.add(name)
        policy = torch.tensor(case["inputs"]["policy_token_logps"], dtype=torch.float64, requires_grad=True)
        reference = torch.tensor(case["inputs"]["reference_token_logps"], dtype=torch.float64)
        mask = torch.tensor(case["inputs"]["mask"], dtype=torch.float64)
        pairs = len(mask) // 2
        lengths = mask.sum(1) if name in ("ipo", "sigmoid_norm") else 1.0
        ours, theirs = (policy * mask).sum(1) / lengths, (reference * mask).sum(1) / lengths
        if name == "sft":
            losses = (-ours[:pairs].sum() / mask[:pairs].sum()).expand(pairs)
        else:
            options["loss_type"] = "sigmoid" if name == "sigmoid_norm" else name
            losses, _ = dpo(ours[:pairs], ours[pairs:], theirs[:pairs], theirs[pairs:], **options)
        losses.sum().backward()
        torch.testing.assert_close(
            losses.detach(), tensor(case["outputs"]["losses"]), **TIGHT, msg=lambda t, n=name: f"{n}: {t}"
        )
        expected = torch.tensor(case["outputs"]["grad_policy_token_logps"], dtype=torch.float64)
        torch.testing.assert_close(policy.grad, expected, **TIGHT, msg=lambda t, n=name: f"{n}: {t}")
    assert seen >= {"sigmoid", "ipo", "sppo_hard", "sigmoid_norm", "kto_pair", "bco_pair", "apo_zero", "sft"} - {
        "kto_pair"
    }


@pytest.mark.parametrize(
    "broken", [lambda p: p.mean(-1) - 0.5 / p.shape[-1], lambda p: (p.sum(-1) - 0.5) / (p.shape[-1] - 1)]
)
def test_win_rates_without_the_self_comparison_are_others(golden, broken):
    for case in cases(golden, "sppo_win_rates.json"):
        probability = np.array(case["outputs"]["probability"])
        best = np.array(case["outputs"]["chosen_index"])
        off = np.abs(broken(probability)[np.arange(len(best)), best] - np.array(case["outputs"]["chosen_probs_win"]))
        assert off.max() > 1e-2
