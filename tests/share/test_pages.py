"""Rendered pages, without a browser (tests/browser opens them in one)."""

import json
import string
from pathlib import Path
from xml.etree import ElementTree

import nbformat
import pytest
from bs4 import BeautifulSoup
from finished_runs import HOSTILE, finished, live_scripts
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_output
from toy_notebooks import display, stdout, stored

from workbench import methods
from workbench.share import pages

PLOT = {"application_vnd.plotly.v1+json": {"data": [{"y": [1, 2]}], "layout": {"title": {"text": HOSTILE}}}}


def page_of(tmp_path: Path, *outputs, markdown: str = "# A page", **options) -> BeautifulSoup:
    nbformat.write(stored(*outputs, markdown=markdown), tmp_path / "x.ipynb")
    return BeautifulSoup(pages.render(tmp_path / "x.ipynb", tmp_path / "x.html", **options).read_text(), "html.parser")


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
    known = {"math", "code", "mrow", "mi", "mo", "mn", "mtext", "mspace", "mfrac", "msub", "msup", "msubsup", "mtable"}
    known |= {"mtr", "mtd", "mover", "munder", "munderover", "msqrt", "mroot", "mstyle", "mpadded"}
    assert {node.tag.rpartition("}")[2] for node in element.iter()} <= known


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


def test_markup_that_the_policy_cannot_stop_is_shown_as_text(tmp_path):
    attacks = [
        "<meta http-equiv=refresh content='0;url=http://x.invalid'>",
        "<LINK rel=dns-prefetch href=//x.invalid>",
        "<base href=x>",
        "<iframe srcdoc=x></iframe>",
        "<form action=x>",
        "<object data=x>",
        "<embed src=x>",
        "</script ><script>1</script>",
    ]
    text = "".join(attacks)
    page = page_of(tmp_path, display(text_html=f"<table><tr><td>{text}</td></tr></table>"), markdown=f"# A\n\n{text}")
    assert page.main.find(["meta", "link", "base", "iframe", "form", "object", "embed", "script"]) is None
    assert page.main.td.text == text
    assert page.main.find("td") is not None  # a table of ours stays a table
    assert (
        page_of(tmp_path, display(text_html="<metadata-x>a</metadata-x><linked>b</linked>")).main.find("linked")
        is not None
    )


def test_a_view_that_this_version_cannot_draw_is_shown_as_its_text(tmp_path):
    for data in ({"view": "../../x", "state": {}}, {"view": "nobody", "state": {}}, {"view": None}, {}, "text"):
        page = page_of(tmp_path, display(**{"application_vnd.workbench.view+json": data, "text_plain": "its <text>"}))
        assert page.select_one("div.output pre").text == "its <text>"
        assert not page.select("div.view")
    page = page_of(tmp_path, display(text_html='<div class="view" data-view="nobody"></div><div class="figure"></div>'))
    assert len(str(page)) < 100_000  # markup that says it is a figure brings no plotly


def test_what_no_file_can_hold_is_replaced(tmp_path):
    book = stored(stdout("before \ud800 \x00 after"), markdown="# A\n\n\udfff")
    (tmp_path / "x.ipynb").write_text(json.dumps(book))
    page = BeautifulSoup(pages.render(tmp_path / "x.ipynb", tmp_path / "x.html").read_text(), "html.parser")
    assert page.select_one("div.output pre").text == "before ? \x00 after"


def test_a_page_holds_no_folder_of_this_machine_and_no_key(tmp_path):
    run = finished(
        tmp_path, "spin", dataset=str(tmp_path / "mine" / "pairs.jsonl"), model="http://host/v1?key=abcdef#m"
    )
    spot = f"{run.folder}/seed-0/x.json and sk-abcdefgh0123456789xyz"
    book = stored(stdout(spot), display(text_html=f"<p>{spot}</p>"), display(**PLOT), markdown=f"# {spot}")
    nbformat.write(book, run.folder / "notebook.ipynb")
    text = pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=tmp_path).read_text()
    assert str(tmp_path) not in text
    assert "sk-abcdef" not in text
    assert "key=abcdef" not in text
    assert "…/seed-0/x.json" in text


# ---------------------------------------------------------------------------------------------------------- provenance
NEW_MANIFEST = {
    "provenance": {"python": "3.12.1", "torch": "2.13.0", "workbench": "0.2.0", "system": "Linux", "machine": "x86_64"}
    | {"cores": "8", "processor": "A <b>chip</b>", "memory_gib": "31.2", "gpu": ""},
    "code": {"hash": "abc123", "commit": "0123456789abcdef", "diff": "code.diff"}
    | {"changed": ["workbench/dpo.py", "<x>"]},
    "inputs": [
        {"kind": "dataset", "source": "/home/me/pairs.jsonl", "fingerprint": "f00", "revision": ""},
        {"kind": "model", "source": "org/name", "fingerprint": "org/name", "revision": "9e1c"},
    ],
}


def provenance_of(tmp_path: Path, diff: str = "-old\n+new <script>\n", asked=None, **manifest) -> BeautifulSoup:
    run = finished(tmp_path, "spin", config={"beta": 0.1, "arms": ["a", "b"], "name": HOSTILE}, model="org/name")
    run.update_manifest(**manifest)
    (run.folder / "code.diff").write_text(diff)
    book = stored()
    book.metadata["papermill"] = {"parameters": {"overrides": asked or {}}}
    nbformat.write(book, run.folder / "notebook.ipynb")
    text = pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=tmp_path).read_text()
    return BeautifulSoup(text, "html.parser").select_one("details.provenance")


def pairs(part: BeautifulSoup) -> dict[str, str]:
    return {dt.text: dt.find_next("dd").text for dt in part("dt")}


def test_provenance_says_what_a_run_was_made_with_and_how_to_repeat_it(tmp_path):
    part = provenance_of(tmp_path, asked={"beta": 0.1}, **NEW_MANIFEST)
    assert not part.has_attr("open")
    assert part.code.text == "workbench rerun spin/tiny-a"
    said = pairs(part)
    assert said["beta"] == "0.1 set for this run"
    assert said["arms"] == "a, b"
    assert said["name"] == HOSTILE
    assert said["seeds"] == "0, 1, 2"
    assert said["commit"] == "0123456789abcdef"
    assert said["hash of the code"] == "abc123"
    assert said["changed since the commit"] == "workbench/dpo.py, <x>"
    assert said["processor"] == "A <b>chip</b>"
    assert said["took"] == "2 min 5 s"
    assert said["torch"] == "2.13.0"
    assert "GPU" not in said
    assert [[td.text for td in row("td")] for row in part.select("tbody tr")] == [
        ["dataset", "pairs.jsonl", "f00", "not recorded"],
        ["model", "org/name", "by name only", "9e1c"],
    ]
    assert part.pre.text == "-old\n+new <script>"
    assert not part("script")
    assert not part("img")


def test_provenance_of_an_older_run_says_what_is_known(tmp_path):
    part = provenance_of(tmp_path, provenance={"python": "3.11.7"}, code=None, inputs=None)
    said = pairs(part)
    assert said["python"] == "3.11.7"
    assert "commit" not in said
    assert "hash of code and settings" in said
    assert not part("pre")
    assert [[td.text for td in row("td")] for row in part.select("tbody tr")] == [
        ["model", "org/name", "by name only", "not recorded"]
    ]
    assert "Set for this run" not in part.text


def test_a_run_without_inputs_lives_in_the_embedded_world(tmp_path):
    run = finished(tmp_path, "spin")
    nbformat.write(stored(), run.folder / "notebook.ipynb")
    text = pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=tmp_path).read_text()
    assert "The embedded world: made by the code, from the seeds." in text


def test_a_long_diff_is_cut_and_says_so(tmp_path):
    part = provenance_of(tmp_path, "".join(f"+line {i}\n" for i in range(1, 1001)), **NEW_MANIFEST)
    assert part.pre.text.splitlines()[-1] == "+line 400"
    assert "Shown are the first 400 of 1000 lines; all of it is code.diff of the run folder." in part.text
    wide = provenance_of(tmp_path, "+" + "x" * 90_000, **NEW_MANIFEST)
    assert len(wide.pre.text) == 40_000
    assert "Shown are the first 1 of 1 lines" in wide.text


def test_a_manifest_cannot_show_a_file_outside_of_its_run(tmp_path):
    (tmp_path / "secret.txt").write_text("what nobody may see")
    part = provenance_of(tmp_path, **(NEW_MANIFEST | {"code": {"diff": "../../secret.txt"}}))
    assert "what nobody may see" not in part.text
