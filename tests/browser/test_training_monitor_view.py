"""The training monitor in a page, with no kernel: cursor, legend, scales, samples, diagnosis, export, escapes."""

import csv

import numpy as np
import pandas as pd
import pytest
from rendered import HOSTILE, harmless, page_of

from workbench.runs.files import write_json
from workbench.runs.run import Run
from workbench.training.probes import SAMPLES, SCORES
from workbench.widgets.training_monitor import TrainingMonitor

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ODD = "=1+2 \u202eright to left\u202c zero\u200bwidth " + "verylongtoken" * 60
STEPS = 600


def write_probe(folder, *, harmful):
    rng, path, n = np.random.default_rng(0), folder / "probe", 60
    path.mkdir(parents=True)
    texts = {"prompt": [f"question {i}" for i in range(n)], "chosen": "the answer", "rejected": "the answers"}
    rows = pd.DataFrame(
        {"row": range(n), **texts, "chosen_length": rng.integers(3, 30, n), "rejected_length": rng.integers(3, 30, n)}
    )
    rows.loc[0, ["prompt", "chosen", "rejected"]] = HOSTILE, ODD, ""
    scores, samples, said = [], [], [HOSTILE, ODD, "", "plain"]
    for k, step in enumerate((0, 200, 400, 600)):
        scores += [[step, i, -20 - k - 9 * (i == 0) * k + rng.normal(0, 0.1), -20 - 2 * k] for i in range(n)]
        good = 0.9 - 0.2 * k * harmful
        texts = [said[i % 4] + f" at {step}" * (i % 4 != 2) for i in range(8)]
        samples += [[step, i, 0, text, 10 + 3 * k, i % 3 > 0, -9.0, good] for i, text in enumerate(texts)]
    rows.to_parquet(path / "rows.parquet")
    pd.DataFrame(scores, columns=SCORES).to_parquet(path / "scores.parquet")
    pd.DataFrame(samples, columns=SAMPLES).to_parquet(path / "samples.parquet")
    about = {"key": "x", "beta": 0.1, "prompts": [HOSTILE, *(f"question {i}" for i in range(1, 8))], "probe_s": 1.0}
    about |= {"training_s": 19.0, "seconds_at": {"0": 0.0, "200": 100.0, "400": 200.0, "600": 300.0}}
    write_json(path / "about.json", about)


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    """Two arms of two seeds over 600 steps, one with a hostile name; a probe in each training of the first seed."""
    folder = tmp_path_factory.mktemp("monitor")
    for seed in (0, 1):
        for number, arm in enumerate(("dpo", "<b>arm")):
            part = folder / f"seed-{seed}" / arm / "round-1"
            rng = np.random.default_rng([seed, number])
            same = {"accuracies": 0.5, "policy_clipped": 0.0}
            lines = [
                {"step": k, "loss": 0.7 * 0.995**k + 0.02 * rng.random() + 5 * (k == 333), **same}
                | {"margins": k / STEPS + seed, "kl": float("nan") if 100 < k < 200 else k / 1e6}
                for k in range(STEPS)
            ]
            part.mkdir(parents=True)
            (part / "metrics.jsonl").write_text("".join(pd.Series(line).to_json() + "\n" for line in lines))
            if seed == 0:
                write_probe(part, harmful=number)
    Run(folder).update_manifest(
        status="done", system="dpo", scale="tiny", parameters={"seeds": [0, 1]}, started="", provenance={}
    )
    monitor = TrainingMonitor(folder)
    return page_of(tmp_path_factory.mktemp("page"), monitor), monitor


@pytest.fixture
def opened(page_file, visit):
    with harmless(visit, page_file[0], ".wb-monitor", ".panel", "img, script, .value b, .legend b") as opened:
        yield opened


def value(page, chart, name):
    """The number beside a name under a chart."""
    panel = page.locator(".wb-monitor .panel", has=page.locator("h5", has_text=chart))
    return panel.locator("tr", has=page.locator("td", has_text=name)).locator(".value").inner_text()


def cursor(page):
    return page.locator(".wb-monitor input.cursor")


def test_the_cursor_moves_by_keys_and_mouse_and_says_the_values(opened):
    page = opened.page
    assert page.locator(".wb-monitor .where").first.inner_text() == "step 600, the last"
    cursor(page).focus()
    page.keyboard.press("Home")
    assert page.locator(".wb-monitor .where").first.inner_text() == "step 0"
    assert value(page, "Reward margin", "dpo") == "0.5 (0 to 1)"  # the mean, and the seeds it is of
    before = value(page, "Loss", "dpo")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert value(page, "Loss", "dpo") != before
    box = page.locator(".wb-monitor .panel", has_text="Reward margin").locator("svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * (50 + 150) / 360, box["y"] + 50)
    step = int(page.locator(".wb-monitor .where").first.inner_text().split()[1])
    assert abs(step - 300) < 10
    mean = float(value(page, "Reward margin", "dpo").split()[0])
    assert mean == pytest.approx(step / STEPS + 0.5, abs=0.01)


def test_a_spike_of_one_step_is_still_drawn(opened):
    """Of 600 steps at most 400 points are there; the loss of step 333 is 5 higher."""
    panel = opened.page.locator(".wb-monitor .panel", has_text="Loss")
    assert "4" in panel.locator("svg text").all_text_contents()
    heights = panel.locator("path.bold").first.get_attribute("d").replace("M", "L").split("L")[1:]
    ys = [float(place.split()[1]) for place in heights]
    assert min(ys) < 20 < np.median(ys)
    assert len(ys) <= 400


def test_legend_and_switches(opened):
    page = opened.page
    button = page.get_by_role("button", name="dpo mean of 2 seeds")
    lines = page.locator(".wb-monitor .panel", has_text="Reward margin").locator("path.line")
    assert lines.count() == 6  # two arms: two seeds and a mean each
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert lines.count() == 3
    page.get_by_label("single seeds").uncheck()
    assert lines.count() == 1
    button.press("Space")
    assert lines.count() == 2
    page.locator(".wb-monitor .picker summary").click()
    charts = page.locator(".wb-monitor .panel").count()
    page.locator(".wb-monitor .picks").get_by_label("Reward margin").uncheck()
    assert page.locator(".wb-monitor .panel").count() == charts - 1


def test_smoothing_log_scale_and_minutes(opened):
    page = opened.page
    loss = page.locator(".wb-monitor .panel", has=page.locator("h5", has_text="Loss"))
    before = loss.locator("path.bold").first.get_attribute("d")
    page.get_by_label("smoothing of the lines").press("End")
    assert loss.locator("path.bold").first.get_attribute("d") != before
    assert loss.locator("path.raw").count() == 2  # what was logged stays, faint
    page.get_by_label("log scale where it helps").check()
    assert "log" in loss.locator("h5").inner_text()
    assert "log" not in page.locator(".wb-monitor .panel h5", has_text="Reward margin").inner_text()
    page.get_by_label("horizontal axis").select_option("minutes")
    assert "minutes" in page.locator(".wb-monitor .where").first.inner_text()
    assert "minutes of training" in loss.locator("svg").inner_html()


def test_gaps_stay_gaps(opened):
    path = (
        opened.page.locator(".wb-monitor .panel", has_text="KL to the reference")
        .locator("path.bold")
        .first.get_attribute("d")
    )
    assert path.count("M") == 2
    assert "values are not finite and drawn as gaps" in opened.page.locator(".wb-monitor > .notes").inner_text()


def test_samples_over_time(opened):
    page = opened.page
    written = page.locator(".wb-monitor .written")
    assert "at 600" in written.inner_text()
    slider = page.get_by_label("probed step that is compared with the start")
    slider.press("ArrowLeft")
    assert "step 400" in written.inner_text()
    assert "at 400" in written.inner_text()
    assert "16 tokens · cut off at the limit · quality 0.5" in written.inner_text()
    assert HOSTILE in written.inner_text()
    page.get_by_label("prompt", exact=True).select_option("1")
    assert "⟨U+202E⟩right to left⟨U+202C⟩ zero⟨U+200B⟩width" in written.inner_text()
    page.get_by_label("prompt", exact=True).select_option("2")
    assert "(empty)" in written.inner_text()


def test_diagnosis_of_both_trainings(opened):
    page = opened.page
    section = page.locator(".wb-monitor .diagnosis")
    assert section.locator(".overview tbody tr").count() == 2
    run = page.get_by_label("training that is diagnosed")
    run.select_option("dpo · seed 0")
    assert "displacement, no sign of harm" in section.locator(".card").first.inner_text()
    run.select_option("<b>arm · seed 0")
    card = section.locator(".card").first
    assert "displacement, harmful" in card.inner_text()
    assert "the quality of own samples fell by" in card.inner_text()
    assert "arXiv 2410.08847" in card.inner_text()
    assert "own samples get longer" in section.locator(".card").nth(1).inner_text()
    section.locator(".lists summary").first.click()
    worst = section.locator(".lists .pair").first
    assert worst.inner_text().startswith("row 0 · chosen −29.8, rejected −6")
    assert HOSTILE in worst.inner_text()
    assert "rejected: (empty)" in worst.inner_text()


def test_exports(opened, page_file):
    page = opened.page
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, curves").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    own = [row for row in rows if (row["arm"], row["seed"], row["chart"]) == ("dpo", "1", "Reward margin")]
    assert float(own[-1]["value"]) == pytest.approx(599 / 600 + 1, abs=1e-4)
    assert not any(row["seed"] == "" for row in rows)
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV, diagnosis").click()
    with open(download.value.path(), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ours = page_file[1].diagnosis("dpo").table
    assert [row["measure"] for row in rows if row["training"] == "dpo · seed 0"] == ours["measure"].tolist()
    assert float(rows[-1]["n"]) > 0


def test_a_chart_that_says_0_from_end_to_end_is_opened_on_request(opened):
    page = opened.page
    titles = page.locator(".wb-monitor .panel h5")
    before = titles.all_inner_texts()
    assert not [title for title in before if title.startswith("Clipped")]
    page.locator(".wb-monitor .picker summary").click()
    page.get_by_label("Clipped all 0").check()
    assert len(titles.all_inner_texts()) == len(before) + 1
    assert titles.get_by_text("Clipped").count() == 1


@pytest.mark.parametrize(
    "dark", [pytest.param(False, id="light", marks=pytest.mark.exhaustive), pytest.param(True, id="dark")]
)
def test_nothing_stands_in_the_way(page_file, visit, barriers, dark):
    page = visit(page_file[0], dark=dark).page
    page.locator(".wb-monitor .picker summary").click()
    assert barriers(page, ".wb-monitor") == []
    page.locator(".wb-monitor .picker summary").click()
    for summary in page.locator(".wb-monitor .lists summary").all():
        summary.click()
    page.get_by_role("button", name="dpo mean of 2 seeds").click()
    assert barriers(page, ".wb-monitor") == []


def test_it_fits_a_phone(page_file, visit, barriers):
    page = visit(page_file[0], width=390).page
    page.get_by_label("prompt", exact=True).select_option("1")
    for summary in page.locator(".wb-monitor summary").all():
        summary.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    outside = page.evaluate(
        """() => [...document.querySelectorAll('.wb-monitor *')]
            .filter(x => !x.closest('.scroll') && x.getBoundingClientRect().right > 391)
        .map(x => x.outerHTML.slice(0, 120))"""
    )
    assert outside == []
    assert barriers(page, ".wb-monitor") == []


def test_an_empty_folder_says_what_is_waited_for(tmp_path, visit):
    opened = visit(page_of(tmp_path, TrainingMonitor(tmp_path)))
    assert f"No metrics in {tmp_path.name} yet." in opened.page.locator(".wb-monitor").inner_text()
    assert opened.page.locator(".wb-monitor .panel").count() == 0
    assert opened.complaints == []
