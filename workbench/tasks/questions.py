"""Questions: the rows and their checks, how a model is asked them, how its answers are read, how far they agree.

A question is a row `qid`, `question`, `choices` (list of option texts; empty for an open answer), `gold`, `dataset`.
Inside the project `gold` is the index of the right option, the comparable text of an open answer, or None (unknown).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import data
from workbench.feedback.chat import LETTERS, ChatModel, Reply, Request, user
from workbench.feedback.open_model import open_model
from workbench.feedback.replies import account, choice, confidence, last_field, readable

Question = dict[str, Any]
Answer = int | str  # index of an option, or the comparable text of an open answer


@dataclass(frozen=True)
class QuestionFile:
    """Real questions for a real model: the rows are checked at once, weights are loaded at the first question.

    Args:
        rows: from `check_questions`.
        model: folder, hub id or a server's address with its model (`chat.open_model`).
        n_questions: at most so many of each data set; another seed draws others.
    """

    rows: list[Question]
    model: str
    device: str
    n_questions: int
    arms: tuple[str, ...] = ("questions",)
    is_simulated: bool = False

    @classmethod
    def load(cls, dataset: str, *, model: str, device: str, n_questions: int) -> QuestionFile:
        """Reads and checks a JSONL, JSONL.gz or Parquet file, a folder or a hub data set.

        Raises:
            FileNotFoundError: no such file.
            ValueError: a row that is no question (row and column are named).
        """
        name = Path(dataset).name.split(".")[0]
        return cls(check_questions(data.load(dataset), dataset=name), model, device, n_questions)

    def questions(self, seed: int) -> list[Question]:
        rng = np.random.default_rng([seed, 0])
        kept = [np.sort(rng.permutation(len(rows))[: self.n_questions]) for rows in by_data_set(self.rows).values()]
        return [rows[i] for rows, keep in zip(by_data_set(self.rows).values(), kept, strict=True) for i in keep]

    def subject(self, arm: str, seed: int) -> ChatModel:
        return open_model(self.model, device=self.device, seed=seed)


def by_data_set(rows: Sequence[Question]) -> dict[str, list[Question]]:
    """The questions of each data set, in order: rankings never cross from one data set to another."""
    groups: dict[str, list[Question]] = {}
    for row in rows:
        groups.setdefault(row["dataset"], []).append(row)
    return groups


def check_questions(rows: Sequence[Mapping[str, Any]], *, dataset: str = "questions") -> list[Question]:
    """The rows in the project's form.

    Args:
        rows: `gold` may be an index from 0, a letter from "A", the text of an option, an open answer, or null.
        dataset: for rows without that column.

    Raises:
        ValueError: a missing column or empty text; a repeated `qid`; 1 or more than 26 choices; a `gold` that is none
            of the choices. Row and column are named.
    """
    checked: list[Question] = []
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        for column in ("qid", "question"):
            if not isinstance(row.get(column), str | int) or not str(row[column]).strip():
                columns = ", ".join(map(str, row))
                raise ValueError(
                    f"row {number}, column {column!r}: text is needed; got {row.get(column)!r}; found {columns}"
                )
        qid, choices = str(row["qid"]), row.get("choices")
        if qid in seen:
            raise ValueError(
                f"row {number}, column 'qid': {qid!r} stands in row {seen[qid]} too; every question needs its own"
            )
        if isinstance(choices, str) or not isinstance(choices, Sequence | np.ndarray | None):
            raise ValueError(
                f"row {number}, column 'choices': a list of texts is needed, empty for an open answer; got {choices!r}"
            )
        choices = [] if choices is None else [str(option) for option in choices]
        if choices and not 2 <= len(choices) <= len(LETTERS):
            raise ValueError(
                f"row {number}, column 'choices': 2 to {len(LETTERS)} texts are needed, or none; got {choices!r}"
            )
        seen[qid] = number
        gold, name = _gold(row.get("gold"), choices, number), str(row.get("dataset") or dataset)
        checked.append(
            {"qid": qid, "question": str(row["question"]), "choices": choices, "gold": gold, "dataset": name}
        )
    return checked


def _gold(gold: Any, choices: list[str], number: int) -> Answer | None:
    if gold is None or (isinstance(gold, float) and math.isnan(gold)):
        return None
    if not choices:
        return comparable(str(gold))
    if isinstance(gold, str):
        letter = gold.strip().upper()
        index = choices.index(gold) if gold in choices else LETTERS.find(letter) if len(letter) == 1 else -1
    else:
        index = int(gold) if isinstance(gold, int | float) and not isinstance(gold, bool) and gold == int(gold) else -1
    if not 0 <= index < len(choices):
        raise ValueError(
            f"row {number}, column 'gold': index from 0, letter or text of one of {len(choices)} choices is needed, "
            f"or null; got {gold!r}"
        )
    return index


def comparable(answer: str) -> str:
    """An open answer as it is compared: case, marks around it, thousands separators and how a number is written (3.50
    is 3.5) do not count."""
    plain = re.sub(r"(?<=\d),(?=\d{3})", "", answer).strip(" \t.$*`\"'").casefold()
    number = re.fullmatch(r"([-+]?)0*(\d+)(?:\.(\d*?)0*)?", plain)
    if number is None:
        return plain
    digits = number[2] + (f".{number[3]}" if number[3] else "")
    return ("-" if number[1] == "-" and digits != "0" else "") + digits


# -------------------------------------------------------------------------------------------------- text in, text out
def shown(question: Question, *, text_share: float = 1.0, option_share: float = 1.0) -> str:
    """The question and its lettered options as a model sees them.

    Args:
        text_share, option_share: share of the characters of the text, and of every option, that stays; the middle goes.
    """
    options = [
        f"{letter}. {_cut(option, option_share)}" for letter, option in zip(LETTERS, question["choices"], strict=False)
    ]
    return "\n".join([_cut(question["question"], text_share), *options])


def shown_answer(answer: Answer, question: Question) -> str:
    """The letter and the whole text of the option, or the open answer."""
    return f"{LETTERS[answer]}. {question['choices'][answer]}" if isinstance(answer, int) else answer


def read_answer(text: str, question: Question) -> Answer | None:
    """The answer on the last "Answer:" line; None when there is none that the question allows."""
    if question["choices"]:
        return choice(text, len(question["choices"]))
    return comparable(last_field(text, "Answer") or "") or None


def _cut(text: str, share: float) -> str:
    keep = int(share * len(text))
    cut = f"{text[: keep - keep // 2]} [...] {text[len(text) - keep // 2 :]}"
    return cut if len(cut) < len(text) else text


# ------------------------------------------------------------------------------------------------------------ asking
Ask = Callable[[list[Request]], list[Reply]]  # a model behind its transcript


def answer_prompt(question: Question) -> str:
    """Asks for the answer and for a stated confidence, each on a line of its own."""
    form = "the letter of one option" if question["choices"] else "your answer, as short as possible"
    return (
        f"Answer this question.\n\nQuestion: {shown(question)}\n\nEnd with exactly two lines:\nAnswer: <{form}>\n"
        "Confidence: <a number from 0 to 1; near 0: the answer is probably wrong, near 1: it is probably right>"
    )


def ask_answers(
    questions: list[Question], ask: Ask, *, max_tokens: int, on_missing: Literal["stop", "drop"] = "stop"
) -> tuple[list[Question], list[str]]:
    """One greedy reply to each question.

    Returns:
        The answered questions, with `answer`, `confidence` (NaN where unread) and `correct` (1, 0, None without gold);
        and the `qid` of those without a readable answer, which were dropped.

    Raises:
        ValueError: questions without a readable answer where `on_missing` is "stop"; fewer than 2 answered ones.
    """
    answered, missing = [], []
    replies = ask([Request(user(answer_prompt(q)), 0.0, max_tokens) for q in questions])
    for question, reply in zip(questions, replies, strict=True):
        answer = read_answer(readable(reply), question)
        if answer is None:
            missing.append(question["qid"])
            continue
        correct = None if question["gold"] is None else int(answer == question["gold"])
        answered.append({**question, "answer": answer, "confidence": confidence(readable(reply)), "correct": correct})
    told = account(replies, [question["qid"] not in missing for question in questions])
    if missing and on_missing == "stop":
        names = ", ".join(missing[:10]) + ", ..." * (len(missing) > 10)
        raise ValueError(
            f"no answer could be read for {len(missing)} of {len(questions)} questions ({names}); "
            f"on_missing='drop' goes on without them, a larger max_tokens lets cut ones end: {told}"
        )
    if len(answered) < 2:
        raise ValueError(
            f"a ranking needs at least 2 answered questions; {questions[0]['dataset']!r} has {len(answered)} of "
            f"{len(questions)}: {told}"
        )
    return answered, missing


def ask_samples(
    answered: list[Question], ask: Ask, k: int, *, temperature: float, max_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """`k` samples of each question: whether they agree with its answer, and their stated confidence.

    Returns:
        Two arrays [questions, k], NaN where unread.
    """
    owners = [question for question in answered for _ in range(k)]
    replies = ask([Request(user(answer_prompt(q)), temperature, max_tokens, i % k) for i, q in enumerate(owners)])
    answers = [read_answer(readable(reply), q) for reply, q in zip(replies, owners, strict=True)]
    agree = [
        math.nan if answer is None else float(answer == q["answer"]) for answer, q in zip(answers, owners, strict=True)
    ]
    return np.reshape(agree, (-1, k)), np.reshape([confidence(readable(reply)) for reply in replies], (-1, k))


def option_confidence(answered: list[Question], model: ChatModel, *, max_tokens: int) -> np.ndarray | None:
    """Probability of the given answer's letter among all options' letters, from a model that shows log-probabilities.

    Returns:
        [questions] in [0, 1]; None where the model shows none (a server) or a question is open.
    """
    label_logps = getattr(model, "label_logps", None)
    if label_logps is None or not all(q["choices"] for q in answered):
        return None
    requests = [Request(user(answer_prompt(q)), 0.0, max_tokens) for q in answered]
    rows = label_logps(requests, [LETTERS[: len(q["choices"])] for q in answered])
    return np.array(
        [np.exp(row - np.logaddexp.reduce(row))[q["answer"]] for row, q in zip(rows, answered, strict=True)]
    )


def answer_table(players: list[Question]) -> pd.DataFrame:
    """Columns `qid`, `question`, `answer`, `correct`: what a person reads beside a score."""
    return pd.DataFrame(
        {
            "qid": [p["qid"] for p in players],
            "question": [p["question"] for p in players],
            "answer": [shown_answer(p["answer"], p) for p in players],
            "correct": [p["correct"] for p in players],
        }
    )


# ---------------------------------------------------------------------------------------------- repeated answers
def self_consistency(agree: np.ndarray, stated: np.ndarray) -> dict[str, np.ndarray]:
    """Confidence from repeated answers: how many agree with the one that is scored, and how sure they say they are.

    Args:
        agree: [questions, samples], 1 where a sample gives the scored answer, 0 where another, NaN where unread.
        stated: [questions, samples], confidence in [0, 1], NaN where unread.

    Returns:
        Three scores [questions], higher is surer: `sc` is the share that agrees; `hybrid_sc` the same share weighted by
        stated confidence, sum(c agree) / sum(c) (Xiong et al. 2023); `hybrid_product` is `sc` times the mean confidence
        of the agreeing samples.
    """
    share, c = _nanmean(agree), np.where(np.isnan(agree), math.nan, stated)
    total, read = np.nansum(c, 1), np.isfinite(c).any(1)
    weighted = np.where(read, np.nansum(c * agree, 1) / np.where(total > 0, total, 1.0), math.nan)
    product = np.where(share == 0, 0.0, share * _nanmean(np.where(agree == 1, c, math.nan)))
    return {"sc": neutral(share), "hybrid_sc": neutral(weighted), "hybrid_product": neutral(product)}


def neutral(scores: np.ndarray) -> np.ndarray:
    """Scores with unread (NaN) ones at the mean of the read ones: they tell nothing, so they go neither first nor last.

    Raises:
        ValueError: none was read.
    """
    if not np.isfinite(scores).any():
        raise ValueError(
            f"none of {len(scores)} stated confidences could be read; look at the replies in transcript.jsonl"
        )
    return np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].mean())


def _nanmean(values: np.ndarray) -> np.ndarray:
    """Mean of each row without its NaN; NaN where nothing is left."""
    count = np.isfinite(values).sum(1)
    return np.where(count > 0, np.nansum(values, 1) / np.maximum(count, 1), math.nan)
