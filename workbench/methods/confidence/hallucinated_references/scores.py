"""Scores of references: agreement of repeated answers, ensembles, and what they are worth where labels are known.

Tables and columns are those of `references.py` and `method.py`; a reference with a missing score is left out of the
measurements and counted.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.methods.confidence.hallucinated_references.references import DIRECT
from workbench.stats import selective
from workbench.stats.bootstrap import cluster_counts, middle

Table = Any  # a data frame: the type of a selection from one is known to nobody
RECIPES = {"DQ": DIRECT, "IQ_DQ": ("IQ", "DQ"), **{f"IQ_{name}": ("IQ", name) for name in DIRECT}}
SCORES = ("IQ", *DIRECT, *RECIPES, "IQ_jaccard", "IQ_containment", "IQ_judge", "authors_logp")
CURVES = ("IQ", "DQ1", "DQ", "IQ_DQ")
GAINS = [*(("IQ", name) for name in (*DIRECT, "DQ")), ("IQ_DQ", "DQ"), ("IQ_DQ", "IQ")]
THRESHOLDS = (0.0, 0.25, 0.5, 0.75, 0.9)
RATES = np.linspace(0.0, 1.0, 51)  # of real references taken for invented: where the ROC is kept
FRACTIONS = np.linspace(0.02, 1.0, 50)


# -------------------------------------------------------------------------------------------------------------- scores
def consistency(agreements: Table, samples: Table) -> pd.DataFrame:
    """Mean overlap over pairs (`IQ`) and its standard error (`IQ_se`) by `ref_id`; missing below two usable samples."""
    usable = samples[samples["query"] == "IQ"].groupby("ref_id")["value"].count()
    pairs = agreements.groupby("ref_id")["overlap"]
    table = pd.DataFrame({"IQ": pairs.mean(), "IQ_se": pairs.std(ddof=1) / np.sqrt(pairs.count())})
    return table.where(usable.reindex(table.index) >= 2)


def combine(scores: Table, recipe: Sequence[str]) -> pd.Series:
    """The plain mean of some scores; missing where one of them is."""
    return scores[list(recipe)].mean(axis=1, skipna=False)


def combined(scores: Table) -> pd.DataFrame:
    """The table with every ensemble whose members it has."""
    table = scores.copy()
    for name, recipe in RECIPES.items():
        if set(recipe) <= set(table):
            table[name] = combine(table, recipe)
    return table


def score(refs: Table, samples: Table, agreements: Table) -> pd.DataFrame:
    """One row a reference with all its scores, in [0, 1], 1 looks real; `authors_logp` is in nats a token."""
    table = refs.set_index("ref_id")
    methods = list(dict.fromkeys(agreements["method"]))
    for method in methods:
        found = consistency(agreements[agreements["method"] == method], samples)
        table[f"IQ_{method}"] = found["IQ"]
        if method == methods[0]:
            table["IQ"], table["IQ_se"] = found["IQ"], found["IQ_se"]
    for kind, rows in samples[samples["query"] != "IQ"].groupby("query", sort=False):
        table[str(kind)] = rows.groupby("ref_id")["value"].mean()
    logps = samples[samples["query"] == "IQ"].groupby("ref_id")["logp"].mean()
    if logps.notna().any():
        table["authors_logp"] = logps
    return combined(table.reset_index())


# -------------------------------------------------------------------------------------------------------- measurements
def measure(
    scores: Table, *, seed: int, bootstrap: int, curve_bootstrap: int, deduplicate: bool = False
) -> dict[str, Any]:
    """What the scores are worth where labels are known: rates, AUROC, gains, what thresholds keep, and the same
    shuffled.

    Args:
        scores: columns `ref_id`, `topic` (the cluster), `grounded` and scores.
        seed: of the bootstrap over topics and of the shuffled labels.
        deduplicate: leave out later references with the title of an earlier one.
    """
    if deduplicate and "duplicate_of" in scores:
        scores = scores[scores["duplicate_of"] == ""]
    columns = [name for name in SCORES if name in scores]
    table: Any = scores[scores["grounded"].notna()]
    missing = {name: int(table[name].isna().sum()) for name in columns}
    table = table[table[columns].notna().all(axis=1)]
    result = {"n": len(scores), "n_labelled": int(scores["grounded"].notna().sum())}
    result |= {"n_measured": len(table), "missing": missing}
    if table.empty:
        return {**result, "n_measured": 0}
    h, cluster = 1.0 - table["grounded"].to_numpy(dtype=float), table["topic"].tolist()
    values = {name: table[name].to_numpy(dtype=float) for name in columns}
    # shuffled labels are the control of every claim: the same measurements where no score can know anything
    shuffled = np.random.default_rng([seed, 5]).permutation(h)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "AUROC is undefined")  # said once below
        areas = {name: selective.roc_ci(h, s, cluster, rounds=bootstrap, seed=seed) for name, s in values.items()}
    if len(set(h)) == 1:
        warnings.warn(
            f"all {len(h)} labelled references are {'invented' if h[0] else 'real'}: AUROC is undefined", stacklevel=2
        )
    pairs = [pair for pair in GAINS if set(pair) <= set(columns)]
    gains = selective.gains_ci(h, values, pairs, cluster, rounds=bootstrap, seed=seed)
    draws = cluster_counts(cluster, curve_bootstrap, seed)
    return {
        **result,
        "n_topics": len(set(cluster)),
        "rate": selective.mean_ci(h, cluster, rounds=bootstrap, seed=seed),
        "auroc": areas,
        "auroc_shuffled": {name: float(selective.auroc(shuffled, s)[0]) for name, s in values.items()},
        "gains": {f"{a} - {b}": interval for (a, b), interval in gains.items()},
        "kept": {name: _kept(h, s) for name, s in values.items()},
        "kept_shuffled": {"IQ": _kept(shuffled, values["IQ"])},
        "means": {name: [_mean(s[h == 0]), _mean(s[h == 1])] for name, s in values.items()},
        "curves": {name: _curve(h, values[name], draws) for name in CURVES if name in values},
        "roc": {name: np.interp(RATES, *selective.roc(h, values[name])).tolist() for name in CURVES if name in values},
        "exposure_correlation": _exposure(table, seed),
    }


def _kept(h: np.ndarray, s: np.ndarray) -> list[list[float]]:
    """[threshold, kept, fraction, FDR] for some thresholds."""
    return np.column_stack(selective.fdr_curve(h, s, THRESHOLDS)).tolist()


def _curve(h: np.ndarray, s: np.ndarray, draws: np.ndarray) -> list[list[float]]:
    """[fraction, FDR, lower, upper]: the expected curve and its band over topics."""
    rounds = selective.fdr_at(h, s, FRACTIONS, draws)
    band = middle(rounds)
    return np.column_stack([FRACTIONS, selective.fdr_at(h, s, FRACTIONS)[0], *band]).tolist()


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def _exposure(table: Table, seed: int) -> list[float] | None:
    """Spearman's correlation of IQ with how often a real title was read in training, if known; and that shuffled."""
    if "exposure" not in table:
        return None
    real = table[table["grounded"] == 1]
    shuffled = real["exposure"].sample(frac=1, random_state=seed).set_axis(real.index)
    return [float(real["IQ"].corr(exposure, method="spearman")) for exposure in (real["exposure"], shuffled)]


def counts(refs: Table, samples: Table, agreements: Table, *, topics: Sequence[str], n_titles: int) -> dict[str, Any]:
    """What could not be read, and where: nothing that is missing goes unsaid."""
    authors, direct = samples[samples["query"] == "IQ"], samples[samples["query"] != "IQ"]
    lengths = refs.groupby("topic").size()
    judged: Table = agreements[agreements["raw_text"] != ""]
    usable = authors.groupby("ref_id")["value"].count()
    return {
        "topics_without_titles": [topic for topic in topics if topic not in lengths.index],
        "lists_of_another_length": int((lengths != n_titles).sum()) if len(topics) else 0,
        "duplicates": int((refs["duplicate_of"] != "").sum()),
        "n_author_samples": len(authors),
        "unread_authors": int(authors["value"].isna().sum()),
        "below_two_usable": int((usable < 2).sum()),
        "n_direct": direct.groupby("query").size().to_dict(),
        "unread_direct": {str(kind): int(rows["value"].isna().sum()) for kind, rows in direct.groupby("query")},
        "n_judgments": len(judged),
        "unread_judgments": int(judged["overlap"].isna().sum()),
    }
