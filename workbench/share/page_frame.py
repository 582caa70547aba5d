"""The frame of every page: head with the security policy, style, header line, footer, and the page's own scripts.

The policy lets a page ask for nothing and run nothing but scripts that carry the page's own random nonce. What it
cannot stop, such as a page that sends its reader elsewhere by itself, `defused` takes out of the markup.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from workbench.widgets import scripted

TEMPLATES = Path(__file__).resolve().parent / "templates"
# a tag begins with "<" and a letter, nothing between; `meta` may redirect, `link` may look hosts up, `base` moves every
# link; the rest is read by rules of its own
_ACTIVE = re.compile(
    r"<(?=[!?]|/?(?:script|meta|link|base|iframe|frame|frameset|object|embed|portal|form|template|noscript|noembed|noframes"
    r"|plaintext|xmp|textarea|title|html|head|body)(?![a-z0-9-]))",
    re.IGNORECASE,
)


def frame(*, kind: str, body: str, title: str, views: Collection[str] = (), plotly: bool = False, **parts: Any) -> str:
    """A whole page around `body`.

    Args:
        kind: "notebook" or "scoreboard"; the page's class, and which of its own scripts it gets.
        body: markup of the page, escaped or defused already.
        views: scripted views that the page draws.
        plotly: whether it has figures.
        parts: of the header line and the footer: name, facts, home, footer.
    """
    from pygments.formatters import HtmlFormatter

    names = set(views)  # a script each: what goes wrong in one of them stops no other
    light, dark = HtmlFormatter(), HtmlFormatter(style="github-dark")
    code = light.get_style_defs(".highlight") + dark.get_style_defs(':root[data-theme="dark"] .highlight')
    css = code + source("page.css") + scripted.page_style(names)
    of_notebooks = [source("figures.js"), scripted.page_script(names), source("notebook.js")]
    scripts = [source("theme.js"), *(of_notebooks if kind == "notebook" else [source("scoreboard.js")])]
    parts |= {"kind": kind, "body": body, "title": title, "css": css, "scripts": scripts}
    parts |= {"plotly": "", "nonce": secrets.token_urlsafe(16)}
    if plotly:  # which is slow to import
        from plotly.offline import get_plotlyjs

        parts["plotly"] = get_plotlyjs()
    return template("shell.html.j2").render(parts)


def defused(markup: str) -> str:
    """Markup that loads nothing, runs nothing and closes all that it opens; its scripts, frames and forms become text.

    An output that leaves a tag, a comment or a quotation open would take the rest of the page with it, and an element
    named like a function of the document would stand in its place.
    """
    from bs4 import BeautifulSoup

    if "<" not in markup:
        return markup
    tree = BeautifulSoup(_ACTIVE.sub("&lt;", markup), "html.parser")
    for tag in tree.find_all(True):
        tag.attrs = {name: value for name, value in tag.attrs.items() if _is_harmless(tag.name, name, str(value))}
    return str(tree)


def _is_harmless(tag: str, name: str, value: str) -> bool:
    if name.startswith("on") or name in ("name", "srcdoc", "ping", "formaction", "srcset"):
        return False
    if name not in ("href", "src", "xlink:href", "action", "data", "poster", "background"):
        return True
    if value.startswith(("#", "data:image/")):
        return True
    # where a reader may go by a click; the scheme of a link without one is that of the page
    is_safe = ":" not in value.partition("/")[0] or bool(re.match(r"https?:|mailto:", value))
    return (tag, name) == ("a", "href") and is_safe


@cache
def source(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def template(name: str) -> Any:
    import jinja2

    options: Any = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), **options).get_template(name)
