"""Notebooks of confidence systems with other inputs than their worlds: a server's model, released results."""

import json
import os
import re
from io import StringIO

import nbformat
import pytest
from in_process import execute
from loopback import Server
from rich.console import Console

from workbench import methods, runs
from workbench.batch import reproduce
from workbench.share import pages

pytestmark = pytest.mark.slow


def verdicts(folder):
    return {claim["id"]: claim["verdict"] for claim in runs.read_json(folder / "claims.json")}


def in_a_kernel(tmp_path, name, **given):
    screen = Console(file=StringIO(), width=160)
    (job,) = reproduce.reproduce([name], workers=1, root=tmp_path / "runs", console=screen, **given)
    assert job.status == "done", screen.file.getvalue()
    return verdicts(job.run.folder)


@pytest.fixture
def in_process(tmp_path, monkeypatch):
    """Every cell in this process, on one core, and the page."""
    monkeypatch.setenv("WORKBENCH_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("WORKBENCH_BATCH", "1")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})

    def run(name, **given):
        folder = tmp_path / "run"
        source = runs.PACKAGE.parent / methods.REGISTRY[name].notebook
        node, names = execute(source, seeds=[0], output=str(folder), **given)
        assert names["experiment"].run.is_done
        nbformat.write(node, folder / "notebook.ipynb")
        assert pages.render(folder / "notebook.ipynb", folder / "page.html").stat().st_size > 10_000
        return verdicts(folder)

    return run


def test_relative_confidence_asks_a_server(tmp_path, in_process):
    def say(prompt, given):
        numbers = [int(number) for number in re.findall(r"item (\d+)\?", prompt)]
        if len(numbers) == 2:
            return f"More confident: {1 if numbers[0] < numbers[1] else 2}"
        return f"Answer: {'A' if numbers[0] < 6 else 'B'}\nConfidence: 0.9"

    rows = [
        {"qid": f"q{i}", "question": f"Which colour has item {i}?", "choices": ["red", "blue"], "gold": 0}
        for i in range(12)
    ]
    quiz = tmp_path / "quiz.jsonl"
    quiz.write_text("".join(json.dumps(row) + "\n" for row in rows))
    server = Server(say=say)
    try:
        found = in_process("relative_confidence", scale="smoke", model=f"{server.address}#m", dataset=str(quiz))
    finally:
        server.shutdown()
        server.server_close()
    assert set(found.values()) == {"smoke run, no verdict", "needs full scale"}
    assert server.seen


@pytest.mark.parametrize(
    ("name", "file", "claims"),
    [
        ("hallucinated_references", "real_hallucinated_references.json", {"C1", "C2", "C3", "C4", "C4b", "C5", "C6"}),
        ("time_travel", "real_time_travel.json", {"C1", "C2", "C3", "C4", "C5"}),
    ],
)
def test_released_results_bear_out_the_claims(in_process, golden_path, name, file, claims):
    found = in_process(name, scale="tiny", dataset=str(golden_path(file)))
    assert {claim for claim, verdict in found.items() if verdict == "follows from the published data"} == claims


def test_the_papers_tables_stand_beside_the_world(tmp_path, golden_path):
    overrides = {"published": str(golden_path("published_relative_confidence.json")), "facts": False, "grid": False}
    found = in_a_kernel(tmp_path, "relative_confidence", scale="smoke", overrides=overrides)
    assert [verdict for claim, verdict in found.items() if "tables" in claim] == ["follows from the published data"] * 7
