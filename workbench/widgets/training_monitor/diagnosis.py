"""Two diagnoses of preference training: is the falling chosen reward harmful, and is length drifting?

Verdicts are decided by 95 % intervals, never by point values: bootstraps that draw prompts with all their rows, so that
rows of one prompt count as what they are. Percentiles are expanded for few prompts as in Hesterberg (2015, "What
teachers should know about the bootstrap", section 5.3); with one prompt there is no interval and no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from rapidfuzz.distance import Levenshtein
from scipy import stats

HARM = "Is the falling chosen reward harmful?"
LENGTH = "Is length drifting?"
SIDES, WHEN = ("chosen", "rejected"), ("before", "after")
COLUMNS = ["question", "measure", "unit", "before", "after", "difference", "lower", "upper", "n", "verdict"]
ROUNDS = 2_000
LISTED = 10  # rows that a list of the worst shows
ALIKE = 0.8  # edit similarity from which a pair counts as nearly the same text
_TEXT = 10_000  # characters of a response that are compared; the distance takes the square of them

# verdicts of the first question
NONE, BENIGN, HARMFUL = "no displacement", "displacement, no sign of harm", "displacement, harmful"
NO_QUALITY, UNDECIDED = "cannot be told: no quality measured", "cannot be told: the intervals do not decide"
TOO_FEW = "cannot be told: fewer than two prompts"
NO_CHANGE = "cannot be told: these rewards are no changes since the start"
# and of the second
STEADY, DRIFTS = "no length drift", "length drift, and the reward favours length"
REWARDED = "the reward favours length; own samples are not longer"
LONGER, SHORTER = "own samples get longer; the held-out reward does not favour length", "own samples get shorter"
NO_LENGTHS = "cannot be told: lengths do not vary and nothing was sampled"
REWARDED_ONLY = "the reward favours length; own samples not measured"
REWARD_ONLY = "the reward does not favour length; own samples not measured"

FILTER = "filter near-identical pairs, which cause it (Razin et al. 2024, arXiv 2410.08847; Pal et al. 2024, arXiv "
FILTER += "2402.13228): the list of most alike rows shows them"
ANCHOR = "hold the chosen response up: DPO-Positive (Pal et al. 2024, arXiv 2402.13228), anchored preference "
ANCHOR += "optimisation (D'Oosterlinck et al. 2024, arXiv 2408.06266; loss_type='apo_zero' here), or a log-likelihood "
ANCHOR += "term on chosen (Pang et al. 2024, arXiv 2404.19733)"
GENTLER = "move less: a larger beta, fewer epochs, a lower learning rate"
MEASURE = "measure the quality of own samples: give the probe a scorer (a reward model as judge), or read the samples "
MEASURE += "below"
MORE = "measure more: more held-out prompts in the probe narrow the intervals"
SAMPLE = "sample while training: give the probe prompts"
NORMALISE = "take length out of the objective: rewards per token as SimPO has them (Meng et al. 2024, arXiv "
NORMALISE += (
    "2405.14734), IPO's averages, or a length penalty in the margin, R-DPO (Park et al. 2024, arXiv 2403.19159)"
)
BALANCE = "balance the data: pairs in which the chosen response is the longer one teach length beside the preference"
REMEDIES = {
    NONE: [],
    BENIGN: ["nothing has to change; keep watching the quality of own samples", FILTER],
    HARMFUL: [ANCHOR, FILTER, GENTLER],
    NO_QUALITY: [MEASURE, MORE],
    UNDECIDED: [MORE, FILTER],
    TOO_FEW: [MORE],
    NO_CHANGE: ["probe the training: dpo's probe_every, or Probe(...) as watch of training.train"],
    STEADY: [],
    DRIFTS: [NORMALISE, BALANCE, GENTLER],
    REWARDED: [NORMALISE, BALANCE],
    REWARDED_ONLY: [NORMALISE, BALANCE, SAMPLE],
    LONGER: ["read the samples: text that does not end or repeats itself is longer too", BALANCE],
    SHORTER: ["read the samples, and look at the share that ended: an end that comes too early looks the same"],
    NO_LENGTHS: [SAMPLE],
    REWARD_ONLY: [SAMPLE],
}


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; NaN where there is none, `n` rows in `prompts` prompts."""

    value: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    n: int = 0
    prompts: int = 0

    @property
    def rose(self) -> bool:
        return self.lower > 0

    @property
    def fell(self) -> bool:
        return self.upper < 0

    @property
    def is_known(self) -> bool:
        return math.isfinite(self.lower) and math.isfinite(self.upper)

    def __str__(self) -> str:
        return f"{self.value:+.3g} [{self.lower:.3g}, {self.upper:.3g}]"


@dataclass(frozen=True)
class Verdict:
    """The answer to one question: in words, why by the rule, what to do about it."""

    question: str
    verdict: str
    because: str
    remedies: list[str]


@dataclass(frozen=True)
class Diagnosis:
    """Both verdicts, the measures behind them, and the rows to look at.

    Attributes:
        table: `COLUMNS`, one row a measure; `lower`, `upper`: 95 % interval of the difference (or of a lone `after`).
        falls: held-out rows whose chosen response lost most.
        alike: held-out rows whose two responses are most alike, with `similarity`, 1 for the same text.
        notes: what could not be measured, or was left out.
    """

    verdicts: list[Verdict]
    table: pd.DataFrame
    falls: pd.DataFrame
    alike: pd.DataFrame
    notes: list[str]

    def frame(self) -> pd.DataFrame:
        return self.table

    def __repr__(self) -> str:
        lines = []
        for verdict in self.verdicts:
            lines += [verdict.question, f"  {verdict.verdict}", f"  because {verdict.because}"]
            lines += [f"  - {remedy}" for remedy in verdict.remedies]
            part: Any = self.table[self.table["question"] == verdict.question].drop(columns=["question", "verdict"])
            lines += [part.round(3).to_string(index=False, na_rep="", max_colwidth=60), ""]
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


# ---------------------------------------------------------------------------------------------------------- intervals
def bootstrap(columns: np.ndarray, clusters: Any, statistic: Callable[[np.ndarray], np.ndarray]) -> Interval:
    """Interval of a function of sums of columns, such as a mean (sum over count) or a slope.

    Args:
        columns: [row, column] numbers that are summed; rows with a NaN are left out.
        clusters: [row] what is drawn together.
        statistic: of sums [round, 1 + column], the first being the number of rows, to [round].
    """
    values = np.asarray(columns, dtype=float)
    fine = np.isfinite(values).all(1)
    codes = pd.factorize(np.asarray(clusters, dtype=object)[fine])[0]
    n, groups = int(fine.sum()), int(codes.max(initial=-1)) + 1
    if not n:
        return Interval()
    sums = np.zeros((groups, 1 + values.shape[1]))
    np.add.at(sums, codes, np.c_[np.ones(n), values[fine]])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(0, keepdims=True))[0])
        if groups < 2:
            return Interval(value, n=n, prompts=groups)
        counts = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), ROUNDS)
        drawn = statistic(counts @ sums)
    drawn = drawn[np.isfinite(drawn)]
    if not math.isfinite(value) or len(drawn) < ROUNDS // 2:
        return Interval(value, n=n, prompts=groups)
    tail = stats.norm.cdf(-math.sqrt(groups / (groups - 1)) * stats.t.ppf(0.975, groups - 1))
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Interval(value, float(low), float(high), n, groups)


def mean(values: Any, clusters: Any) -> Interval:
    return bootstrap(np.asarray(values, dtype=float)[:, None], clusters, lambda s: s[:, 1] / s[:, 0])


def slope(x: np.ndarray, y: np.ndarray, clusters: Any) -> Interval:
    """Slope of y on x inside each of two sides, x and y [row, side]: chosen being longer and better is no slope.

    NaN where x does not vary inside a side.
    """
    parts = [np.c_[x[:, k], y[:, k], x[:, k] ** 2, x[:, k] * y[:, k]] for k in (0, 1)]

    def statistic(s: np.ndarray) -> np.ndarray:
        n, up, down = s[:, 0], 0.0, 0.0
        for first in (1, 5):
            sx, sy, sxx, sxy = s[:, first : first + 4].T
            up, down = up + sxy - sx * sy / n, down + sxx - sx * sx / n
        return np.where(down > 1e-9 * n, up / np.where(down > 1e-9 * n, down, 1.0), np.nan)

    return bootstrap(np.concatenate(parts, 1), clusters, statistic)


# ------------------------------------------------------------------------------------------------------------ diagnoses
def of_probe(
    rows: pd.DataFrame, scores: pd.DataFrame, samples: pd.DataFrame, *, beta: float = 0.0, step: int = -1
) -> Diagnosis:
    """Diagnosis of what `probes.read` gives: the first measured step against `step` (-1: the last one).

    Raises:
        ValueError: fewer than two measured steps.
    """
    steps = sorted({int(s) for table in (scores, samples) for s in table["step"].unique()})
    last = steps[-1] if step < 0 and steps else step
    if last not in steps[1:]:
        measured = ", ".join(map(str, steps)) or "none"
        raise ValueError(f"a diagnosis needs a step behind the first one; measured are {measured}")
    first, table = steps[0], rows.copy()
    for when, at in (("before", first), ("after", last)):
        part = scores[scores["step"] == at].set_index("row")
        for side in SIDES:
            table[f"{side}_{when}"] = part[f"{side}_logp"].reindex(table["row"]).to_numpy(dtype=float)
    old, new = (samples[samples["step"] == at] for at in (first, last))
    both = old.merge(new, on=["prompt", "k"], suffixes=("_before", "_after"))
    notes = [f"compared: step {first} and step {last}"]
    notes += _left_out(table[[f"{side}_{when}" for side in SIDES for when in WHEN]], "log-prob")
    return _diagnose(table, both, unit="nats", beta=beta, notes=notes)


def of_rewards(table: pd.DataFrame, *, beta: float = 0.0, is_change: bool = True) -> Diagnosis:
    """Diagnosis of held-out rewards after training, as finished runs leave them; less can be told than with a probe.

    Args:
        table: `prompt`, `chosen`, `rejected`, `chosen_rewards`, `rejected_rewards`: beta × log-ratio to the reference.
        beta: that they were multiplied with; 0 where unknown, and nats become "reward".
        is_change: False where the objective has no reference, so that its rewards are no changes since the start.

    Raises:
        ValueError: a column is missing.
    """
    needed = ["prompt", "chosen", "rejected", "chosen_rewards", "rejected_rewards"]
    if missing := [name for name in needed if name not in table]:
        raise ValueError(f"held-out rewards lack the columns {', '.join(missing)}; needed are {', '.join(needed)}")
    texts = {name: table[name].map(str).to_numpy() for name in needed[:3]}
    rows: Any = pd.DataFrame({"row": range(len(table)), **texts})
    for side in SIDES:
        rows[f"{side}_length"] = rows[side].str.len()
        rows[f"{side}_before"] = 0.0 if is_change else math.nan
        rewards = table[f"{side}_rewards"].to_numpy(dtype=float)
        rows[f"{side}_after"] = rewards / (beta or 1.0) if is_change else math.nan
    notes = ["no probe watched this training: changes are read from held-out rewards after it, lengths are characters"]
    notes += _left_out(table[needed[3:]], "reward")
    found = _diagnose(rows, None, unit="nats" if beta else "reward", beta=beta, notes=notes, per_token=False)
    if not is_change:
        found.verdicts[0] = Verdict(HARM, NO_CHANGE, "the objective has no reference", REMEDIES[NO_CHANGE])
        found.table.loc[found.table["question"] == HARM, "verdict"] = NO_CHANGE
    return found


def _left_out(numbers: Any, what: str) -> list[str]:
    bad = int(numbers.isna().to_numpy().any(1).sum())
    return [f"{bad} of {len(numbers)} held-out rows have a {what} that is NaN and are left out"] if bad else []


class _Measures:
    """Rows of the table, collected one by one; each gives back the interval that the verdicts look at."""

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []

    def change(self, question: str, name: str, unit: str, who: Any, before: Any, after: Any) -> Interval:
        """Means before and after over rows that have both, and the interval of the change."""
        old, new = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
        found, fine = mean(new - old, who), np.isfinite(new - old)
        levels = [float(x[fine].mean()) if fine.any() else math.nan for x in (old, new)]
        self.rows.append([question, name, unit, *levels, found.value, found.lower, found.upper, found.n, ""])
        return found

    def level(self, question: str, name: str, unit: str, found: Interval) -> Interval:
        """One level after training, or of the data, with its own interval."""
        self.rows.append([question, name, unit, math.nan, found.value, math.nan, found.lower, found.upper, found.n, ""])
        return found

    def table(self, verdicts: list[Verdict]) -> pd.DataFrame:
        table = pd.DataFrame(self.rows, columns=COLUMNS)
        told = {verdict.question: verdict.verdict for verdict in verdicts}
        table["verdict"] = [told[question] for question in table["question"]]
        return table.iloc[np.argsort(table["question"] != HARM, kind="stable")].reset_index(drop=True)


def _diagnose(rows: Any, samples: Any, *, unit: str, beta: float, notes: Any, per_token: bool = True) -> Diagnosis:
    who, measures = rows["prompt"].to_numpy(), _Measures()
    before, after = (rows[[f"chosen_{when}", f"rejected_{when}"]].to_numpy(dtype=float) for when in WHEN)
    lengths, change = rows[["chosen_length", "rejected_length"]].to_numpy(dtype=float), after - before
    kind = "log-prob a response" if per_token else "log-ratio to the reference"
    both = [(before[:, k], after[:, k]) for k in range(2)]
    sides = [measures.change(HARM, f"{side}, {kind}", unit, who, *both[k]) for k, side in enumerate(SIDES)]
    margins = before[:, 0] - before[:, 1], after[:, 0] - after[:, 1]
    margin = measures.change(HARM, "margin, chosen minus rejected", unit, who, *margins)
    for k, side in enumerate(SIDES):
        fell = np.where(np.isfinite(change[:, k]), change[:, k] < -1e-9, np.nan)
        measures.level(HARM, f"rows whose {side} response fell", "share", mean(fell, who))
    if per_token:
        for k, side in enumerate(SIDES):
            tokens = [x / lengths[:, k].clip(min=1) for x in both[k]]
            measures.change(HARM, f"{side}, log-prob a token", "nats/token", who, *tokens)
        measures.change(HARM, "accuracy by likelihood", "share", who, *map(_right, margins))
    gained = change[:, 0] - change[:, 1]
    right = "accuracy by implicit reward (a tie counts half)"
    accuracy = measures.change(HARM, right, "share", who, _right(0 * gained), _right(gained))
    quality, own = _own_samples(samples, measures, notes, [x / lengths[:, 0].clip(min=1) for x in both[0]])

    size = "tokens" if per_token else "characters"
    reward = (beta or 1.0) * change
    per_length = f"{unit if unit == 'reward' or not beta else 'reward'} per 100 {size}"
    steep = slope(lengths / 100, reward, who)
    shown = [0.0, steep.value, steep.value, steep.lower, steep.upper, steep.n, ""]
    measures.rows.append([LENGTH, "implicit reward against length, within each side", per_length, *shown])
    fine = np.isfinite(reward).all(1)
    x, y = lengths[fine].ravel(), reward[fine].ravel()
    rank = float(stats.spearmanr(x, y)[0]) if len(x) > 2 and np.ptp(x) and np.ptp(y) else math.nan  # type: ignore[arg-type]
    measures.level(LENGTH, "Spearman correlation of reward and length", "", Interval(rank, n=len(x)))
    longer = lengths[:, 0] - lengths[:, 1]
    measures.level(LENGTH, "data: chosen longer than rejected by", size, mean(longer, who))
    measures.level(LENGTH, 'data: accuracy of the rule "longer is better"', "share", mean(_right(longer), who))

    verdicts = [_harm(sides[0], sides[1], margin, accuracy, quality, unit), _drift(steep, own, per_length)]
    listed = rows[["row", "prompt", "chosen", "rejected"]].assign(change=change[:, 0], rejected_change=change[:, 1])
    falls = listed[listed["change"] < 0].nsmallest(LISTED, "change").reset_index(drop=True)
    alike = listed.assign(similarity=similarity(rows["chosen"], rows["rejected"]))
    if near := int((alike["similarity"] >= ALIKE).sum()):
        many = f"{near} of {len(rows)} held-out pairs"
        notes.append(f"{many} are nearly the same text (edit similarity of {ALIKE} and more)")
    alike = alike.nlargest(LISTED, "similarity").reset_index(drop=True)
    return Diagnosis(verdicts, measures.table(verdicts), falls, alike, notes)


def _own_samples(samples: Any, measures: _Measures, notes: list[str], chosen: Any) -> tuple[Interval, Interval]:
    """Changes of the quality and of the length of own samples; `chosen`: [row] nats a token before and after."""
    if samples is None or not len(samples):
        notes.append("nothing was sampled: where the probability went, and whether answers grow, cannot be told")
        return Interval(), Interval()
    quality, who = Interval(), samples["prompt"].to_numpy()
    if samples[["quality_before", "quality_after"]].notna().to_numpy().any():
        both = (samples[f"quality_{when}"] for when in WHEN)
        quality = measures.change(HARM, "own samples, quality", "score", who, *both)
    else:
        notes.append("no quality of own samples was measured")
    ended = (samples[f"ended_{when}"].astype(float) for when in WHEN)
    measures.change(HARM, "own samples that ended", "share", who, *ended)
    own = [samples[f"logp_{when}"] / samples[f"length_{when}"].clip(lower=1) for when in WHEN]
    measures.change(HARM, "own samples, log-prob a token", "nats/token", who, *own)
    # rows and samples are different things: the gap of their means has no interval of pairs, so none is given
    both = zip(chosen, own, strict=True)
    gaps = [float(np.nanmean(x) - mine.mean()) if np.isfinite(x).any() else math.nan for x, mine in both]
    name = "chosen minus own samples, log-prob a token"
    measures.rows.append([HARM, name, "nats/token", *gaps, gaps[1] - gaps[0], math.nan, math.nan, len(chosen[0]), ""])
    sizes = (samples[f"length_{when}"] for when in WHEN)
    return quality, measures.change(LENGTH, "own samples, length", "tokens", who, *sizes)


def _right(margin: np.ndarray) -> np.ndarray:
    """1 above 0, 0 below, one half for a tie, NaN stays."""
    return np.where(np.abs(margin) < 1e-9, 0.5, np.where(np.isfinite(margin), (margin > 0).astype(float), np.nan))


def similarity(chosen: Any, rejected: Any) -> list[float]:
    """1 minus the edit distance over the longer text, of the first 10,000 characters of each; 1 for the same text."""
    return [Levenshtein.normalized_similarity(a[:_TEXT], b[:_TEXT]) for a, b in zip(chosen, rejected, strict=True)]


def _harm(
    chosen: Interval, rejected: Interval, margin: Interval, accuracy: Interval, quality: Interval, unit: str
) -> Verdict:
    """The rule of the first question, in order; "fell" and "rose" need a whole interval on one side of 0."""
    fell = f"chosen changed by {chosen} {unit}"
    if not chosen.is_known:
        found, why = TOO_FEW, f"{chosen.n} rows in {chosen.prompts} prompts give no interval"
    elif not chosen.fell:
        found, why = NONE, f"{fell}, which is not below 0"
    elif quality.fell:
        found, why = HARMFUL, f"{fell}, and the quality of own samples fell by {quality}"
    elif rejected.fell and not accuracy.rose and not quality.rose:
        found, why = HARMFUL, f"{fell}, rejected fell too, and accuracy did not rise above one half ({accuracy})"
    elif quality.rose:
        found, why = BENIGN, f"{fell}, but the quality of own samples rose by {quality}"
    elif margin.rose and quality.is_known:
        found, why = BENIGN, f"{fell}, rejected fell more, and the quality of own samples is not lower ({quality})"
    elif margin.rose and accuracy.rose:
        risen = f"rejected fell more, and accuracy rose by {accuracy}"
        found, why = BENIGN, f"{fell}, {risen}; the quality of own samples was not measured"
    elif not quality.is_known:
        found, why = NO_QUALITY, f"{fell}, and held-out pairs alone do not decide"
    else:
        found, why = UNDECIDED, f"{fell}, rejected did not fall more (margin {margin}), quality changed by {quality}"
    return Verdict(HARM, found, why, REMEDIES[found])


def _drift(steep: Interval, own: Interval, unit: str) -> Verdict:
    """The rule of the second question: do own samples get longer, and does the reward rise with length?"""
    sloped = f"the slope is {steep} {unit}" if steep.is_known else "held-out lengths do not vary enough for a slope"
    grown = f"own samples changed by {own} tokens" if own.is_known else "own samples were not measured"
    if own.fell:
        found = SHORTER
    elif own.rose:
        found = DRIFTS if steep.rose else LONGER
    elif steep.rose:
        found = REWARDED if own.is_known else REWARDED_ONLY
    elif own.is_known:
        found = STEADY
    else:
        found = REWARD_ONLY if steep.is_known else NO_LENGTHS
    return Verdict(LENGTH, found, f"{grown}; {sloped}", REMEDIES[found])
