"""`workbench confidence`: from questions and a model to a ranking, its files and its page; killed and asked again."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from loopback import Server

from workbench import cli
from workbench.batch import confidence_report
from workbench.feedback.transcript import Transcript

KEY = "sk-secret-0123456789"
N = 14


def say(prompt, given):
    """A model that answers the first half of the questions rightly, and is the surer the smaller the number."""
    numbers = [int(number) for number in re.findall(r"item (\d+)\?", prompt)]
    if len(numbers) == 2:
        return f"More confident: {1 if numbers[0] < numbers[1] else 2}"
    return f"Answer: {'A' if numbers[0] < N // 2 else 'B'}\nConfidence: 0.9"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server = Server(say=say)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "quiz.jsonl"
    rows = [
        {"qid": f"q{i}", "question": f"<b>Which</b> colour has item {i}?", "choices": ["red", "blue"], "gold": 0}
        for i in range(N)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_ranking_page_and_table(tmp_path, server, questions, capsys):
    out = tmp_path / "out"
    arguments = ["confidence", str(questions), "--model", f"{server.address}?price=1,10#m"]
    arguments += ["--output", str(out), "--budget", str(14 * N)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    line = f"quiz: {N} answers ranked by {13 * N} judgments; right: 50% of all, 100% of the half that is trusted most"
    assert line in " ".join(shown.split())
    assert "<b>Which</b> colour has item 0?" in shown
    table = pd.read_csv(out / "quiz" / "ranking.csv")
    assert table["qid"].tolist() == [f"q{i}" for i in range(N)]
    assert (table["lower"] < table["score"]).all()
    assert table["correct"].tolist() == [1] * 7 + [0] * 7
    assert len(pd.read_parquet(out / "quiz" / "matchups.parquet")) == 13 * N
    page = (out / "page.html").read_text()
    assert "<b>Which" not in page.replace("\\u003cb>", "")  # model text never becomes markup
    assert "dollars" in page
    assert KEY not in "".join(path.read_text(errors="replace") for path in out.rglob("*") if path.is_file()) + shown
    before = len(server.seen)
    assert cli.main(arguments) == 0  # again: nothing is asked
    assert len(server.seen) == before <= 14 * N  # a pair that is drawn twice on the same sides is asked once


@pytest.mark.parametrize(("how", "judgments"), [("both-orders", 2 * 2 * N), ("active", 5 * N)])
def test_other_ways_to_choose_opponents(tmp_path, server, questions, how, judgments, capsys):
    out = tmp_path / "out"
    words = ["confidence", str(questions), "--model", f"{server.address}#m", "--opponents", how]
    assert cli.main([*words, "--output", str(out)]) == 0
    assert f"ranked by {judgments} judgments" in " ".join(capsys.readouterr().out.split())
    assert pd.read_parquet(out / "quiz" / "ranking.parquet")["qid"].tolist()[0] == "q0"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--budget", "20"], "a budget of 20 calls is too small for 14 questions: .* 28 calls"),
        (["--opponents", "all"], "--opponents must be one of random, both-orders, active; got 'all'"),
        (["--model", "http://127.0.0.1:9/v1"], "an endpoint is written as"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path, server, questions, extra, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["confidence", str(questions), "--model", f"{server.address}#m", *extra]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not server.seen
    assert not (tmp_path / "confidence-quiz").exists()


def test_a_folder_belongs_to_one_question_file_and_model(tmp_path, server, questions):
    confidence_report.write(str(questions), model=f"{server.address}#m", output=tmp_path / "out")
    said = "holds a ranking with another model; name another folder with --output or delete it"
    with pytest.raises(ValueError, match=said):
        confidence_report.write(str(questions), model=f"{server.address}#other", output=tmp_path / "out")


def test_unread_judgments_are_counted_and_refused(tmp_path, server, questions):
    server.say = lambda prompt, given: say(prompt, given) if prompt.count("item") == 1 else "hard to say"
    said = r"70 of 70 judgments of m at .* could not be read, more than max_unparsed = 0\.05"
    with pytest.raises(ValueError, match=said):
        confidence_report.write(str(questions), model=f"{server.address}#m", output=tmp_path / "out")
    (report,) = confidence_report.write(
        str(questions), model=f"{server.address}#m", output=tmp_path / "again", max_unparsed=1.0
    )
    assert report.n_unparsed == 70
    assert "70 of them unread" in report.summary()


def test_questions_without_an_answer_are_named_and_left_out(tmp_path, server, questions):
    server.say = lambda prompt, given: (
        "no idea" if "item 3?" in prompt and prompt.count("item") == 1 else say(prompt, given)
    )
    (report,) = confidence_report.write(str(questions), model=f"{server.address}#m", output=tmp_path / "out")
    assert report.unanswered == ["q3"]
    assert len(report.view.frame()) == N - 1
    assert "1 questions without a readable answer" in report.summary()


@pytest.mark.slow
def test_sigkill_half_way_and_on_without_asking_twice(tmp_path, server, questions):
    server.delay, out = 0.02, tmp_path / "out"
    words = ["confidence", str(questions), "--model", f"{server.address}?concurrency=2#m", "--budget", str(10 * N)]
    command = [sys.executable, "-m", "workbench", *words, "--output", str(out)]
    log = out / "transcript.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not log.is_file() or log.read_bytes().count(b"\n") < 50:
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept, seen = len(Transcript(log)), len(server.seen)
    assert kept >= 50
    assert seen - kept <= 2  # what was in flight
    time.sleep(0.2)
    server.delay, asked = 0.0, {content for content, _ in server.seen[:kept]}
    assert subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0
    again = [content for content, _ in server.seen[seen:]]
    assert not asked & set(again[2:])
    assert len(set(again)) == len(again)
    assert cli.main([*words, "--output", str(tmp_path / "whole")]) == 0
    assert (out / "quiz" / "ranking.csv").read_bytes() == (tmp_path / "whole" / "quiz" / "ranking.csv").read_bytes()
