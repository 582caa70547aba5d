"""Clauses: a source language whose verb comes last, and two ways to translate it. SimulPL.

A source sentence has 2 clauses of 4 words: subject, filler, object, verb. A dictionary translates word by word. The
*offline* style puts the verb behind the subject, keeps the filler and must therefore wait for the end of a clause; the
*preferred* one is subject, object, verb, without the filler: in source order, short, with all key points. To write it
perfectly one must have read 1, 3, 4, 5, 7, 8, 8 source words (the last one is the EOS token's): AL 1.81, and no perfect
translation has less.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from workbench import runs
from workbench.data import Row
from workbench.methods.align.simulpl.translations import Aspects, aspects
from workbench.models import Policy, new_llama, pick_device
from workbench.stats.latency import latency
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import supervised_step
from workbench.worlds.language import word_tokenizer

KINDS = {"s": 10, "f": 4, "o": 10, "v": 10}  # subjects, fillers, objects, verbs, in source order
CLAUSES, WORDS = 2, 4
SEPARATOR = "|"
OFFLINE, PREFERRED = (0, 3, 1, 2), (0, 2, 3)  # places of a clause's source words in the order in which they are written
SPLITS = {"train": 1, "test": 2}
ORACLE_DELAYS = (1, 3, 4, 5, 7, 8, 8)  # of the preferred translation and its end
LOWEST_AL = latency(ORACLE_DELAYS, CLAUSES * WORDS, len(ORACLE_DELAYS)).AL


@dataclass(frozen=True)
class Clauses:
    """The world and its start: a model that learned the offline style from full sources.

    Attributes:
        n_pairs: of the training split.
        n_test: of the test split, the same for every seed.
        start_steps: optimiser steps of the start, 64 fresh sentences each.
    """

    n_pairs: int = 4_000
    n_test: int = 200
    start_steps: int = 400
    width: int = 64
    layers: int = 2
    device: str = "cpu"
    name: str = "clauses"
    max_new_tokens: int = 12
    counts_end: bool = True  # the EOS token is a word of its own in latencies
    unit: str = "word"
    quality_is: str = "exact"

    # -- sentences
    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """`n` sources as numbers of words within their kinds, [n, 8]."""
        return np.stack([rng.integers(size, size=n) for _ in range(CLAUSES) for size in KINDS.values()], axis=1)

    def row(self, numbers: Sequence[int]) -> Row:
        """Source with both translations, the links between source and preferred words, and its key points."""
        source = [f"{kind}{number}" for kind, number in zip([*KINDS] * CLAUSES, numbers, strict=True)]
        order = {
            style: [WORDS * c + place for c in range(CLAUSES) for place in places]
            for style, places in (("chosen", PREFERRED), ("rejected", OFFLINE))
        }
        texts = {style: " ".join(f"{source[place]}'" for place in places) for style, places in order.items()}
        links = [[place, i] for i, place in enumerate(order["chosen"])]
        row = {"source": " ".join(source), **texts, "alignment": links}
        return {**row, "key_items": texts["chosen"].split(), "n_clauses": CLAUSES}

    # -- the task
    def pairs(self, split: str, seed: int) -> list[Row]:
        rng = np.random.default_rng([SPLITS[split], seed if split == "train" else 0])
        return [self.row(numbers) for numbers in self.draw(self.n_pairs if split == "train" else self.n_test, rng)]

    def prompt(self, words: Sequence[str]) -> str:
        """What the model sees of the source: the words read so far, and the separator."""
        return " ".join([*words, SEPARATOR])

    def aspects(self, row: Row, translation: str) -> Aspects:
        return aspects(row, translation)

    def start(self, seed: int) -> Policy:
        """Offline style from full sources; no confidence head yet."""
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name in ("start_steps", "width", "layers")}
        key = {"kind": "clauses-start", "code": runs.code_hash(__name__), "seed": seed, **settings}
        folder = runs.cached_folder(key, lambda folder: self._train(seed).save(folder))
        return Policy.load(folder, device=self.device)

    def _train(self, seed: int) -> Policy:
        words = [f"{kind}{number}" for kind, size in KINDS.items() for number in range(size)]
        tokenizer = word_tokenizer([*words, *(f"{word}'" for word in words), SEPARATOR])
        model = new_llama(tokenizer, width=self.width, layers=self.layers, heads=4, max_length=32, seed=seed)
        policy = Policy(model.to(pick_device(self.device)), tokenizer, self.name)  # type: ignore[arg-type]
        rng = np.random.default_rng([seed, 0])
        rows = [self.row(numbers) for numbers in self.draw(64 * self.start_steps, rng)]
        groups = [policy.group(self.prompt(row["source"].split()), [row["rejected"]]) for row in rows]
        train(policy, groups, supervised_step, TrainConfig(learning_rate=3e-3, batch_size=64), seed=seed)
        return policy
