"""Metrics of answers that carry a confidence, and of preferences: how good is the order, how honest are the numbers?

Conventions: `confidence` [n], higher is surer; `correct` [n], 1 right and 0 wrong. Ranking metrics take scores on any
scale; calibration metrics only probabilities. Source of the definitions: Shrivastava, Kumar and Liang, arXiv
2502.01126, step 9; get_selective_stats in p-lambda/verified_calibration (no ties); Guo et al. 2017 (calibration error).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from workbench.stats import selective

# one place to look for a metric: those of simultaneous translation are offered here too
from workbench.stats.latency import average_lagging as average_lagging
from workbench.stats.latency import average_proportion as average_proportion
from workbench.stats.latency import differentiable_average_lagging as differentiable_average_lagging
from workbench.stats.latency import length_adaptive_average_lagging as length_adaptive_average_lagging

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Binning = Literal["left_closed", "right_closed", "equal_mass"]
MERGED_VOTES = {"vote_tie": "uncertain", "vote_both_bad": "uncertain"}  # four kinds of votes as left, right, uncertain


class AccuracyCoverage(NamedTuple):
    """Accuracy when only the most confident answers are kept; point k keeps k + 1 of n."""

    coverage: Float[np.ndarray, " n"]
    accuracy: Float[np.ndarray, " n"]


class Reliability(NamedTuple):
    """Bins that hold at least one answer: their number, count, mean confidence and accuracy."""

    bin: Int[np.ndarray, " bins"]
    count: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    accuracy: Float[np.ndarray, " bins"]


def _pairs(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = np.asarray(confidence, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if scores.ndim != 1 or scores.shape != labels.shape:
        got = f"shapes {list(scores.shape)} and {list(labels.shape)}"
        raise ValueError(f"confidence and correct must be lists of the same length; got {got}")
    if not len(scores):
        raise ValueError("confidence and correct are empty; a metric needs at least one answer")
    if np.isnan(scores).any():
        row = int(np.argmax(np.isnan(scores)))
        raise ValueError(f"confidence row {row} is nan; drop or count unparsed answers before scoring them")
    wrong = (labels != 0) & (labels != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(f"correct row {row}: a label must be 0 (wrong) or 1 (right); got {labels[row]:g}")
    return scores, labels


def _probabilities(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    scores, labels = _pairs(confidence, correct)
    outside = (scores < 0) | (scores > 1)
    if outside.any():
        row = int(np.argmax(outside))
        found = f"calibration needs probabilities in [0, 1]; confidence row {row} is {scores[row]:g}"
        remedy = "must first be normalised by a map fitted on labelled answers (isotonic, Platt)"
        not_so = "squeezing them into [0, 1] does not make them probabilities"
        raise ValueError(f"{found}. Ratings (Elo, Bradley-Terry, TrueSkill) {remedy}; {not_so}")
    return scores, labels


# ---- order: any scale ---------------------------------------------------------------------------------------------


def accuracy_coverage(confidence: ArrayLike, correct: ArrayLike) -> AccuracyCoverage:
    """Accuracy of the k most confident answers for k = 1 ... n, expected over random orders inside tie groups.

    In expectation each member of a tie group (scores equal to nine digits) counts as the group's mean, so the order
    of the rows never matters.

    Args:
        confidence: [n], any scale.
        correct: [n], 0 or 1.

    Raises:
        ValueError: different lengths, no rows, NaN confidence, or a label that is not 0 or 1.
    """
    scores, labels = _pairs(confidence, correct)
    _, group, size = np.unique(-scores.round(9), return_inverse=True, return_counts=True)
    right = np.bincount(group, labels)
    kept = np.arange(1, size.sum() + 1)
    return AccuracyCoverage(kept / len(kept), np.cumsum(np.repeat(right / size, size)) / kept)


def accuracy_coverage_auc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Area under accuracy-coverage: the plain mean of its n points (not AUROC, not the trapezoid).

    A random order gives the accuracy in expectation, the best order `oracle_auc`.
    """
    return float(accuracy_coverage(confidence, correct).accuracy.mean())


def accuracy_at_coverage(confidence: ArrayLike, correct: ArrayLike, coverage: float) -> float:
    """Accuracy of the ceil(coverage n) most confident answers, expected over ties; coverage in (0, 1]."""
    if not 0 < coverage <= 1:
        raise ValueError(f"coverage must be in (0, 1]; got {coverage}")
    accuracy = accuracy_coverage(confidence, correct).accuracy
    kept = math.ceil(round(coverage * len(accuracy), 9))  # 0.07 * 100 is 7, not 7.000000000000001
    return float(accuracy[max(kept, 1) - 1])


def oracle_auc(correct: ArrayLike) -> float:
    """Area under accuracy-coverage when every right answer stands before every wrong one."""
    return accuracy_coverage_auc(correct, correct)


def auroc(confidence: ArrayLike, correct: ArrayLike) -> float:
    """P(a right answer's score > a wrong one's) + half P(equal); NaN with a warning when one class is missing."""
    scores, labels = _pairs(confidence, correct)
    if labels.min() == labels.max():
        all_are = "right" if labels[0] else "wrong"
        warnings.warn(f"AUROC is undefined: all {len(labels)} answers are {all_are}", stacklevel=2)
        return math.nan
    return float(selective.auroc(1 - labels, scores)[0])


def average_precision(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Precision averaged over the right answers, tie groups taken whole; NaN with a warning when none is right."""
    from sklearn.metrics import average_precision_score

    scores, labels = _pairs(confidence, correct)
    if not labels.any():
        warnings.warn(f"average precision is undefined: all {len(labels)} answers are wrong", stacklevel=2)
        return math.nan
    return float(average_precision_score(labels, scores.round(9)))


# ---- honesty of the numbers: probabilities only -------------------------------------------------------------------


def reliability(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, binning: Binning = "left_closed"
) -> Reliability:
    """Confidence against accuracy, bin by bin: the reliability diagram as a table.

    Args:
        confidence: [n], probabilities.
        correct: [n], 0 or 1.
        bins: number of bins, at least 1.
        binning: "left_closed" [a, b) with 1 in the last, "right_closed" (a, b] with 0 in the first, both of equal
            width; "equal_mass": sorted (ties in row order) and cut into bins of equal count.

    Raises:
        ValueError: scores outside [0, 1], and what `accuracy_coverage` raises.
    """
    scores, labels = _probabilities(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    if binning == "left_closed":
        index = np.minimum(np.floor(scores * bins), bins - 1)
    elif binning == "right_closed":
        index = np.maximum(np.ceil(scores * bins) - 1, 0)
    elif binning == "equal_mass":
        index = np.empty(len(scores))
        for number, members in enumerate(np.array_split(np.argsort(scores, kind="stable"), bins)):
            index[members] = number
    else:
        raise ValueError(f"binning must be 'left_closed', 'right_closed' or 'equal_mass'; got {binning!r}")
    used, group, count = np.unique(index.astype(np.int64), return_inverse=True, return_counts=True)
    return Reliability(used, count, np.bincount(group, scores) / count, np.bincount(group, labels) / count)


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, binning: Binning = "left_closed"
) -> float:
    """Mean over answers of |accuracy - mean confidence| of their bin; see `reliability` for the bins.

    With "equal_mass" ties that straddle a cut follow the order of the rows.
    """
    table = reliability(confidence, correct, bins=bins, binning=binning)
    return float(table.count @ np.abs(table.accuracy - table.confidence) / table.count.sum())


def maximum_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, binning: Binning = "left_closed"
) -> float:
    """Largest |accuracy - mean confidence| of a bin that holds an answer."""
    table = reliability(confidence, correct, bins=bins, binning=binning)
    return float(np.abs(table.accuracy - table.confidence).max())


def brier(confidence: ArrayLike, correct: ArrayLike) -> float:
    """Mean squared difference between probability and label; 0 is best."""
    scores, labels = _probabilities(confidence, correct)
    return float(np.mean((scores - labels) ** 2))


def negative_log_likelihood(confidence: ArrayLike, correct: ArrayLike, *, clip: float = 1e-6) -> float:
    """Mean -log probability of what happened, in nats, with probabilities held inside [clip, 1 - clip]."""
    scores, labels = _probabilities(confidence, correct)
    if not 0 < clip < 0.5:
        raise ValueError(f"clip must be inside (0, 0.5), or a sure and wrong answer costs infinity; got {clip}")
    scores = np.clip(scores, clip, 1 - clip)
    return float(-np.mean(np.where(labels == 1, np.log(scores), np.log1p(-scores))))


# ---- preferences --------------------------------------------------------------------------------------------------


def win_rate(preference: ArrayLike) -> tuple[float, float]:
    """Win rate and its standard error, both in percent, from a judge's preferences.

    Args:
        preference: [n] in [0, 1], probability that the judged model is better; a tie is 0.5.

    Returns:
        100 mean(preference) and 100 std(preference, ddof=1) / sqrt(n); the error of a single row is NaN.

    Raises:
        ValueError: no rows, NaN, or a value outside [0, 1].
    """
    values = np.asarray(preference, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"preference must be a list with at least one value; got shape {list(values.shape)}")
    bad = ~((values >= 0) & (values <= 1))
    if bad.any():
        row = int(np.argmax(bad))
        got = f"got {values[row]:g}. Drop rows without a verdict"
        raise ValueError(f"preference row {row} must be a number in [0, 1]; {got}")
    spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
    return 100 * float(values.mean()), 100 * spread / math.sqrt(len(values))


class Agreement(NamedTuple):
    """Two label vectors side by side; `confusion` counts [human label, judge label], in the order of the labels."""

    accuracy: float
    macro_f1: float
    cohen_kappa: float
    matthews: float
    confusion: Int[np.ndarray, "label label"]


def agreement(
    human: Sequence[str], judge: Sequence[str], labels: Sequence[str], *, merge: Mapping[str, str] | None = None
) -> Agreement:
    """How far a judge's labels agree with human ones; a label that never occurs counts 0 in macro F1.

    Args:
        labels: all labels there are, after merging; kappa and Matthews do not depend on them.
        merge: labels to be read as another one (`MERGED_VOTES` for votes of an arena).

    Raises:
        ValueError: no rows, different lengths, or a label that is none of `labels`; the row is named.
    """
    from sklearn import metrics as sk

    sides = [[(merge or {}).get(label, label) for label in side] for side in (human, judge)]
    if not sides[0] or len(sides[0]) != len(sides[1]):
        raise ValueError(f"human and judge need as many labels, at least one; got {len(sides[0])} and {len(sides[1])}")
    for name, side in zip(("human", "judge"), sides, strict=True):
        for row, label in enumerate(side):
            if label not in labels:
                raise ValueError(f"{name} row {row}: {label!r} is none of the labels {', '.join(labels)}")
    never: Any = 0  # what a label counts that never occurs; the library's stubs expect text here
    f1 = sk.f1_score(*sides, labels=labels, average="macro", zero_division=never)
    accuracy, kappa, matthews = sk.accuracy_score(*sides), sk.cohen_kappa_score(*sides), sk.matthews_corrcoef(*sides)
    confusion = sk.confusion_matrix(*sides, labels=labels)
    return Agreement(float(accuracy), float(f1), float(kappa), float(matthews), confusion)
