"""PACE-LM: how far may a proposed root cause be trusted? Ask about the evidence first, then about the proposal.

An on-call engineer gets a root cause from some language model. Two scores are asked of another model, in words only:

    coe  is the evidence enough?        share of yes; shown: the incident and K similar older ones, NOT the proposal
    rce  how well does it support it?   mean rating / 5; shown: the same and the proposal
    c = T(coe, rce)                     a probability; T is fitted on labelled cases, logistic with the product by
    default

Each score is the mean over A written analyses with B short answers each.

**Source**: Zhang et al., arXiv 2309.05833; no code and no data are public. The abstract gives the two phases, the
retrieved history and the optimisation step; the names of the scores, yes/no sampling and ten bins are from memory. The
family of T, K, A, B, the scale 0 to 5 and all wording of prompts are the specification's or ours.

What differs, and why:
- T is fitted in three families, chosen by cross-validated Brier score; the claims name the logistic one.
- The grid is searched for ECE plus Brier score: ECE alone is content with a constant.
- A reply that cannot be read is left out and counted; it is never 0. More than 20 % of a case's leave the case without
  that score, more than 5 % of all stop the run.
- A case without a proposal is not rated; its confidence is the base rate of such cases, and flagged.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench.claims import Claims, interval
from workbench.config import Field, Presets, listed, strict
from workbench.feedback import chat, encoders, replies
from workbench.feedback.templates import Template
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.pace_lm import calibration
from workbench.methods.confidence.pace_lm import scores as cases_of
from workbench.methods.confidence.pace_lm.analyses import Phase, check_read, sample_scores, with_texts
from workbench.methods.confidence.pace_lm.calibration import FAMILIES, TransformMap
from workbench.methods.confidence.pace_lm.cases import CaseFile, has_prediction
from workbench.methods.confidence.pace_lm.world import Incidents
from workbench.runs.run import Run

if TYPE_CHECKING:
    from workbench.methods.experiment import Experiment

MAIN = "similar"  # the arm with the most similar older incidents
BEST_ECE, ECE_GAIN, SEEDS_SHARE = 0.10, 0.08, 0.9  # specification: "ECE < .10 and below ECE(raw RCE) - .08 in 9 of 10"
TRANSFER_MARGIN = 0.05  # specification, claim C4
RANDOM_AUROC = (0.45, 0.55)  # specification, claim C2: where AUROC falls to with random references
FOLLOWS = 0.1  # correlation of coe with the proposal at equal evidence, above which coe has seen it; ours


@strict
class Config(Presets):
    """Settings of one experiment. "specification" is the project's page about the paper, which states none of these."""

    n_history: int = Field(default=250, ge=1)  # incidents in the store of the embedded world; specification
    n_calibration: int = Field(default=200, ge=50)  # labelled cases to fit on, embedded world; specification
    n_test: int = Field(default=400, ge=10)  # labelled cases to report on, embedded world; specification
    k: int = Field(default=5, ge=1)  # references a case; specification
    n_analyses: int = Field(default=4, ge=1)  # A, a phase; specification
    n_answers: int = Field(default=2, ge=1)  # B, to each analysis; specification
    temperature: float = Field(default=0.7, gt=0)  # of analyses and answers; specification. Direct answers are greedy
    analysis_tokens: int = Field(default=300, ge=8)  # "at most 300 tokens" (specification)
    answer_tokens: int = Field(default=32, ge=4)  # of a yes, a rating, a stated number; ours
    encoder: str = "words"  # "words", "tfidf", "given" or a sentence-transformers folder; see `retrieval.similarities`
    neighbours: list[int] = listed(1, 3, 10)  # other numbers of references, as ablations; specification
    family: Literal["chosen", "grid", "logistic", "binned"] = (
        "chosen"  # of the reported confidence; by cross-validation
    )
    bins: int = Field(default=10, ge=2)  # of ECE; specification
    bootstrap: int = Field(default=1_000, ge=20)  # rounds over cases; specification
    max_missing: float = Field(default=0.2, ge=0, le=1)  # share of a case's replies that may be unread; specification
    max_unparsed: float = Field(default=0.05, ge=0, le=1)  # share of all; specification
    garbled: float = Field(default=0.03, ge=0, le=1)  # share of broken replies of the simulated model; specification

    PRESETS: ClassVar = {
        "smoke": {"n_calibration": 100, "n_test": 80, "n_analyses": 2, "neighbours": [1], "bootstrap": 50},
        "tiny": {},
        "full": {},
    }
    ON_TEXT: ClassVar = {
        "smoke": {"encoder": "tfidf", "n_analyses": 2, "n_answers": 1, "neighbours": [], "bootstrap": 50},
        "tiny": {"encoder": "tfidf"},
        "full": {"encoder": "tfidf"},
    }


# ---------------------------------------------------------------------------------------------------------- prompts
SHOWN = """You look at an incident in a cloud service. Below it are earlier incidents whose causes are known, the most \
similar first.

Current incident
{incident}

Earlier incidents

{references}

"""
PROPOSED = SHOWN + "Proposed cause: {prediction}\n\n"
ANALYSED = "Analysis\n{analysis}\n\n"

COE_ANALYSIS = Template(
    "coe-analysis",
    SHOWN
    + "Compare the current incident with every earlier one: which of its symptoms match, and which do not? Then say"
    " whether a cause of the current incident could be argued from these references at all. Do not name a cause. At"
    " most 200 words.",
)
COE_ANSWER = Template(
    "coe-answer",
    SHOWN
    + ANALYSED
    + "Is the evidence in these earlier incidents enough to judge what caused the current one? Reply with one line: "
    '"Sufficient: yes" or "Sufficient: no".',
)
RCE_ANALYSIS = Template(
    "rce-analysis",
    PROPOSED
    + "Which of the earlier incidents support the proposed cause, which speak against it, and what is missing to be"
    " sure of it? At most 200 words.",
)
RCE_RATING = Template(
    "rce-rating",
    PROPOSED + ANALYSED + "How well do the earlier incidents support the proposed cause?\n"
    "0: they contradict it.\n1: they point to something else.\n2: they say nothing for it.\n"
    "3: it is plausible, without direct support.\n4: an incident much like this one had this cause.\n"
    "5: they document the same fault with the same symptoms.\n"
    'Reply with one line: "Score: " and a whole number from 0 to 5.',
)
STATE = (
    'How probable is it that the proposed cause is right? Reply with one line: "Confidence: " and a number from 0 to 1.'
)
DIRECT = Template(
    "direct",
    (
        "You look at an incident in a cloud service.\n\nCurrent incident\n{incident}\n\nProposed cause:"
        " {prediction}\n\n" + STATE
    ),
)
DIRECT_REFERENCES = Template("direct-references", PROPOSED + STATE)


def read_sufficient(text: str) -> float:
    """1 for the last "Sufficient: yes", 0 for "no"; else a lone leading yes or no; else NaN."""
    said = re.findall(r"\bsufficient[*_ \t]*[:=][*_ \t]*(yes|no)\b(?!\s*(?:/|\||or\b))", text, re.IGNORECASE)
    lone = re.match(r"\W*(yes|no)\s*(?:[.,;:!\n*]|$)", text, re.IGNORECASE)
    word = said[-1] if said else lone[1] if lone else ""
    return {"yes": 1.0, "no": 0.0}.get(word.casefold(), math.nan)


def read_score(text: str) -> float:
    """The whole number behind the last "Score:", as a share of 5; NaN for none, a fraction, a range, or outside 0 to
    5."""
    said = re.findall(r"\bscore[*_ \t]*[:=][*_ \t]*(-?\d+(?:\.\d+)?)(?!\d)(\s*(?:-|–|to)\s*\d)?", text, re.IGNORECASE)
    number, is_range = said[-1] if said else ("", "")
    return int(number) / 5 if re.fullmatch(r"[0-5]", number) and not is_range else math.nan


PHASES = {
    "coe": Phase("coe", COE_ANALYSIS, COE_ANSWER, read_sufficient),
    "rce": Phase("rce", RCE_ANALYSIS, RCE_RATING, read_score),
}
STATED = {
    "direct": Phase("direct", None, DIRECT, replies.confidence),
    "direct_references": Phase("direct_references", None, DIRECT_REFERENCES, replies.confidence),
}


# -------------------------------------------------------------------------------------------------------- algorithm
def open_task(config: Config, *, model: str = "", dataset: str = "", device: str = "auto") -> Incidents | CaseFile:
    """The embedded world, or cases and history from files with a model to ask.

    Raises:
        ValueError: one of model and dataset without the other; a bad row (see `feedback.cases`).
    """
    if not model and not dataset:
        return Incidents(config.n_history, config.n_calibration, config.n_test, config.garbled)
    if not model or not dataset:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real cases, or neither for the embedded world"
        )
    return CaseFile.load(dataset, model=model, device=device)


def run(task: Incidents | CaseFile, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Retrieve, ask both phases, fit T on the calibration cases, report on the others; then the ablations.

    Returns:
        `{"arms": {arm: measurements}, "transfer", "fresh", ...}`. The run folder gets the transcript and the tables
        `references`, `samples`, `scores`, `measured` and `report`; a killed run goes on from them.
    """
    cases, history = task.tables(seed)
    model, predictors = task.subject(seed), list(dict.fromkeys(cases["predictor"]))
    main: Any = cases[cases["predictor"] == predictors[0]]
    main_labels: Any = main.loc[(main["split"] == "calibration") & has_prediction(main), "correct"].dropna()
    labelled = main["correct"].notna().tolist().count(True) > 0
    enough = labelled and calibration.check_labels(main_labels.to_numpy())  # before anything is asked
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)

    def ask(requests: Sequence[chat.Request]) -> list[chat.Reply]:  # C5: what the method sees is text and nothing else
        return [chat.Reply(reply.text) for reply in transcript.ask(model, requests)]

    tables: dict[str, Any] = {}
    for arm, k in arms(config).items():
        part, asked = run.child(arm), cases if arm == MAIN else main[main["split"] != "fresh"]
        refs = part.table("references", partial(find_references, asked, history, arm, k, config, seed))
        encoders.check_references(refs, asked, history)
        samples = part.table("samples", partial(ask_phases, asked, refs, history, arm, model, ask, config))
        check_read(samples, config.max_unparsed, str(part.folder / "samples.parquet"))
        tables[arm] = cases_of.scored(asked, samples, config.max_missing)
        if arm == MAIN:
            first: Any = samples[samples["analysis_index"] == 0]
            tables["one_analysis"] = cases_of.scored(main[main["split"] != "fresh"], first, config.max_missing)
            left_out = cases_of.counts(tables[arm], samples, refs, cases)
            if isinstance(task, Incidents):
                left_out |= cases_of.planted(tables[arm], refs, history, task.truth(seed))
    everything = tables[MAIN]
    whole = {arm: cases_of.complete(table[table["predictor"] == predictors[0]]) for arm, table in tables.items()}
    result: dict[str, Any] = {
        "replies": len(transcript),
        "labelled": labelled,
        "enough_labels": enough,
        **left_out,
        "excluded": encoders.allowed(cases, history)._asdict() | {"pairs": None},
        "arms": {},
    }
    chosen = choose(whole[MAIN], config, seed, result) if labelled else None
    run.table("scores", lambda: cases_of.score_table(everything, chosen))
    if chosen is None or not enough or "test" not in set(whole[MAIN]["split"]):
        return result
    measure = partial(cases_of.measure, chosen=chosen, bins=config.bins, seed=seed)
    for arm, table in whole.items():
        result["arms"][arm] = measure(table, "test", names=() if arm == MAIN else cases_of.ABLATION)
    if "fresh" in set(whole[MAIN]["split"]):
        result["fresh"] = measure(whole[MAIN], "fresh", names=FAMILIES)
    rows = run.table("measured", lambda: cases_of.measured(whole[MAIN], chosen, seed))
    run.table(
        "report",
        lambda: calibration.calibration_report(
            rows["chosen"], rows["correct"], config.bins, rounds=config.bootstrap, seed=seed
        ),
    )
    result["gains"] = cases_of.gains(rows, bins=config.bins, rounds=config.bootstrap, seed=seed)
    result["transfer"] = {
        name: cases_of.transfer(
            whole[MAIN], cases_of.complete(everything[everything["predictor"] == name]), config.bins
        )
        for name in predictors[1:]
    }
    return result


def arms(config: Config) -> dict[str, int]:
    """References a case in every arm: the method, and the retrieval's ablations."""
    return {
        MAIN: config.k,
        "random": config.k,
        "random_again": config.k,
        "none": 0,
        **{f"k{k}": k for k in config.neighbours},
    }


def find_references(
    cases: pd.DataFrame, history: pd.DataFrame, arm: str, k: int, config: Config, seed: int
) -> pd.DataFrame:
    """The references table of one arm."""
    order, rng = ("random" if "random" in arm else "similarity"), np.random.default_rng([seed, 7, len(arm)])
    return encoders.retrieve(cases, history, k, config.encoder, order=order, rng=rng)


def choose(table: pd.DataFrame, config: Config, seed: int, result: dict[str, Any]) -> TransformMap:
    """T of the reported confidence: by cross-validated Brier score on the calibration cases, or the family asked
    for."""
    if result["enough_labels"]:
        ranked = calibration.choose_family(*cases_of.columns(table, "calibration"), seed=seed)
    else:
        warnings.warn("few labelled calibration cases: only Platt's map of the rating is fitted", stacklevel=2)
        ranked = pd.DataFrame({"family": ["rce"], "cv_brier": [math.nan]})
    best = config.family if config.family != "chosen" and result["enough_labels"] else str(ranked["family"][0])
    chosen = cases_of.fitted(table, best)
    result |= {"cross_validation": ranked.to_dict("list"), "transform_id": chosen.transform_id}
    return chosen


def ask_phases(
    cases: pd.DataFrame,
    refs: pd.DataFrame,
    history: pd.DataFrame,
    arm: str,
    model: chat.ChatModel,
    ask: Callable,
    config: Config,
) -> pd.DataFrame:
    """The samples table of one arm. A case without a proposal is not rated, one without an older incident not asked."""
    texts, with_past = with_texts(refs, history), cases["case_id"].isin(refs["case_id"]) | (arm == "none")
    everyone: Any = cases[with_past]
    proposed: Any = cases[with_past & has_prediction(cases)]
    sample = partial(sample_scores, refs=texts, model=model, ask=ask, answer_tokens=config.answer_tokens)
    twice = partial(
        sample,
        n_analyses=config.n_analyses,
        n_answers=config.n_answers,
        temperature=config.temperature,
        analysis_tokens=config.analysis_tokens,
    )
    parts = [twice(everyone, phase=PHASES["coe"]), twice(proposed, phase=PHASES["rce"])]
    if arm == MAIN:
        parts += [sample(proposed, phase=p, n_analyses=1, n_answers=1, temperature=0.0) for p in STATED.values()]
    return pd.concat(parts, ignore_index=True)


# ----------------------------------------------------------------------------------------------------------- claims
def values(results: Sequence[Mapping[str, Any]], arm: str, score: str, metric: str) -> np.ndarray:
    """[seeds] of one metric of one score in one arm, on the test cases.

    Raises:
        ValueError: there are no, or too few, labelled cases.
    """
    if not all(result["arms"] for result in results):
        raise ValueError(
            f"fewer than {calibration.ENOUGH} labelled calibration cases, or no labelled test cases: nothing can be"
            " measured; what was scored is in scores.parquet"
        )
    return np.array([result["arms"][arm]["scores"][score][metric] for result in results], dtype=float)


def claims(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Claims:
    """The claims of the specification page. All confidences are the logistic map's, the specification's default.

    Where the cases are real, the seeds share them and differ in what the model samples; a gain must then also exclude 0
    in a bootstrap over cases.
    """
    world = experiment.task.is_simulated
    # A simulated model shows that a pipeline works in small, whatever its size; "full" is for real models.
    found = Claims("pace_lm", "tiny" if world and experiment.scale == "full" else experiment.scale, experiment.seeds)
    ece, auroc, brier = (
        lambda score, arm=MAIN, metric=metric: values(results, arm, score, metric)
        for metric in ("ece", "auroc", "brier")
    )
    unknown = "not verified"  # the paper's figures

    def over_cases(name: str) -> dict[str, bool]:
        held = not world and all(result["gains"][name][0] > 0 for result in results)
        return {} if world else {f"{name}: excludes 0 over cases": held}

    gain = ece("raw_rce") - ece("logistic")
    small = float(np.mean((ece("logistic") < BEST_ECE) & (gain > ECE_GAIN)))
    in_world = (
        {f"ECE below {BEST_ECE:g}, gain above {ECE_GAIN:g} in 9 of 10 seeds": small >= SEEDS_SHARE} if world else {}
    )
    found.test(
        "C1",
        "The fitted confidence is calibrated: lower ECE than the raw rating",
        paper=unknown,
        measured=gain,
        control=ece("raw_rce") - ece("flipped"),
        control_is="labels turned over when fitting",
        test="wilcoxon",
        unit="ECE",
        also={
            **in_world,
            **over_cases("ece_raw_rce"),
            **over_cases("ece_direct"),
            "below the stated number too": interval(ece("direct") - ece("logistic"))[0] > 0,
            "Brier no worse than the base rate's": bool(brier("logistic").mean() <= brier("base_rate").mean()),
        },
        note=(
            f"ECE {ece('logistic').mean():.3f}; the base rate's {ece('base_rate').mean():.3f}: a constant is calibrated"
        ),
    )
    random = auroc("logistic", "random")
    falls = (
        {"AUROC .45 to .55 with random ones": bool(RANDOM_AUROC[0] <= random.mean() <= RANDOM_AUROC[1])}
        if world
        else {}
    )
    found.test(
        "C2",
        "Similar earlier incidents help: higher AUROC than with random ones",
        paper=unknown,
        measured=auroc("logistic") - random,
        control=auroc("logistic", "random_again") - random,
        control_is="random ones drawn again",
        test="wilcoxon",
        unit="AUROC",
        also={
            "better than without any": bool((auroc("logistic") - auroc("logistic", "none")).mean() > 0),
            "Brier better than with random ones": bool(brier("logistic").mean() < brier("logistic", "random").mean()),
            "Brier better than without any": bool(brier("logistic").mean() < brier("logistic", "none").mean()),
            **falls,
        },
        note=f"ECE with random ones {ece('logistic', 'random').mean():.3f}: low, and worth nothing",
    )
    follows = abs(np.mean([r["coe_follows"] for r in results])) if world else math.nan
    unseen = {"coe does not follow the proposal": bool(follows < FOLLOWS)} if world else {}
    found.test(
        "C3",
        "Asking about the evidence first helps: higher AUROC than the rating alone",
        paper=unknown,
        measured=auroc("logistic") - auroc("raw_rce"),
        control=auroc("coe_shuffled") - auroc("raw_rce"),
        control_is="coe in random order",
        test="wilcoxon",
        unit="AUROC",
        also={
            "Brier better than the rating's affine map": bool(brier("logistic").mean() < brier("grid_rce").mean()),
            "Brier better than the rating's Platt map": bool(brier("logistic").mean() < brier("rce").mean()),
            **unseen,
            **over_cases("auroc_raw_rce"),
        },
    )
    c4 = "It carries over: one predictor's map raises the ECE of another by less than .05"
    if all(result.get("transfer") for result in results):
        worst, constant = (
            np.array([max(t[moved] - t[own] for t in result["transfer"].values()) for result in results])
            for moved, own in (("transferred", "own"), ("base_rate", "base_rate_own"))
        )
        refitted = np.mean([t["refitted"] for result in results for t in result["transfer"].values()])
        found.test(
            "C4",
            c4,
            paper=unknown,
            measured=worst,
            control=constant,
            control_is="base rate of the first predictor",
            direction="less",
            margin=TRANSFER_MARGIN,
            test="wilcoxon",
            unit="ECE",
            note=f"largest of {len(results[0]['transfer'])} predictors; refitted, their ECE is {refitted:.3f}",
        )
    else:
        found.needs_full_scale("C4", c4, unknown, "the cases come from one predictor")
    found.test(
        "C5",
        "Text alone suffices: without log-probs or weights the confidence tells right from wrong",
        paper="by construction",
        measured=auroc("logistic") - 0.5,
        control=auroc("labels_shuffled") - 0.5,
        control_is="labels shuffled",
        test="wilcoxon",
        unit="AUROC above 1/2",
    )
    return found
