"""Which answers can I trust? Questions and a model in; a ranking, its tables and one page out.

Everything is kept when it comes: a killed call goes on where it stopped and asks nothing twice.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import metrics, ranking, runs
from workbench.feedback import chat
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.relative_confidence.method import Config
from workbench.methods.confidence.relative_confidence.opponents import ask_matchups, count_unread, to_matches
from workbench.methods.confidence.relative_confidence.prompts import ask_judgments
from workbench.share import pages
from workbench.tasks.questions import Question, QuestionFile, answer_table, ask_answers, by_data_set, neutral
from workbench.widgets.confidence_ranking import ConfidenceRanking

How = Literal["random_opponents", "both_orders", "active"]
CALLS = 6  # a question without a budget: its answer and five judgments, the paper's smallest number of opponents
LABELS = {"bt": "Bradley-Terry strength", "direct": "stated number"}


@dataclass(frozen=True)
class Report:
    """The ranking of one data set.

    Attributes:
        view: answers, scores, judgments.
        unanswered: `qid` of the questions whose answer could not be read; they are in no ranking.
        n_judgments, n_unparsed: judgments, and those among them that could not be read.
    """

    name: str
    folder: Path
    view: ConfidenceRanking
    unanswered: list[str]
    n_judgments: int
    n_unparsed: int

    def summary(self) -> str:
        """One line: what was ranked, and what the order buys where answers are known to be right or wrong."""
        table: Any = self.view.frame()
        known: Any = table[table["correct"].notna()]
        text = f"{self.name}: {len(table)} answers ranked by {self.n_judgments} judgments"
        text += f", {self.n_unparsed} of them unread" if self.n_unparsed else ""
        text += f", {len(self.unanswered)} questions without a readable answer" if self.unanswered else ""
        if len(known) == 0:
            return text
        scores, right = known["score"].to_numpy(), known["correct"].to_numpy()
        half = metrics.accuracy_at_coverage(scores, right, 0.5)
        return f"{text}; right: {right.mean():.0%} of all, {half:.0%} of the half that is trusted most"


def write(
    questions: str,
    *,
    model: str,
    budget: int = 0,
    output: Path | None = None,
    how: How = "random_opponents",
    seed: int = 0,
    device: str = "auto",
    cot: bool = False,
    max_tokens: int = 64,
    max_unparsed: float = 0.05,
) -> list[Report]:
    """Ranks a model's answers to the questions of a file, each data set by itself, and writes what came out.

    Args:
        questions: JSONL, JSONL.gz or Parquet file, folder or hub id with `qid`, `question` and, where known, `choices`,
            `gold`, `dataset`.
        model: folder, hub id, or a server's address with its model.
        budget: calls to the model, answers included; 0 takes six a question.
        output: folder; None takes `confidence-<name of the file>` here.
        how: "random_opponents", "both_orders" or "active".
        seed: of opponents and sides.
        cot: let the model explain its judgments first (needs more `max_tokens`).
        max_unparsed: share of unread judgments above which nothing is ranked.

    Returns:
        A report for each data set. The folder gets `page.html`, `transcript.jsonl` and, for each data set,
        `ranking.csv`, `ranking.parquet` and `matchups.parquet`.

    Raises:
        FileNotFoundError, ValueError: bad questions or model; a budget too small; too many unread replies.
        RuntimeError: a server gave up; what it sent is kept.
    """
    task = QuestionFile.load(questions, model=model, device=device, n_questions=10**9)
    groups = by_data_set(task.rows)
    calls = budget or CALLS * len(task.rows)
    n = len(task.rows)
    if calls < 2 * n:
        needed = f"every question needs an answer and at least one judgment, {2 * n} calls"
        small = f"a budget of {calls} calls is too small for {n} questions"
        raise ValueError(f"{small}: {needed}; give more or ask fewer questions")
    folder = output or Path(f"confidence-{Path(questions).name.split('.')[0]}")
    options: dict[str, Any] = {"cot": cot, "max_tokens": max_tokens, "max_unparsed": max_unparsed}
    config = Config(schedule=how, opponents=max(1, (calls - n) // n), **options)
    key = {"questions": runs.fingerprint(questions), "model": model, "config": config, "seed": seed}
    run = runs.Run(folder)
    subject = task.subject("questions", seed)  # a model that cannot be loaded leaves no folder behind
    with run.locked():
        _refuse_another(folder, key)
        transcript, reports = Transcript(folder / "transcript.jsonl"), []
        for name, rows in groups.items():
            part = run.child(re.sub(r"[^A-Za-z0-9_-]+", "_", name) or "questions")
            reports.append(_rank(name, rows, subject, transcript, config, seed, part))
        _write_page(reports, subject, transcript, folder)
    return reports


def _rank(
    name: str,
    questions: list[Question],
    model: chat.ChatModel,
    transcript: Transcript,
    config: Config,
    seed: int,
    run: runs.Run,
) -> Report:
    ask = partial(transcript.ask, model)
    players, unanswered = ask_answers(questions, ask, max_tokens=config.max_tokens, on_missing="drop")
    n, qids = len(players), [player["qid"] for player in players]
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    options: dict[str, Any] = {"cot": config.cot, "max_tokens": config.max_tokens, "seed": seed}
    judge = partial(ask_judgments, players, model=model, ask=ask, **options)
    opponents = min(max(1, config.opponents // 2) if config.schedule == "both_orders" else config.opponents, n - 1)
    judged = run.table("matchups", lambda: ask_matchups(n, opponents, config.schedule, judge, rng, l2=config.l2))
    unread = count_unread(judged, model.name, config.max_unparsed, run.folder)
    rated = ranking.bradley_terry(to_matches(judged, qids), n, l2=config.l2)
    scores = {"bt": rated.scores}
    stated = np.array([player["confidence"] for player in players])
    if np.isfinite(stated).any():
        scores["direct"] = neutral(stated)
    sure = {"bt": (rated.lower, rated.upper)}
    view = ConfidenceRanking(answer_table(players), scores, intervals=sure, matchups=judged, labels=LABELS)
    for ending in ("csv", "parquet"):
        view.export(run.folder / f"ranking.{ending}")
    return Report(name, run.folder, view, unanswered, len(judged), unread)


def _refuse_another(folder: Path, key: Any) -> None:
    """A folder belongs to one set of questions, model and settings, or old and new judgments would mix."""
    path, now = folder / "asked.json", runs.plain(key)
    if path.is_file() and (before := runs.read_json(path)) != now:
        differs = ", ".join(sorted(name for name in now if before.get(name) != now[name]))
        remedy = "name another folder with --output or delete it"
        raise ValueError(f"{folder} holds a ranking with another {differs}; {remedy}")
    runs.write_json(path, now)


def _write_page(reports: list[Report], model: chat.ChatModel, transcript: Transcript, folder: Path) -> None:
    import nbformat
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    prompt, reply = transcript.usage
    facts = f"{len(transcript)} calls" + (f", {prompt:,} tokens of prompts and {reply:,} of replies" if prompt else "")
    if prompt and (cost := getattr(model, "cost", lambda usage: 0.0)((prompt, reply))):
        facts += f", {cost:.4f} dollars"
    cells: list[Any] = [new_markdown_cell("# Which answers can be trusted?"), _text(f"{model.name}: {facts}")]
    for report in reports:
        bundle = report.view._repr_mimebundle_()
        cells += [_text(report.summary()), new_code_cell("", outputs=[new_output("display_data", data=bundle)])]
        cells[-1].source = "ranking"
    notebook = folder / "notebook.ipynb"
    nbformat.write(new_notebook(cells=cells), notebook)
    pages.render(notebook, folder / "page.html", title="Which answers can be trusted?")
    notebook.unlink()


def _text(text: str) -> Any:
    """Words that hold names of models and data sets: an output, which the page escapes."""
    from nbformat.v4 import new_code_cell, new_output

    return new_code_cell("summary", outputs=[new_output("stream", name="stdout", text=text)])


def rows_to_show(report: Report, most: int = 8) -> Iterator[tuple[str, ...]]:
    """Rank, strength with interval, right or wrong, answer, question: the first and the last answers of a ranking."""
    table: Any = report.view.frame()
    for place, row in enumerate(table.to_dict("records")):
        if len(table) <= 2 * most or not most <= place < len(table) - most:
            truth = "" if pd.isna(row["correct"]) else "right" if row["correct"] else "wrong"
            strength = f"{row['score']:+.2f} [{row['lower']:+.2f}, {row['upper']:+.2f}]"
            answer, question = (" ".join(str(row[name]).split()) for name in ("answer", "question"))
            yield str(row["rank"]), strength, truth, answer[:40], question[:70]
        elif place == most:
            yield ("...",) * 5
