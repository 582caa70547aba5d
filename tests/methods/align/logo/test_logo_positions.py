"""Synthetic positions: regions, covering windows, beacons, the product of choices, and what does not fit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.methods.align.logo.positions import covering_starts, reach, region_length, spread


@given(st.integers(1, 60), st.integers(0, 300))
def test_covering_windows_cover_their_region(n_tokens, more):
    region = n_tokens + more
    starts = covering_starts(n_tokens, region)
    assert starts == sorted(set(starts))
    assert len(starts) == -(-region // n_tokens)
    covered = {start + i for start in starts for i in range(n_tokens)}
    assert covered == set(range(region)) if len(starts) > 1 or region == n_tokens else covered <= set(range(region))


def layout(**changes):
    options = {"window": 112, "start": 1, "qa": 7, "n_question": 4, "n_answer": 3, "rng": np.random.default_rng(0)}
    return spread([4] * 6, **{**options, **changes})


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=6),
    room=st.integers(10, 60),
    start=st.integers(0, 5),
    beacon=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_variant_keeps_the_rules(lengths, room, start, beacon, seed):
    qa, n = 9, len(lengths)
    window = start + qa + n * room + seed  # some positions are left over
    sizes = {"window": window, "start": start, "qa": qa, "n_question": 5, "n_answer": 4, "beacon": beacon}
    variants = spread(lengths, **sizes, rng=np.random.default_rng(seed))
    region = (window - start - qa) // n
    assert 1 <= len(variants) <= 2**n
    assert len({tuple(v) for v in variants}) == len(variants)
    for positions in variants:
        assert len(positions) == start + sum(lengths) + 5
        assert all(a < b for a, b in pairwise(positions))
        assert positions[:start] == list(range(start))
        place = start
        for i, length in enumerate(lengths):
            chunk = positions[place : place + length]
            assert start + i * region <= chunk[0]
            assert chunk[-1] <= start + (i + 1) * region - 1
            body = chunk[:-1] if beacon else chunk
            assert body == list(range(body[0], body[0] + len(body)))  # consecutive inside a chunk
            if beacon:
                assert chunk[-1] == start + (i + 1) * region - 1  # the last index of the region
            place += length
        assert positions[place:] == list(range(window - qa + 1, window - qa + 1 + 5))


def test_the_small_experiment_by_hand():
    """Window 112, one start token, qa 7, six regions of 17, windows of 4 tokens at 0, 3, 6, 9, 13; 2^6 variants."""
    assert region_length(112, 6, start=1, qa=7, n_tokens=32) == 17
    assert covering_starts(4, 17) == [0, 3, 6, 9, 13]
    variants = layout()
    assert len(variants) == 64
    assert all(v[-4:] == [106, 107, 108, 109] for v in variants)
    assert len(layout(max_variants=5)) == 5
    assert len(layout(choices=1)) == 1


def test_the_last_chunk_stays_where_the_grid_divides_evenly():
    """Official code drops it there."""
    (positions,) = spread(
        [4, 4], window=20, start=0, qa=4, n_question=2, n_answer=2, rng=np.random.default_rng(0), choices=1
    )
    assert len(positions) == 4 + 4 + 2
    assert 8 <= positions[4] <= positions[7] <= 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 8}, "a window of 8 positions has no room for chunks behind 1 positions of the start and 7"),
        ({"window": 30}, "a window of 30 positions is not larger than the text of 32 tokens"),
        ({"window": 33, "qa": 12}, "a chunk of 4 tokens does not fit into its region of 3 positions"),
        ({"n_question": 6}, r"question and answer have 6 \+ 3 tokens but only 7 positions; raise qa"),
    ],
)
def test_what_does_not_fit_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        layout(**changes)


def test_no_chunks():
    with pytest.raises(ValueError, match="at least one chunk"):
        region_length(10, 0, start=0, qa=1, n_tokens=1)
    with pytest.raises(ValueError, match="at least one token; got 0"):
        covering_starts(0, 5)


def test_what_spreading_saves():
    found = reach([[0, 5, 9], [0, 5, 29]], [[2, 3], [2, 3]])
    assert found["real tokens"] == 6
    assert found["last position"] == 22
    assert found["tokens with answers apart"] == 11
    assert found["tokens with the prompt once"] == 8
    assert found["positions a real token"] == pytest.approx(23 / 6)
