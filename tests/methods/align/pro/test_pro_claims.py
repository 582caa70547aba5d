"""Verdicts of PRO: what a method that works shows, and what each kind of broken one loses. Made-up measurements, no
training."""

import numpy as np
import pytest

from workbench.methods.align.pro import method as pro


class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


QUALITY = {
    "pro_2": 0.3,
    "pro_3": 0.35,
    "pro_5": 0.4,
    "sft_2": -0.4,
    "bon_5": 0.0,
    "rrhf_2": -0.2,
    "rrhf_5": 0.1,
    "coh_2": -0.2,
    "plain_5": 0.2,
    "no_sft_5": 0.2,
    "shuffled_2": -0.6,
    "shuffled_3": -0.6,
    "shuffled_5": -0.6,
    "reversed_5": -1.8,
}


def told(**changes):
    rng = np.random.default_rng(2)

    def arm(name, value):
        noise = rng.normal(0, 0.01)
        order = {"pro": 0.9, "shu": 0.3, "rev": 0.02}.get(name[:3], 0.5)
        numbers = {
            "quality": value + noise,
            "greedy": value + noise,
            "agreement": order + noise,
            "bleu_characters": -value,
            "bleu_words": -value,
            "bleu_right": value,
        }
        return [{**numbers, "quality": -0.85, "agreement": 0.05}, numbers]

    return [{"arms": {name: arm(name, value) for name, value in {**QUALITY, **changes}.items()}} for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    verdicts = pro.claims(Told(), told()).verdicts()
    assert {id for id, verdict in verdicts.items() if verdict == "needs full scale"} == {"C3", "C5", "C6"}
    assert {id for id, verdict in verdicts.items() if verdict == "not shown"} == set()
    assert {
        "C1",
        "C1 rrhf",
        "C1 coh",
        "C2",
        "C2 rrhf",
        "C4",
        "C7",
        "C8 sft",
        "C8 temperature",
        "W1",
        "W2",
        "W3",
    } <= set(verdicts)


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"pro_2": -0.4}, "C1"),
        ({"shuffled_2": 0.3}, "C1"),  # the order of the scores does not matter
        ({"pro_5": 0.0}, "C2"),
        ({"plain_5": 0.4}, "C8 temperature"),
        ({"pro_5": 0.2}, "C7"),
        ({"reversed_5": -0.8}, "W3"),
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    assert pro.claims(Told(), told(**broken)).verdicts()[lost] == "not shown"
