"""What becomes of the data stages: step pairs beside pairs of whole answers, and how many rows each stage left."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.runs.run import Run


def with_answers(steps: pd.DataFrame, answers: pd.DataFrame | None, n_problems: int) -> pd.DataFrame:
    """Step pairs with as many whole answers to the same problem; without `answers` all step pairs, whose sides
    `full_chosen` and `full_rejected` are then empty.

    Args:
        n_problems: the pairs of so many problems are kept; 0 keeps all.
    """
    if answers is None:
        rows: Any = steps.assign(full_chosen="", full_rejected="")
    else:
        number = {"number": lambda table: table.groupby(["prompt", "full_rejected"]).cumcount()}
        keys = ["prompt", "full_rejected", "number"]
        rows = steps.assign(**number).merge(answers.assign(**number), on=keys).drop(columns="number")
    kept = rows["prompt"].drop_duplicates()[: n_problems or None]
    return rows[rows["prompt"].isin(kept)].reset_index(drop=True)


def counts(run: Run) -> dict[str, Any]:
    """How many rows each stage left on the training problems, and why wrong solutions have no located step."""
    numbers: dict[str, Any] = {}
    for path in sorted(run.folder.glob("train-*.parquet")):
        table: Any = pd.read_parquet(path)
        numbers[path.stem.removeprefix("train-")] = len(table)
        if path.stem.endswith("unlocalised"):
            numbers["reasons"] = {str(reason): int(n) for reason, n in table["reason"].value_counts().items()}
    return numbers
