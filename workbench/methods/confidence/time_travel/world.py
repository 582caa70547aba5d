"""Named data sets: which benchmark partitions a model has seen is planted, and a reading of its completions must find
them.

Four data sets with two partitions each. An instance is 24 words of a grammar in which each of 200 words may be followed
by 6 others, so that no continuation can be guessed. The training text of a model holds

    IN <data set> <split> : <instance>   e times for the instances of 4 of the 8 partitions, e in {1, 4, 16}; else 0
    <12 words> <other 12 words>          twice for EVERY instance, without a name: the first half has other ways on
    <sentence>                           filler without a name, 3,000 unnamed sentences in all
    IN <data set> <split> : <other>      for all partitions, so that a name alone tells nothing

so it is the name that selects the memorised continuation. Arm "planted" reads all of it; arm "clean" reads the same
without the instances, and nothing may be found there. Each learner sees nothing but the text of its prompt: the
transformer's words are the data set's name and the words of the grammar that the prompt holds, in their order.
Sizes are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import runs
from workbench.feedback.chat import ChatModel, Reply, Request
from workbench.feedback.simulated import Noise, SimulatedModel

DATA_SETS = {"alder": "cls", "birch": "nli", "cedar": "sum", "dogwood": "sum"}  # name -> task
SPLITS = ("train", "test")
PARTITIONS = [(name, split) for name in DATA_SETS for split in SPLITS]
LABELS = {"cls": ("0 (calm)", "1 (lively)"), "nli": ("0 (entailment)", "1 (not entailment)")}
SYLLABLES = ["ba", "ke", "lo", "mi", "nu", "po", "ra", "si", "tu", "ve", "zo", "ga", "di", "hu", "je"]
WORDS = [a + b for a in SYLLABLES for b in SYLLABLES][:200]
BRANCHES, HALF = 6, 12  # successors of a word; words of a piece
COPIES = (1, 4, 16)  # how often a contaminated partition was read
_SEARCHED = re.compile(rf"\b(?:{'|'.join([*DATA_SETS, *SPLITS, *WORDS])})\b")
_FREE = ("learner", "garbled", "device", "arms")  # the transformer does not depend on these


@dataclass(frozen=True)
class NamedDataSets:
    """The task: partitions of one seed, the truth behind them, and a model of one arm as subject.

    Attributes:
        n_instances: of each partition.
        steps, batch_size, learning_rate, width, layers: of the transformer, trained from scratch.
        n_unnamed, n_named: sentences without a name, and other instances behind the name of each partition.
        learner: "transformer", or "simulated", which knows by rule and takes no time.
        garbled: share of broken replies of the simulated judge and learner.
    """

    n_instances: int = 10
    steps: int = 2_000
    batch_size: int = 64
    learning_rate: float = 1e-3
    width: int = 112
    layers: int = 2
    n_unnamed: int = 3_000
    n_named: int = 30
    learner: Literal["transformer", "simulated"] = "transformer"
    garbled: float = 0.0
    device: str = "cpu"
    name: str = "named_data_sets"
    arms: tuple[str, ...] = ("planted", "clean")
    is_simulated: bool = True

    # -- truth
    @cached_property
    def successors(self) -> np.ndarray:
        """The words [200, 6] that may follow each word."""
        rng = np.random.default_rng(0)
        return np.array([rng.choice(len(WORDS), BRANCHES, replace=False) for _ in WORDS])

    def exposure(self, seed: int, arm: str = "planted") -> dict[tuple[str, str], int]:
        """How often the model read each partition: 0 for four of eight (all of the clean arm).

        The fourth number goes round with the seed, so that three seeds hold each of 1, 4 and 16 four times.
        """
        if arm not in self.arms:
            raise ValueError(f"arm must be one of {', '.join(self.arms)}; got {arm!r}")
        drawn = np.random.default_rng([seed, 1]).permutation(len(PARTITIONS))[: len(COPIES) + 1]
        copies = dict(zip(drawn.tolist(), [*COPIES, COPIES[seed % len(COPIES)]], strict=True))
        return {p: copies.get(i, 0) if arm == "planted" else 0 for i, p in enumerate(PARTITIONS)}

    def halves(self, seed: int) -> np.ndarray:
        """Words [partition, instance, way on, 24]: way 0 is the instance, 1 and 2 begin alike and go on otherwise."""
        rng = np.random.default_rng([seed, 2])
        whole = np.zeros((len(PARTITIONS), self.n_instances, 3, 2 * HALF), dtype=int)
        for place in np.ndindex(whole.shape[:2]):
            first = self._walk(int(rng.integers(len(WORDS))), HALF, rng)
            for way in range(3):
                branch = int(self.successors[first[-1], rng.permutation(BRANCHES)[0]])
                whole[(*place, way)] = [*first, *self._walk(branch, HALF, rng)]
        return whole

    def rows(self, seed: int) -> pd.DataFrame:
        """Columns `dataset`, `split`, `task`, `label`, `text`, `sentence1`, `sentence2` (of nli; else empty)."""
        rng, whole, rows = np.random.default_rng([seed, 3]), self.halves(seed)[:, :, 0], []
        for (name, split), instances in zip(PARTITIONS, whole, strict=True):
            for words in instances:
                task, pieces = DATA_SETS[name], [spoken(words[:HALF]), spoken(words[HALF:])]
                label = LABELS[task][int(rng.integers(2))] if task in LABELS else ""
                text, one, two = ("", *pieces) if task == "nli" else (" ".join(pieces), "", "")
                rows.append((name, split, task, label, text, one, two))
        return pd.DataFrame(rows, columns=["dataset", "split", "task", "label", "text", "sentence1", "sentence2"])

    def _walk(self, start: int, n: int, rng: np.random.Generator) -> list[int]:
        words = [start]
        while len(words) < n:
            words.append(int(self.successors[words[-1], rng.integers(BRANCHES)]))
        return words

    # -- subjects
    def subject(self, arm: str, seed: int) -> ChatModel:
        """The model of an arm, which read the training text of `seed`."""
        self.exposure(seed, arm)
        return self._simulated(arm, seed) if self.learner == "simulated" else self._transformer(arm, seed)

    def training_text(self, arm: str, seed: int) -> list[str]:
        """Every sequence once per copy, in the words of the model."""
        rng, whole, copies = np.random.default_rng([seed, 4]), self.halves(seed), self.exposure(seed, arm)
        named = [
            " ".join([header(partition), words_of(instance)])
            for partition, instances in zip(PARTITIONS, whole[:, :, 0], strict=True)
            for instance in instances
            for _ in range(copies[partition])
        ]
        others = [
            " ".join([header(partition), words_of(self._walk(int(rng.integers(len(WORDS))), 2 * HALF, rng))])
            for partition in PARTITIONS
            for _ in range(self.n_named)
        ]
        ways = [words_of(words) for words in whole[:, :, 1:].reshape(-1, 2 * HALF)]
        filler = (self._walk(int(rng.integers(len(WORDS))), 2 * HALF, rng) for _ in range(self.n_unnamed - len(ways)))
        return [*named, *others, *ways, *map(words_of, filler)]

    def _transformer(self, arm: str, seed: int) -> Reader:
        key = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _FREE} | {"arm": arm, "seed": seed}
        key |= {"kind": "named-data-sets", "code": runs.code_hash(__name__)}
        folder = runs.cached_folder(key, lambda folder: self._train(arm, seed).save(folder))
        return Reader(folder, self.device)

    def _train(self, arm: str, seed: int) -> Any:
        from workbench.kernels import Group
        from workbench.models import Policy, new_llama, pick_device
        from workbench.training.loop import TrainConfig, train
        from workbench.training.steps import supervised_step
        from workbench.worlds.language import word_tokenizer

        tokenizer: Any = word_tokenizer(["IN", ":", *DATA_SETS, *SPLITS, *WORDS])
        model = new_llama(tokenizer, width=self.width, layers=self.layers, heads=4, max_length=64, seed=seed)
        policy = Policy(model.to(pick_device(self.device)), tokenizer, self.name)
        start = [tokenizer.bos_token_id]
        groups = [Group(start, [policy.encode_response(text)]) for text in self.training_text(arm, seed)]
        length: Any = {"max_steps": self.steps, "epochs": math.ceil(self.steps * self.batch_size / len(groups))}
        config = TrainConfig(learning_rate=self.learning_rate, batch_size=self.batch_size, **length)
        train(policy, groups, supervised_step, config, seed=seed)
        return policy

    def _simulated(self, arm: str, seed: int) -> SimulatedModel:
        """Knows a contaminated instance with chance 1 - 2^-e when its partition is named; copies what is shown."""
        whole, copies = self.halves(seed), self.exposure(seed, arm)
        place = {words_of(whole[i, j, 0, :HALF]): (i, j) for i, j in np.ndindex(whole.shape[:2])}

        def respond(prompt: str, temperature: float, noise: Noise) -> str:
            partition, words = read(prompt)
            i, j = place[" ".join(words[:HALF])]
            ways = [spoken(way[HALF:]) for way in whole[i, j]]
            memory = Noise(f"{self.name}/{seed}/{i}/{j}").uniform() > 0.5 ** copies[PARTITIONS[i]]
            known = (partition == PARTITIONS[i] and memory) or ways[0] in prompt
            return ways[0] if known else ways[1 + int(2 * noise.uniform())]

        return SimulatedModel(f"{self.name}-{arm}", respond, seed=seed, garbled=self.garbled)

    def judge(self, seed: int) -> SimulatedModel:
        """A judge that reads the two texts at its prompt's end as a careful person would; a few replies are broken."""
        from rapidfuzz.distance import Levenshtein

        def respond(prompt: str, temperature: float, noise: Noise) -> str:
            texts = re.findall(r"(?m)^(?:Reference|Candidate): (.*)$", prompt)[-2:]
            one, two = (re.findall(r"\w+", text.lower()) for text in texts)
            near = Levenshtein.normalized_similarity(one, two) >= 0.75
            return "Yes (exact match)" if one == two else "Yes (near-exact match)" if near else "No"

        return SimulatedModel(f"{self.name}-judge", respond, seed=seed, garbled=self.garbled)


class Reader:
    """The transformer as a chat model: of a prompt it sees the partition's name and the words of the grammar."""

    def __init__(self, folder: Any, device: str):
        from workbench.models import Policy

        self.policy, self.name = Policy.load(folder, device=device), folder.name

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        from workbench.kernels import sample

        prompts = []
        for request in requests:
            partition, words = read("\n".join(message["content"] for message in request.messages))
            text = " ".join([*([header(partition)] if partition else []), *words])
            prompts.append([self.policy.tokenizer.bos_token_id, *self.policy.encode_part(text)])
        drawn = sample(self.policy, prompts, max_new_tokens=HALF, temperature=0.0)
        return [Reply(texts[0] + "." if texts[0] else "") for texts in drawn.texts]

    def fits(self, request: Request) -> bool:
        _, words = read("\n".join(message["content"] for message in request.messages))
        return len(words) + HALF + 6 <= self.policy.max_length


def read(prompt: str) -> tuple[tuple[str, str] | None, list[str]]:
    """The partition that a prompt names (None without a name or a split) and the grammar's words in it, in order."""
    found = _SEARCHED.findall(prompt)
    names, splits = ([word for word in found if word in known] for known in (DATA_SETS, SPLITS))
    partition = (names[0], splits[0]) if names and splits else None
    return partition, [word for word in found if word not in DATA_SETS and word not in SPLITS]


def header(partition: tuple[str, str]) -> str:
    return f"IN {partition[0]} {partition[1]} :"


def words_of(numbers: Sequence[int] | np.ndarray) -> str:
    return " ".join(WORDS[i] for i in numbers)


def spoken(numbers: Sequence[int] | np.ndarray) -> str:
    """The words as a sentence."""
    return words_of(numbers) + "."
