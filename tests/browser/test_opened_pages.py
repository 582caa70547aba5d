"""Rendered pages in a real browser: drawn, offline, quiet, and deaf to what a model wrote."""

import html

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_output
from toy_notebooks import claim_records, display, stdout, stored

from workbench import claims, runs
from workbench.share import pages

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ATTACKS = (
    "<script>window.pwned = 1</script>",
    "</pre></div></section><h1 id=injected>taken over</h1>",
    "<img src=http://example.invalid/leak.png onerror='window.pwned = 1'>",
    "</script><script>window.pwned = 1</script><!--",
    "<svg onload='window.pwned = 1'><iframe src=http://example.invalid>",
)


def figure(**layout) -> dict:
    drawn = go.Figure(go.Scatter(x=[0, 1, 2], y=[1, 3, 2], name=ATTACKS[0]))
    drawn.update_layout(title=ATTACKS[1], **layout)
    return display(**{"application_vnd.plotly.v1+json": drawn.to_plotly_json(), "text_plain": "Figure"})


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """One page with everything on it, in a run folder."""
    root = tmp_path_factory.mktemp("runs")
    run = runs.open_run("spin", "toy", "tiny", {"seeds": [0, 1, 2]}, str(root / "spin" / "tiny-a"))
    hostile = "\n".join(ATTACKS)
    table = pd.DataFrame({"response": ATTACKS})
    records = claim_records(statement=hostile)
    node = stored(
        stdout(hostile),
        figure(),
        figure(height=300),
        display(text_html=table.to_html()),
        display(text_html=claims.table_html(records)),
        new_output("error", ename="E", evalue="v", traceback=[hostile]),
        # what a method's own HTML must never let through, and what the page's policy stops if it does
        display(text_html=f"<p>unescaped {ATTACKS[0]} {ATTACKS[2]}</p>"),
        markdown="# A page\n\nwith $\\frac{a}{b}$ and\n\n$$\\sum_{i=1}^n x_i$$",
    )
    nbformat.write(node, run.folder / "notebook.ipynb")
    runs.write_json(run.folder / "claims.json", records)
    run.update_manifest(status="done", finished="2026-01-01T00:00:00+00:00")
    pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=root)
    pages.index(root)
    return root


def test_page_is_drawn_without_any_request(rendered, visit, tmp_path):
    clean = stored(figure(), stdout("text"), markdown="# A page\n\n$$\\sum_{i=1}^n x_i$$")
    nbformat.write(clean, tmp_path / "x.ipynb")
    opened = visit(pages.render(tmp_path / "x.ipynb", tmp_path / "x.html"))
    opened.page.wait_for_selector(".scatterlayer path.js-line")
    assert opened.requests == [(tmp_path / "x.html").as_uri()]
    assert opened.complaints == []
    box = opened.page.locator("math").bounding_box()
    assert box["height"] > 20  # a browser that cannot read the formula shows one line of text
    assert opened.page.locator("math munderover").count() == 1
    plot = opened.page.locator(".main-svg").first.bounding_box()
    assert 600 < plot["width"] <= 1280


def test_figure_answers_to_the_mouse_and_offers_no_upload(rendered, visit):
    page = visit(rendered / "spin" / "tiny-a" / "page.html").page
    page.wait_for_selector(".scatterlayer path.js-line")
    page.locator(".scatterlayer .point").nth(1).hover(force=True)  # plotly catches the mouse on a layer above
    page.wait_for_selector(".hovertext", timeout=5000)
    buttons = page.locator(".modebar-btn").evaluate_all("all => all.map(b => b.dataset.title)")
    assert "Zoom" in buttons
    assert not [title for title in buttons if "hare" in title or "loud" in title or "tudio" in title]


def test_hostile_text_is_shown_and_does_nothing(rendered, visit):
    opened = visit(rendered / "spin" / "tiny-a" / "page.html")
    page = opened.page
    page.wait_for_selector(".scatterlayer path.js-line")
    assert page.evaluate("window.pwned") is None
    assert page.locator("#injected").count() == 0
    for attack in ATTACKS:
        assert page.locator("pre", has_text=attack).count() == 2  # printed, and in the traceback
        assert page.locator("table.dataframe td", has_text=attack).count() >= 1
    assert page.get_by_text(f"unescaped {ATTACKS[0]}").is_visible()  # an output that was left unescaped on purpose
    assert opened.requests == [(rendered / "spin" / "tiny-a" / "page.html").as_uri()]
    assert opened.complaints == []


def test_code_opens_by_one_button(rendered, visit):
    page = visit(rendered / "spin" / "tiny-a" / "page.html").page
    assert not page.locator("details.source pre").first.is_visible()
    page.get_by_role("button", name="show all code").click()
    assert page.locator("details.source pre").first.is_visible()
    page.get_by_role("button", name="hide all code").click()
    assert not page.locator("details.source pre").first.is_visible()


def test_index_is_quiet_and_leads_to_the_page_and_back(rendered, visit):
    opened = visit(rendered / "index.html")
    assert opened.requests == [(rendered / "index.html").as_uri()]
    assert opened.complaints == []
    page = opened.page
    assert page.evaluate("window.pwned") is None
    assert html.unescape(page.locator("table.claims td").nth(2).inner_text()) == "\n".join(ATTACKS).replace("\n", " ")
    page.locator("table.claims a").first.click()
    page.wait_for_selector(".scatterlayer path.js-line")
    page.get_by_role("link", name="all runs").click()
    assert page.get_by_role("heading", name="Scoreboard").is_visible()


def test_empty_index_opens(tmp_path, visit):
    opened = visit(pages.index(tmp_path))
    assert opened.page.get_by_text("No finished run yet").is_visible()
    assert opened.complaints == []


@pytest.mark.parametrize("width", [1280, 900])
def test_nothing_runs_out_of_the_window(rendered, visit, width):
    for path in (rendered / "index.html", rendered / "spin" / "tiny-a" / "page.html"):
        page = visit(path).page
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
