"""Follow-ups: what a pleased or an annoyed user might say next, and how likely a model finds it after a response.

A score belongs to its scorer and its set of phrases: it carries the key of both, and `comparable` refuses to mix them.
"""

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
from workbench.kernels import Group, score
from workbench.kernels.batching import cut, held_at_once, n_tokens
from workbench.kernels.heads import body_and_head
from workbench.kernels.scoring import NanScore
from workbench.methods.reward.flr.phrases import PHRASES, POLARITIES
from workbench.models import Policy
from workbench.training.reference import model_key

log = logging.getLogger(__name__)

STATISTICS = ("mean", "sum", "official_raw_logit")
MARK = "FOLLOWUP7319"  # stands for the phrase while a chat is rendered
POSE = "Ask me a question. When I have answered, tell me in a sentence what you think of my answer."
Layout = Literal["next_turn", "swapped"]


# ---------------------------------------------------------------------------------------------------------- the phrases
@dataclass(frozen=True)
class FollowUps:
    """Phrases by dimension and polarity. The order of `phrases` is the order of every list of likelihoods."""

    sets: Mapping[str, Mapping[str, Sequence[str]]]

    @classmethod
    def of(cls, sets: Mapping[str, Mapping[str, Sequence[str]]] = PHRASES, dimensions: Sequence[str] = ()) -> FollowUps:
        """The sets, or some dimensions of them, without repetitions.

        Raises:
            ValueError: an unknown dimension, one without both polarities, or an empty phrase.
        """
        if unknown := [name for name in dimensions if name not in sets]:
            raise ValueError(f"unknown dimensions {unknown}; known: {', '.join(sets)}")
        found: dict[str, dict[str, list[str]]] = {}
        for name in dimensions or sets:
            for polarity in POLARITIES:
                phrases = list(sets[name].get(polarity, []))
                if not phrases or not all(phrase.strip() for phrase in phrases):
                    raise ValueError(
                        f"dimension {name!r}: {polarity} phrases are missing or empty; give at least one of each"
                    )
                once = list(dict.fromkeys(phrases))
                if len(once) < len(phrases):
                    log.warning(
                        "dimension %r: %d repeated %s phrases dropped", name, len(phrases) - len(once), polarity
                    )
                found.setdefault(name, {})[polarity] = once
        return cls(found)

    @cached_property
    def table(self) -> list[tuple[str, str, str]]:
        """(dimension, polarity, phrase) of every phrase."""
        return [(d, p, phrase) for d, both in self.sets.items() for p in POLARITIES for phrase in both[p]]

    @property
    def phrases(self) -> list[str]:
        return [phrase for _, _, phrase in self.table]

    @property
    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.table).encode()).hexdigest()[:12]

    def weights(self, dimension: str = "", polarity: str = "") -> np.ndarray:
        """What each phrase's likelihood counts in the score of a dimension, "" for their mean; [phrase].

        Both polarities weigh the same, whatever their numbers of phrases. `polarity` keeps one of them alone.
        """
        names = [dimension] if dimension else list(self.sets)
        signs = {"positive": 1.0, "negative": -1.0}
        return np.array(
            [
                signs[p] / len(self.sets[d][p]) / len(names) if d in names and polarity in ("", p) else 0.0
                for d, p, _ in self.table
            ]
        )


# ------------------------------------------------------------------------------------------------------- their place
def before_follow_up(
    policy: Policy, prompt: Any, response: str, *, layout: Layout = "next_turn", pose: str = POSE
) -> tuple[list[int], int]:
    """Token ids of everything before a follow-up, the header of its turn included; and how many of them, at the end,
    are the response and what comes behind it.

    Args:
        prompt: a text, or chat turns that end with the user's.
        layout: "next_turn", the follow-up is the user's next turn; "swapped", for scorers tuned on feedback: the user
            asks to be asked (`pose`), the assistant poses the last question, the user gives the response, the assistant
            says what it thinks.

    Raises:
        ValueError: an empty response, turns that do not alternate or do not end with the user's, no chat template, or
            one that does not show the turns; the rendered text is given.
    """
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    if not response.strip():
        raise ValueError("the response is empty: nothing was said that a user could react to; remove the row")
    spoken = [turn["role"] for turn in turns if turn["role"] != "system"]
    if not spoken or spoken != [("user", "assistant")[i % 2] for i in range(len(spoken))] or spoken[-1] != "user":
        raise ValueError(
            f"the history must alternate user and assistant and end with the user; got {[t['role'] for t in turns]}"
        )
    if layout == "next_turn":
        chat = [*turns, {"role": "assistant", "content": response}, {"role": "user", "content": MARK}]
    else:
        asked = turns[-1]["content"]
        chat = [
            {"role": role, "content": text}
            for role, text in (("user", pose), ("assistant", asked), ("user", response), ("assistant", MARK))
        ]
    tokenizer = policy.tokenizer
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"the tokenizer of {policy.name} has no chat template, so a follow-up has no turn to stand in")
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=False))
    except Exception as error:
        raise ValueError(
            f"the chat template cannot render a turn behind the response: {error}; turns {chat}"
        ) from error
    if text.count(MARK) != 1 or response.strip() not in text.partition(MARK)[0]:
        raise ValueError(f"the chat template does not show the response and the turn behind it once each: {text!r}")
    text = text.partition(MARK)[0]
    start = text.rindex(response.strip())
    tail = tokenizer(text[start:], add_special_tokens=False).input_ids
    return list(tokenizer(text, add_special_tokens=False).input_ids), len(tail)


def follow_up_groups(
    policy: Policy,
    rows: Sequence[Row],
    follow_ups: FollowUps,
    *,
    layout: Layout = "next_turn",
    pose: str = POSE,
    max_length: int = 0,
) -> tuple[list[Group], int]:
    """One group a row (`prompt`, `response`): all follow-ups are branches behind one conversation; only their words are
    scored.

    Returns:
        The groups, and how many conversations lost their beginning to fit into `max_length` (0 takes the context).

    Raises:
        ValueError: a phrase without tokens, a response that does not fit, or a row that `before_follow_up` refuses, by
            number.
    """
    branches = [policy.encode_part(phrase) for phrase in follow_ups.phrases]
    room = room_behind(policy, branches, max_length)
    if empty := [phrase for phrase, ids in zip(follow_ups.phrases, branches, strict=True) if not ids]:
        raise ValueError(f"the follow-up {empty[0]!r} has no tokens for the tokenizer of {policy.name}; replace it")
    groups, n_cut = [], 0
    for number, row in enumerate(rows):
        try:
            ids, tail = before_follow_up(policy, row["prompt"], row["response"], layout=layout, pose=pose)
        except ValueError as error:
            raise ValueError(f"row {number}: {error}") from error
        if tail + 1 > room:
            raise ValueError(
                f"row {number}: the response and its follow-ups need {tail + 1} tokens, {room} are there; raise"
                " max_length"
            )
        n_cut += len(ids) > room
        groups.append(Group(ids[-room:], branches))
    if n_cut:
        log.warning("%d of %d conversations lost their beginning to fit into %d tokens", n_cut, len(rows), room)
    return groups, n_cut


def room_behind(policy: Policy, branches: Sequence[Sequence[int]], max_length: int) -> int:
    """Tokens that a conversation may have before the longest follow-up."""
    return min(max_length or policy.max_length, policy.max_length) - max(map(len, branches))


def fits(
    policy: Policy,
    row: Row,
    follow_ups: FollowUps,
    *,
    layout: Layout = "next_turn",
    pose: str = POSE,
    max_length: int = 0,
) -> bool:
    """Whether a row's response can be scored whole."""
    branches = [policy.encode_part(phrase) for phrase in follow_ups.phrases]
    _, tail = before_follow_up(policy, row["prompt"], row["response"], layout=layout, pose=pose)
    return tail + 1 <= room_behind(policy, branches, max_length)


# ---------------------------------------------------------------------------------------------------------- the scores
@dataclass(frozen=True)
class Scored:
    """Likelihoods of all follow-ups behind each response, and what they were computed with.

    Attributes:
        likelihoods: [row, phrase] in nats (or raw logits), in the order of `follow_ups.table`.
        key: of scorer, phrases, layout and statistic; scores with another key are on another scale.
        cut_share: share of conversations that lost their beginning.
    """

    follow_ups: FollowUps
    likelihoods: np.ndarray
    key: str
    cut_share: float = 0.0

    def dimension(self, name: str = "", polarity: str = "") -> np.ndarray:
        """Mean likelihood of the positive phrases minus that of the negative ones, [row]; "" takes the mean over
        dimensions."""
        return self.likelihoods @ self.follow_ups.weights(name, polarity)

    @property
    def flr(self) -> np.ndarray:
        return self.dimension()

    def of_phrases(self, wanted: Sequence[int]) -> np.ndarray:
        """The score from the `wanted`-th positive and negative phrases of every dimension alone, [row]."""
        parts = []
        for name, both in self.follow_ups.sets.items():
            for polarity, sign in (("positive", 1.0), ("negative", -1.0)):
                places = [i for i, (d, p, _) in enumerate(self.follow_ups.table) if (d, p) == (name, polarity)]
                parts.append(sign * self.likelihoods[:, [places[k % len(both[polarity])] for k in wanted]].mean(1))
        return np.sum(parts, axis=0) / len(self.follow_ups.sets)


def comparable(*scored: Scored) -> None:
    """Raises a ValueError where scores come from other scorers, phrases, layouts or statistics: they share no scale."""
    if len(keys := {one.key for one in scored}) > 1:
        raise ValueError(
            f"follow-up scores of different scorers or sets of phrases share no scale ({', '.join(sorted(keys))});"
            " score all responses with one scorer and one set"
        )


def follow_up_scores(
    policy: Policy,
    rows: Sequence[Row],
    follow_ups: FollowUps,
    *,
    statistic: str = "mean",
    layout: Layout = "next_turn",
    pose: str = POSE,
    max_length: int = 0,
) -> Scored:
    """How likely the model finds every follow-up behind every row's `response` to its `prompt`.

    Args:
        statistic: "mean", log-likelihood a token; "sum", of the whole phrase; "official_raw_logit", what the released
            script computes, which is no likelihood, see `raw_logits`.

    Raises:
        ValueError: an unknown statistic, or rows and phrases that `follow_up_groups` refuses.
        NanScore: NaN log-probabilities, in float32 too.
    """
    if statistic not in STATISTICS:
        raise ValueError(f"unknown statistic {statistic!r}; known: {', '.join(STATISTICS)}")
    _warn_of_language(rows, follow_ups)
    groups, n_cut = follow_up_groups(policy, rows, follow_ups, layout=layout, pose=pose, max_length=max_length)
    found = np.empty((len(groups), len(follow_ups.phrases)))
    compute: Callable[[Policy, Sequence[Group]], Tensor] = (
        _raw
        if statistic == "official_raw_logit"
        else (lambda policy, part: getattr(score(policy, part), f"{statistic}s"))
    )
    scorer, sizes = policy, [n_tokens(group) for group in groups]
    with torch.no_grad():
        for part in cut(range(len(groups)), sizes, max_tokens=held_at_once(policy.device)):
            try:
                values = compute(scorer, [groups[i] for i in part])
            except NanScore:
                if scorer.model.dtype not in (torch.float16, torch.bfloat16):
                    raise
                log.warning("NaN in %s: these rows are scored in float32", scorer.model.dtype)
                scorer = Policy(copy.deepcopy(policy.model).float(), policy.tokenizer, policy.name)
                values = compute(scorer, [groups[i] for i in part])
            found[part] = values.double().cpu().numpy()
    facts = [follow_ups.key, model_key(policy), layout, pose if layout == "swapped" else "", statistic]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:12]
    return Scored(follow_ups, found, key, n_cut / max(len(rows), 1))


def _raw(policy: Policy, groups: Sequence[Group]) -> Tensor:
    """`raw_logits` of every follow-up of every group, [group, phrase]."""
    body, head = body_and_head(policy.model)
    start = policy.tokenizer.bos_token_id
    found = []
    for group in groups:
        # one token of each phrase is enough: the logits behind the first are all that is read
        ids = torch.tensor([[*group.prompt_ids, phrase[0]] for phrase in group.responses_ids], device=policy.device)
        logits = head(body(input_ids=ids, use_cache=False).last_hidden_state[:, -1])
        added = [] if start is None else [start]
        rows = [raw_logits(line, [*added, *phrase]) for line, phrase in zip(logits, group.responses_ids, strict=True)]
        found.append(torch.stack(rows))
    values = torch.stack(found)
    if bool(values.isnan().any()):
        raise NanScore([i for i, row in enumerate(values) if bool(row.isnan().any())])
    return values


def raw_logits(logits: Float[Tensor, " vocab"], ids: Sequence[int]) -> Tensor:
    """The statistic of the released script: the mean raw logit of the begin-of-text token and all tokens of a follow-up
    at one single position, that of its first token. No softmax, no shift, no product over tokens."""
    return logits[list(ids)].mean()


def length_bias(values: np.ndarray, responses: Sequence[str]) -> dict[str, float]:
    """How much a score follows the length of the response: Spearman's correlation with the number of words; 0 where
    either is constant."""
    from scipy import stats

    lengths = np.array([len(text.split()) for text in responses])
    if np.ptp(lengths) == 0 or np.ptp(values) == 0:
        return {"length_correlation": 0.0, "mean_words": float(lengths.mean())}
    found: Any = stats.spearmanr(values, lengths)
    return {"length_correlation": float(found.statistic), "mean_words": float(lengths.mean())}


def _warn_of_language(rows: Sequence[Row], follow_ups: FollowUps) -> None:
    def script(texts: Sequence[str]) -> str:
        letters = [c for text in texts for c in text[:200] if c.isalpha()]
        names = Counter(unicodedata.name(c, "?").split()[0] for c in letters)
        return names.most_common(1)[0][0] if names else ""

    theirs, ours = script([str(row["response"]) for row in rows[:50]]), script(follow_ups.phrases)
    if theirs and ours and theirs != ours:
        log.warning(
            "responses are written in %s letters and the follow-ups in %s: take phrases in their language",
            theirs.lower(),
            ours.lower(),
        )


# ---------------------------------------------------------------------------------------------------- how good they are
def pairwise_accuracy(better: Scored | np.ndarray, worse: Scored | np.ndarray) -> float:
    """Share of pairs in which the better response has the higher score; ties count half.

    Raises:
        ValueError: scores of different scorers or sets of phrases.
    """
    if isinstance(better, Scored) and isinstance(worse, Scored):
        comparable(better, worse)
    a, b = (one.flr if isinstance(one, Scored) else np.asarray(one) for one in (better, worse))
    return float(np.mean(0.5 + 0.5 * np.sign(a - b)))


def rating_agreement(values: np.ndarray, ratings: np.ndarray) -> dict[str, float]:
    """Correlations of a score with ratings, by rank (Spearman, Kendall's tau b) and linear (Pearson)."""
    from scipy import stats

    tests: dict[str, Any] = {"spearman": stats.spearmanr, "kendall": stats.kendalltau, "pearson": stats.pearsonr}
    return {name: float(test(values, ratings).statistic) for name, test in tests.items()}
