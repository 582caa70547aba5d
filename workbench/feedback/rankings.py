"""Ranked lists: several answers to one prompt, each with a score, made sound and put in order.

What may live here: reading lists from the forms they come in, and their checks. What may not: tokens, losses, training.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence

from workbench import data
from workbench.data import Row

log = logging.getLogger(__name__)

WIDE = 20.0  # gaps of scores that saturate the exponentials of a ranking loss
ROLES = {"<|prompter|>": "user", "<|assistant|>": "assistant"}  # of the official files
MARKERS = re.compile(r"(Human|Assistant):|<\|prompter\|>|<\|assistant\|>")


def as_lists(rows: Sequence[Row], *, n: int = 0, strict: bool = False) -> tuple[list[Row], Counter]:
    """Rows with `prompt`, `responses` and `scores`, best first, and how many had to be mended or left out.

    Understands rankings (see `data.as_rankings`), the official PRO rows (`prefix`, `suffix`, `reward`) and preferences,
    which are lists of two with scores 1 and 0. `source` (who wrote each response) is kept where it is there.

    Args:
        n: take the first n responses of a row, as they stand in the data; 0 takes all.
        strict: refuse lists that are not in order instead of sorting them.

    Returns:
        The lists; counts of "sorted", "duplicates dropped", "one response left (skipped)", "all scores equal" and
        "gap above 20".

    Raises:
        ValueError: a list shorter than 2, another number of responses than scores, an empty response, a score that is
            not finite, or with `strict` a list out of order; the row is named.
    """
    kept: list[Row] = []
    counts: Counter = Counter()
    for index, row in enumerate(_as_rankings(rows)):
        responses, scores = row["responses"][: n or None], row["scores"][: n or None]
        if len(responses) < 2:
            raise ValueError(
                f"row {index}, column 'responses': a ranking needs at least 2 responses, this one has {len(responses)};"
                " add answers or remove the row"
            )
        for k, text in enumerate(responses):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"row {index}, column 'responses': response {k} is empty, so it has no mean log-probability; remove"
                    f" it and its score (got {text!r})"
                )
        sources = list(row.get("source", row.get("names", [""] * len(row["responses"]))))[: n or None]
        best: dict[str, tuple[float, str]] = {}
        for text, score, source in zip(responses, scores, sources, strict=True):
            if text not in best or score > best[text][0]:
                best[text] = (float(score), source)
        counts["duplicates dropped"] += len(responses) - len(best)
        if len(best) < 2:
            counts["one response left (skipped)"] += 1
            continue
        entries = sorted(best.items(), key=lambda entry: -entry[1][0])  # stable: equal scores stay as they stand
        if entries != list(best.items()):
            if strict:
                raise ValueError(
                    f"row {index}, column 'scores': {list(scores)} are not in falling order, which would turn the"
                    " contrast round; sort the list, or leave strict=False to have it sorted"
                )
            counts["sorted"] += 1
        values = [score for _, (score, _) in entries]
        counts["all scores equal"] += values[0] == values[-1]
        counts["gap above 20"] += values[0] - values[-1] > WIDE
        kept.append(
            {
                "prompt": row["prompt"],
                "responses": [text for text, _ in entries],
                "scores": values,
                "source": [source for _, (_, source) in entries],
            }
        )
    _warn(counts, len(rows))
    return kept, +counts


def _as_rankings(rows: Sequence[Row]) -> list[Row]:
    if rows and "suffix" in rows[0]:
        rows = [_official(row, index) for index, row in enumerate(rows)]
    elif rows and not {"responses", "scores"} & set(rows[0]) and not any(isinstance(v, dict) for v in rows[0].values()):
        pairs = data.as_preferences(_same_turns(rows))
        rows = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "scores": [1.0, 0.0]} for r in pairs]
    return data.as_rankings(rows)


def _official(row: Row, index: int) -> Row:
    """A row of the official files: the turns of the first candidate's prefix as a chat."""
    turns = []
    for turn in row["prefix"][0]:
        tag = next((tag for tag in ROLES if turn.startswith(tag)), None)
        if tag is None:
            raise ValueError(
                f"row {index}, column 'prefix': every turn begins with one of {', '.join(ROLES)}; got {turn[:40]!r}"
            )
        if text := turn.removeprefix(tag).strip():
            turns.append({"role": ROLES[tag], "content": text})
    return {"prompt": turns, "responses": row["suffix"], "scores": row["reward"]}


def _same_turns(rows: Sequence[Row]) -> list[Row]:
    """Leaves out pairs of dialogues with different numbers of turns, as the official preprocessing does."""
    fine = [
        row
        for row in rows
        if not (isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list))
        or len(row["chosen"]) == len(row["rejected"])
    ]
    if len(fine) < len(rows):
        log.warning("%d pairs have dialogues of different lengths: left out", len(rows) - len(fine))
    return fine


_warned = False  # of equal scores, once a process: every arm reads the same lists, and the counts say how many


def _warn(counts: Counter, n: int) -> None:
    global _warned
    if counts["all scores equal"] and not _warned:
        _warned = True
        log.warning(
            "%d of %d lists have equal scores throughout: they carry the likelihood of their first response and no"
            " ranking",
            counts["all scores equal"],
            n,
        )
    if counts["gap above 20"]:
        log.warning(
            "%d of %d lists have scores more than %g apart, which saturates the exponentials of the loss: standardise"
            " the scores",
            counts["gap above 20"],
            n,
            WIDE,
        )


def cleaned(text: str) -> str:
    """A generation cut where the model goes on with the next speaker's turn."""
    found = MARKERS.search(text)
    return (text[: found.start()] if found else text).strip()
