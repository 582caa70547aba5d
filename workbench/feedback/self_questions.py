"""Questions that a model asks itself about a text, and which of its own answers are worth keeping.

What may live here: LongPO's prompt for questions, the parser of its replies, and the filters of answers. What may not:
sampling, losses. A reply that cannot be read is dropped and counted by the caller, never guessed.
"""

from __future__ import annotations

import re

N_QUESTIONS = 4
INSTRUCTION = (
    "\n\nWrite {n} comprehensive questions in English about the text above. Together they should test understanding,"
    " synthesis and the linking of ideas across the whole text. Every question must be unique and clear. Write only the"
    ' questions, numbered "1:" to "{n}:", one on each line.'
)
LEAD_INS = (
    "Based on the preceding descriptions,",
    "Based on the text above,",
    "Considering what was said above,",
    "Drawing on the material above,",
    "From the passages above,",
    "From what you have read,",
    "Given the text above,",
    "Given what precedes,",
    "Going by the descriptions above,",
    "In light of the text above,",
    "In view of the passages above,",
    "Keeping the text above in mind,",
    "Looking back at the text,",
    "Referring to the text above,",
    "Relying on the descriptions above,",
    "Taking the whole text into account,",
    "Using the information above,",
    "Using what the text says,",
    "With reference to the passages above,",
    "With the text above as your source,",
)
REFUSALS = (
    "i cannot",
    "i can't",
    "i can not",
    "i am unable",
    "i'm unable",
    "i am sorry",
    "i'm sorry",
    "i apologize",
    "i apologise",
    "as an ai",
    "as a language model",
)


def parse_questions(text: str, n: int = N_QUESTIONS) -> list[str] | None:
    """The `n` numbered questions of a reply; None where there are more or fewer, or the numbers are not 1 to n."""
    found = re.findall(r"^\s*(\d+)\s*[:.)]\s*(\S.*?)\s*$", text, re.MULTILINE)
    numbers = [int(number) for number, _ in found]
    return [question for _, question in found] if numbers == list(range(1, n + 1)) else None


def is_refusal(text: str) -> bool:
    """Whether an answer begins by declining to answer."""
    return text.strip().lower().replace("\u2019", "'").startswith(REFUSALS)


def is_repetitive(text: str, *, copies: int = 4, shortest: int = 8) -> bool:
    """Whether an answer ends in at least `copies` copies of one piece, together of at least `shortest` characters a
    copy.

    The shortest period of a text is its length minus the last value of its prefix function (Knuth, Morris and Pratt).
    Read backwards, every prefix is an ending, so one pass finds the ending that repeats itself most.
    """
    backwards = text.strip()[::-1]
    border = [0] * len(backwards)
    for i in range(1, len(backwards)):
        k = border[i - 1]
        while k and backwards[i] != backwards[k]:
            k = border[k - 1]
        border[i] = k + (backwards[i] == backwards[k])
        period = i + 1 - border[i]
        if (i + 1) // period >= copies and i + 1 >= copies * shortest:
            return True
    return False
