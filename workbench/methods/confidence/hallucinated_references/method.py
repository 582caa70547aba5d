"""Hallucinated references: does a title that a model gave exist? Ask the model, in fresh sessions, who wrote it.

A model that knows a reference names the same authors each time; of one that it made up it tells a new story each time.
So the agreement of its own answers scores its claims, without a search engine:

    IQ = mean over pairs i < j of overlap(authors_i, authors_j),   DQ_k = share of "yes" to direct question k
    DQ = mean(DQ1, DQ2, DQ3),   IQ+DQ = mean(IQ, DQ);   a reference is taken for invented where its score <= tau

**Source**: Agrawal, Suzgun, Mackey and Kalai, arXiv 2305.18248; rules of the official scripts and results of
microsoft/hallucinated-references (commit bf3ef5f) as the specification describes them. The wording of the prompts is
ours.

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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench.claims import Claims
from workbench.config import Field, Presets, listed, strict
from workbench.feedback import chat
from workbench.feedback.chat import ChatModel, Request
from workbench.feedback.templates import Template
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.hallucinated_references.book_titles import BookTitles
from workbench.methods.confidence.hallucinated_references.names import Method, author_overlaps, read_names
from workbench.methods.confidence.hallucinated_references.recorded import RecordedScores, expert_agreement, rederive
from workbench.methods.confidence.hallucinated_references.references import (
    DIRECT,
    Part,
    ReferenceFile,
    read_titles,
    read_yes,
    references,
)
from workbench.methods.confidence.hallucinated_references.scores import combined, counts, measure, score
from workbench.methods.confidence.hallucinated_references.world import Citations
from workbench.runs.run import Run

if TYPE_CHECKING:
    from workbench.methods.experiment import Experiment

LIST = Template(
    "list", 'Write a numbered list of {k} existing references on "{topic}". Give their titles only, one a line.'
)
AUTHORS = Template(
    "authors",
    'Who wrote the reference "{title}"? Reply with the names of its authors and nothing else, in this form:\n'
    "AUTHORS: first last, first last",
)
OVERLAP = Template(
    "overlap",
    "Here are two lists of names.\nList A: {first}\nList B: {second}\nHow many of the names do they have in common, in"
    " per cent? Initials for first names and accents make no difference. If one of them is no list of names, it is 0."
    " Reply in this form:\nANS: n JUSTIFICATION: one sentence",
)
EXISTS = Template("DQ1", 'Does the reference "{title}" exist? Reply with yes or no only.')
FAMOUS = Template("DQ2-first", "Give me the title of a famous reference, in quotation marks and nothing else.")
SAID = Template("DQ2-reply", '"{title}"')
REALLY = Template("DQ2", "Does this reference exist? Reply with yes or no only.")
IN_LIST = Template(
    "DQ3",
    "Here is a list of references:\n{list_text}\n\nDoes reference number {position} exist? Reply with yes or no only.",
)


@strict
class Config(Presets):
    """Settings of one experiment. "paper" is the paper or its code, "specification" the project's page about it."""

    n_topics: int = Field(default=80, ge=2, le=160)  # of the embedded world; specification. The paper has 200
    n_titles: int = Field(default=5, ge=1)  # asked for each topic (paper)
    indirect: int = Field(default=3, ge=2)  # j: author samples of a title (paper)
    direct_samples: int = Field(default=10, ge=1)  # samples of each direct question (paper)
    direct: list[str] = listed(*DIRECT)  # which direct questions
    overlaps: list[Method] = listed("judge", "jaccard", "containment")  # the first is IQ
    rules: Literal["strict", "official"] = "strict"  # what an unreadable reply is: missing, or 0 as in the paper's code
    temperature: float = Field(default=1.0, gt=0)  # of lists, authors and direct questions (paper); the judge is greedy
    system: str = "You are a helpful assistant"  # paper; "" for models without a system turn
    list_tokens: int = Field(default=400, ge=8)  # of a reply; the official limits were not in force
    author_tokens: int = Field(default=100, ge=4)  # ours
    judge_tokens: int = Field(default=50, ge=4)  # paper
    direct_tokens: int = Field(default=15, ge=1)  # paper
    deduplicate: bool = False  # leave later references with the same title out of the measurements
    bibliography: str = ""  # file with a title a line, to label generated titles by exact match
    bootstrap: int = Field(default=1_000, ge=20)  # rounds for intervals over topics; ours
    curve_bootstrap: int = Field(default=100, ge=20)  # rounds for the bands of curves (paper)
    book_seeds: list[int] = listed(0, 1, 2)  # seeds that train a transformer too; specification: three of them
    n_books: int = Field(default=300, ge=20)  # titles that it reads about; specification
    n_invented: int = Field(default=200, ge=20)  # titles that it never read; specification
    book_steps: int = Field(default=2_000, ge=1)  # optimiser steps; specification

    PRESETS: ClassVar = {
        "smoke": {
            "n_topics": 8,
            "overlaps": ["jaccard", "judge", "containment"],
            "bootstrap": 50,
            "curve_bootstrap": 20,
            "book_seeds": [0],
            "n_books": 40,
            "n_invented": 20,
            "book_steps": 20,
        },
        "tiny": {"overlaps": ["jaccard", "judge", "containment"]},  # the specification's prototype has Jaccard
        "full": {},
    }

    def __post_init__(self):
        for name, values, known in (("direct", self.direct, DIRECT), ("overlaps", self.overlaps, self.overlaps)):
            if not values or len(set(values)) < len(values) or set(values) - set(known):
                raise ValueError(f"{name} needs at least one of {', '.join(known)}, each once; got {values}")


# ------------------------------------------------------------------------------------------------------------ the task
@dataclass(frozen=True)
class Embedded:
    """Both levels: a simulated model that was told what it knows, and a transformer that has learned it."""

    citations: Citations
    books: BookTitles
    book_seeds: tuple[int, ...]
    is_simulated: bool = True

    def arms(self, seed: int) -> tuple[str, ...]:
        return ("simulated", "transformer") if seed in self.book_seeds else ("simulated",)

    def part(self, arm: str, seed: int) -> Part:
        return (self.citations if arm == "simulated" else self.books).part(seed)


Task = Embedded | ReferenceFile | RecordedScores


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Task:
    """The embedded world; topics or references of a file with a model to ask; or recorded results (.json, no model).

    Raises:
        ValueError: a model without data, data without a model, or a bad row (see `feedback.references`).
    """
    if not model and not dataset:
        books = BookTitles(n_titles=config.n_books, n_invented=config.n_invented, steps=config.book_steps)
        return Embedded(Citations(config.n_topics, config.n_titles), books, tuple(config.book_seeds))
    if dataset.endswith(".json") and not model:
        return RecordedScores.load(dataset)
    if not model or not dataset:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real references, neither for the embedded world,"
            " or a .json of recorded results alone"
        )
    return ReferenceFile.load(
        dataset, model=model, device=device, bibliography=config.bibliography, direct=config.direct
    )


class Logged:
    """A model behind its transcript is a model too."""

    def __init__(self, model: ChatModel, transcript: Transcript):
        self.model, self.transcript, self.name = model, transcript, model.name

    def fits(self, request: Request) -> bool:
        return self.model.fits(request)

    def ask(self, requests: Sequence[Request]) -> list[chat.Reply]:
        return self.transcript.ask(self.model, requests)


def chat_of(config: Config, *turns: str) -> tuple[dict[str, str], ...]:
    """The messages of a fresh session: system, then user and assistant in turn."""
    system = ({"role": "system", "content": config.system},) if config.system else ()
    return (*system, *({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)))


def in_quotes(title: str) -> str:
    """A title as it stands between quotes in a prompt: on one line, its own quotes escaped."""
    return " ".join(title.split()).replace("\\", "\\\\").replace('"', '\\"')


# ----------------------------------------------------------------------------------------------------------- algorithm
def run(task: Task, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Generates, asks, scores and measures, for every arm of the task.

    Returns:
        `{"arms": {arm: measurements}, "replies": n}`. The run folder gets the transcript and, for each arm, the tables
        `references`, `samples`, `agreements` and `scores`; a killed run goes on from them.
    """
    settings: Any = {
        "seed": seed,
        "bootstrap": config.bootstrap,
        "curve_bootstrap": config.curve_bootstrap,
        "deduplicate": config.deduplicate,
    }
    if isinstance(task, RecordedScores):
        tables = {
            arm: run.child(arm).table("scores", lambda *_, t=table: combined(t)) for arm, table in task.tables.items()
        }
        return {
            "arms": {arm: measure(table, **settings) for arm, table in tables.items()},
            "replies": 0,
            "experts": expert_agreement(task.experts),
        }
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
    """Step 1 and 2: the references, given or generated, each with its label where one is known."""
    refs = generate_claims(part.topics, model, config.n_titles, config) if part.references is None else part.references
    known = [part.labels.get(title, math.nan) for title in refs["gen_title"]]
    return refs.assign(grounded=refs["grounded"].fillna(pd.Series(known, dtype=float)))


def generate_claims(topics: Sequence[str], model: ChatModel, k: int, config: Config) -> pd.DataFrame:
    """Titles that the model writes for each topic, with their numbers in the list and the whole list."""
    prompts = [LIST.fill(k=str(k), topic=in_quotes(topic)) for topic in topics]
    replies = ask(
        model, [(chat_of(config, prompt), 0) for prompt in prompts], config.temperature, config.list_tokens, topics
    )
    rows = [
        {
            "ref_id": f"t{i}-{position}",
            "topic": topic,
            "gen_title": title,
            "list_text": reply.text,
            "position": position,
        }
        for i, (topic, reply) in enumerate(zip(topics, replies, strict=True))
        for position, title in read_titles(reply.text)
    ]
    if not rows:
        raise ValueError(f"no title could be read in the lists for {len(topics)} topics; look at transcript.jsonl")
    return references(rows, model.name)


def ask_all(part: Part, model: ChatModel, refs: pd.DataFrame, config: Config, seed: int) -> pd.DataFrame:
    """Steps 3 and 4: who wrote it, and does it exist; every sample a session of its own."""
    asked = [kind for kind in config.direct if kind in part.direct]
    tables = [sample_direct(refs, model, kind, config.direct_samples, config) for kind in asked]
    return pd.concat([sample_indirect(refs, model, config.indirect, config), *tables], ignore_index=True).assign(
        seed=seed
    )


def sample_indirect(refs: pd.DataFrame, model: ChatModel, j: int, config: Config) -> pd.DataFrame:
    """`j` answers to "who wrote it?" for each reference; `value` is the number of names, missing where there are
    none."""
    prompts = [chat_of(config, AUTHORS.fill(title=in_quotes(title))) for title in refs["gen_title"]]
    table = in_sessions(refs, model, "IQ", prompts, j, config.author_tokens, AUTHORS, config)
    return table.assign(value=[len(names) if (names := read_names(text)) else math.nan for text in table["text"]])


def sample_direct(refs: pd.DataFrame, model: ChatModel, kind: str, m: int, config: Config) -> pd.DataFrame:
    """`m` answers to direct question `kind` for each reference; `value` is 1 for yes, 0 for no, missing for neither."""
    prompts = []
    rows: Any = refs.itertuples()
    for row in rows:
        title = in_quotes(row.gen_title)
        if kind == "DQ1":
            turns = [EXISTS.fill(title=title)]
        elif kind == "DQ2":
            turns = [FAMOUS.fill(), SAID.fill(title=title), REALLY.fill()]
        else:
            turns = [IN_LIST.fill(list_text=row.list_text, position=str(row.position))]
        prompts.append(chat_of(config, *turns))
    template = {"DQ1": EXISTS, "DQ2": REALLY, "DQ3": IN_LIST}[kind]
    table = in_sessions(refs, model, kind, prompts, m, config.direct_tokens, template, config)
    return table.assign(value=[read_yes(text, official=config.rules == "official") for text in table["text"]])


def in_sessions(
    refs: pd.DataFrame,
    model: ChatModel,
    query: str,
    prompts: Sequence[tuple],
    n: int,
    max_tokens: int,
    template: Template,
    config: Config,
) -> pd.DataFrame:
    """`n` samples of each prompt, each a request of its own with its own number: columns of the samples table."""
    requests = [(prompt, i) for prompt in prompts for i in range(n)]
    ids = refs["ref_id"].repeat(n).tolist()
    replies = ask(model, requests, config.temperature, max_tokens, ids)
    logps = [float(np.mean(reply.logps)) if reply.logps else math.nan for reply in replies]
    return pd.DataFrame(
        {
            "ref_id": ids,
            "query": query,
            "sample_index": [i for _, i in requests],
            "text": [reply.text for reply in replies],
            "logp": logps,
            "template": template.version,
        }
    )


def ask(
    model: ChatModel, prompts: Sequence[tuple[tuple, int]], temperature: float, max_tokens: int, names: Sequence[str]
) -> list[chat.Reply]:
    requests = [Request(messages, temperature, max_tokens, number) for messages, number in prompts]
    for name, request in zip(names, requests, strict=False):
        if not model.fits(request):
            raise ValueError(f"the prompt for {name!r} is too long for the context of {model.name}; leave it out")
    return model.ask(requests)


def agree(part: Part, model: ChatModel, samples: pd.DataFrame, config: Config) -> pd.DataFrame:
    """The overlap of every pair of author samples: columns `ref_id`, `pair`, `method`, `overlap`, `raw_text`."""
    texts: Any = samples[samples["query"] == "IQ"].groupby("ref_id", sort=False)["text"].agg(list)
    rows = [(ref_id, pair) for ref_id, said in texts.items() for pair in itertools.combinations(range(len(said)), 2)]
    pairs = [(texts[ref_id][i], texts[ref_id][j]) for ref_id, (i, j) in rows]

    def judge(lists: Sequence[tuple[str, str]]) -> list[str]:
        prompts = [(chat_of(config, OVERLAP.fill(first=a, second=b)), 0) for a, b in lists]
        return [reply.text for reply in ask(model, prompts, 0.0, config.judge_tokens, ["two author lists"])]

    tables = []
    for method in config.overlaps:
        if method == "judge" and not part.judges:
            continue
        found = author_overlaps(pairs, method, judge, official=config.rules == "official")
        tables.append(
            pd.DataFrame(
                {
                    "ref_id": [ref_id for ref_id, _ in rows],
                    "pair": [list(pair) for _, pair in rows],
                    "method": method,
                    "overlap": [o.value for o in found],
                    "raw_text": [o.raw_text for o in found],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


# -------------------------------------------------------------------------------------------------------------- claims
Measured = Mapping[str, Any]  # measurements of one arm and seed
Effect = Callable[[Measured, bool], float]
Holds = Callable[[Measured], bool]
TEXTS = {
    "C1": ("Titles are often invented, less by better models", "rate .468 (GPT-4), .596 (GPT-3.5), .736 (davinci-003)"),
    "C2": ("The agreement of author lists separates real from invented", "AUROC of IQ .878, .783, .692"),
    "C2b": (
        "It does so in a transformer that has learned its books: AUROC above .8",
        "mechanism of C2, from the specification",
    ),
    "C2c": (
        "It does so the more the oftener a book was read: Spearman of IQ and exposure above .5",
        "mechanism of C2, as C2b",
    ),
    "C3": (
        "Direct questions fail for weaker models, which say yes to everything: IQ is ahead of them",
        "DQ1 .887, .540, .556; IQ - DQ +.11 to +.21 (GPT-3.5), +.03 to +.12 (davinci), reversed for GPT-4",
    ),
    "C4": ("Combining helps: IQ+DQ is ahead of DQ", "IQ+DQ .929, .792, .708; DQ .917, .623, .621"),
    "C4b": ("IQ+DQ is ahead of IQ", "by +.037 to +.064 for GPT-4; not established for the two weaker models"),
    "C5": (
        "A threshold keeps a cleaner list: fewer invented ones above IQ .5",
        "39.6 % kept with FDR .083, from .468 (GPT-4)",
    ),
    "C6": ("Labels from a search for the title are right", ".99 to 1.00 agreement with four experts on 100 titles"),
    "C7": ("Larger Llama-2 models invent less", "figures not available"),
}


def claims(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Claims:
    """The claims of the specification page; effects are differences of AUROC or of shares of invented references.

    A recorded file is decided by the bootstrap over topics; the seeds of such a run seed that bootstrap and nothing
    else.
    """
    world = experiment.task.is_simulated
    # A simulated model shows that a pipeline works in small, whatever its size; "full" is for real models.
    scale = "tiny" if world and experiment.scale == "full" else experiment.scale
    found = Claims("hallucinated_references", scale, experiment.seeds)
    if isinstance(experiment.task, RecordedScores):
        return rederive(found, TEXTS, results[0], experiment.task.expected)
    main = "simulated" if world else "references"

    def test(id: str, arm: str, effect: Effect, also: Mapping[str, Holds], **options: Any) -> None:
        """Tests one number a seed, with labels as they are and shuffled; the conditions must hold in every seed."""
        parts = {
            seed: part
            for seed, result in zip(found.seeds, results, strict=True)
            if (part := result["arms"].get(arm, {})).get("n_measured")
        }
        measured, control = ([effect(part, shuffled) for part in parts.values()] for shuffled in (False, True))
        if not parts or not np.isfinite([*measured, *control]).all():
            no_labels = "no seed trains a transformer" if arm != main else "no labelled reference with all scores"
            why = "a score is missing, or real, invented or kept references are" if parts else no_labels
            found.needs_full_scale(id, *TEXTS[id], why=why)
            return
        conditions = {name: all(holds(part) for part in parts.values()) for name, holds in also.items()}
        found.test(
            id,
            TEXTS[id][0],
            paper=TEXTS[id][1],
            measured=measured,
            control=control,
            also=conditions,
            seeds=list(parts),
            **{"control_is": "labels shuffled", **options},
        )

    def ahead(a: str, b: str = "") -> Effect:
        """AUROC of a score less that of another, or than 0.5."""

        def effect(part: Measured, shuffled: bool) -> float:
            areas = part["auroc_shuffled"] if shuffled else {name: area[0] for name, area in part["auroc"].items()}
            return areas.get(a, math.nan) - (areas.get(b, math.nan) if b else 0.5)

        return effect

    def over_topics(pair: str) -> dict[str, Holds]:  # seeds share real references: a gain must hold over topics as well
        return {} if world else {"interval over topics above 0": lambda part: part["gains"][pair][1] > 0}

    def cleaner(part: Measured, shuffled: bool) -> float:
        kept = {row[0]: row[3] for row in part["kept_shuffled" if shuffled else "kept"]["IQ"]}
        return part["rate"][0] - kept[0.5]

    one = "here half of the titles exist by construction" if world else "a run has one model"
    found.needs_full_scale("C1", *TEXTS["C1"], why=f"{one}; compare the rates of several models on the same topics")
    apart: dict[str, Holds] = {
        "mean IQ of real above invented": lambda part: float(np.subtract(*part["means"]["IQ"])) > 0
    }
    test("C2", main, ahead("IQ"), apart, unit="AUROC - .5", paper_effect=0.283)
    if world:
        biased: dict[str, Holds] = {"yes to more than half of the invented": lambda part: part["means"]["DQ1"][1] > 0.5}
        test("C2b", "transformer", ahead("IQ"), {}, margin=0.3, unit="AUROC - .5")
        test(
            "C2c",
            "transformer",
            lambda part, shuffled: part["exposure_correlation"][shuffled],
            {},
            margin=0.5,
            unit="Spearman",
            control_is="exposures shuffled",
        )
        test("C3", "transformer", ahead("IQ", "DQ1"), biased, unit="AUROC")
    else:
        test("C3", main, ahead("IQ", "DQ"), over_topics("IQ - DQ"), unit="AUROC", paper_effect=0.16)
    test("C4", main, ahead("IQ_DQ", "DQ"), over_topics("IQ_DQ - DQ"), unit="AUROC", paper_effect=0.169)
    test("C4b", main, ahead("IQ_DQ", "IQ"), over_topics("IQ_DQ - IQ"), unit="AUROC", paper_effect=0.051)
    test("C5", main, cleaner, {}, unit="share invented", paper_effect=0.385)
    found.needs_full_scale("C6", *TEXTS["C6"], why="needs labels of a search and of experts: see the recorded results")
    found.needs_full_scale("C7", *TEXTS["C7"], why="needs three Llama-2 chat models and a search for titles")
    return found
