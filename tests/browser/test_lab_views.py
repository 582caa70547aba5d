"""Our inspectors in JupyterLab itself: opened, run, driven by keys and mouse, in both themes."""

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow]

RANKING = """import pandas as pd
from workbench.widgets.confidence_ranking import ConfidenceRanking
names = [f"q{i}" for i in range(40)]
answers = pd.DataFrame({"qid": names, "question": names, "answer": "so", "correct": [1, 0] * 20})
view = ConfidenceRanking(answers, {"bt": [float(-i) for i in range(40)]}, kept=10)
shown = view.widget()
shown"""


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
