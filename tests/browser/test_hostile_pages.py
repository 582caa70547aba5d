"""What a model wrote, in every place of a real page: it is shown, and it does nothing and asks nobody."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from finished_runs import finished
from nbformat.v4 import new_output
from toy_notebooks import claim_records, display, stdout, stored

from workbench import claims, figures, runs
from workbench.share import page_frame, pages
from workbench.widgets.confidence_ranking import ConfidenceRanking

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SCRIPT = "window.pwned = (window.pwned || 0) + 1"
ATTACKS = {
    "script": f"<script>{SCRIPT}</script>",
    "end of a script": f"</script><script>{SCRIPT}</script><!--",
    "image": f"<img src=http://x.invalid/leak.png onerror='{SCRIPT}'>",
    "drawing": f"<svg onload='{SCRIPT}'><script>{SCRIPT}</script><use href=http://x.invalid/a.svg#b></svg>",
    "formula": (
        f"<math><mtext><img src=x onerror='{SCRIPT}'></mtext><maction"
        f" xlink:href='javascript:{SCRIPT}'>x</maction></math>"
    ),
    "frames": f"<iframe srcdoc='<script>parent.{SCRIPT}</script>'></iframe><object data=http://x.invalid></object>",
    "redirect": "<meta http-equiv=refresh content='0;url=http://x.invalid/'><base href=http://x.invalid/>",
    "style": "<style>@import url(http://x.invalid/a.css); body { background: url(http://x.invalid/b.png) }</style>",
    "way out": "</pre></div></section></main><h1 id=injected>taken over</h1>",
    "link": f"<a href='javascript:{SCRIPT}'>click</a> [click](javascript:window.pwned=1)",
    "names": "<img name=querySelectorAll><form name=getElementById><input name=body></form>",
    "colours": "\x1b[31mred\x1b[0m \x1b[2J\x1b]8;;http://x.invalid\x07out\x1b]8;;\x07",
    "turned": "\u202e gnitirw drawkcab",
    "no text": "nul \x00 and half a character \ud800 here",
    "template": "{{ 7 * 7 }} {% raw %} ${SCRIPT} &lt;script&gt;",
}
# tables and files cannot hold half a character; outputs of a notebook can
WRITTEN = [text.replace("\ud800", "?") for text in ATTACKS.values()]
LONG = "x" * 200_000


@dataclass
class Visit:
    page: Any
    asked: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)


@pytest.fixture
def offline(chromium):
    """`offline(path)` opens a file in a browser without a network, and keeps what it asked for and said."""
    contexts = []

    def open_file(path: Path, width: int = 1280) -> Visit:
        context = chromium.new_context(offline=True, viewport={"width": width, "height": 844})
        contexts.append(context)
        visit = Visit(context.new_page())
        visit.page.on("request", lambda request: visit.asked.append(request.url))
        # by the browser itself, before anything went out
        visit.page.on("requestfailed", lambda r: r.failure in ("csp", "origin") and visit.refused.append(r.url))
        visit.page.on("console", lambda line: visit.said.append(f"{line.type}: {line.text}"))
        visit.page.on("pageerror", lambda error: visit.said.append(f"error: {error}"))
        visit.page.on("dialog", lambda dialog: (visit.said.append("dialog"), dialog.dismiss()))
        visit.page.on("popup", lambda _: visit.said.append("popup"))
        visit.page.goto(path.as_uri(), wait_until="load")
        return visit

    yield open_file
    for context in contexts:
        context.close()


def figure(text: str) -> dict:
    points = {"x": [text, "b"], "y": [1, 2], "text": [text, text], "customdata": [text, text]}
    drawn = go.Figure(go.Scatter(name=text, hovertemplate=f"%{{text}}{text}", **points))
    given = {"title": text, "xaxis_title": text, "legend_title_text": text, "showlegend": True}
    given |= {"annotations": [{"text": text, "x": 0, "y": 1}]}
    drawn.update_layout(**given)
    return display(**{"application_vnd.plotly.v1+json": json.loads(drawn.to_json()), "text_plain": "Figure"})


def view() -> dict:
    texts = WRITTEN
    answers = pd.DataFrame(
        {"qid": [f"{i}{t}" for i, t in enumerate(texts)], "question": texts, "answer": texts, "correct": 1}
    )
    shown = ConfidenceRanking(answers, {"bt": [float(-i) for i in range(len(texts))]}, kept=2)
    return new_output("display_data", data=dict(shown._repr_mimebundle_()))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A run whose every part was written by the model, and the index over it."""
    root = tmp_path_factory.mktemp("runs")
    every = "\n".join(ATTACKS.values())
    records = [
        claim_records(text)[0] | {"id": f"C{i}", "paper": text, "verdict": text, "control_is": text, "unit": text[:40]}
        for i, text in enumerate(WRITTEN)
    ]
    run = finished(root, "spin", name="a<img src=x onerror=alert(1)>", records=records, dataset=ATTACKS["image"])
    for name in ("older", "oldest"):
        finished(root, "spin", name=name, records=records, dataset=ATTACKS["image"])
    written = "\n".join(WRITTEN)
    run.update_manifest(
        provenance={"python": written, "gpu": written, written[:60]: written},
        code={"hash": written, "commit": written, "changed": [written], "diff": "code.diff"},
        inputs=[{"kind": written, "source": written, "fingerprint": written, "revision": written}],
        parameters=run.manifest["parameters"]
        | {
            "config": {written[:70]: written, "beta": [written]},
            "device": written,
        },
    )
    (run.folder / "code.diff").write_text(written)
    table = pd.DataFrame({"response": WRITTEN})
    book = stored(
        stdout(every),
        new_output("stream", name="stderr", text=every),
        display(text_plain=every),
        display(text_markdown=every),
        display(text_latex=f"$\\text{{{ATTACKS['formula']}}} <x>$"),
        display(text_latex=ATTACKS["script"]),
        new_output("error", ename=ATTACKS["script"], evalue=every, traceback=[every]),
        display(text_html=table.to_html()),
        display(text_html=claims.table_html(records)),
        display(text_html=figures.Note(every)._repr_html_()),
        *[figure(text) for text in ATTACKS.values()],
        view(),
        stdout(LONG),
        display(text_html=f"<table><tr><td>{LONG[:5000]}"),
        markdown="# A page\n\n$$\\sum_{i=1}^n x_i$$",
    )
    (run.folder / "notebook.ipynb").write_text(json.dumps(book))
    pages.render(run.folder / "notebook.ipynb", run.folder / "page.html", root=root)
    broken = finished(root, "spin", "smoke", name="broken")
    broken.update_manifest(status="failed", reason=written)
    nbformat.write(
        stored(new_output("error", ename="E", evalue=written, traceback=[written])), broken.folder / "failed.ipynb"
    )
    pages.render(broken.folder / "failed.ipynb", broken.folder / "failed.html", root=root)
    pages.index(root)
    return root


def quiet(visit: Visit, path: Path) -> None:
    assert visit.page.evaluate("window.pwned") is None
    assert visit.page.locator("#injected").count() == 0
    assert visit.asked == [path.as_uri()]
    assert visit.said == []


def the_run(root: Path) -> Path:
    return next(root.glob("spin/tiny-a<img*/page.html"))


def test_everything_a_model_wrote_is_shown_and_does_nothing(root, offline):
    visit = offline(the_run(root))
    page = visit.page
    page.locator("div.figure .main-svg").nth(2 * len(ATTACKS) - 1).wait_for(state="attached")
    page.locator(".wb-ranking .row").first.wait_for()
    for summary in page.locator("details > summary").all():
        if summary.is_visible():
            summary.click()
    page.locator("details.provenance details summary").click()
    quiet(visit, the_run(root))
    said = page.locator("main").inner_text()
    parts = "script, end of a script, image, drawing, formula, frames, redirect, way out, template"
    for name in parts.split(", "):
        text = ATTACKS[name]
        # printed twice, plain, traceback, table, claims, note, settings, provenance, diff
        assert said.count(text) >= 10, name
    assert "half a character ? here" in said
    assert page.locator("main :is(iframe, object, embed, form, base, meta, img)").count() == 0
    assert page.locator("main script:not([type='application/json'])").count() == 0
    assert page.locator("a[href^=javascript]").count() == 0
    assert page.locator(".ansi-red-fg").first.inner_text() == "red"


def test_plotly_draws_hostile_text_and_runs_none_of_it(root, offline):
    visit = offline(the_run(root))
    page = visit.page
    last = page.locator("div.figure").nth(1)
    last.locator(".scatterlayer .point").nth(1).hover(force=True)
    last.locator(".hovertext").wait_for()
    assert (
        page.locator("div.figure :is(script, img, iframe, foreignObject):not([type='application/json'])").count() == 0
    )
    links = page.locator("div.figure svg a").evaluate_all(
        "all => all.map(a => a.getAttribute('href') || a.getAttribute('xlink:href'))"
    )
    assert not [link for link in links if link and not link.startswith("http")]
    quiet(visit, the_run(root))


def test_text_that_turns_around_stays_in_its_own_place(root, offline):
    page = offline(the_run(root)).page
    for place in ("details.provenance code", "header .fact", "header strong", "main td", "main pre"):
        assert page.locator(place).first.evaluate("node => getComputedStyle(node).unicodeBidi") in (
            "isolate",
            "plaintext",
        )


@pytest.mark.parametrize("width", [1280, 390])
def test_a_huge_line_stays_in_its_box(root, offline, width):
    page = offline(the_run(root), width).page
    assert page.locator("pre", has_text=LONG[:1000]).last.evaluate("node => node.textContent.length") >= len(LONG)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_index_shows_hostile_claims_names_and_reasons(root, offline):
    visit = offline(root / "index.html")
    quiet(visit, root / "index.html")
    page = visit.page
    said = page.locator("main").inner_text()
    for name in ("script", "image", "drawing", "formula", "way out", "template"):
        assert said.count(ATTACKS[name]) >= 3, name  # statement, paper, verdict
    assert page.locator("main :is(iframe, object, form, img, script)").count() == 0
    page.get_by_label("verdict", exact=True).select_option(ATTACKS["script"])  # a filter that holds markup
    assert page.locator("#count").inner_text().startswith("1 of ")
    page.reload()
    assert page.locator("#count").inner_text().startswith("1 of ")
    assert page.evaluate("window.pwned") is None
    page.locator("table.runs a[href$='failed.html']").click()
    page.wait_for_load_state()
    assert page.url.endswith("failed.html")
    assert page.evaluate("window.pwned") is None


def test_a_hostile_address_is_only_a_filter(root, offline):
    path = root / "index.html"
    visit = offline(path)
    visit.page.goto(
        path.as_uri() + "#q=<img src=x onerror=alert(1)>&system=<script>&scale=constructor&verdict=__proto__&x=%E0%A4%A"
    )
    assert visit.page.locator("#count").inner_text().startswith("0 of ")
    assert visit.page.get_by_label("system", exact=True).input_value() == ""
    assert visit.page.evaluate("window.pwned") is None
    assert visit.said == []


def test_unescaped_markup_is_dead_and_the_page_still_works(offline, tmp_path):
    """What an output of ours must never let through."""
    every = "".join(text.replace("\ud800", "") for text in ATTACKS.values() if not text.startswith("<style"))
    drawn = go.Figure(go.Scatter(y=[1, 2]))
    good = display(**{"application_vnd.plotly.v1+json": json.loads(drawn.to_json())})
    forged = '<div class="figure"></div><div class="view" data-view="ranking">x</div><div class="figure"><p>{</p></div>'
    book = stored(display(text_html=f"<p>{every}</p>"), display(text_html=forged), good, markdown="# A page")
    nbformat.write(book, tmp_path / "x.ipynb")
    visit = offline(pages.render(tmp_path / "x.ipynb", tmp_path / "x.html"))
    page = visit.page
    page.locator("div.figure .scatterlayer path.js-line").wait_for()  # drawn, whatever stood before it
    page.get_by_text("click", exact=True).first.click()  # a link that named a script
    page.get_by_role("button", name="show all code").click()
    assert page.get_by_role("button", name="hide all code").is_visible()
    before = page.evaluate("document.documentElement.dataset.theme")
    page.locator("#theme-switch").click()
    assert page.evaluate("document.documentElement.dataset.theme") != before
    assert page.evaluate("window.pwned") is None
    assert visit.asked == [(tmp_path / "x.html").as_uri()]
    assert [line for line in visit.said if "Error: " not in line] == []  # of the forged figures, nothing else


@pytest.mark.parametrize("name", [name for name in ATTACKS if name not in ("redirect", "no text")])
def test_the_policy_alone_lets_nothing_run_and_nothing_out(offline, tmp_path, name):
    """The second wall: markup that reached a page as it was."""
    text = page_frame.frame(kind="notebook", body=f"<p>{ATTACKS[name]}</p>", title="x")
    (tmp_path / "x.html").write_text(text)
    visit = offline(tmp_path / "x.html")
    visit.page.wait_for_timeout(200)
    assert visit.page.evaluate("window.pwned") is None
    assert "dialog" not in visit.said
    assert set(visit.refused) == set(visit.asked[1:])


def test_runs_that_hold_claims_of_their_own_shape_do_not_break_the_index(tmp_path, offline):
    run = finished(tmp_path, "spin")
    runs.write_json(run.folder / "claims.json", [])
    path = pages.index(tmp_path)
    quiet(offline(path), path)
