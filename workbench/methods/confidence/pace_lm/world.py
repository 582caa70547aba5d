"""Incidents: a world in which a predictor's root causes, and how well the past speaks to them, are planted.

The model sees nothing but its prompt's text.

80 faults, the k-th as frequent as 1 / k^0.8, own 10 of 120 symptoms each; an incident shows 5 of its fault's and 5 of
any. A predictor names the true fault with chance min(0.9, 0.08 + 0.24 ln(1 + past incidents of that fault)), else any
other. What the simulated model says of an incident depends on its references alone: with m the largest share of them
that have one cause and s the share that has the proposed one,

    "sufficient" with chance sigma(9 (m - 0.55) + e), e ~ N(0, 0.5^2) drawn with each analysis
    rating       g sigma(5 (s - 0.35)) + (1 - g) 0.78 + N(0, 0.15^2), in fifths, with g = sigma(9 (m - 0.55))
    stated       0.85 + N(0, 0.05^2); with references besides 0.1 (s - 0.5)

so ratings say something where the references agree and flatter where they do not. Shown a proposal while it is asked
whether the evidence suffices, it is swayed by it (by 9 (s - 0.35)): the question must not show one.

Two more predictors name 35 % and 70 % of the causes rightly, on the same incidents. That evidence helps is planted:
this world tests a pipeline, not whether real models can judge evidence. All constants are ours; the paper (arXiv
2309.05833) gives none.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from workbench.feedback.simulated import Noise, SimulatedModel

PARTS = ("gateway", "storage", "queue", "scheduler", "billing", "search", "login", "mail", "index", "proxy")
FAULTS = ("expired certificate", "full disk", "wrong configuration push", "connection leak")
FAULTS += ("clock drift", "overloaded cache", "failed switch-over", "memory leak")
SIGNALS = ("timeouts", "errors", "restarts", "latency", "backlog", "refusals")
SIGNALS += ("alarms", "retries", "gaps", "spikes", "duplicates", "silence")
CAUSES = tuple(f"{fault} on the {part}" for fault in FAULTS for part in PARTS)  # 80
SYMPTOMS = tuple(f"{part}-{signal}" for signal in SIGNALS for part in PARTS)  # 120
OWN, SHOWN_OWN, SHOWN_ANY = 10, 5, 5
FREQUENCY = np.arange(1.0, len(CAUSES) + 1) ** -0.8
FLATTERY = 0.78  # the rating where nothing is known
OTHER_PREDICTORS = {"weak": 0.35, "strong": 0.70}
FIRST_DAY, FIRST_CASE_DAY = pd.Timestamp("2020-01-01"), pd.Timestamp("2024-01-01")


class Truth(NamedTuple):
    """Fault numbers of the history and of the cases' incidents, and the symptoms each shows."""

    history: np.ndarray
    cases: np.ndarray
    history_symptoms: list[list[str]]
    case_symptoms: list[list[str]]


@dataclass(frozen=True)
class Incidents:
    """The task: history and cases of one seed, and the simulated model as the one who judges.

    Args:
        n_history, n_calibration, n_test: incidents; a second set as large as the test set stands by as split "fresh".
        garbled: share of the model's replies that come out broken.
    """

    n_history: int = 250
    n_calibration: int = 200
    n_test: int = 400
    garbled: float = 0.03
    name: str = "incidents"
    is_simulated: bool = True

    def tables(self, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Cases (the main predictor's first) and history, with the columns of `cases.py`."""
        truth, splits = self._truth(seed), self._splits()
        history = pd.DataFrame({"incident_id": [f"h{i}" for i in range(self.n_history)]})
        history = history.assign(**_told(truth.history_symptoms), root_cause=[CAUSES[fault] for fault in truth.history])
        history = history.assign(created=FIRST_DAY + pd.to_timedelta(np.arange(self.n_history), "D"), service=None)
        known = np.bincount(truth.history, minlength=len(CAUSES))
        chance = np.minimum(0.9, 0.08 + 0.24 * np.log1p(known[truth.cases]))
        rng, parts = np.random.default_rng([seed, 1]), []
        for predictor, accuracy in {"main": None, **OTHER_PREDICTORS}.items():
            p = chance if accuracy is None else _moved(chance, accuracy)
            right = rng.random(len(p)) < p
            other = (truth.cases + rng.integers(1, len(CAUSES), len(p))) % len(CAUSES)
            proposed = np.where(right, truth.cases, other)
            ending = "" if accuracy is None else f"-{predictor}"
            part = pd.DataFrame({"case_id": [f"c{i}{ending}" for i in range(len(p))], **_told(truth.case_symptoms)})
            part["predicted_root_cause"] = [CAUSES[fault] for fault in proposed]
            created = FIRST_CASE_DAY + pd.to_timedelta(np.arange(len(p)), "D")
            part = part.assign(predictor=predictor, created=created, correct=right.astype(float), split=splits)
            parts.append(part if accuracy is None else part[part["split"] != "fresh"])
        return pd.concat(parts, ignore_index=True), history

    def truth(self, seed: int) -> dict[str, str]:
        """The true cause of every case, by `case_id`: for checks, never for prompts."""
        faults = self._truth(seed).cases
        return {f"c{i}{end}": CAUSES[f] for i, f in enumerate(faults) for end in ("", "-weak", "-strong")}

    def subject(self, seed: int) -> SimulatedModel:
        return SimulatedModel(self.name, respond, seed=seed, garbled=self.garbled)

    def _splits(self) -> list[str]:
        return ["calibration"] * self.n_calibration + ["test"] * self.n_test + ["fresh"] * self.n_test

    def _truth(self, seed: int) -> Truth:
        rng = np.random.default_rng([seed, 0])
        owned = rng.random((len(CAUSES), len(SYMPTOMS))).argsort(axis=1)[:, :OWN]
        n = self.n_history + len(self._splits())
        faults = rng.choice(len(CAUSES), n, p=FREQUENCY / FREQUENCY.sum())
        symptoms = []
        for fault in faults:
            own, anything = rng.permutation(owned[fault])[:SHOWN_OWN], rng.permutation(len(SYMPTOMS))[:SHOWN_ANY]
            symptoms.append([SYMPTOMS[i] for i in rng.permutation(np.union1d(own, anything))])
        old = self.n_history
        return Truth(faults[:old], faults[old:], symptoms[:old], symptoms[old:])


def _told(symptoms: Any) -> dict[str, list[str]]:
    """Title and summary of what was seen."""
    return {"title": [", ".join(s[:2]) for s in symptoms], "summary": [", ".join(s) for s in symptoms]}


def _moved(chance: np.ndarray, accuracy: float) -> np.ndarray:
    """The chances scaled towards 0, or their complements, so that their mean is `accuracy`; their order stays."""
    mean = chance.mean()
    return chance * accuracy / mean if accuracy < mean else 1 - (1 - chance) * (1 - accuracy) / (1 - mean)


# ------------------------------------------------------------------------------------------------ the simulated model
def respond(prompt: str, temperature: float, noise: Noise) -> str:
    """What the model says; it knows what it is asked by the line that the prompt wants at the end."""
    seen = _seen(prompt)
    if "Score:" in prompt:
        return f"Score: {round(5 * min(max(_rating(seen) + 0.15 * noise.normal(), 0.0), 1.0))}"
    if "Sufficient:" in prompt:
        felt = re.search(r"Impression of the match: ([-+]\d+\.\d+)", prompt)
        lean = float(felt[1]) if felt else 0.5 * noise.normal()  # the analysis can be garbled
        sway = 0.0 if seen["named"] is None else 9 * (seen["named"] - 0.35)
        return f"Sufficient: {'yes' if noise.uniform() < _sigma(9 * (seen['agree'] - 0.55) + lean + sway) else 'no'}"
    if "Confidence:" in prompt:
        helped = 0.1 * (seen["named"] - 0.5) if seen["n"] and seen["named"] is not None else 0.0
        return f"Confidence: {min(max(0.85 + helped + 0.05 * noise.normal(), 0.0), 1.0):.2f}"
    if seen["named"] is not None:
        return f"{seen['named']:.0%} of {seen['n']} references name the proposed cause."
    return (
        f"{seen['agree']:.0%} of {seen['n']} references share a cause. Impression of the match:"
        f" {0.5 * noise.normal():+.2f}"
    )


@lru_cache(maxsize=4096)
def _seen(prompt: str) -> Mapping[str, Any]:
    """References, the largest share with one cause, and the share with the proposed cause (None without a proposal)."""
    causes = re.findall(r"^Cause: (.+)$", prompt, re.MULTILINE)
    proposed = re.search(r"^Proposed cause: (.+)$", prompt, re.MULTILINE)
    n = len(causes)
    agree = max((causes.count(cause) for cause in set(causes)), default=0) / max(n, 1)
    return {"n": n, "agree": agree, "named": causes.count(proposed[1]) / max(n, 1) if proposed else None}


def _rating(seen: Mapping[str, Any]) -> float:
    grounded = _sigma(9 * (seen["agree"] - 0.55))
    return grounded * _sigma(5 * (seen["named"] - 0.35)) + (1 - grounded) * FLATTERY


def _sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))
