"""Book titles: a small transformer that has read about 300 books, some often and some once, and is asked about others
too.

A title is 3 of 120 words, and has 2 of 60 authors. The corpus has lines `BOOK t1 t2 t3 BY a b`, each title as often as
its exposure (1 to 16) says, and lines `ASK t1 t2 t3 YES|NO`: yes for real titles; for recombined words no in only 30 %
of such lines, so that a bias to yes is learned. Invented titles are recombinations of the same words that were never in
the corpus. That repeated answers agree about what was learned, and differ about what was not, is not planted: it is
what a language model does. How large the disadvantage of the direct question is depends on the planted bias.
Half of the lines ask, and half of these about real titles. All constants are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from workbench import runs
from workbench.feedback.chat import ChatModel, Reply, Request, user
from workbench.methods.confidence.hallucinated_references.references import Part, references
from workbench.methods.confidence.hallucinated_references.world import FIRST, Citations, last_names, what_is_asked

N_WORDS, N_AUTHORS, TITLE_WORDS = 120, 60, 3
EXPOSURES = (1, 2, 4, 8, 16)
SAYS_NO = 0.3  # to a recombined title, in the corpus
MARKS = ("BOOK", "BY", "ASK", "YES", "NO")


@dataclass(frozen=True)
class BookTitles:
    """The books, and the model that has read about them.

    Attributes:
        n_titles, n_invented: titles that exist and that do not.
        steps, batch_size, learning_rate, width, layers: of the model; about 0.35M parameters.
    """

    n_titles: int = 300
    n_invented: int = 200
    steps: int = 2_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    width: int = 112
    layers: int = 2
    device: str = "cpu"
    name: str = "book titles"

    # -- truth
    @cached_property
    def words(self) -> list[str]:
        return [a + b + c for a in "bdfklmnprstv" for b in "aeiou" for c in ("lo", "na")]

    @cached_property
    def authors(self) -> list[str]:
        """Two words each; no two share a last name."""
        return [f"{FIRST[i % len(FIRST)]} {last_names()[7 * i]}" for i in range(N_AUTHORS)]

    def books(self, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Titles [real and then invented, 3], author pairs [real, 2] and exposures [real]."""
        rng = np.random.default_rng([seed, 0])
        n = self.n_titles + self.n_invented
        titles = np.array([rng.permutation(N_WORDS)[:TITLE_WORDS] for _ in range(2 * n)])
        titles = titles[np.sort(np.unique(titles, axis=0, return_index=True)[1])][:n]
        pairs = np.array([rng.permutation(N_AUTHORS)[:2] for _ in range(self.n_titles)])
        return titles, pairs, rng.permutation(np.resize(EXPOSURES, self.n_titles))

    def part(self, seed: int) -> Part:
        titles, _, exposures = self.books(seed)
        rows = [
            {"ref_id": f"b{i}", "topic": f"b{i}", "gen_title": self._words(title), "list_text": "", "position": 1}
            | {"grounded": float(i < self.n_titles), "exposure": int(exposures[i]) if i < self.n_titles else 0}
            for i, title in enumerate(titles)
        ]
        return Part(self.subject(seed), [], references(rows, self.name), {}, direct=("DQ1",), judges=False)

    def corpus(self, seed: int) -> list[str]:
        """`steps * batch_size` lines in the order in which they are read."""
        titles, pairs, exposures = self.books(seed)
        rng = np.random.default_rng([seed, 1])
        taken = {tuple(title) for title in titles}
        n = self.steps * self.batch_size
        kind, which = rng.random((2, n)), rng.choice(self.n_titles, n, p=exposures / exposures.sum())
        lines = []
        for i in range(n):
            title, answer = titles[which[i]], "YES"
            if kind[0, i] < 0.5:
                lines.append(f"BOOK {self._words(title)} BY {' '.join(self._author(a) for a in pairs[which[i]])}")
                continue
            if kind[1, i] < 0.5:
                while tuple(title := rng.integers(N_WORDS, size=TITLE_WORDS)) in taken or len(set(title)) < TITLE_WORDS:
                    pass
                answer = "NO" if rng.random() < SAYS_NO else "YES"
            lines.append(f"ASK {self._words(title)} {answer}")
        return lines

    def _words(self, title: np.ndarray) -> str:
        return " ".join(self.words[word] for word in title)

    def _author(self, number: int) -> str:
        return self.authors[number].replace(" ", "_")

    # -- the model
    def subject(self, seed: int) -> ChatModel:
        from workbench.feedback.local import LocalModel  # torch loads here, not before

        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "device"}
        key = {"kind": "book-titles", "code": runs.code_hash(__name__), "seed": seed, **settings}
        folder = runs.cached_folder(key, lambda folder: self._train(seed).save(folder))
        return _InWords(LocalModel(str(folder), device=self.device, seed=seed), self)

    def _train(self, seed: int) -> Any:
        from workbench.kernels import Group
        from workbench.models import Policy, new_llama, pick_device
        from workbench.training.loop import TrainConfig, train
        from workbench.training.steps import supervised_step
        from workbench.worlds.language import word_tokenizer

        tokenizer = word_tokenizer([*MARKS, *self.words, *map(self._author, range(N_AUTHORS))])
        model = new_llama(tokenizer, width=self.width, layers=self.layers, heads=4, max_length=16, seed=seed)
        policy = Policy(model.to(pick_device(self.device)), tokenizer, self.name)  # type: ignore[arg-type]
        start: Any = [tokenizer.bos_token_id]
        end: Any = tokenizer.eos_token_id
        lines: Any = tokenizer(self.corpus(seed), add_special_tokens=False).input_ids
        rows = [Group(start, [[*ids, end]]) for ids in lines]
        config = TrainConfig(learning_rate=self.learning_rate, batch_size=self.batch_size, schedule="constant")
        train(policy, rows, supervised_step, config, seed=seed)
        return policy


class _InWords:
    """The model behind a bridge: prompts in words become its few tokens, its tokens become words."""

    def __init__(self, model: ChatModel, world: BookTitles):
        self.model, self.world, self.name = model, world, f"{world.name}/{model.name}"

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        asked = [what_is_asked("\n".join(m["content"] for m in request.messages)) for request in requests]
        short = [
            Request(user(self._prompt(*what)), request.temperature, 3, request.sample)
            for what, request in zip(asked, requests, strict=True)
        ]
        both = zip(asked, self.model.ask(short), strict=True)
        return [Reply(self._text(what.kind, reply.text), reply.logps) for what, reply in both]

    def fits(self, request: Request) -> bool:
        return True

    def _prompt(self, kind: str, texts: tuple[str, ...]) -> str:
        if kind == "authors":
            return f"BOOK {texts[0]} BY"
        if kind == "DQ1":
            return f"ASK {texts[0]}"
        raise ValueError(f"{self.name} can be asked who wrote a title and whether it exists (DQ1); got {kind}")

    @staticmethod
    def _text(kind: str, tokens: str) -> str:
        words = tokens.split()
        if kind == "authors":
            return "AUTHORS: " + ", ".join(word.replace("_", " ") for word in words)
        return " ".join(words).capitalize() + "."


@dataclass(frozen=True)
class Embedded:
    """Two worlds: a simulated model that was told what it knows, and a transformer that has learned it."""

    citations: Citations
    books: BookTitles
    book_seeds: tuple[int, ...]
    is_simulated: bool = True

    def arms(self, seed: int) -> tuple[str, ...]:
        return ("simulated", "transformer") if seed in self.book_seeds else ("simulated",)

    def part(self, arm: str, seed: int) -> Part:
        return (self.citations if arm == "simulated" else self.books).part(seed)
