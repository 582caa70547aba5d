"""Endpoints: addresses, a server on loopback with planted faults, and the real server of transformers."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import pytest
from loopback import Server, completion

from workbench.feedback.chat import Reply, Request, user
from workbench.feedback.endpoint import Address, EndpointModel
from workbench.feedback.open_model import open_model
from workbench.feedback.transcript import Transcript

KEY = "sk-secret-0123456789"


# ---- addresses
def test_an_address_says_where_and_how_hard():
    assert Address.read("http://localhost:8000/v1#a/b") == Address("http://localhost:8000/v1", "a/b")
    full = Address.read("https://h/v1?concurrency=3&per_minute=90&price=0.15,0.6&retries=0&timeout=5#m")
    assert full == Address("https://h/v1", "m", 3, 90.0, (0.15, 0.6), 0, 5.0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("http://localhost/v1", "an endpoint is written as https://host/v1#model"),
        ("https://me:secret@h/v1#m", r"put the key into \$OPENAI_API_KEY"),
        ("http://h/v1?speed=3#m", "endpoint option speed='3' cannot be read; known: concurrency"),
        ("http://h/v1?concurrency=many#m", "endpoint option concurrency='many'"),
        ("http://h/v1?concurrency=0#m", "endpoint options must be positive"),
        ("http://h/v1?price=1#m", "price two numbers"),
    ],
)
def test_a_wrong_address_is_one_line(source, message):
    with pytest.raises(ValueError, match=message) as caught:
        open_model(source)
    assert "\n" not in str(caught.value)
    assert "secret@" not in str(caught.value)


# ---- a server whose faults are planted
@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    servers = []

    def start(options="", **faults):
        servers.append(Server(**faults))
        return servers[-1], EndpointModel(f"{servers[-1].address}{options}#m", seed=2)

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def requests(n, **options):
    return [Request(user(f"q{i}"), **options) for i in range(n)]


def test_replies_stand_in_the_order_of_their_requests_and_are_counted(serve, tmp_path):
    server, model = serve("?concurrency=4&price=1,10", delay=0.02)
    log = Transcript(tmp_path / "t.jsonl")
    assert [reply.text for reply in log.ask(model, requests(12))] == [f"Q{i}" for i in range(12)]
    assert 2 <= server.most_at_once <= 4
    assert (model.calls, model.retries, log.calls, log.usage) == (12, 0, 12, (84, 24))
    assert model.cost(log.usage) == pytest.approx((84 + 240) / 1e6)
    assert Transcript(tmp_path / "t.jsonl").usage == (84, 24)
    assert server.keys == {f"Bearer {KEY}"}
    assert KEY not in (tmp_path / "t.jsonl").read_text() + model.name + repr(model.address)


def test_samples_carry_their_seed(serve):
    _, model = serve()
    texts = [reply.text for reply in model.ask([*requests(1), *[Request(user("q"), 0.7, 8, k) for k in range(2)]])]
    assert texts == ["Q0", "Q 2000006", "Q 2000007"]


def test_a_busy_server_is_asked_again(serve):
    server, model = serve("?concurrency=1&retries=3", faults=[429, 500, 503])
    assert model.ask(requests(2)) == [Reply("Q0", None, (7, 2)), Reply("Q1", None, (7, 2))]
    assert (model.calls, model.retries, len(server.seen)) == (2, 3, 2)


@pytest.mark.parametrize(
    ("options", "fault", "message"),
    [
        ("?retries=0", 401, "m at http://127.0.0.1:.* refused the key .401.: set .OPENAI_API_KEY"),
        ("?retries=0", 404, "no such model or path"),
        ("?retries=0", 400, "status 400: .*no, Bearer .key. asked too much"),
        ("?retries=1", 500, "status 500: .*run it again to go on"),
    ],
)
def test_a_refusal_is_one_line_without_the_key(serve, options, fault, message):
    _, model = serve(options, faults=[fault] * 2)
    with pytest.raises(RuntimeError, match=message) as caught:
        model.ask(requests(1))
    assert "\n" not in str(caught.value)
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__  # the client's own error quotes headers


def test_a_server_that_dies_half_way_is_not_asked_twice(serve, tmp_path):
    """What it sent before is kept; a new server is asked for the rest alone."""
    server, model = serve("?concurrency=3&retries=0", die_after=10)
    log = Transcript(tmp_path / "t.jsonl")
    with pytest.raises(RuntimeError, match=r"no connection, 1 times; is the server running\?"):
        log.ask(model, requests(30))
    assert len(log) == log.calls == len(server.seen) == 10
    server.die_after = None  # the same address, alive again
    again = Transcript(tmp_path / "t.jsonl")
    assert [reply.text for reply in again.ask(model, requests(30))] == [f"Q{i}" for i in range(30)]
    asked = [content for content, _ in server.seen]
    assert sorted(asked) == sorted(f"q{i}" for i in range(30))
    assert again.calls == 20


def test_a_rate_limit_spaces_the_starts(serve):
    server, model = serve("?per_minute=1200&concurrency=8")
    model.ask(requests(5))
    starts = sorted(at for _, at in server.seen)
    assert starts[-1] - starts[0] > 4 * 0.05 * 0.8


def test_a_completion_without_text_is_empty_and_one_without_choices_an_error(serve):
    _, model = serve("?retries=0", body=completion(None))
    assert model.ask(requests(1))[0].text == ""
    _, model = serve("?retries=0", body={**completion(""), "choices": []})
    with pytest.raises(RuntimeError, match="a completion without choices"):
        model.ask(requests(1))


@pytest.mark.parametrize(
    ("body", "finish"),
    [
        (completion("Answer: B"), "stop"),
        (completion("Answer", "length"), "length"),
        (completion(None), "empty"),
        (completion("  "), "empty"),
        (completion(None, "content_filter"), "refused"),
        (completion(None, refusal="I won't"), "refused"),
        (completion(None, "tool_calls"), "empty"),
    ],
)
def test_why_a_reply_ended_is_kept(serve, body, finish):
    _, model = serve(body=body)
    (reply,) = model.ask([Request(user("a"))])
    assert reply.finish == finish


@pytest.mark.parametrize(
    ("refuses", "sent", "said"),
    [
        (
            ["max_tokens"],
            {"max_completion_tokens": 256, "temperature": 0.0},
            "max_completion_tokens is sent in its place",
        ),
        (["temperature"], {"max_tokens": 256}, "its own default holds"),
        (["max_tokens", "temperature"], {"max_completion_tokens": 256}, "refuses temperature"),
    ],
)
def test_what_a_server_refuses_to_be_told_is_left_out_once_and_said(serve, caplog, refuses, sent, said):
    server, model = serve(refuses=refuses)
    replies = model.ask([Request(user(text)) for text in "abc"])
    assert [reply.text for reply in replies] == ["A", "B", "C"]
    for given in server.given:
        assert {name: value for name, value in given.items() if name not in ("messages", "model")} == sent
    assert said in caplog.text
    assert sum("refuses" in record.message for record in caplog.records) == len(refuses)


def test_a_sampled_request_is_not_sent_without_its_temperature(serve):
    """It would come back from another distribution, and nobody would see it."""
    _, model = serve(refuses=["temperature"])
    with pytest.raises(RuntimeError, match="Unsupported parameter: 'temperature'"):
        model.ask([Request(user("a"), 0.7)])


def test_a_server_without_seeds_is_asked_without(serve, caplog):
    server, model = serve(refuses=["seed"])
    assert model.ask([Request(user("a"), 0.7, sample=3)])[0].text == "A"
    assert "refuses seed: its samples cannot be repeated" in caplog.text
    assert "seed" not in server.given[0]


def test_an_empty_reply_is_asked_for_again_once_the_server_is_mended(serve, tmp_path):
    server, model = serve(body=completion(None))
    asked = [Request(user("a")), Request(user("b"))]
    log = Transcript(tmp_path / "log.jsonl")
    assert [reply.finish for reply in log.ask(model, asked)] == ["empty", "empty"]
    server.body = None
    again = Transcript(tmp_path / "log.jsonl")
    assert again.failed == 2
    assert [reply.text for reply in again.ask(model, asked)] == ["A", "B"]
    third = Transcript(tmp_path / "log.jsonl")
    assert [reply.text for reply in third.ask(model, asked)] == ["A", "B"]
    assert (third.calls, third.reused) == (0, 2)


def test_what_fits_is_what_the_server_says(serve):
    long = Request(user("x" * 300), max_tokens=10)
    assert serve(listed={"max_model_len": 111}.items())[1].fits(long)
    assert not serve(listed={"max_model_len": 109}.items())[1].fits(long)
    assert serve()[1].fits(long)  # it tells of no limit


# ---- the server of transformers
@pytest.mark.slow
def test_the_server_of_transformers_killed_half_way(tmp_path, monkeypatch):
    """A real model behind `transformers serve`: killed by SIGKILL while it answers, started again, nothing asked
    twice."""
    from workbench.models import bpe_tokenizer, new_llama

    tokenizer = bpe_tokenizer(["which of two colours is it? blue or red"] * 50, vocab_size=300)
    model = new_llama(tokenizer, width=16, layers=1, heads=2, max_length=256, seed=0)
    model.save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = f"http://127.0.0.1:{port}/v1?concurrency=1&retries=0#{tmp_path / 'tiny'}"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def start():
        command = [
            sys.executable,
            "-m",
            "transformers.cli.transformers",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with open(tmp_path / "server.log", "ab") as log:
            server = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        for _ in range(300):
            if server.poll() is not None:
                raise RuntimeError((tmp_path / "server.log").read_text()[-2000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            except OSError:
                time.sleep(0.2)
            else:
                return server
        raise RuntimeError("the server did not start")

    asked, log = requests(8, max_tokens=8), Transcript(tmp_path / "t.jsonl")
    server = start()

    def kill_when_half_is_done():
        while len(log) < 4:
            time.sleep(0.01)
        os.killpg(server.pid, signal.SIGKILL)

    try:
        threading.Thread(target=kill_when_half_is_done, daemon=True).start()
        with pytest.raises(RuntimeError, match="no connection"):
            log.ask(open_model(source), asked)
        before = (tmp_path / "t.jsonl").read_bytes()
        assert 4 <= len(log) < 8
        server = start()
        again = Transcript(tmp_path / "t.jsonl")
        replies = again.ask(open_model(source), asked)
        assert (again.calls, len(replies)) == (8 - len(log), 8)
        assert (tmp_path / "t.jsonl").read_bytes().startswith(before)
        assert all(reply.usage and reply.usage[1] > 0 for reply in replies)
    finally:
        os.killpg(server.pid, signal.SIGKILL)
