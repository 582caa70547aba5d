"""Latency of simultaneous translation: average lagging and its relatives, and delays of words from delays of tokens.

A delay d_i is the number of source words that were read when target word i was written. S is the number of source
words, H that of the words written, R that of the reference's words.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

Unit = Literal["word", "character"]
# scripts that do not divide words by spaces
_NO_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


class Latency(NamedTuple):
    """Latency of one sentence, in source words (AP: a share).

    `length_is_own` is True where there was no reference length, so that R was the length of what was written.
    """

    AL: float
    LAAL: float
    AP: float
    DAL: float
    length_is_own: bool


def latency(
    delays: Sequence[float],
    source_length: int,
    reference_length: int | None = None,
    *,
    use_reference: bool = True,
    index: int = 0,
) -> Latency:
    """Average lagging, its length-adaptive form, average proportion and differentiable average lagging.

    - AL = mean over i <= T of d_i - (i-1) S/R, T the first i with d_i >= S, else H; d_1 where d_1 > S (Ma 2019)
    - LAAL: AL with max(H, R) for R (Papi 2022)
    - AP = sum of d_i / (S R) (Cho and Esipova 2016)
    - DAL = mean of d'_i - (i-1) S/H with d'_1 = d_1, d'_i = max(d_i, d'_(i-1) + S/H) (Cherry and Foster 2019)

    AL may be negative, and AP above 1, where too much is written.

    Args:
        delays: one a target word, at least 1, not decreasing, at most `source_length`.
        source_length: S, words.
        reference_length: R, words; None or 0 takes H and says so.
        use_reference: False takes H for R.
        index: of the sentence, for messages.

    Raises:
        ValueError: no target word, no source word, or delays that no translator can have; the sentence is named.

    Source: facebookresearch/SimulEval, simuleval/evaluator/scorers/latency_scorer.py.
    """
    written = len(delays)
    if source_length < 1 or written < 1:
        got = f"{source_length} and {written}"
        raise ValueError(f"sentence {index}: latency needs a source word and a target word; got {got}")
    for place, (before, now) in enumerate(zip([1, *delays], delays, strict=False)):
        if not before <= now <= source_length:
            rule = f"start at 1, never fall (here from {before}) and are at most the {source_length} source words"
            raise ValueError(f"sentence {index}: delay {place} is {now}; delays {rule}")
    given = (use_reference and reference_length) or 0
    reference = given or written
    al, laal = (_lagging(delays, source_length, length) for length in (reference, max(written, reference)))
    share, step, earlier, total = sum(delays) / (source_length * reference), source_length / written, 0.0, 0.0
    for i, delay in enumerate(delays):
        earlier = max(delay, earlier + step) if i else float(delay)
        total += earlier - i * step
    return Latency(al, laal, share, total / written, not given)


def average_lagging(delays: Sequence[float], source_length: int, reference_length: int | None = None) -> float:
    """AL of one sentence, in source words; see `latency` for the four metrics, their arguments and what is refused."""
    return latency(delays, source_length, reference_length).AL


def length_adaptive_average_lagging(
    delays: Sequence[float], source_length: int, reference_length: int | None = None
) -> float:
    """LAAL of one sentence, in source words: AL that does not reward writing too much; see `latency`."""
    return latency(delays, source_length, reference_length).LAAL


def average_proportion(delays: Sequence[float], source_length: int, reference_length: int | None = None) -> float:
    """AP of one sentence: mean share of the source that was read when a word was written; see `latency`."""
    return latency(delays, source_length, reference_length).AP


def differentiable_average_lagging(delays: Sequence[float], source_length: int) -> float:
    """DAL of one sentence, in source words: every word costs at least S/H; needs no reference; see `latency`."""
    return latency(delays, source_length).DAL


def _lagging(delays: Sequence[float], source_length: int, target_length: int) -> float:
    if delays[0] > source_length:
        return float(delays[0])
    last = next((i for i, delay in enumerate(delays) if delay >= source_length), len(delays) - 1)
    step = source_length / target_length
    return sum(delay - i * step for i, delay in enumerate(delays[: last + 1])) / (last + 1)


# ------------------------------------------------------------------------------------------------------------- words
def words_of(text: str, unit: Unit = "word") -> list[str]:
    """The units in which delays are counted: words between spaces, or characters without spaces.

    Raises:
        ValueError: words were asked for in a script that does not divide them by spaces.
    """
    if unit == "character":
        return [character for character in text if not character.isspace()]
    scripts = (unicodedata.name(character, "").split(" ")[0] for character in text if ord(character) > 0x0DFF)
    if script := next((script for script in scripts if script in _NO_SPACES), ""):
        why = "where spaces do not divide words, so delays cannot be counted in words"
        remedy = 'use unit="character", or put spaces between words with a segmenter first'
        raise ValueError(f"{text[:30]!r} is {script} text, {why}; {remedy}")
    return text.split()


def word_delays(
    decode: Callable[[Sequence[int]], str], ids: Sequence[int], delays: Sequence[int], unit: Unit = "word"
) -> tuple[list[str], list[int]]:
    """Words of a text that was written token by token, and the delay of each: that of the token that completes it.

    A token may be a part of a word or of a character (byte-level tokenizers), which counts when it is complete.

    Args:
        decode: token ids to text; the text of the first tokens must be the beginning of the text of all.
        ids, delays: tokens and how many source words were read before each.

    Raises:
        ValueError: another number of delays than tokens; a script without spaces with unit "word"; a text that changes
            backwards as tokens are added, so that no token completes a word.
    """
    if len(ids) != len(delays):
        raise ValueError(f"{len(delays)} delays for {len(ids)} tokens; every written token has one")
    text = decode(ids)
    delay_of: list[int] = []  # of each character
    for n, delay in enumerate(delays, start=1):
        so_far = decode(ids[:n])
        whole = so_far if n == len(ids) else so_far.rstrip("\ufffd")
        if not text.startswith(whole):
            read = f"the first {n} tokens read {whole[-30:]!r} alone and otherwise in {text[:60]!r}"
            raise ValueError(f"{read}: delays of words are ambiguous with this tokenizer")
        delay_of += [delay] * (len(whole) - len(delay_of))
    words_of(text, unit)  # refuses scripts without spaces
    found = list(re.finditer(r"\S+" if unit == "word" else r"\S", text))
    return [match[0] for match in found], [delay_of[match.end() - 1] for match in found]


# ------------------------------------------------------------------------------------------------------------ curves
Curve = Sequence[Mapping[str, Any]]  # one record a setting of a reader: `reader`, `AL`, `quality`


def envelope(curve: Curve, reader: str) -> tuple[np.ndarray, np.ndarray]:
    """AL and the best quality at that AL or less, in order of AL."""
    lags, qualities = np.array(sorted((p["AL"], p["quality"]) for p in curve if p["reader"] == reader)).T
    return lags, np.maximum.accumulate(qualities)


def quality_at(curve: Curve, lag: float, reader: str = "confidence") -> float:
    """Quality at a fixed AL, interpolated; 0 below the lowest AL of the sweep, which was not reached."""
    lags, best = envelope(curve, reader)
    return float(np.interp(lag, lags, best, left=0.0))


def lag_at(curve: Curve, quality: float, never: float, reader: str = "confidence") -> float:
    """Lowest AL at which a quality is reached, interpolated; `never` where it is not."""
    lags, best = envelope(curve, reader)
    i = int(np.searchsorted(best, quality - 1e-12))
    if i == len(best):
        return never
    if i == 0:
        return float(lags[0])
    return float(lags[i - 1] + (lags[i] - lags[i - 1]) * (quality - best[i - 1]) / (best[i] - best[i - 1]))


def lag_difference(a: Curve, b: Curve) -> float:
    """AL of a minus AL of b at the best quality that both reach."""
    both = min(envelope(curve, "confidence")[1][-1] for curve in (a, b))
    return lag_at(a, both, math.inf) - lag_at(b, both, math.inf)
