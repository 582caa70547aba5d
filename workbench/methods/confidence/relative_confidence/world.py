"""Known questions: a world in which a model's right answers, its sense of them and its words are planted.

The model sees nothing but the text of its prompt, so a wrong template, a swapped side or a broken parser shows up as
a wrong number.

Each question i has an ability a_i ~ N(0.8, 1.6^2) and is answered rightly with chance sigma(a_i). The model senses
s_i = a_i + N(0, sig_int^2) and speaks from it: stated numbers are coarse and too high, comparisons are noisy and lean
to the question shown first. Its repeated samples agree with its answer by a sense of their own. Which of the two
senses is the better one is what the regimes set:

    R  sensed confidence good (sig_int 1),  agreement of samples poor (sig_sc 1.6)
    S  sensed confidence poor (sig_int 2.5), agreement of samples good (sig_sc 0.6)
    Z  neither knows anything: both are drawn apart from the ability

That the winner differs between R and S is planted, so this world tests a pipeline, not how real models behave.
Constants and regimes are ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from workbench.feedback.chat import LETTERS
from workbench.feedback.simulated import Noise, SimulatedModel

ABILITY_MEAN, ABILITY_SD = 0.8, 1.6  # about 62 % right
STATED_SLOPE, STATED_NOISE, STATED_SHIFT = 0.5, 0.8, 1.8  # over-confident: 0 sensed is stated as 0.86
STATED_NUMBERS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 1.0)  # the few numbers that models like to say
JUDGE_NOISE, JUDGE_FIRST = 0.7, 0.3  # logistic scale; lean to the first question, 0.3 / 0.7 = 0.43 in logits
AGREE_SLOPE, AGREE_SHIFT = 0.8, 1.6  # a sample agrees with the answer with chance sigma(0.8 (...) + 1.6)
COLOURS = ("red", "green", "blue", "yellow", "black", "white", "brown", "grey")
N_CHOICES = 4


class Regime(NamedTuple):
    sig_int: float
    sig_sc: float
    knows: bool = True


REGIMES = {"R": Regime(1.0, 1.6), "S": Regime(2.5, 0.6), "Z": Regime(1.0, 1.6, knows=False)}


@dataclass(frozen=True)
class KnownQuestions:
    """The task: questions of one seed, the truth behind them, and the simulated model of one regime as subject.

    Args:
        n_questions: questions in each seed's draw.
        garbled: share of the model's replies that come out broken.
    """

    n_questions: int = 150
    garbled: float = 0.02
    name: str = "known_questions"
    arms: tuple[str, ...] = tuple(REGIMES)
    is_simulated: bool = True

    def questions(self, seed: int) -> list[dict[str, Any]]:
        """Rows `qid`, `question`, `choices`, `gold` (index of the right option), `dataset`."""
        truth = self._truth(seed)
        return [
            {
                "qid": f"q{i}",
                "question": f"In the catalogue, which colour is the cover of item {i}?",
                "choices": [COLOURS[c] for c in truth["options"][i]],
                "gold": int(truth["gold"][i]),
                "dataset": self.name,
            }
            for i in range(self.n_questions)
        ]

    def sensed(self, arm: str, seed: int) -> dict[str, float]:
        """The confidence s_i that the model of this regime senses, by `qid`: what a ranking should recover."""
        return {f"q{i}": float(s) for i, s in enumerate(self._senses(arm, seed)[0])}

    def right(self, seed: int) -> np.ndarray:
        """Whether the model's answer is right [questions], 1 or 0."""
        truth = self._truth(seed)
        return (truth["answer"] == truth["gold"]).astype(float)

    @staticmethod
    def judge(
        left: np.ndarray, right: np.ndarray, rng: np.random.Generator, *, noise: float = JUDGE_NOISE, ties: float = 0.0
    ) -> np.ndarray:
        """The planted judge without words: outcomes for the first of two sensed confidences, one half for a tie."""
        outcomes = (left - right + noise * rng.logistic(size=len(left)) + JUDGE_FIRST > 0).astype(float)
        return np.where(rng.random(len(left)) < ties, 0.5, outcomes)

    def subject(self, arm: str, seed: int) -> SimulatedModel:
        """The model of regime `arm`, which knows the questions of `seed`."""
        truth, (sensed, agreement) = self._truth(seed), self._senses(arm, seed)

        def respond(prompt: str, temperature: float, noise: Noise) -> str:
            shown = [int(number) for number in re.findall(r"of item (\d+)\?", prompt)]
            if len(shown) == 2:
                left, right = (sensed[i] for i in shown)
                first = left - right + JUDGE_NOISE * noise.logistic() + JUDGE_FIRST > 0
                thought = "I recall one of the two covers better.\n" if "explain" in prompt.lower() else ""
                return f"{thought}More confident: {1 if first else 2}"
            if len(shown) != 1:
                raise ValueError(
                    f"the simulated model expects one or two questions in its prompt; got {len(shown)}: {prompt!r}"
                )
            answer = int(truth["answer"][shown[0]])
            if temperature > 0 and noise.uniform() > agreement[shown[0]]:
                answer = (answer + 1 + int((N_CHOICES - 1) * noise.uniform())) % N_CHOICES
            return f"Answer: {LETTERS[answer]}\nConfidence: {stated(sensed[shown[0]], noise):g}"

        return SimulatedModel(f"{self.name}-{arm}", respond, seed=seed, garbled=self.garbled)

    def _truth(self, seed: int) -> Mapping[str, np.ndarray]:
        rng = np.random.default_rng([seed, 0])
        n = self.n_questions
        ability = rng.normal(ABILITY_MEAN, ABILITY_SD, n)
        correct = rng.random(n) < 1 / (1 + np.exp(-ability))
        gold = rng.integers(N_CHOICES, size=n)
        wrong = (gold + rng.integers(1, N_CHOICES, size=n)) % N_CHOICES
        options = rng.random((n, len(COLOURS))).argsort(axis=1)[:, :N_CHOICES]
        return {"ability": ability, "gold": gold, "answer": np.where(correct, gold, wrong), "options": options}

    def _senses(self, arm: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Sensed confidence [questions] and chance that a sample agrees with the answer [questions]."""
        if arm not in REGIMES:
            raise ValueError(f"regime must be one of {', '.join(REGIMES)}; got {arm!r}")
        regime, rng = REGIMES[arm], np.random.default_rng([seed, 1 + list(REGIMES).index(arm)])
        n = self.n_questions
        ability = self._truth(seed)["ability"] if regime.knows else rng.normal(ABILITY_MEAN, ABILITY_SD, n)
        sensed = ability + rng.normal(0.0, regime.sig_int, n)
        basis = AGREE_SLOPE * (ability + rng.normal(0.0, regime.sig_sc, n)) + AGREE_SHIFT
        return sensed, 1 / (1 + np.exp(-basis))


def stated(sensed: float, noise: Noise) -> float:
    """The number the model says for what it senses: noisy, over-confident, one of a few."""
    p = 1 / (1 + math.exp(-STATED_SLOPE * (sensed + STATED_NOISE * noise.normal()) - STATED_SHIFT))
    return min(STATED_NUMBERS, key=lambda number: abs(number - p))
