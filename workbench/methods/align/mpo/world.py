"""Noisy gap: pairs whose labels are close to coin flips where the responses are equally good.

A prompt is three different symbols of 12. A response should be six symbols long and mention the prompt's symbols
without repeating any: r* = 2 (share of the prompt's symbols mentioned) - (share of repeated symbols) + 2 (exactly six
symbols), in units of its standard deviation over what the start imitates. A pair is two responses of the start; the
first is called better with probability sigma(c (r*_1 - r*_2)), so labels are wrong near ties and nearly clean where the
gap is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import permutations
from pathlib import Path

import numpy as np
import torch

from workbench import runs
from workbench.data import Row
from workbench.kernels import sample
from workbench.models import Policy, new_llama, pick_device
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import supervised_step
from workbench.worlds.language import word_tokenizer

SYMBOLS, LENGTH = 12, 6
WORDS = [f"s{symbol}" for symbol in range(SYMBOLS)]
HELD_OUT = 320  # of the 1,320 prompts


@dataclass(frozen=True)
class NoisyGap:
    """The world and its start.

    Attributes:
        n_pairs: training pairs.
        sharpness: c; a label is right with probability sigma(c gap).
        sft_steps: of 64 references of mixed quality each, that make the start.
        test_draws: responses behind every measurement; with 1,000 a mean of standard deviation 1 has an error of 0.03.
    """

    n_pairs: int = 3_000
    sharpness: float = 2.0
    sft_steps: int = 400
    test_draws: int = 1_000
    width: int = 64
    layers: int = 2
    device: str = "cpu"
    name: str = "noisy gap"
    max_new_tokens: int = LENGTH + 3

    # -- truth
    def raw(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """The reward before scaling, [n]; an empty response mentions nothing, repeats nothing, has the wrong length."""
        rewards = []
        for prompt, response in zip(prompts, responses, strict=True):
            wanted, said = prompt.split(), response.split()
            mentioned = np.mean([word in said for word in wanted])
            repeated = 1 - len(set(said)) / len(said) if said else 0.0
            rewards.append(2 * mentioned - repeated + 2 * (len(said) == LENGTH))
        return np.array(rewards)

    @cached_property
    def scale(self) -> tuple[float, float]:
        """Mean and standard deviation of the reward over what the start imitates."""
        rows = self.imitated(self._all_prompts * 3, np.random.default_rng(23))
        raw = self.raw([row["prompt"] for row in rows], [row["completion"] for row in rows])
        return float(raw.mean()), float(raw.std())

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """r*: mean 0 and standard deviation 1 over what the start imitates, [n]."""
        mean, deviation = self.scale
        return (self.raw(prompts, responses) - mean) / deviation

    def imitated(self, prompts: Sequence[str], rng: np.random.Generator) -> list[Row]:
        """Responses of mixed quality: each symbol is one of the prompt's with probability 0.5, the length sometimes
        wrong."""
        rows = []
        for prompt in prompts:
            wanted = prompt.split()
            length = LENGTH if rng.random() < 0.7 else int(rng.integers(LENGTH - 2, LENGTH + 3))
            draw = (
                wanted[rng.integers(3)] if rng.random() < 0.5 else WORDS[rng.integers(SYMBOLS)] for _ in range(length)
            )
            rows.append({"prompt": prompt, "completion": " ".join(draw)})
        return rows

    # -- the task
    @cached_property
    def _all_prompts(self) -> list[str]:
        triples = list(permutations(WORDS, 3))
        return [" ".join(triples[i]) for i in np.random.default_rng(29).permutation(len(triples))]

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        """The same prompts for every seed, in an order of its own; training and test prompts differ."""
        rows = self._all_prompts[:HELD_OUT] if split == "test" else self._all_prompts[HELD_OUT:]
        order = np.random.default_rng([seed, 17]).permutation(len(rows))
        return [rows[i] for i in order[part::parts]]

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """References of mixed quality, as the start was trained on."""
        return self.imitated(self.prompts(split, seed), np.random.default_rng([seed, 31 if split == "train" else 32]))

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs that the start wrote, with noisy labels; the same text twice is left out."""
        key = self._key(f"pairs-{split}", seed)
        folder = runs.cached_folder(key, lambda folder: self._write_pairs(folder, split, seed))
        return runs.read_json(folder / "rows.json")

    def start(self, seed: int) -> Policy:
        """A model trained on references of mixed quality."""
        folder = runs.cached_folder(self._key("sft", seed), lambda folder: self._train_start(seed).save(folder))
        return Policy.load(folder, device=self.device)

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Mean true reward at temperature 1 (`quality`) and greedy, and how often it beats the start's on a prompt."""
        pool = self.prompts("test", 0)
        prompts = [pool[i % len(pool)] for i in range(self.test_draws)]
        responses = sample(policy, prompts, max_new_tokens=self.max_new_tokens, seed=10_000 + seed)
        rewards = self.score(prompts, [line[0] for line in responses.texts])
        greedy = sample(policy, pool, max_new_tokens=self.max_new_tokens, temperature=0.0)
        key = {**self._key("start-rewards", seed), "draws": self.test_draws}
        folder = runs.cached_folder(key, lambda folder: self._write_start_rewards(folder, prompts, seed))
        theirs = np.array(runs.read_json(folder / "rewards.json"))
        return {
            "quality": float(rewards.mean()),
            "greedy": float(self.score(pool, [line[0] for line in greedy.texts]).mean()),
            "win_rate": float(np.mean((rewards > theirs) + 0.5 * (rewards == theirs))),
        }

    def _write_start_rewards(self, folder: Path, prompts: list[str], seed: int) -> None:
        responses = sample(self.start(seed), prompts, max_new_tokens=self.max_new_tokens, seed=40_000 + seed)
        runs.write_json(folder / "rewards.json", self.score(prompts, [line[0] for line in responses.texts]).tolist())

    def _write_pairs(self, folder: Path, split: str, seed: int) -> None:
        rng = np.random.default_rng([seed, 4 if split == "train" else 5])
        wanted, pool = self.n_pairs if split == "train" else 400, self.prompts(split, seed)
        prompts = [pool[i] for i in rng.integers(len(pool), size=wanted)]
        start, room = self.start(seed), self.max_new_tokens
        responses = sample(start, prompts, n=2, max_new_tokens=room, seed=seed * 10 + len(split))
        first, second = ([line[k] for line in responses.texts] for k in (0, 1))
        gap = self.score(prompts, first) - self.score(prompts, second)
        wins = rng.random(wanted) < 1 / (1 + np.exp(-self.sharpness * gap))
        rows = [
            {"prompt": prompt, "chosen": a if win else b, "rejected": b if win else a}
            for prompt, a, b, win in zip(prompts, first, second, wins.tolist(), strict=True)
            if a != b and a and b
        ]
        runs.write_json(folder / "rows.json", rows)

    def _train_start(self, seed: int) -> Policy:
        tokenizer = word_tokenizer(WORDS)
        model = new_llama(tokenizer, width=self.width, layers=self.layers, heads=4, max_length=64, seed=seed)
        # about 1 / sqrt(width); at the usual 0.02 a model this narrow hardly learns to look at its prompt
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(4.0 if weight.dim() == 2 else 1.0)
        policy, rng = Policy(model.to(pick_device(self.device)), tokenizer, self.name), np.random.default_rng([seed, 0])
        pool = self.prompts("train", seed)
        rows = self.imitated([pool[i] for i in rng.integers(len(pool), size=64 * self.sft_steps)], rng)
        groups = [policy.group(row["prompt"], [row["completion"]]) for row in rows]
        train(policy, groups, supervised_step, TrainConfig(learning_rate=2e-3, schedule="cosine"), seed=seed)
        return policy

    def _key(self, kind: str, seed: int) -> dict:
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("device", "test_draws")}
        return {"kind": f"noisy-gap-{kind}", "code": runs.code_hash(__name__), "seed": seed, **settings}
