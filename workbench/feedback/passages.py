"""Passages: real text as evidence, sentence by sentence, for methods that alter evidence.

What may live here: the task over rows of evidence, prompt and response. What may not: alterations (`evidence`),
training.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workbench import data
from workbench.data import Row
from workbench.evidence import bag_of_words, check_triples
from workbench.kernels import Group
from workbench.models import Policy
from workbench.reference import reference_logps
from workbench.tasks import RealRows

_SENTENCE = re.compile(r"(?<=[.!?])\s+")


@dataclass
class PassageTask(RealRows):
    """Rows with `evidence` (a list of sentences), `prompt` and `response`; or demonstrations, whose prompt is cut into
    sentences: the last one asks, the others are the evidence. Prompts of one sentence are left out.
    """

    max_length: int = 2_048
    name: str = "passages"
    blank: str = ""

    def triples(self, split: str, seed: int) -> list[Row]:
        return self.part(split, seed)

    def read(self) -> list[Row]:
        rows = data.load(self.dataset)
        found = rows if "evidence" in rows[0] else [_cut(row) for row in data.as_demonstrations(rows)]
        return check_triples([row for row in found if row.get("evidence") != []])

    def group(self, policy: Policy, evidence: Sequence[str], prompt: str, response: str) -> Group:
        text = " ".join(part for part in evidence if part)
        return policy.group(f"{text}\n{prompt}", [response], max_length=self.max_length)

    def embed(self, policy: Policy, evidence: Sequence[str]) -> np.ndarray:
        return bag_of_words(evidence, self.blank)

    def evaluate(self, policy: Policy, seed: int) -> dict[str, float]:
        """Held-out responses: negative log-likelihood a token (`quality` is its negative), and how many nats a response
        the evidence adds, log p(y | evidence, prompt) - log p(y | prompt)."""
        rows = self.triples("test", seed)
        seen = [self.group(policy, row["evidence"], row["prompt"], row["response"]) for row in rows]
        blank = [self.group(policy, [self.blank], row["prompt"], row["response"]) for row in rows]
        with_it, without = reference_logps(policy, seen)[:, 0], reference_logps(policy, blank)[:, 0]
        nll = -with_it.sum() / sum(len(group.responses_ids[0]) for group in seen)
        return {"quality": -float(nll), "token_nll": float(nll), "evidence_nats": float(np.mean(with_it - without))}


def _cut(row: Row) -> Row:
    sentences = _SENTENCE.split(str(row["prompt"]).strip())
    return {"evidence": sentences[:-1], "prompt": sentences[-1], "response": row["completion"]}
