"""Formulas: TeX as MathML, which browsers draw without a script."""

from __future__ import annotations

import html
import logging
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

log = logging.getLogger(__name__)


def mathml(formula: str) -> str:
    """MathML of a TeX formula (`$..$`, `$$..$$` or bare), safe to put into a page; unreadable TeX stays as code."""
    from xml.etree import ElementTree

    element = _element(formula)
    if element is None:
        return f"<code>{html.escape(formula)}</code>"
    return ElementTree.tostring(element, encoding="unicode", short_empty_elements=False)


def tree(formula: str) -> list[Any] | None:
    """The same as lists `[tag, attributes, text, children]`, for views that build nodes; None for unreadable TeX."""
    element = _element(formula)
    return None if element is None else _listed(element)


def _listed(element: Element) -> list[Any]:
    return [element.tag, dict(element.attrib), element.text or "", [_listed(child) for child in element]]


def _element(formula: str) -> Element | None:
    from latex2mathml.converter import convert_to_element

    text = formula.strip()
    display = "block" if text.startswith("$$") or text.startswith(r"\begin") else "inline"
    text = re.sub(r"\\(begin|end)\{(aligned|align|equation)\}", r"\\\1{align*}", text.strip("$"))
    try:
        element = convert_to_element(text, display=display)
    except Exception as error:  # the converter's errors share no base class
        log.warning("formula %r stays as code: %s", formula, type(error).__name__)
        return None
    for node in element.iter():  # the converter writes entities as text, and does not escape what stands in \text{}
        node.text = html.unescape(node.text or "")
        node.attrib.update({name: html.unescape(value) for name, value in node.attrib.items()})
    return element
