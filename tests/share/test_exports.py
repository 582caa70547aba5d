"""What a run is sent as: its notebook as one clean file, its figures as images and tables."""

import json
import shutil
from pathlib import Path

import nbformat
import numpy as np
import plotly.graph_objects as go
import pytest
from finished_runs import finished
from nbformat.v4 import new_code_cell, new_notebook
from toy_notebooks import display, stdout, stored

from workbench import cli, figures, runs
from workbench.share import exports, sendable

PLOTLY = "application_vnd.plotly.v1+json"


def plot(title: str = "it <b>rises</b>", **trace) -> dict:
    figure = go.Figure(go.Scatter(**{"x": [0, 1, 2], "y": np.array([1.5, 3.0, 2.0]), "name": "arm"} | trace))
    figure.update_layout(title=title)
    return display(**{PLOTLY: json.loads(figure.to_json()), "text_plain": "Figure"})


def run_with(root: Path, *outputs, name: str = "a", **options) -> runs.Run:
    run = finished(root, "spin", name=name, **options)
    nbformat.write(stored(*outputs), run.folder / "notebook.ipynb")
    return run


@pytest.fixture
def no_browser(monkeypatch):
    monkeypatch.setattr(figures, "browser", lambda: "")


@pytest.fixture
def pretended(monkeypatch):
    """A browser that draws nothing; what it was asked for, one list a start."""
    starts = []

    def draw(wanted, scale=0):
        starts.append([ending for _, ending in wanted])
        return [f"{ending} of {len(spec['data'])}".encode() for spec, ending in wanted]

    monkeypatch.setattr(figures, "browser", lambda: "chromium")
    monkeypatch.setattr(figures, "draw", draw)
    return starts


# -------------------------------------------------------------------------------------------------------- the notebook
def test_notebook_is_one_clean_file_with_its_outputs(tmp_path, no_browser):
    secret = f"{tmp_path}/spin/tiny-a/x.json sk-abcdefgh0123456789xyz"
    view = {"application_vnd.jupyter.widget-view+json": {"model_id": "1"}, "text_plain": "a view"}
    view |= {"application_vnd.workbench.view+json": {"view": "ranking", "state": {"data": "x" * 100_000}}}
    run = run_with(tmp_path, stdout(secret), plot(), display(**view), display(text_html="<b>table</b>"))
    path = exports.notebook(run, tmp_path / "sent" / "x.ipynb")
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    printed, figure, seen, table = book.cells[1].outputs
    assert printed.text == f"…/x.json {sendable.REMOVED}"
    assert figure.data["application/vnd.plotly.v1+json"]["data"][0]["name"] == "arm"
    assert list(seen.data) == ["text/plain"]
    assert seen.data["text/plain"].startswith("a view\n(an interactive view")
    assert table.data["text/html"] == "<b>table</b>"
    assert path.stat().st_size < 20_000
    assert [item.name for item in path.parent.iterdir()] == ["x.ipynb"]
    assert "widgets" not in book.metadata


def test_figures_of_the_notebook_get_an_image_beside_them(tmp_path, pretended, monkeypatch):
    run = run_with(tmp_path, plot(), plot(), stdout("x"))
    book = nbformat.read(exports.notebook(run, tmp_path / "x.ipynb"), as_version=4)
    assert [sorted(output.data) for output in book.cells[1].outputs[:2]] == [
        ["application/vnd.plotly.v1+json", "image/png", "text/plain"]
    ] * 2
    assert pretended == [["png", "png"]]  # one start of the browser
    monkeypatch.setattr(exports, "_LARGE", 3)
    book = nbformat.read(exports.notebook(run, tmp_path / "x.ipynb"), as_version=4)
    assert "image/png" not in book.cells[1].outputs[0].data


def test_a_failed_run_sends_what_there_is(tmp_path, no_browser):
    run = finished(tmp_path, "spin")
    with pytest.raises(ValueError, match=r"holds no executed notebook; `workbench reproduce spin` makes one"):
        exports.notebook(run, tmp_path / "x.ipynb")
    nbformat.write(stored(stdout("as far as it came")), run.folder / "failed.ipynb")
    assert "as far as it came" in exports.notebook(run, tmp_path / "x.ipynb").read_text()


# --------------------------------------------------------------------------------------------------------- the figures
def test_every_figure_is_written_under_the_name_of_its_cell_and_title(tmp_path, pretended):
    run = run_with(tmp_path, plot(), plot(), plot(title=""), stdout("x"))
    cell = nbformat.read(run.folder / "notebook.ipynb", as_version=4).cells[1]["id"]
    paths = exports.figures(run, tmp_path / "out")
    assert [path.name.replace(cell, "cell") for path in paths] == [
        f"{stem}.{ending}" for stem in ("cell-it-rises", "cell-it-rises-2", "cell") for ending in ("svg", "png", "csv")
    ]
    assert pretended == [["svg", "png"] * 3]  # one start of the browser
    assert paths[0].read_text() == "svg of 1"
    assert (
        paths[2].read_text() == "trace,name,type,x,y\n0,arm,scatter,0,1.5\n0,arm,scatter,1,3.0\n0,arm,scatter,2,2.0\n"
    )


def test_a_title_cannot_choose_the_folder(tmp_path, pretended):
    run = run_with(tmp_path, plot(title="../../../etc/passwd \x00 <img src=x>"))
    (path,) = exports.figures(run, tmp_path / "out", ["csv"])
    assert path.parent == tmp_path / "out"
    assert path.name.endswith("etc-passwd.csv")


def test_heat_maps_and_intervals_become_long_tables():
    grid = exports.table({"data": [{"type": "heatmap", "x": ["a", "b"], "y": ["c"], "z": [[1, 2]]}]})
    assert grid[["x", "y", "z"]].to_numpy().tolist() == [["a", "c", 1], ["b", "c", 2]]
    packed = json.loads(go.Figure(go.Heatmap(z=np.arange(6.0).reshape(2, 3))).to_json())
    assert exports.table(packed)["z"].tolist() == [0, 1, 2, 3, 4, 5]
    bars = exports.table({"data": [{"x": [1], "error_x": {"array": [0.5]}, "name": "n"}, {"y": [2, 3]}]})
    assert bars["error_x.array"].tolist()[0] == 0.5
    assert bars["trace"].tolist() == [0, 1, 1]
    assert list(exports.table({"data": []}).columns) == ["trace", "name", "type"]


def test_text_in_a_table_is_no_formula():
    names = exports.table({"data": [{"x": ["=cmd()", "-1", "plain", -1], "name": "@x"}]})
    assert names["x"].tolist() == ["'=cmd()", "'-1", "plain", -1]
    assert set(names["name"]) == {"'@x"}


def test_without_a_browser_the_remedy_is_one_line_and_tables_still_work(tmp_path, monkeypatch, no_browser, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run_with(tmp_path, plot())
    words = ["report", "spin", "--to", "figures", "--output", str(tmp_path / "out")]
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith(
        "error: images are drawn by kaleido in a Chromium, and this machine lacks one of them: install"
    )
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert cli.main([*words, "--format", "csv"]) == 0
    assert len(list((tmp_path / "out" / "spin-tiny-a").glob("*.csv"))) == 1


# ----------------------------------------------------------------------------------------------------- the command line
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "pdf"], "error: --to must be page, notebook or figures; got 'pdf'"),
        (["nothing"], "error: no run 'nothing' in "),
        (
            ["--to", "figures", "--format", "svg,gif"],
            "error: --format takes svg, png, pdf, csv, with commas between them; got gif",
        ),
        (["tiny-b", "--to", "notebook"], "error: "),
    ],
)
def test_user_errors_are_one_line(tmp_path, monkeypatch, pretended, words, message, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run_with(tmp_path, plot())
    finished(tmp_path, "spin", name="b")
    assert cli.main(["report", *words, "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith(message)
    assert said.count("\n") == 1


def test_what_is_asked_for_is_written_where_it_is_asked(tmp_path, monkeypatch, pretended, capsys):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    for name in ("a", "b"):
        run_with(tmp_path / "runs", stdout("x"), plot(), name=name)
    out = tmp_path / "out"
    assert cli.main(["report", "tiny-a", "--to", "notebook", "--output", str(out)]) == 0
    assert capsys.readouterr().out == f"{out / 'spin-tiny-a.ipynb'}\n"
    assert cli.main(["report", "--to", "figures", "--format", "csv", "--output", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"spin-tiny-a.ipynb", "spin-tiny-a", "spin-tiny-b"}
    assert cli.main(["report", "tiny-b", "--output", str(out)]) == 0
    assert (out / "spin-tiny-b.html").is_file()
    assert 'class="home"' not in (out / "spin-tiny-b.html").read_text()  # a page that was sent has no index beside it
    assert not (tmp_path / "runs" / "spin" / "tiny-a" / "page.html").exists()
    assert (tmp_path / "runs" / "spin" / "tiny-b" / "page.html").is_file()


def test_a_failed_run_gets_its_page_again(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path))
    run = finished(tmp_path, "spin")
    run.update_manifest(status="failed", reason="cell 3: ValueError: no")
    nbformat.write(
        new_notebook(cells=[new_code_cell("1", outputs=[stdout("came this far")])]), run.folder / "failed.ipynb"
    )
    assert cli.main(["report"]) == 0
    assert "came this far" in (run.folder / "failed.html").read_text()
    index = (tmp_path / "index.html").read_text()
    assert 'href="spin/tiny-a/failed.html"' in index
    assert "cell 3: ValueError: no" in index


# ------------------------------------------------------------------------------------------------------- a real browser
@pytest.mark.slow
@pytest.mark.browser
def test_images_are_drawn_by_one_browser_and_ask_for_nothing(tmp_path):
    if not figures.browser():
        pytest.skip("no chromium on this machine: nothing was drawn")
    run = run_with(tmp_path, plot(), plot(title="second"))
    svg, png, again, second = exports.figures(run, tmp_path / "out", ["svg", "png"])
    assert svg.read_text().startswith("<svg")
    assert "it" in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")
    assert again.read_text().startswith("<svg")
    assert second.stat().st_size > 3000
    book = nbformat.read(exports.notebook(run, tmp_path / "x.ipynb"), as_version=4)
    assert len(book.cells[1].outputs[0].data["image/png"]) > 3000
    assert shutil.which("chromium") is None or "chrom" in figures.browser()
