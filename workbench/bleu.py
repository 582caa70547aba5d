"""BLEU of one text against one reference, over whatever the caller calls a token.

What may live here: sentence BLEU. What may not: tokenisation, corpora, other overlap measures.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence


def bleu(text: Sequence[str], reference: Sequence[str], *, n: int = 4) -> float:
    """Sentence BLEU in [0, 1] without smoothing: geometric mean of the precisions of 1 to n tokens, times the brevity
    penalty.

    A string is a sequence of characters: `bleu(text, reference)` of two strings is BLEU by characters, which is what a
    routine for lists of words computes when it is fed with plain strings; for BLEU by words pass `text.split()`.

    Source: Papineni et al. 2002.
    """
    precisions = []
    for size in range(1, n + 1):
        grams = [Counter(tuple(side[i : i + size]) for i in range(len(side) - size + 1)) for side in (text, reference)]
        total = sum(grams[0].values())
        precisions.append(sum((grams[0] & grams[1]).values()) / total if total else 0.0)
    if not text or min(precisions) == 0:
        return 0.0
    brevity = min(0.0, 1 - len(reference) / len(text))
    return math.exp(brevity + sum(map(math.log, precisions)) / n)
