"""Late-reward chain: one right response a prompt, and nothing is earned before all of it is right.

A prompt is three of 12 symbols, a_0 a_1 a_2. The right response is y_0 = a_0, y_i = y_{i-1} + a_{i mod 3} + [i odd]
y_{i-1} (mod 12), 18 symbols long. The start has the distribution of chains in which a symbol is random with probability
`noise` (and the next ones follow from it), so most of its steps are right and a whole response almost never is: a
policy that is rewarded for whole responses sees no reward, unless it begins close to the end of a right one.

The noise, 0.3, is our pilot's. It decides what is measured: with less of it more of the start's responses are
right by chance, PPO finds a few in each update, and since they need no more than sharper probabilities, which all steps
share, it learns from them; with more of it nobody but a policy that was reset to references ever sees a reward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import torch

from workbench import runs
from workbench.data import Row
from workbench.kernels import sample
from workbench.models import Policy, pick_device
from workbench.training.loop import TrainConfig, train
from workbench.worlds.language import word_tokenizer

SYMBOLS = 12
HELD_OUT = 228  # of the 1,728 prompts
WORDS = [f"s{symbol}" for symbol in range(SYMBOLS)]


@dataclass(frozen=True)
class LateRewardChain:
    """The world and its start.

    Attributes:
        length: symbols of a response, H; an EOS token more is generated.
        noise: share of random symbols in the distribution that the start was trained to (never the first).
        sft_steps: of 32 chains each, that make the start.
        n_pairs: preferences that a reward model can be trained on.
        test_draws: responses behind every measurement; 500 give a share of 0.5 a standard error of 0.022.
    """

    length: int = 18
    noise: float = 0.3
    sft_steps: int = 550
    n_pairs: int = 1_500
    test_draws: int = 500
    width: int = 64
    layers: int = 2
    device: str = "cpu"
    name: str = "late-reward chain"

    @property
    def max_new_tokens(self) -> int:
        return self.length + 1

    # -- truth
    def chains(self, prompts: np.ndarray, rng: np.random.Generator | None = None, noise: float = 0.0) -> np.ndarray:
        """Responses [n, length] to prompts [n, 3]: right ones, or with symbols that are random and carried on from."""
        walk = np.zeros((len(prompts), self.length), dtype=int)
        state = walk[:, 0] = prompts[:, 0]
        for i in range(1, self.length):
            state = (state + prompts[:, i % 3] + (i % 2) * state) % SYMBOLS
            if rng is not None:
                state = np.where(rng.random(len(prompts)) < noise, rng.integers(SYMBOLS, size=len(prompts)), state)
            walk[:, i] = state
        return walk

    def leading_run(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Share of the response that is right before its first mistake, [n]; a missing symbol is a mistake."""
        right = self.chains(symbols(prompts))
        lengths = []
        for truth, response in zip(right, responses, strict=True):
            words = response.split()
            wrong = [i for i in range(self.length) if i >= len(words) or words[i] != WORDS[truth[i]]]
            lengths.append((wrong[0] if wrong else self.length) / self.length)
        return np.array(lengths)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """1 where the whole response is right and nothing follows it, else 0."""
        both = zip(self.chains(symbols(prompts)), responses, strict=True)
        return np.array([float(response.split() == text(truth).split()) for truth, response in both])

    # -- the task
    @cached_property
    def _all_prompts(self) -> list[str]:
        order = np.random.default_rng(11).permutation(SYMBOLS**3)
        return [text(np.array(np.unravel_index(i, (SYMBOLS,) * 3))) for i in order]

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        """The same prompts for every seed, in an order of its own; training and test prompts differ."""
        rows = self._all_prompts[:HELD_OUT] if split == "test" else self._all_prompts[HELD_OUT:]
        order = np.random.default_rng([seed, 17]).permutation(len(rows))
        return [rows[i] for i in order[part::parts]]

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """References: one right chain a prompt."""
        prompts = self.prompts(split, seed)
        both = zip(prompts, self.chains(symbols(prompts)), strict=True)
        return [{"prompt": prompt, "completion": text(right)} for prompt, right in both]

    def patchy_demonstrations(self, split: str, seed: int) -> list[Row]:
        """References that are right in their first and last third only; the symbols between are random."""
        prompts = self.prompts(split, seed)
        right = self.chains(symbols(prompts))
        third = self.length // 3
        right[:, third : 2 * third] = np.random.default_rng([seed, 19]).integers(SYMBOLS, size=(len(right), third))
        return [{"prompt": p, "completion": text(y)} for p, y in zip(prompts, right, strict=True)]

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs of noisy chains, as the start writes them; the one right for longer is chosen, ties are left out."""
        rng = np.random.default_rng([seed, 13 if split == "train" else 14])
        wanted = self.n_pairs if split == "train" else 300
        pool = self.prompts(split, seed)
        prompts = [pool[i] for i in rng.integers(len(pool), size=2 * wanted)]
        pair = [[text(y) for y in self.chains(symbols(prompts), rng, self.noise)] for _ in range(2)]
        leading = [self.leading_run(prompts, side) for side in pair]
        rows = []
        for i, prompt in enumerate(prompts):
            if (first := int(leading[0][i] < leading[1][i])) or leading[0][i] != leading[1][i]:
                rows.append({"prompt": prompt, "chosen": pair[first][i], "rejected": pair[1 - first][i]})
        return rows[:wanted]

    def start(self, seed: int) -> Policy:
        """A model trained on noisy chains of the training prompts."""
        folder = runs.cached_folder(self._key(seed), lambda folder: self._train_start(seed).save(folder))
        return Policy.load(folder, device=self.device)

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Share of right responses (`quality`) and mean leading run, sampled from the bare prompt at temperature 1."""
        pool = self.prompts("test", 0)
        prompts = [pool[i % len(pool)] for i in range(self.test_draws)]
        responses = sample(policy, prompts, max_new_tokens=self.max_new_tokens, seed=10_000 + seed)
        texts = [line[0] for line in responses.texts]
        quality, leading_run = (measure(prompts, texts).mean() for measure in (self.score, self.leading_run))
        return {"quality": float(quality), "leading_run": float(leading_run)}

    def _train_start(self, seed: int) -> Policy:
        """The distribution of noisy chains, learned from its exact probabilities at random places instead of from noisy
        chains: sooner by far, the same distribution."""
        tokenizer = word_tokenizer(WORDS)
        model: Any = self._new_model(tokenizer, seed)
        policy, rng = Policy(model.to(pick_device(self.device)), tokenizer, self.name), np.random.default_rng([seed, 0])
        pool = self.prompts("train", seed)
        prompts = [pool[i] for i in rng.integers(len(pool), size=32 * self.sft_steps)]
        walks = self.chains(symbols(prompts), rng, noise=1.0)
        groups = [policy.group(prompt, [text(walk)]) for prompt, walk in zip(prompts, walks, strict=True)]
        rows = list(zip(groups, symbols(prompts), walks, strict=True))
        config = TrainConfig(learning_rate=2e-3, batch_size=32, schedule="cosine", warmup_ratio=0.05)
        train(policy, rows, self._soft_step, config, seed=seed)
        return policy

    def _new_model(self, tokenizer, seed: int):
        """A GPT-2: which prompt symbol a step adds depends on the place, and learned places make that easy to learn."""
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(seed)
        sizes: Any = {"n_positions": 64, "n_embd": self.width, "n_layer": self.layers, "n_head": 4}
        marks: Any = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
        none: Any = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        # about 1 / sqrt(width); at the usual 0.02 a model this narrow learns ten times slower
        config = GPT2Config(vocab_size=len(tokenizer), initializer_range=0.08, **sizes, **marks, **none)
        return GPT2LMHeadModel(config)

    def _soft_step(self, policy: Policy, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Cross-entropy with the distribution of noisy chains at each place, EOS token included, nats a token."""
        groups, prompts, walks = zip(*batch, strict=True)
        ids = torch.tensor([g.prompt_ids + g.responses_ids[0] for g in groups], device=policy.device)
        logps = policy.model(input_ids=ids).logits[:, -self.length - 2 : -1].log_softmax(-1)
        prompt, walk, places = np.array(prompts), np.stack(walks), np.arange(1, self.length)
        right = np.concatenate([prompt[:, :1], (walk[:, :-1] * (1 + places % 2) + prompt[:, places % 3]) % SYMBOLS], 1)
        wanted = np.full((*right.shape, SYMBOLS), self.noise / SYMBOLS)
        wanted[:, 0] = 0
        shares = np.where(np.arange(self.length) == 0, 1.0, 1 - self.noise)
        wanted += np.eye(SYMBOLS)[right] * shares[None, :, None]
        target = torch.zeros_like(logps)
        target[:, :-1, -SYMBOLS:] = torch.as_tensor(wanted, dtype=logps.dtype, device=logps.device)
        target[:, -1, policy.tokenizer.eos_token_id] = 1.0
        return -(target * logps).sum(-1).mean(-1), {}

    def _key(self, seed: int) -> dict:
        free = ("device", "test_draws", "n_pairs")
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in free}
        return {"kind": "late-reward-chain-sft", "code": runs.code_hash(__name__), "seed": seed, **settings}


def symbols(prompts: Sequence[str]) -> np.ndarray:
    """Prompts [n, 3] as numbers.

    Raises:
        ValueError: a prompt that is not three symbols of this world.
    """
    rows = [[int(word[1:]) if word in WORDS else -1 for word in prompt.split()] for prompt in prompts]
    for prompt, row in zip(prompts, rows, strict=True):
        if len(row) != 3 or min(row) < 0:
            raise ValueError(f"a prompt of this world is three of {WORDS[0]}..{WORDS[-1]}; got {prompt!r}")
    return np.array(rows)


def text(walk: np.ndarray) -> str:
    return " ".join(WORDS[symbol] for symbol in walk)
