"""The monitor's faces for scripts, growing files, and bad input. The view itself is driven in tests/browser."""

import json
import math
import time

import numpy as np
import pandas as pd
import pytest

from workbench.figures import Note
from workbench.runs.files import atomic, write_json
from workbench.runs.run import Run
from workbench.training.probes import SAMPLES, SCORES
from workbench.widgets import scripted
from workbench.widgets.training_monitor import TrainingMonitor
from workbench.widgets.training_monitor import monitor as training_monitor
from workbench.widgets.training_monitor.curves import mean_line
from workbench.widgets.training_monitor.diagnosis import HARM
from workbench.widgets.training_monitor.metric_files import Tail, place_of, thinned


def metrics(folder, n=5, **columns):
    run = Run(folder)
    for k in range(n):
        run.log({"step": k, "round": 0, "loss": 1.0 / (k + 1), **{name: values[k] for name, values in columns.items()}})
    return run


def probe(folder, fall=-1.0, n=40):
    """Tables of a probe of steps 0 and 4, written as the probe writes them."""
    rng, path = np.random.default_rng(0), folder / "probe"
    path.mkdir(parents=True)
    names, texts = [f"p{i}" for i in range(n)], {"chosen": "a", "rejected": "b"}
    rows = pd.DataFrame({"row": range(n), "prompt": names, **texts, "chosen_length": 5, "rejected_length": 4})
    scores = [
        [s, i, -9 + (fall + rng.normal(0, 0.1) if s else 0), -9 + (3 * fall if s else 0)]
        for s in (0, 4)
        for i in range(n)
    ]
    samples = [[s, i, 0, f"text {s}", 5 + s, True, -6.0, 0.5 + 0.1 * rng.random()] for s in (0, 4) for i in range(6)]
    rows.to_parquet(path / "rows.parquet")
    pd.DataFrame(scores, columns=SCORES).to_parquet(path / "scores.parquet")
    pd.DataFrame(samples, columns=SAMPLES).to_parquet(path / "samples.parquet")
    write_json(
        path / "about.json",
        {"key": "x", "beta": 0.1, "prompts": [f"p{i}" for i in range(6)], "probe_s": 1.0, "training_s": 9.0}
        | {"seconds_at": {"0": 0.0, "4": 120.0}},
    )


@pytest.fixture
def folder(tmp_path):
    """Two arms, two seeds; the second round of one arm; one seed is shorter."""
    for seed in (0, 1):
        metrics(tmp_path / f"seed-{seed}" / "dpo" / "round-1", 5 - seed, margins=[0.0, 0.1 + seed, 0.2, 0.3, 0.4])
    metrics(tmp_path / "seed-0" / "spin" / "round-2", 3)
    metrics(tmp_path / "seed-0" / "spin" / "round-1", 4)
    return tmp_path


def test_frame_has_every_value_by_arm_seed_and_step(folder):
    table = TrainingMonitor(folder).frame()
    assert list(table.columns) == ["arm", "seed", "step", "series", "value"]
    own = table[(table["arm"] == "dpo") & (table["seed"] == 1) & (table["series"] == "margins")]
    assert own[["step", "value"]].to_numpy().tolist() == [[0, 0.0], [1, 1.1], [2, 0.2], [3, 0.3]]
    rounds = table[(table["arm"] == "spin") & (table["series"] == "loss")]
    assert rounds["step"].tolist() == [0, 1, 2, 3, 4, 5, 6]  # the second round behind the first
    assert rounds["value"].tolist()[4] == 1.0


def test_mean_over_seeds_goes_as_far_as_all_of_them(folder):
    data = TrainingMonitor(folder, series="margins").data()
    bold = [line for line in data["lines"] if line["bold"]]
    assert len(data["lines"]) == 3
    assert len(bold) == 1
    assert bold[0]["x"] == [0, 1, 2, 3]
    assert bold[0]["y"] == [0.0, 0.6, 0.2, 0.3]
    assert bold[0]["n"] == 2
    assert [arm["seeds"] for arm in data["arms"]] == [2, 1]
    assert data["borders"] == [4]


def test_figure_is_the_frame(folder):
    monitor = TrainingMonitor(folder)
    traces = monitor.figure("loss").data
    table = monitor.frame()
    own = table[(table["arm"] == "dpo") & (table["seed"] == 0) & (table["series"] == "loss")]
    assert any(np.array_equal(trace.x, own["step"]) and np.array_equal(trace.y, own["value"]) for trace in traces)
    assert sorted(trace.name for trace in traces if trace.showlegend) == ["dpo", "spin"]
    with pytest.raises(ValueError, match="unknown series 'kl'; these runs hold loss, margins"):
        monitor.figure("kl")


def test_the_bundle_is_plain_json_for_page_and_notebook(folder):
    probe(folder / "seed-0" / "dpo" / "round-1")
    bundle = TrainingMonitor(folder)._repr_mimebundle_()
    view = json.loads(json.dumps(bundle[scripted.VIEW_MIME], allow_nan=False))
    assert view["view"] == "monitor"
    data = view["state"]["data"]
    assert {"held_out_chosen", "sample_length"}.isdisjoint(p["title"] for p in data["panels"])
    assert [run["name"] for run in data["runs"] if run["samples"]] == ["dpo · seed 0"]
    assert data["runs"][0]["samples"]["prompts"][0]["at"][1][0][:3] == ["text 4", 9, True]
    assert bundle["text/plain"] == "TrainingMonitor of 3 trainings (dpo, spin), to step 6"
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert "probing took 10% of the time of training and probing together" in data["notes"]


def test_minutes_where_a_clock_is_known(folder):
    probe(folder / "seed-0" / "dpo" / "round-1")
    lines = TrainingMonitor(folder, series="loss").data()["lines"]
    times = {(line["arm"], line["seed"]): line["t"] for line in lines}
    assert times[0, 0] == [0.0, 0.5, 1.0, 1.5, 2.0]  # between the probe's looks
    assert times[0, 1] is None
    assert times[0, None] is None  # a mean needs all of them


def test_diagnosis_of_an_arm(folder):
    probe(folder / "seed-0" / "dpo" / "round-1")
    monitor = TrainingMonitor(folder)
    assert monitor.diagnosis().verdicts[0].verdict == "displacement, no sign of harm"
    assert monitor.diagnosis("dpo", 0).verdicts[0].question == HARM
    said = r"nothing to diagnose spin · seed 0 from: neither two steps of a probe nor held_out"
    with pytest.raises(ValueError, match=said):
        monitor.diagnosis("spin")
    said = "no training of arm 'sft', seed None; there are dpo · seed 0, dpo · seed 1, spin"
    with pytest.raises(ValueError, match=said):
        monitor.diagnosis("sft")


def test_finished_runs_without_a_probe_are_diagnosed_from_their_rewards(folder):
    rng = np.random.default_rng(0)
    numbers = {"chosen_rewards": rng.normal(-0.2, 0.05, 50), "rejected_rewards": rng.normal(-0.5, 0.05, 50)}
    rewards = pd.DataFrame({"prompt": [f"p{i}" for i in range(50)], "chosen": "a b", "rejected": "b", **numbers})
    rewards.to_parquet(folder / "seed-0" / "dpo" / "held_out_rewards.parquet")
    write_json(
        folder / "manifest.json", {"status": "done", "parameters": {"config": {"beta": 0.1, "loss_type": "sigmoid"}}}
    )
    found = TrainingMonitor(folder).diagnosis()
    assert found.table["difference"][0] == pytest.approx(rewards["chosen_rewards"].mean() / 0.1)
    write_json(
        folder / "manifest.json", {"status": "done", "parameters": {"config": {"beta": 0.1, "loss_type": "simpo"}}}
    )
    assert (
        TrainingMonitor(folder).diagnosis().verdicts[0].verdict
        == "cannot be told: these rewards are no changes since the start"
    )


def test_nan_is_a_gap_and_counted(tmp_path):
    metrics(tmp_path, 4, kl=[0.1, math.nan, math.inf, 0.4])
    data = TrainingMonitor(tmp_path, series="kl").data()
    assert data["lines"][0]["y"] == [0.1, None, None, 0.4]
    assert f"{tmp_path.name}: 2 logged values are not finite and drawn as gaps" in data["notes"]


def test_unequal_rows_text_and_torn_lines(tmp_path):
    """A column of some rows is NaN elsewhere; text and true or false are no series; torn lines are counted."""
    lines = [
        '{"step": 0, "loss": 1, "note": "x", "ok": true}',
        "[1]",
        '{"step": 1, "kl": 2}',
        "{torn",
        '{"step": 2, "loss": 3}',
        '{"step": 3, "lo',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    monitor = TrainingMonitor(tmp_path)
    table = monitor.frame().pivot(index="step", columns="series", values="value")
    assert list(table.columns) == ["kl", "loss"]
    assert table["loss"].tolist()[::2] == [1, 3]
    assert math.isnan(table["loss"][1])
    assert f"{tmp_path.name}: 2 broken lines of metrics.jsonl left out" in monitor.data()["notes"]


def test_long_lines_keep_their_spikes(tmp_path):
    y = np.sin(np.arange(20_000) / 3000)
    y[[7_000, 13_003]] = 50, -50
    y[5000] = np.nan
    kept = thinned(np.arange(20_000), y, 400)
    assert len(kept) <= 400
    assert {0, 5000, 7_000, 13_003, 19_999} <= set(kept)
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {k}, "loss": {v}}}\n' for k, v in enumerate(y.tolist()[:5000]))
    )
    data = TrainingMonitor(tmp_path).data()
    assert len(data["lines"][0]["x"]) <= 400
    assert "a line has at most 400 points: the lowest and highest of each stretch are kept" in data["notes"]


def test_many_runs_stay_small(tmp_path):
    text = "".join(json.dumps({"step": k, **{f"s{j}": k * 0.123456789 for j in range(10)}}) + "\n" for k in range(300))
    for seed in range(8):
        for arm in "abcd":
            (tmp_path / f"seed-{seed}" / arm).mkdir(parents=True)
            (tmp_path / f"seed-{seed}" / arm / "metrics.jsonl").write_text(text)
    data = TrainingMonitor(tmp_path).data()
    assert len(data["lines"]) == 10 * 4 * 9
    assert len(json.dumps(data)) < 2_000_000


def test_texts_are_cut_and_said(tmp_path, monkeypatch):
    metrics(tmp_path)
    probe(tmp_path)
    monkeypatch.setattr(training_monitor, "TEXT_LIMIT", 40)
    data = TrainingMonitor(tmp_path).data()
    assert any(
        note.startswith("texts beyond 40 characters are left out here; a script has all") for note in data["notes"]
    )
    assert len(data["runs"][0]["diagnosis"]["falls"]) < 10


def test_a_tail_reads_only_the_new_end(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1}\n{"st')
    tail = Tail(path)
    assert tail.read()
    assert [row["step"] for row in tail.rows] == [0, 1]
    place = tail._place
    with open(path, "a") as file:
        file.write('ep": 2}\n{"step": 3}')
    assert tail.read()
    assert [row["step"] for row in tail.rows] == [0, 1, 2, 3]  # the last one has no end yet but is whole
    assert tail._place > place
    assert not tail.read()
    with open(path, "a") as file:
        file.write("\n")
    tail.read()
    assert [row["step"] for row in tail.rows] == [0, 1, 2, 3]


def test_a_rewound_truncated_or_removed_file_is_read_anew(tmp_path):
    run = metrics(tmp_path, 5)
    tail = Tail(tmp_path / "metrics.jsonl")
    tail.read()
    run.rewind_metrics(2)
    run.log({"step": 2, "loss": 7.0})
    assert tail.read()
    assert [row["loss"] for row in tail.rows] == [1.0, 0.5, 7.0]
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 9.0}\n' * 9)  # longer than before, another beginning
    tail.read()
    assert [row["loss"] for row in tail.rows] == [9.0] * 9
    with atomic(tmp_path / "metrics.jsonl") as file:  # as long, and with the same end
        file.write(b'{"step": 0, "loss": 8.0}\n' + b'{"step": 0, "loss": 9.0}\n' * 8)
    assert tail.read()
    assert tail.rows[0]["loss"] == 8.0
    (tmp_path / "metrics.jsonl").unlink()
    assert tail.read()
    assert tail.rows == []


def wait_for(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_follow_brings_news_to_every_widget_and_stops_when_the_run_is_done(tmp_path):
    write_json(tmp_path / "manifest.json", {"status": "running"})
    monitor, second = TrainingMonitor(tmp_path), TrainingMonitor(tmp_path)
    shown, other = monitor.widget(), second.widget()
    assert shown.data["arms"] == []
    assert monitor.follow(0.02) is monitor
    second.follow(0.02)
    assert monitor.is_following
    run = metrics(tmp_path, 2)
    wait_for(lambda: shown.data["arms"] and other.data["arms"])
    assert shown.data["following"]
    metrics(tmp_path / "seed-1" / "late", 1)  # a file that was not there
    wait_for(lambda: len(shown.data["arms"]) == 2)
    run.log({"step": 2, "loss": 0.1})
    write_json(tmp_path / "manifest.json", {"status": "done"})
    wait_for(lambda: not monitor.is_following and not second.is_following)
    wait_for(lambda: not shown.data["following"])
    assert max(line["x"][-1] for line in shown.data["lines"]) == 2  # what was written last was not missed
    assert not monitor.follow(0.02).is_following  # nothing more will come


def test_follow_stops_when_asked_and_when_nothing_happens(tmp_path):
    run = metrics(tmp_path, 2)
    monitor = TrainingMonitor(tmp_path)
    monitor.follow(0.02)
    assert monitor.is_following
    monitor.stop()
    assert not monitor.is_following
    with run.locked():  # somebody works there, however slowly
        monitor.follow(0.02, idle_s=0.05)
        time.sleep(0.3)
        assert monitor.is_following
    wait_for(lambda: not monitor.is_following)
    with pytest.raises(ValueError, match="every_s and idle_s are seconds above 0; got 0 and 600"):
        monitor.follow(0)


def test_follow_in_a_batch_run_is_a_sentence(tmp_path, monkeypatch):
    metrics(tmp_path)
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    monitor = TrainingMonitor(tmp_path)
    assert isinstance(monitor.follow(), Note)
    assert not monitor.is_following


def test_several_sources_are_told_apart(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    metrics(other / "seed-0" / "dpo" / "round-1")
    names = {arm["name"] for arm in TrainingMonitor({"a": folder, "b": other}).data()["arms"]}
    assert names == {"a · dpo", "a · spin", "b · dpo"}
    colours = [arm["colour"] for arm in TrainingMonitor({"a": folder, "b": other}).data()["arms"]]
    assert len(set(colours)) == 3
    write_json(other / "manifest.json", {"system": "dpo", "scale": "tiny"})
    assert {arm["name"] for arm in TrainingMonitor(folder, Run(other)).data()["arms"]} >= {"dpo tiny · dpo"}


def test_places():
    from pathlib import Path

    root = Path("/x/dpo/tiny-1")
    assert place_of(root / "seed-3/dpo/round-2", root) == ("dpo", 3, 2)
    assert place_of(root / "seed-3/stages/sft", root) == ("stages/sft", 3, 0)
    assert place_of(root, root) == ("tiny-1", None, 0)
    assert place_of(root / "seed-3/dpo/round-2", root / "seed-3/dpo") == ("dpo", 3, 2)


def test_means_of_lines_that_do_not_meet():
    x = np.arange(3.0)
    found = mean_line([(x, np.array([1.0, np.nan, 3.0]), None), (x + 1, np.array([5.0, 7.0, 9.0]), None)])
    assert found["x"].tolist() == [1.0, 2.0]
    assert np.isnan(found["y"][0])
    assert found["y"][1] == 5.0


def test_no_metrics_yet(tmp_path):
    monitor = TrainingMonitor(tmp_path)
    assert repr(monitor).startswith("TrainingMonitor: no metrics yet in ")
    assert monitor.data()["lines"] == []
    for ask in (monitor.frame, monitor.figure, monitor.diagnosis):
        with pytest.raises(ValueError, match=r"no metrics.jsonl with rows below .*; a training writes it there"):
            ask()
    (tmp_path / "metrics.jsonl").touch()
    assert TrainingMonitor(tmp_path).data()["notes"] == ["1 metrics files are empty so far"]


def test_bad_input(folder, tmp_path):
    with pytest.raises(ValueError, match=r"no folder .*none; give a run folder, such as experiment.run.folder"):
        TrainingMonitor(tmp_path / "none")
    with pytest.raises(ValueError, match="no run folder given"):
        TrainingMonitor()
    with pytest.raises(ValueError, match="two sources are called 'a'"):
        TrainingMonitor({"a": folder}, {"a": folder})
    with pytest.raises(ValueError, match="unknown series 'kl'; these runs hold loss, margins"):
        TrainingMonitor(folder, series=["loss", "kl"])


def test_one_row_only(tmp_path):
    metrics(tmp_path, 1)
    data = TrainingMonitor(tmp_path).data()
    assert data["lines"][0]["x"] == [0.0]
