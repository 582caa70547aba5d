"""Level C: the planted directions of the grid."""

import pandas as pd

from workbench.methods.confidence.relative_confidence.sensitivity import ELO_K, NOISES, OPPONENTS, TIES, sensitivity
from workbench.methods.confidence.relative_confidence.world import KnownQuestions


def test_every_setting_is_there_and_the_planted_directions_hold():
    table = pd.DataFrame(row for seed in range(6) for row in sensitivity(KnownQuestions(), seed))
    mean = table.groupby(["varied", "value", "scorer"])["auc"].mean()
    for varied, values in (("opponents", OPPONENTS), ("judge noise", NOISES), ("share of ties", TIES)):
        assert sorted(mean[varied].index.get_level_values(0).unique()) == sorted(values)
    assert mean["opponents", 15, "bt"] > mean["opponents", 2, "bt"]
    assert mean["judge noise", 0.35, "bt"] > mean["judge noise", 2.8, "bt"]
    assert mean["share of ties", 0.0, "bt"] > mean["share of ties", 0.6, "bt"]
    assert mean["Elo K", 32, "elo"] > mean["Elo K", 400, "elo"]
    assert set(mean["Elo K"].index.get_level_values(0)) == set(ELO_K)
    assert sensitivity(KnownQuestions(), 3) == sensitivity(KnownQuestions(), 3)
