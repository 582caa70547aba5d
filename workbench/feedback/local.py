"""LocalModel: a transformers model as a chat model, text in and text out.

What may live here: the bridge from `feedback.chat` to `models` and `kernels`. What may not: prompts, parsing, caching
of replies (the transcript does that).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from workbench.feedback.chat import Reply, Request
from workbench.kernels import sample
from workbench.models import Policy, Prompt
from workbench.runs import fingerprint


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
        """One reply for each request, with the log-probabilities (nats) of its tokens under the model."""
        replies: dict[int, Reply] = {}
        greedy: dict[int, list[int]] = {}
        sampled: dict[tuple, list[int]] = {}
        for place, request in enumerate(requests):
            if request.temperature == 0:
                greedy.setdefault(request.max_tokens, []).append(place)
            else:
                same = tuple((m["role"], m["content"]) for m in request.messages)
                sampled.setdefault((same, request.temperature, request.max_tokens), []).append(place)
        for max_tokens, places in greedy.items():
            prompts = [_prompt(requests[place]) for place in places]
            drawn = sample(self.policy, prompts, max_new_tokens=max_tokens, temperature=0.0)
            for i, place in enumerate(places):
                replies[place] = Reply(drawn.texts[i][0], drawn.token_logps[i][0])
        # One call a prompt: its samples share the prompt's keys and values, and their seed comes from the request, so
        # that a reply does not depend on what else is asked for, or on where a killed run was resumed.
        for (same, temperature, max_tokens), places in sampled.items():
            digest = hashlib.blake2b(repr((same, temperature, self._seed)).encode(), digest_size=7).digest()
            seed = int.from_bytes(digest)
            n = 1 + max(requests[place].sample for place in places)
            prompt = _prompt(requests[places[0]])
            drawn = sample(self.policy, [prompt], n=n, max_new_tokens=max_tokens, temperature=temperature, seed=seed)
            for place in places:
                k = requests[place].sample
                replies[place] = Reply(drawn.texts[0][k], drawn.token_logps[0][k])
        return [replies[place] for place in range(len(requests))]

    def fits(self, request: Request) -> bool:
        return len(self.policy.encode_prompt(_prompt(request))) + request.max_tokens <= self.policy.max_length


def _prompt(request: Request) -> Prompt:
    """A lone user turn as text, which also works without a chat template; else the chat."""
    messages = [dict(message) for message in request.messages]
    return messages[0]["content"] if len(messages) == 1 and messages[0]["role"] == "user" else messages
