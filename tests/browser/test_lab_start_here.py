"""The first notebook in JupyterLab itself: pick a system, run it with the button, open its page; move the slider at the
end."""

from pathlib import Path

import nbformat
import pytest
from toy_notebooks import OPEN, claim_records, write_notebook

from workbench.runs.files import write_json

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"

pytestmark = [pytest.mark.browser, pytest.mark.slow]

# the runs lie where the server shows them, as in a checkout
INSIDE = "import os\nos.environ['WORKBENCH_RUNS'] = os.path.abspath('runs')"


@pytest.fixture(scope="module")
def start_here(lab):
    """start-here.ipynb without the cells that sample and train, opened and run."""
    book = nbformat.read(ROOT / "notebooks" / "start-here.ipynb", as_version=4)
    kept = [
        cell.source
        for cell in book.cells
        if cell.cell_type == "code"
        and any(word in cell.source for word in ("import ", "scale = ", "Launcher()", "overshoot_figure"))
    ]
    assert len(kept) == 4
    page = lab.open(lab.write("start-here.ipynb", INSIDE, *kept[:3], "world = PlantedChain()", kept[3]))
    lab.run_all(page)
    page.wait_for_selector(".wb-launcher .system")
    return page


def test_a_system_is_picked_run_and_opened_by_keys(start_here, barriers, lab):
    page = start_here
    state, bar = page.locator(".wb-launcher .state"), page.locator(".wb-launcher progress")
    page.locator(".wb-launcher .list").focus()
    page.keyboard.press("/")
    page.keyboard.type("root cause")
    page.keyboard.press("Enter")
    assert page.locator(".wb-launcher h4").inner_text().startswith("PACE-LM")
    assert page.locator(".wb-launcher .method math[display=block]").is_visible()
    page.get_by_label("scale", exact=True).select_option("smoke")
    assert not bar.is_visible()
    page.locator(".wb-launcher .list").focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")  # on the run button, where the first Enter went
    page.keyboard.press("Enter")  # a second press is none
    page.wait_for_function("document.querySelector('.wb-launcher .state').textContent === 'running'", timeout=60_000)
    page.wait_for_function("document.querySelector('.wb-launcher .facts').textContent.includes(' of 2 parts')")
    assert "cell " in page.locator(".wb-launcher .facts").inner_text()
    before = bar.evaluate("bar => bar.value")
    assert page.locator(".wb-launcher .go").is_disabled()
    assert page.locator(".wb-launcher .system .running").inner_text().startswith("● ")
    assert barriers(page, ".wb-launcher") == []
    page.wait_for_function("document.querySelector('.wb-launcher .state').textContent === 'done'", timeout=90_000)
    assert 0 < before < bar.evaluate("bar => bar.value") == 1
    assert len(list((lab.folder / "runs" / "pace_lm").glob("smoke-*/page.html"))) == 1
    assert (
        page.locator(".wb-launcher .verdicts tbody tr").count() == 5
    )  # of this run, though what was published decides more
    assert page.get_by_label("verdicts of").input_value().startswith("run here, smoke, 2 seeds")
    assert page.locator(".wb-launcher .verdicts .open").first.inner_text() == "?\xa0smoke run, no verdict"
    assert barriers(page, ".wb-launcher") == []
    with page.context.expect_page() as opening:
        page.get_by_role("link", name="open its page").press("Enter")
    opened = opening.value
    opened.wait_for_selector(".figure svg")  # drawn by a script, though the server shuts files up in a sandbox
    assert opened.locator("h1").first.inner_text().startswith("PACE-LM: how far may an engineer trust")
    assert (
        opened.locator("a.home").get_attribute("href") is None
    )  # that sandbox opens no other file: no link leads to a 403
    assert state.inner_text() == "done"


def test_the_slider_moves_the_figure(start_here):
    page = start_here
    rail = page.locator(".jp-Notebook .slider-rail-touch-rect")
    rail.scroll_into_view_if_needed()
    bars = "all => all.slice(8).map(bar => bar.getBBox().height)"  # the third group of four: the policy after the round
    before = page.locator(".barlayer .point path").evaluate_all(bars)
    box = rail.bounding_box()
    page.mouse.click(box["x"] + 0.62 * box["width"], box["y"] + box["height"] / 2)
    page.wait_for_timeout(500)
    after = page.locator(".barlayer .point path").evaluate_all(bars)
    assert len(before) == len(after) == 4
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) > 10


WAITS = """import time
run.progress(1, 2, "half of it")
time.sleep(300)"""
TOY = """import pathlib, sys
sys.path.insert(0, {tests!r})
from toy_notebooks import toy
from workbench import methods
from workbench.batch import launches
from workbench.batch.launcher import Launcher
methods.REGISTRY = {{"toy": toy("toy", pathlib.Path({book!r}))}}
launches.COMMAND = [sys.executable, {program!r}]
Launcher({root!r})"""


@pytest.mark.exhaustive
def test_a_restarted_kernel_finds_the_run_and_stops_it(lab, tmp_path):
    """The runs lie outside of what the server shows here, so the page's path is told."""
    book = write_notebook(tmp_path / "toy.ipynb", OPEN, WAITS)
    program, root = tmp_path / "program.py", tmp_path / "runs"
    made = root / "toy" / "smoke-1" / "page.html"
    parameters = {"seeds": [0], "model": "", "dataset": ""}
    write_json(made.parent / "manifest.json", {"scale": "smoke", "status": "done", "parameters": parameters})
    write_json(made.parent / "claims.json", claim_records()[:1])
    made.write_text("a page")
    program.write_text(f"""import pathlib, sys
sys.path.insert(0, {str(TESTS)!r})
from toy_notebooks import toy
from workbench import cli, methods
methods.REGISTRY = {{"toy": toy("toy", pathlib.Path({str(book)!r}))}}
sys.exit(cli.main())""")
    cell = TOY.format(tests=str(TESTS), book=str(book), program=str(program), root=str(root))
    page = lab.open(lab.write("toy.ipynb", cell), dark=True)
    lab.run_all(page)
    says = "document.querySelector('.wb-launcher .going')?.textContent.includes({!r})"
    page.locator(".wb-launcher .go").press("Enter")
    page.wait_for_function(says.format("1 of 2 parts, half of it"), timeout=60_000)
    page.get_by_role("menuitem", name="Kernel", exact=True).click()
    page.get_by_role("menuitem", name="Restart Kernel and Clear Outputs of All Cells…").click()
    page.get_by_role("button", name="Confirm").click()
    page.wait_for_selector(".wb-launcher", state="detached")
    lab.run_all(page)
    page.wait_for_function(says.format("1 of 2 parts, half of it"))
    page.locator(".wb-launcher .halt").press("Enter")
    page.wait_for_function(says.format("stopped"), timeout=30_000)
    assert page.locator(".wb-launcher .go").inner_text() == "Run, go on"
    place = page.locator(".wb-launcher .path").inner_text()
    assert place == f"its page: {made}; a browser that cannot open files gets it from workbench serve-pages"
    assert page.locator(".wb-launcher .verdicts .yes").inner_text() == "✓\xa0shown in small"
