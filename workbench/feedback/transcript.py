"""Every question and reply of a model, kept on disk and asked once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from workbench.feedback.chat import ChatModel, Reply, Request
from workbench.runs.files import in_batch

_BATCH = 256  # requests between two writes of the transcript: what a killed process may have to ask again


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
        failed: replies in the log that were empty or refused, and are asked for again.

    Raises:
        ValueError: a line that is not the last one cannot be read; its number is named. A torn last line, left by a
            killed process, is dropped.
    """

    def __init__(self, path: Path, *, keep_requests: bool = True):
        self.path, self.keep_requests = Path(path), keep_requests
        self.calls = self.reused = self.failed = 0
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
            if reply.finish != "stop":
                record["finish"] = reply.finish
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
                finish = record.get("finish", "stop")
                reply = Reply(record["text"], record.get("logps"), (usage[0], usage[1]) if usage else None, finish)
                if finish in ("stop", "length"):  # what failed is asked again: the server may be mended
                    self._replies.setdefault(record["key"], reply)
                else:
                    self.failed += 1
            except (ValueError, KeyError, TypeError):
                raise ValueError(
                    f"{self.path} line {number} is not a logged reply; delete that line (it is asked again) or the file"
                ) from None
        return len(whole) + len(newline)
