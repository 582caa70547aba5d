"""Exposed facts: a small transformer that has read some facts often and some once, and is asked what it knows.

The corpus holds lines "subject value", each fact as often as its planted exposure (1 to 32). Training stops while about
three in five facts are right. What the model knows is then its own: log p(value | subject) of a real transformer. It
speaks from that: its answer is its most probable value, its stated number that value's probability in four coarse
levels. Asked which of two answers it is surer of, it says

    F   the one with the larger log-probability (temperature 0, as the paper's judge)
    FT  one drawn from the softmax of the two log-probabilities at temperature 0.7

Sizes and exposures are ours. 0.7 is the temperature that self-consistency samples at.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from workbench import runs
from workbench.feedback.chat import LETTERS, Request
from workbench.feedback.simulated import Noise, SimulatedModel

EXPOSURES = (1, 2, 4, 8, 16, 32)
VALUES = 20
LEVELS = 4  # of the stated number: 0.25, 0.5, 0.75, 1
TEMPERATURES = {"F": 0.0, "FT": 0.7}  # of the choice between two answers


@dataclass(frozen=True)
class ExposedFacts:
    """The task: facts of one seed, how often each was read, and the model that read them.

    Args:
        n_questions: facts that are asked about, drawn by seed.
        garbled: share of the model's replies that come out broken.
        n_facts: facts in the corpus.
        steps: optimiser steps of 64 facts; at 50 about three in five are right (pilots: 40 .39, 55 .76).
    """

    n_questions: int = 150
    garbled: float = 0.02
    n_facts: int = 600
    steps: int = 50
    width: int = 64
    layers: int = 2
    name: str = "exposed_facts"
    arms: tuple[str, ...] = tuple(TEMPERATURES)
    is_simulated: bool = True

    def questions(self, seed: int) -> list[dict[str, Any]]:
        """Rows `qid`, `question`, `choices`, `gold` (index of the right value), `dataset`."""
        asked = np.sort(np.random.default_rng([seed, 2]).permutation(self.n_facts)[: self.n_questions])
        gold = self._facts(seed)[0]
        return [
            {"qid": f"f{i}", "question": f"Which value belongs to subject {i}?", "choices": self._values}
            | {"gold": int(gold[i]), "dataset": self.name}
            for i in asked
        ]

    def sensed(self, arm: str, seed: int) -> dict[str, float]:
        """Log-probability of the model's answer, by `qid`: what a ranking should recover."""
        return {f"f{i}": float(row.max()) for i, row in enumerate(self.logps(seed))}

    def exposure(self, seed: int) -> dict[str, int]:
        """How often each fact stands in the corpus, by `qid`."""
        return {f"f{i}": int(times) for i, times in enumerate(self._facts(seed)[1])}

    def subject(self, arm: str, seed: int) -> FactModel:
        return FactModel(self, arm, seed)

    def logps(self, seed: int) -> np.ndarray:
        """log p(value | subject) [facts, values] of the trained model, in nats; trained once for these settings."""
        key = {"kind": "exposed-facts", "code": runs.code_hash(__name__), "seed": seed, "facts": self.n_facts}
        key |= {"steps": self.steps, "width": self.width, "layers": self.layers}
        return np.load(runs.cached_folder(key, lambda folder: self._train(seed, folder)) / "logps.npy")

    @cached_property
    def _values(self) -> list[str]:
        return [f"v{value}" for value in range(VALUES)]

    def _facts(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Value and exposure of every fact [facts]."""
        rng = np.random.default_rng([seed, 0])
        return rng.integers(VALUES, size=self.n_facts), rng.choice(EXPOSURES, size=self.n_facts)

    def _train(self, seed: int, folder: Path) -> None:
        import torch

        from workbench.kernels import score
        from workbench.models import Policy, new_llama
        from workbench.training.loop import TrainConfig, train
        from workbench.training.steps import supervised_step
        from workbench.worlds.language import word_tokenizer

        tokenizer = word_tokenizer([*(f"s{i}" for i in range(self.n_facts)), *self._values])
        model = new_llama(tokenizer, width=self.width, layers=self.layers, heads=4, max_length=8, seed=seed)
        policy, (values, exposures) = Policy(model, tokenizer), self._facts(seed)
        read = np.repeat(np.arange(self.n_facts), exposures)
        rng = np.random.default_rng([seed, 1])
        passes = 64 * self.steps // len(read) + 1
        lines = np.concatenate([rng.permutation(read) for _ in range(passes)])[: 64 * self.steps]
        rows = [policy.group(f"s{i}", [f"v{values[i]}"]) for i in lines]
        config = TrainConfig(learning_rate=2e-3, batch_size=64, schedule="constant")
        train(policy, rows, supervised_step, config, seed=seed)
        asked = [policy.group(f"s{i}", self._values) for i in range(self.n_facts)]
        with torch.inference_mode():
            first = score(policy, asked).token_logps[:, :, 0]  # of the value; the end token says nothing
        np.save(folder / "logps.npy", first.double().log_softmax(-1).numpy())


class FactModel(SimulatedModel):
    """The trained model behind a voice: it turns a prompt's subjects into probabilities, and those into words."""

    def __init__(self, task: ExposedFacts, arm: str, seed: int):
        self._logps, self._temperature = task.logps(seed), TEMPERATURES[arm]
        super().__init__(f"{task.name}-{arm}-{task.steps}", self._speak, seed=seed, garbled=task.garbled)

    def label_logps(self, requests: Sequence[Request], labels: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Log-probability (nats) of each option's letter, for every request."""
        rows = [self._logps[_subjects(request.messages[-1]["content"])[0]] for request in requests]
        return [row[[LETTERS.index(letter) for letter in own]] for row, own in zip(rows, labels, strict=True)]

    def _speak(self, prompt: str, temperature: float, noise: Noise) -> str:
        asked = _subjects(prompt)
        if len(asked) == 2:
            ahead = np.subtract(*(self._logps[i].max() for i in asked)) + self._temperature * noise.logistic()
            return f"More confident: {1 if ahead > 0 else 2}"
        p = np.exp(self._logps[asked[0]] / (temperature or 1.0))
        value = int((p.cumsum() / p.sum() < noise.uniform()).sum()) if temperature > 0 else int(p.argmax())
        level = np.ceil(LEVELS * np.exp(self._logps[asked[0], value])) / LEVELS
        return f"Answer: {LETTERS[value]}\nConfidence: {level:g}"


def _subjects(prompt: str) -> list[int]:
    found = [int(number) for number in re.findall(r"belongs to subject (\d+)\?", prompt)]
    if len(found) not in (1, 2):
        raise ValueError(f"the model expects one or two subjects in its prompt; got {len(found)}: {prompt!r}")
    return found
