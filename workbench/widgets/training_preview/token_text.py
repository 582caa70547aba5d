"""What a token says: the text behind a token id as a reader can see it, control characters included."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

from workbench.models.turns import read_turn

_LONGEST = 120  # characters of a single token that are shown
_NAMED = {" ": "·", "\n": "↵", "\t": "⇥", "\r": "␍"}
_INVISIBLE = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Zs"}  # control, format, surrogate, private, separators
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece writes a byte that it has no piece for


def visible(text: str) -> str:
    """The text with every character that draws nothing, or that changes how others are drawn, named.

    A space is "·", a line break "↵", a tab "⇥"; others are "⟨U+200B⟩". A mark without a letter before it gets a circle.
    """
    out = []
    for at, char in enumerate(text):
        kind = unicodedata.category(char)
        if char in _NAMED:
            out.append(_NAMED[char])
        elif kind in _INVISIBLE:
            out.append(f"⟨U+{ord(char):04X}⟩")
        else:
            out.append(f"◌{char}" if kind[0] == "M" and at == 0 else char)
    return "".join(out)


@cache
def _byte_of() -> dict[str, int]:
    """The byte behind each character of a byte-level vocabulary: itself where it is printable, else moved up."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {chr(byte): byte for byte in kept} | {chr(256 + i): byte for i, byte in enumerate(moved)}


class TokenText:
    """The vocabulary of a tokenizer as text.

    Attributes:
        special: ids that no text may spell (begin, end, turns); `bos`, `unk` are single ids or None.
        end: id of the token that ends the assistant's turn.
        spelled: special token -> id.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.end = read_turn(tokenizer).end_ids[-1]
        self.bos, self.unk = tokenizer.bos_token_id, tokenizer.unk_token_id
        added = getattr(tokenizer, "get_added_vocab", dict)()
        marked = getattr(tokenizer, "added_tokens_decoder", {})
        marked = [i for i, token in marked.items() if getattr(token, "special", False)]
        self.special = special = frozenset(map(int, [*tokenizer.all_special_ids, *marked]))
        self.spelled = {token: i for token, i in added.items() if i in special}
        for i in special - set(self.spelled.values()):
            self.spelled[str(tokenizer.convert_ids_to_tokens(i))] = i
        state = _decoder_state(tokenizer)
        self._byte_level, self._words = '"ByteLevel"' in state, state == ""
        self._continued = '"WordPiece"' in state
        self.bytes_of = cache(self._bytes_of)

    def _bytes_of(self, token: int) -> bytes:
        """What the token adds to a text, in UTF-8; a part of a character gives a part of its bytes."""
        raw = self.tokenizer.convert_ids_to_tokens(int(token))
        if raw is None:
            return f"⟨no token {token}⟩".encode()
        if token in self.special:
            return raw.encode()
        if self._byte_level and all(char in _byte_of() for char in raw):
            return bytes(_byte_of()[char] for char in raw)
        if found := _BYTE_TOKEN.fullmatch(raw):
            return bytes([int(found[1], 16)])
        if self._continued:
            return (raw[2:] if raw.startswith("##") else f" {raw}").encode()
        return raw.replace("▁", " ").encode("utf-8", "surrogatepass")

    def join(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out. Words of a word-level vocabulary get a space between them."""
        parts = [self.bytes_of(token) for token in ids if token not in self.special]
        return (b" " if self._words else b"").join(parts).decode("utf-8", "replace")

    def shown(self, token: int) -> str:
        """What a reader sees of one token; bytes that are no whole character stand as hexadecimal numbers."""
        raw = self.bytes_of(token)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            text = raw.decode("utf-8", "backslashreplace")
            return re.sub(r"\\x([0-9a-f]{2})", lambda m: f"⟨{m[1].upper()}⟩", text)
        if not text:
            return "∅"
        cut = visible(text[:_LONGEST])
        return cut if len(text) <= _LONGEST else f"{cut}… ({len(text):,} characters)"

    def is_partial(self, token: int) -> bool:
        """Whether the token holds bytes that are no whole character."""
        return self.bytes_of(token).decode("utf-8", "ignore").encode() != self.bytes_of(token)


def _decoder_state(tokenizer: Any) -> str:
    """The fast tokenizer's decoder as JSON; "" where it has none (whole words), "slow" for a tokenizer without one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return "slow"
    decoder = getattr(backend, "decoder", None)
    return "" if decoder is None else decoder.__getstate__().decode()
