"""Follow-ups: what a pleased or an annoyed user might say next, and their place behind a response in a real chat."""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from workbench.data import Row
from workbench.kernels import Group
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meeting import parts_of
from workbench.kernels.scoring import NanScore
from workbench.methods.reward.flr.phrases import PHRASES, POLARITIES
from workbench.models import Policy
from workbench.models.turns import render
from workbench.training.reference import model_key

log = logging.getLogger(__name__)

MARK = "FOLLOWUP7319"  # stands for the phrase while a chat is rendered
POSE = "Ask me a question. When I have answered, tell me in a sentence what you think of my answer."
Layout = Literal["next_turn", "swapped"]


@dataclass(frozen=True)
class FollowUps:
    """Phrases by dimension and polarity. The order of `phrases` is the order of every list of likelihoods."""

    sets: Mapping[str, Mapping[str, Sequence[str]]]

    @classmethod
    def of(
        cls,
        sets: Mapping[str, Mapping[str, Sequence[str]]] = PHRASES,
        dimensions: Sequence[str] = (),
        first: int | None = None,
    ) -> FollowUps:
        """The sets, or some dimensions and the `first` so many phrases of each polarity, without repetitions.

        Raises:
            ValueError: an unknown dimension, one without both polarities, or an empty phrase.
        """
        if unknown := [name for name in dimensions if name not in sets]:
            raise ValueError(f"unknown dimensions {unknown}; known: {', '.join(sets)}")
        different: dict[str, dict[str, list[str]]] = {}
        for name in dimensions or sets:
            for polarity in POLARITIES:
                phrases = list(sets[name].get(polarity, []))
                if not phrases or not all(phrase.strip() for phrase in phrases):
                    raise ValueError(
                        f"dimension {name!r}: {polarity} phrases are missing or empty; give at least one of each"
                    )
                once = list(dict.fromkeys(phrases))
                if repeated := len(phrases) - len(once):
                    log.warning("dimension %r: %d repeated %s phrases dropped", name, repeated, polarity)
                different.setdefault(name, {})[polarity] = once[:first]
        return cls(different)

    @cached_property
    def table(self) -> list[tuple[str, str, str]]:
        """(dimension, polarity, phrase) of every phrase."""
        return [(d, p, phrase) for d, both in self.sets.items() for p in POLARITIES for phrase in both[p]]

    @property
    def phrases(self) -> list[str]:
        return [phrase for _, _, phrase in self.table]

    def places(self, dimension: str, polarity: str) -> np.ndarray:
        """Where the phrases of one dimension and polarity stand among all."""
        return np.array([i for i, (d, p, _) in enumerate(self.table) if (d, p) == (dimension, polarity)])


@dataclass(frozen=True)
class Likelihoods:
    """How likely every follow-up is behind each response, and on what scale.

    Attributes:
        likelihoods: [row, phrase] in nats (or raw logits), in the order of `follow_ups.table`.
        key: of scorer, phrases, layout and statistic.
        cut_share: share of conversations that lost their beginning.
    """

    follow_ups: FollowUps
    likelihoods: np.ndarray
    key: str
    cut_share: float = 0.0

    def side(self, dimension: str, polarity: str, phrases: Any = slice(None)) -> np.ndarray:
        """Mean over one polarity's phrases, or some of them, [row]: both polarities weigh the same, however many."""
        return self.likelihoods[:, self.follow_ups.places(dimension, polarity)[phrases]].mean(1)

    @property
    def flr(self) -> np.ndarray:
        raise NotImplementedError

    @property
    def positive(self) -> np.ndarray:
        """The control that forgets what an annoyed user would say, [row]."""
        return np.mean([self.side(dimension, "positive") for dimension in self.follow_ups.sets], axis=0)

    def __sub__(self, other: Likelihoods) -> np.ndarray:
        """How much better these responses are than `other`, [row].

        Raises:
            ValueError: another scorer, set of phrases, layout or statistic: they share no scale.
        """
        if self.key != other.key:
            raise ValueError(
                f"follow-up scores of different scorers or sets of phrases share no scale ({self.key}, {other.key});"
                " score all responses with one scorer and one set"
            )
        return self.flr - other.flr


@dataclass(frozen=True)
class PlacedFollowUps:
    """Follow-ups as a scorer reads them: all of them are branches behind one conversation, which is read once.

    Attributes:
        layout: "next_turn", the follow-up is the user's next turn; "swapped", for scorers tuned on feedback: the user
            asks to be asked (`pose`), the assistant poses the last question, the user gives the response, the assistant
            says what it thinks.
        max_length: tokens of conversation and follow-up; 0 takes the scorer's context.
    """

    scorer: Policy
    follow_ups: FollowUps
    layout: Layout = "next_turn"
    pose: str = POSE
    max_length: int = 0

    @cached_property
    def branches(self) -> list[list[int]]:
        """Token ids of every phrase: its words alone, no template around them, no turn-end token.

        Raises:
            ValueError: a phrase without tokens.
        """
        branches = [self.scorer.encode_part(phrase) for phrase in self.follow_ups.phrases]
        if empty := [phrase for phrase, ids in zip(self.follow_ups.phrases, branches, strict=True) if not ids]:
            raise ValueError(f"the follow-up {empty[0]!r} has no tokens for the tokenizer of {self.scorer.name}")
        return branches

    @property
    def room(self) -> int:
        """Tokens that a conversation may have before the longest follow-up."""
        window = self.scorer.max_length
        return min(self.max_length or window, window) - max(map(len, self.branches))

    def before(self, prompt: Any, response: str) -> tuple[list[int], int]:
        """Token ids of everything before a follow-up, the header of its turn included; and how many of them, at the
        end, are the response and what comes behind it.

        Args:
            prompt: a text, or chat turns that end with the user's.

        Raises:
            ValueError: an empty response, turns that do not alternate or do not end with the user's, no chat template,
                or one that does not show the turns; the rendered text is given.
        """
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
        if not response.strip():
            raise ValueError("the response is empty: nothing was said that a user could react to; remove the row")
        spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
        if not spoken or spoken != [("user", "assistant")[i % 2] for i in range(len(spoken))] or spoken[-1] != "user":
            raise ValueError(
                f"the history must alternate user and assistant and end with the user; got {[t['role'] for t in turns]}"
            )
        if self.layout == "next_turn":
            chat = [*turns, {"role": "assistant", "content": response}, {"role": "user", "content": MARK}]
        else:
            said = (("user", self.pose), ("assistant", turns[-1]["content"]), ("user", response), ("assistant", MARK))
            chat = [{"role": role, "content": text} for role, text in said]
        tokenizer = self.scorer.tokenizer
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                f"the tokenizer of {self.scorer.name} has no chat template, so a follow-up has no turn to stand in"
            )
        try:
            text = render(tokenizer, chat, announce=False)
        except Exception as error:  # whatever the template raises
            raise ValueError(
                f"the chat template cannot render a turn behind the response: {error}; turns {chat}"
            ) from error
        if text.count(MARK) != 1 or response.strip() not in text.partition(MARK)[0]:
            raise ValueError(f"the chat template does not show the response and the turn behind it once each: {text!r}")
        text = text.partition(MARK)[0]
        tail = tokenizer(text[text.rindex(response.strip()) :], add_special_tokens=False).input_ids
        return list(tokenizer(text, add_special_tokens=False).input_ids), len(tail)

    def fits(self, row: Row) -> bool:
        """Whether a row's response can be scored whole."""
        _, tail = self.before(row["prompt"], row["response"])
        return tail + 1 <= self.room

    def groups(self, rows: Sequence[Row]) -> tuple[list[Group], int]:
        """One group a row (`prompt`, `response`), and how many conversations lost their beginning to fit.

        Raises:
            ValueError: a phrase without tokens, a response that does not fit, a row that `before` refuses; by number.
        """
        _warn_of_language([str(row["response"]) for row in rows], self.follow_ups)
        groups, n_cut, room = [], 0, self.room
        for number, row in enumerate(rows):
            try:
                ids, tail = self.before(row["prompt"], row["response"])
            except ValueError as error:
                raise ValueError(f"row {number}: {error}") from error
            if tail + 1 > room:
                raise ValueError(
                    f"row {number}: the response and its follow-ups need {tail + 1} tokens, {room} are there; raise"
                    " max_length"
                )
            n_cut += len(ids) > room
            groups.append(Group(ids[-room:], self.branches))
        if n_cut:
            log.warning("%d of %d conversations lost their beginning to fit into %d tokens", n_cut, len(rows), room)
        return groups, n_cut

    def in_microbatches(
        self, compute: Callable[[Policy, Sequence[Group]], Tensor], groups: Sequence[Group]
    ) -> np.ndarray:
        """`compute(scorer, some groups)` of all groups, [group, phrase]; what is NaN in half precision is computed in
        float32.

        Raises:
            NanScore: NaN in float32 too.
        """
        scorer, values = self.scorer, np.empty((len(groups), len(self.branches)))
        sizes, most = [n_tokens(group) for group in groups], tokens_per_microbatch(scorer.device)
        with torch.no_grad():
            for places in microbatches(range(len(groups)), sizes, max_tokens=most):
                part = [groups[i] for i in places]
                try:
                    computed = compute(scorer, part)
                except NanScore:
                    if scorer.model.dtype not in (torch.float16, torch.bfloat16):
                        raise
                    log.warning("NaN in %s: these rows are scored in float32", scorer.model.dtype)
                    scorer = Policy(copy.deepcopy(scorer.model).float(), scorer.tokenizer, scorer.name)
                    computed = compute(scorer, part)
                values[places] = computed.double().cpu().numpy()
        return values

    def key(self, statistic: str) -> str:
        """Of scorer, phrases, layout and statistic: scores with another key are on another scale."""
        pose = self.pose if self.layout == "swapped" else ""
        facts = [self.follow_ups.table, model_key(self.scorer), self.layout, pose, statistic]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]


def raw_logits(logits: Float[Tensor, " vocab"], ids: Sequence[int]) -> Tensor:
    """The statistic of the released script: the mean raw logit of the begin-of-text token and all tokens of a follow-up
    at one single position, that of its first token. No softmax, no shift, no product over tokens."""
    return logits[list(ids)].mean()


def raw_logits_behind(scorer: Policy, groups: Sequence[Group]) -> Tensor:
    """`raw_logits` of every follow-up of every group, [group, phrase]."""
    body, head, finish, _ = parts_of(scorer.model)
    start = [] if scorer.tokenizer.bos_token_id is None else [scorer.tokenizer.bos_token_id]
    rows = []
    for group in groups:
        # one token of each phrase is enough: the logits behind the first are all that is read
        ids = torch.tensor([[*group.prompt_ids, phrase[0]] for phrase in group.responses_ids], device=scorer.device)
        logits = finish(head(body(input_ids=ids, use_cache=False).last_hidden_state[:, -1]))
        both = zip(logits, group.responses_ids, strict=True)
        rows.append(torch.stack([raw_logits(line, [*start, *phrase]) for line, phrase in both]))
    values = torch.stack(rows)
    if bool(values.isnan().any()):
        raise NanScore([i for i, row in enumerate(values) if bool(row.isnan().any())])
    return values


def _warn_of_language(responses: Sequence[str], follow_ups: FollowUps) -> None:
    """A response in one script and phrases in another cannot follow each other."""

    def script(texts: Sequence[str]) -> str:
        letters = [c for text in texts for c in text[:200] if c.isalpha()]
        names = Counter(unicodedata.name(c, "?").split()[0] for c in letters)
        return names.most_common(1)[0][0].lower() if names else ""

    theirs, ours = script(responses[:50]), script(follow_ups.phrases)
    if theirs and ours and theirs != ours:
        log.warning(
            "responses are written in %s letters and the follow-ups in %s: take phrases in their language", theirs, ours
        )
