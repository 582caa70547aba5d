"""A leaderboard from raw judge annotations: win rates, Bradley-Terry strengths and length-controlled win rates.

An annotation table has one row per model and instruction: `model`, `instruction`, `baseline_chars` and `model_chars`
(length of both answers), `preference` (the judge's probability in [0, 1] that the model's answer beats the baseline's).

Sources: AlpacaEval 2 (win rate and its standard error); Dubois, Galambosi, Liang and Hashimoto 2024, arXiv 2404.04475
(the idea of length control). The length-controlled rate is our own: see `length_controlled_win_rate` for what differs.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit

from workbench.config import Field, Presets, strict
from workbench.metrics import win_rate
from workbench.ranking import bradley_terry
from workbench.stats import length_controlled

if TYPE_CHECKING:
    import plotly.graph_objects as go

COLUMNS = ("model", "instruction", "baseline_chars", "model_chars", "preference")
PUBLISHED = ("model", "win_rate", "standard_error", "length_controlled_winrate")
BASELINE = "(baseline)"


@strict
class Config(Presets):
    """Size of the synthetic set (used when no data set is given), of the bootstrap, and what to compare with."""

    n_models: int = Field(default=10, ge=3)
    n_instructions: int = Field(default=200, ge=10)
    length_bias: float = 1.0  # logits the synthetic judge adds per nat of log(model length / baseline length)
    rounds: int = Field(default=100, ge=2)  # bootstrap rounds over instructions
    published: str = ""  # path of a published leaderboard; "" compares with nothing but planted truth

    PRESETS: ClassVar = {
        "smoke": {"n_models": 6, "n_instructions": 80, "rounds": 20},
        "tiny": {},
        "full": {"n_models": 29, "n_instructions": 805, "rounds": 500},  # the size of the public table
    }


class Data(NamedTuple):
    """Annotations, and what to hold the result against: a published table, the planted truth, or nothing (empty)."""

    annotations: pd.DataFrame
    reference: pd.DataFrame
    reference_name: str


def open_data(config: Config, *, dataset: str = "", seed: int = 0) -> Data:
    """Annotations of the file `dataset`, or the synthetic set when it is "", with their reference."""
    if not dataset:
        size = (config.n_models, config.n_instructions)
        return Data(*synthetic_annotations(*size, length_bias=config.length_bias, seed=seed), "planted")
    reference = load_published(config.published) if config.published else pd.DataFrame(columns=list(PUBLISHED))
    return Data(load_annotations(dataset), reference, "published")


def load_annotations(path: str | Path) -> pd.DataFrame:
    """The annotation table of a CSV file (also .csv.gz), checked by `check_annotations`."""
    return check_annotations(pd.read_csv(path), str(path))


def load_published(path: str | Path) -> pd.DataFrame:
    """A published leaderboard: CSV with the columns `PUBLISHED` and any others; rates in percent."""
    table = pd.read_csv(path)
    _need(table, PUBLISHED, str(path))
    return table


def _need(table: pd.DataFrame, columns: Sequence[str], source: str) -> None:
    if missing := [name for name in columns if name not in table]:
        raise ValueError(f"{source} lacks the columns {missing}; it has {list(table)}, it needs {list(columns)}")
    if table.empty:
        raise ValueError(f"{source} has no rows; a leaderboard needs at least one")


def check_annotations(annotations: pd.DataFrame, source: str = "annotations") -> pd.DataFrame:
    """The known columns of the table, or an error that names the first bad row (0 is the first row of data).

    Raises:
        ValueError: a missing column; a missing name; a preference that is NaN or outside [0, 1]; a length that is no
            number of at least 0; a model and instruction that come twice.
    """
    _need(annotations, COLUMNS, source)
    table: Any = annotations[list(COLUMNS)].reset_index(drop=True)
    numbers: Any = table[list(COLUMNS[2:])].apply(pd.to_numeric, errors="coerce")
    for column, rows, wanted in (
        ("model", table["model"].isna(), "a name"),
        ("instruction", table["instruction"].isna(), "a name or number"),
        ("baseline_chars", ~(numbers["baseline_chars"] >= 0), "0 or more"),
        ("model_chars", ~(numbers["model_chars"] >= 0), "0 or more"),
        ("preference", ~numbers["preference"].between(0, 1), "a number in [0, 1]"),
        ("instruction", table.duplicated(["model", "instruction"]), "new for its model (one annotation of each)"),
    ):
        if rows.any():
            row = int(np.argmax(rows))
            raise ValueError(f"{source} row {row}: {column} must be {wanted}; got {table[column][row]}")
    return table.assign(**numbers)


def synthetic_annotations(
    n_models: int = 10, n_instructions: int = 200, *, length_bias: float = 1.0, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """An annotation table with planted strengths and a planted liking for long answers, and its truth.

    A model's chance is sigma(strength + difficulty of the instruction + length_bias log(model / baseline length)). The
    judge's preference is drawn around it with the right mean and mostly near 0 or 1, as real judges answer. Verbosity
    is drawn apart from strength. The effect of length has another form than the one that is fitted, on purpose.

    Returns:
        Annotations, and the truth: `model`, `strength`, `length_controlled_winrate` (percent at equal length).
    """
    rng = np.random.default_rng(seed)
    strength = rng.normal(-0.5, 0.8, n_models)
    verbosity = rng.normal(0, 0.8, n_models)
    difficulty = rng.normal(0, 0.7, n_instructions)
    baseline = np.exp(rng.normal(7, 0.5, n_instructions))
    length = baseline * np.exp(verbosity[:, None] + rng.normal(0, 0.5, (n_models, n_instructions)))
    chance = expit(strength[:, None] + difficulty + length_bias * np.log(length / baseline))
    preference = rng.beta(0.3 * chance + 1e-9, 0.3 * (1 - chance) + 1e-9)  # mean `chance`, most mass at the ends
    models = [f"model {number:02d}" for number in range(n_models)]
    who, what = np.repeat(models, n_instructions), np.tile(np.arange(n_instructions), n_models)
    chars = np.tile(np.ceil(baseline).astype(int), n_models), np.ceil(length).astype(int).ravel()
    columns = (who, what, *chars, preference.round(6).ravel())
    equal = 100 * expit(strength[:, None] + difficulty).mean(1)
    truth = pd.DataFrame({"model": models, "strength": strength, "length_controlled_winrate": equal})
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True))), truth


def win_rates(annotations: pd.DataFrame) -> pd.DataFrame:
    """Win rate against the baseline and its standard error, in percent, best first; with mean length in characters."""
    groups = check_annotations(annotations).groupby("model", sort=True)
    rows = [(str(m), *win_rate(part["preference"]), len(part), part["model_chars"].mean()) for m, part in groups]
    rows.sort(key=lambda row: -row[1])
    return pd.DataFrame(rows, columns=["model", "win_rate", "standard_error", "n", "mean_chars"])


def bradley_terry_ranking(annotations: pd.DataFrame, *, l2: float = 0.01, confidence: float = 0.95) -> pd.DataFrame:
    """Bradley-Terry strengths of all models and the baseline, in nats with mean 0, best first.

    On each instruction a model meets the baseline (won if its preference is above 1/2) and every other model (won if
    its preference is higher); equal preferences are ties and count half.

    The interval is a sandwich clustered by instruction: one answer takes part in as many matches as there are models,
    so matches of an instruction stand or fall together, and taking them as independent would make it far too short. It
    agrees with a bootstrap over instructions (tested) and costs one fit instead of hundreds.
    """
    models, preference, _ = _wide(annotations)
    is_seen = ~np.isnan(preference)
    players = np.vstack([preference, np.where(is_seen.any(0), 0.5, np.nan)])  # the baseline ties with itself
    first, second = np.triu_indices(len(players), 1)
    gap = players[first] - players[second]
    pair, instruction = np.nonzero(~np.isnan(gap))
    outcome = (np.sign(gap[pair, instruction]) + 1) / 2
    matches = np.stack([first[pair], second[pair], outcome], axis=1)
    ratings = bradley_terry(matches, len(players), l2=l2, clusters=instruction, confidence=confidence)
    frame = ratings.frame([*models, BASELINE]).rename(columns={"player": "model", "score": "strength"})
    return frame.drop(columns=["method", "display"])


def length_controlled_win_rate(
    annotations: pd.DataFrame,
    l2_length: float = 0.01,
    l2_difficulty: float = 0.1,
    *,
    rounds: int = 100,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Win rate that the judge would give if every answer were as long as the baseline's, in percent, best first.

    The fit and its penalties are in `stats.length_controlled`.

    Args:
        l2_length: pulls a model's length effect to the mean effect; matters most for models whose answers all have one
            length, where effect and level can hardly be told apart.
        l2_difficulty: pulls difficulties to 0. On the public annotations both defaults are within 0.0001 nats of the
            lowest held-out loss (`penalty_table`); the published rates played no part in choosing them.
        rounds: bootstrap rounds over instructions, for the interval; 0 leaves it out (NaN).

    Notes:
        After Dubois et al. 2024, arXiv 2404.04475; differs in: one joint fit instead of one per model, difficulty with
        weight 1 for all models, one sd, penalties chosen on held-out annotations. The rate is an extrapolation for a
        model that has hardly any answer near the baseline's length; the interval does not know that.
    """
    models, preference, gap = _wide(annotations)
    options = {"rounds": rounds, "confidence": confidence, "seed": seed}
    rate, lower, upper, effect = length_controlled.rates(preference, gap, (l2_length, l2_difficulty), **options)
    columns = {"model": models, "length_controlled": rate, "lower": lower, "upper": upper, "length_effect": effect}
    return pd.DataFrame(columns).iloc[np.argsort(-rate, kind="stable")].reset_index(drop=True)


def penalty_table(
    annotations: pd.DataFrame,
    *,
    l2_length: Sequence[float] = (0.001, 0.01, 0.1, 1.0, 10.0),
    l2_difficulty: Sequence[float] = (0.03, 0.1, 0.3, 1.0),
    folds: int = 5,
    seed: int = 0,
) -> pd.DataFrame:
    """Held-out loss of every pair of penalties, lowest first: how to choose them without looking at any leaderboard.

    Annotations (cells of model and instruction) are dealt into folds; each fold is predicted by a fit to the others.

    Returns:
        `l2_length`, `l2_difficulty`, `held_out_loss` (nats per annotation), `above_best` and its `standard_error`
        (paired, clustered by instruction).
    """
    _, preference, length = _wide(annotations)
    pairs, cells = list(product(l2_length, l2_difficulty)), int((~np.isnan(preference)).sum())
    losses = length_controlled.held_out_losses(preference, length, pairs, folds=folds, seed=seed)
    above = losses - min(losses, key=lambda loss: loss.sum())
    spread = above.std(1, ddof=1) * losses.shape[1] ** 0.5 / cells
    table = pd.DataFrame(pairs, columns=["l2_length", "l2_difficulty"])
    table = table.assign(held_out_loss=losses.sum(1) / cells, above_best=above.sum(1) / cells, standard_error=spread)
    return table.sort_values("held_out_loss", kind="stable", ignore_index=True)


def best_penalties(table: pd.DataFrame) -> tuple[float, float]:
    """`l2_length` and `l2_difficulty` of the first row of `penalty_table`."""
    return float(table["l2_length"].iloc[0]), float(table["l2_difficulty"].iloc[0])


def leaderboard(rates: pd.DataFrame, strengths: pd.DataFrame, controlled: pd.DataFrame) -> pd.DataFrame:
    """One row per model with all three views, by length-controlled rate: the table that a reader takes away."""
    left = controlled.rename(columns={"lower": "length_controlled_lower", "upper": "length_controlled_upper"})
    right = strengths.rename(columns={"lower": "strength_lower", "upper": "strength_upper"})
    columns = ["model", "strength", "strength_lower", "strength_upper"]
    return left.merge(rates, on="model").merge(right[columns], on="model")


def compare_with_published(table: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """How `leaderboard` agrees with a published table, over the models that both know; raw rates are the yardstick.

    Returns:
        One row per comparison: `ours`, `reference`, `n`, `spearman`, `kendall`, and in percent points
        `mean_difference`, `largest_difference`, `largest_at` (empty where the two have different units). No rows when
        fewer than three models are shared.
    """
    both: Any = table.merge(reference, on="model", suffixes=("", "_reference"))
    rows = []
    lengths = [(ours, PUBLISHED[3]) for ours in ("length_controlled", "win_rate", "strength")]
    for ours, theirs in [("win_rate", "win_rate"), ("standard_error", "standard_error"), *lengths]:
        name = f"{theirs}_reference" if theirs in table else theirs
        if len(both) < 3 or name not in both:
            continue
        gap = (both[ours] - both[name]).abs()
        units = [gap.mean(), gap.max(), both["model"][gap.idxmax()]] if ours != "strength" else [np.nan, np.nan, ""]
        order = [both[ours].corr(both[name], method=method) for method in ("spearman", "kendall")]
        rows.append((ours, theirs, len(both), *order, *units))
    units = ["mean_difference", "largest_difference", "largest_at"]
    return pd.DataFrame(rows, columns=["ours", "reference", "n", "spearman", "kendall", *units])


def planted_check(seeds: Sequence[int], config: Config) -> pd.DataFrame:
    """Does the length control do what it says? One row per seed and bias, the second bias being none: the control.

    Returns:
        `seed`, `length_bias`, Spearman correlation with the planted rate at equal length and mean distance from it in
        percent points, for the raw and for the length-controlled rate.
    """
    rows = []
    for seed, bias in product(seeds, (config.length_bias, 0.0)):
        annotations, truth = synthetic_annotations(config.n_models, config.n_instructions, length_bias=bias, seed=seed)
        best = best_penalties(penalty_table(annotations, seed=seed))
        controlled = length_controlled_win_rate(annotations, *best, rounds=0)
        both: Any = truth.merge(win_rates(annotations), on="model").merge(controlled, on="model")
        row: dict[str, Any] = {"seed": seed, "length_bias": bias}
        for column, name in (("win_rate", "raw"), ("length_controlled", "controlled")):
            row[f"spearman_{name}"] = both[column].corr(both["length_controlled_winrate"], method="spearman")
            row[f"distance_{name}"] = (both[column] - both["length_controlled_winrate"]).abs().mean()
        rows.append(row)
    return pd.DataFrame(rows)


def save_tables(output: str, **tables: pd.DataFrame) -> list[Path]:
    """Writes each table as <output>/<name>.csv; nothing when `output` is ""."""
    paths = [Path(output) / f"{name}.csv" for name in tables] if output else []
    for path, table in zip(paths, tables.values(), strict=False):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    return paths


def strengths_figure(strengths: pd.DataFrame) -> go.Figure:
    """Strengths with their intervals, strongest on top, from the table of `bradley_terry_ranking`."""
    import plotly.graph_objects as go

    names, middle = [html.escape(str(name)) for name in strengths["model"]], strengths["strength"]
    overlap = strengths["lower"].iloc[0] <= strengths["upper"].iloc[1]
    colours = ["#d55e00" if name == BASELINE else "#0072b2" for name in names]
    # a colour of its own: the dots have a colour each, which bars cannot take over
    bar = {"array": strengths["upper"] - middle, "arrayminus": middle - strengths["lower"], "color": "#666"}
    figure = go.Figure(go.Scatter(x=middle, y=names, mode="markers", marker={"size": 8, "color": colours}, error_x=bar))
    title = f"{names[0]} leads, its interval {'overlaps' if overlap else 'clear of'} that of {names[1]}"
    axis = "Bradley-Terry strength (nats, mean 0); 95 % sandwich interval clustered by instruction"
    size = {"height": 140 + 22 * len(strengths), "margin": {"l": 10}}
    figure.update_layout(template="plotly_white", title=title, xaxis_title=axis, **size)
    return figure.update_yaxes(autorange="reversed", automargin=True)


def agreement_figure(table: pd.DataFrame, reference: pd.DataFrame, name: str = "published") -> go.Figure:
    """Our length-controlled rate against the reference's, one point per model, with the raw rate for comparison."""
    import plotly.graph_objects as go

    both: Any = table.merge(reference[["model", "length_controlled_winrate"]], on="model")
    title = f"No {name} length-controlled rates for these models"
    x, ours, raw = both["length_controlled_winrate"], both["length_controlled"], both["win_rate"]
    if len(both) >= 3:
        before, after = (column.corr(x, method="spearman") for column in (raw, ours))
        title = f"Order of the {name} rates: Spearman {after:.3f} controlled, {before:.3f} raw (n = {len(both)})"
    above, below = both["length_controlled_upper"] - ours, ours - both["length_controlled_lower"]
    bar = {"type": "data", "array": above, "arrayminus": below}
    style = {"mode": "markers", "text": [html.escape(str(model)) for model in both["model"]], "x": x}
    line = {"color": "#999", "dash": "dot"}
    figure = go.Figure(go.Scatter(x=[1, 100], y=[1, 100], mode="lines", line=line, name="equal"))
    figure.add_scatter(y=raw, name="raw win rate", marker_color="#bbbbbb", **style)
    figure.add_scatter(y=ours, name="ours, 95 % bootstrap", marker_color="#0072b2", error_y=bar, **style)
    figure.update_layout(template="plotly_white", title=title, height=560, legend={"orientation": "h", "y": -0.2})
    ticks = {"type": "log", "tickvals": [1, 2, 5, 10, 20, 50, 100]}  # most rates are small
    figure.update_xaxes(title=f"{name} length-controlled win rate (%, log scale)", **ticks)
    return figure.update_yaxes(title="ours (%, log scale)", **ticks)


def _wide(annotations: pd.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Models, and preferences and bounded length differences [model, instruction], NaN and 0 where not judged."""
    table = check_annotations(annotations)
    gap = (table["model_chars"] - table["baseline_chars"]).to_numpy(dtype=float)
    table = table.assign(length=length_controlled.bounded_length(gap))
    wide = table.pivot(index="model", columns="instruction", values=["preference", "length"])
    preference, length = (wide[name].to_numpy(dtype=float) for name in ("preference", "length"))
    return [str(model) for model in wide.index], preference, np.nan_to_num(length)
