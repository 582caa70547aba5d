"""What a notebook says before it is run: its question, what it is about, the method in one equation.

A piece is `[kind, content]` with kind "text", "strong", "em", "code", "math" or "display"; a formula's content is
`formulas.tree`'s lists, or the TeX itself as "code" where that cannot be drawn. So a view inserts every word as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import dropwhile, takewhile
from pathlib import Path
from typing import Any

from workbench import runs
from workbench.share import formulas

Piece = list[Any]
_INLINE = re.compile(
    r"\$\$(?P<display>.+?)\$\$|\$(?P<math>[^$\n]+)\$|`(?P<code>[^`\n]+)`|\*\*(?P<strong>.+?)\*\*"
    r"|(?<![\w*])\*(?P<em>[^*\n]+)\*(?![\w*])|\[(?P<link>[^\]\n]+)\]\([^)\n]*\)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Story:
    """The first words of a notebook."""

    question: str  # its first heading, as plain text
    about: list[Piece] = field(default_factory=list)  # the paragraph behind it
    method: list[list[Piece]] = field(default_factory=list)  # of the cell with the formula; [] where no cell has one


def read(notebook: Path) -> Story:
    """The story of an `.ipynb` file.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    try:  # a source is one text or a list of lines
        cells = ["".join(c["source"]) for c in runs.read_json(notebook)["cells"] if c["cell_type"] == "markdown"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{notebook} is not a notebook: {type(error).__name__}") from error
    first = _blocks(cells[0]) if cells else []
    heading = next((block for block in first if block.startswith("#")), "")
    rest = first[first.index(heading) + 1 :] if heading else first
    about = next((block for block in rest if not block.startswith("#")), "")
    question = re.sub(r"[*_`$]", "", heading.lstrip("# ")).strip()
    return Story(question, _pieces(about), [_pieces(block) for block in _method(cells)])


def _blocks(source: str) -> list[str]:
    """Headings, paragraphs and list items, each on one line; a display formula stays within its paragraph."""
    parted = re.sub(r"^(#+ .*)$", r"\n\1\n", source, flags=re.MULTILINE)
    parted = re.sub(r"^(\s*)[-*] ", r"\n\1• ", parted, flags=re.MULTILINE)
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", parted) if block.strip()]


def _method(cells: list[str]) -> list[str]:
    """Up to the last display formula of the first cell with one, to the end of its sentence; or what has one."""
    if shown := next((cell for cell in cells if "$$" in cell), ""):
        blocks = [block for block in _blocks(shown) if not block.startswith("#")]
        last = max(k for k, block in enumerate(blocks) if "$$" in block)
        goes_on = last + 1 < len(blocks) and blocks[last + 1][:1].islower()
        return blocks[: last + 1 + goes_on]
    blocks = next((blocks for blocks in map(_blocks, cells[1:]) if any("$" in block for block in blocks)), [])
    from_formula = dropwhile(lambda block: "$" not in block, blocks)
    return list(takewhile(lambda block: not block.startswith("#"), from_formula))


def _pieces(block: str) -> list[Piece]:
    """A block of markdown as pieces; what is no mark of these kinds stays text."""
    found: list[Piece] = []
    at = 0
    for match in _INLINE.finditer(block):
        if match.start() > at:
            found.append(["text", block[at : match.start()]])
        kind, content = str(match.lastgroup), match[str(match.lastgroup)]
        if kind in ("math", "display"):
            drawn = formulas.tree(f"$${content}$$" if kind == "display" else f"${content}$")
            found.append(["code", content] if drawn is None else [kind, drawn])
        else:
            found.append(["text" if kind == "link" else kind, content])
        at = match.end()
    return [*found, ["text", block[at:]]] if at < len(block) else found
