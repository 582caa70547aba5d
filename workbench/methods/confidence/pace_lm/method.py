"""PACE-LM: how far may a proposed root cause be trusted? Ask about the evidence first, then about the proposal.

An on-call engineer has an incident x, a root cause y that some language model proposed, and a store of past incidents
with known causes. Another model is asked, in words only; z says whether y is right.

    1. retrieve   R(x): the K most similar incidents that are older than x                                retrieval.py
    2. evidence   coe = share of yes to "is R(x) enough to judge?"; shown are x and R(x), NOT y           prompts.py
    3. support    rce = mean of (rating 0..5) / 5 of how well R(x) supports y; shown are x, R(x) and y    analyses.py
       each score over A written analyses with B short answers to each, at temperature > 0
    4. fit        T on labelled calibration cases, so that P(z = 1 | c) = c for c = T(coe, rce)           calibration.py
       logistic:  logit c = b0 + b1 coe + b2 rce + b3 coe rce; by the product a rating counts where there is evidence
       grid:      c = clip(alpha (w coe^p + (1 - w) rce^q) + beta, 0, 1); the five numbers by exhaustive search
       binned:    isotonic regression of z on rce in three groups of coe
       the family with the lowest cross-validated Brier score is the one reported
    5. apply      T to other cases: that is the confidence                                                scores.py

Needs cases and history (cases.py), a chat model, and 100 labelled calibration cases, right ones and wrong ones. With 50
to 99 only logit c = b0 + b1 rce (Platt's map) is fitted and nothing is measured; fewer stop the run; none at all leave
coe and rce without a confidence.

Source: Zhang, Zhang, Bansal, Las-Casas, Fonseca, Rajmohan 2023, "PACE-LM: Prompting and Augmentation for Calibrated
Confidence Estimation with GPT-4 in Cloud Incident Root Cause Analysis", arXiv 2309.05833. No code and no data are
public. The abstract gives the two phases, the retrieved history and the optimisation step; the names of the scores, the
yes/no question and ten bins could not be checked. The families of T, K, A, B, the scale 0 to 5 and all wording of
prompts are ours.

What differs, and why:
- T is fitted in three families, because the paper's is not known; the claims of experiment.py are on the logistic one.
- The grid is searched for ECE plus Brier score: ECE alone is content with a constant.
- A reply that cannot be read is left out and counted; it is never 0. More than 20 % of a case's leave the case without
  that score, more than 5 % of a phase's stop the run.
- A case without a proposal is not rated; its confidence is the share of such calibration cases that are right, flagged.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench import tasks
from workbench.config import Field, Presets, Source, listed, strict
from workbench.feedback import chat
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.pace_lm import calibration, retrieval, scores
from workbench.methods.confidence.pace_lm.analyses import check_read, sample_scores, with_texts
from workbench.methods.confidence.pace_lm.calibration import TransformMap
from workbench.methods.confidence.pace_lm.cases import CaseFile, has_prediction
from workbench.methods.confidence.pace_lm.prompts import PHASES, STATED
from workbench.methods.confidence.pace_lm.scores import MAIN
from workbench.methods.confidence.pace_lm.world import Incidents
from workbench.runs.run import Run


@dataclass(frozen=True)
class Arm:
    """Which references stand beside a case. The defaults are the method; every other arm is an ablation.

    Attributes:
        order: the K older incidents that are taken are the most similar ones, or random ones (a control).
        k: references a case, 0 for none; None takes the configuration's.
        draw: seed of the random ones, so that two arms can draw different ones.
    """

    title: str
    order: Literal["similarity", "random"] = "similarity"
    k: int | None = None
    draw: int = 0
    colour: str = ""


@strict
class Config(Presets):
    """The paper states none of these, so far as could be checked: all defaults are ours."""

    n_history: int = Field(default=250, ge=1)  # incidents in the store of the embedded world
    n_calibration: int = Field(default=200, ge=50)  # labelled cases to fit on, embedded world
    n_test: int = Field(default=400, ge=10)  # labelled cases to report on, embedded world
    k: int = Field(default=5, ge=1)  # K, references a case
    n_analyses: int = Field(default=4, ge=1)  # A, a phase
    n_answers: int = Field(default=2, ge=1)  # B, to each analysis
    temperature: float = Field(default=0.7, gt=0)  # of analyses and answers; the stated baselines are greedy
    analysis_tokens: int = Field(default=300, ge=8)
    answer_tokens: int = Field(default=32, ge=4)  # of a short answer: a yes, a rating, a stated number
    encoder: Source = "words"  # "words", "tfidf", "given" or a sentence-transformers folder; `retrieval.similarities`
    family: Literal["chosen", "grid", "logistic", "binned"] = "chosen"  # of T; "chosen" by cross-validation
    bins: int = Field(default=10, ge=2)  # of ECE; paper, from memory
    bootstrap: int = Field(default=1_000, ge=20)  # rounds over cases, for intervals
    max_missing: float = Field(default=0.2, ge=0, le=1)  # share of a case's replies to a phase that may be unread
    max_unparsed: float = Field(default=0.05, ge=0, le=1)  # share of all cases' replies to a phase; more stop the run
    garbled: float = Field(default=0.03, ge=0, le=1)  # share of broken replies of the simulated model
    arms: list[str] = listed("similar", "random", "random_again", "none", "k1", "k3", "k10")


def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Incidents | CaseFile:
    """The embedded world, or cases and history from files with a model to ask; a bad row is named (`cases.py`)."""
    world = partial(Incidents, config.n_history, config.n_calibration, config.n_test, config.garbled)
    real = partial(CaseFile.load, dataset, model=model, device=device)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def run(task: Incidents | CaseFile, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """All arms of one seed: they share the transcript of the model, where what was asked before is not asked again, and
    are measured beside the main one.

    Returns:
        `{"arms": {arm: measurements}, "transfer" (T on cases of other predictors), "fresh" (T on a second test set),
        ...}`; no arm where too little is labelled. The run folder gets the transcript and the tables `references`,
        `samples`, `scores`, `measured` and `report`; a killed run goes on from them.
    """
    if MAIN not in config.arms:
        raise ValueError(f"the method itself, arm {MAIN!r}, must be among the arms; got {config.arms}")
    cases, history = task.tables(seed)
    model, first = task.subject(seed), cases["predictor"].iloc[0]
    fit_cases: Any = cases[cases["predictor"] == first]  # of one predictor, on which T is fitted
    labels: Any = fit_cases.loc[(fit_cases["split"] == "calibration") & has_prediction(fit_cases), "correct"].dropna()
    labelled = bool(fit_cases["correct"].notna().any())
    enough = labelled and calibration.check_labels(labels.to_numpy())  # before anything is asked; fewer than 50 raise
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)

    def ask(requests: Sequence[chat.Request]) -> list[chat.Reply]:  # a black box: the method sees text, nothing else
        return [reply._replace(logps=None, usage=None) for reply in transcript.ask(model, requests)]

    scored: dict[str, pd.DataFrame] = {}
    facts: dict[str, Any] = {}
    for name in config.arms:
        arm, part = config.ARMS[name], run.child(name)
        asked: Any = cases if name == MAIN else fit_cases[fit_cases["split"] != "fresh"]
        references = part.table("references", partial(find_references, asked, history, arm, config, seed))
        retrieval.check_references(references, asked, history)
        samples = part.table("samples", partial(ask_phases, asked, references, history, arm, model, ask, config))
        check_read(samples, config.max_unparsed, str(part.folder / "samples.parquet"))
        scored[name] = scores.scored(asked, samples, config.max_missing)
        if name == MAIN:
            once: Any = samples[samples["analysis_index"] == 0]  # one more ablation, A = 1, from the same replies
            scored["one_analysis"] = scores.scored(fit_cases[fit_cases["split"] != "fresh"], once, config.max_missing)
            facts = scores.counts(scored[name], samples, references, cases)
            if isinstance(task, Incidents):
                facts |= scores.planted(scored[name], references, history, task.truth(seed))
    facts["excluded"] = retrieval.allowed(cases, history)._asdict() | {"pairs": None}  # the counts, not the big table
    facts |= {"replies": len(transcript), "labelled": labelled, "enough_labels": enough}

    # steps 4 and 5; complete rows have a label, a proposal and every score
    own: dict[str, Any] = {name: table[table["predictor"] == first] for name, table in scored.items()}
    complete = {name: scores.complete(rows) for name, rows in own.items()}
    chosen, ranked = fit(complete[MAIN], config, seed, enough=enough) if labelled else (None, {})
    run.table("scores", lambda: scores.score_table(scored[MAIN], chosen))
    facts |= ranked
    if chosen is None or not enough or "test" not in set(complete[MAIN]["split"]):
        return {"arms": {}, **facts}
    others = {str(name): scores.complete(rows) for name, rows in scored[MAIN].groupby("predictor", sort=False)}
    del others[first]
    return facts | scores.report(complete, others, chosen, run, bins=config.bins, rounds=config.bootstrap, seed=seed)


def find_references(cases: pd.DataFrame, history: pd.DataFrame, arm: Arm, config: Config, seed: int) -> pd.DataFrame:
    """Step 1: the references of one arm, none of them younger than its case."""
    k, rng = config.k if arm.k is None else arm.k, np.random.default_rng([seed, 7, arm.draw])
    return retrieval.retrieve(cases, history, k, config.encoder, order=arm.order, rng=rng)


def ask_phases(
    cases: pd.DataFrame,
    references: pd.DataFrame,
    history: pd.DataFrame,
    arm: Arm,
    model: chat.ChatModel,
    ask: Callable,
    config: Config,
) -> pd.DataFrame:
    """Steps 2 and 3: every answer to every case, one row each.

    A case without a proposal is not rated, one without an older incident not asked, except by the arm that shows none.
    The method's own arm also has the baselines: the model states its confidence at once, without and with references.
    """
    is_asked = cases["case_id"].isin(references["case_id"]) | (arm.k == 0)
    every_case: Any = cases[is_asked]
    proposed: Any = cases[is_asked & has_prediction(cases)]
    sample = partial(
        sample_scores, refs=with_texts(references, history), model=model, ask=ask, answer_tokens=config.answer_tokens
    )
    sample_ab = partial(  # B answers to each of A analyses
        sample,
        n_analyses=config.n_analyses,
        n_answers=config.n_answers,
        temperature=config.temperature,
        analysis_tokens=config.analysis_tokens,
    )
    parts = [sample_ab(every_case, phase=PHASES["coe"]), sample_ab(proposed, phase=PHASES["rce"])]
    if arm == config.ARMS[MAIN]:
        parts += [sample(proposed, phase=p, n_analyses=1, n_answers=1, temperature=0.0) for p in STATED.values()]
    return pd.concat(parts, ignore_index=True)


def fit(table: pd.DataFrame, config: Config, seed: int, *, enough: bool) -> tuple[TransformMap, dict[str, Any]]:
    """Step 4: T from the calibration cases, of the family asked for or the one that cross-validation prefers; with
    fewer labels than `calibration.ENOUGH`, 100, only Platt's map of the rating, family "rce"."""
    if enough:
        ranked = calibration.choose_family(*scores.columns(table, "calibration"), seed=seed)
    else:
        warnings.warn("few labelled calibration cases: only Platt's map of the rating is fitted", stacklevel=2)
        ranked = pd.DataFrame({"family": ["rce"], "cv_brier": [math.nan]})
    best = config.family if config.family != "chosen" and enough else str(ranked["family"][0])
    chosen = scores.fitted(table, best)
    return chosen, {"cross_validation": ranked.to_dict("list"), "transform_id": chosen.transform_id}
