"""Pages: an executed notebook as one HTML file that opens offline, the scoreboard of all runs, the table of README.

What may live here: rendering of what runs left on disk. What may not: running anything, deciding any verdict.

Model output is hostile. Text outputs are escaped, and a page's security policy refuses every request to a network
and every script that does not carry the page's own random nonce, so markup that slips into an HTML output stays
dead. The price: HTML outputs of our own code cannot bring scripts either; interactive figures go through plotly, and
our own views come as data that a script of the page draws (`widgets.scripted`).
"""

from __future__ import annotations

import html
import json
import logging
import os
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workbench import claims, methods, runs
from workbench.widgets import scripted

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).resolve().parent / "templates"
PLOTLY_MIME = "application/vnd.plotly.v1+json"
# the widget mime is left out on purpose: without a kernel it draws nothing, its static face comes with the same output
_MIME_ORDER = [
    PLOTLY_MIME, scripted.VIEW_MIME, "text/html", "text/latex", "image/svg+xml", "image/png", "image/jpeg", "text/markdown", "text/plain",
]  # fmt: skip
_SCALES = ("full", "tiny", "smoke")
_VERDICTS = (
    *dict.fromkeys(verdict for group in claims.VERDICTS.values() for verdict in group),
    claims.FOLLOWS,
    claims.DIFFERS,
)


# ----------------------------------------------------------------------------------------------- one executed notebook
def render(notebook: Path, page: Path, *, title: str = "", root: Path | None = None) -> Path:
    """Writes an executed notebook as one self-contained HTML file: figures alive, formulas drawn, code folded away.

    The page's header tells system, scale, seeds and inputs when the notebook lies in a run folder.

    Args:
        notebook: executed `.ipynb` file.
        page: file to write, whole or not at all.
        title: page title; "" takes the notebook's first heading.
        root: folder of all runs, for the link back to its index; None takes the default one.

    Raises:
        FileNotFoundError: there is no such notebook.
        ValueError: the file is not a notebook.
    """
    import nbformat

    try:
        node = nbformat.read(notebook, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is not a notebook: {str(error).splitlines()[0]}") from error
    body, _ = _exporter().from_notebook_node(node)
    manifest = runs.Run(notebook.parent).manifest
    index_page = (root or runs.default_root()).resolve() / "index.html"
    inside = index_page.parent in page.resolve().parents
    text = _shell(
        kind="notebook",
        title=title or _first_heading(node) or notebook.stem,
        name=_title(manifest["system"]) if manifest else "",
        facts=_facts(manifest) if manifest else [],
        home=quote(os.path.relpath(index_page, page.resolve().parent)) if inside else "",
        body=body,
        plotly=_plotly() if '<div class="figure">' in body else "",
        views=sorted(set(re.findall(r'<div class="view" data-view="([a-z_]+)">', body))),
        footer=_made_with(manifest) if manifest else "",
    )
    with runs.atomic(page) as file:
        file.write(text.encode(errors="replace"))
    return page


def mathml(formula: str) -> str:
    """MathML of a TeX formula (`$..$`, `$$..$$` or bare), safe to put into a page; unreadable TeX stays as code."""
    from xml.etree import ElementTree

    from latex2mathml.converter import convert_to_element

    text = formula.strip()
    display = "block" if text.startswith("$$") or text.startswith(r"\begin") else "inline"
    text = re.sub(r"\\(begin|end)\{(aligned|align|equation)\}", r"\\\1{align*}", text.strip("$"))
    try:
        element = convert_to_element(text, display=display)
    except Exception as error:  # the converter's errors share no base class
        log.warning("formula %r stays as code: %s", formula, type(error).__name__)
        return f"<code>{html.escape(formula)}</code>"
    for node in element.iter():  # the converter writes entities as text, and does not escape what stands in \text{}
        node.text = html.unescape(node.text or "")
        node.attrib.update({name: html.unescape(value) for name, value in node.attrib.items()})
    return ElementTree.tostring(element, encoding="unicode", short_empty_elements=False)


@cache
def _exporter() -> Any:
    """nbconvert's HTML exporter with our template and filters, made once."""
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
    from traitlets.config import Config

    class Renderer(IPythonRenderer):
        def inline_math(self, body: str) -> str:
            return mathml(f"${body}$")

        def block_math(self, body: str) -> str:
            return mathml(f"$${body}$$")

        def latex_environment(self, name: str, body: str) -> str:
            return mathml(rf"\begin{{{name}}}{body}\end{{{name}}}")

    def markdown(source: str, trusted: bool = True) -> str:
        renderer = Renderer(escape=not trusted, allow_harmful_protocols=False, exclude_anchor_links=True)
        return MarkdownWithMath(renderer=renderer).render(source)

    config = Config({"NbConvertBase": {"display_data_priority": _MIME_ORDER}})
    exporter = HTMLExporter(config=config, template_name="workbench", extra_template_basedirs=[str(TEMPLATES)])
    exporter.register_filter("markdown2html", markdown)
    exporter.register_filter("untrusted_markdown", lambda source: markdown(source, trusted=False))
    exporter.register_filter("mathml", mathml)
    # "<" never appears, so no text inside a figure can end the block that holds it
    exporter.register_filter("inert_json", lambda value: json.dumps(value).replace("<", "\\u003c"))
    return exporter


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _shell(**parts: Any) -> str:
    """The page around a body: head with security policy, style and plotly, header line, footer."""
    from pygments.formatters import HtmlFormatter

    css = (TEMPLATES / "page.css").read_text(encoding="utf-8") + HtmlFormatter().get_style_defs(".highlight")
    views = set(parts.pop("views", ()))
    css += scripted.page_style(views)
    return _template("shell.html.j2").render(
        **parts, css=css, views=scripted.page_script(views), nonce=secrets.token_urlsafe(16)
    )


def _template(name: str) -> Any:
    import jinja2

    return jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True).get_template(name)


def _first_heading(node: Any) -> str:
    for cell in node.cells:
        match = re.search(r"^#\s+(.+)$", cell.source, re.MULTILINE) if cell.cell_type == "markdown" else None
        if match:
            return re.sub(r"[*_`$]", "", match[1]).strip()
    return ""


# --------------------------------------------------------------------------------------------- what a manifest tells
def _title(system: str) -> str:
    return methods.REGISTRY[system].title if system in methods.REGISTRY else system


def _facts(manifest: Mapping[str, Any]) -> list[str]:
    finished = _time(manifest.get("finished"))
    return [f"scale {manifest['scale']}", f"seeds {_seeds(manifest)}", *filter(None, (_input(manifest), finished))]


def _seeds(manifest: Mapping[str, Any]) -> str:
    seeds = manifest["parameters"].get("seeds", [])
    if len(seeds) > 2 and seeds == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]} to {seeds[-1]}"
    return ", ".join(map(str, seeds))


def _input(manifest: Mapping[str, Any]) -> str:
    """Names of the user's own model and data set; "" for the embedded world."""
    sources = [manifest["parameters"].get(kind, "") for kind in ("model", "dataset")]
    return ", ".join(Path(source).name if Path(source).is_absolute() else source for source in sources if source)


def _time(moment: str | None) -> str:
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M") if moment else ""


def _took(manifest: Mapping[str, Any]) -> str:
    """From the first start to the finish; a run that was stopped and resumed counts the pause too."""
    if not manifest.get("finished"):
        return ""
    duration = datetime.fromisoformat(manifest["finished"]) - datetime.fromisoformat(manifest["started"])
    minutes, seconds = divmod(int(duration.total_seconds()), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _made_with(manifest: Mapping[str, Any]) -> str:
    known = manifest.get("provenance", {})
    parts = [f"{name} {known[name]}" for name in ("workbench", "python", "torch", "transformers") if name in known]
    return ", ".join([*parts, f"{known['cores']} cores"] if "cores" in known else parts)


# ------------------------------------------------------------------------------------------------------ all the runs
def collect(root: Path) -> list[tuple[runs.Run, dict[str, Any]]]:
    """Every run under `root` with its manifest, newest first."""
    found = []
    for path in root.glob("[!.]*/[!.]*/manifest.json"):
        run = runs.Run(path.parent)
        if manifest := run.manifest:
            found.append((run, manifest))
    return sorted(found, key=lambda item: item[1].get("finished") or item[1]["started"], reverse=True)


def newest(root: Path) -> list[tuple[runs.Run, dict[str, Any]]]:
    """The newest finished run of each system, scale and input, in the order of the registry."""
    chosen: dict[tuple[str, ...], tuple[runs.Run, dict[str, Any]]] = {}
    for run, manifest in collect(root):
        if manifest["status"] == "done":
            inputs = (manifest["parameters"].get("model", ""), manifest["parameters"].get("dataset", ""))
            chosen.setdefault((manifest["system"], manifest["scale"], *inputs), (run, manifest))
    order = {name: position for position, name in enumerate(methods.REGISTRY)}
    return sorted(chosen.values(), key=lambda item: (order.get(item[1]["system"], len(order)), _input(item[1])))


def index(root: Path | None = None) -> Path:
    """Writes `index.html` of the runs folder, the scoreboard of all runs, and returns its path."""
    root = (root or runs.default_root()).resolve()
    best = newest(root)
    sections = []
    for scale in _SCALES:
        records, links = [], {}
        for run, manifest in best:
            if manifest["scale"] == scale:
                label = " · ".join(part for part in (manifest["system"], _input(manifest)) if part)
                records += [{**record, "system": label} for record in run.claims()]
                if link := _link(run, root):
                    links[label] = link
        if records:
            counts = Counter(record["verdict"] for record in records)
            tally = [(verdict, counts[verdict]) for verdict in _VERDICTS if verdict in counts]
            sections.append({"scale": scale, "tally": tally, "table": claims.table_html(records, links=links)})
    shown = {run.folder for run, _ in best}
    body = _template("scoreboard.html.j2").render(
        sections=sections,
        newest=[_row(run, manifest, root) for run, manifest in best],
        others=[_row(run, manifest, root) for run, manifest in collect(root) if run.folder not in shown],
    )
    footer = "At scale tiny a small model lives in an embedded world: no verdict there says that a paper is reproduced."
    text = _shell(kind="scoreboard", title="workbench: scoreboard", name="workbench", body=body, footer=footer)
    with runs.atomic(root / "index.html") as file:
        file.write(text.encode(errors="replace"))
    return root / "index.html"


def _link(run: runs.Run, root: Path) -> str:
    page = run.folder / "page.html"
    return quote(str(page.relative_to(root))) if page.is_file() else ""


def _row(run: runs.Run, manifest: Mapping[str, Any], root: Path) -> dict[str, str]:
    done = manifest["status"] == "done"
    unfinished = "failed" if manifest["status"] == "failed" else "not finished"
    return {
        "title": _title(manifest["system"]),
        "folder": str(run.folder.relative_to(root)),
        "link": _link(run, root) if done else "",  # the page of a run that is being done again is not its page
        "scale": manifest["scale"],
        "seeds": _seeds(manifest),
        "input": _input(manifest) or "embedded world",
        "finished": _time(manifest.get("finished")) if done else unfinished,
        "took": _took(manifest) if done else "",
        "made_with": _made_with(manifest),
    }


# ------------------------------------------------------------------------------------------------- what README shows
def publish(scoreboard: Path, root: Path | None = None) -> list[str]:
    """Writes the newest finished tiny run of each system, with default settings, to a JSON file for README.

    Systems without such a run keep what the file says about them already.

    Returns:
        One line for each system of the registry that was not written from a run.
    """
    published = {entry["system"]: entry for entry in runs.read_json(scoreboard)} if scoreboard.is_file() else {}
    found = {}
    for run, manifest in reversed(collect((root or runs.default_root()).resolve())):  # the newest one stays
        if (manifest["scale"], manifest["status"]) == ("tiny", "done") and _is_default(manifest):
            facts = {key: manifest[key] for key in ("system", "scale", "finished", "provenance")}
            found[manifest["system"]] = {
                **facts, "seeds": manifest["parameters"]["seeds"], "claims": run.claims()
            }  # fmt: skip
    merged = published | found
    runs.write_json(scoreboard, [merged[name] for name in methods.REGISTRY if name in merged])
    return [
        f"{name}: no finished tiny run with default settings; "
        + ("kept what was published" if name in published else "not in the table")
        for name in methods.REGISTRY
        if name not in found
    ]


def _is_default(manifest: Mapping[str, Any]) -> bool:
    """True when the run had the settings that the method has by default: nobody publishes a tuned run by accident."""
    if manifest["system"] not in methods.REGISTRY:
        return False
    default = methods.Experiment(manifest["system"], scale=manifest["scale"]).parameters
    return json.loads(json.dumps(default)) == manifest["parameters"]


def readme_table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the published systems: paper, notebook, cost, and the claims under each verdict."""
    lines = ["| system | paper | notebook | cost | verdicts (scale tiny) |", "|---|---|---|---|---|"]
    for entry in entries:
        method = methods.REGISTRY[entry["system"]]
        by_verdict = {verdict: [c["id"] for c in entry["claims"] if c["verdict"] == verdict] for verdict in _VERDICTS}
        verdicts = "; ".join(f"{verdict}: {', '.join(ids)}" for verdict, ids in by_verdict.items() if ids)
        notebook = f"[{method.notebook.stem}]({method.notebook.as_posix()})"
        cells = (method.title, method.paper, notebook, method.cost, verdicts)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def update_readme(readme: Path, scoreboard: Path) -> bool:
    """Puts the table of the published systems between README's `<!-- scoreboard -->` and `<!-- /scoreboard -->`.

    Returns:
        Whether the text changed.

    Raises:
        ValueError: a marker is missing.
        FileNotFoundError: there is no README, or nothing was published yet.
    """
    text = readme.read_text(encoding="utf-8")
    table = readme_table(runs.read_json(scoreboard))
    markers = re.compile(r"(<!-- scoreboard -->\n).*?(<!-- /scoreboard -->)", re.DOTALL)
    new, count = markers.subn(lambda match: f"{match[1]}{table}\n{match[2]}", text)
    if count != 1:
        raise ValueError(
            f"{readme} has {count} pairs of markers, one is needed: put <!-- scoreboard --> and <!-- /scoreboard --> "
            "on lines of their own where the table belongs"
        )
    if new != text:
        with runs.atomic(readme) as file:
            file.write(new.encode())
    return new != text
