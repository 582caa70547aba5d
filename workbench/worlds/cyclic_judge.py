"""Cyclic judge: rock, paper, scissors over responses that can all be listed. Used by SPPO and DNO.

A prompt is two of 12 symbols (144 prompts), a response three of 6 symbols (216 responses, no EOS token). A response's
class is (sum of its symbols + first prompt symbol) mod 3; each class beats the next one, as in rock, paper, scissors.
Its quality is the number of distinct symbols over 3. The judge: P(y beats y') = clip(1/2 + 0.35 cycle + 0.3 (q - q'),
0.02, 0.98). No score of single responses explains that. The Nash policy has quality 1 and a third of its mass on each
class.

Any other string loses to all 216 and ties with its like; together such strings are one more response, number 216, whose
probability is the *leak*. So every policy is a table [prompt, 217], and all that is asked about it is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from workbench.data import Row
from workbench.kernels import Group
from workbench.models import Policy
from workbench.stats import games
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import supervised_step
from workbench.worlds.language import draw, key_of_start, made_once, small_policy, word_tokenizer

PROMPT_SYMBOLS, SYMBOLS, LENGTH, CLASSES = 12, 6, 3, 3
WORDS = np.array(list(itertools.product(range(SYMBOLS), repeat=LENGTH)))  # [response, position]
OUTSIDE = len(WORDS)
FIRST = np.repeat(np.arange(PROMPT_SYMBOLS), PROMPT_SYMBOLS)  # first symbol of each prompt
PROMPTS = [f"p{i} p{j}" for i in range(PROMPT_SYMBOLS) for j in range(PROMPT_SYMBOLS)]
RESPONSES = [" ".join(f"s{symbol}" for symbol in word) for word in WORDS]
QUALITY = np.array([len(set(word)) / LENGTH for word in WORDS.tolist()] + [0.0])  # the outside has none


@dataclass(frozen=True)
class CyclicJudge:
    """The world, its start and its teacher.

    Attributes:
        start_steps: optimiser steps that fit the start to its skewed distribution.
        test_share: share of the prompts that the "test" split holds; training prompts are the others. 0: both hold all.
    """

    start_steps: int = 600
    test_share: float = 0.0
    width: int = 64
    layers: int = 2
    device: str = "cpu"
    name: str = "cyclic judge"
    max_new_tokens: int = LENGTH

    # -- truth
    @cached_property
    def classes(self) -> np.ndarray:
        """Class of every response to every prompt, [prompt, 216]."""
        return (WORDS.sum(1)[None, :] + FIRST[:, None]) % CLASSES

    @cached_property
    def preference(self) -> np.ndarray:
        """P(row beats column) for every prompt, [144, 217, 217]; the last one is any string outside the 216."""
        return self._judge(0.35)

    @cached_property
    def outside_preference(self) -> np.ndarray:
        """A second judge that looks at quality alone, for a report beside that of the judge that was trained on."""
        return self._judge(0.0)

    def _judge(self, cycle: float) -> np.ndarray:
        classes = self.classes[: CLASSES * PROMPT_SYMBOLS : PROMPT_SYMBOLS]  # one prompt for each shift of the classes
        ahead = (classes[:, :, None] - classes[:, None, :]) % CLASSES
        sign = np.array([0.0, -1.0, 1.0])[ahead]  # a class beats the one after it
        q = QUALITY[:OUTSIDE]
        table = np.ones((CLASSES, OUTSIDE + 1, OUTSIDE + 1))
        table[:, OUTSIDE], table[:, OUTSIDE, OUTSIDE] = 0.0, 0.5
        table[:, :OUTSIDE, :OUTSIDE] = np.clip(0.5 + cycle * sign + 0.3 * (q[:, None] - q[None, :]), 0.02, 0.98)
        return table[FIRST % CLASSES]  # three different matrices in all

    @cached_property
    def nash(self) -> np.ndarray:
        """The symmetric Nash policy [144, 217]: quality 1 only, a third of the mass on each class."""
        best = [(QUALITY[:OUTSIDE] == 1) & (self.classes == c) for c in range(CLASSES)]
        table = np.sum([members / members.sum(1, keepdims=True) / CLASSES for members in best], axis=0)
        return np.append(table, np.zeros((len(PROMPTS), 1)), axis=1)

    @cached_property
    def gold(self) -> np.ndarray:
        """The teacher's policy [144, 217]: quality 1, always of class 0, so that class 2 beats it."""
        members = (QUALITY[:OUTSIDE] == 1) & (self.classes == 0)
        return np.append(members / members.sum(1, keepdims=True), np.zeros((len(PROMPTS), 1)), axis=1)

    # -- the task
    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        """Prompts of a split, or of one of its disjoint parts; the test prompts are the same for every seed."""
        order = np.random.default_rng(0).permutation(len(PROMPTS))
        n_test = round(self.test_share * len(PROMPTS))
        kept = order[:n_test] if split == "test" and n_test else order[n_test:]
        if split != "test":
            kept = np.random.default_rng([seed, 1]).permutation(kept)
        return [PROMPTS[i] for i in kept[part::parts]]

    def prefer(self, prompts: Sequence[str], a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a beats b) for each row; a text that is none of the 216 is the outside."""
        return self.preference[_numbers(prompts, PROMPTS), _numbers(a, RESPONSES), _numbers(b, RESPONSES)]

    def teacher(self, prompts: Sequence[str], seed: int) -> list[str]:
        """A draw from `gold` for each prompt."""
        return [RESPONSES[i] for i in draw(self.gold[_numbers(prompts, PROMPTS)], np.random.default_rng([seed, 2]))]

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs of the start's own responses, one a prompt and repetition; the judge's favourite is chosen."""
        rng, probabilities = np.random.default_rng([seed, 3 if split == "train" else 4]), self._start_probabilities()
        rows = []
        for prompt in self.prompts(split, seed) * 4:
            i, j = draw(probabilities[[PROMPTS.index(prompt)] * 2], rng)
            if i != j:
                i, j = (i, j) if self.preference[PROMPTS.index(prompt), i, j] >= 0.5 else (j, i)
                rows.append({"prompt": prompt, "chosen": RESPONSES[i], "rejected": RESPONSES[j]})
        return rows

    def start(self, seed: int) -> Policy:
        """A model fitted to softmax(-6 quality + 2 [class 0]): mostly low quality, one class; easy to exploit."""
        key = key_of_start(self, "cyclic-judge-start", __name__, seed, ("device", "test_share"))
        return made_once(key, self.device, lambda: self._train_start(seed))

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Exact numbers of a policy, see `measure`; `quality` is the mean share of distinct symbols."""
        return self.measure(self.table(policy))

    # -- exact measurements
    @torch.no_grad()
    def table(self, policy: Policy) -> np.ndarray:
        """Probability of every response to every prompt [144, 217]; the last column is the rest.

        A response's first two symbols are scored once for all six that may follow, a sixth of the work of `score`.
        """
        symbols = policy.tokenizer.convert_tokens_to_ids([f"s{i}" for i in range(SYMBOLS)])
        prefixes = [[symbols[i], symbols[j]] for i in range(SYMBOLS) for j in range(SYMBOLS)]
        prompts = [policy.encode_prompt(prompt) for prompt in PROMPTS]
        rows = torch.tensor([prompt + prefix for prompt in prompts for prefix in prefixes], device=policy.device)
        policy.model.eval()
        batches = []
        for batch in rows.split(1_024):
            with policy.autocast():
                logits = policy.model(input_ids=batch, use_cache=False, logits_to_keep=LENGTH).logits
            batches.append(logits.double().log_softmax(-1)[..., symbols].cpu().numpy())
        logps = np.concatenate(batches).reshape(len(PROMPTS), SYMBOLS, SYMBOLS, LENGTH, SYMBOLS)
        i, j, k = WORDS.T
        legal = np.exp(logps[:, 0, 0, 0][:, i] + logps[:, i, 0, 1, j] + logps[:, i, j, 2, k])
        return np.append(legal, np.maximum(1 - legal.sum(1, keepdims=True), 0.0), axis=1)

    def measure(self, table: np.ndarray) -> dict[str, float]:
        """Mean over prompts: quality, leak, exploitability, and the win rate against the teacher's policy."""
        return {
            "quality": float((table @ QUALITY).mean()),
            "leak": float(table[:, OUTSIDE].mean()),
            "exploitability": float(games.exploitability(table, self.preference).mean()),
            "win_against_gold": self.win_rate(table, self.gold),
        }

    def win_rate(self, table: np.ndarray, opponent: np.ndarray, *, outside_judge: bool = False) -> float:
        """P(a response of one policy beats one of the other), mean over prompts, by this judge or by the second one."""
        judge = self.outside_preference if outside_judge else self.preference
        return float(games.win_rate(table, opponent, judge).mean())

    def win_rates(self, table: np.ndarray, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Exact P(response beats the policy of the table) for each row."""
        rows = _numbers(prompts, PROMPTS)
        return (self.preference[rows, _numbers(responses, RESPONSES)] * table[rows]).sum(1)

    # -- making the start
    def _start_probabilities(self) -> np.ndarray:
        weights = np.exp(-6 * QUALITY[:OUTSIDE] + 2 * (self.classes == 0))
        return weights / weights.sum(1, keepdims=True)

    def _train_start(self, seed: int) -> Policy:
        tokenizer = word_tokenizer([*(f"p{i}" for i in range(PROMPT_SYMBOLS)), *(f"s{i}" for i in range(SYMBOLS))])
        policy, rng = small_policy(self, tokenizer, max_length=16, seed=seed), np.random.default_rng([seed, 0])
        config = TrainConfig(learning_rate=3e-3, batch_size=128, warmup_ratio=0.0)
        numbers = rng.integers(len(PROMPTS), size=config.batch_size * self.start_steps)
        symbols = np.array(tokenizer.convert_tokens_to_ids([f"s{i}" for i in range(SYMBOLS)]))
        prompts = [policy.encode_prompt(prompt) for prompt in PROMPTS]
        responses = symbols[WORDS[draw(self._start_probabilities()[numbers], rng)]].tolist()
        groups = [Group(prompts[n], [ids]) for n, ids in zip(numbers.tolist(), responses, strict=True)]
        train(policy, groups, supervised_step, config, seed=seed)
        return policy


def _numbers(texts: Sequence[str], known: Sequence[str]) -> np.ndarray:
    """Place of each text among the known ones; `len(known)` for any other."""
    places = {text: i for i, text in enumerate(known)}
    return np.array([places.get(" ".join(text.split()), len(known)) for text in texts])
