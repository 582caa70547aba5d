"""Reading what a model said: numbers, choices, preferences; what cannot be read is None, never a default.

A number comes only from a finished reply, and from what stands where it was asked for: a verdict's line may go on with
a reason that names other numbers and letters.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from workbench.feedback.chat import LETTERS, Reply

# a number, then "%", "/ 10" or "out of 10"
_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?:\s*(%)|\s*(?:/|out of)\s*(\d+)(?![\w.]*\d))?", re.IGNORECASE
)
_ABOUT = re.compile(r"\W*(?:(?:about|around|approximately|roughly|maybe|probably|almost|nearly)\s+)?", re.IGNORECASE)
_RANGE = re.compile(r"\s*(?:-|–|—|to|and|or)\s*[\d.]", re.IGNORECASE)
_TIE = re.compile(r"\b(both|neither|equal(?:ly)?|tie|same)\b", re.IGNORECASE)
_THOUGHTS = re.compile(r"<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_OPENED = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_CLOSED = re.compile(r"\A.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)


def readable(reply: Reply) -> str:
    """The text that may be read: what was said behind the thoughts of a reply that ended by itself; "" of one that was
    cut, refused, empty, or never came out of its thoughts."""
    if reply.finish != "stop":
        return ""
    text = _THOUGHTS.sub("", reply.text)
    if _OPENED.search(text):
        return ""
    return _CLOSED.sub("", text)  # the template may have opened the thoughts before the reply began


def account(replies: Sequence[Reply], read: Sequence[bool]) -> str:
    """What became of replies, in a line: how many were read, cut, refused, empty and unread; the first that was not
    read, so that one sees what to change."""
    counts = Counter(
        reply.finish if reply.finish != "stop" else "unread" for reply, ok in zip(replies, read, strict=True) if not ok
    )
    named = {"length": "cut at max_tokens", "refused": "refused", "empty": "empty", "unread": "unread"}
    parts = [
        f"{sum(read)} of {len(read)} read",
        *(f"{counts[key]} {name}" for key, name in named.items() if counts[key]),
    ]
    first = next((reply.text for reply, ok in zip(replies, read, strict=True) if not ok), None)
    return ", ".join(parts) + ("" if first is None else f"; the first of the others says {first[:120]!r}")


@lru_cache
def _field(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}[*_ \t]*[:=](.*)", re.IGNORECASE)


def last_field(text: str, name: str) -> str | None:
    """What stands after the last "name:" up to the end of that line, without Markdown marks; None without one."""
    found = _field(name).findall(text)
    return found[-1].strip(" \t*_`") if found else None


def choice(text: str, n_choices: int, name: str = "Answer") -> int | None:
    """Index of the option whose letter stands last after "Answer:"; None for no letter or none of the options'.

    "Answer: (B)" and "**Answer:** B. blue" give 1 where there are at least two options. Words before the letter are
    passed over ("a quick check shows it is C"), where only one letter is named.
    """
    field = last_field(text, name) or ""
    match = re.match(r"\W*([A-Za-z])(?![A-Za-z'’])(?!\s+[a-z])", field) or re.match(
        r"\W*([B-HJ-Z])(?![A-Za-z'’])", field
    )
    others = re.findall(r"(?<![\w'’])([B-HJ-Z]|[AI](?!\s+[a-z]))(?![\w'’])", field)  # A and I may be words
    named = {match[1].upper()} if match else set(others)
    index = LETTERS.index(named.pop()) if len(named) == 1 else n_choices
    return index if index < n_choices else None


def confidence(text: str, name: str = "Confidence") -> float:
    """The number on the last "Confidence:" line, in [0, 1]: "85%", "85", "8.5/10" and "0.85 out of 1" are 0.85.

    Only that line is read: the answer itself may be a number. NaN where there is none, where it is outside (a whole
    number of more than 10 counts as a percentage, one from 2 to 10 as nothing), and where several differ, unless the
    line begins with one that opens no range.
    """
    line = last_field(text, name) or ""
    numbers = list(_NUMBER.finditer(line))
    if not numbers:
        return math.nan
    first = numbers[0]
    leads = _ABOUT.match(line).end() == first.start() and not _RANGE.match(line, first.end())  # type: ignore[union-attr]
    values = {_in_unit(match) for match in (numbers[:1] if leads else numbers)}
    return values.pop() if len(values) == 1 else math.nan


def _in_unit(match: re.Match[str]) -> float:
    value = float(re.match(r"[-+\d.eE]+", match[0])[0])  # type: ignore[index]
    value /= 100.0 if match[1] else float(match[2] or 1) or math.nan
    if not match[1] and not match[2] and 10 < value <= 100:
        value /= 100.0
    return value if 0.0 <= value <= 1.0 else math.nan


class Preference(NamedTuple):
    """Outcome for the one shown first: 1 it wins, 0 it loses, 0.5 otherwise; `status` says which 0.5 it is."""

    outcome: float
    status: Literal["ok", "tie", "unparsed"]


def preference(text: str, name: str) -> Preference:
    """Which of two was named on the last "name:" line: "1", "2", or a tie ("both", "neither", "1 and 2").

    Where the line begins with a number, that is the verdict, whatever the reason behind it names.
    """
    value = last_field(text, name) or ""
    named = set(re.findall(r"(?<![\d.])[12](?!\.?\d)", value))
    leading = re.match(r"\W*(?:(?:answer|response|option|question|number)\s*)?([12])(?!\.?\d)", value, re.IGNORECASE)
    if leading and not re.match(r"\W*(?:and|or|&|,|/|=)\s*\W*[12](?!\.?\d)", value[leading.end() :], re.IGNORECASE):
        named = {leading[1]}
    elif re.match(r"\W*(?:both|neither|equal(?:ly)?|tie|same)\b", value, re.IGNORECASE):
        return Preference(0.5, "tie")
    if len(named) == 2 or (not named and _TIE.search(value)):
        return Preference(0.5, "tie")
    return Preference(1.0 if "1" in named else 0.0, "ok") if named else Preference(0.5, "unparsed")
