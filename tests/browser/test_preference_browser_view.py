"""The preference browser in a rendered page, with no kernel: mouse, keys, filters, labels, export, hostile text; and
that its script means the same by filters and labels as Python does."""

import json
import math

import numpy as np
import pytest
from corners import CORNERS
from rendered import HOSTILE, harmless, page_of

from workbench.widgets import scripted
from workbench.widgets.preference_browser import PreferenceBrowser, labels
from workbench.widgets.preference_browser import rows as preference_rows

pytestmark = [pytest.mark.browser, pytest.mark.slow]

N = 400


def rows(n=N):
    rng = np.random.default_rng(0)
    found = [
        {"prompt": f"question {i}", "chosen": f"the answer {i} is very good", "rejected": f"the answer {i} is bad"}
        | {"margin": round(float(rng.normal()), 3), "iteration": i % 3, "source_chosen": ["human", "model"][i % 2]}
        | {"task_id": f"t{i}"}
        for i in range(n)
    ]
    found[0] |= {"prompt": HOSTILE, "chosen": f"zero\u200bwidth \u202eturned {HOSTILE}", "rejected": "W" * 3000}
    found[0] |= {"note": HOSTILE, HOSTILE: "=1+2"}
    found[1]["rejected"] = found[1]["chosen"]
    found[2] |= {"rejected": "", "margin": math.nan}
    chat = [{"role": "system", "content": "be kind"}, {"role": HOSTILE, "content": "asked last"}]
    found[3] |= {"p_chosen": 0.5, "prompt": chat}
    found[4] = {"prompt": "rank these", "responses": ["low", "high", "middle"], "scores": [1.0, 9.0, 5.0]}
    found[4]["names"] = ["p", HOSTILE, "r"]
    found[5] = {"prompt": "rate this", "completion": "fine", "score": 7.5}
    found[7] = {**found[6]}
    return found


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    browser = PreferenceBrowser(rows(), name="demo", page_limit=120_000)
    pieces = (
        [["the", 1.25, ""], [" answer\n", -1.25, ""], ["", 0.25, "end"]],
        [["the ", 0.1, ""], ["rest", None, "cut"]],
    )
    browser._ratios = type("Ratios", (), {"known": {6: pieces}})()
    return page_of(tmp_path_factory.mktemp("browser"), browser), browser


@pytest.fixture
def opened(page_file, visit):
    with harmless(visit, page_file[0], ".wb-browser", ".row") as opened:
        yield opened


def press(page, *keys):
    for key in keys:
        page.locator(".wb-browser .list").press(key)


def heading(page):
    return page.locator(".wb-browser .opened h4").inner_text()


def test_it_shows_hostile_and_hidden_text_as_text(opened):
    page = opened.page
    assert heading(page) == "Row 0 · pair"
    text = page.locator(".wb-browser .opened").inner_text()
    assert HOSTILE in text
    assert "U+200B" in text
    assert "U+202E" in text
    page.locator(".wb-browser summary").click()
    assert "=1+2" in page.locator(".wb-browser .more").inner_text()
    assert page.locator(".wb-browser .row").count() < 60  # rows that cannot be seen do not exist


def test_words_that_differ_are_marked_by_more_than_colour(opened):
    page = opened.page
    press(page, *["ArrowDown"] * 6)
    assert heading(page) == "Row 6 · pair"
    page.get_by_label("what is marked").select_option("diff")
    assert page.locator(".wb-browser .side ins").all_inner_texts() == ["very good"]
    assert page.locator(".wb-browser .side del").all_inner_texts() == ["bad"]
    style = "x => getComputedStyle(x).textDecorationStyle"
    lines = [page.locator(f".wb-browser .side {tag}").evaluate(style) for tag in ("ins", "del")]
    assert lines == ["solid", "dashed"]
    press(page, "Home", "j")
    assert "same text: this row carries no signal" in page.locator(".wb-browser .legend").inner_text()
    press(page, "j")
    assert page.locator(".wb-browser .side").nth(1).inner_text().endswith("(empty)")
    press(page, "j")
    assert "asked last" in page.locator(".wb-browser .row[aria-selected=true]").inner_text()
    assert page.locator(".wb-browser .role").all_inner_texts() == ["system", HOSTILE]
    press(page, "j")
    heads = page.locator(".wb-browser .side .head b").all_inner_texts()
    assert heads == ["response 2", "response 3", "response 1"]
    press(page, "j")
    assert page.locator(".wb-browser .side").count() == 1
    assert page.get_by_role("button", name="tie").is_disabled()


def test_the_heat_map_is_read_by_keys_and_pointer(opened):
    page = opened.page
    press(page, *["j"] * 6)
    page.get_by_label("what is marked").select_option("ratio")
    tokens = page.locator(".wb-browser .tokens").first
    tokens.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    side = page.locator(".wb-browser .side").first
    assert 'token 2 of 3: " answer\\n", −1.2500 nats' in side.inner_text()
    assert "sum +0.250 nats" in side.inner_text()
    assert "·answer⏎" in tokens.inner_text()
    tokens.locator(".token").nth(2).hover()
    assert "end of the response, +0.2500 nats" in side.inner_text()
    assert "−1.250" in page.locator(".wb-browser .legend").inner_text()
    page.locator(".wb-browser .tokens").nth(1).locator(".token").nth(1).hover()
    assert "cut off, not scored" in page.locator(".wb-browser .side").nth(1).inner_text()
    press(page, "j")
    assert (
        "with_log_ratios(policy, reference) in Python computes them" in page.locator(".wb-browser .legend").inner_text()
    )


def test_filters_order_and_count(opened, page_file):
    page, browser = opened.page, page_file[1]
    carried = len(browser.data()["rows"])
    total = page.locator(".wb-browser .total")
    assert 100 < carried < N
    assert f"{carried} of {carried} rows" in total.inner_text()
    assert f"This page carries {carried} of {N} rows: JupyterLab or a script shows all." in total.inner_text()
    press(page, "/")
    page.keyboard.type("QUESTION 42")
    assert page.locator(".wb-browser .row").count() == 1
    page.keyboard.press("Escape")
    page.keyboard.press("Home")
    assert heading(page) == "Row 42 · pair"
    page.get_by_role("button", name="clear filters").click()
    assert page.locator(".wb-browser .row[aria-selected=true] .place").inner_text() == "42"  # it stays chosen
    page.get_by_label("smallest margin").fill("0.5")
    page.get_by_label("largest margin").fill("1.0")
    page.get_by_label("order by").select_option("margin")
    page.get_by_role("button", name="smallest first").click()
    amounts = [float(text.replace("−", "-")) for text in page.locator(".wb-browser .row .amount").all_inner_texts()]
    assert amounts == sorted(amounts, reverse=True)
    assert 0.5 <= min(amounts) <= max(amounts) <= 1.0
    page.get_by_role("button", name="clear filters").click()
    page.get_by_label("iteration").select_option("2")
    page.get_by_label("source", exact=True).select_option("human")
    shown = [int(text) for text in page.locator(".wb-browser .row .place").all_inner_texts()]
    assert all(i % 6 == 2 for i in shown)
    page.get_by_role("button", name="clear filters").click()
    states = {"identical": ["1"], "tie": ["3"], "duplicate": ["6", "7"], "margin unknown": ["5", "2"]}
    for state, shown in states.items():
        page.get_by_label("state").select_option(state)
        assert sorted(page.locator(".wb-browser .row .place").all_inner_texts()) == sorted(shown)
    page.get_by_label("search").fill("nothing like it")
    assert "No row passes these filters." in page.locator(".wb-browser .list").inner_text()


def test_keys_label_undo_and_export_agrees_with_python(opened, page_file):
    page, browser = opened.page, PreferenceBrowser(rows(), name="demo", page_limit=120_000)
    given = {0: "2", 1: "0", 2: "x", 3: "1", 4: "3", 6: "2"}
    for i in range(7):
        if i in given:
            press(page, given[i])
        press(page, "j")
    press(page, "k", "0", "u")  # the tie of row 6 is taken back, its first label stays
    assert "The last label of row 6 is taken back." in page.locator(".wb-browser .say").inner_text()
    assert "6 labelled" in page.locator(".wb-browser .total").inner_text()
    assert "✎ 2" in page.locator(".wb-browser .row[aria-selected=true]").inner_text()
    page.get_by_label("state").select_option("relabelled")
    assert page.locator(".wb-browser .row").count() == 6
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSONL").click()
    assert download.value.suggested_filename == "demo-relabelled.jsonl"
    lines = [json.loads(line) for line in download.value.path().read_text(encoding="utf-8").splitlines()]
    for row, value in given.items():
        browser.relabel(row, value)
    carried = len(page_file[1].data()["rows"])
    wanted = list(browser._exported(False, False))[: carried - 1]
    for row in [*lines, *wanted]:
        row.get("relabelled", {}).pop("when", None)
    assert lines == wanted
    page.get_by_label("only labelled rows").check()
    with page.expect_download() as download:
        page.get_by_role("button", name="Export JSONL").click()
    assert len(download.value.path().read_text(encoding="utf-8").splitlines()) == 5


def test_buttons_do_what_keys_do(opened):
    page = opened.page
    page.get_by_role("button", name="prefer rejected").click()
    assert page.get_by_role("button", name="prefer rejected").get_attribute("aria-pressed") == "true"
    assert "relabelled: rejected" in heading(page)
    page.get_by_role("button", name="undo").click()
    assert heading(page) == "Row 0 · pair"
    assert page.get_by_role("button", name="undo").is_disabled()
    page.get_by_role("button", name="keys").click()
    assert page.locator(".wb-browser .keys").is_visible()
    page.keyboard.press("?")
    assert not page.locator(".wb-browser .keys").is_visible()
    press(page, "9")
    assert "This row has 2 responses." in page.locator(".wb-browser .say").inner_text()
    press(page, "End")
    assert page.locator(".wb-browser .row[aria-selected=true]").count() == 1  # it was scrolled to


@pytest.mark.parametrize(("dark", "width"), CORNERS)
def test_it_is_read_by_everyone_and_stays_in_the_window(page_file, visit, barriers, dark, width):
    page = visit(page_file[0], dark=dark, width=width).page
    page.wait_for_selector(".wb-browser .row")
    for keys, mode in (
        (["1"], "diff"),
        (["j"] * 4 + ["3", "?"], "diff"),
        (["j", "j", "2"], "ratio"),
        (["Home", "j", "x"], "plain"),
    ):
        press(page, *keys)
        page.get_by_label("what is marked").select_option(mode)
        assert barriers(page, ".wb-browser") == []
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    out = page.evaluate("""() => { const box = document.querySelector('.wb-browser').getBoundingClientRect();
        return [...document.querySelectorAll('.wb-browser :is(button, select, input, .side, .list, .opened)')]
        .filter(x => x.offsetParent && !x.closest('.sides.of-ranking'))
        .filter(x => x.getBoundingClientRect().right > box.right + 1).map(x => x.outerHTML.slice(0, 90)) }""")
    assert out == []


# ------------------------------------------------------------------------------ the script and Python mean the same
@pytest.fixture(scope="module")
def script(chromium):
    """Calls `expression` with `given` where the parts of the script that hold meanings can be seen."""
    page = chromium.new_page()
    code = scripted.source("base", "js") + scripted.source("browser", "js")
    names = "localOrder, textsOf, promptText, relabelled, preferred, wordDiff, split"

    def call(expression, given):
        return page.evaluate(
            f"([code, given]) => {{ const {{{names}}} = new Function(code + '; return {{{names}}}')(); return"
            f" ({expression})(given); }}",
            [code, given],
        )

    yield call
    page.close()


def test_a_filter_means_the_same_in_both(script):
    rng = np.random.default_rng(1)
    texts = ["Straße", "İzmir", "日本語", "ΣΊΣΥΦΟΣ", "a  b", "naïve 😀", "", "x\ny"]
    given = []
    for i in range(300):
        row = {"prompt": texts[rng.integers(7)] + str(i % 11), "chosen": texts[rng.integers(8)]}
        row |= {"rejected": texts[rng.integers(8)]}
        row |= {"margin": [math.nan, round(float(rng.normal()), 1), -0.0, 0.0][rng.integers(4)]}
        row |= {"iteration": [None, 1, 2.0, "late"][rng.integers(4)]}
        row |= {"arm": "ab"[i % 2], "source": ["s", "t", None][i % 3], "p_chosen": [0.5, 0.9][i % 2]}
        if i % 10 == 0:
            row = {"prompt": "r", "responses": ["a", "b"], "scores": [float(i % 7), 2.0]}
        if i % 20 == 0:
            row = {"prompt": "c", "completion": "d", "score": i % 5}
        given.append(row)
    browser = PreferenceBrowser(given, page_limit=10**8)
    for i in range(0, 300, 7):
        browser.relabel(i, "x" if browser.rows.kinds[i] == "rated" else ["1", "2", "0", "x"][i % 4])
    searched = ["STRASSE", "straße", "i̇", "本", "σίσυφος", " A  B", "😀", "x\ny", "\n"]

    def some(values, share):
        return values[rng.integers(len(values))] if rng.random() < share else None

    specs = []
    for _ in range(300):
        view = {"text": some(searched, 0.4) or "", "low": some([-1.0, -0.3, 0.0, 0.4], 0.4)}
        view |= {"high": some([-0.5, 0, 0.3, 1], 0.4), "source": some(["s", "t"], 0.3) or ""}
        view |= {"arm": some(["a", "b"], 0.3) or "", "iteration": some(["1", "2", "late"], 0.3) or ""}
        view |= {"state": some(preference_rows.STATES, 1), "sort": some(preference_rows.SORTS, 1)}
        view |= {"down": some([True], 0.5) or False}
        specs.append(preference_rows.checked_view(view))
    specs += [
        {**preference_rows.VIEW, "text": text}
        for text in ("straße", "i̇", "本", "σίσυφος", "a  b", "😀", "x\ny", "İ", "user:")
    ]
    mine = [browser.rows.order(spec, browser._labels.values).tolist() for spec in specs]
    theirs = script(
        """({data, specs}) => { const labels = new Map(Object.entries(data.labels).map(([i, x]) => [Number(i), x]));
        const texts = n => [promptText(data.rows[n].raw.prompt), ...textsOf(data.rows[n])].join("\\n").toLowerCase();
        return specs.map(spec => localOrder(data, texts, spec, labels)); }""",
        {"data": browser.data(), "specs": specs},
    )
    assert sum(map(bool, mine)) > 100
    assert theirs == mine


def test_a_label_means_the_same_in_both(script):
    given = [
        *rows(8),
        {"prompt": "p", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]},
        {"prompt": "p", "responses": ["a", "b"], "scores": [None, 2.5]},
        {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_ids": [1], "rejected_ids": [2]}
        | {"chosen_only": 1, "margin": 0.0},
    ]
    browser = PreferenceBrowser(given)
    details = [browser._detail(i) for i in range(len(given))]
    asked = [
        (i, value)
        for i, kind in enumerate(browser.rows.kinds)
        for value in {"pair": "012x", "ranking": "012x", "rated": "x"}[kind]
    ]
    raw = browser.rows.raw
    mine = [[labels.relabelled(raw[i], v), labels.preferred(raw[i], v), labels.preferred(raw[i])] for i, v in asked]
    ask = "([i, v]) => [relabelled(details[i], v), preferred(details[i], v), preferred(details[i])]"
    theirs = script(f"({{details, asked}}) => asked.map({ask})", {"details": details, "asked": asked})
    assert theirs == mine


def weight(tokens):
    return sum(1 if token.isspace() else 1024 for token in tokens)


def heaviest_common(a, b):
    """The weight of the best common subsequence, by the textbook."""
    best = np.zeros((len(a) + 1, len(b) + 1), int)
    for i in range(len(a)):
        for j in range(len(b)):
            same = best[i, j] + weight([a[i]])
            best[i + 1, j + 1] = same if a[i] == b[j] else max(best[i, j + 1], best[i + 1, j])
    return best[-1, -1]


def test_the_difference_is_the_smallest_one(script):
    rng = np.random.default_rng(2)
    texts = [" ".join(rng.choice(list("abcd"), rng.integers(0, 14))) for _ in range(60)]
    texts += ["日本語", "日本", "a,b", "a, b", "x  y", "x y"]
    asked = list(zip(texts[::2], texts[1::2], strict=True))
    found = script("pairs => pairs.map(([a, b]) => [split(a), split(b), wordDiff(a, b)])", asked)
    for (left, right), (a, b, diff) in zip(asked, found, strict=True):
        assert ("".join(a), "".join(b)) == (left, right)
        assert ["".join(part for part, _ in side) for side in diff["sides"]] == [left, right]
        kept = ["".join(part for part, mine in side if not mine) for side in diff["sides"]]
        assert kept[0] == kept[1]
        assert weight([*kept[0].replace("  ", " ")]) <= heaviest_common(a, b) <= weight([*kept[0]])
    long = " ".join(f"w{i}" for i in range(3000))
    assert script("([a, b]) => wordDiff(a, b)", [f"{long} end1", f"start {long[::-1]} end2"])["rough"]
