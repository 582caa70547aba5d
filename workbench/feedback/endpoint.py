"""EndpointModel: any OpenAI-compatible server as a chat model, through the `openai` client.

The key is read from `$OPENAI_API_KEY` when a request is sent. It is part of no name, no message, no file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from workbench.feedback.chat import Finish, Reply, Request

log = logging.getLogger(__name__)

CHARACTERS_PER_TOKEN = 3  # a careful estimate, for `fits` only: the server's tokenizer is not known here


class Address(NamedTuple):
    """Where a model is served, and how hard it may be asked: what one text says.

    Written as `https://host/v1?concurrency=8&per_minute=500&price=0.15,0.6#model`; everything from "?" to "#" may be
    left out.

    Attributes:
        concurrency: requests in flight at once.
        per_minute: most requests started in a minute; 0 for no limit.
        price: dollars for a million tokens of prompt and of reply.
        retries: of one request, after a lost connection or the answers 408, 409, 429 and 5xx, each after a longer pause
            (or as long as the server asks for).
        timeout: seconds for one try.
    """

    url: str
    model: str
    concurrency: int = 8
    per_minute: float = 0.0
    price: tuple[float, float] = (0.0, 0.0)
    retries: int = 5
    timeout: float = 120.0

    @classmethod
    def read(cls, source: str) -> Address:
        """
        Raises:
            ValueError: no model after "#", or an option that is unknown or no number.
        """
        form = "https://host/v1#model or https://host/v1?concurrency=8&per_minute=500&price=0.15,0.6#model"
        parts = urlsplit(source)
        if parts.scheme not in ("http", "https") or not parts.netloc or not parts.fragment:
            raise ValueError(f"an endpoint is written as {form}; got {source!r}")
        if parts.username or parts.password:
            raise ValueError("an endpoint's address must not hold a key or password: put the key into $OPENAI_API_KEY")
        readers = {
            "concurrency": int,
            "per_minute": float,
            "retries": int,
            "timeout": float,
            "price": lambda text: tuple(map(float, text.split(","))),
        }
        options: dict[str, Any] = {}
        for name, text in parse_qsl(parts.query, keep_blank_values=True):
            try:
                options[name] = readers[name](text)
            except (KeyError, ValueError):
                known = ", ".join(readers)
                raise ValueError(
                    f"endpoint option {name}={text!r} cannot be read; known: {known}; form: {form}"
                ) from None
        found = cls(urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), parts.fragment, **options)
        if (
            found.concurrency < 1
            or found.retries < 0
            or min(found.per_minute, *found.price) < 0
            or len(found.price) != 2
        ):
            raise ValueError(f"endpoint options must be positive, price two numbers (prompt, reply); got {source!r}")
        return found


def _refused(error: Any, settings: dict[str, Any]) -> str | None:
    """Which of the settings a server's refusal names, by its field `param` or in its text; None for none of them."""
    body = error.body if isinstance(error.body, dict) else {}
    named, said = body.get("param"), f"{body.get('message') or error.message}"
    known = [name for name in ("max_tokens", "temperature", "seed") if name in settings]
    return named if named in known else next((name for name in known if name in said), None)


class EndpointModel:
    """A model behind a server.

    Args:
        source: its `Address` as text.
        seed: sent with sampled requests; servers that ignore it give other samples, which the transcript keeps.

    Attributes:
        calls: requests that got a reply; `retries` were sent again.

    Raises:
        ImportError: the `openai` client is not installed.
        ValueError: an address that cannot be read.
    """

    def __init__(self, source: str, *, seed: int = 0):
        try:
            import openai
        except ImportError:
            raise ImportError('asking a server needs the openai client: pip install "workbench[serve]"') from None
        import os

        self.address = Address.read(source)
        self.name = f"{self.address.model} at {self.address.url}/seed-{seed}"
        self.calls = self.retries = 0
        self._seed, self._lock, self._next_start = seed, threading.Lock(), 0.0
        self._left_out: dict[str, str] = {}  # a parameter that the server refuses, and what is sent in its place
        self._client = openai.OpenAI(
            base_url=self.address.url,
            api_key=os.environ.get("OPENAI_API_KEY") or "none",
            max_retries=self.address.retries,
            timeout=self.address.timeout,
        )

    def ask(self, requests: Sequence[Request]) -> list[Reply]:
        replies = dict(self.stream(requests))
        return [replies[place] for place in range(len(requests))]

    def stream(self, requests: Sequence[Request]) -> Iterator[tuple[int, Reply]]:
        """(place, reply) in the order in which replies come, so that each can be kept at once.

        Raises:
            RuntimeError: a request failed for good, in one line. Those in flight beside it are still given out first,
                none is started after it.
        """
        with ThreadPoolExecutor(self.address.concurrency) as pool:
            waiting: dict[Future[Reply], int] = {pool.submit(self._one, r): place for place, r in enumerate(requests)}
            failure: Exception | None = None
            try:
                for done in as_completed(waiting):
                    if done.cancelled():
                        continue
                    if (error := done.exception()) is None:
                        yield waiting[done], done.result()
                    elif failure is None:
                        failure = error if isinstance(error, Exception) else RuntimeError(str(error))
                        for other in waiting:
                            other.cancel()
            finally:  # also where the reader of this stream stops early
                pool.shutdown(wait=False, cancel_futures=True)
            if failure is not None:
                raise RuntimeError(self._explain(failure)) from None

    def fits(self, request: Request) -> bool:
        """Whether prompt and reply fit the context that the server tells of; True where it tells of none."""
        limit = self._context()
        characters = sum(len(message["content"]) for message in request.messages)
        return not limit or characters / CHARACTERS_PER_TOKEN + request.max_tokens <= limit

    def cost(self, usage: tuple[int, int]) -> float:
        """Dollars for so many tokens of prompts and of replies, by the address's price."""
        return sum(tokens * price for tokens, price in zip(usage, self.address.price, strict=True)) / 1e6

    def _one(self, request: Request) -> Reply:
        self._wait_for_turn()
        raw = self._create(request)
        completion = raw.parse()
        with self._lock:
            self.calls, self.retries = self.calls + 1, self.retries + raw.retries_taken
        if not completion.choices:
            raise RuntimeError("the server sent a completion without choices")
        usage = completion.usage and (completion.usage.prompt_tokens, completion.usage.completion_tokens)
        said, why = completion.choices[0].message, completion.choices[0].finish_reason
        text = said.content or ""
        finish: Finish = "stop" if text.strip() else "empty"
        if why == "length":
            finish = "length"
        elif why == "content_filter" or getattr(said, "refusal", None):
            finish = "refused"
        return Reply(text, usage=usage or None, finish=finish)

    def _create(self, request: Request) -> Any:
        """Sends a request; what the server refuses to be told is left out from then on, once, and said."""
        import openai

        while True:
            settings: dict[str, Any] = {"temperature": request.temperature, "max_tokens": request.max_tokens}
            if request.temperature > 0:
                settings["seed"] = 1_000_003 * self._seed + request.sample
            with self._lock:
                left_out = dict(self._left_out)
            settings = {left_out.get(name, name): value for name, value in settings.items()}
            settings.pop("", None)
            try:
                return self._client.chat.completions.with_raw_response.create(
                    model=self.address.model,
                    messages=[dict(message) for message in request.messages],  # type: ignore[arg-type]
                    **settings,
                )
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                refused = _refused(error, settings)
                if refused is None or (refused == "temperature" and request.temperature > 0):
                    raise
                self._leave_out(refused)

    def _leave_out(self, name: str) -> None:
        with self._lock:
            if name in self._left_out:
                return
            self._left_out[name] = "max_completion_tokens" if name == "max_tokens" else ""
        what = {"max_tokens": "max_completion_tokens is sent in its place", "seed": "its samples cannot be repeated"}
        said = what.get(name, "its own default holds, so asking twice may give another reply")
        log.warning("%s at %s refuses %s: %s", self.address.model, self.address.url, name, said)

    def _wait_for_turn(self) -> None:
        if not self.address.per_minute:
            return
        with self._lock:
            start = max(self._next_start, time.monotonic())
            self._next_start = start + 60.0 / self.address.per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _context(self) -> int:
        """The context length in tokens that the server's list of models tells (vLLM does), else 0; asked once."""
        if not hasattr(self, "_limit"):
            import openai

            try:
                listed = {model.id: model for model in self._client.models.list().data}
            except openai.OpenAIError:
                listed = {}
            self._limit = int(getattr(listed.get(self.address.model), "max_model_len", 0) or 0)
        return self._limit

    def _explain(self, error: Exception) -> str:
        """One line: what failed and what to do. What a server says is cut short, and a key that it quotes is blotted
        out."""
        import openai

        where, status = f"{self.address.model} at {self.address.url}", getattr(error, "status_code", None)
        if isinstance(error, openai.AuthenticationError | openai.PermissionDeniedError):
            return f"{where} refused the key ({status}): set $OPENAI_API_KEY"
        if isinstance(error, openai.NotFoundError):
            return f"{where}: no such model or path ({status}); the address ends in /v1#model for most servers"
        if isinstance(error, openai.APITimeoutError):
            what = f"no reply in {self.address.timeout:g} s, {self.address.retries + 1} times"
        elif isinstance(error, openai.APIConnectionError):
            what = f"no connection, {self.address.retries + 1} times; is the server running?"
        elif isinstance(error, openai.APIStatusError):
            said = " ".join(error.message.replace(self._client.api_key, "(key)").split())
            what = f"status {status}: {said[:200]}"
        else:
            what = f"{type(error).__name__}: {error}"
        return f"{where}: {what}; the replies that came are kept, run it again to go on from them"
