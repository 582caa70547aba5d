"""Pairs from short to long: the same question answered from a part of a document and from the whole of it.

Nothing but the model's own answers is used; the task gives documents, and questions where the model is not asked for
them.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench.data import Row
from workbench.kernels import sample
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.documents import prompt_ids

log = logging.getLogger(__name__)


class Asking(NamedTuple):
    """Who asks how much about which documents, and how questions and answers are drawn."""

    questions: str
    turns: int
    question_temperature: float
    question_top_p: float
    temperature: float
    top_p: float
    max_new_tokens: int
    min_length: int


class Turn(NamedTuple):
    """One question: the short text, both answers as texts and as the tokens that were drawn."""

    question: str
    short: str
    chosen: str
    rejected: str
    chosen_ids: list[int]
    rejected_ids: list[int]


COLUMNS = ("questions", "shorts", "chosen", "rejected", "chosen_ids", "rejected_ids")  # lists of a `Turn`'s fields


def make_pairs(
    documents: Sequence[Row], policy: Policy, how: Asking, run: Run, name: str, *, longest: int, seed: int
) -> pd.DataFrame:
    """One row a document: `row`, `chunks`, and lists with one entry a turn, the fields of `Turn` in the plural.

    The table is `<name>-pairs` in `run`, what was dropped `<name>-dropped`, how often `<name>-counts`.

    Args:
        longest: tokens that a document may have; looked at where `how.min_length` is above 0.

    Raises:
        ValueError: no document is left (the counts are named), or a given row whose lists differ in length.
    """

    def make() -> pd.DataFrame:
        counts: Counter = Counter()
        lost: list[dict[str, Any]] = []
        rng = np.random.default_rng([seed, 8])
        fitting = [(i, row) for i, row in enumerate(documents) if _fits(policy, row, how.min_length, longest, counts)]
        asked = [(i, row, *turn) for i, row in fitting for turn in _turns(row, i, how, rng, counts)]
        if how.questions == "model":
            asked = _self_asked(policy, [(i, row, short) for i, row, _, short, *_ in asked], how, rng, seed, counts)
        given = [entry for entry in asked if len(entry) > 4]
        turns = [(i, row, _given(policy, *rest)) for i, row, *rest in given] + _answered(
            policy, [entry for entry in asked if len(entry) == 4], how, seed, counts, lost
        )
        kept: dict[int, list[Turn]] = {}
        for i, _, turn in turns:
            kept.setdefault(i, []).append(turn)
        rows = [
            {"row": i, "chunks": list(documents[i]["chunks"])}
            | dict(zip(COLUMNS, map(list, zip(*of_document, strict=True)), strict=True))
            for i, of_document in sorted(kept.items())
        ]
        same = sum(row["chosen_ids"] == row["rejected_ids"] for row in rows)
        counts |= {"documents": len(documents), "rows": len(rows), "turns": len(turns)}
        counts["rows with the same answers"] = same
        run.cached(f"{name}-counts", lambda: dict(counts))
        run.table(f"{name}-dropped", lambda: pd.DataFrame(lost, columns=["question", "chosen", "rejected", "why"]))
        if not rows:
            raise ValueError(
                f"no {name} document is left: {dict(counts)}; raise max_new_tokens, or look at the table {name}-dropped"
            )
        return pd.DataFrame(rows)

    return run.table(f"{name}-pairs", make)


def _fits(policy: Policy, row: Row, shortest: int, longest: int, counts: Counter) -> bool:
    if not shortest:
        return True
    n = sum(len(policy.encode_part(chunk)) for chunk in row["chunks"])
    why = "documents below min_length" if n < shortest else "documents above the target length" if n > longest else ""
    counts.update([why] if why else [])
    return not why


def _turns(row: Row, index: int, how: Asking, rng: np.random.Generator, counts: Counter) -> list[tuple]:
    """(question, short text) of a document, or (question, short text, chosen, rejected) where answers are given.

    Raises:
        ValueError: given lists that are empty or differ in length; the row is named.
    """
    if how.questions == "model":
        places = sorted(rng.permutation(len(row["chunks"]))[: how.turns].tolist())
        return [("", row["chunks"][place]) for place in places]
    if not row["questions"]:
        counts["documents without a question (set questions='model')"] += 1
    shorts = row.get("short_prompts") or [row["chunks"][place] for place in row["chunk_of"]]
    document = "".join(row["chunks"])
    if strange := sum(short.strip() not in document for short in shorts) if row.get("short_prompts") else 0:
        counts["short texts that are not in their document"] += strange
        log.warning("row %d: %d of %d short texts are not in the document", index, strange, len(shorts))
    columns = [row["questions"], shorts]
    if "chosens" in row or "rejecteds" in row:
        columns += [row.get("chosens") or [], row.get("rejecteds") or []]
    if len({len(column) for column in columns}) != 1:
        names = ("questions", "short_prompts", "chosens", "rejecteds")
        sizes = ", ".join(f"{len(column)} {name}" for name, column in zip(names, columns, strict=False))
        raise ValueError(f"row {index}: a document needs as many of each; got {sizes}; mend or remove the row")
    return list(zip(*columns, strict=True))[: how.turns]


def _self_asked(
    policy: Policy, asked: list[tuple], how: Asking, rng: np.random.Generator, seed: int, counts: Counter
) -> list[tuple]:
    """The model writes questions about every short text; one is taken at random, behind a lead-in. Replies without
    exactly as many questions as were asked for are dropped and counted."""
    prompts = [prompt_ids(policy, [short], INSTRUCTION.format(n=N_QUESTIONS)) for _, _, short in asked]
    drawn: Any = {"temperature": how.question_temperature, "top_p": how.question_top_p, "seed": seed + 1}
    replies = sample(policy, prompts, max_new_tokens=how.max_new_tokens, **drawn)
    kept = []
    for (i, row, short), texts in zip(asked, replies.texts, strict=True):
        questions = parse_questions(texts[0])
        if questions is None:
            counts[f"replies without {N_QUESTIONS} questions"] += 1
        else:
            lead_in = LEAD_INS[int(rng.integers(len(LEAD_INS)))]
            kept.append((i, row, f"\n{lead_in} {questions[int(rng.integers(N_QUESTIONS))]}", short))
    return kept


def _answered(
    policy: Policy, asked: list[tuple], how: Asking, seed: int, counts: Counter, lost: list[dict]
) -> list[tuple[int, Row, Turn]]:
    """Both answers to every question; turns with an answer that nobody should learn from are dropped and listed."""
    shorts = [prompt_ids(policy, [short], question) for _, _, question, short in asked]
    longs = [prompt_ids(policy, row["chunks"], question) for _, row, question, _ in asked]
    if cut := sum(len(ids) + how.max_new_tokens > policy.max_length for ids in longs):
        counts["long texts cut to the window of the model that answers"] += cut
        told = "%d of %d long texts do not fit into %d tokens: the answers see their end"
        log.warning(told, cut, len(longs), policy.max_length)
    drawn: Any = {"temperature": how.temperature, "top_p": how.top_p, "seed": seed}
    answers = sample(policy, [*shorts, *longs], max_new_tokens=how.max_new_tokens, **drawn)
    turns = []
    for n, (i, row, question, short) in enumerate(asked):
        sides = (n, len(asked) + n)
        chosen, rejected = (answers.texts[side][0] for side in sides)
        ends = [answers.finish_reasons[side][0] for side in sides]
        why = next((why for text, end in zip((chosen, rejected), ends, strict=True) if (why := unfit(text, end))), "")
        if why:
            counts[why] += 1
            lost.append({"question": question, "chosen": chosen, "rejected": rejected, "why": why})
        else:
            tokens = [answers.tokens[side][0] for side in sides]
            turns.append((i, row, Turn(question, short, chosen, rejected, *tokens)))
    return turns


def _given(policy: Policy, question: str, short: str, chosen: str, rejected: str) -> Turn:
    return Turn(question, short, chosen, rejected, policy.encode_response(chosen), policy.encode_response(rejected))


def unfit(text: str, finish_reason: str) -> str:
    """Why an answer should not be learned from; "" if it may be."""
    if finish_reason == "length":
        return "answers cut off at max_new_tokens"
    if not text.strip():
        return "empty answers"
    if is_refusal(text):
        return "refusals"
    return "repetitive answers" if is_repetitive(text) else ""


N_QUESTIONS = 4
INSTRUCTION = (
    "\n\nWrite {n} comprehensive questions in English about the text above. Together they should test understanding,"
    " synthesis and the linking of ideas across the whole text. Every question must be unique and clear. Write only the"
    ' questions, numbered "1:" to "{n}:", one on each line.'
)
_LEADS = (
    "Based on the preceding descriptions|Based on the text above|Considering what was said above|Drawing on the"
    " material above|From the passages above|From what you have read|Given the text above|Given what precedes|Going by"
    " the descriptions above|In light of the text above|In view of the passages above|Keeping the text above in mind|"
    "Looking back at the text|Referring to the text above|Relying on the descriptions above|Taking the whole text into"
    " account|Using the information above|Using what the text says|With reference to the passages above|With the text"
    " above as your source"
)
LEAD_INS = tuple(f"{lead}," for lead in _LEADS.split("|"))
REFUSALS = ("i cannot", "i can't", "i can not", "i am unable", "i'm unable", "i am sorry", "i'm sorry", "i apologize")
REFUSALS += ("i apologise", "as an ai", "as a language model")


def parse_questions(text: str, n: int = N_QUESTIONS) -> list[str] | None:
    """The `n` numbered questions of a reply; None where there are more or fewer, or the numbers are not 1 to n."""
    lines = re.findall(r"^\s*(\d+)\s*[:.)]\s*(\S.*?)\s*$", text, re.MULTILINE)
    numbers = [int(number) for number, _ in lines]
    return [question for _, question in lines] if numbers == list(range(1, n + 1)) else None


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
