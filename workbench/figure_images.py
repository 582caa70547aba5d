"""Images of plotly figures: svg, png and pdf, drawn by kaleido in one browser.

What may live here: a figure's specification in, bytes out. What may not: files, notebooks, what a figure shows.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def browser() -> str:
    """The Chromium that draws images, or "" where there is none (or no kaleido)."""
    try:
        from choreographer.browsers.chromium import Chromium
    except ImportError:
        return ""
    return Chromium.find_browser(skip_local=False) or ""


def draw(wanted: Sequence[tuple[dict[str, Any], str]], *, scale: float = 0) -> list[bytes]:
    """Images of figures, (specification, format) each, all drawn by one browser: its start takes most of the time.

    Args:
        scale: pixels a unit; 0 takes 2 for png and 1 for the others.

    Raises:
        RuntimeError: no browser, no kaleido, or the browser could not draw a figure.
    """
    if not wanted:
        return []
    if not browser():
        raise RuntimeError(
            "images are drawn by kaleido in a Chromium, and this machine lacks one of them: install chromium and the"
            " extra [lab], or ask for --format csv"
        )
    # in a thread of its own, because a notebook has a loop running already
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, _drawn(wanted, scale)).result()


async def _drawn(wanted: Sequence[tuple[dict[str, Any], str]], scale: float) -> list[bytes]:
    import kaleido

    images = []
    # no MathJax: kaleido would fetch it from the network
    async with kaleido.Kaleido(n=1, mathjax=False) as server:
        for spec, ending in wanted:
            layout = dict(spec.get("layout") or {})
            # a picture from the network in a figure would be fetched; one that the figure carries stays
            layout["images"] = [i for i in layout.get("images") or [] if str(i.get("source", "")).startswith("data:")]
            options: Any = {
                "format": ending,
                "scale": scale or (2 if ending == "png" else 1),
                "width": layout.get("width") or 820,
                "height": layout.get("height") or 420,
            }
            try:
                images.append(await server.calc_fig({"data": spec.get("data") or [], "layout": layout}, opts=options))
            except Exception as error:  # kaleido's errors share no base class
                raise RuntimeError(f"the browser could not draw {title_of(spec) or 'a figure'!r}: {error}") from error
    return images


def title_of(spec: dict[str, Any]) -> str:
    """A figure's title as plain text."""
    title = (spec.get("layout") or {}).get("title") or ""
    text = title.get("text") or "" if isinstance(title, dict) else title
    return html.unescape(re.sub(r"<[^<>]*>", " ", str(text)))
