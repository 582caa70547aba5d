"""Text in, text out: requests, replies, planted models, the transcript of all calls, and readers of replies.

What may live here: what every model that is asked something in words has in common. What may not: prompts (they
belong to the method that asks), weights (`feedback/local.py`), and any guess at what an unreadable reply meant.

Readers follow one rule: the last match counts, because models think aloud before they answer. A reply that cannot be
read is "unparsed"; it never becomes a 0, and where a method counts it as a tie it says so and counts how many.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Literal, NamedTuple, Protocol

from tqdm import tqdm

from workbench.runs import in_batch

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BATCH = 256  # requests between two writes of the transcript: what a killed process may have to ask again
_NORMAL = NormalDist()


class Request(NamedTuple):
    """One call. `sample` tells repeated draws apart; at temperature 0 it means nothing, so it is not looked at."""

    messages: Sequence[Mapping[str, str]]  # {"role": ..., "content": ...}
    temperature: float = 0.0
    max_tokens: int = 256
    sample: int = 0

    def key(self, model: str) -> str:
        """Hash of everything that the reply depends on, the model's name included (80 bits, hexadecimal)."""
        sample = self.sample if self.temperature > 0 else 0
        content = json.dumps(
            [model, [[m["role"], m["content"]] for m in self.messages], self.temperature, self.max_tokens, sample]
        )
        return hashlib.blake2b(content.encode(), digest_size=10).hexdigest()


class Reply(NamedTuple):
    """What came back: the text and, where the model gives them, the log-probabilities of its tokens (nats) and the
    numbers of tokens of prompt and reply that a server counted."""

    text: str
    logps: list[float] | None = None
    usage: tuple[int, int] | None = None


class ChatModel(Protocol):
    """Anything that answers requests. `name` must change whenever the replies can: it is part of the cache's key."""

    name: str

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply for each request, in order; a reply depends on its own request only.

        A model whose replies come one by one has `stream(requests)` too: (place, reply) as they come.
        """
        ...

    def fits(self, request: Request) -> bool:
        """Whether prompt and reply fit into the model's context."""
        ...


def open_model(source: str, *, device: str = "auto", seed: int = 0) -> ChatModel:
    """The model that a text names: a server's address with its model (`http://localhost:8000/v1#name`), else a folder
    or hub id.

    Raises:
        ValueError: an address without a model (see `endpoint.Address`).
        FileNotFoundError: no such model.
    """
    if source.startswith(("http://", "https://")):
        from workbench.feedback.endpoint import EndpointModel

        return EndpointModel(source, seed=seed)
    from workbench.feedback.local import LocalModel  # torch loads here, not before

    return LocalModel(source, device=device, seed=seed)


def user(text: str) -> tuple[dict[str, str], ...]:
    """The messages of a request that is one user turn."""
    return ({"role": "user", "content": text},)


# ---------------------------------------------------------------------------------------------------- planted models
class Noise:
    """Random draws that are a function of one request and one seed, whatever was asked before or beside it."""

    def __init__(self, key: str):
        self._key, self._block, self._left = key, 0, []

    def uniform(self) -> float:
        """Uniform on the open interval (0, 1)."""
        if not self._left:
            digest = hashlib.blake2b(f"{self._key}/{self._block}".encode()).digest()
            self._left, self._block = list(struct.unpack("<8Q", digest)), self._block + 1
        return ((self._left.pop() >> 11) + 0.5) * 2.0**-53

    def normal(self) -> float:
        return _NORMAL.inv_cdf(self.uniform())

    def logistic(self) -> float:
        u = self.uniform()
        return math.log(u / (1.0 - u))


class SimulatedModel:
    """A model with planted behaviour that reads nothing but the text of its prompt.

    Args:
        name: part of the cache's key; a model with other planted behaviour needs another name.
        respond: (prompt text, temperature, noise) -> reply text.
        seed: another seed gives other draws to the same requests.
        garbled: share of replies, 0 to 1, that come out cut off, empty or beside the point.
    """

    def __init__(self, name: str, respond: Callable[[str, float, Noise], str], *, seed: int = 0, garbled: float = 0.0):
        if not 0.0 <= garbled <= 1.0:
            raise ValueError(f"garbled is a share of replies between 0 and 1; got {garbled}")
        self.name = f"{name}/seed-{seed}/garbled-{garbled:g}"
        self._respond, self._garbled = respond, garbled

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def fits(self, request: Request) -> bool:
        return True

    def _reply(self, request: Request) -> Reply:
        noise = Noise(request.key(self.name))
        is_garbled, kind = noise.uniform() < self._garbled, noise.uniform()
        text = self._respond("\n".join(m["content"] for m in request.messages), request.temperature, noise)
        if is_garbled:
            text = ("", text[: len(text) // 2], "I would rather not say.", "It could be either of them, or neither.")[
                int(4 * kind)
            ]
        return Reply(text)


# -------------------------------------------------------------------------------------------------------- transcript
class Transcript:
    """Append-only log of every reply, one JSON line each, found again by what was asked of whom.

    A killed run reads its log, asks only what is missing, and gets the same replies; scoring again asks nothing. One
    process writes a transcript at a time (each seed of a run has its own).

    Args:
        path: the JSONL file; made when the first reply comes.
        keep_requests: write the messages beside each reply, so that the log can be read without the code. Off for
            planted models, whose prompts the code gives back and whose log would be eight times as long.

    Attributes:
        calls: replies that a model had to give to this object; `reused` were found in the log or asked twice.

    Raises:
        ValueError: a line that is not the last one cannot be read; its number is named. A torn last line, left by a
            killed process, is dropped.
    """

    def __init__(self, path: Path, *, keep_requests: bool = True):
        self.path, self.keep_requests = Path(path), keep_requests
        self.calls = self.reused = 0
        self._replies: dict[str, Reply] = {}
        self._size = self._load()

    def __len__(self) -> int:
        return len(self._replies)

    @property
    def usage(self) -> tuple[int, int]:
        """Tokens of all logged prompts and replies that a server counted."""
        counted = [reply.usage for reply in self._replies.values() if reply.usage]
        return sum(prompt for prompt, _ in counted), sum(reply for _, reply in counted)

    def ask(self, model: ChatModel, requests: Sequence[Request], *, batch: int = _BATCH) -> list[Reply]:
        """One reply for each request, in order; only requests without a logged reply reach the model.

        Raises:
            OSError: the log could not be written; it is cut back to its last whole line.
            RuntimeError: a server gave up half-way; what it sent is logged.
        """
        keys = [request.key(model.name) for request in requests]
        missing = {key: request for key, request in zip(keys, requests, strict=True) if key not in self._replies}
        self.reused += len(requests) - len(missing)
        waiting, stream = list(missing.items()), getattr(model, "stream", None)
        with tqdm(total=len(waiting), desc="replies", disable=in_batch(), delay=2.0, leave=False) as bar:
            if stream:  # a reply that was paid for is kept before the next is looked at
                for place, reply in stream([request for _, request in waiting]):
                    self._append([(*waiting[place], reply)])
                    bar.update()
            for start in range(0, 0 if stream else len(waiting), batch):
                part = waiting[start : start + batch]
                replies = model.ask([request for _, request in part])
                self._append([(key, request, reply) for (key, request), reply in zip(part, replies, strict=True)])
                bar.update(len(part))
        return [self._replies[key] for key in keys]

    def _append(self, records: Sequence[tuple[str, Request, Reply]]) -> None:
        lines = []
        for key, request, reply in records:
            record: dict[str, object] = {"key": key, "text": reply.text}
            if reply.logps is not None:
                record["logps"] = reply.logps
            if reply.usage is not None:
                record["usage"] = reply.usage
            if self.keep_requests:
                record["request"] = [*map(dict, request.messages)]
            lines.append(json.dumps(record))
        data = ("\n".join(lines) + "\n").encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._size)  # drops what a killed process left of its last line
            try:
                file.write(data)
                file.flush()
            except OSError as error:
                os.truncate(self.path, self._size)
                raise OSError(
                    error.errno, f"could not write {self.path}: {error.strerror}; its whole lines were kept"
                ) from error
        self._size += len(data)
        self._replies.update((key, reply) for key, _, reply in records)
        self.calls += len(records)

    def _load(self) -> int:
        """Reads the whole lines; returns their length in bytes."""
        if not self.path.is_file():
            return 0
        whole, newline, _torn = self.path.read_bytes().rpartition(b"\n")
        for number, line in enumerate(whole.split(b"\n") if newline else [], start=1):
            try:
                record = json.loads(line)
                usage = record.get("usage")
                reply = Reply(record["text"], record.get("logps"), (usage[0], usage[1]) if usage else None)
                self._replies.setdefault(record["key"], reply)
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self.path} line {number} is not a logged reply; delete that line (it is asked again) or the file"
                ) from None
        return len(whole) + len(newline)


# ---------------------------------------------------------------------------------------------------- reading replies
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(\s*%)?")
_TIE = re.compile(r"\b(both|neither|equal(?:ly)?|tie|same)\b", re.IGNORECASE)


@lru_cache
def _field(name: str) -> re.Pattern[str]:
    return re.compile(rf"\b{re.escape(name)}[*_ \t]*[:=](.*)", re.IGNORECASE)


def last_field(text: str, name: str) -> str | None:
    """What stands after the last "name:" up to the end of that line, without Markdown marks; None without one."""
    found = _field(name).findall(text)
    return found[-1].strip(" \t*_`") if found else None


def choice(text: str, n_choices: int, name: str = "Answer") -> int | None:
    """Index of the option whose letter stands last after "Answer:"; None for no letter or none of the options'.

    "Answer: (B)" and "**Answer:** B. blue" give 1 where there are at least two options.
    """
    match = re.match(r"\W*([A-Za-z])(?![A-Za-z])", last_field(text, name) or "")
    index = LETTERS.index(match[1].upper()) if match else n_choices
    return index if index < n_choices else None


def confidence(text: str, name: str = "Confidence") -> float:
    """The last number on the last "Confidence:" line; "85%" is 0.85; NaN when there is none or it is outside [0, 1].

    Only that line is read: the answer itself may be a number.
    """
    numbers = list(_NUMBER.finditer(last_field(text, name) or ""))
    if not numbers:
        return math.nan
    last = numbers[-1]
    value = float(last[0].rstrip("% \t")) / (100.0 if last[1] else 1.0)
    return value if 0.0 <= value <= 1.0 else math.nan


class Preference(NamedTuple):
    """Outcome for the one shown first: 1 it wins, 0 it loses, 0.5 otherwise; `status` says which 0.5 it is."""

    outcome: float
    status: Literal["ok", "tie", "unparsed"]


def preference(text: str, name: str) -> Preference:
    """Which of two was named on the last "name:" line: "1", "2", or a tie ("both", "neither", both numbers)."""
    value = last_field(text, name) or ""
    named = set(re.findall(r"(?<![\d.])[12](?!\.?\d)", value))
    if len(named) == 2 or (not named and _TIE.search(value)):
        return Preference(0.5, "tie")
    return Preference(1.0 if "1" in named else 0.0, "ok") if named else Preference(0.5, "unparsed")
