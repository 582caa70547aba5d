"""The scoreboard in a real browser: filters by mouse, keys and address, old verdicts, themes, small screens."""

import pytest
from corners import CORNERS
from finished_runs import finished
from toy_notebooks import claim_records

from workbench.share import pages

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    for day, verdict in enumerate(("not shown", "shown in small", "shown in small"), start=1):
        records = [record | {"verdict": verdict} for record in claim_records("a preference is learned")[:1]]
        run = finished(root, "spin", name=f"n{day}", day=day, records=records + claim_records()[1:])
        (run.folder / "page.html").write_text(f"<title>page of {day}</title>")
    finished(root, "dpo", "smoke", records=claim_records("margins grow", scale="smoke"))
    finished(root, "relative_confidence", dataset="hub/quiz", records=claim_records("confidence ranks answers"))
    broken = finished(root, "pro", name="broken")
    broken.update_manifest(status="failed", reason="cell 4: ValueError: no pairs")
    (broken.folder / "failed.html").write_text("<title>what failed</title>")
    return pages.index(root)


@pytest.fixture
def opened(index, visit):
    opened = visit(index)
    yield opened
    assert opened.complaints == []


def shown(page) -> list[str]:
    rows = page.locator("table.claims tbody tr:visible")
    return [f"{row.get_attribute('data-system')} {row.locator('td').nth(1).inner_text()}" for row in rows.all()]


def test_every_filter_narrows_and_the_count_follows(opened):
    page, count = opened.page, opened.page.locator("#count")
    assert count.inner_text() == "9 of 9 claims"
    page.get_by_label("scale", exact=True).select_option("tiny")
    assert count.inner_text() == "6 of 9 claims"
    assert page.get_by_role("heading", name="Scale: smoke").is_hidden()
    page.get_by_label("verdict", exact=True).select_option("shown in small")
    assert shown(page) == ["spin C1", "relative_confidence C1"]
    assert page.locator("section.scale:visible .tally").inner_text() == "2 shown in small"
    page.get_by_label("input", exact=True).select_option("hub/quiz")
    assert shown(page) == ["relative_confidence C1"]
    page.get_by_role("button", name="clear").click()
    assert count.inner_text() == "9 of 9 claims"
    page.get_by_label("system", exact=True).select_option("align/")
    assert {row.split()[0] for row in shown(page)} == {"spin", "dpo"}
    page.get_by_label("system", exact=True).select_option("dpo")
    assert shown(page) == ["dpo C1", "dpo C2", "dpo C3"]
    # tables of runs follow all filters but the verdict
    assert page.locator("table.runs tbody tr:visible").count() == 1


def test_search_takes_words_in_any_order_and_says_when_nothing_fits(opened):
    page = opened.page
    page.get_by_label("search", exact=True).fill("LEARNED preference")
    assert shown(page) == ["spin C1"]
    page.get_by_label("search", exact=True).fill("was not shown")  # stands in the history, which is not searched
    assert page.locator("#count").inner_text() == "0 of 9 claims"
    assert page.get_by_text("Nothing fits these filters.").is_visible()
    page.get_by_label("search", exact=True).fill("")
    assert page.get_by_text("Nothing fits these filters.").is_hidden()


def test_a_filtered_view_can_be_linked(opened, index, visit):
    page = opened.page
    page.get_by_label("verdict", exact=True).select_option("shown in small")
    page.get_by_label("search", exact=True).fill("answers & more")
    page.get_by_label("search", exact=True).fill("confidence")
    address = page.evaluate("location.href")
    assert address.endswith("#q=confidence&verdict=shown+in+small")
    other = visit(index).page
    other.goto(address)
    other.reload()
    assert shown(other) == ["relative_confidence C1"]
    assert other.get_by_label("verdict", exact=True).input_value() == "shown in small"
    other.evaluate("location.hash = '#system=spin&scale=gone'")  # a link from when there was more to choose from
    other.wait_for_function("() => document.getElementById('count').textContent === '3 of 9 claims'")
    other.evaluate("location.hash = ''")
    other.wait_for_function("() => document.getElementById('count').textContent === '9 of 9 claims'")


def test_keys_reach_the_search_and_clear_it(opened):
    page = opened.page
    page.keyboard.press("/")
    page.keyboard.type("margins/")
    assert page.get_by_label("search", exact=True).input_value() == "margins/"
    assert page.locator("#count").inner_text() == "0 of 9 claims"
    page.keyboard.press("Backspace")
    assert page.locator("#count").inner_text() == "3 of 9 claims" or shown(page) == ["dpo C1"]
    page.keyboard.press("Escape")
    assert page.get_by_label("search", exact=True).input_value() == ""
    assert page.locator("#count").inner_text() == "9 of 9 claims"
    assert page.evaluate("location.hash") in ("", "#")


def test_history_shows_changes_and_leads_to_the_runs(opened):
    page = opened.page
    marks = page.locator("tr[data-system=spin] ol.marks").first.locator(".mark")
    assert marks.count() == 3
    assert marks.nth(1).get_attribute("title") == "2026-01-02 10:02: +1.1 nat, shown in small, was not shown"
    shadows = [marks.nth(i).evaluate("node => getComputedStyle(node).boxShadow") for i in range(3)]
    assert [shadow != "none" for shadow in shadows] == [False, True, False]
    fills = [marks.nth(i).evaluate("node => getComputedStyle(node, '::before').backgroundColor") for i in (0, 1)]
    assert fills[0] != fills[1]  # hollow and full
    box = marks.first.bounding_box()
    assert min(box["width"], box["height"]) >= 20
    marks.first.click()
    page.wait_for_load_state()
    assert page.title() == "page of 1"


def test_a_failed_run_says_why_and_leads_to_what_it_left(opened):
    page = opened.page
    assert page.get_by_text("cell 4: ValueError: no pairs").is_visible()
    page.get_by_role("link", name="PRO: preference ranking optimisation").click()
    page.wait_for_load_state()
    assert page.title() == "what failed"


@pytest.mark.parametrize(("dark", "width"), CORNERS)
def test_everyone_can_read_it(index, visit, barriers, dark, width):
    page = visit(index, dark=dark, width=width).page
    page.set_viewport_size({"width": width, "height": 844})
    assert page.evaluate("document.documentElement.dataset.theme") == ("dark" if dark else "light")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert barriers(page) == []
    for name in ("search", "system", "verdict"):
        box = page.get_by_label(name, exact=True).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
        assert box["height"] >= 30


def test_a_wide_table_is_pushed_along_in_its_own_box_by_keys(index, visit):
    page = visit(index, width=390).page
    box = page.get_by_role("region", name="Where these numbers come from")
    assert box.evaluate("node => node.scrollWidth > node.clientWidth")
    box.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.activeElement.scrollLeft > 0")
    assert page.evaluate("scrollX") == 0


def test_a_claim_is_a_card_on_a_telephone_and_still_a_row_to_a_screen_reader(index, visit):
    page = visit(index, width=390).page
    row = page.locator("table.claims tbody tr").first
    for place in (1, 3, 5, 7):
        box = row.locator("td").nth(place - 1).bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    assert page.get_by_role("table").first.get_by_role("row").nth(1).get_by_role("cell").count() == 8


def test_hundreds_of_rows_are_filtered_at_once(tmp_path, visit):
    records = [claim_records()[0] | {"id": f"C{i}", "statement": f"statement number-{i}"} for i in range(10)]
    for number in range(100):
        finished(tmp_path, "spin", name=str(number), dataset=f"hub/{number}", records=records)
    page = visit(pages.index(tmp_path)).page
    took = page.evaluate(
        """() => { const q = document.getElementById("q"); q.value = "number-7 statement";
            const start = performance.now();
        q.dispatchEvent(new Event("input")); document.body.offsetHeight; return performance.now() - start; }"""
    )
    assert page.locator("#count").inner_text() == "100 of 1000 claims"
    assert took < 1500
