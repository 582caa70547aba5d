"""From chains to pairs: which chains of a stage make a pair, whether it is sound, what the search cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from workbench.runs.run import Run
from workbench.tasks.reasoning.solution_steps import StepVerifier

KINDS = {0: "random", 1: "best-vs-worst", 2: "corrected-vs-wrong", 3: "small-model-error"}
COLUMNS = ["prompt", "chosen", "rejected", "rejected_ended", "stage", "kind", "number"]


def paired(stage: int, first: pd.DataFrame, chains: pd.DataFrame, *, checked: bool) -> pd.DataFrame:
    """The pairs of a stage.

    Args:
        first, chains: of stage 1, and of this stage; see `search`.
        checked: the rejected chain of stage 1 must be wrong; otherwise it must only be another one.
    """
    rows = []
    before: Any = first.set_index("number")
    for row in chains.to_dict("records"):
        best, worst, start = "".join(row["sol_max"]), "".join(row["sol_min"]), before.loc[row["number"]]
        if stage == 1:
            loses = row["correct_min"] == "wrong" if checked else row["correct_min"] != "unsure" and best != worst
            if row["correct_max"] == "right" and loses:
                rows.append((row, best, worst, not row["truncated_min"]))
        elif stage == 2:
            right = [text for text, side in ((best, "max"), (worst, "min")) if row[f"correct_{side}"] == "right"]
            if right:
                rows.append((row, right[0], "".join(start["sol_max"]), not start["truncated_max"]))
        elif row["correct_min"] == "wrong":
            rows.append((row, "".join(start["sol_max"]), worst, not row["truncated_min"]))
    pairs = [(row["problem"], *sides, stage, KINDS[stage], row["number"]) for row, *sides in rows]
    return pd.DataFrame(pairs, columns=COLUMNS)


def matched_random(samples: Any, n_pairs: int, *, seed: int) -> pd.DataFrame:
    """At most `n_pairs` of the random samples that have both sides, as pairs."""
    both = samples[(samples["chosen"] != "") & (samples["rejected"] != "")].sample(frac=1.0, random_state=seed)
    both = both[:n_pairs].rename(columns={"problem": "prompt"}).assign(stage=0, kind=KINDS[0])
    return both[COLUMNS].reset_index(drop=True)


def check_sound(pairs: pd.DataFrame, check: StepVerifier, *, rejected_is_wrong: bool) -> None:
    """
    Raises:
        RuntimeError: a pair whose chosen side is not right or whose rejected side is not wrong (or is the same): it
            would teach the opposite.
    """
    for row in pairs.to_dict("records"):
        loses = not rejected_is_wrong or not (row["rejected_ended"] and check.is_right(row["prompt"], row["rejected"]))
        if not check.is_right(row["prompt"], row["chosen"]) or not loses or row["chosen"] == row["rejected"]:
            raise RuntimeError(
                f"problem {row['prompt'][:60]!r}, stage {row['stage']}: chosen must be right and rejected wrong"
            )


def in_shards(run: Run, name: str, draw: Callable[[int], pd.DataFrame], n: int, size: int) -> pd.DataFrame:
    """A table made of shards that are stored one by one: a killed call searches none twice."""
    shards = [run.table(f"{name}-{start}", partial(draw, start)) for start in range(0, max(n, 1), size)]
    return pd.concat(shards, ignore_index=True)


# ------------------------------------------------------------------------------------------------------------- counts
def random_cost(samples: Any, n_random: int) -> dict[str, Any]:
    """What `n_random` whole samples of each problem cost, and how many problems gave a pair."""
    n_found = int(((samples["chosen"] != "") & (samples["rejected"] != "")).sum())
    tokens = int(samples["tokens"].sum())
    return {"pairs_found": n_found, "routes": {}, "tokens": tokens, "samples": n_random * len(samples)}


def cost_of(searches: Mapping[int, Any], width: int) -> dict[str, Any]:
    """What the searches of the stages cost, where stage 1 sent its problems, and its share of a whole tree."""
    first: Any = searches[1]
    tree = np.log10(width) * first["depth"]  # a tree of this depth has width^depth leaves
    routes = first.groupby(["correct_max", "correct_min"]).size()
    made = [table for table in searches.values() if len(table)]
    means = {"samples_a_problem": "samples", "truncated": "truncated_max", "collapsed": "collapsed"}
    return {
        **{cost: int(sum(table[cost].sum() for table in made)) for cost in ("tokens", "samples")},
        **{name: float(first[column].mean()) for name, column in means.items()},
        "most_of_2ED": float((first["samples"] / (2 * width * first["depth"])).max()),
        "log10_of_tree": float((np.log10(first["samples"]) - tree).mean()),
        "routes": {f"{best}/{worst}": int(n) for (best, worst), n in routes.items()},
    }


def describe_pairs(pairs: pd.DataFrame, bands: Sequence[str], check: Any) -> dict[str, Any]:
    """How many pairs by stage and difficulty; how wrong the rejected ones are, where an oracle counts wrong steps."""
    rows = pairs.to_dict("records")
    wrong = [check.n_wrong(row["prompt"], check.split(row["rejected"])) for row in rows] if check.is_oracle else []
    lost = [not check.is_right(row["prompt"], row["rejected"]) for row in rows]
    return {
        "pairs": len(rows),
        "problems": {name: list(bands).count(name) for name in sorted(set(bands))},
        "table": [[int(row["stage"]), bands[row["number"]]] for row in rows],
        "wrong_steps": float(np.mean(wrong)) if wrong else float("nan"),
        "rejected_wrong": float(np.mean(lost)) if lost else 0.0,
    }
