"""The ranking inspector in a rendered page, with no kernel: drag, click, keys, export, hostile text."""

import csv
import io

import numpy as np
import pandas as pd
import pytest
from rendered import HOSTILE, harmless, page_of

from workbench.widgets.confidence_ranking import ConfidenceRanking

pytestmark = [pytest.mark.browser, pytest.mark.slow]

N = 5_000


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """5,000 answers: the k-th most trusted is right with a chance that falls, every sixth one a tie with the next."""
    rng, place = np.random.default_rng(0), np.arange(N)
    score = 10.0 - (place - (place % 6 == 5)) / 500
    right = (rng.random(N) < 1 - 0.8 * place / N).astype(float)
    texts = {"question": [f"question number {i}" for i in place], "answer": [f"answer {i}" for i in place]}
    answers = pd.DataFrame({"qid": [f"q{i}" for i in place], **texts, "correct": right})
    answers.loc[0, ["question", "answer"]] = [HOSTILE, "=1+2"]
    left = rng.integers(0, N, 20_000)
    matchups = pd.DataFrame(
        {"left": left, "right": (left + rng.integers(1, N, 20_000)) % N, "outcome": 1.0, "raw_text": HOSTILE}
    )
    for side in ("left", "right"):
        matchups[side] = [f"q{i}" for i in matchups[side]]
    given = {"intervals": {"bt": (score - 1, score + 1)}, "matchups": matchups, "labels": {"bt": HOSTILE}}
    given |= {"kept": 1000}
    view = ConfidenceRanking(answers, {"bt": score, "coarse": np.round(score / 5)}, **given)
    return page_of(tmp_path_factory.mktemp("ranking"), view), right


@pytest.fixture
def opened(page_file, visit):
    with harmless(visit, page_file[0], ".wb-ranking", ".row") as opened:
        yield opened


def said(page):
    return page.locator(".wb-ranking .say").inner_text()


def test_it_says_what_passes_and_dragging_changes_it(opened, page_file):
    page, right = opened.page, page_file[1]
    assert said(page).startswith("1,000 of 5,000 answers pass (20.0 %")
    assert f"{100 * right[:1000].mean():.1f} % of them right; of all answers {100 * right.mean():.1f} %" in said(page)
    box = page.locator(".wb-ranking svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (44 + 80) / 460, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * (44 + 200) / 460, box["y"] + 40, steps=8)
    page.mouse.up()
    kept = int(page.locator(".wb-ranking input[type=range]").input_value())
    assert abs(kept - 2500) < 30
    assert f"{100 * right[:kept].mean():.1f} % of them right" in said(page)


def test_ties_pass_together_and_the_slider_moves_by_keys(opened):
    page = opened.page
    slider = page.locator(".wb-ranking input[type=range]")
    slider.focus()
    seen = []
    for key in ("ArrowLeft",) * 8 + ("ArrowRight",) * 8:
        page.keyboard.press(key)
        seen.append(int(slider.input_value()))
    assert seen[0] < 1000 < seen[-1] + 2
    assert all(value % 6 != 5 for value in seen)  # place 5 of each six is tied with the one before it
    assert len(set(seen[:8])) == 8


def test_a_click_opens_the_question_its_answer_and_its_matches(opened):
    page = opened.page
    page.locator(".wb-ranking .row").nth(2).click()
    detail = page.locator(".wb-ranking .detail")
    assert "Place 3 of 5000" in detail.inner_text()
    assert "Answer: answer 2" in detail.inner_text()
    other = detail.locator("tbody tr").first
    name = other.locator("button").inner_text()
    assert HOSTILE in other.inner_text()  # the judge's reply, as text
    other.locator("button").click()
    assert name in detail.locator(".text").first.inner_text()


def test_keys_search_and_filters(opened, page_file):
    page, right = opened.page, page_file[1]
    page.locator(".wb-ranking .list").focus()
    page.keyboard.press("End")
    assert "Place 5000 of 5000" in page.locator(".wb-ranking .detail h4").inner_text()
    assert page.locator(".wb-ranking .row[aria-selected=true]").count() == 1  # it was scrolled to
    page.keyboard.press("Home")
    page.keyboard.press("ArrowDown")
    assert "Place 2 of 5000" in page.locator(".wb-ranking .detail h4").inner_text()
    page.get_by_label("answers to list").select_option("wrong")
    assert page.locator(".wb-ranking").inner_text().count(f"{int((right == 0).sum()):,} of 5,000 answers listed") == 1
    page.get_by_label("answers to list").select_option("all answers")
    page.get_by_label("search question or answer").fill("NUMBER 4321")
    assert page.locator(".wb-ranking .row").count() == 1
    assert page.locator(".wb-ranking .row").count() < 60  # rows that cannot be seen do not exist


def test_another_score_orders_anew(opened):
    page = opened.page
    page.get_by_label("score that orders the answers").select_option(label="coarse")
    kept = int(page.locator(".wb-ranking input[type=range]").input_value())
    assert kept > 1000  # the whole group of ties came in
    assert f"{kept:,} of 5,000 answers pass" in said(page)


def test_export_is_what_passes_and_runs_in_no_spreadsheet(opened):
    page = opened.page
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, kept").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(io.StringIO(file.read())))
    assert len(rows) == 1000
    assert rows[0]["question"] == HOSTILE
    assert rows[0]["answer"] == "'=1+2"
    assert [row["qid"] for row in rows[:3]] == ["q0", "q1", "q2"]
    assert float(rows[0]["score"]) == 10.0
    assert float(rows[0]["upper"]) == 11.0


def test_it_is_read_by_screen_readers(opened):
    page = opened.page
    assert page.locator(".wb-ranking [role=listbox]").get_attribute("aria-label") == "answers, most trusted first"
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll('.wb-ranking :is(button, select, input, canvas, svg)')]
        .filter(x => !(x.getAttribute('aria-label') || x.closest('label') || x.textContent.trim()))
        .map(x => x.outerHTML)"""
    )
    assert unnamed == []
