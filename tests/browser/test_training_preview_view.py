"""The training preview in a page, with no kernel: warnings list their rows, tokens by mouse and keys, escapes."""

import pytest
from corners import CORNERS
from preview_rows import HIDDEN, HOSTILE, WORDS, clean, faulty, policy
from rendered import harmless, page_of

from workbench.widgets.training_preview import TrainingPreview, preview

pytestmark = [pytest.mark.browser, pytest.mark.slow]
VIEW = ".wb-preview"


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """200 pairs with every kind of fault among the first 20."""
    view = TrainingPreview.of_rows(policy(), faulty(200), max_length=400, held_out=[{"prompt": faulty()[20]["prompt"]}])
    return page_of(tmp_path_factory.mktemp("preview"), view)


@pytest.fixture
def opened(page_file, visit):
    with harmless(visit, page_file, VIEW, ".row") as opened:
        yield opened


def heading(page):
    return page.locator(f"{VIEW} .tokens-of-row h4").inner_text()


def listed(page):
    return page.locator(f"{VIEW} .row .head b").all_inner_texts()


def told(page):
    return page.locator(f"{VIEW} .token-info").inner_text()


def test_it_says_what_will_be_trained_on(opened):
    page = opened.page
    assert page.locator(f"{VIEW} .say").inner_text().startswith("200 pairs, ")
    assert page.locator(f"{VIEW} .charts svg").count() == 3
    assert "the chosen response is the longer one in" in page.locator(f"{VIEW} .length-rule").inner_text()
    assert page.locator(f"{VIEW} .warn").count() == 14
    assert page.locator(f"{VIEW} .row").count() < 40  # rows that cannot be seen do not exist


def test_a_warning_lists_its_rows_and_says_what_to_do(opened):
    page = opened.page
    conflict = page.locator(f"{VIEW} .warn", has_text="the same pair both ways")
    assert "2 rows: 3, 6" in conflict.inner_text()
    conflict.click()
    assert conflict.get_attribute("aria-pressed") == "true"
    assert listed(page) == ["row 3", "row 6"]
    assert heading(page) == "row 3"
    assert "Way out:" in page.locator(f"{VIEW} .why:not([hidden])").inner_text()
    conflict.click()
    assert page.locator(f"{VIEW} .total").inner_text().startswith("200 of 200 rows listed")
    page.get_by_label("rows to list").select_option("rows without")
    assert page.locator(f"{VIEW} .total").inner_text().startswith("186 of 200 rows listed")
    assert heading(page) == "row 0"


def test_border_scored_tokens_end_and_first_difference(opened):
    page = opened.page
    page.get_by_label("rows to list").select_option("identical responses")
    prompt, chosen, rejected = (page.locator(f"{VIEW} .tokens").nth(k) for k in range(3))
    assert prompt.locator(".scored").count() == 0
    assert prompt.locator(".special").all_inner_texts() == ["<s>", "<|user|>", "<|assistant|>"]
    assert chosen.locator(".tok:not(.scored)").count() == 0
    assert chosen.locator(".end").all_inner_texts() == ["</s>"]
    assert rejected.locator(".tok:not(.same)").count() == rejected.locator(".first").count() == 0  # nothing differs
    page.get_by_label("rows to list").select_option("near-identical responses")
    ids = [page.locator(f"{VIEW} .tokens").nth(k).locator(".first") for k in (1, 2)]
    assert [one.get_attribute("data-k") for one in ids] == [ids[0].get_attribute("data-k")] * 2
    assert page.locator(f"{VIEW} .tokens").nth(2).locator(".same").count() == int(ids[0].get_attribute("data-k"))


def test_cuts_are_said_and_seen(opened):
    page = opened.page
    page.get_by_label("rows to list").select_option("response cut: no end token")
    part = page.locator(f"{VIEW} .part").nth(1)
    assert "no end token" in part.inner_text()
    assert "cut, the end token among them" in part.inner_text()
    assert part.locator(".end").count() == 0
    page.get_by_label("rows to list").select_option("prompt cut on the left")
    assert "tokens cut on the left" in page.locator(f"{VIEW} .part").first.inner_text()


def test_keys_walk_rows_warnings_and_tokens(opened):
    page = opened.page
    page.locator(f"{VIEW} .list").focus()
    page.keyboard.press("Home")
    first = heading(page)
    page.keyboard.press("ArrowDown")
    assert heading(page) != first
    page.get_by_label("order of the rows").select_option("as they are trained on")
    page.locator(f"{VIEW} .list").focus()
    page.keyboard.press("Home")
    assert heading(page) == "row 0"
    page.keyboard.press("n")
    assert heading(page) == "row 1"
    page.keyboard.press("End")
    page.keyboard.press("p")
    assert heading(page) == "row 20"
    page.keyboard.press("n")
    assert told(page) == "There is no next row with a warning in this list."
    page.keyboard.press("/")
    page.keyboard.type("fish dog")
    assert page.evaluate("document.activeElement.type") == "search"
    assert page.locator(f"{VIEW} .total").inner_text().split(" of ")[0] not in ("0", "200")
    prompt = page.locator(f"{VIEW} .tokens").first
    prompt.focus()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    n = prompt.locator(".tok").count()
    assert told(page) == f"token 2 of {n} · id 2 · “<|user|>” · prompt, not scored, special token · position 1"
    assert prompt.get_attribute("aria-activedescendant") == prompt.locator(".active").get_attribute("id")


def test_search_reads_the_tokens(opened):
    page = opened.page
    page.get_by_label("search the text of the tokens").fill("EVIL")
    assert listed(page) == ["row 9"]
    page.locator(f"{VIEW} .row").first.click()
    assert heading(page) == "row 9"


def test_hostile_and_hidden_text_is_shown_as_what_it_is(opened):
    page = opened.page
    page.get_by_label("rows to list").select_option("prompt spells a special token")
    chosen = page.locator(f"{VIEW} .tokens").nth(1)
    assert "".join(chosen.locator(".tok").all_inner_texts()) == HOSTILE.replace(" ", "·") + "</s>"
    assert page.locator(f"{VIEW} .tokens").first.locator(".special").count() == 4  # the one that the text spelled too
    page.get_by_label("rows to list").select_option("hidden characters")
    rejected = page.locator(f"{VIEW} .tokens").nth(2)
    texts = rejected.locator(".tok").all_inner_texts()
    assert "⟨E2⟩" in texts
    rejected.locator(".tok", has_text="⟨8B⟩").first.hover()
    assert "a part of “U+200B”" in told(page)
    rejected.locator(".tok", has_text="⟨82⟩").first.hover()
    assert "a part of “€”" in told(page)
    assert rejected.locator("br").count() == HIDDEN.count("\n")


@pytest.mark.parametrize(("dark", "width"), CORNERS)
def test_screen_readers_and_small_screens(page_file, visit, barriers, dark, width):
    page = visit(page_file, dark=dark, width=width).page
    page.wait_for_selector(f"{VIEW} .row")
    page.get_by_label("rows to list").select_option("hidden characters")
    page.locator(f"{VIEW} .tokens").nth(2).press("ArrowRight")
    assert barriers(page, VIEW) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        """() => [...document.querySelectorAll('.wb-preview :is(button, select, input, .tokens, figure, p)')]
        .filter(x => x.offsetParent && x.getBoundingClientRect().right > innerWidth + 1)
        .map(x => x.outerHTML.slice(0, 90))"""
    )
    assert outside == []


def test_a_very_long_row_and_rows_that_were_left_out(tmp_path, visit, monkeypatch):
    rows = clean(40)
    start = " ".join(WORDS * 370)
    rows[3]["chosen"], rows[3]["rejected"] = f"{start} fish", f"{start} dog"
    monkeypatch.setattr(preview, "CARRIED", 115_000)
    page = visit(page_of(tmp_path, TrainingPreview.of_rows(policy(20_000), rows))).page
    page.wait_for_selector(f"{VIEW} .row")
    chosen = page.locator(f"{VIEW} .tokens").nth(1)
    assert heading(page) == "row 3"
    assert chosen.locator(".tok").count() < 500
    assert chosen.locator(".tok.first").count() == 1  # the first difference is drawn, however far it stands
    assert "tokens ⋯" in chosen.locator(".gap").first.inner_text()
    page.locator(f"{VIEW} .part").nth(1).get_by_role("button", name="first difference").click()
    assert "first difference" in told(page)
    took = page.evaluate("""() => { const t = performance.now();
        [...document.querySelectorAll('.wb-preview .more')].find(x => x.textContent.startsWith('show all')).click();
        document.body.getBoundingClientRect(); return performance.now() - t; }""")
    assert page.locator(f"{VIEW} .tokens").nth(1).locator(".tok").count() > 7_000
    assert took < 2_000
    assert "Tokens of" in page.locator(f"{VIEW} .total").inner_text()
    page.locator(f"{VIEW} .list").press("End")
    assert "were left out of the page: preview.tokens(39)" in page.locator(f"{VIEW} .tokens-of-row").inner_text()


def test_clean_rows_say_so(tmp_path, visit):
    page = visit(page_of(tmp_path, TrainingPreview.of_rows(policy(), clean(5)))).page
    page.wait_for_selector(f"{VIEW} .row")
    assert page.locator(f"{VIEW} .fine").inner_text() == "✓ No rule found anything in these rows."
