"""Rendered pages and the scoreboard, without a browser (tests/browser opens them in one)."""

import json
import re
import string
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from bs4 import BeautifulSoup
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_output
from toy_notebooks import claim_records, display, stdout, stored, toy, write_notebook

from workbench import methods, pages, runs

HOSTILE = "</pre></script><script>window.pwned=1</script><img src=http://x.invalid/a onerror=alert(1)>&lt;b"
PLOT = {"application_vnd.plotly.v1+json": {"data": [{"y": [1, 2]}], "layout": {"title": {"text": HOSTILE}}}}


def page_of(tmp_path: Path, *outputs, markdown: str = "# A page", **options) -> BeautifulSoup:
    nbformat.write(stored(*outputs, markdown=markdown), tmp_path / "x.ipynb")
    return BeautifulSoup(pages.render(tmp_path / "x.ipynb", tmp_path / "x.html", **options).read_text(), "html.parser")


def live_scripts(page: BeautifulSoup) -> list:
    return [tag for tag in page("script") if tag.get("type") != "application/json"]


def only_its_own_scripts(page: BeautifulSoup) -> list[str]:
    """The scripts of a page, once it is sure that its policy lets each of them run and lets no other one."""
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    allowed = re.search(r"script-src ([^;]*);", policy)[1]
    scripts = live_scripts(page)
    assert [tag.get("nonce") for tag in scripts] == [re.fullmatch(r"'nonce-([\w-]{20,})'", allowed)[1]] * len(scripts)
    assert not [tag for tag in scripts if tag.has_attr("src")]
    return [tag.text for tag in scripts]


def finished(root: Path, system: str, scale: str = "tiny", name: str = "a", day: int = 1, records=None, **parameters):
    """A run folder as a finished run leaves it."""
    given = {"config": {}, "model": "", "dataset": "", "device": "auto", "seeds": [0, 1, 2], "inputs": ["", ""]}
    run = runs.open_run(system, "toy", scale, given | parameters, str(root / system / f"{scale}-{name}"))
    runs.write_json(run.folder / "claims.json", claim_records(scale=scale) if records is None else records)
    run.update_manifest(
        status="done", started=f"2026-01-0{day}T10:00:00+00:00", finished=f"2026-01-0{day}T10:02:05+00:00"
    )
    return run


# -------------------------------------------------------------------------------------------------------- one notebook
def test_page_is_one_file_that_asks_for_nothing(tmp_path):
    page = page_of(tmp_path, display(**PLOT), stdout("hello\n"))
    policy = page.find("meta", {"http-equiv": "Content-Security-Policy"})["content"]
    assert "default-src 'none'" in policy
    assert all(tag.get("src") is None for tag in live_scripts(page))
    assert [tag["href"] for tag in page("link")] == ["data:,"]
    assert all(tag["src"].startswith("data:") for tag in page("img"))
    nonce = page.script["nonce"]
    assert f"'nonce-{nonce}'" in policy
    assert all(tag["nonce"] == nonce for tag in live_scripts(page))


def test_plotly_comes_once_and_only_where_there_is_a_figure(tmp_path):
    with_figures = page_of(tmp_path, display(**PLOT), display(**PLOT))
    assert sum(len(tag.text) > 1_000_000 for tag in with_figures("script")) == 1
    page_of(tmp_path, stdout("no figure\n"))
    assert (tmp_path / "x.html").stat().st_size < 100_000


def test_code_is_folded_and_outputs_are_open(tmp_path):
    page = page_of(tmp_path, stdout("seen\n"))
    assert page.details.summary.text == "show code"
    assert "show()" in page.details.text
    assert not page.details.has_attr("open")
    assert page.select_one("div.output pre").text == "seen\n"


def test_title_comes_from_the_heading_unless_given(tmp_path):
    assert page_of(tmp_path, markdown="# Does *it* work?\n\ntext").title.text == "Does it work?"
    assert page_of(tmp_path, markdown="no heading").title.text == "x"
    assert page_of(tmp_path, title="<Mine>").title.text == "<Mine>"


def test_formulas_become_mathml(tmp_path):
    page = page_of(tmp_path, markdown="# A\n\nInline $\\frac{a}{b} < c$ and\n\n$$\\sum_i x_i$$\n\nfor 5\\$")
    inline, block = page("math")
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert inline.mfrac is not None
    assert "$" not in page.main.text.replace("5$", "")


def test_result_of_a_cell_looks_like_a_display(tmp_path):
    for data in (PLOT, {"text_html": "<b>x</b>"}, {"text_plain": "x"}, {"text_latex": "$x$"}, {"image_png": "aaaa"}):
        shown, result = [
            page_of(tmp_path, display(kind, **data)).select_one("div.output")
            for kind in ("display_data", "execute_result")
        ]
        assert shown.find(True) is not None
        assert str(shown) == str(result)


def test_widgets_and_javascript_are_left_out_for_their_text(tmp_path):
    bundle = {"application_vnd.jupyter.widget-view+json": {"model_id": "a"}, "text_plain": "static face"}
    page = page_of(
        tmp_path, display(**bundle), display(application_javascript="window.pwned=1", text_plain="no script")
    )
    assert [pre.text for pre in page.select("div.output pre")] == ["static face", "no script"]
    assert "pwned" not in str(page)


@pytest.mark.parametrize(
    "output",
    [
        stdout(HOSTILE),
        new_output("stream", name="stderr", text=HOSTILE),
        new_output("error", ename="E", evalue=HOSTILE, traceback=[HOSTILE]),
        display(text_plain=HOSTILE),
        display(text_markdown=f"{HOSTILE} [x](javascript:alert(1))"),
        display(text_latex=f"$\\text{{{HOSTILE}}}$"),
        display(**PLOT),
    ],
    ids=["stdout", "stderr", "error", "plain", "markdown", "latex", "plotly"],
)
def test_hostile_text_stays_text(tmp_path, output):
    harmless = page_of(tmp_path, *([display(**PLOT)] if "application" in str(output) else []))
    page = page_of(tmp_path, output)
    assert len(live_scripts(page)) == len(live_scripts(harmless))
    assert not page("img")
    assert not page.select("[onerror]")
    assert not page.select('a[href^="javascript"]')


@settings(max_examples=30, deadline=None)
@given(text=st.text(alphabet=string.printable.replace("\r", "") + "<>&\"'é🙂", max_size=60))
def test_any_printed_text_comes_back_unchanged(tmp_path_factory, text):
    text = text.replace("\x0b", "").replace("\x0c", "") + "."
    page = page_of(tmp_path_factory.mktemp("page"), stdout(f"start\n{text}"))
    assert page.select_one("div.output pre").text == f"start\n{text}"


@given(formula=st.text(alphabet="abx{}_^&\\<>\"'$ 12", max_size=20))
def test_any_formula_becomes_well_formed_and_inert(formula):
    element = ElementTree.fromstring(pages.mathml(f"${formula}$"))
    assert {node.tag.rpartition("}")[2] for node in element.iter()} <= {
        "math", "code", "mrow", "mi", "mo", "mn", "mtext", "mspace", "mfrac", "msub", "msup", "msubsup", "mtable",
        "mtr", "mtd", "mover", "munder", "munderover", "msqrt", "mroot", "mstyle", "mpadded",
    }  # fmt: skip


def test_aligned_equations_become_a_table_and_broken_ones_stay_code():
    assert pages.mathml(r"$$\begin{aligned} a &= b \\ c &= d \end{aligned}$$").count("<mtr") == 2
    assert pages.mathml("$$") == "<code>$$</code>"
    assert pages.mathml("$<_$") == "<code>$&lt;_$</code>"


def test_header_tells_the_run_and_links_home(tmp_path):
    run = finished(tmp_path, "spin", dataset=str(tmp_path / "pairs.jsonl"))
    nbformat.write(stored(), run.folder / "notebook.ipynb")
    pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=tmp_path)
    bar = BeautifulSoup((run.folder / "page.html").read_text(), "html.parser").header
    assert bar.strong.text == methods.REGISTRY["spin"].title
    assert [fact.text for fact in bar.select(".fact")] == [
        "scale tiny",
        "seeds 0 to 2",
        "pairs.jsonl",
        "2026-01-01 10:02",
    ]
    assert (run.folder / bar.a["href"]).resolve() == (tmp_path / "index.html").resolve()


def test_what_is_not_a_notebook_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.ipynb"):
        pages.render(tmp_path / "none.ipynb", tmp_path / "x.html")
    (tmp_path / "bad.ipynb").write_text("{half")
    with pytest.raises(ValueError, match=r"bad\.ipynb is not a notebook"):
        pages.render(tmp_path / "bad.ipynb", tmp_path / "x.html")
    assert not (tmp_path / "x.html").exists()


# ---------------------------------------------------------------------------------------------------------- scoreboard
def index_of(root: Path) -> BeautifulSoup:
    return BeautifulSoup(pages.index(root).read_text(), "html.parser")


def test_index_works_before_the_first_run(tmp_path):
    page = index_of(tmp_path / "not" / "there")
    assert "No finished run yet" in page.main.text
    assert not page("table")
    assert not page.main("script")
    assert len(only_its_own_scripts(page)) == 2  # which colours before anything is drawn, and the button for them


def test_index_shows_the_newest_run_of_each_system_and_scale(tmp_path):
    finished(tmp_path, "spin", name="old", day=1, records=claim_records("what the old run says"))
    new = finished(tmp_path, "spin", name="new", day=2, records=claim_records("what the new run says"))
    (new.folder / "page.html").write_text("page")
    finished(tmp_path, "spin", "smoke", name="s", day=3)
    finished(tmp_path, "spin", name="data", day=1, dataset="hub/data")
    unfinished = runs.open_run("spin", "toy", "tiny", {"seeds": [0]}, str(tmp_path / "spin" / "tiny-half"))
    runs.write_json(unfinished.folder / "claims.json", claim_records("what nobody may see"))

    page = index_of(tmp_path)
    assert [h.text for h in page("h2")][:2] == ["Scale: tiny", "Scale: smoke"]
    tiny, smoke = page.select("table.claims")
    assert "what the new run says" in tiny.text
    assert "what the old run says" not in tiny.text
    assert "spin · hub/data" in tiny.text  # another input is another experiment, not a newer version
    assert {a["href"] for a in tiny("a")} == {"spin/tiny-new/page.html"}
    assert "smoke run, no verdict" in smoke.text
    assert "what nobody may see" not in page.text
    others = page.select("table.runs")[1].text
    assert "tiny-old" in others
    assert "tiny-half" in others
    assert "not finished" in others


def test_index_counts_verdicts(tmp_path):
    finished(tmp_path, "spin")
    tally = [span.text for span in index_of(tmp_path).select(".tally span")]
    assert tally == ["1 shown in small", "1 not shown", "1 needs full scale"]


def test_hostile_claims_stay_text_in_the_index(tmp_path):
    records = [{**record, "statement": HOSTILE, "paper": HOSTILE, "verdict": HOSTILE} for record in claim_records()]
    harmless = index_of(tmp_path / "other")
    finished(tmp_path, "spin", records=records, model=HOSTILE)
    page = index_of(tmp_path)
    assert not page.main("script")
    assert only_its_own_scripts(page) == only_its_own_scripts(harmless)
    assert not page("img")
    assert not page.select("[onerror]")
    assert HOSTILE in page.select_one("table.claims").text


# -------------------------------------------------------------------------------------------------------------- README
@pytest.fixture
def registry(tmp_path, monkeypatch):
    notebook = write_notebook(tmp_path / "toy.ipynb")
    systems = {name: toy(name, notebook, cost="1 min") for name in ("left", "right", "other")}
    monkeypatch.setattr(methods, "REGISTRY", systems)
    return systems


def default_run(root: Path, system: str, **options):
    return finished(root, system, **{**json.loads(json.dumps(methods.Experiment(system).parameters)), **options})


def test_only_default_tiny_runs_are_published(tmp_path, registry):
    scoreboard = tmp_path / "scoreboard.json"
    runs.write_json(scoreboard, [{"system": "other", "scale": "tiny", "claims": []}, {"system": "gone", "claims": []}])
    default_run(tmp_path, "left")
    default_run(tmp_path, "left", name="newer", day=2, records=claim_records("newer"))
    default_run(tmp_path, "right", config={"beta": 9.0, "name": "plain", "flag": True, "steps": 1})
    default_run(tmp_path, "right", scale="smoke", name="s")
    notes = pages.publish(scoreboard, tmp_path)
    entries = {entry["system"]: entry for entry in runs.read_json(scoreboard)}
    assert list(entries) == ["left", "other"]
    assert entries["left"]["claims"][0]["statement"] == "newer"
    assert [note.split(":")[0] for note in notes] == ["right", "other"]
    assert "not in the table" in notes[0]
    assert "kept" in notes[1]


def test_readme_table_is_written_between_the_markers_and_only_there(tmp_path, registry):
    scoreboard, readme = tmp_path / "scoreboard.json", tmp_path / "README.md"
    default_run(tmp_path, "left")
    pages.publish(scoreboard, tmp_path)
    readme.write_text("# top\n<!-- scoreboard -->\nold\n<!-- /scoreboard -->\nbottom\n")
    assert pages.update_readme(readme, scoreboard)
    assert not pages.update_readme(readme, scoreboard)
    text = readme.read_text()
    assert text.startswith("# top\n<!-- scoreboard -->\n| system |")
    assert text.endswith("|\n<!-- /scoreboard -->\nbottom\n")
    assert "shown in small: C1; not shown: C2; needs full scale: C3" in text
    assert "1 min" in text


def test_readme_without_markers_is_refused(tmp_path, registry):
    runs.write_json(tmp_path / "scoreboard.json", [])
    (tmp_path / "README.md").write_text("# nothing here\n")
    with pytest.raises(ValueError, match="0 pairs of markers"):
        pages.update_readme(tmp_path / "README.md", tmp_path / "scoreboard.json")
    assert (tmp_path / "README.md").read_text() == "# nothing here\n"
