"""Target and distractor: every prompt has one right answer and a fixed popular mistake. Used by PRO and FLR.

A prompt is two numbers a, b. The right answer is t_1 t_2 ..., sums of a, b and the place, modulo the number of symbols.
A response of quality q keeps each right symbol with probability q and writes the fixed *distractor* 5 t + 7 instead.
The corpus has q ~ U(0, q_max) with a low q_max, so the distractor is the popular habit and imitation has a ceiling. The
reward is R = 4 (share of right symbols - 1/2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from workbench.data import Row
from workbench.kernels import Group, sample
from workbench.models import Policy
from workbench.stats.text_overlap import bleu
from workbench.training.loop import TrainConfig, train
from workbench.training.steps import supervised_step
from workbench.worlds.language import key_of_start, made_once, small_policy, word_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %} {{ m['role'] }} {{ m['content'] }}{% if m['role'] == 'assistant' %} "
    "{{ eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)
GOOD, BAD, POSE = "good", "bad", "pose"  # words that ask for something
HEARD = [f"w{i}" for i in range(12)]  # the listener's words
HELD_OUT = 0.25  # share of prompts


@dataclass(frozen=True)
class TargetAndDistractor:
    """The world and its start.

    Attributes:
        numbers: a and b are below it.
        symbols: of answers; the modulus.
        shortest, longest: symbols of an answer; where they differ, each response draws its length.
        best_quality: q_max of the corpus.
        start_steps: of 64 responses each that make the start.
        n_rows, n_candidates: of the training lists.
        draws: samples of each held-out prompt.
    """

    numbers: int = 12
    symbols: int = 24
    shortest: int = 6
    longest: int = 6
    best_quality: float = 0.6
    start_steps: int = 500
    start_learning_rate: float = 2e-3
    n_rows: int = 1_500
    n_candidates: int = 5
    draws: int = 20
    width: int = 64
    layers: int = 2
    device: str = "cpu"
    name: str = "target and distractor"
    hints = (BAD, GOOD)  # what the chain-of-hindsight baseline says before a response

    @property
    def max_new_tokens(self) -> int:
        return self.longest + 2

    # -- truth
    def right(self, prompts: Sequence[str]) -> np.ndarray:
        """The right answers [prompt, longest]."""
        a, b = _numbers(prompts)
        return (a + np.arange(1, self.longest + 1) * (b + 1) + a * b) % self.symbols

    def share_right(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """Share of a response's symbols that are right, [n]; symbols that are missing or too many are wrong."""
        shares = []
        for answer, response in zip(self.right(prompts), responses, strict=True):
            said = response.split()
            hits = sum(word == f"t{t}" for word, t in zip(said, answer, strict=False))
            shares.append(hits / max(len(said), self.shortest))
        return np.array(shares)

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> np.ndarray:
        """R = 4 (share right - 1/2), [n], within [-2, 2]."""
        return 4 * (self.share_right(prompts, responses) - 0.5)

    def respond(self, prompts: Sequence[str], quality: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One response of the given quality [prompt] to each prompt."""
        right = self.right(prompts)
        written = np.where(rng.random(right.shape) < quality[:, None], right, (5 * right + 7) % self.symbols)
        lengths = rng.integers(self.shortest, self.longest + 1, len(right))
        return [_text(row[:n]) for row, n in zip(written, lengths, strict=True)]

    def corpus(self, prompts: Sequence[str], rng: np.random.Generator) -> list[str]:
        """One response of the corpus to each prompt."""
        return self.respond(prompts, rng.uniform(0, self.best_quality, len(prompts)), rng)

    # -- the task
    @cached_property
    def _all_prompts(self) -> list[str]:
        prompts = [f"a{a} b{b}" for a in range(self.numbers) for b in range(self.numbers)]
        return [prompts[i] for i in np.random.default_rng(41).permutation(len(prompts))]

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        """Held-out ("test") or training prompts, the same for every seed; "validation": a ninth of the latter.

        The validation prompts have training lists: what is chosen there is how the policy itself answers them.
        """
        n = round(HELD_OUT * len(self._all_prompts))
        test, train = self._all_prompts[:n], self._all_prompts[n:]
        return {"test": test, "train": train, "validation": train[: len(train) // 9]}[split][part::parts]

    def rankings(self, split: str, seed: int) -> list[Row]:
        """Training lists as drawn, unsorted; "test": a ladder of 0, 1, ... right symbols for each held-out prompt."""
        rng = np.random.default_rng([seed, 43 if split == "train" else 44])
        pool = self.prompts(split, seed)
        if split != "train":
            return [self._ladder(prompt, rng) for prompt in pool]
        prompts = [pool[i] for i in rng.integers(len(pool), size=self.n_rows)]
        columns = [self.corpus(prompts, rng) for _ in range(self.n_candidates)]
        rows = []
        for prompt, responses in zip(prompts, zip(*columns, strict=True), strict=True):
            scores = self.score([prompt] * len(responses), responses).tolist()
            rows.append({"prompt": prompt, "responses": list(responses), "scores": scores})
        return rows

    def _ladder(self, prompt: str, rng: np.random.Generator) -> Row:
        (right,), rungs = self.right([prompt]), []
        for hits in range(self.shortest + 1):
            length = int(rng.integers(self.shortest, self.longest + 1))
            keep = np.isin(np.arange(length), rng.permutation(length)[:hits])
            rungs.append(_text(np.where(keep, right[:length], (5 * right[:length] + 7) % self.symbols)))
        return {"prompt": prompt, "responses": rungs, "scores": self.score([prompt] * len(rungs), rungs).tolist()}

    def start(self, seed: int) -> Policy:
        """A model of the corpus."""
        return made_once(self._key("start", seed), self.device, lambda: self._train_start(seed))

    def evaluate(self, policy: Policy, seed: int, ask: Callable[[str], Any] = str) -> dict[str, float]:
        """Mean reward of samples (`quality`) and of greedy answers, and greedy BLEU, on the held-out prompts.

        `bleu_words`, `bleu_characters`: against the best of five corpus responses, as the paper compares with the
        chosen answer; `bleu_right`: by words, against the right answer.

        Args:
            ask: what to make of a prompt before it is answered.
        """
        prompts = self.prompts("test", seed)
        drawn, greedy = self._answers(policy, [ask(prompt) for prompt in prompts], seed)
        rewards = self.score([p for p in prompts for _ in range(self.draws)], drawn)
        rng = np.random.default_rng([seed, 45])
        candidates = [self.corpus(prompts, rng) for _ in range(self.n_candidates)]
        best = np.argmax([self.score(prompts, column) for column in candidates], axis=0)
        chosen = [candidates[k][i] for i, k in enumerate(best.tolist())]
        right = [_text(row) for row in self.right(prompts)]
        numbers = {"quality": float(rewards.mean()), "greedy": float(self.score(prompts, greedy).mean())}
        words = [[text.split() for text in texts] for texts in (greedy, chosen, right)]
        pairs = {"words": words[:2], "characters": (greedy, chosen), "right": words[::2]}
        return numbers | {f"bleu_{name}": float(np.mean(list(map(bleu, *both)))) for name, both in pairs.items()}

    def _answers(self, policy: Policy, asked: list[Any], seed: int) -> tuple[list[str], list[str]]:
        """`draws` samples of every prompt, one prompt behind the other, and the greedy answers."""
        options: dict[str, Any] = {"max_new_tokens": self.max_new_tokens}
        drawn = sample(policy, asked, n=self.draws, seed=10_000 + seed, max_rows=500, **options).texts
        greedy = sample(policy, asked, temperature=0.0, **options).texts
        return [text for texts in drawn for text in texts], [texts[0] for texts in greedy]

    # -- making the start
    def _new(self, seed: int) -> Policy:
        names = [f"{letter}{i}" for letter in "ab" for i in range(self.numbers)]
        words = ["user", "assistant", GOOD, BAD, POSE, *names, *(f"t{i}" for i in range(self.symbols)), *HEARD]
        return small_policy(self, word_tokenizer(words, TEMPLATE), max_length=64, seed=seed)

    def _texts(self, policy: Policy, seed: int) -> list[Group]:
        """What the start learns from: one response of the corpus to each of many prompts, held-out ones among them."""
        rng = np.random.default_rng([seed, 42])
        prompts = [self._all_prompts[i] for i in rng.integers(len(self._all_prompts), size=64 * self.start_steps)]
        encoded = {prompt: policy.encode_prompt(prompt) for prompt in self._all_prompts}
        pairs = zip(prompts, self.corpus(prompts, rng), strict=True)
        return [Group(encoded[prompt], [policy.encode_response(response)]) for prompt, response in pairs]

    def _train_start(self, seed: int, **options: bool) -> Policy:
        policy = self._new(seed)
        config = TrainConfig(learning_rate=self.start_learning_rate, schedule="cosine", warmup_ratio=0.02)
        train(policy, self._texts(policy, seed, **options), supervised_step, config, seed=seed)
        return policy

    def _key(self, kind: str, seed: int) -> dict:
        # what the start does not depend on
        free = ["device", "n_rows", "n_candidates", "draws", "feedback_steps", "explicit", "repetitions", "n_pairs"]
        return key_of_start(self, f"target-{kind}", __name__, seed, free)


@dataclass(frozen=True)
class Listener(TargetAndDistractor):
    """The world with a listener, who says after a response one of five phrases that mean "good" or of five that mean
    "bad".

    P(good) = sigma(k (share right - 0.4)). The start hears a weak listener; its own likelihood favours the distractor
    all the same. No word gives the polarity away: both kinds of phrases have the same words equally often.

    Attributes:
        weak, explicit: k in the texts of the start, and in the written feedback.
        feedback_steps: of 64 dialogues each.
        repetitions: of each prompt, where samples are drawn.
        n_pairs: of the ranking test.
    """

    numbers: int = 6
    symbols: int = 16
    shortest: int = 4
    longest: int = 4
    best_quality: float = 0.8
    start_steps: int = 700
    start_learning_rate: float = 3e-3
    weak: float = 3.0
    explicit: float = 12.0
    feedback_steps: int = 250
    repetitions: int = 6
    n_pairs: int = 600
    name: str = "target and distractor with a listener"
    pose = POSE

    @cached_property
    def follow_ups(self) -> dict[str, dict[str, list[str]]]:
        """The listener's phrases, as one dimension."""
        rng = np.random.default_rng(46)
        words = rng.permutation([*HEARD, *rng.permutation(HEARD)[:3]])
        again = rng.permutation(words)
        kinds = {"positive": words, "negative": again}
        return {"listener": {kind: [" ".join(row) for row in w.reshape(5, 3)] for kind, w in kinds.items()}}

    def right(self, prompts: Sequence[str]) -> np.ndarray:
        a, b = _numbers(prompts)
        return (3 * a + 5 * b + np.arange(1, self.longest + 1) * (a + 1)) % self.symbols

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list[str]:
        """All prompts in every split, since a taste is learned and no rule for new prompts; repeated for training."""
        return (self._all_prompts * (self.repetitions if split == "train" else 1))[part::parts]

    def hear(self, prompts: Sequence[str], responses: Sequence[str], k: float, rng: np.random.Generator) -> list[str]:
        """What the listener says after each response."""
        good = rng.random(len(prompts)) < 1 / (1 + np.exp(-k * (self.share_right(prompts, responses) - 0.4)))
        said, which = self.follow_ups["listener"], rng.integers(5, size=len(good))
        return [said["positive" if g else "negative"][i] for g, i in zip(good, which, strict=True)]

    def dialogues(self, n: int, k: float, rng: np.random.Generator, *, shuffled: bool = False) -> list[Row]:
        """Rows with `prompt`, `response` and `feedback`; shuffled, the feedback belongs to another row."""
        prompts = [self._all_prompts[i] for i in rng.integers(len(self._all_prompts), size=n)]
        responses = self.corpus(prompts, rng)
        heard = self.hear(prompts, responses, k, rng)
        heard = [heard[i] for i in rng.permutation(n)] if shuffled else heard
        return [{"prompt": p, "response": r, "feedback": f} for p, r, f in zip(prompts, responses, heard, strict=True)]

    def feedback(self, seed: int, *, shuffled: bool = False) -> list[Row]:
        """Dialogues with written feedback, to tune a scorer on."""
        rng = np.random.default_rng([seed, 47])
        return self.dialogues(64 * self.feedback_steps, self.explicit, rng, shuffled=shuffled)

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs of random responses to the same prompt of unequal quality, the better one chosen; q ~ U(0, 1)."""
        rng, rows = np.random.default_rng([seed, 48 if split == "train" else 49]), []
        while len(rows) < self.n_pairs:
            prompts = [self._all_prompts[i] for i in rng.integers(len(self._all_prompts), size=self.n_pairs)]
            a, b = (self.respond(prompts, rng.uniform(0, 1, self.n_pairs), rng) for _ in range(2))
            gaps = self.share_right(prompts, a) - self.share_right(prompts, b)
            for prompt, x, y, gap in zip(prompts, a, b, gaps, strict=True):
                if gap:
                    rows.append({"prompt": prompt, "chosen": x if gap > 0 else y, "rejected": y if gap > 0 else x})
        return rows[: self.n_pairs]

    def deaf(self, seed: int) -> Policy:
        """The start, had what the listener says been independent of the response."""
        return made_once(self._key("deaf", seed), self.device, lambda: self._train_start(seed, deaf=True))

    def evaluate(self, policy: Policy, seed: int, ask: Callable[[str], Any] = str) -> dict[str, float]:
        """Share of right symbols in samples at temperature 1 (`quality`) and in greedy answers, over all prompts."""
        prompts = self.prompts("test", seed)
        drawn, greedy = self._answers(policy, [ask(prompt) for prompt in prompts], seed)
        share = self.share_right([p for p in prompts for _ in range(self.draws)], drawn)
        return {"quality": float(share.mean()), "greedy": float(self.share_right(prompts, greedy).mean())}

    def _new(self, seed: int) -> Policy:
        """With weights scaled to the width: from transformers' 0.02 so few steps do not hear the listener."""
        policy = super()._new(seed)
        torch.manual_seed(seed)
        for weight in policy.model.parameters():
            if weight.ndim == 2:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        return policy

    def _texts(self, policy: Policy, seed: int, deaf: bool = False) -> list[Group]:
        """Prompt, response and what the listener says next, all of it behind the prompt."""
        rows = self.dialogues(64 * self.start_steps, self.weak, np.random.default_rng([seed, 42]), shuffled=deaf)
        encoded = {prompt: policy.encode_prompt(prompt) for prompt in self._all_prompts}
        turn = policy.encode_part("user")
        said = [[policy.encode_response(row[part]) for part in ("response", "feedback")] for row in rows]
        pairs = zip(rows, said, strict=True)
        return [Group(encoded[row["prompt"]], [answer + turn + heard]) for row, (answer, heard) in pairs]


def _numbers(prompts: Sequence[str]) -> np.ndarray:
    """The two numbers of each prompt, [2, prompt, 1]."""
    return np.array([[int(word[1:]) for word in prompt.split()[:2]] for prompt in prompts]).T[:, :, None]


def _text(symbols: np.ndarray) -> str:
    return " ".join(f"t{symbol}" for symbol in symbols)
