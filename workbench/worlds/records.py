"""Records: a document is a list of keys with values, a question asks for some of them. Used by LOGO and LongPO.

`k7 v3 k60 v11 ...` is a document with distinct keys; `Q k60 k7 A` asks for two of them, and `v11 v3` is the answer. So
the evidence that a question needs is known: the records of its keys. The model is trained on documents of 2 to 6
records and reads longer ones worse the longer they are. A *misaligned* start finds the right value and writes another
one half of the time. A second task, `Q2 Q2 A` for the first and last key, is only trained here and may be forgotten.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from workbench.data import Row
from workbench.kernels import Group, sample, score
from workbench.models import Policy, pick_device
from workbench.training.loop import TrainConfig, train
from workbench.worlds.language import key_of_start, made_once, word_tokenizer
from workbench.worlds.look_back import LookBackConfig, LookBackForCausalLM

N_KEYS = 64
SHORT = (2, 6)  # records of the documents that the start was trained on
SPLITS = {"train": 1, "test": 2}
_FREE = ("device", "n_documents", "n_records", "chunk", "turns", "lengths", "n_test")  # starts do not depend on these


class Lesson(NamedTuple):
    """A document with several questions and answers behind it; only the answers are learned."""

    group: Group
    is_answer: list[bool]


@dataclass(frozen=True)
class Records:
    """The world and its starts.

    Attributes:
        n_values: different values.
        value_tokens, longest_value: tokens of a record's value, at least and at most.
        asked: keys a question.
        rope_theta: base of the rotary positions; at 300 the model does not extrapolate.
        second_task: share of the questions of the training that ask for the first and the last key.
        misaligned_steps: updates on answers of which half of the values are those of another record.
        n_documents, n_records, chunk, turns: of the training split; records a chunk; questions a document.
        lengths: records of the documents of the evaluation.
        n_test: questions of the evaluation for each length, the same for every seed.
    """

    n_values: int = 24
    value_tokens: int = 1
    longest_value: int = 1
    asked: int = 2
    rope_theta: float = 300.0
    second_task: float = 0.0
    steps: int = 450
    misaligned_steps: int = 120
    n_documents: int = 400
    n_records: int = 12
    chunk: int = 2
    turns: int = 1
    lengths: tuple[int, ...] = (6, 12, 24, 44)
    n_test: int = 200
    width: int = 48
    device: str = "cpu"
    name: str = "records"

    @property
    def max_new_tokens(self) -> int:
        return max(2, self.asked * self.longest_value) + 1

    # -- truth
    def records(self, n: int, rng: np.random.Generator) -> list[tuple[str, str]]:
        """`n` records with different keys, in order: (key, value)."""
        keys = rng.permutation(N_KEYS)[:n]
        values = [
            rng.integers(self.n_values, size=k) for k in rng.integers(self.value_tokens, self.longest_value + 1, n)
        ]
        return [(f"k{key}", " ".join(f"v{v}" for v in own)) for key, own in zip(keys, values, strict=True)]

    def ask(self, records: Sequence[tuple[str, str]], rng: np.random.Generator) -> dict[str, Any]:
        """A question about some of the records: `question`, `answer` and `critical`, the numbers of its records."""
        critical = rng.permutation(len(records))[: self.asked].tolist()
        keys, values = zip(*(records[i] for i in critical), strict=True)
        return {"question": " ".join(["Q", *keys, "A"]), "answer": " ".join(values), "critical": critical}

    @staticmethod
    def right(answer: str, text: str) -> float:
        """Share of the answer's values that stand in their places, 0 to 1."""
        words, wanted = text.split(), answer.split()
        return float(np.mean([i < len(words) and words[i] == word for i, word in enumerate(wanted)]))

    # -- documents
    def documents(self, split: str, seed: int) -> list[Row]:
        """Rows `chunks` (texts in order), `questions`, `answers`, `chunk_of` (for each question, where its first record
        stands), and `critical` (for each question, the numbers of its records in the document)."""
        rng = np.random.default_rng([SPLITS[split], seed if split == "train" else 0])
        return [self._document(rng) for _ in range(self.n_documents if split == "train" else self.n_test)]

    def longer(self, n_records: int) -> Records:
        """The same world with documents of so many records."""
        return replace(self, n_records=n_records)

    def _document(self, rng: np.random.Generator) -> Row:
        records = self.records(self.n_records, rng)
        starts = range(0, self.n_records, self.chunk)
        if self.turns == 1:
            asked = [self.ask(records, rng)]
        else:  # each question about one chunk of its own
            places = rng.permutation(len(starts))[: self.turns] * self.chunk
            asked = [self.ask(records[place : place + self.chunk], rng) for place in places]
            asked = [{**a, "critical": [int(c + p) for c in a["critical"]]} for a, p in zip(asked, places, strict=True)]
        return {
            "chunks": [written(records[start : start + self.chunk]) for start in starts],
            "questions": [a["question"] for a in asked],
            "answers": [a["answer"] for a in asked],
            "critical": [a["critical"] for a in asked],
            "chunk_of": [a["critical"][0] // self.chunk for a in asked],
        }

    def evidence(self, row: Row, rng: np.random.Generator) -> list[list[str]]:
        """Three contexts for a row's first question: six records with all that it needs, without one, without any."""
        records = [record for chunk in row["chunks"] for record in self.split(chunk)]
        needed = row["critical"][0]
        others = [i for i in rng.permutation(len(records)).tolist() if i not in needed]
        whole = sorted([*needed, *others[: SHORT[1] - len(needed)]])
        lost = int(rng.integers(len(needed)))
        kept = (whole, [i for i in whole if i != needed[lost]], [i for i in whole if i not in needed])
        return [[written([records[i]]) for i in context] for context in kept]

    @staticmethod
    def split(text: str) -> list[tuple[str, str]]:
        """The records of a piece of a document."""
        return [(key, values.strip()) for key, values in re.findall(r"(k\d+)((?: v\d+)+)", text)]

    # -- measurements
    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """For each length n: `retrieval_n`, values that are right where the likeliest token is taken, `recall_n`,
        values that are right in answers drawn at temperature 1; `second_task`, greedy, on the shortest documents;
        `quality`, the mean recall.
        """
        numbers: dict[str, float] = {}
        for n in self.lengths:
            prompts, asked = self._questions(n)
            for name, temperature in (("retrieval", 0.0), ("recall", 1.0)):
                numbers[f"{name}_{n}"] = float(np.mean(self._shares(policy, prompts, asked, temperature, seed)))
        if self.second_task:
            prompts, asked = self._questions(min(self.lengths), second=True)
            numbers["second_task"] = float(np.mean(self._shares(policy, prompts, asked, 0.0, seed)))
        return {"quality": float(np.mean([numbers[f"recall_{n}"] for n in self.lengths])), **numbers}

    def needles(self, policy: Policy) -> pd.DataFrame:
        """Greedy answers by where the first record they need stands: `length`, `depth` (0 to 1), `right`."""
        tables = []
        for n in self.lengths:
            prompts, asked = self._questions(n)
            depth, right = [a["critical"][0] / (n - 1) for a in asked], self._shares(policy, prompts, asked, 0.0, 0)
            tables.append(pd.DataFrame({"length": n, "depth": depth, "right": right}))
        return pd.concat(tables, ignore_index=True)

    def _questions(self, n: int, second: bool = False) -> tuple[list[str], list[dict[str, Any]]]:
        rng = np.random.default_rng([3, n])
        texts = [self.records(n, rng) for _ in range(self.n_test)]
        asked = [_second_task(text) if second else self.ask(text, rng) for text in texts]
        return [f"{written(text)} {a['question']}" for text, a in zip(texts, asked, strict=True)], asked

    def _shares(self, policy: Policy, prompts: list[str], asked: list[dict], heat: float, seed: int) -> list[float]:
        drawn = sample(policy, prompts, max_new_tokens=self.max_new_tokens, temperature=heat, seed=10_000 + seed)
        return [self.right(a["answer"], texts[0]) for a, texts in zip(asked, drawn.texts, strict=True)]

    # -- starting checkpoints
    def start(self, seed: int) -> Policy:
        """Trained on short documents: right there, worse the longer the document is."""
        return self._cached("start", seed, self._train_start)

    def misaligned(self, seed: int) -> Policy:
        """The start after some updates on answers of which half of the values are those of other records."""
        return self._cached("misaligned", seed, self._misalign)

    def _train_start(self, seed: int) -> Policy:
        words = ["Q", "A", "Q2", "|", *(f"k{i}" for i in range(N_KEYS)), *(f"v{i}" for i in range(self.n_values))]
        tokenizer = word_tokenizer(words)
        torch.manual_seed(seed)
        size: dict[str, Any] = {"hidden_size": self.width, "intermediate_size": 8 * self.width // 3}
        size |= {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2}
        special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        config = LookBackConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=False,
            initializer_range=0.1,  # at 0.02 one seed in three does not find the records in these steps
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            **size,
            **special,
        )
        policy = Policy(LookBackForCausalLM(config).to(pick_device(self.device)), tokenizer, self.name)  # type: ignore[arg-type]
        rows = self.lessons(policy, 32 * self.steps, np.random.default_rng([seed, 0]))
        return self._learned(policy, rows, seed, learning_rate=3e-3, warmup_ratio=min(1.0, 50 / self.steps))

    def _misalign(self, seed: int) -> Policy:
        policy = self.start(seed)
        rows = self.lessons(policy, 32 * self.misaligned_steps, np.random.default_rng([seed, 1]), wrong=0.5)
        return self._learned(policy, rows, seed, learning_rate=5e-4, warmup_ratio=0.0)

    def _learned(self, policy: Policy, rows: Sequence[Lesson], seed: int, **options: float) -> Policy:
        train(policy, rows, answer_step, TrainConfig(batch_size=32, schedule="constant", **options), seed=seed)  # type: ignore[arg-type]
        return policy

    def lessons(
        self, policy: Policy, n: int, rng: np.random.Generator, *, questions: int = 3, wrong: float = 0.0
    ) -> list[Lesson]:
        """Short documents with questions and answers behind each other; each value of an answer is with probability
        `wrong` replaced by that of another record."""
        ids = policy.tokenizer.get_vocab()
        bos, eos = policy.tokenizer.bos_token_id, policy.tokenizer.eos_token_id
        lessons = []
        for _ in range(n):
            records = self.records(int(rng.integers(SHORT[0], SHORT[1] + 1)), rng)
            learned, is_answer = [], []
            for _ in range(questions):
                a = _second_task(records) if rng.random() < self.second_task else self.ask(records, rng)
                answer = a["answer"].split()
                if wrong and "critical" in a:
                    answer = []
                    for i in a["critical"]:
                        others = [j for j in range(len(records)) if j != i]
                        answer += records[int(rng.choice(others)) if rng.random() < wrong else i][1].split()
                asked = [ids[word] for word in a["question"].split()]
                told = [*(ids[word] for word in answer), eos]
                learned += [*asked, *told]
                is_answer += [False] * len(asked) + [True] * len(told)
            prompt = [bos, *(ids[word] for word in written(records).split())]
            lessons.append(Lesson(Group(prompt, [learned]), is_answer))
        return lessons

    def _cached(self, kind: str, seed: int, build: Callable[[int], Policy]) -> Policy:
        return made_once(key_of_start(self, f"records-{kind}", __name__, seed, _FREE), self.device, lambda: build(seed))


class AnswerStep:
    """Losses [row]: negative log-likelihood of the answers of a `Lesson`, nats; divided by their tokens."""

    def __call__(self, policy: Policy, batch: Sequence[Lesson]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        logps = score(policy, [lesson.group for lesson in batch]).token_logps[:, 0]
        inside = torch.zeros_like(logps)
        for row, lesson in zip(inside, batch, strict=True):
            row[: len(lesson.is_answer)] = torch.tensor(lesson.is_answer, dtype=logps.dtype)
        return -(logps * inside).sum(-1), {}

    @staticmethod
    def denominator(batch: Sequence[Lesson]) -> int:
        return sum(sum(lesson.is_answer) for lesson in batch)


answer_step = AnswerStep()


def written(records: Sequence[tuple[str, str]]) -> str:
    return " ".join(f"{key} {value}" for key, value in records)


def _second_task(records: Sequence[tuple[str, str]]) -> dict[str, Any]:
    return {"question": "Q2 Q2 A", "answer": f"{records[0][0]} {records[-1][0]}"}
