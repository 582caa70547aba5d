"""The test of hallucinated references: what each scale changes, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.confidence.hallucinated_references.method import Config
from workbench.methods.confidence.hallucinated_references.recorded import RecordedScores, rederive
from workbench.methods.experiment import Experiment
from workbench.methods.stated import Stated

_OFFLINE: dict[str, Any] = {"overlaps": ["jaccard", "judge", "containment"]}  # our pilot's IQ is by Jaccard
Config.presets(
    micro=_OFFLINE
    | {"n_topics": 4, "direct_samples": 2, "bootstrap": 20, "curve_bootstrap": 20}
    | {"book_seeds": [0], "n_books": 20, "n_invented": 20, "book_steps": 5},
    smoke=_OFFLINE
    | {"n_topics": 8, "bootstrap": 50, "curve_bootstrap": 20}
    | {"book_seeds": [0], "n_books": 40, "n_invented": 20, "book_steps": 20},
    tiny=_OFFLINE,
    full={},
)

Measured = Mapping[str, Any]  # measurements of one arm and seed
Effect = Callable[[Measured, bool], float]
Holds = Callable[[Measured], bool]
TEXTS = {
    "C1": ("Titles are often invented, less by better models", "rate .468 (GPT-4), .596 (GPT-3.5), .736 (davinci-003)"),
    "C2": ("The agreement of author lists separates real from invented", "AUROC of IQ .878, .783, .692"),
    "C2b": ("It does so in a transformer that has learned its books: AUROC above .8", "mechanism of C2"),
    "C2c": (
        "It does so the more the oftener a book was read: Spearman of IQ and exposure above .5",
        "mechanism of C2, as C2b",
    ),
    "C3": (
        "Direct questions fail for weaker models, which say yes to everything: IQ is ahead of them",
        "DQ1 .887, .540, .556; IQ - DQ +.11 to +.21 (GPT-3.5), +.03 to +.12 (davinci), reversed for GPT-4",
    ),
    "C4": ("Combining helps: IQ+DQ is ahead of DQ", "IQ+DQ .929, .792, .708; DQ .917, .623, .621"),
    "C4b": ("IQ+DQ is ahead of IQ", "by +.037 to +.064 for GPT-4; not established for the two weaker models"),
    "C5": (
        "A threshold keeps a cleaner list: fewer invented ones above IQ .5",
        "39.6 % kept with FDR .083, from .468 (GPT-4)",
    ),
    "C6": ("Labels from a search for the title are right", ".99 to 1.00 agreement with four experts on 100 titles"),
    "C7": ("Larger Llama-2 models invent less", "figures not available"),
}


def claims(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Claims:
    """The paper's claims: effects are differences of AUROC or of shares of invented references.

    A recorded file is decided by the bootstrap over topics; the seeds of such a run seed that bootstrap and nothing
    else.
    """
    world = experiment.task.is_simulated
    found = Stated("hallucinated_references", experiment, TEXTS, simulated=world)
    if isinstance(experiment.task, RecordedScores):
        return rederive(found, TEXTS, results[0], experiment.task.expected)
    main = "simulated" if world else "references"

    def test(id: str, arm: str, effect: Effect, also: Mapping[str, Holds], **options: Any) -> None:
        """Tests one number a seed, with labels as they are and shuffled; the conditions must hold in every seed."""
        parts = {
            seed: part
            for seed, result in zip(found.seeds, results, strict=True)
            if (part := result["arms"].get(arm, {})).get("n_measured")
        }
        measured, control = ([effect(part, shuffled) for part in parts.values()] for shuffled in (False, True))
        if not parts or not np.isfinite([*measured, *control]).all():
            no_labels = "no seed trains a transformer" if arm != main else "no labelled reference with all scores"
            why = "a score is missing, or real, invented or kept references are" if parts else no_labels
            found.needs([id], why)
            return
        conditions = {name: all(holds(part) for part in parts.values()) for name, holds in also.items()}
        options = {"control_is": "labels shuffled", "also": conditions, "seeds": list(parts), **options}
        found.add(id, (measured, control), **options)

    def ahead(a: str, b: str = "") -> Effect:
        """AUROC of a score less that of another, or than 0.5."""

        def effect(part: Measured, shuffled: bool) -> float:
            areas = part["auroc_shuffled"] if shuffled else {name: area[0] for name, area in part["auroc"].items()}
            return areas.get(a, math.nan) - (areas.get(b, math.nan) if b else 0.5)

        return effect

    def over_topics(pair: str) -> dict[str, Holds]:  # seeds share real references: a gain must hold over topics as well
        return {} if world else {"interval over topics above 0": lambda part: part["gains"][pair][1] > 0}

    def cleaner(part: Measured, shuffled: bool) -> float:
        kept = {row[0]: row[3] for row in part["kept_shuffled" if shuffled else "kept"]["IQ"]}
        return part["rate"][0] - kept[0.5]

    one = "here half of the titles exist by construction" if world else "a run has one model"
    found.needs(["C1"], f"{one}; compare the rates of several models on the same topics")
    apart = {"mean IQ of real above invented": lambda part: float(np.subtract(*part["means"]["IQ"])) > 0}
    test("C2", main, ahead("IQ"), apart, unit="AUROC - .5", paper_effect=0.283)
    if world:
        biased = {"yes to more than half of the invented": lambda part: part["means"]["DQ1"][1] > 0.5}
        test("C2b", "transformer", ahead("IQ"), {}, margin=0.3, unit="AUROC - .5")
        options = {"margin": 0.5, "unit": "Spearman", "control_is": "exposures shuffled"}
        test("C2c", "transformer", lambda part, blind: part["exposure_correlation"][blind], {}, **options)
        test("C3", "transformer", ahead("IQ", "DQ1"), biased, unit="AUROC")
    else:
        test("C3", main, ahead("IQ", "DQ"), over_topics("IQ - DQ"), unit="AUROC", paper_effect=0.16)
    test("C4", main, ahead("IQ_DQ", "DQ"), over_topics("IQ_DQ - DQ"), unit="AUROC", paper_effect=0.169)
    test("C4b", main, ahead("IQ_DQ", "IQ"), over_topics("IQ_DQ - IQ"), unit="AUROC", paper_effect=0.051)
    test("C5", main, cleaner, {}, unit="share invented", paper_effect=0.385)
    found.needs(["C6"], "needs labels of a search and of experts: see the recorded results")
    found.needs(["C7"], "needs three Llama-2 chat models and a search for titles")
    return found
