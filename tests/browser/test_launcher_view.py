"""The launcher in a rendered page, with no kernel: search, keys, formulas, verdicts, themes, hostile text."""

import pytest
from corners import CORNERS
from rendered import HOSTILE, page_of
from toy_notebooks import OPEN, claim_records, toy, write_notebook

from workbench import methods
from workbench.batch import launcher as module
from workbench.batch.launcher import Launcher
from workbench.runs.files import write_json
from workbench.runs.run import Run

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """The real registry with what is published; nothing was run here."""
    folder = tmp_path_factory.mktemp("launcher")
    return page_of(folder, Launcher(folder / "runs"))


@pytest.fixture
def page(page_file, visit):
    opened = visit(page_file)
    opened.page.wait_for_selector(".wb-launcher .system")
    yield opened.page
    assert opened.requests == [page_file.as_uri()]
    assert opened.complaints == []


def test_every_system_is_listed_by_group_with_its_verdicts(page):
    assert page.locator(".wb-launcher .system").count() == len(methods.REGISTRY)
    assert page.locator(".wb-launcher .group").all_inner_texts() == ["align", "reward", "confidence", "study"]
    first = page.locator(".wb-launcher .system").first
    assert first.inner_text().startswith("SPIN: self-play fine-tuning\nspin · arXiv 2401.01335 · 8 min")
    assert first.locator(".sums .yes").inner_text().startswith("✓")
    assert "shown in small" in first.locator(".unseen").text_content()


def test_search_looks_at_name_title_paper_and_question(page):
    search = page.locator(".wb-launcher input[type=search]")
    asked = {"2405.00675": ["sppo"], "nash": ["dno"], "circle judge": ["sppo"], "video": ["pami_vdpo"]}
    for words, found in asked.items():
        search.fill(words)
        assert [
            text.split("\n")[1].split(" · ")[0] for text in page.locator(".wb-launcher .system").all_inner_texts()
        ] == found
    search.fill("nothing like it")
    assert page.locator(".wb-launcher .none").inner_text() == "Nothing fits. Escape clears the search."
    search.press("Escape")
    assert (
        page.locator(".wb-launcher .total").inner_text()
        == f"{len(methods.REGISTRY)} of {len(methods.REGISTRY)} systems and studies"
    )


def test_keys_alone_reach_everything(page):
    page.locator(".wb-launcher .list").focus()
    page.keyboard.press("ArrowDown")
    assert page.locator(".wb-launcher h4").inner_text() == "SPPO: self-play preference optimisation"
    page.keyboard.press("End")
    assert page.locator(".wb-launcher h4").inner_text() == "A leaderboard from raw judge annotations"
    active = page.locator(".wb-launcher .list").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"
    assert page.locator(f"#{active}").is_visible()
    page.keyboard.press("Home")
    page.keyboard.press("/")
    page.keyboard.type("reset")
    page.keyboard.press("Enter")
    assert page.locator(".wb-launcher h4").inner_text() == "DR-PO: dataset reset policy optimisation"
    page.keyboard.press("Enter")  # from the list to what can be chosen
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "scale"


def test_detail_shows_question_formula_and_verdicts(page):
    page.get_by_role("option", name="DPO: direct preference optimisation").click()
    assert (
        page.locator(".wb-launcher .question").inner_text()
        == "DPO: does training on pairs teach a preference that holds on new prompts?"
    )
    assert page.locator(".wb-launcher .method .display math[display=block] mi").count() > 5
    assert page.locator(".wb-launcher .method math").first.evaluate("node => node.getBoundingClientRect().width") > 5
    rows = page.locator(".wb-launcher .verdicts tbody tr")
    assert rows.count() == 3
    assert rows.first.locator("td").last.inner_text() == "✓\xa0shown in small"
    assert page.locator(".wb-launcher .opened").inner_text().count("published, tiny, 5 seeds") == 1


def test_without_a_kernel_the_command_stands_for_the_button(page):
    assert page.locator(".wb-launcher button").count() == 0
    page.get_by_label("scale").select_option("smoke")
    assert page.get_by_label("seeds").input_value() == "2"
    assert page.locator(".wb-launcher .command").inner_text() == "workbench reproduce spin --scale smoke"
    page.get_by_label("seeds").fill("7")
    assert page.locator(".wb-launcher .command").inner_text() == "workbench reproduce spin --scale smoke --seeds 7"


@pytest.mark.parametrize(("dark", "width"), CORNERS)
def test_it_can_be_used_by_everyone_and_fits(page_file, visit, barriers, dark, width):
    opened = visit(page_file, dark=dark, width=width)
    opened.page.wait_for_selector(".wb-launcher .system")
    assert barriers(opened.page, ".wb-launcher") == []
    for name in ("SimulPL", "Hallucinated references"):  # wide formulas, long words
        opened.page.get_by_role("option", name=name).click()
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        claims = opened.page.locator(".wb-launcher .verdicts")
        assert claims.evaluate("box => box.scrollWidth - box.clientWidth") <= 0  # read downwards, never sideways
    opened.page.wait_for_timeout(100)
    assert barriers(opened.page, ".wb-launcher") == []


def test_hostile_words_are_shown_and_never_run(tmp_path, monkeypatch, visit, barriers):
    path = write_notebook(
        tmp_path / "toy.ipynb", f"md:{HOSTILE} $$\\text{{{HOSTILE}}} = x$$", OPEN, title=f"Does {HOSTILE} work?"
    )
    evil = toy("toy", path, cost=HOSTILE)
    monkeypatch.setattr(methods, "REGISTRY", {"toy": evil, "lost": toy("lost", tmp_path / "lost.ipynb")})
    monkeypatch.setattr(module, "PUBLISHED", tmp_path / "none")
    run = Run(tmp_path / "runs" / "toy" / "tiny-1")
    parameters = {"seeds": [0], "model": HOSTILE, "dataset": ""}
    write_json(
        run.folder / "manifest.json",
        {"system": "toy", "scale": "tiny", "status": "done", "finished": HOSTILE, "parameters": parameters},
    )
    write_json(
        run.folder / "claims.json",
        [{**record, "paper": HOSTILE, "verdict": HOSTILE} for record in claim_records(HOSTILE)],
    )
    opened = visit(page_of(tmp_path, Launcher(tmp_path / "runs")))
    page = opened.page
    page.wait_for_selector(".wb-launcher .system")
    assert page.locator(".wb-launcher .question").inner_text() == f"Does {HOSTILE} work?"
    assert page.locator(".wb-launcher .method mtext").text_content().replace("\xa0", " ") == HOSTILE
    assert page.locator(".wb-launcher tbody td").nth(1).inner_text() == HOSTILE
    page.get_by_role("option", name="Toy lost").click()
    assert (
        page.locator(".wb-launcher .question")
        .inner_text()
        .endswith("cannot be read: start this from a checkout of the project")
    )
    assert (
        page.locator(".wb-launcher .verdicts").inner_text()
        == "None yet: nothing was run here, and nothing is published."
    )
    page.wait_for_timeout(100)
    assert page.locator(".wb-launcher img").count() == 0
    assert page.evaluate("window.pwned") is None
    assert opened.complaints == []
    assert barriers(page, ".wb-launcher") == []
