"""Reading what a model said: numbers, choices, preferences; what cannot be read is None, never a default."""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Literal, NamedTuple

from workbench.feedback.chat import LETTERS

_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(\s*%)?")


_TIE = re.compile(r"\b(both|neither|equal(?:ly)?|tie|same)\b", re.IGNORECASE)


@lru_cache
def _field(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}[*_ \t]*[:=](.*)", re.IGNORECASE)


def last_field(text: str, name: str) -> str | None:
    """What stands after the last "name:" up to the end of that line, without Markdown marks; None without one."""
    found = _field(name).findall(text)
    return found[-1].strip(" \t*_`") if found else None


def choice(text: str, n_choices: int, name: str = "Answer") -> int | None:
    """Index of the option whose letter stands last after "Answer:"; None for no letter or none of the options'.

    "Answer: (B)" and "**Answer:** B. blue" give 1 where there are at least two options.
    """
    match = re.match(r"\W*([A-Za-z])(?![A-Za-z])", last_field(text, name) or "")
    index = LETTERS.index(match[1].upper()) if match else n_choices
    return index if index < n_choices else None


def confidence(text: str, name: str = "Confidence") -> float:
    """The last number on the last "Confidence:" line; "85%" is 0.85; NaN when there is none or it is outside [0, 1].

    Only that line is read: the answer itself may be a number.
    """
    numbers = list(_NUMBER.finditer(last_field(text, name) or ""))
    if not numbers:
        return math.nan
    last = numbers[-1]
    value = float(last[0].rstrip("% \t")) / (100.0 if last[1] else 1.0)
    return value if 0.0 <= value <= 1.0 else math.nan


class Preference(NamedTuple):
    """Outcome for the one shown first: 1 it wins, 0 it loses, 0.5 otherwise; `status` says which 0.5 it is."""

    outcome: float
    status: Literal["ok", "tie", "unparsed"]


def preference(text: str, name: str) -> Preference:
    """Which of two was named on the last "name:" line: "1", "2", or a tie ("both", "neither", both numbers)."""
    value = last_field(text, name) or ""
    named = set(re.findall(r"(?<![\d.])[12](?!\.?\d)", value))
    if len(named) == 2 or (not named and _TIE.search(value)):
        return Preference(0.5, "tie")
    return Preference(1.0 if "1" in named else 0.0, "ok") if named else Preference(0.5, "unparsed")
