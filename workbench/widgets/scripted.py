"""Scripted views: one drawing routine in JavaScript, alive in JupyterLab and in a rendered page without a kernel.

Every view may use what `js/base.js` and `js/base.css` hold: nodes, long lists, files to save, colours of both themes.
In JupyterLab anywidget runs the script. A rendered page refuses every script that an output brings, so there the output
is data under a type of its own, and the page's own script draws it with the same routine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent / "js"
BASE = "base"
_LIVE = "\nexport default { render: ({ model, el }) => render({ model, el, live: true }) };\n"
VIEW_MIME = "application/vnd.workbench.view+json"


@cache
def source(name: str, ending: str) -> str:
    """The text of `js/<name>.<ending>`, behind that of its parts `js/<name>__<part>.<ending>` where it has some.

    Raises:
        ValueError: no view of that name.
    """
    if not re.fullmatch(r"[a-z_]+", name) or not (path := FOLDER / f"{name}.{ending}").is_file():
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.js") if p.stem != BASE and "__" not in p.stem))
        raise ValueError(f"no view {name!r}; known: {known}")
    parts = [*sorted(FOLDER.glob(f"{name}__*.{ending}")), path]
    return "\n".join(part.read_text(encoding="utf-8") for part in parts)


def short(values: Any, digits: int = 7) -> list[float | None]:
    """Numbers as JSON with as many digits as a screen shows; null for what is not finite."""
    return [float(f"{x:.{digits}g}") if math.isfinite(x) else None for x in map(float, values)]


def live(
    name: str, data: Mapping[str, Any], *, on_message: Callable[[Any, Any], None] | None = None, **traits: Any
) -> Any:
    """The view as an anywidget.

    Args:
        data: what it draws, JSON types only.
        on_message: called with (widget, content) of what the script sends.
        traits: what Python and the script share, by name, with its first value.
    """
    import anywidget
    import traitlets

    kinds = {int: traitlets.Int, str: traitlets.Unicode, float: traitlets.Float, bool: traitlets.Bool}
    members: dict[str, Any] = {key: kinds[type(value)](value).tag(sync=True) for key, value in traits.items()}
    members["_esm"] = source(BASE, "js") + source(name, "js") + _LIVE
    members["_css"] = source(BASE, "css") + source(name, "css")
    members["data"] = traitlets.Dict(dict(data)).tag(sync=True)
    view = type(f"View_{name}", (anywidget.AnyWidget,), members)()
    if on_message is not None:
        view.on_msg(lambda widget, content, _: on_message(widget, content))
    return view


def bundle(name: str, data: Mapping[str, Any], widget: Any, text: str, **state: Any) -> dict[str, Any]:
    """Both faces of a view in one mime bundle, and its text for where neither can be drawn."""
    view = {"view": name, "state": {"data": dict(data), **state}}
    return {**widget._repr_mimebundle_()[0], VIEW_MIME: view, "text/plain": text}


def page_script(names: set[str]) -> str:
    """What a page needs to draw these views: each routine under its name, closed off from the others."""
    parts = [f"views[{name!r}] = (() => {{ {source(name, 'js')}; return render; }})();" for name in sorted(names)]
    return "\n".join([source(BASE, "js"), "const views = {};", *parts]) if names else "const views = {};"


def page_style(names: set[str]) -> str:
    return "\n".join(source(name, "css") for name in (BASE, *sorted(names))) if names else ""
