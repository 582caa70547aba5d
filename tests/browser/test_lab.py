"""In JupyterLab itself: the first notebook, where a system is picked, run and its page opened, and our inspectors."""

import json
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
    # of this run, though what was published decides more
    assert page.locator(".wb-launcher .verdicts tbody tr").count() == 5
    assert page.get_by_label("verdicts of").input_value().startswith("run here, smoke, 2 seeds")
    assert page.locator(".wb-launcher .verdicts .open").first.inner_text() == "?\xa0smoke run, no verdict"
    assert barriers(page, ".wb-launcher") == []
    with page.context.expect_page() as opening:
        page.get_by_role("link", name="open its page").press("Enter")
    opened = opening.value
    opened.wait_for_selector(".figure svg")  # drawn by a script, though the server shuts files up in a sandbox
    assert opened.locator("h1").first.inner_text().startswith("PACE-LM: how far may an engineer trust")
    # that sandbox opens no other file: no link leads to a 403
    assert opened.locator("a.home").get_attribute("href") is None
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


# --------------------------------------------------------------- inspectors by keys and mouse, in both themes
RANKING = """import pandas as pd
from workbench.widgets.confidence_ranking import ConfidenceRanking
names = [f"q{i}" for i in range(40)]
answers = pd.DataFrame({"qid": names, "question": names, "answer": "so", "correct": [1, 0] * 20})
view = ConfidenceRanking(answers, {"bt": [float(-i) for i in range(40)]}, kept=10)
shown = view.widget()
shown"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_slider_moved_in_the_browser_is_seen_by_python(lab, barriers, dark):
    page = lab.open(lab.write(f"ranking-{dark}.ipynb", RANKING), dark=dark)
    lab.run_all(page)
    slider = page.locator(".wb-ranking input[type=range]")
    slider.wait_for()
    for _ in range(5):
        slider.press("ArrowRight")
    assert page.locator(".wb-ranking .say").inner_text().startswith("15 of 40 answers pass")
    assert barriers(page, ".wb-ranking") == []


PREVIEW = """import ipywidgets
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.widgets.training_preview import preview
words = "the quick brown fox jumps over a lazy dog near warm fires".split()
tokenizer = bpe_tokenizer([" ".join(words) * 9], vocab_size=330)
policy = Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=200, seed=0), tokenizer)
rows = [
    {"prompt": f"say {i} and {words[i % 11]}?", "chosen": words[i % 7], "rejected": words[i % 5] + " no"}
    for i in range(60)
]
rows[5]["rejected"] = rows[5]["chosen"]
preview.CARRIED = 2_000
shown = preview.TrainingPreview.of_rows(policy, rows).widget()
seen, jump = ipywidgets.HTML("nothing yet"), ipywidgets.Button(description="jump")
shown.observe(lambda change: setattr(seen, "value", f"python saw row {change.new}"), "chosen")
jump.on_click(lambda _: setattr(shown, "warning", "identical"))
ipywidgets.VBox([shown, seen, jump])"""


@pytest.mark.parametrize(
    "dark", [pytest.param(False, id="light", marks=pytest.mark.exhaustive), pytest.param(True, id="dark")]
)
def test_training_preview_fetches_tokens_and_follows_python(lab, barriers, dark):
    page = lab.open(lab.write(f"preview-{dark}.ipynb", PREVIEW), dark=dark)
    lab.run_all(page)
    rows = page.locator(".wb-preview .list")
    rows.wait_for()
    page.get_by_label("order of the rows").select_option("as they are trained on")
    rows.press("End")  # a row whose tokens did not come along: Python is asked for them
    page.wait_for_function("document.querySelectorAll('.wb-preview .tokens').length === 3")
    page.get_by_text("python saw row 59").wait_for()
    assert page.locator(".wb-preview .tokens .end").count() == 2
    page.get_by_role("button", name="jump").click()
    page.wait_for_function("document.querySelector('.wb-preview h4').textContent === 'row 5'")
    page.get_by_text("python saw row 5", exact=True).wait_for()
    page.locator(".wb-preview .tokens").first.press("ArrowRight")
    assert page.locator(".wb-preview .token-info").inner_text().startswith("token 1 of ")
    assert barriers(page, ".wb-preview") == []


BROWSER = """from workbench.widgets.preference_browser import PreferenceBrowser
rows = [{"prompt": f"question {i}", "chosen": f"answer {i} " + 90 * "long ", "rejected": f"no {i} " + 90 * "tall ",
         "margin": i % 7 - 3.0} for i in range(100_000)]
browser = PreferenceBrowser(rows, name="many", page_limit=100_000)
browser"""


def test_a_hundred_thousand_pairs_are_browsed_and_labelled_for_python(lab, barriers):
    """The browser asks Python for what is in sight; labels reach Python, and what Python filters is in the view."""
    saved = (
        "import json; open('seen.json', 'w').write(json.dumps([browser.relabels, browser.view['text'],"
        " len(browser.order)]))"
    )
    page = lab.open(lab.write("browser.ipynb", BROWSER, "_ = browser.filter(text='')", saved))
    lab.run_all(page)
    page.wait_for_selector(".wb-browser .row")
    listing, opened = page.locator(".wb-browser .list"), page.locator(".wb-browser .opened h4")
    listing.press("End")
    opened.get_by_text("Row 99,999").wait_for()
    page.locator(".wb-browser .row[aria-selected=true]").get_by_text("question 99999").wait_for()  # its window came
    listing.press("/")
    page.keyboard.type("question 4242")
    page.get_by_text("11 of 100,000 rows").wait_for()  # 4242 and 42420 to 42429
    assert page.locator(".wb-browser input[type=search]").input_value() == "question 4242"
    page.keyboard.press("Escape")
    listing.press("Home")
    opened.get_by_text("Row 4,242").wait_for()
    listing.press("2")
    opened.get_by_text("relabelled: rejected").wait_for()
    page.locator(".wb-browser .row[aria-selected=true]").get_by_text("✎ 2").wait_for()
    listing.press("j")
    opened.get_by_text("Row 42,420").wait_for()
    listing.press("x")
    opened.get_by_text("left out").wait_for()
    assert barriers(page, ".wb-browser") == []
    page.get_by_role("button", name="Export JSONL").click()
    page.locator(".wb-browser .say").get_by_text("99999 rows are in").wait_for()
    assert (lab.folder / "many-relabelled.jsonl").read_bytes().count(b"\n") == 99_999
    cells = page.locator(".jp-Notebook .jp-CodeCell")
    (lab.folder / "seen.json").unlink()
    cells.nth(2).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    seen = lab.folder / "seen.json"
    for _ in range(100):
        if seen.is_file() and seen.stat().st_size:
            break
        page.wait_for_timeout(100)
    assert json.loads(seen.read_text()) == [{"4242": "right", "42420": "out"}, "question 4242", 11]
    cells.nth(1).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    page.get_by_text("100,000 of 100,000 rows").first.wait_for()  # the first view followed Python
    cells.nth(0).locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")  # the cell again: the labels are still there
    page.get_by_text("2 labelled").first.wait_for()


WATCHED = [
    """import subprocess, sys, time
import ipywidgets
from workbench.runs import Run
from workbench.widgets.training_monitor import TrainingMonitor
run = Run(__import__("pathlib").Path("watched").resolve())
run.update_manifest(status="running")
monitor = TrainingMonitor(run)
shown, seen, jump = monitor.widget(), ipywidgets.HTML("nothing yet"), ipywidgets.Button(description="jump")
shown.observe(lambda change: setattr(seen, "value", f"python saw step {change.new}"), "step")
jump.on_click(lambda _: setattr(shown, "step", 3))
monitor.follow(0.2)
ipywidgets.VBox([shown, seen, jump])""",
    """for k in range(30):
    run.child("seed-0/dpo/round-1").log({"step": k, "loss": 1 / (k + 1)})
    time.sleep(0.1)""",
    """code = "import sys, time; from pathlib import Path\\nfrom workbench.runs import Run\\n"
code += "run = Run(Path(sys.argv[1]))\\n"
code += "for k in range(20): run.child('seed-1/dpo/round-1').log({'step': k, 'loss': 2.0}); time.sleep(0.1)\\n"
code += "run.update_manifest(status='done')"
started = subprocess.Popen([sys.executable, "-c", code, str(run.folder)])""",
]


@pytest.mark.exhaustive
def test_the_monitor_grows_while_a_cell_and_another_process_train(lab, barriers):
    page = lab.open(lab.write("monitor.ipynb", *WATCHED), dark=True)
    page.evaluate("""() => {
        window.told = new Set();
        new MutationObserver(() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')];
            const busy = prompts.some(x => x.textContent.includes('*'));
            const where = document.querySelector('.wb-monitor .where');
            if (busy && where) window.told.add(where.textContent);
        }).observe(document.body, {childList: true, subtree: true});
    }""")
    lab.run_all(page)
    assert page.evaluate("window.told.size") >= 4  # the last step, as it grew under the cell
    page.wait_for_function("document.querySelector('.wb-monitor .legend')?.textContent.includes('mean of 2 seeds')")
    page.locator(".wb-monitor .state .live").wait_for(state="detached")  # the other process said that the run is done
    cursor = page.locator(".wb-monitor input.cursor")
    cursor.focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.get_by_text("python saw step 2", exact=True).wait_for()
    page.get_by_role("button", name="jump").click()
    page.wait_for_function("document.querySelector('.wb-monitor .where').textContent === 'step 3'")
    assert page.locator(".wb-monitor .value").first.inner_text() == "1.13 (0.25 to 2)"
    assert barriers(page, ".wb-monitor") == []
