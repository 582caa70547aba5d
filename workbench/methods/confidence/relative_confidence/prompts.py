"""The confidence preference: which of two of its own answers is a model surer of? The prompt, and how replies are read.

The paper's wording is not public; this one is ours.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.feedback import chat, replies
from workbench.tasks.questions import Question, shown, shown_answer

# Shares of the text and of the options that stay, tried in this order while a prompt is too long.
SHORTEN = ((1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.1, 1.0), (0.1, 0.5), (0.1, 0.25), (0.1, 0.1))


def compare_prompt(left: str, right: str, cot: bool) -> str:
    """Asks which of two answered questions the model is surer of."""
    reasons = "You may explain your choice in a sentence or two first." if cot else "Give no reasons."
    return (
        "Here are two questions, each with the answer that you gave. Which of your two answers are you more confident "
        f'is right?\n\nQuestion 1: {left}\n\nQuestion 2: {right}\n\n{reasons} End with the line "More confident: 1" or '
        '"More confident: 2".'
    )


def compare_request(
    left: Question, right: Question, model: chat.ChatModel, *, cot: bool, max_tokens: int
) -> chat.Request:
    """The prompt for two players. One that is too long loses question text first, options last, answers never."""
    for text_share, option_share in SHORTEN:
        first, second = (
            f"{shown(p, text_share=text_share, option_share=option_share)}\nYour answer: {shown_answer(p['answer'], p)}"
            for p in (left, right)
        )
        request = chat.Request(chat.user(compare_prompt(first, second, cot)), max_tokens=max_tokens)
        if model.fits(request):
            return request
    raise ValueError(
        f"questions {left['qid']!r} and {right['qid']!r} are too long for the context of {model.name}, even shortened; "
        "leave one of them out"
    )


def ask_judgments(
    players: list[Question],
    pairs: pd.DataFrame,
    *,
    model: chat.ChatModel,
    ask: Callable,
    cot: bool,
    max_tokens: int,
    seed: int,
) -> pd.DataFrame:
    """Every pair shown with the model's own answers, at temperature 0: the matchups table.

    `outcome` is 1 where the model is surer of the left answer, 0 for the right one, 0.5 for a tie or an unread reply.
    """
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    pair = partial(compare_request, model=model, cot=cot, max_tokens=max_tokens)
    texts = [
        replies.readable(reply)
        for reply in ask([pair(players[i], players[j]) for i, j in zip(left, right, strict=True)])
    ]
    read = [replies.preference(text, "More confident") for text in texts]
    qids = np.array([p["qid"] for p in players])
    table: dict[str, Any] = {"match_id": [f"m{i}" for i in range(len(pairs))], "round": pairs["round"]}
    table |= {"host": qids[pairs["host"]], "left": qids[left], "right": qids[right]}
    table |= {"outcome": [r.outcome for r in read], "raw_text": texts, "parse_status": [r.status for r in read]}
    return pd.DataFrame(table | {"model": model.name, "seed": seed})
