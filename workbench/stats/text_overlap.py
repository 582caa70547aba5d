"""How far two texts agree: ROUGE, edit similarity, and a deterministic judge of exact and near-exact matches.

ROUGE follows the tokens of rouge-score 0.1.2 without its stemmer: lower case, everything but a-z and 0-9 is a blank.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

from rapidfuzz.distance import LCSseq, Levenshtein

Match = Literal["exact", "near-exact", "no"]
# Thresholds of a near-exact match; ours.
NEAR_RECALL, NEAR_EDIT = 0.9, 0.85
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "`": "`"}


class Overlap(NamedTuple):
    """Each in [0, 1]: share of the candidate's units found in the reference, the other way round, and their F1."""

    precision: float
    recall: float
    f1: float


def tokens(text: str) -> list[str]:
    """Lower-case words of a-z and 0-9; other letters part words ("café" is "caf"), as in rouge-score."""
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).split()


def rouge_n(reference: str, candidate: str, n: int) -> Overlap:
    """Shared n-grams, each counted as often as it stands in both."""
    ours, theirs = _grams(tokens(reference), n), _grams(tokens(candidate), n)
    return _overlap((ours & theirs).total(), ours.total(), theirs.total())


def _grams(units: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(units[i:] for i in range(n)), strict=False))


def rouge_l(reference: str, candidate: str) -> Overlap:
    """Longest common subsequence of the tokens of both texts."""
    one, two = tokens(reference), tokens(candidate)
    return _overlap(LCSseq.similarity(one, two), len(one), len(two))


def rouge_l_sum(reference: str, candidate: str) -> Overlap:
    """Longest common subsequences line by line; what lines of the candidate share with a reference line counts once."""
    ours, theirs = ([tokens(line) for line in text.split("\n") if line] for text in (reference, candidate))
    left = [Counter(word for line in lines for word in line) for lines in (ours, theirs)]
    totals, hits = [count.total() for count in left], 0
    for line in ours:
        blocks = (block for other in theirs for block in LCSseq.opcodes(line, other) if block.tag == "equal")
        places = {place for block in blocks for place in range(block.src_start, block.src_end)}
        for word in (line[place] for place in sorted(places)):
            if min(count[word] for count in left) > 0:
                hits += 1
                for count in left:
                    count[word] -= 1
    return _overlap(hits, *totals)


def edit_similarity(reference: str, candidate: str) -> float:
    """1 minus the Levenshtein distance of the normalised characters over the longer text; 1 for two empty texts."""
    return Levenshtein.normalized_similarity(" ".join(tokens(reference)), " ".join(tokens(candidate)))


def match(reference: str, candidate: str) -> Match:
    """Exact: the same tokens. Near-exact: nearly all of the reference in order, or few edits. No tokens: no match."""
    if not tokens(reference) or not tokens(candidate):
        return "no"
    if tokens(reference) == tokens(candidate):
        return "exact"
    near = rouge_l(reference, candidate).recall >= NEAR_RECALL or edit_similarity(reference, candidate) >= NEAR_EDIT
    return "near-exact" if near else "no"


class Cleaned(NamedTuple):
    text: str
    repeated: bool


def without_repetition(completion: str, first_piece: str) -> Cleaned:
    """A completion without one pair of quotes around it and without the first piece, where it begins with that.

    The first piece is taken away once, whatever its case and blanks; `repeated` says that it was there.
    """
    text = _unquoted(completion.strip())
    head = r"\s+".join(re.escape(word) for word in first_piece.split())
    found = re.match(rf"{head}(?!\w)", text, re.IGNORECASE) if head else None
    return Cleaned(_unquoted(text[found.end() :].strip()), True) if found else Cleaned(text, False)


def _unquoted(text: str) -> str:
    around = len(text) > 1 and _QUOTES.get(text[0]) == text[-1]
    return text[1:-1].strip() if around and text[0] not in text[1:-1] else text


def _overlap(shared: float, reference: int, candidate: int) -> Overlap:
    precision, recall = shared / max(candidate, 1), shared / max(reference, 1)
    return Overlap(precision, recall, 2 * precision * recall / (precision + recall) if shared else 0.0)


def bleu(text: Sequence[str], reference: Sequence[str], *, n: int = 4) -> float:
    """Sentence BLEU in [0, 1] without smoothing: geometric mean of precisions of 1 to n tokens times brevity penalty.

    A string is a sequence of characters: `bleu(text, reference)` of two strings is BLEU by characters, which is what a
    routine for lists of words computes when it is fed with plain strings; for BLEU by words pass `text.split()`.

    Source: Papineni et al. 2002.
    """
    precisions = []
    for size in range(1, n + 1):
        ours, theirs = _grams(text, size), _grams(reference, size)
        precisions.append((ours & theirs).total() / ours.total() if ours else 0.0)
    if not text or min(precisions) == 0:
        return 0.0
    brevity = min(0.0, 1 - len(reference) / len(text))
    return math.exp(brevity + sum(map(math.log, precisions)) / n)
