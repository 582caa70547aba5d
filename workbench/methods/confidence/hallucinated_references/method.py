"""Hallucinated references: does a title that a model gave exist? Ask the model, in fresh sessions, who wrote it.

A model that knows a reference names the same authors each time; of one that it made up it tells a new story each time.
So the agreement of its own answers scores its claims, without a search engine:

    1. generate   titles for each topic, as a numbered list at temperature 1; label them where a bibliography is there
    2. indirect   "who wrote it?", j = 3 fresh sessions; a judge, or rules, compare every pair of author lists
    3. direct     "does it exist?", 10 sessions of each of three ways to ask                               sessions.py
    4. score      in [0, 1], 1 looks real                                                                    scores.py

        IQ = mean over pairs i < j of overlap(authors_i, authors_j),   DQ_k = share of "yes" to direct question k
        DQ = mean(DQ1, DQ2, DQ3),   IQ+DQ = mean(IQ, DQ)

    5. decide     a reference is taken for invented where its score <= tau

Needs topics, or references of the user's own, and a chat model (references.py).

Source: Agrawal, Suzgun, Mackey and Kalai 2024, "Do Language Models Know When They're Hallucinating References?", arXiv
2305.18248; rules of the official scripts and results of microsoft/hallucinated-references at bf3ef5f. The wording of
the prompts is ours.

What differs, and why:
- Refusals and replies that cannot be read are missing and counted; the official code makes them an overlap of 0, and
  any "yes" in a reply a yes, "I cannot say yes" included. `rules="official"` does the same.
- The place of a title in its list is stored with it; the official script takes the row number modulo 5.
- A judge of overlap sees the two lists in alphabetical order, so that overlap is symmetric.
- Intervals draw whole topics: five titles share a prompt. The paper's notebook uses DeLong's, which takes them as
  independent.
- Below the smallest list that a threshold can keep, the false discovery curve is the expectation over random subsets of
  the top group; the paper's notebook draws some.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import pandas as pd

from workbench import tasks
from workbench.config import Field, Presets, Source, listed, strict
from workbench.feedback.chat import ChatModel
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.hallucinated_references import sessions
from workbench.methods.confidence.hallucinated_references.book_titles import BookTitles, Embedded
from workbench.methods.confidence.hallucinated_references.names import Method, author_overlaps, read_names
from workbench.methods.confidence.hallucinated_references.recorded import RecordedScores, expert_agreement
from workbench.methods.confidence.hallucinated_references.references import (
    DIRECT,
    Part,
    ReferenceFile,
    read_titles,
    read_yes,
    references,
)
from workbench.methods.confidence.hallucinated_references.scores import combined, counts, measure, score
from workbench.methods.confidence.hallucinated_references.sessions import Logged, chat_of, in_quotes, in_sessions
from workbench.methods.confidence.hallucinated_references.world import Citations
from workbench.runs.run import Run


@strict
class Config(Presets):
    """Defaults are the paper's or its code's where they give one, else ours."""

    n_topics: int = Field(default=80, ge=2, le=160)  # of the embedded world; the paper has 200
    n_titles: int = Field(default=5, ge=1)  # asked for each topic; paper
    indirect: int = Field(default=3, ge=2)  # j: author samples of a title; paper
    direct_samples: int = Field(default=10, ge=1)  # of each direct question; paper
    direct: list[str] = listed(*DIRECT)  # which direct questions; paper
    overlaps: list[Method] = listed("judge", "jaccard", "containment")  # the first is IQ; paper: judge
    rules: Literal["strict", "official"] = "strict"  # what an unreadable reply is: missing, or 0 as in the paper's code
    temperature: float = Field(default=1.0, gt=0)  # of lists, authors and direct questions; paper. The judge is greedy
    system: str = "You are a helpful assistant"  # paper; "" for models without a system turn
    list_tokens: int = Field(default=400, ge=8)  # of a reply; the official limits were not in force
    author_tokens: int = Field(default=100, ge=4)
    judge_tokens: int = Field(default=50, ge=4)  # paper
    direct_tokens: int = Field(default=15, ge=1)  # paper
    deduplicate: bool = False  # leave later references with the same title out of the measurements
    bibliography: Source = ""  # file with a title a line, to label generated titles by exact match
    bootstrap: int = Field(default=1_000, ge=20)  # rounds for intervals over topics
    curve_bootstrap: int = Field(default=100, ge=20)  # rounds for the bands of curves; paper
    book_seeds: list[int] = listed(0, 1, 2)  # seeds that train a transformer too (book_titles.py)
    n_books: int = Field(default=300, ge=20)  # titles that it reads about
    n_invented: int = Field(default=200, ge=20)  # titles that it never read
    book_steps: int = Field(default=2_000, ge=1)  # optimiser steps

    def __post_init__(self):
        super().__post_init__()
        for name, values, known in (("direct", self.direct, DIRECT), ("overlaps", self.overlaps, self.overlaps)):
            if not values or len(set(values)) < len(values) or set(values) - set(known):
                raise ValueError(f"{name} needs at least one of {', '.join(known)}, each once; got {values}")


Task = Embedded | ReferenceFile | RecordedScores


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Task:
    """The embedded world; topics or references of a file with a model to ask; or recorded results (.json, no model)."""
    if dataset.endswith(".json") and not model:
        return RecordedScores.load(dataset)
    books = BookTitles(n_titles=config.n_books, n_invented=config.n_invented, steps=config.book_steps)
    world = partial(Embedded, Citations(config.n_topics, config.n_titles), books, tuple(config.book_seeds))
    given: Any = {"bibliography": config.bibliography, "direct": config.direct}
    real = partial(ReferenceFile.load, dataset, model=model, device=device, **given)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def run(task: Task, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Generates, asks, scores and measures, for every arm of the task.

    Returns:
        `{"arms": {arm: measurements}, "replies": n}`. The run folder gets the transcript and, for each arm, the tables
        `references`, `samples`, `agreements` and `scores`; a killed run goes on from them.
    """
    settings: Any = {name: getattr(config, name) for name in ("bootstrap", "curve_bootstrap", "deduplicate")}
    settings["seed"] = seed
    if isinstance(task, RecordedScores):
        tables = {
            arm: run.child(arm).table("scores", lambda *_, t=table: combined(t)) for arm, table in task.tables.items()
        }
        measured = {arm: measure(table, **settings) for arm, table in tables.items()}
        return {"arms": measured, "replies": 0, "experts": expert_agreement(task.experts)}
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)
    arms = {}
    for arm in task.arms(seed):
        part, folder = task.part(arm, seed), run.child(arm)
        model = Logged(part.model, transcript)
        refs = folder.table("references", lambda part=part, model=model: labelled(part, model, config))
        samples = folder.table("samples", lambda *_, p=part, m=model, r=refs: ask_all(p, m, r, config, seed))
        agreements = folder.table("agreements", lambda *_, p=part, m=model, s=samples: agree(p, m, s, config))
        scores = folder.table("scores", lambda *_, r=refs, s=samples, a=agreements: score(r, s, a))
        read = counts(refs, samples, agreements, topics=part.topics, n_titles=config.n_titles)
        arms[arm] = {**read, **measure(scores, **settings)}
    return {"arms": arms, "replies": len(transcript)}


def labelled(part: Part, model: ChatModel, config: Config) -> pd.DataFrame:
    """Step 1: the references, given or generated, each with its label where one is known."""
    refs = generate_claims(part.topics, model, config.n_titles, config) if part.references is None else part.references
    known = [part.labels.get(title, math.nan) for title in refs["gen_title"]]
    return refs.assign(grounded=refs["grounded"].fillna(pd.Series(known, dtype=float)))


def generate_claims(topics: Sequence[str], model: ChatModel, k: int, config: Config) -> pd.DataFrame:
    """Titles that the model writes for each topic, with their numbers in the list and the whole list."""
    prompts = [sessions.LIST.fill(k=str(k), topic=in_quotes(topic)) for topic in topics]
    asked = [(chat_of(config.system, prompt), 0) for prompt in prompts]
    replies = sessions.ask(model, asked, config.temperature, config.list_tokens, topics)
    rows = [
        {"ref_id": f"t{i}-{position}", "topic": topic, "gen_title": title, "list_text": reply.text}
        | {"position": position}
        for i, (topic, reply) in enumerate(zip(topics, replies, strict=True))
        for position, title in read_titles(reply.text)
    ]
    if not rows:
        raise ValueError(f"no title could be read in the lists for {len(topics)} topics; look at transcript.jsonl")
    return references(rows, model.name)


def ask_all(part: Part, model: ChatModel, refs: pd.DataFrame, config: Config, seed: int) -> pd.DataFrame:
    """Steps 2 and 3: who wrote it, and does it exist; every sample a session of its own."""
    asked = [kind for kind in config.direct if kind in part.direct]
    tables = [sample_direct(refs, model, kind, config.direct_samples, config) for kind in asked]
    return pd.concat([sample_indirect(refs, model, config.indirect, config), *tables], ignore_index=True).assign(
        seed=seed
    )


def sample_indirect(refs: pd.DataFrame, model: ChatModel, j: int, config: Config) -> pd.DataFrame:
    """`j` answers to "who wrote it?" a reference; `value` is the number of names, missing where there is none."""
    prompts = [chat_of(config.system, sessions.AUTHORS.fill(title=in_quotes(title))) for title in refs["gen_title"]]
    lengths: Any = {"temperature": config.temperature, "max_tokens": config.author_tokens}
    table = in_sessions(refs, model, "IQ", prompts, j, sessions.AUTHORS, **lengths)
    return table.assign(value=[len(names) if (names := read_names(text)) else math.nan for text in table["text"]])


def sample_direct(refs: pd.DataFrame, model: ChatModel, kind: str, m: int, config: Config) -> pd.DataFrame:
    """`m` answers to direct question `kind` for each reference; `value` is 1 for yes, 0 for no, missing for neither."""
    prompts = []
    rows: Any = refs.itertuples()
    for row in rows:
        title = in_quotes(row.gen_title)
        if kind == "DQ1":
            turns = [sessions.EXISTS.fill(title=title)]
        elif kind == "DQ2":
            turns = [sessions.FAMOUS.fill(), sessions.SAID.fill(title=title), sessions.REALLY.fill()]
        else:
            turns = [sessions.IN_LIST.fill(list_text=row.list_text, position=str(row.position))]
        prompts.append(chat_of(config.system, *turns))
    template = {"DQ1": sessions.EXISTS, "DQ2": sessions.REALLY, "DQ3": sessions.IN_LIST}[kind]
    lengths: Any = {"temperature": config.temperature, "max_tokens": config.direct_tokens}
    table = in_sessions(refs, model, kind, prompts, m, template, **lengths)
    return table.assign(value=[read_yes(text, official=config.rules == "official") for text in table["text"]])


def agree(part: Part, model: ChatModel, samples: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The overlap of every pair of author samples: columns `ref_id`, `pair`, `method`, `overlap`, `raw_text`."""
    texts: Any = samples[samples["query"] == "IQ"].groupby("ref_id", sort=False)["text"].agg(list)
    rows = [(ref_id, pair) for ref_id, said in texts.items() for pair in itertools.combinations(range(len(said)), 2)]
    pairs = [(texts[ref_id][i], texts[ref_id][j]) for ref_id, (i, j) in rows]

    def judge(lists: Sequence[tuple[str, str]]) -> list[str]:
        prompts = [(chat_of(config.system, sessions.OVERLAP.fill(first=a, second=b)), 0) for a, b in lists]
        return [reply.text for reply in sessions.ask(model, prompts, 0.0, config.judge_tokens, ["two author lists"])]

    tables = []
    for method in config.overlaps:
        if method == "judge" and not part.judges:
            continue
        found = author_overlaps(pairs, method, judge, official=config.rules == "official")
        table = pd.DataFrame({"ref_id": [ref_id for ref_id, _ in rows], "pair": [list(pair) for _, pair in rows]})
        said = {"overlap": [o.value for o in found], "raw_text": [o.raw_text for o in found]}
        tables.append(table.assign(method=method, **said))
    return pd.concat(tables, ignore_index=True)
