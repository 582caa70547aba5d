"""Our inspectors in JupyterLab itself: opened, run, driven by keys and mouse, in both themes."""

import json

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RANKING = """import pandas as pd
from workbench.widgets.confidence_ranking import ConfidenceRanking
names = [f"q{i}" for i in range(40)]
answers = pd.DataFrame({"qid": names, "question": names, "answer": "so", "correct": [1, 0] * 20})
view = ConfidenceRanking(answers, {"bt": [float(-i) for i in range(40)]}, kept=10)
shown = view.widget()
shown"""


@pytest.mark.parametrize(
    "dark", [pytest.param(False, id="light", marks=pytest.mark.exhaustive), pytest.param(True, id="dark")]
)
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
    """The browser asks Python for what is in sight; what a reader labels is in Python, and what Python filters is in
    the view."""
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
