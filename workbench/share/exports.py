"""What a run can be sent as, beside its page: the executed notebook in one file, its figures as images and tables."""

from __future__ import annotations

import base64
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from workbench import figures as figure_images
from workbench import runs
from workbench.share import pages, sendable
from workbench.share.pages import PLOTLY_MIME, read_notebook
from workbench.widgets import scripted

if TYPE_CHECKING:
    import pandas as pd

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"
IMAGES = ("svg", "png", "pdf")
FORMATS, USUAL = (*IMAGES, "csv"), ("svg", "png", "csv")
_LARGE = 200_000  # bytes of one fallback image; a figure with more keeps its interactive form alone


class Figure(NamedTuple):
    """One plotly figure of an executed notebook, and the file name it gets, without an ending."""

    name: str
    spec: dict[str, Any]


def executed(run: runs.Run) -> Path:
    """The run's executed notebook; of a run that failed, as far as it came.

    Raises:
        ValueError: the run has none, and how to get one.
    """
    if found := _notebooks(run):
        return found[0]
    system = run.manifest.get("system", "")
    raise ValueError(f"{run.folder} holds no executed notebook; `workbench reproduce {system}` makes one")


def file_name(run: runs.Run) -> str:
    """`system-scale-hash`: a name that says which run a file came from, wherever it ends up."""
    return f"{run.folder.parent.name}-{run.folder.name}"


def write(
    chosen: Sequence[runs.Run], to: str, output: Path | None, root: Path, formats: Collection[str] = USUAL
) -> list[Path]:
    """Writes what these runs are sent as, and returns what was written outside of the run folders.

    Args:
        chosen: none takes every run that has an executed notebook.
        to: "page", "notebook" or "figures".
        output: folder; None leaves pages in their run folders and puts the others into `exports`.
        root: folder of all runs.

    Raises:
        ValueError: a run has no executed notebook.
    """
    written = []
    for run in list(chosen) or [run for run, _ in pages.collect(root) if _notebooks(run)]:
        executed(run)  # says what is missing
        place, name = output or Path("exports"), file_name(run)
        if to == "notebook":
            written.append(notebook(run, place / f"{name}.ipynb"))
        elif to == "figures":
            written += figures(run, place / name, formats)
        else:
            for source in _notebooks(run):
                page = run.folder / f"{'page' if source.stem == 'notebook' else source.stem}.html"
                pages.render(source, page, root=root)
            if output is not None:
                written.append(pages.render(executed(run), output / f"{name}.html", root=root))
    return written


def _notebooks(run: runs.Run) -> list[Path]:
    return [path for path in (run.folder / "notebook.ipynb", run.folder / "failed.ipynb") if path.is_file()]


# --------------------------------------------------------------------------------------------------------- a notebook
def notebook(run: runs.Run, target: Path) -> Path:
    """Writes the run's executed notebook as one file to send: outputs in it, nothing of this machine, no widget state.

    A plotly figure keeps its interactive form and, where a browser is there to draw it, gets an image beside it: sites
    that show notebooks know images only. A live view has no place outside of JupyterLab and our pages; its text stays.

    Raises:
        ValueError: the run has no executed notebook.
    """
    import nbformat

    book = sendable.cleaned(read_notebook(executed(run)), run.folder, run.folder.parent.parent)
    for data in _shown(book):
        data.pop(WIDGET_MIME, None)
        if data.pop(scripted.VIEW_MIME, None) is not None:
            told = "(an interactive view; it is alive in the page of this run, and after running the cell)"
            data["text/plain"] = data.get("text/plain", "") + f"\n{told}"
    if figure_images.browser():
        holders = [data for data in _shown(book) if PLOTLY_MIME in data]
        drawn = figure_images.draw([(data[PLOTLY_MIME], "png") for data in holders], scale=1)
        for data, image in zip(holders, drawn, strict=True):
            if len(image) <= _LARGE:
                data.setdefault("image/png", base64.b64encode(image).decode())
    nbformat.validate(book)
    with runs.atomic(target) as file:
        file.write((nbformat.writes(book) + "\n").encode(errors="replace"))
    return target


def _shown(book: Any) -> Iterator[Any]:
    """Mime type -> data of every output that is shown as such."""
    return (output.data for cell in book.cells for output in cell.get("outputs", []) if "data" in output)


# ------------------------------------------------------------------------------------------------------------ figures
def figures(run: runs.Run, folder: Path, formats: Collection[str] = USUAL) -> list[Path]:
    """Writes every plotly figure of the run's executed notebook, as images and its data as a table.

    Args:
        folder: where the files go; they are named after the cell and the figure's title.
        formats: of svg, png, pdf and csv.

    Raises:
        ValueError: the run has no executed notebook, or a format is unknown.
        RuntimeError: an image is asked for and no browser is there to draw it; nothing was written.
    """
    if wrong := [name for name in formats if name not in FORMATS]:
        raise ValueError(f"--format takes {', '.join(FORMATS)}, with commas between them; got {', '.join(wrong)}")
    found = list(figures_of(read_notebook(executed(run)), sendable.cleaner(run.folder, run.folder.parent.parent)))
    wanted = [(figure, ending) for figure in found for ending in dict.fromkeys(formats)]
    drawn = iter(figure_images.draw([(figure.spec, ending) for figure, ending in wanted if ending in IMAGES]))
    paths = [folder / f"{figure.name}.{ending}" for figure, ending in wanted]
    for path, (figure, ending) in zip(paths, wanted, strict=True):
        content = next(drawn) if ending in IMAGES else table(figure.spec).to_csv(index=False).encode(errors="replace")
        with runs.atomic(path) as file:
            file.write(content)
    return paths


def figures_of(book: Any, clean: Any = str) -> Iterator[Figure]:
    """Every plotly figure of a notebook, in its order, each with a name of its own."""
    used: set[str] = set()
    for number, cell in enumerate(book.cells):
        specs = [output.get("data", {}).get(PLOTLY_MIME) for output in cell.get("outputs", [])]
        for spec in [json.loads(clean(json.dumps(spec))) for spec in specs if spec is not None]:
            stem = _slug(f"{cell.get('id') or f'cell-{number}'}-{figure_images.title_of(spec)}")
            names = itertools.chain([stem], (f"{stem}-{again}" for again in itertools.count(2)))
            used.add(name := next(name for name in names if name not in used))
            yield Figure(name, spec)


def _slug(text: str) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return words[:80].rstrip("-") or "figure"


def table(spec: dict[str, Any]) -> pd.DataFrame:
    """A figure's data as one long table: a row for each point, with its trace's number, name and type.

    Text that a spreadsheet would run as a formula gets a quotation mark in front.
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []
    for number, trace in enumerate(spec.get("data") or []):
        about = {"trace": number, "name": trace.get("name", ""), "type": trace.get("type", "scatter")}
        columns = {key: _values(value) for key, value in _arrays(trace)}
        grids = [key for key, value in columns.items() if value and isinstance(value[0], list) and key != "customdata"]
        x, y = (dict(enumerate(columns.get(axis) or ())) for axis in "xy")
        for key in grids:  # a heat map: rows go with y, columns with x
            for i, line in enumerate(columns[key]):
                rows += [{**about, "x": x.get(j, j), "y": y.get(i, i), key: value} for j, value in enumerate(line)]
        for i in range(0 if grids else max(map(len, columns.values()), default=0)):
            rows.append(about | {key: values[i] for key, values in columns.items() if i < len(values)})
    frame = pd.DataFrame([{key: _cell(value) for key, value in row.items()} for row in rows])
    return frame if len(frame) else pd.DataFrame(columns=["trace", "name", "type"])


_DRAWN = (*"xyz", "text", "customdata", "labels", "values", "ids", "parents", "r", "theta")
_DRAWN += ("open", "high", "low", "close", "base")
_BARS = [(axis, side) for axis in ("error_x", "error_y") for side in ("array", "arrayminus")]


def _arrays(trace: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a trace holds a value a point of, by the names of plotly."""
    found = {key: trace.get(key) for key in _DRAWN}
    found |= {f"{axis}.{side}": (trace.get(axis) or {}).get(side) for axis, side in _BARS}
    return ((key, values) for key, values in found.items() if isinstance(values, (list, dict)))


def _values(given: Any) -> list[Any]:
    """A list, or what plotly packs as bytes with a type and, for a grid, a shape."""
    if isinstance(given, list):
        return given
    import numpy as np

    packed = np.frombuffer(base64.b64decode(given.get("bdata", "")), dtype=np.dtype(given.get("dtype", "f8")))
    shape = [int(part) for part in str(given.get("shape", "")).split(",") if part.strip()]
    return (packed.reshape(shape) if shape else packed).tolist()


def _cell(value: Any) -> Any:
    value = json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
    return f"'{value}" if isinstance(value, str) and re.match(r"[=+\-@\t\r]", value) else value
