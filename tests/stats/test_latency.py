"""Latency: worked by hand, delays of words from sub-words and bytes, and what is refused."""

import math

import numpy as np
import pytest

from workbench import metrics
from workbench.models import bpe_tokenizer
from workbench.stats.latency import lag_at, lag_difference, latency, quality_at, word_delays, words_of


def test_by_hand():
    found = latency([1, 3, 4, 5, 7, 8, 8], 8, 7)
    assert pytest.approx((28 - 15 * 8 / 7) / 6) == found.AL
    assert pytest.approx(36 / 56) == found.AP
    assert pytest.approx((9 - 3 * 4 / 3) / 3) == latency([2, 3, 4], 4, 3).AL
    wait_1 = latency([1, 2, 3, 4], 4)
    assert (wait_1.AL, wait_1.LAAL, wait_1.DAL, wait_1.length_is_own) == (1, 1, 1, True)
    assert latency([3], 3, 1).AL == 3  # a source of one word, or an answer of one, has its latency too
    assert latency([1], 1, 1).AL == 1


def test_each_metric_by_its_name():
    delays = [1, 3, 4, 5, 7, 8, 8]
    whole = latency(delays, 8, 9)
    assert metrics.average_lagging(delays, 8, 9) == whole.AL
    assert metrics.length_adaptive_average_lagging(delays, 8, 9) == whole.LAAL
    assert metrics.average_proportion(delays, 8, 9) == whole.AP
    assert metrics.differentiable_average_lagging(delays, 8) == whole.DAL
    assert metrics.average_lagging([1, 2, 3, 4], 4) == 1
    with pytest.raises(ValueError, match="never fall"):
        metrics.average_lagging([2, 1], 4)


def test_the_length_that_lags_are_measured_against():
    short = latency([1, 2, 3, 4], 4, 8)
    assert pytest.approx((10 - 6 * 0.5) / 4) == short.AL
    assert latency([1, 2, 3, 4], 4, 8, use_reference=False).AL == 1
    assert latency([1, 2, 3, 4], 4, 0).length_is_own  # a reference without words is no reference
    long = latency([1, 2, 3, 4, 4, 4, 4, 4], 4, 4)
    assert long.LAAL > long.AL
    assert latency([1, 1, 1], 8, 1).AL < 0
    assert latency([4] * 8, 4, 4).AP > 1


@pytest.mark.parametrize("delays", [[0, 1], [2, 1], [1, 5], [1, math.nan]])
def test_impossible_delays_are_refused(delays):
    with pytest.raises(ValueError, match=r"sentence 3: delay \d is .*; delays start at 1, never fall"):
        latency(delays, 4, 2, index=3)


def test_nothing_has_no_latency():
    with pytest.raises(ValueError, match="sentence 2: latency needs a source word and a target word; got 0 and 1"):
        latency([1], 0, index=2)
    with pytest.raises(ValueError, match="got 4 and 0"):
        latency([], 4)


# -------------------------------------------------------------------------------------------------------------- words
@pytest.fixture(scope="module")
def tokenizer():
    return bpe_tokenizer(["the letter was found"], vocab_size=262)  # almost only bytes


def test_delays_of_words_from_bytes(tokenizer):
    """Every word has the delay of the token that completes it; counting sub-words would be another number."""
    text = "the café, naïve"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert len(ids) > len(text.split())
    delays = list(range(1, len(ids) + 1))
    words, found = word_delays(tokenizer.decode, ids, delays)
    assert words == text.split()
    for n, delay in enumerate(found):
        assert len(tokenizer.decode(ids[:delay]).split()) == n + 1
        assert tokenizer.decode(ids[:delay]).split()[n] == words[n]
    assert found[-1] == len(ids)
    constant, same = word_delays(tokenizer.decode, ids, [7] * len(ids))
    assert same == [7] * len(constant)


def test_a_character_counts_from_its_last_byte(tokenizer):
    ids = tokenizer("é", add_special_tokens=False).input_ids
    assert len(ids) == 2
    assert word_delays(tokenizer.decode, ids, [1, 4]) == (["é"], [4])


def test_scripts_without_spaces_need_characters(tokenizer):
    with pytest.raises(ValueError, match=r'is CJK text, where spaces do not divide words.*unit="character"'):
        words_of("我们 找到了")
    assert words_of("我们 找", "character") == ["我", "们", "找"]
    ids = tokenizer("我们", add_special_tokens=False).input_ids
    words, delays = word_delays(tokenizer.decode, ids, list(range(1, len(ids) + 1)), "character")
    assert (words, delays) == (["我", "们"], [3, 6])


def test_ambiguous_or_missing_delays_are_refused():
    with pytest.raises(ValueError, match="3 delays for 2 tokens"):
        word_delays(str, [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="delays of words are ambiguous with this tokenizer"):
        word_delays(lambda ids: "ab" if len(ids) == 1 else "xb", [1, 2], [1, 2])
    assert word_delays(lambda ids: "", [], []) == ([], [])


# ------------------------------------------------------------------------------------------------------------- curves
CURVE = [
    {"reader": "confidence", "AL": lag, "quality": q} for lag, q in ((1.0, 0.2), (2.0, 0.6), (3.0, 0.5), (4.0, 1.0))
]


def test_quality_at_equal_latency():
    assert quality_at(CURVE, 1.5) == pytest.approx(0.4)
    assert quality_at(CURVE, 3.0) == pytest.approx(0.6)  # reading more never counts against
    assert quality_at(CURVE, 0.5) == 0.0  # was not reached
    assert quality_at(CURVE, 9.0) == 1.0


def test_latency_at_equal_quality():
    assert lag_at(CURVE, 0.2, never=8.0) == 1.0
    assert lag_at(CURVE, 0.4, never=8.0) == pytest.approx(1.5)
    assert lag_at(CURVE[:3], 0.9, never=8.0) == 8.0
    later = [{**p, "AL": p["AL"] + 0.5} for p in CURVE]
    assert lag_difference(later, CURVE) == pytest.approx(0.5)
    assert np.isfinite(lag_difference(CURVE[:2], CURVE))
