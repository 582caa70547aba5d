"""What PACE-LM asks, as versioned templates in our own words, and how each reply is read.

The paper's wording is not public. The first phase has no slot for the proposal: what a template does not name, it
cannot show.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from workbench.feedback import replies
from workbench.feedback.templates import Template

SHOWN = """You look at an incident in a cloud service. Below it are earlier incidents whose causes are known, the most \
similar first.

Current incident
{incident}

Earlier incidents

{references}

"""
PROPOSED = SHOWN + "Proposed cause: {prediction}\n\n"
ANALYSED = "Analysis\n{analysis}\n\n"

COE_ANALYSIS = Template(
    "coe-analysis",
    SHOWN
    + "Compare the current incident with every earlier one: which of its symptoms match, and which do not? Then say"
    " whether a cause of the current incident could be argued from these references at all. Do not name a cause. At"
    " most 200 words.",
)
COE_ANSWER = Template(
    "coe-answer",
    SHOWN
    + ANALYSED
    + "Is the evidence in these earlier incidents enough to judge what caused the current one? Reply with one line: "
    '"Sufficient: yes" or "Sufficient: no".',
)
RCE_ANALYSIS = Template(
    "rce-analysis",
    PROPOSED
    + "Which of the earlier incidents support the proposed cause, which speak against it, and what is missing to be"
    " sure of it? At most 200 words.",
)
RCE_RATING = Template(
    "rce-rating",
    PROPOSED + ANALYSED + "How well do the earlier incidents support the proposed cause?\n"
    "0: they contradict it.\n1: they point to something else.\n2: they say nothing for it.\n"
    "3: it is plausible, without direct support.\n4: an incident much like this one had this cause.\n"
    "5: they document the same fault with the same symptoms.\n"
    'Reply with one line: "Score: " and a whole number from 0 to 5.',
)
STATE = (
    'How probable is it that the proposed cause is right? Reply with one line: "Confidence: " and a number from 0 to 1.'
)
DIRECT = Template(
    "direct",
    (
        "You look at an incident in a cloud service.\n\nCurrent incident\n{incident}\n\nProposed cause:"
        " {prediction}\n\n" + STATE
    ),
)
DIRECT_REFERENCES = Template("direct-references", PROPOSED + STATE)


def read_sufficient(text: str) -> float:
    """1 for the last "Sufficient: yes", 0 for "no"; else a lone leading yes or no; else NaN."""
    said = re.findall(r"\bsufficient[*_ \t]*[:=][*_ \t]*(yes|no)\b(?!\s*(?:/|\||or\b))", text, re.IGNORECASE)
    lone = re.match(r"\W*(yes|no)\s*(?:[.,;:!\n*]|$)", text, re.IGNORECASE)
    word = said[-1] if said else lone[1] if lone else ""
    return {"yes": 1.0, "no": 0.0}.get(word.casefold(), math.nan)


def read_score(text: str) -> float:
    """The number behind the last "Score:", as a share of 5; NaN for none, a fraction, a range, one outside 0 to 5."""
    said = re.findall(r"\bscore[*_ \t]*[:=][*_ \t]*(-?\d+(?:\.\d+)?)(?!\d)(\s*(?:-|–|to)\s*\d)?", text, re.IGNORECASE)
    number, is_range = said[-1] if said else ("", "")
    return int(number) / 5 if re.fullmatch(r"[0-5]", number) and not is_range else math.nan


class Phase(NamedTuple):
    """One of the questions that are asked about a case.

    Attributes:
        name: of its score.
        analysis: the first prompt, or None where the answer is asked at once.
        answer: the second prompt, with the slot `analysis` where there is one.
        read: reply -> value, NaN where it cannot be read.
    """

    name: str
    analysis: Template | None
    answer: Template
    read: Callable[[str], float]


PHASES = {
    "coe": Phase("coe", COE_ANALYSIS, COE_ANSWER, read_sufficient),
    "rce": Phase("rce", RCE_ANALYSIS, RCE_RATING, read_score),
}
STATED = {  # baselines: the model says a number itself
    "direct": Phase("direct", None, DIRECT, replies.confidence),
    "direct_references": Phase("direct_references", None, DIRECT_REFERENCES, replies.confidence),
}
