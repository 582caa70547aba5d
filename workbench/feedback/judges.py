"""A chat model as a judge: pairwise in both orders, and points from 0 to 6 for several answers side by side.

A reply that cannot be read is counted; it never becomes a 0 or a tie.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from workbench.feedback.chat import LETTERS, ChatModel, Request, user
from workbench.feedback.open_model import open_model
from workbench.feedback.replies import last_field, preference, readable

log = logging.getLogger(__name__)

POINTS = 6  # of the rubric below
POSITION_ONLY = 20  # verdicts for the same place, and none for the other, that no honest judge gives

PAIR_PROMPT = """Which of two answers to a request is better? Look at whether it is relevant, useful, correct and \
concise.

Request: {request}

Answer 1: {first}

Answer 2: {second}

Say in one sentence why, then end with exactly one line:
Better: <1, 2 or tie>"""

RUBRIC_PROMPT = """Judge {n} answers to the same request. Start each at 0 points and add:
1 point if it is relevant to the request, 1 more if it is useful beyond that, 1 more if all of it is correct,
1 more if it shows expert knowledge, 1 more if it is concise, 1 more if you would not change anything in it.

Request: {request}

{answers}

For each answer say in one sentence why. Then end with exactly {n} lines, one for each answer, in this form:
{form}"""


class ChatJudge:
    """Judges with a chat model.

    Args:
        model: who is asked. Replies at temperature 0, so asking twice changes nothing but the retries of `rate`.
        max_tokens: of a reply.
        retries: how often `rate` asks again, at temperature 1, after a reply without one number for each answer.

    Attributes:
        counts: "asked", "unparsed" replies; "retried" and "dropped" prompts of `rate`.
    """

    def __init__(self, model: ChatModel, *, max_tokens: int = 256, retries: int = 2):
        self.model, self.max_tokens, self.retries = model, max_tokens, retries
        self.counts: Counter[str] = Counter()

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better) for each row: the mean of both orders, or of the one that could be read; NaN for neither."""
        texts = [as_text(prompt) for prompt in prompts]
        orders = []
        for first, second in ((a, b), (b, a)):
            filled = zip(texts, first, second, strict=True)
            requests = [PAIR_PROMPT.format(request=t, first=one, second=two) for t, one, two in filled]
            replies = self.model.ask([Request(user(text), 0.0, self.max_tokens) for text in requests])
            read = [preference(readable(reply), "Better") for reply in replies]
            self.counts["asked"] += len(read)
            self.counts["unparsed"] += sum(verdict.status == "unparsed" for verdict in read)
            orders.append([np.nan if verdict.status == "unparsed" else verdict.outcome for verdict in read])
        both = np.array([orders[0], 1 - np.array(orders[1])])
        self._account(np.array(orders))
        known = np.isfinite(both).sum(0)
        return np.where(known > 0, np.nansum(both, 0) / np.maximum(known, 1), np.nan)

    def _account(self, orders: np.ndarray) -> None:
        """Says how the verdicts hang on the order that answers are shown in.

        Raises:
            ValueError: all that were read name the same place: such a judge knows nothing of the answers.
        """
        decided = orders[np.isfinite(orders) & (orders != 0.5)]
        if not len(decided):
            return
        pairs = orders[:, (np.isfinite(orders) & (orders != 0.5)).all(0)]
        first, flips = float(decided.mean()), float((pairs[0] == pairs[1]).mean()) if pairs.size else 0.0
        unread = float(np.isnan(orders).mean())
        log.info(
            "judge %s: the first answer won %.0f %% of %d decided verdicts, %.0f %% of pairs flip when the answers"
            " change places, %.0f %% unread",
            self.model.name,
            100 * first,
            len(decided),
            100 * flips,
            100 * unread,
        )
        if first in (0.0, 1.0) and len(decided) >= POSITION_ONLY:
            raise ValueError(
                f"judge {self.model.name} named the {'first' if first else 'second'} answer in all {len(decided)}"
                " verdicts, whatever it said: it is position and nothing else; take another"
            )

    def rate(self, prompts: Sequence, candidates: Sequence[Sequence[str]]) -> list[list[int] | None]:
        """Points 0 to 6 for all candidates of each prompt; None where no reply had exactly one for each."""
        found: list[list[int] | None] = [None] * len(prompts)
        for attempt in range(1 + self.retries):
            missing = [i for i, points in enumerate(found) if points is None]
            self.counts["retried"] += len(missing) if attempt else 0
            requests = [
                Request(user(rubric_prompt(prompts[i], candidates[i])), float(attempt > 0), self.max_tokens, attempt)
                for i in missing
            ]
            for i, reply in zip(missing, self.model.ask(requests), strict=True):
                found[i] = read_points(readable(reply), len(candidates[i]))
                self.counts["asked"] += 1
                self.counts["unparsed"] += found[i] is None
        self.counts["dropped"] += sum(points is None for points in found)
        return found


@dataclass
class RealJudge:
    """A judge of real text, loaded when it is first asked; what is loaded does not travel to other processes.

    Attributes:
        source: folder, hub id or address.
        kind: "reward", a sequence-classification model, P(a better) = sigma(score a - score b), or a pair model (of
            PairRM's kind, seen by its configuration); "chat", a model that is asked in words, in both orders.
    """

    source: str
    kind: Literal["reward", "chat"] = "reward"
    device: str = "auto"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_loaded"}

    @cached_property
    def _loaded(self) -> Any:
        if self.kind == "chat":
            return ChatJudge(open_model(self.source, device=self.device))
        from workbench.feedback.pair_model import PairModel, is_pair_model  # torch loads here, not before
        from workbench.training.reward_model import RewardModel

        if is_pair_model(self.source):
            return PairModel.load(self.source, device=self.device)
        return RewardModel.load(self.source, device=self.device)

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """The reward model's score of each response, [n].

        Raises:
            ValueError: it is a chat model or a pair model.
        """
        if self.kind != "reward" or not hasattr(self._loaded, "score"):
            raise ValueError(
                f"judge={self.source!r}, judge_kind={self.kind!r}: scores need a reward model; give the folder or hub"
                " id of a sequence-classification model with one label as judge"
            )
        return self._loaded.score(prompts, responses)

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row; NaN where a chat model could not be read in either order."""
        if self.kind == "chat":
            return self._loaded.prefer(prompts, a, b)
        if not hasattr(self._loaded, "score"):  # it reads both at once
            return self._loaded.prefer([as_text(prompt) for prompt in prompts], a, b)
        scores = self.score([*prompts, *prompts], [*a, *b])
        return 1 / (1 + np.exp(np.clip(scores[len(a) :] - scores[: len(a)], -500, 500)))

    def rate(self, prompts: Sequence, candidates: Sequence[Sequence[str]]) -> list[list[int] | None] | None:
        """The chat model's points, 0 to 6, for all candidates of a prompt side by side; None for a reward model."""
        return self._loaded.rate(prompts, candidates) if self.kind == "chat" else None


def open_judge(source: str, kind: Literal["reward", "chat"] = "reward", *, device: str = "auto") -> RealJudge:
    """The judge that a text names: a folder, a hub id, or (kind "chat") the address of a server."""
    return RealJudge(source, kind, device)


def rubric_prompt(prompt: Any, answers: Sequence[str]) -> str:
    """All answers to one prompt side by side, lettered, and the form of the reply."""
    shown = "\n\n".join(f"Answer {letter}: {text}" for letter, text in zip(LETTERS, answers, strict=False))
    form = "\n".join(f"Points {letter}: <0 to {POINTS}>" for letter in LETTERS[: len(answers)])
    return RUBRIC_PROMPT.format(n=len(answers), request=as_text(prompt), answers=shown, form=form)


def read_points(text: str, n: int) -> list[int] | None:
    """The number on the last "Points X:" line of each of `n` letters; None with fewer, more, or one out of 0 to 6."""
    named = set(re.findall(r"\bPoints ([A-Z])\b", text))
    points = [
        re.fullmatch(r"(\d+)(?:\s*/\s*6)?\.?", last_field(text, f"Points {letter}") or "") for letter in LETTERS[:n]
    ]
    if named - set(LETTERS[:n]) or any(match is None or int(match[1]) > POINTS for match in points):
        return None
    return [int(match[1]) for match in points if match]


def as_text(prompt: Any) -> str:
    """A prompt as a judge reads it: a chat turn by turn."""
    return prompt if isinstance(prompt, str) else "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
