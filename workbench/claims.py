"""Claims: a paper's statement, what was measured, what the negative control measured, the test, and the verdict.

A verdict is computed here and nowhere else; nobody types one.

The rule. A claim is *shown* when (1) its one-sided test is significant at 5 % after Holm's correction over all tested
claims of the notebook, (2) the same test on the negative control is not significant (at 5 %, or at the level that the
paper names), (3) the effect beats its control: the difference of the two, seed by seed, is significant at 5 %
(one effect significant and the other not does not say that they differ), and (4) every further condition stated with
the claim holds. No control, fewer than three seeds or a NaN: never shown. An equivalence has no (3): being near 0 and
being nearer than something else are different statements.

Where the experiment itself drew what was treated, seed by seed, the exact randomisation test may stand for the others:
it needs no spread over seeds.

Results that a paper's authors released are not an experiment of ours: what is computed from them again *follows from
the published data* when every figure comes out and every stated condition holds, and is never called shown.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

Direction = Literal["greater", "less", "equivalent"]
Test = Literal["paired_t", "sign", "wilcoxon", "bootstrap", "randomisation"]
ALPHA = 0.05
VERDICTS = {
    "tiny": ("shown in small", "not shown", "needs full scale"),
    "full": ("reproduced", "direction only", "not reproduced"),
    "smoke": ("smoke run, no verdict",),
}
FOLLOWS, DIFFERS = "follows from the published data", "does not follow"
_YES, _NO = ("shown in small", "reproduced", FOLLOWS), ("not shown", "not reproduced", DIFFERS)


@dataclass(frozen=True)
class Claim:
    """One row of the claims table. `measured` and `control` hold one number a seed, in `unit`."""

    id: str
    statement: str
    paper: str
    direction: Direction
    seeds: list[int]
    measured: list[float]
    control: list[float]
    control_is: str
    test: str
    unit: str = ""
    margin: float = 0.0
    p_value: float = math.nan
    p_holm: float = math.nan
    control_p_value: float = math.nan
    effect: float = math.nan
    interval: list[float] = field(default_factory=list)
    standardised: float = math.nan
    control_effect: float = math.nan
    control_alpha: float = 0.05
    difference_p_value: float = math.nan
    conditions: dict[str, bool] = field(default_factory=dict)
    paper_effect: float = math.nan
    null: list[list[float]] = field(default_factory=list)  # of a randomisation test: `measured` under every assignment
    control_null: list[list[float]] = field(default_factory=list)
    note: str = ""
    scale: str = "tiny"
    verdict: str = ""


class Claims:
    """The claims of one run, tested together; `scale` says which verdicts exist, `seeds` the order of measurements."""

    def __init__(self, system: str, scale: str, seeds: Sequence[int]):
        if scale not in VERDICTS:
            raise ValueError(f"scale must be one of {sorted(VERDICTS)}; got {scale!r}")
        self.system, self.scale, self.seeds = system, scale, [int(seed) for seed in seeds]
        self._claims: list[Claim] = []

    def test(
        self,
        id: str,
        statement: str,
        *,
        paper: str,
        measured: Sequence[float] | np.ndarray,
        control: Sequence[float] | np.ndarray | None,
        control_is: str = "",
        control_alpha: float = ALPHA,
        direction: Direction = "greater",
        test: Test = "paired_t",
        margin: float = 0.0,
        unit: str = "",
        also: Mapping[str, bool] | None = None,
        paper_effect: float = math.nan,
        note: str = "",
        seeds: Sequence[int] | None = None,
        null: Sequence[Any] = (),
        control_null: Sequence[Any] = (),
    ) -> None:
        """Adds a claim that this run can test.

        Args:
            measured: the claimed effect, one number a seed (usually a difference to a baseline of the same seed).
            control: the same number where the claim must vanish (labels shuffled, sign flipped, method off).
            control_alpha: the level at which the control counts as significant; 5 % unless the paper names another.
            direction: "greater" or "less" than `margin`, or "equivalent": inside +-`margin` by two one-sided tests.
            test: the test of `measured - margin` against 0. "equivalent" always uses the t distribution.
            also: further conditions, each with its outcome, that must all hold.
            paper_effect: the paper's effect in the same unit, where there is one; used at full scale only.
            seeds: those of the run that this claim was measured with; None for all of them.
            null, control_null: for test "randomisation", where the experiment itself drew what was treated: for each
                seed `measured` and `control` under every assignment that could have been drawn, in one order.

        Raises:
            ValueError: another number of values than seeds, or a value that is not finite (the seed is named).
        """
        used = self.seeds if seeds is None else [int(seed) for seed in seeds]
        given = {"measured": measured} | ({} if control is None else {"control": control})
        for name, values in given.items():
            if len(values) != len(used):
                raise ValueError(f"claim {id}: {name} has {len(values)} values for {len(used)} seeds")
            for seed, value in zip(used, values, strict=True):
                if not math.isfinite(value):
                    raise ValueError(f"claim {id}: {name} of seed {seed} is {value}; a claim needs finite numbers")
        drawn, control_drawn = ([np.asarray(part, dtype=float) for part in given] for given in (null, control_null))
        values = np.asarray(measured, dtype=float)
        control_values = np.asarray([] if control is None else control, dtype=float)
        found: dict[str, Any] = {"effect": float(values.mean()), "interval": interval(values, test)}
        found |= {"standardised": standardised(values), "p_value": p_value(values, direction, test, margin, drawn)}
        found["control_p_value"] = p_value(control_values, direction, test, margin, control_drawn)
        if control_values.size:
            found["control_effect"] = float(control_values.mean())
            if direction != "equivalent":
                apart = [a - b for a, b in zip(drawn, control_drawn, strict=True)]
                found["difference_p_value"] = p_value(values - control_values, direction, test, 0.0, apart)
        found |= {"null": [part.tolist() for part in drawn], "control_null": [part.tolist() for part in control_drawn]}
        found |= {"unit": unit, "note": note, "paper_effect": paper_effect, "control_alpha": control_alpha}
        found |= {"conditions": {name: bool(holds) for name, holds in (also or {}).items()}, "margin": float(margin)}
        named = "two one-sided t" if direction == "equivalent" else test
        of = (id, statement, paper, direction, used, values.tolist(), control_values.tolist(), control_is, named)
        self._claims.append(Claim(*of, scale=self.scale, **found))

    def rederive(
        self,
        id: str,
        statement: str,
        *,
        paper: str,
        figures: Mapping[str, tuple[float, float]],
        tolerance: float,
        also: Mapping[str, bool] | None = None,
        note: str = "",
    ) -> None:
        """Adds a claim that is computed again from results which its authors released.

        Args:
            figures: name -> (computed here, published).
            tolerance: largest difference of the two that rounding explains.
            also: what the claim says beyond figures (an order, an interval that leaves 0 out), each with its outcome.

        Raises:
            ValueError: nothing to check.
        """
        if not figures and not also:
            raise ValueError(f"claim {id}: neither a figure nor a condition to check")
        apart = {name: abs(here - published) for name, (here, published) in figures.items()}
        conditions = {f"{name} comes out": difference <= tolerance for name, difference in apart.items()}
        conditions |= {name: bool(holds) for name, holds in (also or {}).items()}
        effect = float(np.max([*apart.values()])) if apart else math.nan
        measured = [float(here) for here, _ in figures.values()]
        told: dict[str, Any] = {"effect": effect, "conditions": conditions, "note": note, "scale": "recorded"}
        told |= {"margin": tolerance, "verdict": FOLLOWS if all(conditions.values()) else DIFFERS}
        self._claims.append(Claim(id, statement, paper, "equivalent", [], measured, [], "", "rederived", **told))

    def needs_full_scale(self, id: str, statement: str, paper: str, why: str) -> None:
        """Adds a claim that no small world can test, with the reason."""
        told: dict[str, Any] = {"note": why, "scale": self.scale, "verdict": "needs full scale"}
        self._claims.append(Claim(id, statement, paper, "greater", [], [], [], "", "none", **told))

    def decided(self) -> list[Claim]:
        """All claims with Holm's correction and the verdict filled in, in order of id."""
        tested = [claim for claim in self._claims if not claim.verdict]
        adjusted = holm([claim.p_value for claim in tested])
        corrected = (replace(claim, p_holm=p) for claim, p in zip(tested, adjusted, strict=True))
        judged = [replace(claim, verdict=_verdict(claim)) for claim in corrected]
        return sorted([*(claim for claim in self._claims if claim.verdict), *judged], key=lambda claim: claim.id)

    def verdicts(self) -> dict[str, str]:
        return {claim.id: claim.verdict for claim in self.decided()}

    def records(self) -> list[dict[str, Any]]:
        """What `claims.json` holds; undefined numbers are null."""

        def known(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return [{key: known(value) for key, value in asdict(claim).items()} for claim in self.decided()]

    def frame(self) -> pd.DataFrame:
        return frame([{"system": self.system, **record} for record in self.records()])

    def _repr_html_(self) -> str:
        return table_html(self.records())

    def __repr__(self) -> str:
        return self.frame().to_string(index=False)


def _verdict(claim: Claim) -> str:
    if claim.scale == "smoke":
        return VERDICTS["smoke"][0]
    has_control = len(claim.control) > 0 and not claim.control_p_value < claim.control_alpha
    stands = claim.p_holm < ALPHA and not claim.difference_p_value >= ALPHA and all(claim.conditions.values())
    shown = len(claim.seeds) >= 3 and has_control and stands
    if claim.scale == "tiny":
        return "shown in small" if shown else "not shown"
    if not shown:
        return "not reproduced"
    low, high = claim.interval
    # the paper's own size must lie inside our interval, or be passed in the claimed direction
    passed = low > claim.paper_effect if claim.direction == "greater" else high < claim.paper_effect
    return "reproduced" if low <= claim.paper_effect <= high or passed else "direction only"


# -------------------------------------------------------------------------------------------------------- statistics
def p_value(
    values: np.ndarray, direction: Direction, test: Test = "paired_t", margin=0.0, null: Sequence[np.ndarray] = ()
) -> float:
    """One-sided p-value that the effect is on the claimed side of `margin`; NaN for fewer than three values.

    "equivalent" is two one-sided t-tests (Schuirmann 1987): the larger p of mean > -margin and mean < margin.
    Values that are all the same have no t statistic: the sign test stands in.
    """
    from scipy import stats

    values = np.asarray(values, dtype=float)
    if values.size < 3:
        return math.nan
    if direction == "equivalent":
        return max(p_value(values, "greater", "paired_t", -margin), p_value(values, "less", "paired_t", margin))
    shifted = values - margin
    if test == "randomisation":
        return randomisation(values, null, direction, margin)
    if (test == "paired_t" and np.ptp(shifted) > 0) or (test == "wilcoxon" and np.any(shifted)):
        ask: Any = stats.wilcoxon if test == "wilcoxon" else partial(stats.ttest_1samp, popmean=0.0)
        return float(ask(shifted, alternative=direction).pvalue)
    if test == "bootstrap":
        rng = np.random.default_rng(0)
        means = shifted[rng.integers(0, len(shifted), (9_999, len(shifted)))].mean(axis=1)
        wrong_side = means <= 0 if direction == "greater" else means >= 0
        return float((1 + wrong_side.sum()) / (1 + len(means)))
    right_side = int(np.sum(shifted > 0 if direction == "greater" else shifted < 0))
    informative = int(np.sum(shifted != 0))
    return float(stats.binomtest(right_side, informative, alternative="greater").pvalue) if informative else 1.0


def randomisation(values: np.ndarray, null: Sequence[Any], direction: Direction, margin: float = 0.0) -> float:
    """Exact p-value of the summed effect over every assignment that could have been drawn (Fisher 1935).

    It asks how often a draw that has nothing to do with the outcome gives as much: no spread over seeds is needed, so
    it also decides where every seed shows the same.

    Raises:
        ValueError: another number of null distributions than values, a margin, or a value that no assignment gives.
    """
    if len(null) != len(values) or margin:
        needed = "one null distribution a seed and no margin"
        raise ValueError(f"test 'randomisation' needs {needed}; got {len(null)} for {len(values)}")
    sign = -1.0 if direction == "less" else 1.0
    sums, counts = np.zeros(1), np.ones(1)
    for seed, (value, assignments) in enumerate(zip(values, null, strict=True)):
        if not np.isclose(assignments, value).any():
            raise ValueError(f"test 'randomisation': {value} of place {seed} is no value of its null distribution")
        drawn, times = np.unique(np.round(sign * np.asarray(assignments, dtype=float), 9), return_counts=True)
        totals, place = np.unique(np.round((sums[:, None] + drawn).ravel(), 9), return_inverse=True)
        sums, counts = totals, np.bincount(place.ravel(), (counts[:, None] * times).ravel())
    return float(counts[sums >= sign * values.sum() - 1e-6].sum() / counts.sum())


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment; NaN stays NaN and does not count as a test."""
    adjusted, running = [math.nan] * len(p_values), 0.0
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    for rank, i in enumerate(order):
        adjusted[i] = running = max(running, min(1.0, (len(order) - rank) * p_values[i]))
    return adjusted


def interval(values: np.ndarray, test: Test = "paired_t", confidence: float = 0.95) -> list[float]:
    """95 % interval of the mean: Student's t for `paired_t` (a bootstrap of five values is too narrow), else BCa."""
    from scipy import stats

    if values.size < 2 or np.ptp(values) == 0:
        return [float(values.mean()), float(values.mean())]
    if test == "paired_t":
        low, high = stats.t.interval(confidence, len(values) - 1, values.mean(), stats.sem(values))
    else:
        low, high = stats.bootstrap((values,), np.mean, confidence_level=confidence, rng=0).confidence_interval
    return [float(low), float(high)]


def standardised(values: np.ndarray) -> float:
    """Cohen's d of paired differences: mean over standard deviation; NaN where the values do not vary."""
    return float(values.mean() / values.std(ddof=1)) if values.size > 1 and np.ptp(values) > 0 else math.nan


# ------------------------------------------------------------------------------------------------------------ tables
def frame(records: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The scoreboard's columns, from records of one run or of many."""
    import pandas as pd

    rows = []
    for record in records:
        said = [record[name] for name in ("id", "statement", "paper")]
        rows.append([record.get("system", ""), *said, describe(record), describe_control(record), record["verdict"]])
    return pd.DataFrame(rows, columns=["system", "claim", "statement", "paper", "here", "control", "verdict"])


def describe(record: Mapping[str, Any]) -> str:
    """Effect, interval, p after Holm and failed conditions, in one line."""
    if record["test"] == "none":
        return record["note"]
    failed = "".join(f"; fails: {name}" for name, holds in record["conditions"].items() if not holds)
    note = f"; {record['note']}" if record["note"] else ""
    if record["test"] == "rederived":
        figures, conditions = len(record["measured"]), len(record["conditions"])
        text = f"{figures} figures computed again" if figures else "computed again"
        text += "" if record["effect"] is None else f", largest difference {record['effect']:.2g}"
        return f"{text}, {conditions - figures} further conditions{failed}{note}"
    low, high = record["interval"]
    text = f"{record['effect']:+.3g} [{low:+.3g}, {high:+.3g}]{_unit(record)}"
    text += f", inside ±{record['margin']:.3g}" if record["direction"] == "equivalent" else ""
    return f"{text}{_p(record['p_holm'])}{failed}{note}"


def describe_control(record: Mapping[str, Any]) -> str:
    if not record["control"]:
        return "" if record["test"] in ("none", "rederived") else "no control"
    difference = record.get("difference_p_value")
    apart = difference is None or not difference >= ALPHA
    ending = _p(record["control_p_value"]) + ("" if apart else f"; not apart from it, p = {difference:.2g}")
    return f"{record['control_is']}: {record['control_effect']:+.3g}{_unit(record)}{ending}"


def _unit(record: Mapping[str, Any]) -> str:
    return f" {record['unit']}" if record["unit"] else ""


def _p(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f", p = {value:.2g}"


def kind_of(verdict: str) -> str:
    """ "yes" (shown, reproduced, follows), "no", or "open" for what is not decided here."""
    return "yes" if verdict in _YES else "no" if verdict in _NO else "open"


def table_html(records: Sequence[Mapping[str, Any]]) -> str:
    """The claims as an HTML table; everything in it is escaped."""
    rows = []
    for system, *said, verdict in frame(records).to_numpy().tolist():
        cells = [html.escape(str(cell)) for cell in ([system, *said] if system else said)]
        cells.append(f'<span class="verdict {kind_of(verdict)}">{html.escape(verdict)}</span>')
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    names = ["system", "claim", "statement", "paper", "here (95 % interval)", "negative control", "verdict"]
    head = "".join(f"<th>{name}</th>" for name in (names if records and records[0].get("system") else names[1:]))
    style = (
        "<style>table.claims td,table.claims th{text-align:left!important;vertical-align:top;white-space:normal}"
        ".verdict{padding:1px 8px;border-radius:9px;white-space:nowrap;background:#e6e6e6;color:#222}"
        ".verdict.yes{background:#cfe8d5}.verdict.no{background:#f3d3cd}</style>"
    )
    return f'{style}<table class="claims"><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
