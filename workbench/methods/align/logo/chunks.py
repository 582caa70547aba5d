"""Preferences by evidence: the model's answers from all relevant chunks, from the better half and from the worse half.

No correctness filter is applied, as in the official code; a judge is switched off there too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench.kernels import sample
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import ablated, keep_best, overlaps, prompt_ids
from workbench.tasks.protocols import PlantedDocuments


class Writing(NamedTuple):
    """How answers are drawn, and which chunks of a document matter enough."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop: str
    chunks: int
    min_overlap: int


def preferences(task: Any, policy: Policy, how: Writing, split: str, seed: int, run: Run) -> pd.DataFrame:
    """Columns `row`, `chunks`, `question`, `scores` (overlaps), `chosen`, `rejected` (list).

    The chosen answer is written from all evidence, the rejected ones from a part of it and from the rest; answers that
    the data set gives are kept. What was dropped and why is in the table `<split>-dropped`, how often in
    `<split>-counts`.

    Raises:
        ValueError: no row is left; the counts are named.
    """
    if not (run.folder / f"{split}-rows.parquet").is_file():
        lost: list[dict[str, Any]] = []
        documents = task.documents(split, seed)
        contexts = [_contexts(task, row, i, how, seed, lost) for i, row in enumerate(documents)]
        asked = [row for row in contexts if row is not None]
        _write(policy, [row for row in asked if "chosen" not in row], how, seed * 10 + (split == "test"))
        kept, counts = keep_sound(asked, lost)
        counts |= {"documents": len(documents), "rows": len(kept)}
        run.table(f"{split}-dropped", lambda: pd.DataFrame(lost, columns=["row", "question", "why"]))
        if not kept:
            raise ValueError(
                f"no {split} row is left: {dict(counts)}; lower min_overlap, or look at the table {split}-dropped"
            )
        run.cached(f"{split}-counts", lambda: dict(counts))
        columns = ["row", "chunks", "question", "scores", "chosen", "rejected"]
        run.table(f"{split}-rows", lambda: pd.DataFrame(kept, columns=columns))
    return pd.read_parquet(run.folder / f"{split}-rows.parquet")


def _contexts(task: Any, row: dict, index: int, how: Writing, seed: int, lost: list) -> dict[str, Any] | None:
    """A document with the chunks that stay and three contexts; None where no chunk matters enough."""
    if not row["questions"]:
        raise ValueError(f"row {index} has no question; LOGO needs one, with an answer to find its evidence by")
    question, chunks = row["questions"][0], row["chunks"]
    scores = overlaps(chunks, question, row["answers"][0])
    common = {"row": index, "question": question, "chunks": chunks, "scores": scores}
    if "chosen" in row:
        if not isinstance(row.get("rejected"), list) or not row["rejected"]:
            raise ValueError(
                f"row {index}, column 'rejected': a list with at least one answer is needed beside 'chosen'; "
                f"got {row.get('rejected')!r}"
            )
        return {**common, "chosen": row["chosen"], "rejected": row["rejected"]}
    if isinstance(task, PlantedDocuments):  # the world knows what a question needs
        return {**common, "contexts": task.evidence(row, np.random.default_rng([seed, 6, index]))}
    best = keep_best(scores, how.chunks, how.min_overlap)
    if best is None:
        lost.append({"row": index, "question": question, "why": f"overlap below {how.min_overlap}"})
        return None
    stay = sorted(best)
    kept = {"chunks": [chunks[i] for i in stay], "scores": [scores[i] for i in stay]}
    return {**common, **kept, "contexts": ablated(chunks, best)}


def _write(policy: Policy, rows: list[dict[str, Any]], how: Writing, seed: int) -> None:
    """Adds to every row the answers that the policy draws, one from each of its contexts."""
    prompts = [prompt_ids(policy, context, row["question"]) for row in rows for context in row["contexts"]]
    law: Any = {"max_new_tokens": how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p}
    answers = sample(policy, prompts, stop=how.stop, seed=seed, **law)
    texts = iter(answers.texts)
    for row in rows:
        row["chosen"], *row["rejected"] = [next(texts)[0].strip() for _ in row["contexts"]]


def keep_sound(rows: Sequence[dict], lost: list[dict]) -> tuple[list[dict], Counter]:
    """Rows whose chosen answer says something and differs from a rejected one; equal rejected ones leave. Counts of
    both."""
    counts: Counter = Counter()
    kept = []
    for row in rows:
        different = [text for text in row["rejected"] if text.strip() != row["chosen"].strip()]
        counts["rejected answers equal to the chosen one"] += len(row["rejected"]) - len(different)
        why = "" if different else "every rejected answer equals the chosen one"
        if not row["chosen"].strip():
            why = "empty chosen answer"
        if why:
            lost.append({"row": row["row"], "question": row["question"], "why": why})
        else:
            kept.append({**row, "rejected": different})
    counts.update(row["why"] for row in lost)
    return kept, counts
