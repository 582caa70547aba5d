"""What is asked, as versioned templates in our own words, and fresh sessions: no answer knows of another."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from workbench.feedback import chat
from workbench.feedback.chat import ChatModel, Request
from workbench.feedback.templates import Template
from workbench.feedback.transcript import Transcript

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


class Logged:
    """A model behind its transcript is a model too."""

    def __init__(self, model: ChatModel, transcript: Transcript):
        self.model, self.transcript, self.name = model, transcript, model.name

    def fits(self, request: Request) -> bool:
        return self.model.fits(request)

    def ask(self, requests: Sequence[Request]) -> list[chat.Reply]:
        return self.transcript.ask(self.model, requests)


def chat_of(system: str, *turns: str) -> tuple[dict[str, str], ...]:
    """The messages of a fresh session: system, then user and assistant in turn."""
    first = ({"role": "system", "content": system},) if system else ()
    return (*first, *({"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)))


def in_quotes(title: str) -> str:
    """A title as it stands between quotes in a prompt: on one line, its own quotes escaped."""
    return " ".join(title.split()).replace("\\", "\\\\").replace('"', '\\"')


def in_sessions(
    refs: pd.DataFrame,
    model: ChatModel,
    query: str,
    prompts: Sequence[tuple],
    n: int,
    template: Template,
    *,
    temperature: float,
    max_tokens: int,
) -> pd.DataFrame:
    """`n` samples of each prompt, each a request of its own with its own number: columns of the samples table."""
    requests = [(prompt, i) for prompt in prompts for i in range(n)]
    ids = refs["ref_id"].repeat(n).tolist()
    replies = ask(model, requests, temperature, max_tokens, ids)
    table = {"ref_id": ids, "query": query, "sample_index": [i for _, i in requests]}
    table["text"] = [reply.text for reply in replies]
    table["logp"] = [float(np.mean(reply.logps)) if reply.logps else math.nan for reply in replies]
    return pd.DataFrame(table | {"template": template.version})


def ask(
    model: ChatModel, prompts: Sequence[tuple[tuple, int]], temperature: float, max_tokens: int, names: Sequence[str]
) -> list[chat.Reply]:
    """The replies to (messages, number of the sample); one that does not fit is named by `names`."""
    requests = [Request(messages, temperature, max_tokens, number) for messages, number in prompts]
    for name, request in zip(names, requests, strict=False):
        if not model.fits(request):
            raise ValueError(f"the prompt for {name!r} is too long for the context of {model.name}; leave it out")
    return model.ask(requests)
