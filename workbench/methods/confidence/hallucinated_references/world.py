"""Citations: a world in which it is planted which references exist and how well a model remembers who wrote them.

The model sees nothing but the text of its prompt: a wrong template, a title from the wrong place of a list or a
broken parser shows up as a wrong number.

80 topics have 25 authors each, who write by Zipf's law, and lists of 5 titles, of which half exist. Asked who wrote a
title that exists, the model names its 1 to 3 authors with the title's own probability r ~ Beta(3, 1.5) and other
authors of the topic else; asked for one that it made up, it always draws them. Asked whether a title exists it says yes
at the title's own
rate: DQ1 Beta(8, 1) for real and Beta(4, 2) for invented ones, DQ2 Beta(2, 2) and Beta(1, 3), DQ3 Beta(12, .6) and
Beta(9, .8). Names come with initials and accents at random; 3 % of the author replies are refusals, 2 % of the answers
to direct questions are "I cannot say yes", and one list in ten has lost a title.

What separates real from invented is planted here, so this world tests a pipeline, not what real models know.
All constants are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from workbench.feedback.simulated import Noise, SimulatedModel
from workbench.methods.confidence.hallucinated_references.references import Part

AUTHORS_OF_A_TOPIC, LONGEST = 25, 3
RECALL = (3.0, 1.5)
YES = {"DQ1": ((8.0, 1.0), (4.0, 2.0)), "DQ2": ((2.0, 2.0), (1.0, 3.0)), "DQ3": ((12.0, 0.6), (9.0, 0.8))}
REFUSED, CANNOT_SAY, LOST = 0.03, 0.02, 0.1
INITIAL, ACCENT = 0.5, 0.3  # how often a first name is an initial, and a name has an accent
FIRST = ("Ana", "Bo", "Carla", "David", "Elena", "Frank", "Greta", "Hugo", "Irma", "Jonas", "Karin", "Liam")
FIRST += ("Mara", "Nils", "Olga", "Pedro", "Rosa", "Sven", "Tara", "Ugo", "Vera", "Walter", "Yara", "Zeno")
START = ("Bal", "Cor", "Dan", "Fel", "Gor", "Hal", "Kem", "Lor", "Mar", "Nor", "Pel", "Ran", "Sol", "Tor", "Vel")
MIDDLE = ("a", "e", "i", "o", "u")
END = ("berg", "den", "lin", "man", "nik", "rup", "sen", "tani", "vik", "zzi")
ACCENTED = str.maketrans("aeiou", "áéíöü")
KINDS = ("Basics", "Handbook", "History", "Limits", "Methods", "Notes", "Patterns", "Practice", "Principles", "Theory")
WHAT = ("Adaptive", "Compact", "Distributed", "Efficient", "Formal")
WHAT += ("Layered", "Modular", "Reliable", "Robust", "Sparse")
AREAS = ("Archives", "Compilers", "Databases", "Graphics", "Interfaces", "Kernels", "Networks", "Parsers")
AREAS += ("Queues", "Robots", "Schedulers", "Sensors", "Simulators", "Sorting", "Testing", "Tools")
USES = ("Clinics", "Farms", "Libraries", "Schools", "Ships")


class Asked(NamedTuple):
    """What a prompt wants: "list", "judge", "authors", "DQ1", "DQ2" or "DQ3", of which texts (topic, title or two
    lists)."""

    kind: str
    texts: tuple[str, ...]


def what_is_asked(prompt: str) -> Asked:
    """Reads a prompt as a reader would who has never seen its template.

    Raises:
        ValueError: nothing in it can be answered.
    """
    quoted = [re.sub(r"\\(.)", r"\1", text) for text in re.findall(r'"((?:[^"\\]|\\.)*)"', prompt)]
    listed = dict(re.findall(r"(?m)^\s*(\d+)\. (.*)$", prompt))
    number = re.search(r"number (\d+)", prompt)
    if "ANS:" in prompt:
        return Asked("judge", tuple(re.findall(r"(?m)^List [AB]: (.*)$", prompt)))
    if number and "exist" in prompt:
        return Asked("DQ3", (listed.get(number[1], "").strip('"“”. '),))
    if "numbered list" in prompt and quoted:
        return Asked("list", (quoted[0],))
    if "AUTHORS:" in prompt and quoted:
        return Asked("authors", (quoted[0],))
    if "exist" in prompt and quoted:
        return Asked("DQ2" if "famous" in prompt else "DQ1", (quoted[0],))
    raise ValueError(f"the simulated model does not know what this prompt asks for: {prompt!r}")


@lru_cache(maxsize=1)
def last_names() -> tuple[str, ...]:
    return tuple(a + b + c for a in START for b in MIDDLE for c in END)


class Title(NamedTuple):
    """One title: whether it exists, who wrote it (places among its topic's authors), and what the model does."""

    topic: int
    exists: int
    authors: tuple[int, ...]
    recall: float
    yes: Mapping[str, float]


@dataclass(frozen=True)
class Citations:
    """The task: topics, the model that writes references about them, and which titles exist.

    Args:
        n_topics: at most 160.
        n_titles: in each topic's list.
    """

    n_topics: int = 80
    n_titles: int = 5
    name: str = "citations"

    @cached_property
    def topics(self) -> list[str]:
        named = [f"{area}: {use.lower()} {place}" for place in ("in town", "at sea") for use in USES for area in AREAS]
        return named[: self.n_topics]

    def part(self, seed: int) -> Part:
        truth = self.truth(seed)
        labels = {title: fact.exists for title, fact in truth.items()}
        return Part(self.subject(seed), self.topics, None, labels)

    @lru_cache(maxsize=4)  # noqa: B019 - a world is a small value, not a resource
    def truth(self, seed: int) -> dict[str, Title]:
        """What is planted for each title of one seed, topic after topic."""
        rng = np.random.default_rng([seed, 0])
        n = self.n_topics * self.n_titles
        exists = rng.permutation(np.arange(n) % 2)
        written = rng.permutation(len(KINDS) * len(WHAT) * len(AREAS))[:n]
        facts: dict[str, Title] = {}
        for i in range(n):
            real, number = int(exists[i]), int(written[i])
            kind, what, area = KINDS[number % 10], WHAT[number // 10 % 10], AREAS[number // 100]
            authors, recall = _drawn(rng.random(1 + LONGEST)), float(rng.beta(*RECALL)) if real else 0.0
            yes = {name: float(rng.beta(*rates[1 - real])) for name, rates in YES.items()}
            facts[f"{kind} of {what} {area}"] = Title(i // self.n_titles, real, authors, recall, yes)
        return facts

    def authors(self, seed: int, topic: int) -> list[str]:
        """The topic's authors, the most cited first; last names are its own."""
        rng = np.random.default_rng([seed, 1, topic])
        last = rng.permutation(len(last_names()))[:AUTHORS_OF_A_TOPIC]
        return [f"{FIRST[rng.integers(len(FIRST))]} {last_names()[place]}" for place in last]

    def subject(self, seed: int) -> SimulatedModel:
        """The model, which knows the titles of `seed`."""
        truth = self.truth(seed)
        authors = [self.authors(seed, topic) for topic in range(self.n_topics)]
        lists = [[title for title, fact in truth.items() if fact.topic == topic] for topic in range(self.n_topics)]
        lost = np.random.default_rng([seed, 2]).random((2, self.n_topics))

        def write_list(topic: int, noise: Noise) -> str:
            gap = int(lost[1, topic] * self.n_titles) if lost[0, topic] < LOST else -1
            form = ('{}. "{}"', "{}. “{}.”", "{}. {}.", "{}. {}")[int(4 * noise.uniform())]
            lines = [form.format(i + 1, "" if i == gap else title) for i, title in enumerate(lists[topic])]
            return "Here are some references:\n" + "\n".join(lines)

        def name_authors(fact: Title, noise: Noise) -> str:
            if noise.uniform() < REFUSED:
                return "I'm sorry, I cannot help with that."
            known = noise.uniform() < fact.recall
            places = fact.authors if known else _drawn([noise.uniform() for _ in range(1 + LONGEST)])
            names = [_spelled(authors[fact.topic][place], noise) for place in places]
            joined = ", ".join(names) if noise.uniform() < 0.8 else ",\n".join(names)
            return "AUTHORS: " + (joined if noise.uniform() < 0.8 else " and ".join(joined.rsplit(", ", 1)))

        def respond(prompt: str, temperature: float, noise: Noise) -> str:
            asked = what_is_asked(prompt)
            if asked.kind == "list":
                return write_list(self.topics.index(asked.texts[0]), noise)
            if asked.kind == "judge":
                return _judged(asked.texts[0], asked.texts[1], noise)
            fact = truth.get(asked.texts[0])
            if fact is None:
                return "No, I do not see it."  # an empty place of a list, or a title that nobody wrote
            if asked.kind == "authors":
                return name_authors(fact, noise)
            if noise.uniform() < CANNOT_SAY:
                return "I cannot say yes."
            yes = noise.uniform() < fact.yes[asked.kind]
            said = ("Yes.", "yes", "Yes, it does.") if yes else ("No.", "no", "No, it does not.")
            return said[int(3 * noise.uniform())]

        return SimulatedModel(self.name, respond, seed=seed)


def _drawn(uniforms) -> tuple[int, ...]:
    """1 to 3 different authors of a topic by Zipf's law, from four uniform numbers."""
    weights = 1.0 / np.arange(1, AUTHORS_OF_A_TOPIC + 1)
    places: list[int] = []
    for u in uniforms[1 : 2 + int(LONGEST * uniforms[0])]:
        steps = np.cumsum(weights)
        places.append(int(np.searchsorted(steps, u * steps[-1], side="right")))
        weights[places[-1]] = 0.0
    return tuple(places)


def _spelled(name: str, noise: Noise) -> str:
    first, last = name.split(" ")
    if noise.uniform() < ACCENT:
        last = last.translate(ACCENTED)
    return f"{first[0] + '.' if noise.uniform() < INITIAL else first} {last}"


def _judged(first: str, second: str, noise: Noise) -> str:
    """The model as a judge: it knows names by their last word, whatever stands before and above it."""
    plain = str.maketrans("áéíöü", "aeiou")
    sides = [
        {part.split()[-1].strip(".").translate(plain).casefold() for part in re.split(r",| and ", side) if part.split()}
        for side in (first, second)
    ]
    percent = round(100 * len(sides[0] & sides[1]) / max(len(sides[0] | sides[1]), 1))
    return f"{('ANS', 'ANSWER', 'Ans')[int(3 * noise.uniform())]}: {percent}% JUSTIFICATION: compared by last names."
