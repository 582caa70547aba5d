"""Encoders: how alike two texts are, as the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def cosines(texts: Sequence[str], stored: Sequence[str], encoder: str) -> np.ndarray:
    """Cosine of every text with every stored one, [texts, stored].

    Args:
        encoder: "words" (which words occur), "tfidf" (words weighted by rarity in the store), or a
            sentence-transformers folder or hub id.

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    if encoder in ("words", "tfidf"):
        from sklearn.feature_extraction.text import TfidfVectorizer

        plain = encoder == "words"
        vectors = TfidfVectorizer(binary=plain, use_idf=not plain, token_pattern=r"[^\s,.;:!?()\"]+")
        store: Any = vectors.fit_transform(stored)
        return np.asarray((vectors.transform(texts) @ store.T).todense())
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(
            f'encoder={encoder!r} needs sentence-transformers: pip install "workbench[retrieval]"; '
            'encoder="tfidf" needs nothing'
        ) from None
    encode = SentenceTransformer(encoder).encode
    one, two = (np.asarray(encode(list(part), show_progress_bar=False), dtype=float) for part in (texts, stored))
    return cosines_of_vectors(one, two)


def cosines_of_vectors(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] to [n, m]; a vector of zeros is like nothing."""
    unit = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (one, two)]
    return unit[0] @ unit[1].T
