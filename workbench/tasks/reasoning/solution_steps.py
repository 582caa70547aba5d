"""Steps of a solution: cutting, labels, the first wrong one, and what a checker says in words.

Joining the steps of a text gives the text back. A step's label ("Step 3:") and the white space before it belong to what
comes before the step, so a model that is asked for a step never has to write the label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

from workbench.data import Row
from workbench.feedback.chat import Reply, Request, user
from workbench.feedback.replies import readable

OPENING = "Let's think step by step.\nStep 1:"
LABEL = re.compile(r"\s*\bStep \d+\s*:", re.IGNORECASE)
COLUMNS = ("prompt", "initial_reason_steps", "chosen", "rejected")


class StepVerifier(Protocol):
    """Says which steps and which final answers are right.

    Attributes:
        is_oracle: it never errs, and counts the wrong steps of a solution (`n_wrong`).
    """

    is_oracle: bool

    def split(self, text: str) -> list[str]:
        """Steps of a solution; `"".join(steps)` is the text."""
        ...

    def first_wrong(self, prompt: str, steps: Sequence[str]) -> int | None:
        """Place of the first wrong step; None where none was found."""
        ...

    def is_right(self, prompt: str, text: str) -> bool:
        """Whether the final answer is the right one."""
        ...

    def judge(self, prompt: str, text: str) -> bool | None:
        """As `is_right`; None where the answers cannot be compared."""
        ...

    def scores(self, prompt: str, steps: Sequence[str]) -> list[float]:
        """For each step a number in [0, 1]: how likely it is right, given all earlier steps."""
        ...


# ----------------------------------------------------------------------------------------------------------- cutting
def split_labelled(text: str) -> list[str]:
    """Cuts before every "Step k:" at the start of a line (and, in a text without labels, behind every blank line or,
    without these, every line)."""
    starts = [m.start() for m in re.finditer(r"(?:^|\n)[ \t]*Step \d+\s*:", text, re.IGNORECASE)]
    if not starts:
        breaks = r"\n\s*\n" if re.search(r"\n\s*\n", text.strip()) else r"\n"
        starts = [m.end() for m in re.finditer(breaks, text)]
    elif starts:
        starts = starts[1:]  # what stands before the first label belongs to the first step
    edges = [0, *[start for start in starts if 0 < start < len(text)], len(text)]
    return [text[a:b] for a, b in pairwise(edges) if b > a]


def cut_before(steps: Sequence[str], k: int) -> tuple[str, str]:
    """Everything up to step k, its label included, and step k itself without label and without white space behind
    it."""
    match = LABEL.search(steps[k]) if k == 0 else LABEL.match(steps[k])
    label = steps[k][: match.end()] if match else ""
    return "".join(steps[:k]) + label, steps[k][len(label) :].rstrip()


def label_of(prefix: str) -> int:
    """The number of the "Step k:" that a prefix ends with; 0 where it ends otherwise."""
    match = re.search(r"Step (\d+)\s*:\s*\Z", prefix, re.IGNORECASE)
    return int(match[1]) if match else 0


# -------------------------------------------------------------------------------------------------- rows of step pairs
def as_step_pairs(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Row], Counter]:
    """Rows with the columns of xinlai/Math-Step-DPO-10K, made sound, and how often what was mended or dropped.

    A prefix without a label at its end gets the next one; a label at the start of a step goes (the prefix has it); a
    step that runs on into the next label is cut there. Identical pairs and pairs with an empty step are dropped.

    Raises:
        ValueError: a column is missing or holds no text; the row is named. An empty `initial_reason_steps` is legal and
            means that the first step is compared.
    """
    kept: list[Row] = []
    counts: Counter = Counter()
    for number, row in enumerate(rows):
        for column in COLUMNS:
            if not isinstance(row.get(column), str) or (column == "prompt" and not row[column].strip()):
                raise ValueError(
                    f"row {number}, column {column!r}: text is needed; got {row.get(column)!r}. Step pairs need "
                    f"{', '.join(COLUMNS)} (an empty initial_reason_steps compares first steps); found {', '.join(row)}"
                )
        prefix = row["initial_reason_steps"]
        if not label_of(prefix):
            counts["label added to the prefix"] += 1
            labels = [int(n) for n in re.findall(r"Step (\d+)\s*:", prefix, re.IGNORECASE)]
            prefix = f"{prefix.rstrip()}\nStep {max(labels, default=0) + 1}:" if prefix.strip() else OPENING
        sides = {}
        for side in ("chosen", "rejected"):
            step = row[side]
            if label := LABEL.match(step):
                counts["double label removed"] += 1
                step = step[label.end() :]
            if label := re.search(r"\n\s*Step \d+\s*:", step, re.IGNORECASE):
                counts["cut at the next label"] += 1
                step = step[: label.start()]
            sides[side] = step.rstrip()
        if not all(step.strip() for step in sides.values()):
            counts["empty step"] += 1
        elif sides["chosen"].strip() == sides["rejected"].strip():
            counts["identical"] += 1
        else:
            kept.append({"prompt": row["prompt"], "prefix": prefix, **sides})
    return kept, counts


# --------------------------------------------------------------------------------------------------------- the checker
class Located(NamedTuple):
    """Where a solution goes wrong: the place of the step, or None and why nothing was found."""

    step: int | None
    reason: str = ""


def checker_prompt(problem: str, reference: str, solution: str) -> str:
    """Asks a model for the first wrong step of a labelled solution."""
    return (
        "Here are a problem, a reference solution and a solution written step by step that ends in a wrong answer."
        f" Find its first wrong step.\n\n### Problem\n{problem}\n\n### Reference\n{reference}\n\n###"
        f" Solution\n{solution}\n\nFirst analyse the steps in at most 200 words. Then write a line that begins with"
        ' "Final Decision:" and judges the steps in order, each with one of the labels correct, neutral, incorrect,'
        ' for example "Step 1: correct; Step 2: neutral; Step 3: incorrect". Stop at the first incorrect step.'
    )


def parse_decision(reply: str) -> Located:
    """The first step that a checker calls neutral or incorrect, counted from 0.

    The rule of the official code: lower-case, the text behind the last "final decision", the first label that is
    neutral or incorrect. So a step that leads nowhere counts as the error.
    """
    lowered = reply.lower()
    if "final decision" not in lowered:
        return Located(None, "no decision line")
    decision = lowered.rpartition("final decision")[2]
    labels = re.findall(r"step\s*(\S+?)\s*:\s*\W*(correct|neutral|incorrect)\b", decision)
    if not labels:
        return Located(None, "no step was judged")
    for number, label in labels:
        if label != "correct":
            return Located(int(number) - 1) if number.isdigit() and int(number) else Located(None, "unreadable number")
    return Located(None, "every step is called correct")


def ask_checker(
    ask: Callable[[list[Request]], list[Reply]],
    problems: Sequence[tuple[str, str, list[str]]],
    *,
    max_tokens: int = 512,
) -> tuple[list[Located], list[str]]:
    """Where the checker sees the first error of each (problem, reference, steps), and its replies."""
    requests = [
        Request(user(checker_prompt(problem, reference, "".join(steps))), 0.0, max_tokens)
        for problem, reference, steps in problems
    ]
    replies = [readable(reply) for reply in ask(requests)]
    places = []
    for reply, (_, _, steps) in zip(replies, problems, strict=True):
        located = parse_decision(reply)
        if located.step is not None and located.step >= len(steps):
            located = Located(None, "step beyond the solution")
        places.append(located)
    return places, replies


def locate(verifier: StepVerifier, solutions: Sequence[tuple[str, str]]) -> tuple[list[Located], list[str]]:
    """Where each wrong (prompt, text) goes wrong first, and what a checker in words replied ("" for an oracle).

    A verifier may have a method `locate` of its own, which answers all at once.
    """
    if several := getattr(verifier, "locate", None):
        return several(solutions)
    places = []
    for prompt, text in solutions:
        step = verifier.first_wrong(prompt, verifier.split(text))
        places.append(Located(step, "" if step is not None else "every step is called correct"))
    return places, [""] * len(places)
