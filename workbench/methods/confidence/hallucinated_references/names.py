"""Name lists: author lists as models write them, made comparable, and how far two of them overlap.

Two names are one when their last names and the first letters of their first names agree. Case, accents, initials for
first names, middle names, the order of the list, "and", "et al.", titles, numbering and line breaks do not count. A
reply that is no list of names (a refusal, an empty cell) is None, and an overlap with it is missing, not 0.
"""

from __future__ import annotations

import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

Name = tuple[str, str]  # last name, first letter of the first name ("" without one)
Method = Literal["judge", "jaccard", "containment"]
Judge = Callable[[Sequence[tuple[str, str]]], list[str]]  # pairs of lists -> what a model says of each

LIST_CHARACTERS = 100  # of each list that a judge is shown
_LABEL = re.compile(r"\bauthors?(?:\(s\))?[*_ \t]*:", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(sorry|cannot|can['’]t|unable|unknown|unaware|don['’]t|do(?:es)? not|did not|not"
    r" (?:sure|aware|able|available|real|a real)"
    r"|no (?:such|information|record)|nothing|n/a|an ai|language model)\b",
    re.IGNORECASE,
)
_SEPARATOR = re.compile(r"[,;&\n]|\band\b", re.IGNORECASE)
_LEFT_OUT = re.compile(r"\b(et\.? al|others|jr|sr|ii|iii|ph\.?d|dr|prof|professor)\b\.?", re.IGNORECASE)
_NUMBERING = re.compile(r"(?m)^\s*(?:\d+[.)]|[-*•])\s+")
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_LETTERS = str.maketrans({"ø": "o", "ł": "l", "đ": "d", "ð": "d", "ı": "i", "æ": "ae", "œ": "oe", "þ": "th"})
_WORDS_OF_A_NAME = 6


def read_names(text: str) -> frozenset[Name] | None:
    """The names behind the last "AUTHORS:" (in the whole text without one); None where there are none."""
    parts = _LABEL.split(text)
    listed = _NUMBERING.sub("\n", parts[-1]).strip()
    if not listed or _REFUSAL.search(listed):
        return None
    names: list[list[str]] = []
    for part in _SEPARATOR.split(_LEFT_OUT.sub(" ", _plain(listed))):
        words = _WORD.findall(part)
        if not words or len(words) > _WORDS_OF_A_NAME or re.search(r"\d", part):
            continue
        if all(len(word) == 1 for word in words) and names and len(names[-1]) == 1:
            names[-1] = [*words, *names[-1]]  # "Rossi, A." is one name with its last name first
        elif len(words) > 1 and len(words[-1]) == 1:
            names.append([words[-1], words[0]])  # "Rossi A."
        else:
            names.append(words)
    return frozenset((re.sub(r"\W", "", words[-1]), words[0][0] if len(words) > 1 else "") for words in names) or None


def _plain(text: str) -> str:
    """Small letters without accents."""
    split = unicodedata.normalize("NFKD", text.casefold().translate(_LETTERS))
    return "".join(letter for letter in split if not unicodedata.combining(letter))


class Overlap(NamedTuple):
    """In [0, 1], NaN where one side is no list of names or a judge could not be read; and what the judge said."""

    value: float
    raw_text: str = ""


def author_overlap(a: str, b: str, method: Method = "jaccard", judge: Judge | None = None) -> float:
    """How far two replies name the same authors: symmetric, in [0, 1], NaN where one of them names nobody."""
    return author_overlaps([(a, b)], method, judge)[0].value


def author_overlaps(
    pairs: Sequence[tuple[str, str]], method: Method = "jaccard", judge: Judge | None = None, *, official: bool = False
) -> list[Overlap]:
    """`author_overlap` of many pairs, with one call to the judge for all of them.

    Args:
        method: "jaccard": shared names over all names; "containment": mean of the shares of each list that the other
            has; "judge": a model's percentage. The two lists are put in alphabetical order before it sees them, so that
            the overlap is symmetric.
        official: the rules of the paper's code: 0 instead of missing.

    Raises:
        ValueError: method "judge" without a judge, or an unknown method.
    """
    if method not in ("judge", "jaccard", "containment") or (method == "judge" and judge is None):
        raise ValueError(f"method must be jaccard, containment, or judge with a judge to ask; got {method!r}")
    names = {text: read_names(text) for pair in pairs for text in pair}
    usable = [all(names[text] is not None for text in pair) for pair in pairs]
    missing = 0.0 if official else math.nan
    if method == "judge" and judge is not None:
        asked = [
            (min(shown), max(shown))
            for pair, good in zip(pairs, usable, strict=True)
            if good
            for shown in [(shown_list(pair[0]), shown_list(pair[1]))]
        ]
        replies = iter(judge(asked))
        said = [next(replies) if good else "" for good in usable]
        read = overlap_percent if official else read_percent
        found = [
            Overlap(read(text), text) if good else Overlap(missing) for text, good in zip(said, usable, strict=True)
        ]
        if unclear := sum(bool(good and _is_ambiguous(text)) for text, good in zip(said, usable, strict=True)):
            warnings.warn(
                f"{unclear} of {len(asked)} judgments are a number in (0, 1] with a decimal point and no %: it could be"
                " a share or a percentage; " + ("read as a percentage" if official else "left out"),
                stacklevel=2,
            )
        return found
    values = [
        _share(names[a] or frozenset(), names[b] or frozenset(), method) if good else missing
        for (a, b), good in zip(pairs, usable, strict=True)
    ]
    return [Overlap(value) for value in values]


def _share(a: frozenset[Name], b: frozenset[Name], method: Method) -> float:
    shared = len(a & b)
    return shared / len(a | b) if method == "jaccard" else (shared / len(a) + shared / len(b)) / 2


def shown_list(text: str) -> str:
    """A list as a judge sees it: without its label, on one line, at most 100 characters."""
    return " ".join(_LABEL.split(text)[-1].split())[:LIST_CHARACTERS]


# --------------------------------------------------------------------------------------- what a judge says of two lists
_PERCENT = re.compile(r"\s*(?:answer|ans)?[:\s]*(\d+(?:\.\d+)?)(\s*%)?", re.IGNORECASE)


def overlap_percent(text: str) -> float:
    """The official parser: the leading number behind "ANS"/"ANSWER", divided by 100, at most 1; 0 without a number."""
    found = _PERCENT.match(text)
    return min(float(found[1]) / 100, 1.0) if found else 0.0


def read_percent(text: str) -> float:
    """The same, but NaN without a number, and where "0.5" could be a half or half a per cent."""
    return math.nan if not _PERCENT.match(text) or _is_ambiguous(text) else overlap_percent(text)


def _is_ambiguous(text: str) -> bool:
    found = _PERCENT.match(text)
    return bool(found and "." in found[1] and not found[2] and 0 < float(found[1]) <= 1)
