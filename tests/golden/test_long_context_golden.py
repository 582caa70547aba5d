"""LOGO: loss with gradients, TRL's SimPO as the case M = 1, covering windows; what its released slices give is not
followed.
LongPO: loss with gradients from token log-probs, several turns."""

import pytest
import torch

from workbench import objectives
from workbench.methods.align.logo.positions import covering_starts

TIGHT = {"rtol": 1e-6, "atol": 1e-6}


def double(values, **options):
    return torch.tensor(values, dtype=torch.float64, **options)


def logo_of(case, **changes):
    """Their token log-probs through our objective, without the SFT term; losses and the leaves for gradients."""
    given, sides = case["inputs"], ("chosen", "rejected1", "rejected2")
    leaves = {side: double(given[f"token_logps_{side}"], requires_grad=True) for side in sides}
    masks = {side: double(given[f"mask_{side}"]) for side in sides}
    means = {side: (leaves[side] * masks[side]).sum(-1) / masks[side].sum(-1) for side in sides}
    options = {**case["hyperparameters"], "sft_weight": 0.0, **changes}
    rejected = torch.stack([means["rejected1"], means["rejected2"]], 1)
    losses, logged = objectives.logo(means["chosen"], rejected, **options)
    return losses, logged, leaves, means


def test_logo_values_and_gradients(golden):
    cases = [case for case in golden("logo.json")["cases"] if "token_logps_chosen" in case["inputs"]]
    assert len(cases) >= 9
    for case in cases:
        losses, logged, leaves, means = logo_of(case)
        losses.mean().backward()
        wanted = case["outputs"]
        got = {"losses": losses, "loss": losses.mean()}
        got |= {**{k: logged[k] for k in ("chosen_rewards", "rejected_rewards")}}
        got |= {f"avg_logp_{side}": mean for side, mean in means.items()}
        got |= {f"grad_{side}": leaf.grad for side, leaf in leaves.items()}
        assert set(got) == set(wanted)
        for name, value in got.items():
            torch.testing.assert_close(
                value.detach(), double(wanted[name]), **TIGHT, msg=lambda t, c=case, n=name: f"{c['id']} {n}: {t}"
            )


@pytest.mark.parametrize("mistake", ["wrong sign of gamma", "sum over tokens", "mean of probabilities"])
def test_logo_mistakes_differ(golden, mistake):
    """What the specification lists as wrong is not within the tolerance."""
    case = next(case for case in golden("logo.json")["cases"] if case["id"] == "random_22")
    if mistake == "wrong sign of gamma":
        _, _, _, means = logo_of(case)
        beta, ratio = case["hyperparameters"]["beta"], case["hyperparameters"]["gamma_beta_ratio"]
        rejected = (means["rejected1"] + means["rejected2"]) / 2
        losses = -torch.nn.functional.logsigmoid(beta * (means["chosen"] - rejected + ratio))
    else:
        given = case["inputs"]
        total = {
            s: (double(given[f"token_logps_{s}"]) * double(given[f"mask_{s}"]))
            for s in ("chosen", "rejected1", "rejected2")
        }
        n = {s: double(given[f"mask_{s}"]).sum(-1) for s in total}
        if mistake == "sum over tokens":
            means = {s: total[s].sum(-1) for s in total}
            rejected = torch.stack([means["rejected1"], means["rejected2"]], 1)
        else:
            means = {s: total[s].sum(-1) / n[s] for s in total}
            rejected = ((means["rejected1"].exp() + means["rejected2"].exp()) / 2).log()[:, None]
        losses, _ = objectives.logo(means["chosen"], rejected, sft_weight=0.0, **case["hyperparameters"])
    assert (losses.detach() - double(case["outputs"]["losses"])).abs().max() > 1e-2


def test_logo_with_one_rejected_answer_is_trls_simpo(golden):
    for case in [case for case in golden("logo.json")["cases"] if case["id"].startswith("trl_simpo")]:
        given, how, wanted = case["inputs"], case["hyperparameters"], case["outputs"]
        losses, logged = objectives.logo(
            double(given["avg_logp_chosen"]),
            double(given["avg_logp_rejected"])[:, None],
            beta=how["beta"],
            gamma_beta_ratio=how["simpo_gamma"] / how["beta"],
            label_smoothing=how["label_smoothing"],
            sft_weight=0.0,
        )
        torch.testing.assert_close(losses, double(wanted["losses"]), **TIGHT)
        torch.testing.assert_close(logged["chosen_rewards"], double(wanted["chosen_rewards"]), **TIGHT)
        torch.testing.assert_close(logged["rejected_rewards"], double(wanted["rejected_rewards"]), **TIGHT)


def test_released_slices_are_understood_and_not_followed(golden):
    """Their loss is the mean over [r1, (r1 + r2) / 2] taken one at a time; ours takes the mean of r1 and r2."""
    quirks = [case for case in golden("logo.json")["cases"] if case["id"].startswith("quirk")]
    assert quirks
    for case in quirks:
        w, r1, r2 = (double(case["inputs"][f"avg_logp_{side}"]) for side in ("chosen", "rejected1", "rejected2"))
        theirs = [
            objectives.logo(w, r[:, None], sft_weight=0.0, **case["hyperparameters"])[0] for r in (r1, (r1 + r2) / 2)
        ]
        assert torch.cat(theirs).mean().item() == pytest.approx(case["outputs"]["loss"], abs=1e-6)
        ours = objectives.logo(w, torch.stack([r1, r2], 1), sft_weight=0.0, **case["hyperparameters"])[0].item()
        assert ours != pytest.approx(case["outputs"]["loss"], abs=1e-2)


def test_covering_windows(golden):
    cases = [case for case in golden("logo.json")["cases"] if case["id"].startswith("covering")]
    assert cases
    for case in cases:
        starts = covering_starts(case["inputs"]["n_tokens"], case["inputs"]["region_length"])
        assert starts == case["outputs"]["window_starts"]
        assert [start + case["inputs"]["n_tokens"] - 1 for start in starts] == case["outputs"]["window_last"]


# ------------------------------------------------------------------------------------------------------------ longpo
def longpo_of(case, *, averaged=False, reference_shift=0, nll_of="chosen"):
    given, how = case["inputs"], case["hyperparameters"]
    leaves = {
        side: double([given[f"policy_token_logps_{side}_long"]], requires_grad=True) for side in ("chosen", "rejected")
    }
    answers = {side: double([given[f"answer_mask_{side}"]]) for side in leaves}
    reference = {}
    for side in leaves:
        logps, mask = double(given[f"ref_token_logps_{side}_short"]), double(given[f"ref_mask_{side}"])
        mask = mask.roll(reference_shift, 0)
        reference[side] = (logps * mask).sum()[None] / (len(logps) if averaged else 1)
    policy = {side: (leaves[side] * answers[side]).sum(-1) for side in leaves}
    losses, logged = objectives.longpo(
        policy["chosen"],
        policy["rejected"],
        reference["chosen"],
        reference["rejected"],
        chosen_token_nll=-leaves[nll_of].mean(-1),
        beta=how["beta"],
        lam=how["dpo_lambda"],
    )
    return losses, logged, leaves, policy, reference


def test_longpo_values_and_gradients(golden):
    cases = golden("longpo.json")["cases"]
    assert len(cases) == 9
    for case in cases:
        losses, logged, leaves, policy, reference = longpo_of(case)
        losses.sum().backward()
        got = {
            "total": losses.sum(),
            "losses": logged["preference_losses"],
            "nll": logged["nll"],
            "chosen_rewards": logged["chosen_rewards"],
            "rejected_rewards": logged["rejected_rewards"],
            **{f"policy_{side}": value for side, value in policy.items()},
            **{f"ref_{side}": value for side, value in reference.items()},
            **{f"grad_policy_{side}": leaf.grad[0] for side, leaf in leaves.items()},
        }
        assert set(got) == set(case["outputs"])
        for name, value in got.items():
            wanted = double(case["outputs"][name])
            torch.testing.assert_close(
                value.detach().reshape(wanted.shape),
                wanted,
                **TIGHT,
                msg=lambda t, c=case, n=name: f"{c['id']} {n}: {t}",
            )


@pytest.mark.parametrize("mistake", [{"averaged": True}, {"reference_shift": 1}, {"nll_of": "rejected"}])
def test_longpo_mistakes_differ(golden, mistake):
    """Turns averaged instead of summed, reference turns misaligned, the NLL of the rejected text."""
    case = next(case for case in golden("longpo.json")["cases"] if case["hyperparameters"]["n_turns"] == 4)
    losses, *_ = longpo_of(case, **mistake)
    assert abs(losses.item() - case["outputs"]["total"]) > 1e-3
