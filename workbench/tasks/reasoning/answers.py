"""Final answers of mathematical texts: finding them, and telling whether two mean the same number.

An answer that cannot be read is None, and a comparison that cannot be decided is None; neither is ever counted as
equal.
"""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|\\[!,;: ]|\\(?:left|right)(?![a-z])|\\?\$|[€£]|\s+|°|\^\{?\\circ\}?"
)


def final_answer(text: str) -> str | None:
    """The answer of a solution: the last \\boxed{...}, else what follows the last "####" or "answer is" / "Answer:" /
    "A:"."""
    if boxed := _boxed(text):
        return boxed
    for mark in (r"####", r"answer\s*(?:is|:)\s*:?", r"(?:^|\n)\s*A:"):
        ends = [m.end() for m in re.finditer(mark, text, re.IGNORECASE)]
        if ends:
            line = text[ends[-1] :].strip().split("\n")[0].strip()
            return line.rstrip(".").strip() or None
    return None


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    depth = 0
    for i in range(start + 6, len(text)) if start >= 0 else ():
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start + 7 : i].strip() or None
    return None


def same_answer(a: str, b: str) -> bool | None:
    """Whether two answers mean the same.

    Numbers are compared exactly: 0.5, 1/2, \\frac{1}{2} and 50\\% are one number, and so are 1,234 and $1234. Lists in
    brackets are compared entry by entry, in braces without order. Other texts are equal when they agree but for
    notation; where they differ this rule cannot tell, and None says so.
    """
    left, right = _entries(a), _entries(b)
    if left is not None and right is not None:
        (kind, first), (other, second) = left, right
        if kind != other or len(first) != len(second):
            return False
        if kind == "{":
            pool = list(second)
            for entry in first:
                match = next((x for x in pool if same_answer(entry, x)), None)
                if match is None:
                    return False
                pool.remove(match)
            return True
        equal = [same_answer(x, y) for x, y in zip(first, second, strict=True)]
        return False if False in equal else None if None in equal else True
    x, y = number(a), number(b)
    if x is not None and y is not None:
        return x == y
    if _plain(a) == _plain(b):
        return bool(_plain(a)) or None
    return None


def number(text: str) -> Fraction | None:
    """The exact value of a plain number, fraction, mixed number, percentage or simple LaTeX fraction; else None."""
    plain = _plain(text)
    if plain.endswith(("\\%", "%")):
        value = number(plain.rstrip("%").rstrip("\\"))
        return None if value is None else value / 100
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)
    fraction = re.fullmatch(r"([+-]?)(\d*)\\[dt]?frac\{?(-?\d+)\}?\{?(\d+)\}?", plain)
    if fraction:
        sign, whole, top, bottom = fraction.groups()
        if not int(bottom):
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
        return -value if sign == "-" else value
    if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", plain) or re.fullmatch(r"[+-]?\d+/[1-9]\d*", plain):
        return Fraction(plain.rstrip("."))
    words = re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?", text)
    # "18 dollars": one number among words is that number; two would be a guess
    return (
        Fraction(words[0].replace(",", ""))
        if len(words) == 1 and not re.search(r"[\\/^=*(+<>]|\d[A-Za-z]", text)
        else None
    )


def _plain(text: str) -> str:
    return _UNITS.sub("", text).strip(".").lower()


def _entries(text: str) -> tuple[str, list[str]] | None:
    inner = _UNITS.sub("", text).replace("\\{", "{").replace("\\}", "}")
    if len(inner) < 2 or (inner[0], inner[-1]) not in {("(", ")"), ("[", "]"), ("{", "}")} or "," not in inner:
        return None
    return inner[0] + ("" if inner[0] == "{" else inner[-1]), inner[1:-1].split(",")
