"""The scoreboard of all runs, without a browser (tests/browser opens it in one)."""

import json
import time
from pathlib import Path
from urllib.parse import unquote

from bs4 import BeautifulSoup
from finished_runs import HOSTILE, finished, only_its_own_scripts
from toy_notebooks import claim_records

from workbench import methods, runs
from workbench.share import scoreboard


def index_of(root: Path) -> BeautifulSoup:
    return BeautifulSoup(scoreboard.index(root).read_text(), "html.parser")


def test_index_works_before_the_first_run(tmp_path):
    page = index_of(tmp_path / "not" / "there")
    assert "No finished run yet" in page.main.text
    assert not page("table")
    assert not page.main("script")
    before, button, filters = only_its_own_scripts(page)
    assert "prefers-color-scheme" in before  # which colours, before anything is drawn
    assert "theme-switch" in button
    assert "location.hash" in filters


def test_index_shows_the_newest_run_of_each_system_and_scale(tmp_path):
    finished(tmp_path, "spin", name="old", day=1, records=claim_records("what the old run says"))
    new = finished(tmp_path, "spin", name="new", day=2, records=claim_records("what the new run says"))
    (new.folder / "page.html").write_text("page")
    finished(tmp_path, "spin", "smoke", name="s", day=3)
    finished(tmp_path, "spin", name="data", day=1, dataset="hub/data")
    unfinished = runs.open_run("spin", "toy", "tiny", {"seeds": [0]}, str(tmp_path / "spin" / "tiny-half"))
    runs.write_json(unfinished.folder / "claims.json", claim_records("what nobody may see"))

    page = index_of(tmp_path)
    assert [h.text for h in page("h2")][:2] == ["Scale: tiny", "Scale: smoke"]
    tiny, smoke = page.select("table.claims")
    assert "what the new run says" in tiny.text
    assert "what the old run says" not in tiny.text
    # another input is another experiment, not a newer version
    assert len(tiny.select('tr[data-input="hub/data"]')) == 3
    assert "spinhub/data" in tiny.text
    assert {a["href"] for a in tiny("a")} == {"spin/tiny-new/page.html"}
    assert "smoke run, no verdict" in smoke.text
    assert "what nobody may see" not in page.text
    others = page.select("table.runs")[1].text
    assert "tiny-old" in others
    assert "tiny-half" in others
    assert "not finished" in others


def test_index_counts_verdicts(tmp_path):
    finished(tmp_path, "spin")
    tally = [span.text for span in index_of(tmp_path).select(".tally span")]
    assert tally == ["1 shown in small", "1 not shown", "1 needs full scale"]


def test_hostile_claims_stay_text_in_the_index(tmp_path):
    records = [{**record, "statement": HOSTILE, "paper": HOSTILE, "verdict": HOSTILE} for record in claim_records()]
    harmless = index_of(tmp_path / "other")
    finished(tmp_path, "spin", records=records, model=HOSTILE)
    page = index_of(tmp_path)
    assert not page.main("script")
    assert only_its_own_scripts(page) == only_its_own_scripts(harmless)
    assert not page("img")
    assert not page.select("[onerror]")
    assert HOSTILE in page.select_one("table.claims").text


# ------------------------------------------------------------------------------------------------------------- history
def with_verdict(verdict: str, effect: float = 1.1) -> list[dict]:
    return [record | {"verdict": verdict, "effect": effect} for record in claim_records()[:1]]


def test_history_goes_from_the_oldest_to_the_newest_run_of_the_same_experiment(tmp_path):
    said = ("not shown", "shown in small", "shown in small", "not shown")
    for day, verdict in enumerate(said, start=1):
        run = finished(tmp_path, "spin", name=f"n{day}", day=day, records=with_verdict(verdict, day / 10))
        (run.folder / "page.html").write_text("page")
    finished(tmp_path, "spin", name="other", day=5, records=with_verdict("not shown"), dataset="hub/data")
    finished(tmp_path, "spin", "full", name="other", day=5, records=with_verdict("reproduced"))
    failed = finished(tmp_path, "spin", name="broken", day=6, records=with_verdict("shown in small", 9))
    failed.update_manifest(status="failed")

    row = index_of(tmp_path).select_one('tr[data-scale="tiny"][data-input="embedded world"]')
    marks = row.select("ol.marks li .mark")
    assert [mark["title"] for mark in marks] == [
        "2026-01-01 10:02: +0.1 nat, not shown",
        "2026-01-02 10:02: +0.2 nat, shown in small, was not shown",
        "2026-01-03 10:02: +0.3 nat, shown in small",
        "2026-01-04 10:02: +0.4 nat, not shown, was shown in small",
    ]
    assert [mark.text for mark in marks] == [mark["title"] for mark in marks]  # what a screen reader hears
    assert [mark["href"] for mark in marks] == [f"spin/tiny-n{day}/page.html" for day in (1, 2, 3, 4)]
    assert [("changed" in mark["class"]) for mark in marks] == [False, True, False, True]
    kinds = [next(kind for kind in ("yes", "no", "open") if kind in mark["class"]) for mark in marks]
    assert kinds == ["no", "yes", "yes", "no"]


def test_one_run_has_no_history_and_other_settings_are_named(tmp_path):
    finished(tmp_path, "spin", day=2, config={"beta": 0.1})
    assert not index_of(tmp_path).select("ol.marks")
    finished(tmp_path, "spin", name="b", day=1, config={"beta": 0.5})
    first, second = index_of(tmp_path).select("ol.marks")[0].select(".mark")
    assert first["title"].endswith(", other settings")
    assert "settings" not in second["title"]


def test_a_long_history_is_cut_and_counted(tmp_path):
    for number in range(scoreboard.MARKS + 3):
        run = finished(tmp_path, "spin", name=f"n{number}", records=with_verdict("not shown"))
        run.update_manifest(finished=f"2026-02-01T10:{number:02d}:00+00:00")
    marks = index_of(tmp_path).select_one("ol.marks")
    assert len(marks.select(".mark")) == scoreboard.MARKS
    assert marks.select_one(".older").text == "+3 older runs"
    assert "10:14" in marks.select(".mark")[-1].text


# -------------------------------------------------------------------------------------------------------- filters, data
def test_filters_offer_what_there_is(tmp_path):
    finished(tmp_path, "spin")
    finished(tmp_path, "relative_confidence", "smoke", dataset="hub/data")
    finished(tmp_path, "gone_system", records=with_verdict("follows from the published data"))
    page = index_of(tmp_path)
    assert [group["label"] for group in page.select("#system optgroup")] == ["align", "confidence", "others"]
    systems = ["", "align/", "spin", "confidence/", "relative_confidence", "others/", "gone_system"]
    assert [o["value"] for o in page.select("#system option")] == systems
    assert [o.text for o in page.select("#scale option")] == ["all", "tiny", "smoke"]
    assert [o.text for o in page.select("#verdict option")] == [
        "all",
        "shown in small",
        "not shown",
        "needs full scale",
        "smoke run, no verdict",
        "follows from the published data",
    ]
    assert [o.text for o in page.select("#input option")] == ["all", "embedded world", "hub/data"]
    assert page.select_one("#count").text == "7 of 7 claims"
    assert page.select_one("#count")["aria-live"] == "polite"


def test_index_as_data_says_the_same(tmp_path):
    dataset = str(tmp_path / "mine" / "pairs.jsonl")
    finished(tmp_path, "spin", day=2, dataset=dataset, records=with_verdict("not shown"))
    said = tmp_path / "spin" / "tiny-a" / "claims.json"
    said.write_text(said.read_text().replace("not shown", "not shown \\ud800"))  # half a character, as JSON can hold it
    page = index_of(tmp_path)
    data = runs.read_json(tmp_path / "index.json")
    assert [(c["system"], c["claim"], c["verdict"], c["input"]) for c in data["claims"]] == [
        ("spin", "C1", "not shown ?", "pairs.jsonl")
    ]
    assert [mark["finished"] for mark in data["claims"][0]["history"]] == ["2026-01-02 10:02"]
    assert [r["run"] for r in data["runs"]] == ["spin/tiny-a"]
    for text in (str(page), json.dumps(data)):
        assert str(tmp_path) not in text


def test_hostile_names_and_reasons_stay_text(tmp_path):
    run = finished(tmp_path, "<img src=x onerror=alert(1)>", name='"><script>1<', records=claim_records())
    (run.folder / "page.html").write_text("page")
    broken = finished(tmp_path, "spin", name="b")
    broken.update_manifest(status="failed", reason=HOSTILE)
    (broken.folder / "failed.html").write_text("page")
    page = index_of(tmp_path)
    assert not page("img")
    assert not page.main("script")
    assert {(tmp_path / unquote(a["href"])).is_file() for a in page.main("a")} == {True}
    assert page.select_one(".reason").text == HOSTILE


def test_three_hundred_runs_stay_quick_and_small(tmp_path):
    """20 systems, 5 inputs, 3 runs each, with 5 claims: what a year of work leaves."""
    systems = list(methods.REGISTRY)[:20]
    record = claim_records("a statement of the usual length, about what one method does better than another one does")[
        0
    ]
    records = [record | {"id": f"C{i}"} for i in range(5)]
    for number in range(300):
        system, source = systems[number % len(systems)], f"hub/data-{number // len(systems) % 5}"
        run = finished(tmp_path, system, name=f"{number}", day=1 + number % 9, records=records, dataset=source)
        (run.folder / "page.html").write_text("page")
    start = time.process_time()
    path = scoreboard.index(tmp_path)
    seconds = time.process_time() - start
    assert path.read_text().count('class="mark ') >= 300 * 5
    assert seconds < 5
    assert path.stat().st_size < 3e6
