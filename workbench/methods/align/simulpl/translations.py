"""Translations: pairs and their checks, what listeners prefer measured aspect by aspect, and rewriting into such texts.

The five wishes of listeners are measured apart: quality (exact match, chrF), order (share of linked words in source
order), key points (recall), simplicity (words a clause, length); latency is the decoder's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from workbench import data, runs
from workbench.data import Row
from workbench.feedback.chat import ChatModel, Request, user
from workbench.feedback.open_model import open_model
from workbench.feedback.replies import readable
from workbench.feedback.transcript import Transcript
from workbench.stats.latency import Unit, words_of
from workbench.tasks.real import RealRows

log = logging.getLogger(__name__)


class Aspects(NamedTuple):
    """What is preferred in the text of one translation; NaN where a row does not say enough to measure it."""

    exact: float
    chrf: float
    monotonicity: float
    key_points: float
    words: float
    words_per_clause: float


def aspects(row: Row, translation: str, *, unit: Unit = "word") -> Aspects:
    """Measures one translation of a row against its preferred one (`chosen`).

    Args:
        row: `source`, `chosen`; optional `alignment` ([source place, chosen place] links), `key_items` (words or
            phrases that must survive) and `n_clauses` (else counted from the translation's punctuation).
    """
    words = words_of(translation, unit)
    clauses = row.get("n_clauses") or max(1, len(re.findall(r"[,;:.!?…。，；：！？]+(?=\s|$)", translation)))
    return Aspects(
        float(translation.split() == row["chosen"].split()),
        chrf(translation, row["chosen"]),
        monotonicity(row, words, unit),
        key_points(row, translation),
        float(len(words)),
        len(words) / clauses,
    )


def chrf(hypothesis: str, reference: str, *, order: int = 6, beta: float = 2.0) -> float:
    """Character n-gram F-score between 0 and 1 (Popović 2015): precision and recall averaged over n, without spaces."""
    precisions, recalls = [], []
    hypothesis, reference = "".join(hypothesis.split()), "".join(reference.split())
    for n in range(1, order + 1):
        ours, theirs = (Counter(text[i : i + n] for i in range(len(text) - n + 1)) for text in (hypothesis, reference))
        if ours and theirs:
            common = (ours & theirs).total()
            precisions.append(common / ours.total())
            recalls.append(common / theirs.total())
    if not precisions or not sum(precisions) + sum(recalls):
        return 0.0
    p, r = float(np.mean(precisions)), float(np.mean(recalls))
    return (1 + beta**2) * p * r / (beta**2 * p + r)


def monotonicity(row: Row, words: Sequence[str], unit: Unit = "word") -> float:
    """Share of pairs of linked words that are written in source order (1 minus the normalised Kendall distance).

    A written word is linked through the same word of `chosen`, the first one not yet taken. NaN with fewer than two
    links.
    """
    chosen, sources = words_of(row["chosen"], unit), len(words_of(row["source"], unit))
    if row.get("alignment") is None:
        return math.nan
    if bad := [link for link in row["alignment"] if not (0 <= link[0] < sources and 0 <= link[1] < len(chosen))]:
        told = "alignment %s of %r points outside its %d and %d words: left out of monotonicity"
        log.warning(told, bad[:3], row["source"][:40], sources, len(chosen))
        return math.nan
    links: dict[str, list[int]] = {}
    for source_place, place in sorted(row["alignment"], key=lambda link: link[1]):
        links.setdefault(chosen[place], []).append(source_place)
    places = [links[word].pop(0) for word in words if links.get(word)]
    pairs = [(a < b) for a, b in combinations(places, 2) if a != b]
    return float(np.mean(pairs)) if pairs else math.nan


def key_points(row: Row, translation: str) -> float:
    """Recall of the row's key items; those that its preferred translation does not have either are left out."""
    items = [item for item in row.get("key_items") or () if item in row["chosen"]]
    if missing := set(row.get("key_items") or ()) - set(items):
        told = "key items %s are not in the preferred translation of %r: left out of recall"
        log.warning(told, sorted(missing)[:3], row["source"][:40])
    words, wanted = Counter(translation.split()), Counter(items)
    kept = sum(min(n, words[item] if " " not in item else translation.count(item)) for item, n in wanted.items())
    return kept / wanted.total() if wanted else math.nan


# -------------------------------------------------------------------------------------------------------------- pairs
def check_pairs(rows: Sequence[Row], lang: str = "") -> list[Row]:
    """Rows with `source`, `chosen`, `rejected` as texts, and of the wanted direction.

    Raises:
        ValueError: a missing or foreign column, or another direction; row and column are named.
    """
    for index, row in enumerate(rows):
        for column in ("source", "chosen", "rejected"):
            if not isinstance(row.get(column), str):
                raise ValueError(
                    f"row {index}, column {column!r}: text is needed; got {row.get(column)!r}. Rows need source, chosen"
                    " (the preferred translation) and rejected; give `rewriter` to have chosen ones written"
                )
        if lang and row.get("lang", lang) != lang:
            raise ValueError(
                f"row {index}, column 'lang': {row['lang']!r} is not the direction {lang!r}; remove the row or set lang"
            )
    return list(rows)


def usable(rows: Sequence[Row], unit: Unit = "word") -> tuple[list[Row], dict[str, int]]:
    """Rows that can be trained on, and how many were left out for which reason."""
    kept, lost = [], Counter()
    for row in rows:
        if not row["source"].strip() or not row["chosen"].strip() or not row["rejected"].strip():
            lost["an empty text"] += 1
        elif len(words_of(row["source"], unit)) < 2:
            lost["a source of one word"] += 1
        elif row["chosen"].split() == row["rejected"].split():
            lost["chosen and rejected are the same"] += 1
        else:
            kept.append(row)
    if lost:
        log.warning("%d of %d pairs are not trained on: %s", len(rows) - len(kept), len(rows), dict(lost))
    return kept, dict(lost)


# --------------------------------------------------------------------------------------------------------- rewriting
PROMPT = """Rewrite a translation for simultaneous interpreting. Change its form, not its meaning.
- Meaning: say what the source says, nothing more and nothing less.
- Order: follow the order of the source words as far as the grammar of the target language allows.
- Key points: keep names, numbers, negations and main verbs.
- Simplicity: short clauses, common words, no redundant modifiers.

Source: {source}
Translation: {reference}

Answer with one line: the rewritten translation only."""
_REFUSALS = re.compile(r"\b(I'm sorry|I am sorry|I cannot|I can't|I won't|as an AI|unable to)\b", re.IGNORECASE)
_LABEL = re.compile(r"^(rewritten )?translation\s*:\s*", re.IGNORECASE)


def rewrite_request(source: str, reference: str) -> Request:
    return Request(user(PROMPT.format(source=source, reference=reference)), max_tokens=256)


def parse_rewrite(text: str, reference: str) -> tuple[str, str]:
    """The translation and "", or "" and why: a reply that is not one line of translation is not guessed at."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return "", "empty"
    if _REFUSALS.search(lines[0]) and not _REFUSALS.search(reference):
        return "", "refused"
    if len(lines) > 1:
        return "", "more than one line"
    line = _LABEL.sub("", lines[0]).strip().strip('"“”').strip()
    if not line:
        return "", "empty"
    if len(line) > 2.5 * len(reference) + 20:
        return "", "far too long"
    return line, ""


def rewrite(
    model: ChatModel, rows: Sequence[Row], transcript: Transcript, *, min_recall: float = 1.0
) -> tuple[list[Row], dict[str, int]]:
    """Preference pairs from sources with offline references: `chosen` is the rewritten, `rejected` the given one.

    Left out, and counted by reason: replies that cannot be read, refusals, texts that did not change, and rewrites that
    lose more key items than `min_recall` allows. Latency is not in the prompt; it is a term of training.

    Args:
        rows: `source` and `reference` (or `rejected`), optional `key_items`.
    """
    references = [str(row.get("reference") or row["rejected"]) for row in rows]
    both = zip(rows, references, strict=True)
    replies = transcript.ask(model, [rewrite_request(row["source"], reference) for row, reference in both])
    kept, lost = [], Counter()
    for row, reference, reply in zip(rows, references, replies, strict=True):
        text, reason = parse_rewrite(readable(reply), reference)
        items = [item for item in row.get("key_items") or () if item in reference]
        if not reason and text.split() == reference.split():
            reason = "unchanged"
        if not reason and items and sum(item in text for item in items) < min_recall * len(items):
            reason = "key items lost"
        if reason:
            lost[reason] += 1
        else:
            kept.append({**row, "chosen": text, "rejected": reference})
    if lost:
        log.warning("%d of %d rewrites are left out: %s", len(rows) - len(kept), len(rows), dict(lost))
    return kept, dict(lost)


# ---------------------------------------------------------------------------------------------------------- real text
@dataclass
class PairedText(RealRows):
    """Real preference pairs between translations, and a starting model.

    Attributes:
        dataset: rows with source, chosen, rejected; optional lang, alignment, key_items. With `rewriter`, source and
            reference are enough.
        instruction: what stands before the source words.
        rewriter: folder or hub id of the model that writes `chosen`, for training and test rows alike.
    """

    max_new_tokens: int = 128
    lang: str = ""
    rewriter: str = ""
    instruction: str = "Translate simultaneously. Source so far:"
    name: str = "paired translations"
    counts_end: bool = False
    unit: Unit = "word"
    quality_is: str = "chrf"

    def pairs(self, split: str, seed: int) -> list[Row]:
        return self.part(split, seed)

    def read(self) -> list[Row]:
        rows = data.load(self.dataset)
        checked = check_pairs(self._rewritten(rows) if self.rewriter else rows, self.lang)
        return [{**row, "prompt": row["source"]} for row in checked]

    def prompt(self, words: Sequence[str]) -> str:
        return f"{self.instruction} {('' if self.unit == 'character' else ' ').join(words)}\n"

    def aspects(self, row: Row, translation: str) -> Aspects:
        return aspects(row, translation, unit=self.unit)

    def _rewritten(self, rows: Sequence[Row]) -> list[Row]:
        model: Any = open_model(self.rewriter, device=self.device)
        name = hashlib.blake2b(json.dumps([self.dataset, self.rewriter]).encode(), digest_size=8).hexdigest()
        transcript = Transcript(runs.default_root() / ".cache" / f"rewrites-{name}.jsonl")
        return rewrite(model, rows, transcript)[0]
