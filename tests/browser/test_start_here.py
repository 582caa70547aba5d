"""The first notebook as a newcomer meets it: it runs, its page opens offline, and its slider moves the figure."""

import os
from pathlib import Path

import nbformat
import pytest
from in_process import execute

from workbench.share import pages

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture
def executed(shared_starts, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})  # seeds stay in this process
    node, _ = execute(ROOT / "notebooks" / "start-here.ipynb")  # in a kernel: see test_lab.py
    nbformat.write(node, tmp_path / "out.ipynb")
    return pages.render(tmp_path / "out.ipynb", tmp_path / "page.html", title="start here")


@pytest.mark.browser
def test_it_stays_small_and_its_slider_moves_the_figure_with_no_kernel(executed, visit):
    """One test, so that two workers do not both run the notebook."""
    assert executed.stat().st_size < 6_000_000
    assert "shown in small" in executed.read_text()
    opened = visit(executed)
    page = opened.page
    page.wait_for_selector(".slider-rail-touch-rect", state="attached")
    bars = "all => all.slice(8).map(bar => bar.getBBox().height)"  # the third group of four: the policy after the round
    before = page.locator(".barlayer .point path").evaluate_all(bars)
    page.evaluate("document.querySelector('.slider-rail-touch-rect').scrollIntoView({block: 'center'})")
    rail = page.locator(".slider-rail-touch-rect").bounding_box()
    page.mouse.click(rail["x"] + 0.62 * rail["width"], rail["y"] + rail["height"] / 2)
    page.wait_for_timeout(500)
    after = page.locator(".barlayer .point path").evaluate_all(bars)
    assert len(before) == len(after) == 4
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 10
    assert page.locator(".slider-label").first.text_content().startswith("lambda = ")
    assert opened.requests == [executed.as_uri()]
    assert opened.complaints == []
