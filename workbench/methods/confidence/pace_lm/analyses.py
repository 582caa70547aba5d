"""Analyses: a model writes several analyses of a case, gives short answers to each, and their mean is a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.feedback.chat import ChatModel, Reply, Request, user
from workbench.feedback.replies import readable
from workbench.feedback.templates import Template
from workbench.methods.confidence.pace_lm.prompts import Phase

COLUMNS = ["case_id", "phase", "analysis_index", "answer_index", "raw_text", "value"]
COLUMNS += ["parse_status", "version", "k_used"]
NO_REFERENCES = "(there are none)"


def sample_scores(
    cases: pd.DataFrame,
    refs: pd.DataFrame,
    model: ChatModel,
    phase: Phase,
    n_analyses: int,
    n_answers: int,
    *,
    ask: Callable[[Sequence[Request]], list[Reply]] | None = None,
    temperature: float = 0.7,
    analysis_tokens: int = 300,
    answer_tokens: int = 32,
) -> pd.DataFrame:
    """Every answer of one phase to every case: the samples table, its columns in `COLUMNS`.

    Args:
        cases: table of `cases.check_cases`.
        refs: references with their texts (`case_id`, `rank`, `title`, `summary`, `root_cause`), see `with_texts`.
        model: what is asked; `ask` puts a transcript before it.
        temperature: of analyses and answers.

    Raises:
        ValueError: a case that does not fit into the model's context even without references.

    Notes:
        Where a prompt does not fit, the lowest-ranked references go first; `k_used` says how many were shown.
    """
    ask = ask or model.ask
    shown: dict[str, list[dict]] = {}
    for row in refs.sort_values("rank").to_dict("records"):
        shown.setdefault(row["case_id"], []).append(row)
    jobs: list[tuple[str, int, dict[str, str]]] = []  # case_id, references used, slots of every case
    room = answer_tokens + (analysis_tokens if phase.analysis else 0)
    for case in cases.to_dict("records"):
        references = shown.get(case["case_id"], [])
        for used in range(len(references), -1, -1):
            slots = _slots(case, references[:used])
            # the longer of the two prompts is the second: the first one's text, the analysis, the question
            first = phase.answer.fill(**_of(phase.answer, {**slots, "analysis": ""}))
            if model.fits(Request(user(first), temperature, room)):
                break
        else:
            raise ValueError(
                f"case {case['case_id']!r} does not fit into the context of {model.name} even without references;"
                " shorten its summary or lower analysis_tokens"
            )
        jobs.append((case["case_id"], used, slots))
    places = [(job, a) for job in jobs for a in range(n_analyses)]
    analyses = [""] * len(places)
    if phase.analysis:
        asked = [
            Request(user(phase.analysis.fill(**_of(phase.analysis, job[2]))), temperature, analysis_tokens, a)
            for job, a in places
        ]
        analyses = [reply.text for reply in ask(asked)]
    # Two analyses of a case may be the same text: their answers are drawn apart all the same.
    repeats = [analyses[i - a : i].count(analyses[i]) for i, (_, a) in enumerate(places)]
    answered = [
        (job, a, b, text, again * n_answers + b)
        for (job, a), text, again in zip(places, analyses, repeats, strict=True)
        for b in range(n_answers)
    ]
    prompts = [phase.answer.fill(**_of(phase.answer, {**job[2], "analysis": text})) for job, _, _, text, _ in answered]
    requests = [
        Request(user(prompt), temperature, answer_tokens, sample)
        for prompt, (*_, sample) in zip(prompts, answered, strict=True)
    ]
    replies = ask(requests)
    values = [phase.read(readable(reply)) for reply in replies]
    version = "+".join(part.version for part in (phase.analysis, phase.answer) if part)
    rows = [
        (job[0], phase.name, a, b, reply.text, value, "unparsed" if math.isnan(value) else "ok", version, job[1])
        for (job, a, b, *_), reply, value in zip(answered, replies, values, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS).astype({"value": float})


def case_scores(samples: pd.DataFrame, phase: str, max_missing: float = 0.2) -> pd.Series:
    """Mean of what was read, by `case_id`; NaN where more than `max_missing` of a case's answers could not be read.

    An unread answer is left out. It never counts as 0.
    """
    rows = samples[samples["phase"] == phase]
    groups: Any = rows.groupby("case_id", sort=False)["value"]
    return groups.mean().where(groups.count() >= (1 - max_missing) * groups.size() - 1e-9)


def check_read(samples: pd.DataFrame, max_unparsed: float, where: str) -> None:
    """Stops a run whose replies are not what the parser reads.

    Raises:
        ValueError: more than the share `max_unparsed` of the replies of a phase could not be read.
    """
    for phase, rows in samples.groupby("phase", sort=False):
        unread = rows["parse_status"].tolist().count("unparsed")
        if unread > max_unparsed * len(rows):
            raise ValueError(
                f"{unread} of {len(rows)} replies of phase {phase!r} could not be read, more than max_unparsed = "
                f"{max_unparsed:g} allows; see raw_text in {where}"
            )


def with_texts(references: pd.DataFrame, history: pd.DataFrame) -> pd.DataFrame:
    """The references table with title, summary and cause of every incident beside it."""
    return references.merge(history[["incident_id", "title", "summary", "root_cause"]], on="incident_id", how="left")


def _slots(case: Mapping[str, Any], references: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    numbered = enumerate(references, start=1)
    listed = "\n\n".join(f"Reference {i}\n{_incident(row)}\nCause: {row['root_cause']}" for i, row in numbered)
    slots = {"incident": _incident(case), "references": listed or NO_REFERENCES}
    return {**slots, "prediction": case["predicted_root_cause"]}


def _incident(row: Mapping[str, Any]) -> str:
    return f"Title: {row['title']}\nSymptoms: {row['summary']}" if row["title"] else f"Symptoms: {row['summary']}"


def _of(template: Template, slots: dict[str, str]) -> dict[str, str]:
    """Only the slots that the template has: what a prompt does not name, it cannot show."""
    return {name: slots[name] for name in template.slots}
