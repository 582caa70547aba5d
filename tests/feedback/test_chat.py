"""Requests, planted models, the transcript, and the readers of replies."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.feedback import replies as replies_
from workbench.feedback import transcript
from workbench.feedback.chat import Reply, Request, user
from workbench.feedback.simulated import Noise, SimulatedModel
from workbench.feedback.transcript import Transcript


# ---- reading replies
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: B\nConfidence: 0.85", 0.85),
        ("Confidence: 85%", 0.85),
        ("**Confidence:** 85 %", 0.85),
        ("Confidence: .9.", 0.9),
        ("confidence = 1", 1.0),
        ("Confidence: 0", 0.0),
        ("Confidence: 0.3\nOn reflection:\nConfidence: 0.6", 0.6),
        ("Confidence: 0.9 out of 1", 0.9),
        ("Confidence: 9/10", 0.9),
        ("Confidence: 95", 0.95),
        ("Confidence: about 0.7, as 3 of 4 sources agree", 0.7),
        ("Confidence: 0.85 (85%)", 0.85),
        ("Confidence: 1e-2", 0.01),
    ],
)
def test_confidence_is_the_last_number_of_the_last_line(text, value):
    assert replies_.confidence(text) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Confidence:",
        "Confidence: very sure",
        "Confidence: 8",
        "Confidence: 850",
        "Confidence: between 0.8 and 0.9",
        "Confidence: 0.8 to 0.9",
        "Confidence: 3 of 4 say 0.9",
        "Confidence: 150%",
        "Confidence: -0.2",
        "Answer: 0.5",
        "Answer: 1\nConfidence: high",
        "0.9",
        "Confidence: nan",
    ],
)
def test_a_confidence_outside_the_range_or_in_words_is_unread_never_zero(text):
    assert math.isnan(replies_.confidence(text))


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("Answer: B", 1),
        ("answer: (c)", 2),
        ("**Answer:** D. blue", 3),
        ("Answer: A\nno, wait\nAnswer: B", 1),
        ("Answer: E", None),
        ("Answer:", None),
        ("B", None),
        ("Answer: blue", None),
        ("Answer: A\nAnswer:", None),
        ("The answer is B", None),
    ],
)
def test_choice(text, index):
    assert replies_.choice(text, 4) == index


@pytest.mark.parametrize(
    ("text", "outcome", "status"),
    [
        ("More confident: 1", 1.0, "ok"),
        ("More confident: Question 2", 0.0, "ok"),
        ("**More confident:** 2.", 0.0, "ok"),
        ("At first, more confident: 1. But then\nMore confident: 2", 0.0, "ok"),
        ("More confident: both", 0.5, "tie"),
        ("More confident: neither", 0.5, "tie"),
        ("More confident: 1 or 2", 0.5, "tie"),
        ("More confident: 12", 0.5, "unparsed"),
        ("More confident: 1.5", 0.5, "unparsed"),
        ("More confident:", 0.5, "unparsed"),
        ("Question 1", 0.5, "unparsed"),
        ("", 0.5, "unparsed"),
    ],
)
def test_preference(text, outcome, status):
    assert replies_.preference(text, "More confident") == (outcome, status)


@given(st.text())
def test_readers_take_any_text(text):
    value = replies_.confidence("Confidence:" + text)
    assert math.isnan(value) or 0 <= value <= 1
    assert replies_.choice("Answer:" + text, 3) in (None, 0, 1, 2)
    outcome, status = replies_.preference("Winner:" + text, "Winner")
    assert (outcome == 0.5) == (status != "ok")


@given(st.text(), st.floats(0, 1).map(lambda x: round(x, 4)))
def test_the_last_line_wins_over_whatever_came_before(text, value):
    assert replies_.confidence(f"{text}\nConfidence: {value}") == value


# ---- planted models
def echo(prompt, temperature, noise):
    return f"{prompt} {noise.uniform():.12f}"


def requests(n, temperature=0.5):
    return [Request(user(f"q{i}"), temperature, 8, i % 3) for i in range(n)]


def test_a_reply_depends_on_its_request_and_the_seed_alone():
    asked = requests(20)
    replies = SimulatedModel("m", echo, seed=1, garbled=0.3).ask(asked)
    backwards = [SimulatedModel("m", echo, seed=1, garbled=0.3).ask([r])[0] for r in reversed(asked)]
    assert replies == backwards[::-1]
    assert replies != SimulatedModel("m", echo, seed=2, garbled=0.3).ask(asked)
    assert len({reply.text for reply in replies}) > 10


def test_the_planted_share_of_replies_is_garbled():
    plain = SimulatedModel("m", lambda prompt, t, noise: "More confident: 1", garbled=0.0).ask(requests(3000))
    assert {reply.text for reply in plain} == {"More confident: 1"}
    broken = SimulatedModel("m", lambda prompt, t, noise: "More confident: 1", garbled=0.1).ask(requests(3000))
    share = sum(reply.text != "More confident: 1" for reply in broken) / 3000
    assert share == pytest.approx(0.1, abs=0.02)
    assert {replies_.preference(reply.text, "More confident").status for reply in broken} == {"ok", "unparsed"}


def test_noise_has_the_distributions_it_names():
    from scipy import stats

    noise = [Noise(str(i)) for i in range(4000)]
    assert stats.kstest([n.uniform() for n in noise], "uniform").pvalue > 0.01
    assert stats.kstest([n.normal() for n in noise], "norm").pvalue > 0.01
    assert stats.kstest([n.logistic() for n in noise], "logistic").pvalue > 0.01
    one = Noise("x")
    assert len({one.uniform() for _ in range(100)}) == 100  # more than one hash block


def test_garbled_must_be_a_share():
    with pytest.raises(ValueError, match="share of replies between 0 and 1; got 2"):
        SimulatedModel("m", echo, garbled=2)


def test_the_sample_number_means_nothing_at_temperature_0():
    keys = {Request(user("q"), temperature, 8, sample).key("m") for temperature in (0.0, 0.7) for sample in (0, 1)}
    assert len(keys) == 3


# ---- transcript
class Counting:
    """A model that counts what reaches it and may die on the way."""

    def __init__(self, name="counting", die_after=10**9):
        self.name, self.asked, self.die_after = name, 0, die_after

    def ask(self, asked):
        self.asked += len(asked)
        if self.asked > self.die_after:
            raise KeyboardInterrupt
        return [Reply(f"{r.messages[0]['content']}/{r.sample}", [-0.5]) for r in asked]

    def fits(self, request):
        return True


def test_nothing_is_asked_twice(tmp_path):
    asked = requests(30)
    model, log = Counting(), Transcript(tmp_path / "t.jsonl")
    first = log.ask(model, [*asked, *asked], batch=7)
    assert (model.asked, log.calls, log.reused, len(log)) == (30, 30, 30, 30)
    again = Transcript(tmp_path / "t.jsonl")
    assert again.ask(model, asked) == first[:30] == first[30:]
    assert (model.asked, again.calls, again.reused) == (30, 0, 30)


def test_another_model_is_asked_anew(tmp_path):
    log = Transcript(tmp_path / "t.jsonl")
    log.ask(Counting("a"), requests(3))
    log.ask(other := Counting("b"), requests(3))
    assert other.asked == 3


def test_a_killed_run_goes_on_without_asking_again(tmp_path):
    asked, path = requests(50), tmp_path / "t.jsonl"
    with pytest.raises(KeyboardInterrupt):
        Transcript(path).ask(Counting(die_after=30), asked, batch=10)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"key": "torn", "te')  # what a kill in the middle of a line leaves
    model, log = Counting(), Transcript(path)
    replies = log.ask(model, asked)
    assert model.asked == 20
    assert replies == Counting().ask(asked)
    assert path.read_bytes().startswith(whole)
    assert len(Transcript(path)) == 50  # every line is whole again


def test_a_sigkill_leaves_a_log_that_can_be_read(tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from workbench.feedback.chat import Request, user
from workbench.feedback.simulated import SimulatedModel
from workbench.feedback.transcript import Transcript
model = SimulatedModel("m", lambda prompt, t, noise: prompt)
class Dies:
    name, left = model.name, 4
    def ask(self, asked):
        self.left -= 1
        if self.left == 0: os.kill(os.getpid(), signal.SIGKILL)
        return model.ask(asked)
Transcript(Path({str(tmp_path / "t.jsonl")!r})).ask(Dies(), [Request(user(f"q{{i}}")) for i in range(100)], batch=10)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    log = Transcript(tmp_path / "t.jsonl")
    replies = log.ask(
        SimulatedModel("m", lambda prompt, t, noise: prompt), [Request(user(f"q{i}")) for i in range(100)]
    )
    assert (log.calls, log.reused) == (70, 30)
    assert [reply.text for reply in replies] == [f"q{i}" for i in range(100)]


def test_a_broken_line_inside_is_named(tmp_path):
    path = tmp_path / "t.jsonl"
    Transcript(path).ask(Counting(), requests(3))
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    with pytest.raises(ValueError, match=r"t\.jsonl line 2 is not a logged reply; delete that line"):
        Transcript(path)


def test_a_full_disk_keeps_the_whole_lines(tmp_path, monkeypatch):
    path, asked = tmp_path / "t.jsonl", requests(20)
    log = Transcript(path)
    log.ask(Counting(), asked[:10])
    before = path.read_bytes()

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def truncate(self, size):
            return self.file.truncate(size)

        def write(self, data):
            self.file.write(data[:11])
            self.file.flush()
            raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(transcript, "open", lambda path, mode: Full(Path(path).open(mode)), raising=False)  # noqa: SIM115
        with pytest.raises(OSError, match="No space left on device; its whole lines were kept"):
            log.ask(Counting(), asked)
    assert path.read_bytes() == before
    assert log.ask(Counting(), asked) == Counting().ask(asked)
    assert len(Transcript(path)) == 20


def test_the_log_can_be_read_without_the_code(tmp_path):
    import json

    log = Transcript(tmp_path / "t.jsonl")
    log.ask(Counting(), requests(1))
    record = json.loads((tmp_path / "t.jsonl").read_text())
    assert record["request"] == [{"role": "user", "content": "q0"}]
    assert (record["text"], record["logps"]) == ("q0/0", [-0.5])
    short = Transcript(tmp_path / "s.jsonl", keep_requests=False)
    short.ask(Counting(), requests(1))
    assert "request" not in json.loads((tmp_path / "s.jsonl").read_text())


def test_a_hundred_thousand_calls_take_seconds(tmp_path):
    model = SimulatedModel("m", lambda prompt, t, noise: f"Answer: B\nConfidence: {noise.uniform():.2f}", garbled=0.02)
    asked = [Request(user(f"Question {i}. " + 400 * "x"), 0.7, 64, i % 15) for i in range(10_000)]
    start = time.perf_counter()
    Transcript(tmp_path / "t.jsonl", keep_requests=False).ask(model, asked)
    assert time.perf_counter() - start < 3.0  # about 0.2 s on an idle core, so 100,000 in 2 s
