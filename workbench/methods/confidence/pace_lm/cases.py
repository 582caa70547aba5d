"""Cases: predictions to be judged and the store of earlier incidents beside them, as two checked tables.

- cases: `case_id`, `title`, `summary`, `predicted_root_cause`, `predictor`, `created`, `correct` (0, 1, or null where
  unknown), `split` ("calibration" or "test"; "fresh" is a second test set); optionally `embedding` and
  `predictor_samples` (more answers of the same predictor to the same incident)
- history: `incident_id`, `title`, `summary`, `root_cause`, `created`, `service`; optionally `embedding`
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from workbench import data
from workbench.feedback.chat import ChatModel
from workbench.feedback.open_model import open_model

SPLITS = ("calibration", "test", "fresh")
FORM = (
    "a folder with cases.jsonl and history.jsonl, or one file whose column 'table' says 'case' or 'history' in"
    " every row"
)


@dataclass(frozen=True)
class CaseFile:
    """Real cases for a real model: the rows are checked at once, weights are loaded at the first question."""

    cases: pd.DataFrame
    history: pd.DataFrame
    model: str
    device: str
    name: str = "cases"
    is_simulated: bool = False

    @classmethod
    def load(cls, dataset: str, *, model: str, device: str) -> CaseFile:
        """Reads and checks both tables.

        Raises:
            FileNotFoundError: no such file, or a folder without one of the two.
            ValueError: rows of neither table; a bad row (table, row and column are named).
        """
        folder = Path(dataset).expanduser()
        if folder.is_dir():
            missing = [name for name in ("cases.jsonl", "history.jsonl") if not (folder / name).is_file()]
            if missing:
                raise FileNotFoundError(f"{dataset} has no {' and no '.join(missing)}; give {FORM}")
            cases, history = (data.load(str(folder / name)) for name in ("cases.jsonl", "history.jsonl"))
        else:
            rows = data.load(dataset)
            for number, row in enumerate(rows):
                if row.get("table") not in ("case", "history"):
                    raise ValueError(f"row {number}, column 'table': got {row.get('table')!r}; give {FORM}")
            cases, history = ([row for row in rows if row["table"] == kind] for kind in ("case", "history"))
        return cls(check_cases(cases), check_history(history), model, device, folder.name.split(".")[0])

    def tables(self, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Every seed has the same rows: seeds differ in what the model samples."""
        return self.cases, self.history

    def subject(self, seed: int) -> ChatModel:
        return open_model(self.model, device=self.device, seed=seed)


def check_cases(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The cases in the project's form; the columns are in the first lines of this file.

    Raises:
        ValueError: no rows; a missing or empty text; a repeated `case_id`; a date that is none; a label that is not 0,
            1 or null; an unknown split. Row and column are named.
    """
    checked = []
    for number, (row, name, created) in enumerate(_checked(rows, "cases", "case_id", ("summary",))):
        label, split = row.get("correct"), row.get("split")
        if label is not None and not (isinstance(label, float) and math.isnan(label)):
            if label not in (0, 1):
                raise ValueError(f"cases row {number}, column 'correct': 0, 1 or null is needed; got {label!r}")
            label = float(label)
        else:
            label = math.nan
        split = "test" if split is None and math.isnan(label) else split
        if split not in SPLITS:
            raise ValueError(f"cases row {number}, column 'split': one of {', '.join(SPLITS)} is needed; got {split!r}")
        case = {"case_id": name, "title": str(row.get("title") or ""), "summary": str(row["summary"])}
        case["predicted_root_cause"] = str(row.get("predicted_root_cause") or "").strip()
        case |= {"predictor": str(row.get("predictor") or "predictor"), "created": created}
        more = {column: row[column] for column in ("embedding", "predictor_samples") if row.get(column) is not None}
        checked.append({**case, "correct": label, "split": split, **more})
    return pd.DataFrame(checked)


def check_history(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The store in the project's form.

    Raises:
        ValueError: no rows; a missing or empty text; a repeated `incident_id`; a date that is none.
    """
    incidents = []
    for row, name, created in _checked(rows, "history", "incident_id", ("summary", "root_cause")):
        incident = {"incident_id": name, "title": str(row.get("title") or ""), "summary": str(row["summary"])}
        incident |= {"root_cause": str(row["root_cause"]).strip(), "created": created, "service": row.get("service")}
        more = {"embedding": row["embedding"]} if row.get("embedding") is not None else {}
        incidents.append({**incident, **more})
    return pd.DataFrame(incidents)


def _checked(rows: Sequence[Mapping[str, Any]], table: str, key: str, texts: Sequence[str]) -> list[tuple]:
    """(row, its id, its date) for each row."""
    if not rows:
        raise ValueError(f"the table {table} has no rows; give {FORM}")
    seen: dict[str, int] = {}
    found = []
    for number, row in enumerate(rows):
        for column in (key, *texts):
            if not isinstance(row.get(column), str | int) or not str(row[column]).strip():
                raise ValueError(
                    f"{table} row {number}, column {column!r}: text is needed; got {row.get(column)!r}; found "
                    f"{', '.join(map(str, row))}"
                )
        name = str(row[key])
        if name in seen:
            raise ValueError(
                f"{table} row {number}, column {key!r}: {name!r} stands in row {seen[name]} too; every row needs"
                " its own"
            )
        seen[name] = number
        try:
            created = pd.Timestamp(row["created"])
        except (KeyError, ValueError, TypeError):
            created = pd.NaT
        if created is pd.NaT:
            raise ValueError(
                f"{table} row {number}, column 'created': a date such as 2024-05-31 is needed, or nothing says which "
                f"incident came first; got {row.get('created')!r}"
            )
        found.append((row, name, created.tz_convert(None) if created.tzinfo else created))
    return found


def has_prediction(cases: pd.DataFrame) -> pd.Series:
    """Whether a root cause is proposed at all; "unknown" is none."""
    proposed: Any = cases["predicted_root_cause"].fillna("").astype(str).str.strip().str.casefold()
    return ~proposed.isin(["", "unknown"])
