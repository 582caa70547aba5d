"""Retrieval: which earlier incidents stand beside a case, by the cosine of their texts, and never a later one.

A reference must be older than its case (`created` strictly smaller), must not be the case itself, and must not have the
same text: each of these would hand the case its own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench.feedback import encoders


class Allowed(NamedTuple):
    """Which incident may stand beside which case, and how many pairs each rule took away."""

    pairs: np.ndarray  # [cases, incidents], True: may be a reference
    not_older: int
    same: int


def retrieve(
    cases: pd.DataFrame,
    history: pd.DataFrame,
    k: int,
    encoder: str = "words",
    before: str = "created",
    *,
    order: Literal["similarity", "random"] = "similarity",
    rng: np.random.Generator | None = None,
) -> pd.DataFrame:
    """The `k` most similar older incidents of every case.

    Args:
        cases, history: tables of `cases.py`; with encoder "given" both have the column `embedding`.
        k: references a case; fewer where fewer are older. 0 gives an empty table.
        encoder: see `similarities`.
        before: the column of both tables that orders them in time.
        order: "random" takes any older incidents instead, with `rng`; `similarity` is reported all the same.

    Returns:
        Columns `case_id`, `rank` (1: most similar), `incident_id`, `similarity`. Equal ones keep the store's order.

    Raises:
        ValueError: an empty store; no case with an older incident; what `similarities` raises.
    """
    if k < 0:
        raise ValueError(f"k is a number of references, 0 or more; got {k}")
    if history.empty:
        raise ValueError("the store of earlier incidents is empty; give at least one row of history")
    may = allowed(cases, history, before).pairs
    if not may.any():
        raise ValueError(
            f"no case has an earlier incident: column {before!r} of history runs from {history[before].min()}, of cases"
            f" up to {cases[before].max()}; a reference must be older than its case, and not the case itself"
        )
    similarity = similarities(cases, history, encoder)
    ranked = similarity if order == "similarity" else (rng or np.random.default_rng(0)).random(similarity.shape)
    best = np.argsort(-np.where(may, ranked, -np.inf), axis=1, kind="stable")[:, :k]
    case, place = np.nonzero(np.take_along_axis(may, best, axis=1))
    incident = best[case, place]
    table = {"case_id": cases["case_id"].to_numpy()[case], "rank": place + 1}
    table["incident_id"] = history["incident_id"].to_numpy()[incident]
    return pd.DataFrame({**table, "similarity": similarity[case, incident]})


def allowed(cases: pd.DataFrame, history: pd.DataFrame, before: str = "created") -> Allowed:
    """The guard: strictly older, another id, another text (case and spaces do not count)."""
    older = history[before].to_numpy()[None, :] < cases[before].to_numpy()[:, None]
    same = cases["case_id"].to_numpy()[:, None] == history["incident_id"].to_numpy()[None, :]
    same |= _comparable(cases)[:, None] == _comparable(history)[None, :]
    return Allowed(older & ~same, int((~older).sum()), int((older & same).sum()))


def check_references(references: pd.DataFrame, cases: pd.DataFrame, history: pd.DataFrame) -> None:
    """Looks at the finished table, apart from the guard that made it.

    Raises:
        ValueError: a reference that is not older than its case, or has its text; the row is named.
    """
    texts = (dict(zip(t[i], _comparable(t), strict=True)) for t, i in ((cases, "case_id"), (history, "incident_id")))
    case_text, incident_text = texts
    case_day = dict(zip(cases["case_id"], cases["created"], strict=True))
    incident_day = dict(zip(history["incident_id"], history["created"], strict=True))
    for row, (case, incident) in enumerate(
        zip(references["case_id"].tolist(), references["incident_id"].tolist(), strict=True)
    ):
        if not incident_day[incident] < case_day[case]:
            raise ValueError(
                f"references row {row}: incident {incident!r} of {incident_day[incident]} is not older than case "
                f"{case!r} of {case_day[case]}; it may already tell the cause"
            )
        if case == incident or case_text[case] == incident_text[incident]:
            raise ValueError(f"references row {row}: incident {incident!r} is case {case!r} itself")


def similarities(cases: pd.DataFrame, history: pd.DataFrame, encoder: str) -> np.ndarray:
    """Cosine of every case with every incident, [cases, incidents].

    Args:
        encoder: "given" takes the column `embedding` of both tables; the others are those of `encoders.cosines`.

    Raises:
        ValueError: given vectors of different sizes or with NaN; table and row are named.
        ImportError: sentence-transformers is not installed.
    """
    if encoder == "given":
        return encoders.cosines_of_vectors(*_given(cases, history))
    return encoders.cosines(_texts(cases), _texts(history), encoder)


def _given(cases: pd.DataFrame, history: pd.DataFrame) -> list[np.ndarray]:
    vectors, size = [], None
    for name, table in (("history", history), ("cases", cases)):
        if "embedding" not in table:
            raise ValueError(f"encoder='given' needs the column 'embedding' in {name}; its columns: {', '.join(table)}")
        rows = [np.asarray([] if row is None else row, dtype=float) for row in table["embedding"]]
        size = len(rows[0]) if size is None else size
        for number, row in enumerate(rows):
            if row.shape != (size,) or not size:
                raise ValueError(
                    f"{name} row {number}, column 'embedding': {size} numbers as in history row 0 are needed; got "
                    f"{row.size}. Encode store and cases with one encoder"
                )
            if not np.isfinite(row).all():
                raise ValueError(
                    f"{name} row {number}, column 'embedding': not a number at place"
                    f" {int(np.argmin(np.isfinite(row)))}, so its similarity is none; encode that row again"
                )
        vectors.append(np.array(rows))
    return vectors[::-1]


def _texts(table: pd.DataFrame) -> Sequence[str]:
    return [f"{title}\n{summary}" for title, summary in zip(table["title"], table["summary"], strict=True)]


def _comparable(table: pd.DataFrame) -> np.ndarray:
    return np.array([" ".join(text.casefold().split()) for text in _texts(table)], dtype=object)
