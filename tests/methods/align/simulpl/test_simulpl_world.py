"""Clauses: grammar, styles, the oracle's delays, and a start that is cached and learns the offline style."""

import numpy as np
import pytest

from workbench.methods.align.simulpl.world import LOWEST_AL, ORACLE_DELAYS, Clauses
from workbench.stats.latency import latency

WORLD = Clauses(n_pairs=30, n_test=10, start_steps=3, width=16, layers=1)


def test_styles_by_hand():
    row = WORLD.row([1, 0, 2, 3, 4, 1, 5, 6])
    assert row["source"] == "s1 f0 o2 v3 s4 f1 o5 v6"
    assert row["chosen"] == "s1' o2' v3' s4' o5' v6'"
    assert row["rejected"] == "s1' v3' f0' o2' s4' v6' f1' o5'"
    best, offline = (WORLD.aspects(row, row[side]) for side in ("chosen", "rejected"))
    assert (best.exact, best.monotonicity, best.key_points, best.words_per_clause) == (1, 1, 1, 3)
    assert (offline.exact, offline.words_per_clause) == (0, 4)
    assert offline.monotonicity == pytest.approx(13 / 15)  # each clause has its verb before its object
    fillers = WORLD.aspects(row, "f0' f1'")
    assert fillers.key_points == 0.0


def test_the_oracle_reads_what_it_must_and_no_more():
    row = WORLD.row([1, 0, 2, 3, 4, 1, 5, 6])
    source, written = row["source"].split(), row["chosen"].split()
    for word, delay in zip(written, ORACLE_DELAYS, strict=False):
        assert f"{source[delay - 1]}'" == word  # the word that was just read
    assert pytest.approx(1.81, abs=0.005) == LOWEST_AL
    for i in range(len(ORACLE_DELAYS)):
        later = np.maximum.accumulate([d + (n == i) for n, d in enumerate(ORACLE_DELAYS)])
        if later.max() <= 8:
            assert latency(later.tolist(), 8, 7).AL >= LOWEST_AL


def test_pairs_are_seeded_and_split():
    assert WORLD.pairs("train", 1) == WORLD.pairs("train", 1) != WORLD.pairs("train", 2)
    assert WORLD.pairs("test", 1) == WORLD.pairs("test", 2)
    assert (len(WORLD.pairs("train", 0)), len(WORLD.pairs("test", 0))) == (30, 10)
    assert WORLD.prompt(["s1", "f0"]) == "s1 f0 |"


def test_starts_are_cached(runs_root):
    WORLD.start(0)
    (folder,) = (runs_root / ".cache").glob("clauses-start-*")
    stamp = (folder / "model.safetensors").stat().st_mtime_ns
    WORLD.start(0)
    assert (folder / "model.safetensors").stat().st_mtime_ns == stamp
