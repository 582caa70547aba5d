"""Tasks: where prompts, demonstrations, preferences and evaluations come from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from workbench.data import Row

if TYPE_CHECKING:  # systems that ask a model of words only do without torch
    from workbench.models import Policy
    from workbench.tasks.reasoning.solution_steps import StepVerifier


class DemonstrationTask(Protocol):
    """Policies to align from (prompt, human answer) pairs alone."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy:
        """The supervised starting point."""
        ...

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt` and `completion`; `split` is "train" or "test"."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Numbers that say how good the policy is; the key `quality` is higher for better."""
        ...


class PreferenceTask(Protocol):
    """Policies to align from pairs of a chosen and a rejected response."""

    name: str

    def start(self, seed: int) -> Policy: ...

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt`, `chosen`, `rejected`."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class RewardedTask(Protocol):
    """Policies to align by a reward that can be computed for any response: the world's truth, not a model of it."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; with `parts` above 1, parts without a prompt in common."""
        ...

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """The true reward of each response, [n]; higher is better."""
        ...

    def demonstrations(self, split: str, seed: int) -> list[Row]:
        """References: rows with `prompt` and `completion`."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class ReasoningTask(Protocol):
    """Policies to align on problems whose solutions are written step by step and whose steps can be checked.

    `opening` is text that every solution begins with, `delimiters` end a step. A world may have `outside(step)`, a step
    as another writer would put it.
    """

    name: str
    max_new_tokens: int
    verifier: StepVerifier
    opening: str
    delimiters: tuple[str, ...]

    def problems(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt` and `answer`; `split` is "train", "validation" or "test"."""
        ...

    def start(self, seed: int) -> Policy: ...

    def small(self, seed: int) -> Policy:
        """A smaller model of the same family."""
        ...

    def correction(self, prompt: str, wrong: str) -> str:
        """The prompt that asks for another try behind a wrong one."""
        ...

    def band(self, prompt: str) -> str:
        """How hard a problem is, in a word."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class JudgedTask(Protocol):
    """Policies to align by a judge that compares two responses; its preferences may go round in a circle.

    A task may also have `rate(prompts, candidates)`, whole numbers 0 to 6 for all candidates of a prompt side by side
    (None where unread).
    """

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; with `parts` above 1, parts without a prompt in common."""
        ...

    def prefer(self, prompts: Sequence, a: Sequence[str], b: Sequence[str]) -> np.ndarray:
        """P(a is better than b) for each row, in [0, 1]; NaN where the judge gave no readable answer."""
        ...

    def teacher(self, prompts: Sequence, seed: int) -> Sequence[str | None]:
        """One strong answer a prompt; None where there is none."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


class RankingTask(Protocol):
    """Policies to align from lists of two or more scored responses. `hints` ask for a bad and for a good one."""

    name: str
    max_new_tokens: int
    hints: Any

    def start(self, seed: int) -> Policy: ...

    def rankings(self, split: str, seed: int) -> list[Row]:
        """Rows with `prompt`, `responses`, `scores`; `split` is "train" or "test"."""
        ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        """Prompts to answer; `split` is "train", "validation" or "test"."""
        ...

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """A reward of each response, [n]; higher is better."""
        ...

    def evaluate(self, policy: Policy, seed: int, ask: Callable[[Any], Any] = ...) -> dict[str, float]:
        """Numbers of the policy's answers; `ask` makes of a prompt what is really asked."""
        ...


class DocumentTask(Protocol):
    """Policies to align on documents with questions; reference answers serve measurements and chunk scores alone."""

    name: str
    max_new_tokens: int

    def start(self, seed: int) -> Policy: ...

    def documents(self, split: str, seed: int) -> list[Row]:
        """Rows `chunks` (texts that make the document, in order), `questions`, `answers`, and `chunk_of`, which says
        for each question in which chunk its answer stands."""
        ...

    def longer(self, n: int, /) -> Any:
        """The task with documents of another length."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


@runtime_checkable
class PlantedDocuments(Protocol):
    """Documents whose truth is known, with a start that finds the answer and does not tell it."""

    def evidence(self, row: Row, rng: np.random.Generator) -> list[list[str]]:
        """Three contexts for a row's first question: all that it needs, a part of it, nothing of it."""
        ...

    def misaligned(self, seed: int) -> Policy: ...

    def needles(self, policy: Policy) -> Any:
        """Table of answers by length of the document and depth of the answer: `length`, `depth`, `right`."""
        ...


class FollowUpTask(Protocol):
    """Policies to align by what a user would say next.

    `follow_ups` are phrases by dimension and polarity; `pose` is what asks for a question.
    """

    name: str
    device: str
    max_new_tokens: int
    follow_ups: Any
    pose: Any

    def start(self, seed: int) -> Policy: ...

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list: ...

    def preferences(self, split: str, seed: int) -> list[Row]:
        """Pairs with known order, to test a reward on."""
        ...

    def feedback(self, seed: int, *, shuffled: bool = False) -> list[Row]:
        """Rows with `prompt`, `response` and `feedback` in words; shuffled, the feedback belongs to another row."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


@runtime_checkable
class DeafTask(Protocol):
    """A planted task with follow-ups: its truth is known, and what its start learns with what users say made
    independent of the response."""

    def deaf(self, seed: int) -> Policy: ...

    def score(self, prompts: Sequence, responses: Sequence[str]) -> np.ndarray: ...


@runtime_checkable
class EnumeratedTask(Protocol):
    """A judged task whose responses can all be listed, so that policies are tables and games between them are exact."""

    def table(self, policy: Policy) -> np.ndarray:
        """Probability of every response to every prompt, [prompt, response]."""
        ...

    def measure(self, table: np.ndarray) -> dict[str, float]:
        """What `evaluate` says of a policy with this table."""
        ...

    def win_rate(self, table: np.ndarray, opponent: np.ndarray, *, outside_judge: bool = False) -> float:
        """P(a response of one policy beats one of the other), by the judge or by a second one that trained nothing."""
        ...

    def win_rates(self, table: np.ndarray, prompts: Sequence, responses: Sequence[str]) -> np.ndarray:
        """P(response beats a response of the policy with this table) for each row."""
        ...


class TranslationTask(Protocol):
    """Policies to align on pairs of translations that are written while the source is still being read.

    `quality_is` names the aspect that is compared; `counts_end` says whether the end token counts as a word in
    latencies.
    """

    name: str
    max_new_tokens: int
    counts_end: bool
    quality_is: str

    def start(self, seed: int) -> Policy: ...

    def pairs(self, split: str, seed: int) -> list[Row]:
        """Rows with `source`, `chosen`, `rejected`; optional `alignment`, `key_items`, `n_clauses`."""
        ...

    def prompt(self, words: Sequence[str]) -> Any:
        """What the model sees of the source after these words."""
        ...

    def aspects(self, row: Row, translation: str) -> Any:
        """What listeners prefer in the text, measured aspect by aspect, as a named tuple of numbers."""
        ...


class EvidenceTask(Protocol):
    """Policies to align on responses to a prompt about evidence, which is a sequence of frames of any kind."""

    name: str
    blank: Any

    def start(self, seed: int) -> Policy: ...

    def triples(self, split: str, seed: int) -> list[Row]:
        """Rows with `evidence`, `prompt`, `response`; optional `kind` of the question."""
        ...

    def group(self, policy: Policy, evidence: Sequence, prompt: str, response: str) -> Any:
        """Tokens (and features of pictures) of a prompt with one response."""
        ...

    def embed(self, policy: Policy, evidence: Sequence) -> np.ndarray:
        """Features of each frame, [frame, d], that know no prompt."""
        ...

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]: ...


@runtime_checkable
class PlantedEvidence(Protocol):
    """A planted task with evidence: its truth is known."""

    def truth(self, evidence: Sequence, prompt: str) -> str:
        """The oracle's response to any evidence."""
        ...

    def untrained(self, seed: int) -> Policy:
        """A model of the start's class that knows nothing."""
        ...

    def grounded(self, seed: int) -> float:
        """How well the start saw before it got its habit, a share of right answers."""
        ...
