"""A view in a page that was rendered and opened in a browser, where what it shows must stay text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from preview_rows import HOSTILE

from workbench.share import pages

__all__ = ["HOSTILE", "harmless", "page_of"]


def page_of(folder: Path, view: Any) -> Path:
    """The page of a notebook that shows this view alone."""
    output = new_output("display_data", data=view._repr_mimebundle_())
    cells = [new_markdown_cell("# What is it?"), new_code_cell("view", outputs=[output])]
    nbformat.write(new_notebook(cells=cells), folder / "n.ipynb")
    return pages.render(folder / "n.ipynb", folder / "page.html")


@contextmanager
def harmless(visit: Callable[..., Any], path: Path, view: str, row: str, never: str = "img, script") -> Iterator[Any]:
    """The page, opened, once a `row` of the `view` is there. Afterwards no text of it ran, and it asked for nothing.

    Args:
        never: what must not have become elements inside the view.
    """
    opened = visit(path)
    opened.page.wait_for_selector(f"{view} {row}")
    yield opened
    assert opened.page.evaluate("window.pwned") is None
    assert opened.page.locator(f"{view} :is({never})").count() == 0
    assert [line for line in opened.complaints if "blob:" not in line] == []  # an export is a blob
    assert {url for url in opened.requests if not url.startswith("blob:")} == {path.as_uri()}
