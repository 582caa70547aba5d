"""Turns: what a chat template writes around a response, and text to tokens at the border between two texts."""

from __future__ import annotations

import datetime
import functools
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

# Some templates write today's date. Tokens must be the same tomorrow, so they get this one (Llama 3's own default).
TEMPLATE_DATE = datetime.datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")


@dataclass(frozen=True)
class Turn:
    """How a tokenizer writes a response behind the announcement of the assistant's turn.

    Attributes:
        lead: text between the announcement and the response: a blank, an empty block of thoughts.
        lead_ids: its tokens where it holds added tokens; else it is tokenised together with the response.
        end_ids: tokens that close the turn; the last one ends it.
        is_trimmed: the template strips blanks around the response.
        joins_words: tokenised alone, a text gets a blank in front that it doesn't have behind other text.
    """

    lead: str
    lead_ids: tuple[int, ...]
    end_ids: tuple[int, ...]
    is_trimmed: bool
    joins_words: bool


def render(tokenizer: Any, chat: Sequence[dict], *, announce: bool = True, tokenize: bool = False) -> Any:
    """A chat through the tokenizer's template, as text or as token ids, with the assistant's turn announced or not."""
    template = tokenizer.chat_template
    if "strftime_now(" in str(template):
        template = _TODAY.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), template)
        _say_date(getattr(tokenizer, "name_or_path", ""))
    how: dict[str, Any] = {"chat_template": template, "return_dict": False}
    found = tokenizer.apply_chat_template(list(chat), add_generation_prompt=announce, tokenize=tokenize, **how)
    return list(found) if tokenize else found


@functools.cache
def _say_date(name: str) -> None:
    date = f"{TEMPLATE_DATE:%d %b %Y}"
    log.warning("the chat template of %s writes today's date; %s is written, so that tokens stay the same", name, date)


def read_turn(tokenizer: Any) -> Turn:
    """What the chat template writes around a response, found by letting it write one."""
    eos = (tokenizer.eos_token_id,)
    if not getattr(tokenizer, "chat_template", None):
        return Turn("", (), eos, False, _joins_words(tokenizer, "="))
    mark = "\u2003qXq\u2003"  # em spaces: a template that trims takes them away, and no template writes one
    asked = [{"role": "user", "content": "u"}]
    try:
        start = render(tokenizer, asked)
        whole = render(tokenizer, [*asked, {"role": "assistant", "content": mark}], announce=False)
    except Exception as error:  # templates raise what they like: this one takes no chat of two turns
        log.warning("the chat template writes no answered question (%s); responses end with EOS", error)
        return Turn("", (), eos, False, _joins_words(tokenizer, "="))
    before, _, after = whole.partition("qXq")
    is_trimmed = not before.endswith("\u2003")
    before, after = (before, after) if is_trimmed else (before[:-1], after[1:])
    lead = before[len(start) :] if before.startswith(start) else ""
    added = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    lead_ids = tokenizer(lead, add_special_tokens=False).input_ids if lead.strip() else []
    ids = behind(tokenizer, after, special=True)
    ends = [i for i, token in enumerate(ids) if token in added]
    end_ids = tuple(ids[: ends[0] + 1]) if ends else eos
    return Turn(lead, tuple(lead_ids), end_ids, is_trimmed, _joins_words(tokenizer, start))


def apart(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text alone; it spells no special tokens unless `special`."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=not special).input_ids


def behind(tokenizer: Any, text: str, *, special: bool = False) -> list[int]:
    """Token ids of a text as they are behind other text, where a SentencePiece tokenizer writes no blank before it."""
    alone = apart(tokenizer, text, special=special)
    if not _has_blank(tokenizer, alone, text):
        return alone
    for anchor in ("=", "\n", "a", "."):
        start = apart(tokenizer, anchor)
        whole = apart(tokenizer, anchor + text, special=special)
        if whole[: len(start)] == start and not _has_blank(tokenizer, whole[len(start) :], text):
            return whole[len(start) :]
    return alone


def _has_blank(tokenizer: Any, ids: Sequence[int], text: str) -> bool:
    return bool(ids) and not text[:1].isspace() and str(tokenizer.convert_ids_to_tokens(ids[0])).startswith("▁")


def _joins_words(tokenizer: Any, start: str) -> bool:
    """Whether a word behind `start` has no blank before it, while one alone would get one."""
    try:
        if not _has_blank(tokenizer, apart(tokenizer, "4"), "4"):
            return False
    except Exception:  # a tokenizer of whole words that does not know this one
        return False
    return not _has_blank(tokenizer, apart(tokenizer, f"{start}4", special=True)[-1:], "4")
