"""Templates: a prompt as text with named slots and a version that is stored beside whatever the prompt brought back."""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

_SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")


class Template(NamedTuple):
    """Text with slots such as `{question}`: lower-case names in braces; every other brace is text."""

    name: str
    text: str

    @property
    def version(self) -> str:
        """The name and a short hash of the text: one changed letter is another version."""
        return f"{self.name}-{hashlib.blake2b(self.text.encode(), digest_size=4).hexdigest()}"

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the slots, in order of first appearance."""
        return tuple(dict.fromkeys(_SLOT.findall(self.text)))

    def fill(self, **slots: str) -> str:
        """The text with each slot's value put in as it is: braces, quotes and newlines of a value are data.

        Raises:
            ValueError: a slot without a value, or a value without a slot.
        """
        missing, unknown = sorted(set(self.slots) - set(slots)), sorted(set(slots) - set(self.slots))
        if missing or unknown:
            wrong = [f"no value for {name}" for name in missing] + [f"no slot named {name}" for name in unknown]
            raise ValueError(f"template {self.name!r}: {', '.join(wrong)}; its slots are {', '.join(self.slots)}")
        return _SLOT.sub(lambda found: slots[found[1]], self.text)  # one pass: a value is never read for slots
