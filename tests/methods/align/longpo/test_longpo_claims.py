"""Verdicts of LongPO: what a method that works shows, and what each kind of broken one loses. Made-up measurements, no
training."""

import math

import numpy as np
import pytest

from workbench.methods.align.longpo import method as longpo


class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""


START = {
    "retrieval_6": 1.0,
    "retrieval_40": 0.5,
    "retrieval_60": 0.4,
    "second_task": 1.0,
    "margin": -48.0,
    "reward_accuracy": 0.0,
    "short_to_long_kl": 2.8,
    "start_loss": 4.6,
}
BETTER = {"retrieval_40": 0.85, "retrieval_60": 0.75, "margin": -21.0, "short_to_long_kl": 0.4}
GOOD = {
    "longpo": [BETTER],
    "sft": [BETTER],
    "rejected": [{}],
    "lam1": [{**BETTER, "margin": -15.0}],
    "swapped": [{**BETTER, "margin": -26.0}],
    "dpo": [{"retrieval_40": 0.2, "start_loss": math.log(2)}],
    "alone": [{"retrieval_40": 0.2, "retrieval_6": 0.5}],
    "sft_fast": [{**BETTER, "second_task": 0.1}],
    "iterated": [BETTER, {**BETTER, "retrieval_60": 0.9}],
    "iterated_off": [BETTER, BETTER],
}


def told(**arms):
    """Made-up results of five seeds: what each arm has after every round, and a little noise."""
    rng = np.random.default_rng(0)

    def noisy(change):
        found = {key: value + rng.normal(0, 0.004) for key, value in {**START, **change}.items()}
        return found if change.get("start_loss") is None else {**found, "start_loss": change["start_loss"]}

    return [{"arms": {arm: [noisy({}), *map(noisy, rounds)] for arm, rounds in arms.items()}} for _ in Told.seeds]


def test_verdicts_of_a_method_that_works():
    found = longpo.claims(Told(), told(**GOOD)).verdicts()
    assert {id for id, verdict in found.items() if verdict == "needs full scale"} == {"C1", "C2", "C6"}
    assert {id for id, verdict in found.items() if verdict == "not shown"} == set()


@pytest.mark.parametrize(
    ("broken", "lost"),
    [
        ({"longpo": [{}]}, {"C1 gain", "C7 KL"}),
        ({"rejected": [BETTER]}, {"C1 gain", "C7 KL"}),  # its long-context answers would do
        ({"longpo": [{**BETTER, "second_task": 0.8}]}, {"C3 second"}),
        ({"longpo": [{**BETTER, "retrieval_6": 0.9}]}, {"C3 short"}),
        ({"sft": [{**BETTER, "second_task": 0.1}]}, {"C4"}),  # it forgets at any rate
        ({"iterated_off": GOOD["iterated"]}, {"C5"}),
        ({"dpo": [{"retrieval_40": 0.6, "start_loss": math.log(2)}]}, {"C7 dpo"}),
        ({"lam1": GOOD["swapped"]}, {"C8"}),  # roles swapped
        ({"longpo": [{**BETTER, "start_loss": math.log(2)}]}, {"C9"}),  # reference reads the long text
    ],
)
def test_verdicts_of_a_broken_method(broken, lost):
    found = longpo.claims(Told(), told(**{**GOOD, **broken})).verdicts()
    assert {found[id] for id in lost} == {"not shown"}
