"""LocalModel: a transformers model as a chat model, text in and text out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from workbench.feedback.chat import Reply, Request
from workbench.kernels import Group, sample, score
from workbench.models import Policy, Prompt
from workbench.runs.code import fingerprint

LABELLED = 16  # requests scored at once


@lru_cache(maxsize=1)
def _load(source: str, device: str) -> Policy:
    """One model a process: regimes and seeds share its weights."""
    return Policy.load(source, device=device)


class LocalModel:
    """A policy that answers requests.

    Args:
        source: folder or hub id; its content is part of the name, so changed weights are asked again.
        device: "auto", "cpu" or "cuda".
        seed: of sampled replies; greedy ones do not depend on it.

    Raises:
        FileNotFoundError: no such model.
        ValueError: no GPU where one was asked for; a tokenizer without an end token.
    """

    def __init__(self, source: str, *, device: str = "auto", seed: int = 0):
        self.policy = _load(source, device)
        self.name = f"{Path(source).name}@{fingerprint(source)}/seed-{seed}"
        self._seed = seed

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, with the log-probabilities (nats) of its tokens under the model.

        A sampled reply depends on its own request and the model's seed alone: not on what else is asked for, nor on
        where a killed run was resumed.
        """
        replies: dict[int, Reply] = {}
        asked: dict[tuple, dict[tuple, list[int]]] = {}  # settings -> messages -> places in `requests`
        for place, request in enumerate(requests):
            messages = tuple((m["role"], m["content"]) for m in request.messages)
            asked.setdefault((request.temperature, request.max_tokens), {}).setdefault(messages, []).append(place)
        for (temperature, max_tokens), prompts in asked.items():
            # One call for all prompts with the same number of samples: they decode side by side, and the samples of a
            # prompt share its keys and values.
            same_n: dict[int, list[tuple]] = {}
            for messages, places in prompts.items():
                n = 1 + max(requests[place].sample for place in places) if temperature else 1
                same_n.setdefault(n, []).append(messages)
            for n, batch in same_n.items():
                drawn = sample(
                    self.policy,
                    [_prompt(requests[prompts[messages][0]]) for messages in batch],
                    n=n,
                    max_new_tokens=max_tokens,
                    temperature=temperature,
                    seed=[self._seed_of(messages, temperature) for messages in batch],
                )
                for i, messages in enumerate(batch):
                    for place in prompts[messages]:
                        k = requests[place].sample if temperature else 0
                        ended = drawn.finish_reasons[i][k] == "stop"
                        finish = "length" if not ended else "stop" if drawn.texts[i][k].strip() else "empty"
                        replies[place] = Reply(drawn.texts[i][k], drawn.token_logps[i][k], finish=finish)
        return [replies[place] for place in range(len(requests))]

    def label_logps(self, requests: Sequence[Request], labels: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Log-probability (nats) that the reply goes "Answer: <label>", for every label of every request.

        The prompt is computed once for all its labels. Requests that do not fit are NaN.
        """
        start, groups, places = self.policy.encode_part("Answer:"), [], []
        found = [np.full(len(own), np.nan) for own in labels]
        for place, (request, own) in enumerate(zip(requests, labels, strict=True)):
            prompt = self.policy.encode_prompt(_prompt(request)) + start
            answers = [self.policy.encode_part(f" {label}") for label in own]
            if len(prompt) + max(map(len, answers)) <= self.policy.max_length:
                groups.append(Group(prompt, answers))
                places.append(place)
        for first in range(0, len(groups), LABELLED):
            part = slice(first, first + LABELLED)
            with torch.inference_mode():
                sums = score(self.policy, groups[part]).sums.double().cpu().numpy()
            for place, row in zip(places[part], sums, strict=True):
                found[place] = row[: len(labels[place])]
        return found

    def _seed_of(self, messages: tuple, temperature: float) -> int:
        digest = hashlib.blake2b(repr((messages, temperature, self._seed)).encode(), digest_size=7).digest()
        return int.from_bytes(digest)

    def fits(self, request: Request) -> bool:
        return len(self.policy.encode_prompt(_prompt(request))) + request.max_tokens <= self.policy.max_length


def _prompt(request: Request) -> Prompt:
    """A lone user turn as text, which also works without a chat template; else the chat."""
    messages = [dict(message) for message in request.messages]
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages
