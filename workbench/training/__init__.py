"""Weights move: the loop, its steps and rounds, rows of pairs, the reference, rewards."""

from workbench.training.loop import TrainConfig, train
from workbench.training.reference import PairRow, pair_rows, reference_logps
from workbench.training.rounds import Round, check_start, iterate
from workbench.training.steps import (
    Step,
    SupervisedStep,
    pair_numbers,
    preference_step,
    supervised_step,
)

__all__ = [
    "PairRow",
    "Round",
    "Step",
    "SupervisedStep",
    "TrainConfig",
    "check_start",
    "iterate",
    "pair_numbers",
    "pair_rows",
    "preference_step",
    "reference_logps",
    "supervised_step",
    "train",
]
