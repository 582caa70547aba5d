"""Verdicts of SimulPL: what a method that works shows, and what each kind of broken one loses. Made-up measurements, no
training."""

import numpy as np
import pytest

from workbench.methods.align.simulpl import method as simulpl


class Told:
    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""
    config = simulpl.Config.at("tiny")


def point(reader, value, lag, quality):
    return {"reader": reader, "value": value, "AL": lag, "quality": quality}


def told(rng, **changes):
    """What a run looks like in which every claim holds."""
    ends = {
        "msft": (0.6, 2.0),
        "simul_dpo": (1.0, 1.81),
        "alpha_0": (1.0, 1.82),
        "alpha_5": (0.1, 1.47),
        "scrambled": (1.0, 1.85),
        "dpo": (0.8, 3.2),
        "swapped": (0.0, 1.0),
        "shuffled": (0.6, 2.0),
        "dpo_shuffled": (0.6, 2.0),
        "preferred": (1.0, 1.81),
        "offline": (0.0, 3.0),
        "ipo": (1.0, 1.9),
        "ipo_text": (0.9, 3.0),
        "ipo_shuffled": (0.6, 2.0),
        "ipo_text_shuffled": (0.6, 2.0),
        **changes,
    }
    jitter = lambda: float(rng.normal(0, 0.01))  # noqa: E731
    arms, curves = {}, {}
    for name, (quality, lag) in ends.items():
        quality = quality if quality in (0.0, 1.0) else quality + jitter()
        lag = lag + abs(jitter())
        preferred = name in ("simul_dpo", "alpha_0")
        arms[name] = [
            {
                "quality": quality,
                "AL": lag,
                "monotonicity": 1.0 if preferred else 0.95 + jitter(),
                "key_points": 1.0 if preferred else 0.97 + jitter(),
                "length": 7.0 if preferred else 7.8 + jitter(),
            }
        ]
        curves[name] = [point("confidence", 0.5, lag - 1, quality / 2), point("confidence", 0.7, lag, quality)]
        curves[name] += [point("random", 0.5, 2.0, 0.3 + jitter())] if name == "simul_dpo" else []
        curves[name] += [point("wait_k", 2, 1.6, 0.0), point("wait_k", 3, 2.64, 1.0)] if name == "preferred" else []
    return {"arms": arms, "curves": curves}


def verdicts(**changes):
    return simulpl.claims(Told(), [told(np.random.default_rng(seed), **changes) for seed in range(5)]).verdicts()


def test_claims_that_hold_are_shown():
    found = verdicts()
    assert found.pop("C5") == "needs full scale"
    assert set(found.values()) == {"shown in small"}, found
    assert {"C1", "C2", "C2 alpha", "C3", "C4", "C4 fixed AL", "C4 order", "C4 key points", "C4 length", "C6"} == set(
        found
    )


@pytest.mark.parametrize(
    ("changes", "claim"),
    [
        ({"dpo": (1.0, 1.7)}, "C2"),
        ({"dpo": (0.8, 1.9)}, "C3"),
        ({"swapped": (0.2, 1.8)}, "C4"),
        ({"simul_dpo": (0.6, 2.0)}, "C1"),
        ({"alpha_5": (0.9, 1.83)}, "C2 alpha"),
        ({"alpha_5": (1.0, 1.47)}, "C2 alpha"),  # a free lunch is a bug
        ({"ipo": (0.9, 3.1)}, "C6"),
    ],
)
def test_claims_that_fail_are_not_shown(changes, claim):
    assert verdicts(**changes)[claim] == "not shown"
