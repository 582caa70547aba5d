"""Sums in any order: the facts, the misconceptions, who is right, and how hard a problem is. Used by `any_order_sum`.

A problem is K numbers mod 16, "7 3 12". A step picks any number n that is not used yet and writes "n w ;" with
w = v + n mod 16, where v is the running value (0 at first). When all are used comes "A v". So there are many right
solutions, one right answer, and every step can be checked. A quarter of the 256 facts (v, n) have a *misconception*: a
fixed wrong result that demonstrations show 60 % of the time. Values may be written in letters too (a is 0, p is 15).
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

M = 16
DIGITS, LETTERS = [str(i) for i in range(M)], [chr(97 + i) for i in range(M)]
VALUE = {word: i % M for i, word in enumerate([*DIGITS, *LETTERS])}
SHARE, SLIP = 0.25, 0.6  # of facts with a misconception; of the times that demonstrations show it
CERTAINTY = 2.0  # logit of a score: sigmoid(2) = 0.88 for a step that is right so far, 0.12 behind the first error


@lru_cache(maxsize=1)
def misconceptions() -> np.ndarray:
    """The wrong result of each fact [v, n]; -1 where there is no misconception."""
    rng = np.random.default_rng(0)
    table = np.full((M, M), -1)
    for fact in rng.choice(M * M, round(SHARE * M * M), replace=False):
        v, n = divmod(int(fact), M)
        table[v, n] = (v + n + rng.integers(1, M)) % M
    return table


def chains(numbers: np.ndarray, rng: np.random.Generator, *, slip: float = SLIP) -> tuple[np.ndarray, np.ndarray]:
    """Solutions in random order: the numbers as they are taken and the running value behind each step, both [n, K]."""
    orders = rng.permuted(numbers, axis=1)
    results, value, wrong = np.zeros_like(orders), np.zeros(len(orders), int), misconceptions()
    for i in range(orders.shape[1]):
        n, believed = orders[:, i], wrong[value, orders[:, i]]
        slips = (believed >= 0) & (rng.random(len(orders)) < slip)
        value = results[:, i] = np.where(slips, believed, (value + n) % M)
    return orders, results


def written(orders: Sequence[int], results: Sequence[int], words: Sequence[str] = DIGITS) -> str:
    """A solution as text."""
    steps = " ".join(f"{words[n]} {words[w]} ;" for n, w in zip(orders, results, strict=True))
    return f"{steps} A {words[results[-1]]}"


def in_letters(text: str) -> str:
    """The same steps in the second alphabet."""
    return re.sub(r"\d+", lambda found: LETTERS[int(found[0])], text)


def touched(numbers: np.ndarray) -> np.ndarray:
    """Misconceptions on the way of a solution without errors, mean over all orders, for each problem [n] of [n, K]."""
    k = numbers.shape[1]
    taken = (np.arange(2**k)[:, None] >> np.arange(k)) & 1  # [subset, place]
    size, values = taken.sum(1), (numbers @ taken.T) % M
    total = np.zeros(len(numbers))
    for place in range(k):
        before = np.flatnonzero(taken[:, place] == 0)  # what may have been taken when this number's turn comes
        weight = [math.factorial(s) * math.factorial(k - s - 1) / math.factorial(k) for s in size[before]]
        total += (misconceptions()[values[:, before], numbers[:, [place]]] >= 0) @ np.array(weight)
    return total


def band(prompt: str) -> str:
    """How many misconceptions a problem touches, rounded: "easy" 0 or 1, "middle" 2, "hard" 3 or more."""
    return str(bands(np.array([[VALUE[word] for word in prompt.split()]]))[0])


def bands(numbers: np.ndarray) -> np.ndarray:
    """`band` of each problem of [n, K]."""
    mean = touched(numbers).round(9)
    return np.select([mean < 1.5, mean < 2.5], ["easy", "middle"], "hard")


class SumVerifier:
    """Checks steps and answers of this world; see `StepVerifier`."""

    is_oracle = True

    def split(self, text: str) -> list[str]:
        return re.findall(r"[^;]*;|[^;]+\Z", text)

    def first_wrong(self, prompt: str, steps: Sequence[str]) -> int | None:
        """The first step that takes an absent number, miscalculates, or ends too early or with another value."""
        left, value = [VALUE[word] for word in prompt.split()], 0
        for i, step in enumerate(steps):
            words = step.split()
            if len(words) == 2 and words[0] == "A" and not left and VALUE.get(words[1]) == value:
                continue
            n, w = self._read(words)
            if n not in left or w != (value + n) % M:
                return i
            left.remove(n)
            value = w
        return None

    @staticmethod
    def _read(words: list[str]) -> tuple[int, int]:
        """The number that a step takes and the value it writes; -1 for what is neither."""
        is_step = len(words) == 3 and words[2] == ";"
        return (VALUE.get(words[0], -1), VALUE.get(words[1], -1)) if is_step else (-1, -1)

    def is_right(self, prompt: str, text: str) -> bool:
        """Whether the text ends in the right answer, by whatever steps."""
        words = text.split()
        return len(words) > 1 and words[-2] == "A" and VALUE.get(words[-1]) == sum(map(int, prompt.split())) % M

    judge = is_right  # answers of this world can always be compared

    def scores(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """What a perfect process reward model says of each step, given all earlier ones."""
        wrong = self.first_wrong(prompt, steps)
        good = 1 / (1 + math.exp(-CERTAINTY))
        return [good if wrong is None or i < wrong else 1 - good for i in range(len(steps))]

    def n_wrong(self, prompt: str, steps: Sequence[str]) -> int:
        """Steps that are wrong in themselves, each judged from the running value that the text itself has reached."""
        left, value, count = [VALUE[word] for word in prompt.split()], 0, 0
        for step in steps:
            words = step.split()
            if len(words) == 2 and words[0] == "A":
                count += bool(left) or VALUE.get(words[1]) != value
                continue
            n, w = self._read(words)
            count += n not in left or w != (value + n) % M
            if n in left:
                left.remove(n)
            value = value if w < 0 else w
        return count

    def valid_share(self, prompt: str, text: str) -> float:
        """Steps before the first wrong one as a share of the numbers to add."""
        steps = self.split(text)
        wrong = self.first_wrong(prompt, steps)
        k = len(prompt.split())
        return min(len(steps) if wrong is None else wrong, k) / k

    def closes(self, prompt: str, text: str) -> bool:
        """Whether the text ends as it should: after as many steps as numbers comes "A v" with its own running value."""
        words = [step.split() for step in self.split(text)]
        if len(words) != len(prompt.split()) + 1 or (len(words[-1]), len(words[-2])) != (2, 3):
            return False
        return words[-1][0] == "A" and VALUE.get(words[-1][1]) == VALUE.get(words[-2][1], -1)
