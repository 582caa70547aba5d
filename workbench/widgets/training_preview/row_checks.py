"""What is found in rows before training: one rule a fault, which names the rows that have it and changes none.

A row with a fault may be what its author wants; `severe` marks what hardly ever is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import Levenshtein

from workbench.widgets.training_preview.token_text import TokenText

OFTEN = 10  # rows with the same prompt, from which on it is said
ALIKE = 0.95  # share of tokens that two responses share, from which on they count as near-identical
SHORTEST_LEAK = 20  # characters; shorter responses stand in their prompt by chance ("yes", a name)
LENGTH_RULE = 0.6  # accuracy of "the longer one is chosen", above which its whole interval must lie
FEWEST_FOR_LENGTH = 20  # pairs of different length
_HIDDEN = re.compile(
    r"[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)
_MARKERS = re.compile(
    r"<\|im_start\|>|<\|start_header_id\|>|\[INST\]|<start_of_turn>|<\|user\|>|"
    r"(?m:^### (?:Instruction|Response):)|(?m:^(?:Human|Assistant|USER|ASSISTANT): )"
)


@dataclass
class Rows:
    """Tokenised training rows, and what is known of where they came from.

    Attributes:
        prompts: token ids; responses: [row][k] token ids, the preferred one first where there are two.
        words: the tokenizer's vocabulary as text.
        prompts_cut: tokens taken from the left of each prompt; responses_cut: [row][k] tokens taken from the end.
            Both are None where rows came as tokens, since what was cut before cannot be seen.
        texts: (prompt, responses) of each row before tokenisation, None where rows came as tokens.
        ordered: the responses of a row are in order of preference (pairs and rankings).
        whole_prompts: token ids before any cut, None where they are not known; held_out: prompts of an evaluation,
            uncut.
    """

    prompts: list[list[int]]
    responses: list[list[list[int]]]
    words: TokenText
    prompts_cut: list[int] | None = None
    responses_cut: list[list[int]] | None = None
    texts: list[tuple[str, list[str]]] | None = None
    ordered: bool = True
    whole_prompts: list[list[int]] | None = None
    held_out: Iterable[Sequence[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    @cached_property
    def said(self) -> list[tuple[str, list[str]]]:
        """Prompt and responses of each row: as they were given, or as their tokens say."""
        join, both = self.words.join, zip(self.prompts, self.responses, strict=True)
        return [(join(ids), [join(one) for one in many]) for ids, many in both] if self.texts is None else self.texts

    @cached_property
    def by_prompt(self) -> dict[tuple[int, ...], list[int]]:
        """Prompt -> its rows."""
        found = defaultdict(list)
        for row, ids in enumerate(self.prompts):
            found[tuple(ids)].append(row)
        return dict(found)

    @cached_property
    def lengths(self) -> list[list[int]]:
        return [[len(ids) for ids in row] for row in self.responses]

    def where(self, response: Callable[[list[int]], bool]) -> list[int]:
        """Rows with a response of this kind."""
        return [row for row, many in enumerate(self.responses) if any(response(ids) for ids in many)]

    def pairs(self) -> Iterable[tuple[int, list[int], list[int]]]:
        """(row, a response, the next one) for every two neighbours of a row."""
        for row, many in enumerate(self.responses):
            for one, two in pairwise(many):
                yield row, one, two


# --------------------------------------------------------------------------------------- tokens: what is there to learn
def prompt_cut(rows: Rows) -> list[int]:
    return [row for row, n in enumerate(rows.prompts_cut or []) if n]


def response_cut(rows: Rows) -> list[int]:
    return [row for row, many in enumerate(rows.responses_cut or []) if any(many)]


def no_end_token(rows: Rows) -> list[int]:
    cut = set(response_cut(rows))
    return [row for row in rows.where(lambda ids: ids[-1:] != [rows.words.end]) if row not in cut]


def end_token_inside(rows: Rows) -> list[int]:
    return rows.where(lambda ids: rows.words.end in ids[:-1])


def empty_chosen(rows: Rows) -> list[int]:
    special = rows.words.special
    return [row for row, many in enumerate(rows.responses) if many and all(token in special for token in many[0])]


def empty_other(rows: Rows) -> list[int]:
    special = rows.words.special
    return [row for row, many in enumerate(rows.responses) if any(all(t in special for t in ids) for ids in many[1:])]


def two_begin_tokens(rows: Rows) -> list[int]:
    bos = rows.words.bos
    if bos is None or bos == rows.words.end:
        return []
    inside = set(rows.where(lambda ids: bos in ids))
    return [row for row, ids in enumerate(rows.prompts) if ids[:2] == [bos, bos] or row in inside]


def unknown_token(rows: Rows) -> list[int]:
    unk = rows.words.unk
    if unk is None or unk in (rows.words.end, rows.words.bos):  # some tokenizers lend the end token to what is unknown
        return []
    inside = set(rows.where(lambda ids: unk in ids))
    return [row for row, ids in enumerate(rows.prompts) if unk in ids or row in inside]


# --------------------------------------------------------------------------------------------- pairs: is there a signal
def identical(rows: Rows) -> list[int]:
    return list(dict.fromkeys(row for row, one, two in rows.pairs() if one == two))


def near_identical(rows: Rows) -> list[int]:
    alike = (row for row, one, two in rows.pairs() if one != two and likeness(one, two) >= ALIKE)
    return list(dict.fromkeys(alike))


def likeness(one: Sequence[int], two: Sequence[int]) -> float:
    """How far two responses agree, in [0, 1]: 1 - edits over the longer one, or the shared beginning of the shorter one
    if that is more. Below `ALIKE` it may return 0.0 instead of the exact number."""
    shorter = min(len(one), len(two))
    start = shared_start(one, two) / shorter if shorter else 0.0
    return start if start >= ALIKE else Levenshtein.normalized_similarity(one, two, score_cutoff=ALIKE)


def shared_start(one: Sequence[int], two: Sequence[int]) -> int:
    """Number of tokens before the first one that differs."""
    return next((at for at, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def conflicting(rows: Rows) -> list[int]:
    """Rows whose first two responses stand in the other order in another row with the prompt; of ordered rows alone."""
    if not rows.ordered:
        return []
    seen: dict[tuple, list[int]] = defaultdict(list)
    for same in rows.by_prompt.values():
        for row in same if len(same) > 1 else ():
            if len(rows.responses[row]) > 1:
                one, two = map(tuple, rows.responses[row][:2])
                seen[(same[0], one, two)].append(row)
    return sorted(row for (p, one, two), own in seen.items() if one != two and (p, two, one) in seen for row in own)


class LengthRule(NamedTuple):
    """How often the preferred response of `n` pairs of unlike length is the longer one; Wilson's 95 % interval."""

    share: float
    low: float
    high: float
    n: int


def length_rule(rows: Rows) -> LengthRule:
    from scipy.stats import binomtest

    pairs = [many[:2] for many in rows.lengths if len(many) > 1 and many[0] != many[1]]
    longer = sum(chosen > other for chosen, other in pairs)
    if not pairs:
        return LengthRule(np.nan, 0.0, 1.0, 0)
    side = binomtest(longer, len(pairs)).proportion_ci(method="wilson")
    return LengthRule(longer / len(pairs), float(side.low), float(side.high), len(pairs))


def chosen_is_longer(rows: Rows) -> list[int]:
    """The rows with the longer chosen response, the greatest difference first; none where length does not tell."""
    rule = length_rule(rows)
    if not rows.ordered or rule.n < FEWEST_FOR_LENGTH or rule.low <= LENGTH_RULE:
        return []
    by = [(many[0] - many[1], row) for row, many in enumerate(rows.lengths) if len(many) > 1 and many[0] > many[1]]
    return [row for _, row in sorted(by, key=lambda pair: (-pair[0], pair[1]))]


# ----------------------------------------------------------------------------------------------- rows beside other rows
def duplicates(rows: Rows) -> list[int]:
    """All rows that have a twin, the first one of each included."""
    seen = defaultdict(list)
    for same in rows.by_prompt.values():
        for row in same if len(same) > 1 else ():
            seen[(same[0], tuple(map(tuple, rows.responses[row])))].append(row)
    return sorted(row for twins in seen.values() if len(twins) > 1 for row in twins)


def frequent_prompt(rows: Rows) -> list[int]:
    return sorted(row for same in rows.by_prompt.values() if len(same) >= OFTEN for row in same)


def in_held_out(rows: Rows) -> list[int]:
    known = set(map(tuple, rows.held_out))
    prompts = rows.prompts if rows.whole_prompts is None else rows.whole_prompts
    return [row for row, ids in enumerate(prompts) if tuple(ids) in known] if known else []


# ------------------------------------------------------------------------------------------- texts: what became of them
def special_in_prompt(rows: Rows) -> list[int]:
    """Prompts whose text spells a special token; the tokenizer reads it as that token. Needs the texts."""
    return [] if rows.texts is None else _spelled(rows, [[prompt] for prompt, _ in rows.said])


def special_in_response(rows: Rows) -> list[int]:
    return _spelled(rows, [many for _, many in rows.said])


def _spelled(rows: Rows, texts: Sequence[Sequence[str]]) -> list[int]:
    names = [name for name in rows.words.spelled if name.strip()]
    if not names:
        return []
    spelled = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))))
    return [row for row, many in enumerate(texts) if any(spelled.search(text) for text in many)]


def template_in_text(rows: Rows) -> list[int]:
    """Prompts that bring turn markers of their own. Needs the texts."""
    return [] if rows.texts is None else [row for row, (prompt, _) in enumerate(rows.said) if _MARKERS.search(prompt)]


def starts_with_blank(rows: Rows) -> list[int]:
    return [row for row, (_, many) in enumerate(rows.said) if any(text[:1].isspace() for text in many)]


def hidden_characters(rows: Rows) -> list[int]:
    return [row for row, (prompt, many) in enumerate(rows.said) if any(map(_HIDDEN.search, (prompt, *many)))]


def leaked(rows: Rows) -> list[int]:
    """Rows whose first response stands in its prompt, word for word."""
    answers = [(prompt, many[0].strip() if many else "") for prompt, many in rows.said]
    return [row for row, (prompt, text) in enumerate(answers) if len(text) >= SHORTEST_LEAK and text in prompt]


def not_written_back(rows: Rows) -> list[int]:
    """Responses that their tokens do not say: characters are lost or changed. Needs the texts.

    Blanks are not compared, since tokenizers of whole words keep none. Cut responses are compared as far as they go.
    """
    if rows.texts is None:
        return []
    cuts = rows.responses_cut or [[0] * len(many) for many in rows.responses]
    texts = [many for _, many in rows.texts]
    parts = enumerate(zip(rows.responses, texts, cuts, strict=True))
    return [row for row, of_row in parts if any(_lost(rows.words, *one) for one in zip(*of_row, strict=True))]


def _lost(words: TokenText, ids: list[int], text: str, cut: int) -> bool:
    # the exact one is slow
    for read in (words.join, lambda ids: words.tokenizer.decode(ids, skip_special_tokens=True)):
        back, wanted = "".join(read(ids).split()), "".join(text.split())
        if back == wanted or (cut and wanted.startswith(back.rstrip("\ufffd"))):
            return False
    return True


# ------------------------------------------------------------------------------------------------------------ all rules
class Rule(NamedTuple):
    """A fault: its code, how bad it is, its name, why it matters and what to do, and what finds it."""

    code: str
    severity: str
    title: str
    why: str
    remedy: str
    find: Callable[[Rows], list[int]]


class Finding(NamedTuple):
    rule: Rule
    rows: list[int]


# three lines a rule: code (the name of its function), how bad it is and its name; why it matters; what to do
_TOLD = f"""
response_cut | severe | response cut: no end token
The end and the end token are gone: it teaches text that never stops.
Raise max_length, shorten or drop these rows.
no_end_token | severe | no end token
A response that does not end teaches the policy not to stop.
Encode responses with policy.encode_response or policy.group; of samples drop those that hit max_new_tokens.
end_token_inside | severe | end token before the end
Tokens behind it are never reached in sampling, yet they are scored.
Give the response as text: policy.group then keeps exactly one end token.
empty_chosen | severe | preferred response is empty
Only the end token is scored: it teaches to say nothing.
Drop the rows or fill in the answers.
two_begin_tokens | severe | begin token twice
Template and tokenizer both add it: a start that pretraining never showed.
Take the begin token out of the chat template, or encode prompts with policy.encode_prompt.
unknown_token | severe | unknown token
The tokenizer has no token for a part of the text, so its meaning is lost.
Use a tokenizer with byte fallback, or add the missing tokens and train their embeddings.
not_written_back | severe | text lost in tokens
The tokens of a response do not give its text back.
Look at the normaliser of the tokenizer; use one that works on bytes.
in_held_out | severe | prompt is held out
Evaluation prompts in training make held-out numbers worthless.
Split by prompt: data.held_out(rows, test_size=...).
special_in_prompt | severe | prompt spells a special token
It is read as that token: the text can end its turn or open another one.
Remove or rewrite the token's name in the prompt.
prompt_cut | warning | prompt cut on the left
The model answers a question whose beginning it does not see.
Raise max_length or max_prompt_length, or shorten the prompts.
identical | warning | identical responses
Such a pair has no signal: its gradient is 0 for every pairwise loss.
Drop the rows; many of them mean that sampling is too cold.
near_identical | warning | near-identical responses
Few tokens carry the difference; pushing them apart can lower the likelihood of both (likelihood displacement).
Drop the rows, add an SFT term, or watch chosen log-probs in training.
conflicting | warning | the same pair both ways
The same two responses stand here once each way, so the labels cancel.
Keep the majority's order, or give p_chosen to a loss that takes it.
chosen_is_longer | warning | length gives the label away
A policy can lower its loss by writing longer and learning nothing else.
Balance lengths, or use a length-normalised loss (SimPO, or IPO with average log-probs).
duplicates | warning | duplicate rows
The same row several times weighs more and makes metrics look surer than they are.
Drop duplicates, or keep them on purpose as weights.
template_in_text | warning | prompt brings turn markers
The text already holds a chat template's marks, inside or instead of the tokenizer's own.
Give chats as lists of messages and let the tokenizer's template write the marks.
hidden_characters | warning | hidden characters
Zero-width or bidirectional control characters: readers do not see them, the model does.
Remove them unless the language needs them (joiners, emoji).
leaked | warning | response stands in its prompt
The answer can be copied, which teaches copying.
Check that the prompt does not hold the answer by mistake.
empty_other | warning | empty response among the others
Only its end token is scored: the pair teaches not to be silent, nothing else.
Drop the rows unless silence is what you want to train away.
starts_with_blank | note | response starts with a blank
The first token differs from the one that sampling would start with.
Strip responses, unless the template expects the blank.
special_in_response | note | response spells a special token
It stays text here (split_special_tokens) and never ends the response.
Nothing, if it is meant; else clean the source.
frequent_prompt | note | prompt in {OFTEN} rows or more
One prompt with many rows weighs as much as many prompts.
Take fewer pairs of each prompt; split train and test by prompt.
""".strip().splitlines()


def _rule(head: str, why: str, remedy: str) -> Rule:
    code, severity, title = head.split(" | ")
    return Rule(code, severity, title, why, remedy, globals()[code])


RULES = tuple(map(_rule, _TOLD[::3], _TOLD[1::3], _TOLD[2::3]))
BY_CODE = {rule.code: rule for rule in RULES}


def findings(rows: Rows) -> list[Finding]:
    """What every rule finds, the severe ones first; rules that find nothing are left out."""
    found = (Finding(rule, rule.find(rows)) for rule in RULES)
    return [finding for finding in found if finding.rows]
