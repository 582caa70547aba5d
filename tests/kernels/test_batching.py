"""Cutting rows by tokens: nothing lost, nothing twice, limits kept, the longest first."""

from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from workbench.kernels import Group
from workbench.kernels.batching import microbatches, n_tokens


class Row(NamedTuple):
    group: Group


def test_tokens_of_a_row():
    group = Group([1, 2, 3], [[4], [5, 6]])
    assert n_tokens(group) == n_tokens(Row(group)) == 6
    assert n_tokens(("something", "else")) == 0


@given(st.lists(st.integers(1, 50), min_size=1), st.integers(1, 100), st.integers(0, 7), st.integers(1, 3))
def test_cutting(sizes, max_tokens, max_rows, at_least):
    parts = list(microbatches(range(len(sizes)), sizes, max_tokens=max_tokens, max_rows=max_rows, at_least=at_least))
    assert sorted(number for part in parts for number in part) == list(range(len(sizes)))
    assert [sizes[n] for part in parts for n in part] == sorted(sizes, reverse=True)
    for part in parts:
        if max_rows:
            assert len(part) <= max(max_rows, at_least)
        else:
            assert sum(sizes[n] for n in part) <= max_tokens or len(part) <= at_least
    assert all(len(part) >= at_least for part in parts[:-1])


def test_no_batch_could_take_its_neighbour():
    """Greedy: 3 + 3 fit into 6 and stay together."""
    assert list(microbatches(range(4), [3, 3, 3, 3], max_tokens=6)) == [[0, 1], [2, 3]]
