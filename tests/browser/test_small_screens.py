"""A run's page on a telephone, on paper and for those who hear it: whole, in both themes, and of a size to be sent."""

import json
import re

import nbformat
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from corners import CORNERS
from finished_runs import finished
from nbformat.v4 import new_output
from plotly.subplots import make_subplots
from toy_notebooks import claim_records, display, stdout, stored

from workbench import claims, figures
from workbench.share import page_frame, pages
from workbench.widgets.confidence_ranking import ConfidenceRanking

pytestmark = [pytest.mark.browser, pytest.mark.slow]
PHONE = {"width": 390, "height": 844}


def of_figure(figure: go.Figure) -> dict:
    return display(**{"application_vnd.plotly.v1+json": json.loads(figure.to_json()), "text_plain": "Figure"})


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """A page with what our notebooks hold: text, formulas, tables, figures, panels, a view, claims, provenance."""
    root = tmp_path_factory.mktemp("runs")
    run = finished(root, "spin", config={"beta": 0.1, "arms": [f"arm_{i}" for i in range(30)]})
    run.update_manifest(
        code={"hash": "a" * 64, "commit": "b" * 40, "changed": ["workbench/x.py"] * 9, "diff": "code.diff"}
    )
    (run.folder / "code.diff").write_text("+" + "word " * 100 + "\n")
    long = "a finding told in a title that is much longer than a telephone is wide, by a long way"
    wide = figures.blank(long, "x axis", "y", width=900)
    bars = {"array": [1, 1, 1], "color": "#444"}
    wide.add_trace(go.Scatter(y=[1, 3, 2], name="an arm with a long name", error_y=bars))
    wide.add_trace(go.Scatter(y=[2, 2, 2], name="another arm"))
    wide.add_vline(x=1, line={"color": "#222"})
    panels = make_subplots(rows=1, cols=3, subplot_titles=["one", "two", "three"])
    for column in (1, 2, 3):
        panels.add_trace(go.Scatter(y=[1, 2]), row=1, col=column)
    texts = [f"question {i}" for i in range(30)]
    answers = pd.DataFrame({"qid": texts, "question": texts, "answer": texts, "correct": [0, 1] * 15})
    view = ConfidenceRanking(answers, {"bt": [float(-i) for i in range(30)]}, kept=10)
    table = pd.DataFrame(np.ones((4, 14)), columns=[f"column_{i}" for i in range(14)])
    formula = r"\mathcal{L} = -\log \sigma\left(\beta \log \frac{\pi(y_w)}{\pi_r(y_w)} - \beta \log"
    formula += r" \frac{\pi(y_l)}{\pi_r(y_l)}\right) + \lambda \sum_{i=1}^{n} |x_i|"
    text = f"# Does it fit?\n\nText with $\\frac{{a}}{{b}}$ and\n\n$${formula}$$\n\n- an item with ${formula}$\n\n"
    node = stored(
        stdout("a printed line\n" * 3),
        display(text_html=table.to_html()),
        of_figure(wide),
        of_figure(panels),
        new_output("display_data", data=view._repr_mimebundle_()),
        display(text_html=claims.table_html(claim_records("a statement " * 12))),
        markdown=text + "| a | b |\n|---|---|\n| 1 | 2 |",
    )
    node.cells[1].source = "count = 1  # a comment\nprint('" + "x" * 300 + "')"
    nbformat.write(node, run.folder / "notebook.ipynb")
    return pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=root)


@pytest.fixture
def on_phone(page_file, visit):
    page = visit(page_file, width=PHONE["width"]).page
    page.set_viewport_size(PHONE)
    page.locator("div.figure .main-svg").nth(3).wait_for(state="attached")
    return page


def test_nothing_runs_out_of_a_telephone(on_phone):
    page = on_phone
    for summary in page.locator("details > summary").all():
        if summary.is_visible():
            summary.click()
    page.locator("details.provenance details summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    over = page.evaluate("""() => [...document.querySelectorAll("body *")].filter(node => {
            if (node.getBoundingClientRect().right <= innerWidth + 1) return false;
            for (let box = node.parentElement; box; box = box.parentElement)
              if (getComputedStyle(box).overflowX !== "visible") return false;
            return true;
        }).map(node => node.outerHTML.slice(0, 90))""")
    assert over == []
    for label in ("show this page in dark colours", "hide all code", "show all code"):
        button = page.get_by_role("button", name=label)
        if button.count():
            box = button.bounding_box()
            assert box["x"] + box["width"] <= PHONE["width"]
            assert box["height"] >= 32
    assert page.get_by_role("link", name="all runs").is_visible()


def test_figures_fit_a_telephone_and_its_finger(on_phone):
    first, panels = (on_phone.locator("div.figure").nth(i) for i in (0, 1))
    svg = first.locator(".main-svg").first.bounding_box()
    assert svg["width"] <= PHONE["width"]
    assert svg["height"] >= 380
    title = first.locator(".gtitle").bounding_box()
    assert title["x"] >= 0
    assert title["x"] + title["width"] <= PHONE["width"]
    assert title["height"] > 30  # several lines
    assert first.evaluate("node => node.querySelector('.js-plotly-plot')._fullLayout.legend.orientation") == "h"
    legend, ticks = first.locator(".legend").bounding_box(), first.locator(".xaxislayer-above").bounding_box()
    assert legend["y"] > ticks["y"]  # below, so that the plot keeps its width
    drag = first.evaluate("node => node.querySelector('.js-plotly-plot')._fullLayout.dragmode")
    assert drag is False  # a finger on a figure moves the page
    assert panels.locator(".main-svg").first.bounding_box()["width"] > PHONE["width"]  # to be pushed along, readable
    assert panels.evaluate("node => getComputedStyle(node.closest('.output')).overflowX") == "auto"


def test_a_telephone_that_is_turned_gets_the_wide_figure(on_phone):
    on_phone.set_viewport_size({"width": 1000, "height": 390})
    on_phone.wait_for_function("() => document.querySelector('.js-plotly-plot')._fullLayout.dragmode === 'zoom'")


@pytest.mark.parametrize(("dark", "width"), CORNERS)
def test_everyone_can_read_it(page_file, visit, barriers, dark, width):
    opened = visit(page_file, dark=dark, width=width)
    page = opened.page
    page.locator("div.figure .main-svg").nth(3).wait_for(state="attached")
    page.locator("details.provenance > summary").click()
    page.locator("details.provenance details summary").click()
    page.get_by_role("button", name="show all code").click()
    assert barriers(page) == []
    assert page.get_by_role("figure").first.get_attribute("aria-label").startswith("a finding told in a title")
    assert opened.complaints == []


def test_figures_turn_dark_and_back(page_file, visit):
    page = visit(page_file, dark=True).page
    first = page.locator("div.figure").first
    first.locator(".main-svg").first.wait_for()

    def drawn():
        return page.evaluate(
            """() => { const plot = document.querySelector("div.figure .js-plotly-plot"), at = plot._fullLayout;
            return [at.font.color, at.paper_bgcolor, at.shapes[0].line.color, plot._fullData[0].error_y.color]; }"""
        )

    ink = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--ink').trim()")
    assert drawn() == [ink, "rgba(0,0,0,0)", ink, ink]  # black lines would be lost on a dark page
    page.locator("#theme-switch").click()
    page.wait_for_function(
        "() => document.querySelector('.js-plotly-plot')._fullLayout.paper_bgcolor !== 'rgba(0,0,0,0)'"
    )
    assert drawn() == ["#222", "white", "#222", "#444"]


def test_formulas_are_drawn(page_file, visit):
    page = visit(page_file).page
    assert page.locator("math mfrac").count() >= 3
    assert page.locator("math[display=block]").first.bounding_box()["height"] > 30
    assert "\\frac" not in page.locator("main .prose").first.inner_text()


def test_on_paper_buttons_and_folded_code_are_left_out(page_file, visit):
    page = visit(page_file).page
    page.emulate_media(media="print")
    assert page.get_by_role("button", name="show all code").is_hidden()
    assert page.locator("details.source").first.is_hidden()
    assert page.locator("table.claims").is_visible()
    assert page.locator("div.figure").first.is_visible()


def test_a_page_is_one_file_of_about_five_megabytes(page_file, visit):
    assert page_file.stat().st_size < 5.6e6
    opened = visit(page_file)
    opened.page.locator("div.figure .main-svg").first.wait_for()
    assert opened.requests == [page_file.as_uri()]
    assert opened.complaints == []


def test_the_scoreboard_has_its_rules_to_itself():
    """A rule for the name of a class would reach into plotly's figures and views, which have their own names."""
    css = page_frame.source("page.css")
    ours = "mark marks legend filters unseen older reason pairs own soft field search"
    alone = [line for line in css.splitlines() if re.match(rf"\s*\.({ours.replace(' ', '|')})\b", line)]
    assert alone == []


def test_on_paper_a_figure_keeps_its_legend(page_file, visit):
    page = visit(page_file).page
    page.locator("div.figure .legend").first.wait_for(state="attached")
    page.emulate_media(media="print")
    assert page.locator("div.figure .legend").first.evaluate("node => getComputedStyle(node).display") != "none"
