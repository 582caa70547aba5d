"""The launcher's faces for scripts, its words on each system, a press. The view itself is driven in tests/browser."""

import json
import os
import sys
import time

import pytest
from toy_notebooks import OPEN, claim_records, toy, write_notebook

from workbench import methods, runs
from workbench.batch import launcher as module
from workbench.batch import launches
from workbench.batch.launcher import Launcher
from workbench.claims import kind_of
from workbench.widgets import scripted

HOSTILE = "<img src=x onerror='window.pwned=1'></script><script>window.pwned=2</script>"


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """Two toys: one with a notebook, one without; nothing is published."""
    cells = "md:Because of $x$.\n\n$$L = x$$", OPEN
    path = write_notebook(tmp_path / "toy.ipynb", *cells, title=f"Does {HOSTILE} work?")
    known = {"toy": toy("toy", path, cost="1 min"), "lost": toy("lost", tmp_path / "lost.ipynb")}
    monkeypatch.setattr(methods, "REGISTRY", known)
    monkeypatch.setattr(module, "PUBLISHED", tmp_path / "published")
    return known


@pytest.fixture
def command(registry, monkeypatch):
    """`command(code)` lets a small program stand for the `workbench` command."""

    def make(code):
        monkeypatch.setattr(launches, "COMMAND", [sys.executable, "-c", code])

    yield make
    for process in list(launches._CHILDREN):
        process.kill()
        process.wait()
    launches._CHILDREN.clear()


def finished(root, name="tiny-1", *, scale="tiny", when="2026-01-02T03:04:05", records=None, job=None, **given):
    """A finished run of the toy."""
    run = runs.Run(root / "toy" / name)
    parameters = {"seeds": [0, 1, 2], "model": "", "dataset": "", **given}
    facts = {"system": "toy", "scale": scale, "status": "done", "finished": f"{when}+00:00"}
    runs.write_json(run.folder / "manifest.json", {**facts, "parameters": parameters})
    runs.write_json(run.folder / "claims.json", claim_records(scale=scale) if records is None else records)
    (run.folder / "page.html").write_text("a page")
    if job is not None:
        runs.write_json(run.folder / "job.json", job)
    return run


def publish(scale="tiny"):
    entry = {"system": "toy", "scale": scale, "finished": "2025-01-01T00:00:00+00:00", "seeds": [0, 1]}
    runs.write_json(module.PUBLISHED / "toy.json", {**entry, "claims": claim_records()})


def until(test, within_s=20.0):
    deadline = time.monotonic() + within_s
    while not test():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---------------------------------------------------------------------------------------------------- what it says
def test_every_line_of_the_registry_is_told_of(runs_root):
    table = Launcher().frame()
    assert list(table["name"]) == list(methods.REGISTRY)
    assert list(table.columns) == ["name", "group", "title", "paper", "question", "cost", "verdicts", "of"]
    spin = table.set_index("name").loc["spin"]
    assert spin["question"] == "SPIN: can a model improve by telling human answers from its own?"
    assert spin["of"].startswith("published, tiny, 5 seeds, 2026-")
    assert "shown in small" in spin["verdicts"]
    assert set(table[table["group"] == "study"]["name"]) == {"arena", "leaderboard"}


def test_newest_run_here_goes_before_what_is_published(registry, runs_root):
    publish()
    assert Launcher().frame()["of"].tolist() == ["published, tiny, 2 seeds, 2025-01-01 00:00", ""]
    finished(runs_root, "tiny-1", when="2026-01-01T00:00:00")
    finished(runs_root, "tiny-2", when="2026-01-02T00:00:00", records=claim_records()[:1])
    last = Launcher().last("toy")
    assert last.label == "run here, tiny, 3 seeds, 2026-01-02 00:00"
    assert last.counts == {"shown in small": 1}
    assert [one.label.split(",")[0] for one in Launcher().verdicts("toy")] == ["run here", "published"]


def test_a_smoke_run_decides_nothing_unless_there_is_nothing_else(registry, runs_root):
    finished(runs_root, "smoke-1", scale="smoke", seeds=[0, 1, 2])
    assert Launcher().last("toy").scale == "smoke"
    publish()
    assert Launcher().last("toy").label.startswith("published")
    assert [one.scale for one in Launcher().verdicts("toy")] == ["smoke", "tiny"]


def test_runs_on_other_input_or_settings_are_named_apart(registry, runs_root):
    finished(runs_root, "tiny-1")
    finished(runs_root, "tiny-2", dataset="/home/me/pairs.jsonl", when="2026-01-03T00:00:00")
    finished(runs_root, "tiny-3", job={"parameters": {"overrides": {"beta": 0.5}}}, when="2026-01-04T00:00:00")
    assert [one.label for one in Launcher().verdicts("toy")] == [
        "run here, tiny, 3 seeds, beta=0.5, 2026-01-04 00:00",
        "run here, tiny, 3 seeds, pairs.jsonl, 2026-01-03 00:00",
        "run here, tiny, 3 seeds, 2026-01-02 03:04",
    ]


def test_what_cannot_be_read_is_left_out(registry, runs_root):
    first = claim_records()[0]
    run = finished(runs_root, records=[first, {"id": "old"}, "no record", {**first, "conditions": 3}])
    (runs_root / "toy" / "tiny-2").mkdir()
    (runs_root / "toy" / "tiny-2" / "manifest.json").write_text("{")
    runs.write_json(runs_root / "toy" / "tiny-3" / "manifest.json", ["done"])
    module.PUBLISHED.mkdir()
    (module.PUBLISHED / "toy.json").write_text("{")
    assert [record["id"] for record in Launcher().last("toy").records] == ["C1"]
    (run.folder / "claims.json").unlink()
    assert Launcher().last("toy").records == []


def test_rows_hold_statement_paper_measured_control_and_verdict(registry, runs_root):
    finished(runs_root)
    first, second, third = Launcher().last("toy").rows
    assert first["here"].startswith("+1.1 [")
    assert first["control"].startswith("labels shuffled: ")
    assert [row["kind"] for row in (first, second, third)] == ["yes", "no", "open"]
    assert kind_of("follows from the published data") == "yes"
    assert kind_of("direction only") == "open"


def test_data_is_plain_json_and_hostile_words_stay_words(registry, runs_root):
    finished(runs_root, records=claim_records(HOSTILE))
    data = Launcher().data()
    assert json.loads(json.dumps(data)) == data
    one, lost = data["systems"]
    assert one["question"] == f"Does {HOSTILE} work?"
    assert one["sources"][0]["rows"][0]["statement"] == HOSTILE
    assert one["sources"][0]["page"] == "toy/tiny-1/page.html"
    assert one["seeds"] == {"smoke": 2, "tiny": 3, "full": 3}
    assert {piece[0] for block in one["method"] for piece in block} == {"text", "math", "display"}
    assert lost["trouble"] == f"{registry['lost'].notebook} cannot be read: start this from a checkout of the project"
    assert str(runs_root) not in json.dumps(data)  # a page that is passed on does not tell where it was made


def test_figure_is_of_the_last_verdicts(registry, runs_root):
    finished(runs_root)
    view = Launcher()
    assert "1 of 1 tested claims are shown" in view.figure("toy").layout.title.text
    with pytest.raises(ValueError, match="unknown system 'spin'; known: toy, lost"):
        view.figure("spin")


# -------------------------------------------------------------------------------------------------- what a press does
def test_two_presses_and_another_launcher_do_not_start_two(command, runs_root, tmp_path):
    command(f"open({str(tmp_path / 'count')!r}, 'a').write('x'); import time; time.sleep(60)")
    view = Launcher()
    assert view.run("toy", scale="smoke").status == "starting"
    assert view.run("toy").scale == "smoke"
    other = Launcher()
    assert other.chosen == "toy"
    assert repr(other) == "Launcher of 2 systems and studies; running: toy 0%"
    other.widget()
    assert other.is_following
    other._on_message(None, {"kind": "run", "name": "toy", "scale": "tiny", "seeds": 3})
    until((tmp_path / "count").is_file)
    assert (tmp_path / "count").read_text() == "x"
    with pytest.raises(TimeoutError, match=r"toy still goes on after 0.1 s: 0%; stop\('toy'\) ends it"):
        view.wait(timeout_s=0.1)
    other._on_message(None, {"kind": "stop", "name": "toy"})
    assert view.wait().status == "stopped"
    until(lambda: not view.is_following and not other.is_following)  # nothing goes on, nothing is watched


def test_the_view_is_told_of_progress_and_of_new_verdicts(command, runs_root, monkeypatch):
    monkeypatch.setattr(module, "EVERY_S", 0.02)
    command("import time; time.sleep(60)")
    view = Launcher()
    shown = view.widget()
    assert json.loads(shown.status) == {"states": {}, "said": {}}
    assert not view.is_following
    view.run("toy")
    told = json.loads(shown.status)["states"]["toy"]
    assert (told["status"], told["seeds"], told["share"]) == ("starting", 3, 0.0)
    job = {"parameters": {"scale": "tiny", "seeds": [0, 1, 2]}}
    run = finished(runs_root, job=job)
    runs.write_json(run.folder / "cell.json", {"cell": 3, "cells": 5})
    until(lambda: json.loads(shown.status)["states"]["toy"]["cell"] == 3)
    assert shown.data["systems"][0]["counts"] == {}
    launches._CHILDREN[0].terminate()
    until(lambda: json.loads(shown.status)["states"]["toy"]["status"] == "done")
    assert shown.data["systems"][0]["counts"] == {"shown in small": 1, "not shown": 1, "needs full scale": 1}
    assert json.loads(shown.status)["states"]["toy"]["page"] == "toy/tiny-1/page.html"


def test_a_failure_is_told_with_its_reason_by_a_new_launcher_too(command, runs_root):
    command(f"print({'toy failed: ' + HOSTILE!r})")
    view = Launcher()
    view.run("toy")
    assert view.wait().reason == HOSTILE
    told = json.loads(Launcher().widget().status)["states"]["toy"]
    assert (told["status"], told["reason"], told["page"]) == ("failed", HOSTILE, "")


def test_what_was_finished_long_ago_is_told_by_its_verdicts_alone(command, runs_root):
    command("")
    run = finished(runs_root, job={"parameters": {"scale": "tiny", "seeds": [0, 1, 2]}})
    asked = {"system": "toy", "scale": "tiny", "seeds": 3, "started": time.time() - 1, "pid": 1}
    runs.write_json(runs_root / "toy" / ".launch.json", asked)
    (runs_root / "toy" / ".launch.txt").write_text("1 done\n")
    assert launches.state("toy", runs_root).folder == run.folder
    assert json.loads(Launcher().widget().status)["states"] == {}


def test_wrong_input_is_said_in_the_view_and_raised_in_a_script(command, runs_root):
    command("")
    view = Launcher()
    shown = view.widget()
    view._on_message(shown, {"kind": "run", "name": "toy", "scale": "huge", "seeds": 1})
    assert json.loads(shown.status)["said"] == {"toy": "scale must be one of smoke, tiny, full; got 'huge'"}
    view._on_message(shown, {"kind": "run", "name": "toy", "scale": "tiny", "seeds": None})
    assert "got None" in json.loads(shown.status)["said"]["toy"]
    for call in (view.run, view.last, view.wait, view.stop, lambda name: Launcher(chosen=name)):
        with pytest.raises(ValueError, match="unknown system 'spon'; known: toy, lost"):
            call("spon")
    with pytest.raises(ValueError, match="nothing was started here; name a system: toy, lost"):
        view.wait()


def test_a_full_disk_is_said_and_nothing_is_started(command, runs_root, monkeypatch):
    def full(path, value):
        raise OSError(28, f"could not write {path}: No space left on device")

    command("")
    view = Launcher()
    shown = view.widget()
    monkeypatch.setattr(runs, "write_json", full)
    view._on_message(shown, {"kind": "run", "name": "toy", "scale": "tiny", "seeds": 1})
    assert "No space left on device" in json.loads(shown.status)["said"]["toy"]
    assert launches._CHILDREN == []


# ------------------------------------------------------------------------------------------------------------- faces
def test_in_batch_nothing_is_started_and_only_the_static_face_is_shown(command, runs_root, monkeypatch):
    command("")
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    view = Launcher()
    assert view.run("toy").status == "none"
    assert not runs_root.exists()
    assert set(view._repr_mimebundle_()) == {scripted.VIEW_MIME, "text/plain"}


def test_bundle_carries_both_faces(registry, runs_root):
    bundle = Launcher()._repr_mimebundle_()
    assert set(bundle) == {"application/vnd.jupyter.widget-view+json", scripted.VIEW_MIME, "text/plain"}
    assert bundle["text/plain"] == "Launcher of 2 systems and studies"
    state = bundle[scripted.VIEW_MIME]["state"]
    assert state["chosen"] == "toy"
    assert "root" not in state["data"]


@pytest.mark.parametrize(
    ("inside", "served"),
    [("runs", "runs"), ("deep/runs", "deep/runs"), (".hidden/runs", None), ("../runs", None), ("", "")],
)
def test_where_the_kernels_own_server_shows_the_runs(registry, tmp_path, monkeypatch, inside, served):
    top = tmp_path / "top"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("JPY_PARENT_PID", "123")
    (tmp_path / "jpserver-123.json").write_text(json.dumps({"root_dir": str(top), "base_url": "/lab7/"}))
    data = Launcher(top / inside).data(live=True)
    assert (data["served"]["runs"], data["base"]) == (served, "/lab7/")
    assert data["root"] == os.path.abspath(top / inside)
    monkeypatch.setenv("JPY_PARENT_PID", "124")
    assert Launcher(top / inside).data(live=True)["served"] == {"runs": None, "checkout": None}
