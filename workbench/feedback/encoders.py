"""Encoders: how alike two texts are, as the cosine of their vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from workbench.runs.named_models import where


def cosines(texts: Sequence[str], stored: Sequence[str], encoder: str) -> np.ndarray:
    """Cosine of every text with every stored one, [texts, stored].

    Args:
        encoder: "words" (which words occur), "tfidf" (words weighted by rarity in the store), or a
            sentence-transformers folder, hub id or named model ("all-minilm-l6-v2").

    Raises:
        ImportError: sentence-transformers is not installed.
    """
    if encoder in ("words", "tfidf"):
        from sklearn.feature_extraction.text import TfidfVectorizer

        plain = encoder == "words"
        counted = TfidfVectorizer(binary=plain, use_idf=not plain, token_pattern=r"[^\s,.;:!?()\"]+")
        store: Any = counted.fit_transform(stored)
        return np.asarray((counted.transform(texts) @ store.T).todense())
    one, two = (vectors(part, encoder) for part in (texts, stored))
    return one @ two.T


def vectors(texts: Sequence[str], encoder: str) -> np.ndarray:
    """Unit vectors of texts, [texts, d]; a text of which the encoder makes nothing is a vector of zeros.

    Raises:
        ImportError: sentence-transformers is not installed.
        FileNotFoundError: no such encoder.
        ValueError: weights of the encoder are missing.
    """
    found = _load(where(encoder)).encode(list(texts), show_progress_bar=False, convert_to_numpy=True)
    return unit(np.asarray(found, dtype=float).reshape(len(texts), -1))


def nearest(texts: Sequence[str], stored: Sequence[str], encoder: str, *, k: int) -> np.ndarray:
    """Places of the `k` stored texts that are most like each text, the likest first, [texts, k]; ties keep their order.

    Raises:
        ValueError: fewer than `k` stored texts.
    """
    if not 1 <= k <= len(stored):
        raise ValueError(f"k = {k} nearest of {len(stored)} stored texts; k must be between 1 and their number")
    return np.argsort(-cosines(texts, stored, encoder), axis=1, kind="stable")[:, :k]


@lru_cache(maxsize=2)
def _load(source: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError(
            f'encoder={source!r} needs sentence-transformers: pip install "workbench[retrieval]"; '
            'encoder="tfidf" needs nothing'
        ) from None
    from transformers import AutoModel

    from workbench.models.pretrained import check_report

    try:
        _, report = AutoModel.from_pretrained(source, output_loading_info=True, trust_remote_code=False)
        found = SentenceTransformer(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"cannot load an encoder from {source!r}: {str(error).strip().splitlines()[0]}"
        ) from error
    check_report(source, "encoder", report, trained_beside=["pooler"])
    return found


def cosines_of_vectors(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """[n, d] and [m, d] to [n, m]; a vector of zeros is like nothing."""
    return unit(one) @ unit(two).T


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
