"""Pages: an executed notebook as one HTML file that opens offline.

Model output is hostile. Text outputs are escaped, and a page's security policy refuses every request to a network
and every script that does not carry the page's own random nonce, so markup that slips into an HTML output stays
dead. The price: HTML outputs of our own code cannot bring scripts either; interactive figures go through plotly, and
our own views come as data that a script of the page draws (`widgets.scripted`). A page is made to be sent: folders of
this machine and keys are taken out of it.
"""

from __future__ import annotations

import json
import os
import re
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workbench import runs
from workbench.share import page_frame, run_facts, sendable
from workbench.share.formulas import mathml
from workbench.share.scoreboard import collect, index, newest
from workbench.widgets import scripted

__all__ = ["collect", "index", "mathml", "newest", "read_notebook", "render"]

PLOTLY_MIME = "application/vnd.plotly.v1+json"
# the widget mime is left out on purpose: without a kernel it draws nothing, its static face comes with the same output
_MIME_ORDER = [PLOTLY_MIME, scripted.VIEW_MIME, "text/html", "text/latex", "image/svg+xml", "image/png", "image/jpeg"]
_MIME_ORDER += ["text/markdown", "text/plain"]


def render(notebook: Path, page: Path, *, title: str = "", root: Path | None = None) -> Path:
    """Writes an executed notebook as one self-contained HTML file: figures alive, formulas drawn, code folded away.

    In a run folder, the page's header tells system, scale, seeds and inputs, its end what the run was made with.

    Args:
        notebook: executed `.ipynb` file.
        page: file to write, whole or not at all.
        title: page title; "" takes the notebook's first heading.
        root: folder of all runs, for the link back to its index; None takes the default one.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    root = (root or runs.default_root()).resolve()
    node, run = read_notebook(notebook), runs.Run(notebook.parent)
    manifest = run.manifest
    asked = node.metadata.get("papermill", {}).get("parameters", {}).get("overrides", {})
    node = sendable.cleaned(node, run.folder, root)
    outputs = [output.get("data", {}) for cell in node.cells for output in cell.get("outputs", [])]
    body, _ = _exporter().from_notebook_node(node)
    if manifest:
        known = run_facts.provenance(run, manifest, root, asked)
        body += sendable.cleaner(run.folder, root)(page_frame.template("provenance.html.j2").render(known))
    home = os.path.relpath(root / "index.html", page.resolve().parent) if root in page.resolve().parents else ""
    text = page_frame.frame(
        kind="notebook",
        title=title or _first_heading(node) or notebook.stem,
        name=run_facts.title(manifest["system"]) if manifest else "",
        facts=run_facts.facts(manifest) if manifest else [],
        home=quote(home),
        body=body,
        plotly=any(PLOTLY_MIME in data for data in outputs),
        views={data[scripted.VIEW_MIME]["view"] for data in outputs if _is_known_view(data.get(scripted.VIEW_MIME))},
        footer=run_facts.made_with(manifest) if manifest else "",
    )
    with runs.atomic(page) as file:
        file.write(text.encode(errors="replace"))
    return page


def read_notebook(path: Path) -> Any:
    """The notebook in a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not a notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{path} is not a notebook: {str(error).splitlines()[0]}") from error


def _is_known_view(data: Any) -> bool:
    """Whether this version can draw the view; if not, the page shows the output's text."""
    try:
        return bool(scripted.source(data["view"], "js")) and "state" in data
    except (KeyError, TypeError, ValueError):
        return False


@cache
def _exporter() -> Any:
    """nbconvert's HTML exporter with our template and filters, made once."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from traitlets.config import Config

    def markdown(source: str, trusted: bool = True) -> str:
        renderer: Any = IPythonRenderer(escape=not trusted, allow_harmful_protocols=False, exclude_anchor_links=True)
        renderer.inline_math = lambda body: mathml(f"${body}$")
        renderer.block_math = lambda body: mathml(f"$${body}$$")
        renderer.latex_environment = lambda name, body: mathml(rf"\begin{{{name}}}{body}\end{{{name}}}")
        return MarkdownWithMath(renderer=renderer).render(source)

    config = Config({"NbConvertBase": {"display_data_priority": _MIME_ORDER}})
    folders = [str(page_frame.TEMPLATES)]
    exporter = HTMLExporter(config=config, template_name="workbench", extra_template_basedirs=folders)
    filters: dict[str, Any] = {"markdown2html": markdown, "mathml": mathml, "defused": page_frame.defused}
    filters |= {"is_known_view": _is_known_view, "untrusted_markdown": partial(markdown, trusted=False)}
    # "<" never appears, so no text inside a figure can end the block that holds it
    filters["inert_json"] = lambda value: json.dumps(value).replace("<", "\\u003c")
    for name, changed in filters.items():
        exporter.register_filter(name, changed)
    return exporter


def _first_heading(node: Any) -> str:
    texts = (cell.source for cell in node.cells if cell.cell_type == "markdown")
    found = next(filter(None, (re.search(r"^#\s+(.+)$", text, re.MULTILINE) for text in texts)), None)
    return re.sub(r"[*_`$]", "", found[1]).strip() if found else ""
