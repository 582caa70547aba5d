"""Planted chain: responses are random walks whose distribution is known exactly. Used by SPIN and DPO.

A prompt names one of 8 topics. A response is 10 of 16 symbols: after each symbol (and at the start) 4 of the 16 may
follow, with probabilities .4, .3, .2, .1, and which 4 depends on the topic. So log p_data of any response is known, a
*defect* (a symbol that cannot follow, or is missing) is certain, and KL(p_data || p_theta) is a mean of known terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from workbench import runs
from workbench.data import Row
from workbench.kernels import Group, sample
from workbench.models import Policy
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import reference_logps
from workbench.training.steps import supervised_step
from workbench.worlds.language import draw, key_of_start, made_once, small_policy, word_tokenizer

TOPICS, SYMBOLS, LENGTH = 8, 16, 10
OF_THE_BASE = ("noise", "pretrain_steps", "width", "layers")  # worlds that agree in these share the pretrained policy
PROBABILITIES = (0.4, 0.3, 0.2, 0.1)


@dataclass(frozen=True)
class PlantedChain:
    """The world and its start: a model pre-trained on noisy chains, then fine-tuned on clean ones.

    Attributes:
        n_demonstrations: clean (prompt, response) pairs, N of the paper's algorithm.
        noise: share of symbols replaced uniformly in pre-training.
        pretrain_steps, sft_epochs: make the SFT start.
        converged_epochs: most epochs of the start that more SFT cannot improve.
        data_steps: make the policy at p_data.
        test_draws: responses behind every measurement; with 2,000 a share of 0.5 has a standard error of 0.011.
    """

    n_demonstrations: int = 1_000
    noise: float = 0.35
    pretrain_steps: int = 400
    sft_epochs: int = 8
    converged_epochs: int = 16
    data_steps: int = 800
    test_draws: int = 2_000
    width: int = 96
    layers: int = 2
    device: str = "cpu"
    name: str = "planted chain"
    max_new_tokens: int = LENGTH + 1

    # -- truth
    @cached_property
    def transitions(self) -> np.ndarray:
        """p_data(next | topic, current) [topic, current or start, next]; index `SYMBOLS` is the start state."""
        rng = np.random.default_rng(0)
        table = np.zeros((TOPICS, SYMBOLS + 1, SYMBOLS))
        for topic in range(TOPICS):
            for state in range(SYMBOLS + 1):
                table[topic, state, rng.choice(SYMBOLS, len(PROBABILITIES), replace=False)] = PROBABILITIES
        return table

    def walks(self, n: int, rng: np.random.Generator, *, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
        """`n` topics and responses [n, LENGTH] from p_data; with noise, symbols are replaced after the walk."""
        topics, walk = rng.integers(TOPICS, size=n), np.zeros((n, LENGTH), dtype=int)
        state = np.full(n, SYMBOLS)
        for i in range(LENGTH):
            state = walk[:, i] = draw(self.transitions[topics, state], rng)
        replaced = rng.random(walk.shape) < noise
        return topics, np.where(replaced, rng.integers(SYMBOLS, size=walk.shape), walk)

    def log_p_data(self, topics: np.ndarray, walks: np.ndarray) -> np.ndarray:
        """log p_data of whole responses [n], nats; -inf with a defect."""
        with np.errstate(divide="ignore"):
            return np.log(self.transitions[topics[:, None], _before(walks), walks]).sum(1)

    def defects(self, topic: int, text: str) -> int:
        """Defects of one response, 0 to LENGTH: symbols that cannot follow, foreign, missing, or beyond the end."""
        words, state, count = text.split(), SYMBOLS, 0
        for i in range(max(LENGTH, len(words))):
            word = words[i] if i < len(words) else ""
            symbol = int(word[1:]) if word.startswith("s") and word[1:].isdigit() else -1
            legal = i < LENGTH and symbol >= 0 and (state < 0 or self.transitions[topic, state, symbol] > 0)
            count += not legal
            state = symbol if symbol >= 0 else -1  # behind a foreign word any symbol may come
        return min(count, LENGTH)

    def qualities(self, prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
        """Share of each response's symbols that are no defect."""
        return [1 - self.defects(int(p[1:]), text) / LENGTH for p, text in zip(prompts, responses, strict=True)]

    # -- the task
    def start(self, seed: int) -> Policy:
        """The SFT start: pre-trained on noisy walks, then a few epochs on clean ones; 5 to 15 % defects are left."""
        return self._cached("sft", seed, self._train_start)

    def converged(self, seed: int) -> Policy:
        """The SFT start trained on to the smallest validation loss, so that more SFT cannot help."""
        return self._cached("converged", seed, self._train_on)

    def at_the_data(self, seed: int) -> Policy:
        """A policy at p_data: trained on fresh draws until KL(p_data || p_theta) is below 0.02 nats.

        Every symbol is learned from the distribution it was drawn from instead of from the draw alone: the same
        expected loss with less noise, so that far fewer steps are needed.
        """
        return self._cached("data", seed, self._train_at_the_data)

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        rng = np.random.default_rng([seed, 1 if split == "train" else 2])
        topics, walks = self.walks(self.n_demonstrations if split == "train" else 500, rng)
        return [{"prompt": f"t{topic}", "completion": text(walk)} for topic, walk in zip(topics, walks, strict=True)]

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs that the start itself wrote; the one with fewer defects is chosen. Ties are left out."""
        key = self._key(f"pairs-{split}", seed)
        return runs.read_json(runs.cached_folder(key, partial(self._write_pairs, split, seed)) / "rows.json")

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Share of responses without a defect (`quality`), of defect symbols, and KL(p_data || p_theta) a response."""
        topics, walks = self.walks(self.test_draws, np.random.default_rng(3))  # the same for every seed and arm
        groups = self._groups(policy, topics, walks)
        kl = self.log_p_data(topics, walks) - reference_logps(policy, groups)[:, 0]
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": 10_000 + seed, "max_rows": 500}
        samples = sample(policy, [f"t{t}" for t in topics], **options)
        defects = np.array([self.defects(t, texts[0]) for t, texts in zip(topics, samples.texts, strict=True)])
        rates = {"quality": float(np.mean(defects == 0)), "defect_rate": float(defects.mean() / LENGTH)}
        return {**rates, "kl_nats": float(kl.mean())}

    # -- making the start
    def _new(self, seed: int) -> Policy:
        tokenizer = word_tokenizer([*(f"t{i}" for i in range(TOPICS)), *(f"s{i}" for i in range(SYMBOLS))])
        return small_policy(self, tokenizer, max_length=32, seed=seed)

    def _groups(self, policy: Policy, topics: np.ndarray, walks: np.ndarray) -> list[Group]:
        prompts = {t: policy.encode_prompt(f"t{t}") for t in range(TOPICS)}
        symbols = np.array(policy.tokenizer.convert_tokens_to_ids([f"s{i}" for i in range(SYMBOLS)]))
        ended = [[*ids, policy.tokenizer.eos_token_id] for ids in symbols[walks].tolist()]
        return [Group(prompts[t], [ids]) for t, ids in zip(topics.tolist(), ended, strict=True)]

    def _soft_step(self, policy: Policy, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy of each position with p_data's distribution there, EOS token included, nats a token."""
        groups, topics, walks = zip(*batch, strict=True)
        ids = torch.tensor([g.prompt_ids + g.responses_ids[0] for g in groups], device=policy.device)
        logps = policy.model(input_ids=ids).logits[:, -LENGTH - 2 : -1].log_softmax(-1)
        following = self.transitions[np.array(topics)[:, None], _before(np.stack(walks))]
        target = torch.zeros_like(logps)
        target[:, :-1, -SYMBOLS:] = torch.as_tensor(following, dtype=logps.dtype, device=logps.device)
        target[:, -1, policy.tokenizer.eos_token_id] = 1.0
        return -(target * logps).sum(-1).mean(-1), {}

    def _train_base(self, seed: int) -> Policy:
        policy, rng = self._new(seed), np.random.default_rng([seed, 0])
        noisy = self._groups(policy, *self.walks(64 * self.pretrain_steps, rng, noise=self.noise))
        train(policy, noisy, supervised_step, TrainConfig(learning_rate=2e-3, schedule="constant"), seed=seed)
        return policy

    def _train_start(self, seed: int) -> Policy:
        policy = self._cached("base", seed, self._train_base)
        config = TrainConfig(learning_rate=3e-4, epochs=self.sft_epochs, schedule="constant")
        train(policy, self._own_groups(policy, "train", seed), supervised_step, config, seed=seed)
        return policy

    def _train_on(self, seed: int) -> Policy:
        policy, epochs = self.start(seed), self.converged_epochs
        rows, test = self._own_groups(policy, "train", seed), self._own_groups(policy, "test", seed)
        best, best_loss = policy.copy(), np.inf
        for epoch in range(epochs):  # one decaying schedule, cut into epochs so that the best can be kept
            config = TrainConfig(learning_rate=1e-3 * (1 - epoch / epochs), schedule="constant", warmup_ratio=0.0)
            train(policy, rows, supervised_step, config, seed=seed * 100 + epoch)
            loss = -reference_logps(policy, test).mean()
            if loss < best_loss:
                best, best_loss = policy.copy(), loss
        return best

    def _train_at_the_data(self, seed: int) -> Policy:
        policy, rng = self._new(seed), np.random.default_rng([seed, 7])
        topics, walks = self.walks(32 * self.data_steps, rng)
        rows = list(zip(self._groups(policy, topics, walks), topics, walks, strict=True))
        config = TrainConfig(learning_rate=5e-3, batch_size=32, schedule="cosine")
        train(policy, rows, self._soft_step, config, seed=seed)
        return policy

    def _own_groups(self, policy: Policy, split: str, seed: int) -> list[Group]:
        return [policy.group(row["prompt"], [row["completion"]]) for row in self.demonstrations(split, seed)]

    def _write_pairs(self, split: str, seed: int, folder: Path) -> None:
        wanted = self.n_demonstrations if split == "train" else 500
        topics = np.random.default_rng([seed, 4 if split == "train" else 5]).integers(TOPICS, size=2 * wanted).tolist()
        prompts = [f"t{topic}" for topic in topics]
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "seed": seed * 10 + len(split)}
        samples = sample(self.start(seed), prompts, n=2, **options)
        rows = []
        for topic, pair in zip(topics, samples.texts, strict=True):
            fewer, more = sorted(pair, key=lambda response, t=topic: self.defects(t, response))
            if self.defects(topic, fewer) < self.defects(topic, more):
                rows.append({"prompt": f"t{topic}", "chosen": fewer, "rejected": more})
        runs.write_json(folder / "rows.json", rows[:wanted])

    def _cached(self, kind: str, seed: int, build: Callable[[int], Policy]) -> Policy:
        return made_once(self._key(kind, seed), self.device, lambda: build(seed))

    def _key(self, kind: str, seed: int) -> dict:
        others = [f.name for f in fields(self) if f.name not in OF_THE_BASE]
        free = others if kind == "base" else ["device", "test_draws"]
        return key_of_start(self, f"planted-chain-{kind}", __name__, seed, free)


def _before(walks: np.ndarray) -> np.ndarray:
    """The state before each symbol of walks [n, LENGTH]."""
    return np.concatenate([np.full((len(walks), 1), SYMBOLS), walks[:, :-1]], 1)


def text(walk: np.ndarray) -> str:
    return " ".join(f"s{symbol}" for symbol in walk)
