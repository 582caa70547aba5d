"""Partitions of benchmarks: instances from a reader's own file, and scores of completions that others released."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import data, runs
from workbench.feedback.chat import ChatModel
from workbench.feedback.open_model import open_model
from workbench.methods.confidence.time_travel.completions import TASKS

log = logging.getLogger(__name__)

TEXTS = ("text", "prompt", *data.ALIASES["prompt"])  # where the text of a row is looked for, in this order
FEWEST, FEW = 5, 10  # usable instances of a partition: fewer are refused, fewer get a warning
LABEL_NAMES = ("no", "near-exact", "exact")  # of the released labels 0, 1, 2


@dataclass(frozen=True)
class PartitionFile:
    """Partitions of a file and a model that may have seen them; weights load with the first question.

    Attributes:
        frame: columns `instance_id, dataset, split, task`, the text or texts, `label` where there is one.
        model, judge_model: folder, hub id or address; no judge leaves the deterministic matcher.
    """

    frame: pd.DataFrame
    model: str
    device: str = "auto"
    judge_model: str = ""
    arms: tuple[str, ...] = ("partitions",)
    is_simulated: bool = False

    @classmethod
    def load(
        cls, dataset: str, *, model: str, device: str, judge: str, task: str, partition: str, text_column: str
    ) -> PartitionFile:
        """Reads a file, a folder or a hub data set: a benchmark, or the rows of preference data before training on
        them.

        Args:
            task: of rows without that column.
            partition: name of the split, for rows without the column `split`; of a hub data set it is loaded too.
            text_column: "" takes `text`, or the prompt of demonstration and preference data.

        Raises:
            FileNotFoundError: no such file.
            ValueError: no column with a text; an unknown task.
        """
        frame = pd.DataFrame(data.load(dataset, split=partition))
        found = [name for name in ((text_column,) if text_column else TEXTS) if name in frame]
        if text_column and not found:
            raise ValueError(f"no column {text_column!r} for text_column; found {', '.join(map(str, frame.columns))}")
        if found and found[0] != "text":
            frame["text"] = [value if isinstance(value, str) else _first_turn(value) for value in frame[found[0]]]
        defaults = {"dataset": Path(dataset).name.split(".")[0], "split": partition, "task": task}
        for column, value in defaults.items():
            frame[column] = frame[column].fillna(value) if column in frame else value
        unknown = set(frame["task"]) - set(TASKS)
        if unknown:
            raise ValueError(f"column 'task': {sorted(unknown)} is unknown; use one of {', '.join(TASKS)}")
        place = frame.groupby(["dataset", "split"]).cumcount().astype(str)
        if "instance_id" not in frame:
            frame["instance_id"] = frame["dataset"] + "/" + frame["split"] + "/" + place
        twice = frame.loc[frame["instance_id"].duplicated(), "instance_id"].tolist()
        if twice:
            raise ValueError(
                f"column 'instance_id': {twice[0]!r} stands in more than one row; every instance needs its own"
            )
        return cls(frame, model, device, judge)

    def rows(self, seed: int) -> pd.DataFrame:
        return self.frame

    def subject(self, arm: str, seed: int) -> ChatModel:
        return open_model(self.model, device=self.device, seed=seed)

    def judge(self, seed: int) -> ChatModel | None:
        return open_model(self.judge_model, device=self.device, seed=seed) if self.judge_model else None


def choose(instances: pd.DataFrame, rejected: pd.DataFrame, n: int, seed: int, name: str) -> pd.DataFrame:
    """At most `n` instances of a partition, drawn by seed, in the order of the file.

    Raises:
        ValueError: fewer than 5 are usable; the rejected ones are listed with their reasons.
    """
    if len(instances) < FEWEST:
        left = "; ".join(f"{row['instance_id']}: {row['reason']}" for row in rejected.to_dict("records"))
        raise ValueError(
            f"partition {name} has {len(instances)} usable instances, {FEWEST} are the fewest that say anything"
            + (f"; rejected: {left}" if left else "; give more rows")
        )
    if len(instances) < FEW:
        log.warning(
            "partition %s has %d usable instances; with fewer than %d the tests are coarse", name, len(instances), FEW
        )
    kept = np.sort(np.random.default_rng([seed, 5]).permutation(len(instances))[:n])
    return instances.iloc[kept].reset_index(drop=True)


@dataclass(frozen=True)
class RecordedScores:
    """Scores and labels of completions that were released with a paper: nothing is asked, everything is derived again.

    Attributes:
        partitions: rows `model, dataset, split`, `rouge_general, rouge_guided, bleurt_general, bleurt_guided` (one
            score an instance), `icl_label, human1, human2` (0 no, 1 near-exact, 2 exact).
    """

    partitions: list[dict[str, Any]]
    is_simulated: bool = False

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(part["model"] for part in self.partitions))

    @classmethod
    def recognise(cls, dataset: str) -> RecordedScores | None:
        """The scores in a JSON file with `partitions`; None where `dataset` is anything else.

        Raises:
            ValueError: a partition without a column, or with another number of scores than the first (it is named).
        """
        path = Path(dataset).expanduser()
        content = runs.read_json(path) if path.suffix == ".json" and path.is_file() else None
        if not isinstance(content, dict) or "partitions" not in content:
            return None
        lists = [*(f"{m}_{i}" for m in ("rouge", "bleurt") for i in ("general", "guided")), *_JUDGES.values()]
        for part in content["partitions"]:
            missing = [name for name in ("model", "dataset", "split", *lists) if name not in part]
            uneven = [name for name in lists if name in part and len(part[name]) != len(part["rouge_general"])]
            if missing or uneven:
                name = "/".join(str(part.get(key)) for key in ("model", "dataset", "split"))
                raise ValueError(
                    f"{path}, partition {name}: " + (f"no {missing}" if missing else f"{uneven} differ in length")
                )
        return cls(content["partitions"])

    def evidence(self, arm: str) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
        """Instances, overlap and matches of one model, as a run would have written them."""
        instances, overlap, matches = [], [], []
        for part in (part for part in self.partitions if part["model"] == arm):
            ids = [f"{part['dataset']}/{part['split']}/{i}" for i in range(len(part["rouge_general"]))]
            instances += [{"instance_id": i, "dataset": part["dataset"], "split": part["split"]} for i in ids]
            for metric, column in (("rougeL", "rouge"), ("bleurt", "bleurt")):
                for instruction in ("general", "guided"):
                    overlap.append(_table(ids, instruction, metric=metric, score=part[f"{column}_{instruction}"]))
            for judge, column in _JUDGES.items():
                labels = [LABEL_NAMES[label] for label in part[column]]
                matches.append(_table(ids, "guided", judge=judge, label=labels))
        return pd.DataFrame(instances), pd.concat(overlap, ignore_index=True), pd.concat(matches, ignore_index=True)


_JUDGES = {"judge": "icl_label", "human1": "human1", "human2": "human2"}


def _table(ids: Sequence[str], instruction: str, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"instance_id": ids, "instruction": instruction, **columns})


def _first_turn(chat: Any) -> str:
    """What the user says first in a chat."""
    return next(turn["content"] for turn in chat if turn["role"] == "user")
