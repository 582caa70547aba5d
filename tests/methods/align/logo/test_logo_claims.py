"""Verdicts of LOGO: what a method that works shows, and what each kind of broken one loses. Made-up measurements, no
training."""

import numpy as np
import pytest

from workbench.methods.align.logo import method as logo


class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


CLEAN = {
    "retrieval_6": 1.0,
    "retrieval_12": 1.0,
    "retrieval_24": 0.8,
    "retrieval_44": 0.5,
    "recall_6": 1.0,
    "recall_12": 1.0,
    "quality": 0.8,
}
MISALIGNED = {**CLEAN, "recall_6": 0.5, "recall_12": 0.4, "quality": 0.3}
LONG = {"retrieval_24": 0.87, "retrieval_44": 0.6}
TOLD = {"recall_6": 0.9, "recall_12": 0.85, "quality": 0.75}
FALLEN = {"retrieval_6": 0.4, "retrieval_12": 0.4, "recall_6": 0.2, "recall_12": 0.2, "quality": 0.15}
GOOD = {
    "logo": LONG,
    "logo_real": {},
    "logo_unpassed": {},
    "sft": LONG,
    "sft_real": {},
    "sft_unpassed": {},
    "swapped": FALLEN,
    "b_logo": TOLD,
    "b_one": {**TOLD, "quality": 0.7},
    "b_no_sft": {**TOLD, "quality": 0.72},
    "b_copied": {**TOLD, "quality": 0.7},
    "b_sft": {**TOLD, "quality": 0.7},
    "b_swapped": FALLEN,
    "b_shuffled": FALLEN,
}


def told(**arms):
    """Made-up results of five seeds: what each arm ends with, beside the start that it has, and a little noise."""
    rng = np.random.default_rng(0)

    def noisy(numbers):
        return {key: value + rng.normal(0, 0.005) for key, value in numbers.items()}

    def both(arm, change):
        start = MISALIGNED if arm.startswith("b_") else CLEAN
        return [noisy(start), noisy({**start, **change})]

    return [{"arms": {arm: both(arm, change) for arm, change in arms.items()}} for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    found = logo.claims(Told(), told(**GOOD)).verdicts()
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C2", "C3 baselines", "C4", "C8"}
    assert {id for id, verdict in found.items() if verdict == "not shown"} == set()


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"logo": {}}, {"C3 logo 24", "C3 logo 44"}),  # positions not passed
        ({"logo_unpassed": LONG}, {"C3 logo 24"}),  # positions do not matter
        ({"b_logo": FALLEN}, {"C1", "C1 base 6", "C5", "C7"}),  # roles swapped
        ({"b_shuffled": TOLD}, {"C1 base 6", "C5"}),  # labels do not matter
        ({"b_one": TOLD}, {"C7"}),
        ({"b_no_sft": {**TOLD, "quality": 0.9}}, {"C7"}),  # the SFT term harms
        ({"logo": {**LONG, "retrieval_6": 0.9}}, {"C6"}),
        ({"b_logo": {**TOLD, "retrieval_6": 0.8}}, {"C5"}),  # retrieval fell
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    found = logo.claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {found[id] for id in lost} == {"not shown"}
