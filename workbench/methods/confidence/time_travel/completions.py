"""Asking a model for the rest of an instance that it was shown the beginning of, and judging what it wrote.

Tables: instances `instance_id, dataset, split, task, label, first_piece, second_piece`; completions `instance_id,
instruction, text, model, seed` (and template version, reply as it came, whether it began with the first piece).
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from workbench.feedback.chat import ChatModel, Request, user
from workbench.feedback.templates import Template
from workbench.feedback.transcript import Transcript
from workbench.stats.text_overlap import match, without_repetition

Task = Literal["cls", "nli", "sum", "xsum"]
Instruction = Literal["guided", "general"]
LABELLED = ("cls", "nli")
PIECES = ["first_piece", "second_piece"]
COLUMNS = ["instance_id", "dataset", "split", "task", "label", *PIECES]

_GUIDED = (
    "Below stands {what} of an instance from the {{split}} split of the {{dataset}} data set{label}. Write its {rest} "
    "exactly as it appears in that data set. Rely only on the original form of the instance, and write nothing else."
)
_FIRST = "Below stands the first piece of a"
_GENERAL = {
    "cls": f"{_FIRST} text{{label}}. Write a second piece, so that both pieces form one text with that label.",
    "nli": "Below stands a sentence{label}. Write a second sentence, so that the two stand in the logical relation that"
    " the label names.",
    "sum": f"{_FIRST} summary. Write a second piece, so that both pieces form one summary.",
    "xsum": f"{_FIRST} summary of one sentence. Write a second piece, so that both form one such sentence.",
}
_WHAT = {
    "cls": ("the first piece", "second piece"),
    "nli": ("sentence 1", "sentence 2"),
    "sum": ("the first piece of a summary", "second piece"),
    "xsum": ("the first piece of a one-sentence summary", "second piece"),
}


def _template(instruction: Instruction, task: Task) -> Template:
    label = ", with its label" if task in LABELLED else ""
    what, rest = _WHAT[task]
    opening = _GUIDED if instruction == "guided" else _GENERAL[task] + " Write nothing else."
    opening = opening.format(what=what, rest=rest, label=label)
    heads = ("Sentence 1", "Sentence 2") if task == "nli" else ("First piece", "Second piece")
    shown = "Label: {label}\n" if label else ""
    return Template(f"{instruction}-{task}", f"{opening}\n\n{shown}{heads[0]}: {{first_piece}}\n\n{heads[1]}:")


TASKS: tuple[Task, ...] = ("cls", "nli", "sum", "xsum")
INSTRUCTIONS = {(i, t): _template(i, t) for i in ("guided", "general") for t in TASKS}

# One exact match, then three near-exact ones: the reference and more, a headline told in another order, a paraphrase.
JUDGE = Template(
    "match-judge",
    """Decide whether the candidate is an exact match or a near-exact match of the reference. It is near-exact if it \
tells the
same in nearly the same words, even where it goes on longer or changes their order. Reply with one of: Yes (exact \
match),
Yes (near-exact match), No.

Reference: The bakery on the corner closes at noon on Mondays.
Candidate: The bakery on the corner closes at noon on Mondays.
Answer: Yes (exact match)

Reference: The choir rehearsed in the old boathouse.
Candidate: The choir rehearsed in the old boathouse. Afterwards they walked home along the canal.
Answer: Yes (near-exact match)

Reference: Bridge repairs delay morning ferries, harbour office says
Candidate: Harbour office: morning ferries delayed by repairs to bridge
Answer: Yes (near-exact match)

Reference: We liked the soup, but the bread was stale and the waiter forgot our tea.
Candidate: We liked the soup, but the bread was dry and the waiter forgot to bring our tea.
Answer: Yes (near-exact match)

Reference: {reference}
Candidate: {candidate}
Answer:""",
)
_VERDICT = re.compile(r"yes \((exact|near-exact) match\)|\b(no)\b", re.IGNORECASE)
_ABBREVIATION = r"(?<!\b[A-Z]\.)(?<!\bMr\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)(?<!\bvs\.)(?<!\be\.g\.)(?<!\bi\.e\.)"
_SENTENCE_END = re.compile(rf"(?<=[.!?])[\"')\]”’]*{_ABBREVIATION}(\s+)")


# ---------------------------------------------------------------------------------------------------------- instances
class Split(NamedTuple):
    """Usable instances, and those that were left out with the `reason`."""

    instances: pd.DataFrame
    rejected: pd.DataFrame


def split_instances(
    df: pd.DataFrame, task: Task, min_p: float = 40, max_p: float = 70, seed: int = 42, constant_fraction: bool = False
) -> Split:
    """Cuts every text of a partition into a first and a second piece.

    A text of several sentences is cut between sentences, another between words. The cut is at round(U), U uniform
    between `min_p` and `max_p` per cent of the units: of two sentences the first is always shown. Pairs (nli) are
    their two sentences.

    Args:
        df: `instance_id, dataset, split`, `text` (nli: `sentence1, sentence2`), and `label` for cls and nli.
        seed: of one stream with a fresh draw for every row.
        constant_fraction: as the released code does, which seeds again for every row, so that every text is cut at
            the same fraction (0.5918 at seed 42, 40 and 70).

    Raises:
        ValueError: percentages out of order or range; a missing column.
    """
    if not 0 <= min_p <= max_p <= 100:
        raise ValueError(f"min_p and max_p: percentages with 0 <= min_p <= max_p <= 100; got {min_p} and {max_p}")
    needed = ["sentence1", "sentence2"] if task == "nli" else ["text"]
    _require(df, [*needed, *(["label"] if task in LABELLED else [])], f"task {task!r}")
    rng, constant = np.random.default_rng(seed), random.Random(seed).random()
    rows = []
    for row in df.to_dict("records"):
        u = constant if constant_fraction else float(rng.random())
        if task == "nli":
            first, second = (str(row[name]).strip() for name in needed)
        else:
            units = sentences(str(row["text"]))
            units = units if len(units) > 1 else str(row["text"]).split(" ")
            cut = round(len(units) * (min_p + (max_p - min_p) * u) / 100)
            first, second = " ".join(units[:cut]).strip(), " ".join(units[cut:]).strip()
        rows.append({**row, "task": task, "first_piece": first, "second_piece": second})
    return check_instances(pd.DataFrame(rows))


def check_instances(df: pd.DataFrame) -> Split:
    """The instances with both pieces, each once; the others with the reason.

    Raises:
        ValueError: no column `first_piece` or `second_piece`.
    """
    _require(df, PIECES, "splitting is off, so the pieces must be given")
    df = df.assign(label=df["label"].fillna("").astype(str) if "label" in df else "")
    empty = {piece: df[piece].isna() | (df[piece].astype(str).str.strip() == "") for piece in PIECES}
    reasons = {
        "empty text": empty["first_piece"] & empty["second_piece"],
        "empty second piece (one word?)": empty["second_piece"],
        "empty first piece (one word?)": empty["first_piece"],
        "duplicate": df.duplicated(PIECES).to_numpy(),
    }
    reason = np.select([*reasons.values()], [*reasons], "")
    kept: Any = df[reason == ""]
    left: Any = df[reason != ""]
    return Split(kept[COLUMNS].reset_index(drop=True), left[["instance_id"]].assign(reason=reason[reason != ""]))


def sentences(text: str) -> list[str]:
    """A text at its full stops, question and exclamation marks; a few abbreviations and initials do not end one."""
    parts, start = [], 0
    for end in _SENTENCE_END.finditer(text):
        parts, start = [*parts, text[start : end.start(1)].strip()], end.end()
    return [part for part in [*parts, text[start:].strip()] if part]


def _require(df: pd.DataFrame, columns: Sequence[str], why: str) -> None:
    missing = [name for name in columns if name not in df]
    if missing:
        found = ", ".join(map(str, df.columns))
        raise ValueError(f"{why}: column {', '.join(map(repr, missing))} is missing; found {found}")


# -------------------------------------------------------------------------------------------------------- completions
def request(row: dict[str, Any], instruction: Instruction, max_new_tokens: int) -> Request:
    """The greedy call for one instance under one instruction."""
    template = INSTRUCTIONS[instruction, row["task"]]
    return Request(user(template.fill(**{slot: str(row[slot]) for slot in template.slots})), 0.0, max_new_tokens)


def fitting(df: pd.DataFrame, model: ChatModel, instructions: Sequence[Instruction], max_new_tokens: int) -> np.ndarray:
    """Whether every request of an instance fits into the model's context: nothing is ever cut to make it fit."""
    return np.array(
        [all(model.fits(request(row, i, max_new_tokens)) for i in instructions) for row in df.to_dict("records")],
        dtype=bool,
    )


def complete(
    df: pd.DataFrame,
    model: ChatModel,
    instruction: Instruction,
    max_new_tokens: int,
    *,
    transcript: Transcript,
    seed: int,
) -> pd.DataFrame:
    """The model's second piece of every instance: the completions table."""
    rows = df.to_dict("records")
    asked = transcript.ask(model, [request(row, instruction, max_new_tokens) for row in rows])
    replies = [reply.text for reply in asked]
    cleaned = [without_repetition(text, row["first_piece"]) for row, text in zip(rows, replies, strict=True)]
    table: dict[str, Any] = {"instance_id": df["instance_id"].to_numpy(), "instruction": instruction}
    table |= {"text": [c.text for c in cleaned], "model": model.name, "seed": seed}
    table |= {"repeated": [c.repeated for c in cleaned], "reply": replies}
    return pd.DataFrame(table | {"template": [INSTRUCTIONS[instruction, row["task"]].version for row in rows]})


# ------------------------------------------------------------------------------------------------------------ matches
def read_match(text: str) -> str:
    """ "exact", "near-exact" or "no" from the last known phrase of a judge's reply; "unparsed" without one."""
    found = _VERDICT.findall(text)
    return (found[-1][0] or found[-1][1]).lower() if found else "unparsed"


def match_judge(
    df: pd.DataFrame, judge: ChatModel | None = None, *, transcript: Transcript | None = None, max_tokens: int = 10
) -> pd.DataFrame:
    """A label for every completion: columns `instance_id, instruction, label, raw_text`.

    Args:
        df: completions joined with `second_piece` of their instances.
        judge: a chat model that gets four worked examples; None is the deterministic matcher of `text_overlap`.

    Raises:
        ValueError: a judge without a transcript.
    """
    pairs = list(zip(df["second_piece"], df["text"], strict=True))
    raw = [""] * len(pairs)
    if judge is None:
        labels: list[str] = [match(reference, candidate) for reference, candidate in pairs]
    else:
        if transcript is None:
            raise ValueError("a judge that is asked needs a transcript, so that no reply is asked for twice")
        ask = partial(transcript.ask, judge)
        fill = (JUDGE.fill(reference=reference, candidate=candidate) for reference, candidate in pairs)
        raw = [reply.text for reply in ask([Request(user(text), 0.0, max_tokens) for text in fill])]
        # what says nothing matches nothing, whatever a judge thinks of it
        labels = ["no" if not text else read_match(reply) for (_, text), reply in zip(pairs, raw, strict=True)]
    return df[["instance_id", "instruction"]].reset_index(drop=True).assign(label=labels, raw_text=raw)


_BATCH = 16  # BLEURT's own


def compared_texts(df: pd.DataFrame) -> tuple[list[str], list[str]]:
    """References and candidates: the whole text with its two second pieces; of a pair of sentences the second alone.

    Args:
        df: completions joined with `task`, `first_piece` and `second_piece` of their instances.
    """
    starts = np.where(df["task"] == "nli", "", df["first_piece"] + " ")
    return [*(starts + df["second_piece"])], [*(starts + df["text"])]


def bleurt(df: pd.DataFrame, source: str) -> np.ndarray:
    """One score a completion.

    Args:
        source: a CSV, JSON or Parquet file with `instance_id, instruction, score`, or a folder with a transformers
            sequence-classification model with one output.

    Raises:
        ValueError: no score for a completion (the first one is named); a model that gives more than one number.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return _regress(*compared_texts(df), str(path))
    readers: dict[str, Any] = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"bleurt={source!r}: give a .csv, .json or .parquet file with scores, or a model's folder")
    known = readers[path.suffix](path).set_index(["instance_id", "instruction"])["score"]
    keys = pd.MultiIndex.from_arrays([df["instance_id"], df["instruction"]])
    scores = known.reindex(keys).to_numpy(dtype=float)
    if np.isnan(scores).any():
        instance, instruction = keys[int(np.argmax(np.isnan(scores)))]
        raise ValueError(f"{path} has no score for the {instruction} completion of {instance!r}")
    return scores


def _regress(references: list[str], candidates: list[str], folder: str) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    if model.config.num_labels != 1:
        raise ValueError(f"{folder} gives {model.config.num_labels} numbers; a regressor with one is needed")
    scores = []
    with torch.no_grad():
        for at in range(0, len(references), _BATCH):
            pairs = (references[at : at + _BATCH], candidates[at : at + _BATCH])
            inputs = tokenizer(*pairs, padding=True, truncation=True, max_length=512, return_tensors="pt")
            scores += model.eval()(**inputs).logits[:, 0].tolist()
    return np.array(scores)
