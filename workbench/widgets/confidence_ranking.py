"""ConfidenceRanking: which answers to trust, from strengths with intervals down to single judgments.

Three faces: alive in JupyterLab, the same view in a rendered page without a kernel (`js/ranking.js` draws both), and
`frame()`, `figure()`, `above()`, `export()` for scripts. Text of models and data goes into the view as text only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import metrics
from workbench.figures import blank, plain
from workbench.widgets import scripted

COLUMNS = ("qid", "question", "answer")
TEXT_LIMIT = 2_000_000  # characters of raw replies that a page carries; more are left out, their outcomes stay


class ConfidenceRanking:
    """Answers in the order of how far they can be trusted.

    Args:
        answers: `qid`, `question`, `answer`, and `correct` (1, 0 or missing) where known.
        scores: scorer -> [answers], higher is surer; the first one orders the answers at first.
        intervals: scorer -> (lower, upper), each [answers]; for those that have them.
        matchups: `left`, `right` (qid), `outcome` (1: left surer, 0, 0.5), and `parse_status`, `raw_text` if there.
        labels: scorer -> what a reader calls it.
        kept: answers kept at first, most trusted first; -1 takes half of them.

    Raises:
        ValueError: a missing column, a `qid` twice, a score that is not finite or of another length, a label other than
            0 and 1, a judgment of an unknown answer. Row and column are named.
    """

    def __init__(
        self,
        answers: pd.DataFrame,
        scores: Mapping[str, Sequence[float] | np.ndarray],
        *,
        intervals: Mapping[str, tuple[Any, Any]] | None = None,
        matchups: pd.DataFrame | None = None,
        labels: Mapping[str, str] | None = None,
        kept: int = -1,
    ):
        self.answers: Any = _checked_answers(answers)
        n = len(self.answers)
        if not scores:
            raise ValueError("scores needs at least one scorer")
        self.scores = {name: _checked_scores(name, values, self.answers["qid"]) for name, values in scores.items()}
        sides = (intervals or {}).items()
        self.intervals = {name: tuple(np.asarray(side, dtype=float) for side in pair) for name, pair in sides}
        self.labels = {name: (labels or {}).get(name, name) for name in self.scores}
        self.matchups: Any = None if matchups is None else _checked_matchups(matchups, self.answers["qid"])
        self.kept = n // 2 if kept < 0 else min(kept, n)

    @classmethod
    def of_run(
        cls, folder: str | Path, *, labels: Mapping[str, str] | None = None, first: str = "bt"
    ) -> ConfidenceRanking:
        """From a run folder that holds `scores.parquet` and `matchups.parquet` of one data set.

        Raises:
            FileNotFoundError: no `scores.parquet` there.
        """
        folder = Path(folder)
        if not (folder / "scores.parquet").is_file():
            raise FileNotFoundError(f"no scores.parquet in {folder}; name the folder of one data set of a finished run")
        table: Any = pd.read_parquet(folder / "scores.parquet")
        judged = pd.read_parquet(folder / "matchups.parquet") if (folder / "matchups.parquet").is_file() else None
        parts = {str(name): part.reset_index(drop=True) for name, part in table.groupby("method", sort=False)}
        names = sorted(parts, key=lambda name: name != first)
        sure = {name: (part["lower"], part["upper"]) for name, part in parts.items() if part["lower"].notna().all()}
        scores = {name: parts[name]["score"] for name in names}
        answers = parts[names[0]][[*COLUMNS, "correct"]]
        return cls(answers, scores, intervals=sure, matchups=judged, labels=labels)

    # -- faces
    def data(self) -> dict[str, Any]:
        """What the view draws, JSON types only."""
        answers, judged = self.answers, self.matchups
        place = {qid: i for i, qid in enumerate(answers["qid"])}
        scorers = []
        for name, values in self.scores.items():
            about = {"name": name, "label": self.labels[name], "score": scripted.short(values)}
            sides = map(scripted.short, self.intervals[name]) if name in self.intervals else (None, None)
            scorers.append({**about, **dict(zip(("lower", "upper"), sides, strict=True))})
        matches = None
        if judged is not None:
            reply, texts = pd.factorize(judged["raw_text"].astype(str))  # a judge says few different things
            matches = {side: [place[qid] for qid in judged[side]] for side in ("left", "right")}
            matches |= {"outcome": judged["outcome"].tolist(), "status": judged["parse_status"].tolist()}
            texts = list(texts) if sum(map(len, texts)) <= TEXT_LIMIT else None
            matches |= {"reply": reply.tolist(), "texts": texts}
        correct = [None if np.isnan(value) else int(value) for value in answers["correct"]]
        shown = {name: answers[name].astype(str).tolist() for name in COLUMNS}
        return {"answers": {**shown, "correct": correct}, "scorers": scorers, "matches": matches}

    def widget(self) -> Any:
        """Live face: `.kept` and `.chosen` follow what the reader does."""
        return scripted.live("ranking", self.data(), on_message=self._on_message, kept=self.kept, chosen="")

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        return scripted.bundle("ranking", self.data(), self.widget(), self.frame().head(20).to_string(), kept=self.kept)

    def frame(self, scorer: str = "") -> pd.DataFrame:
        """The answers, most trusted first: `rank`, `score`, `lower`, `upper` beside the columns of `answers`."""
        name = self._name(scorer)
        lower, upper = self.intervals.get(name, (np.nan, np.nan))
        scores = self.scores[name]
        table: Any = self.answers.assign(score=scores, lower=lower, upper=upper)
        table.insert(0, "rank", np.asarray(pd.Series(-scores.round(9)).rank(method="min"), dtype=int))
        return table.iloc[np.argsort(-scores.round(9), kind="stable")].reset_index(drop=True)

    def above(self, *, score: float | None = None, share: float | None = None, scorer: str = "") -> pd.DataFrame:
        """The answers to trust: at or above a score, or the most trusted share (0 to 1; a tie comes in whole).

        Raises:
            ValueError: neither or both given, or a share outside [0, 1].
        """
        if (score is None) == (share is None):
            raise ValueError("give either score or share")
        table: Any = self.frame(scorer)
        if share is not None:
            if not 0 <= share <= 1:
                raise ValueError(f"share is a number from 0 to 1; got {share}")
            count = round(share * len(table))
            score = np.inf if count == 0 else float(table["score"].iloc[count - 1]) - 5e-10
        return table[table["score"] >= score]

    def export(self, path: str | Path, **above: Any) -> Path:
        """Writes the ranking, or with `score` or `share` the answers above it, as CSV or Parquet by the file's ending.

        Raises:
            ValueError: another ending.
        """
        path, table = Path(path), self.above(**above) if above else self.frame()
        if path.suffix not in (".csv", ".parquet"):
            raise ValueError(f"the file must end in .csv or .parquet; got {path.name!r}")
        table.to_csv(path, index=False) if path.suffix == ".csv" else table.to_parquet(path, index=False)
        return path

    def figure(self, scorer: str = "") -> go.Figure:
        """Accuracy of the answers kept against the share kept, for every scorer, tie groups in random order."""
        known = self.answers["correct"].notna().to_numpy()
        right = self.answers["correct"].to_numpy(dtype=float)[known]
        names = [self._name(scorer)] if scorer else list(self.scores)
        title = f"{len(right)} of {len(known)} answers are known to be right or wrong"
        figure = blank(title, "share of answers kept", "right among those kept")
        for name in names if len(right) else ():
            curve = metrics.accuracy_coverage(self.scores[name][known], right)
            line = {"x": curve.coverage, "y": curve.accuracy, "mode": "lines"}
            figure.add_trace(go.Scatter(**line, name=plain(self.labels[name])))
        return figure

    # -- inside
    def _name(self, scorer: str) -> str:
        name = scorer or next(iter(self.scores))
        if name not in self.scores:
            raise ValueError(f"unknown scorer {scorer!r}; known: {', '.join(self.scores)}")
        return name

    def _on_message(self, widget: Any, content: Any) -> None:
        if content.get("kind") == "parquet":
            path = Path("ranking-kept.parquet").resolve()
            table: Any = self.frame(str(content["scorer"]))
            table[table["qid"].astype(str).isin(set(content["qids"]))].to_parquet(path, index=False)
            widget.send({"kind": "saved", "text": f"{len(content['qids'])} answers are in {path}"})


def _checked_answers(answers: Any) -> Any:
    if missing := [name for name in COLUMNS if name not in answers]:
        known = ", ".join(map(str, answers.columns))
        raise ValueError(f"answers lacks the columns {', '.join(missing)}; it has {known}")
    table = answers.reset_index(drop=True)
    for row in np.flatnonzero(table["qid"].duplicated()):
        raise ValueError(f"answers row {row}, column 'qid': {table['qid'][row]!r} stands there twice")
    correct: Any = pd.to_numeric(table["correct"]) if "correct" in table else pd.Series(np.nan, index=table.index)
    for row in np.flatnonzero(correct.notna() & ~correct.isin([0, 1])):
        raise ValueError(f"answers row {row}, column 'correct': 1, 0 or nothing is needed; got {correct[row]:g}")
    return table.assign(correct=correct.astype(float))


def _checked_scores(name: str, values: Any, qids: Any) -> np.ndarray:
    scores = np.asarray(values, dtype=float)
    if scores.shape != (len(qids),):
        raise ValueError(f"scores[{name!r}] has {scores.size} values for {len(qids)} answers")
    for row in np.flatnonzero(~np.isfinite(scores)):
        where = f"scores[{name!r}] of {qids[row]!r} (row {row})"
        raise ValueError(f"{where} is {scores[row]}; an order needs finite numbers")
    return scores


def _checked_matchups(matchups: Any, qids: Any) -> Any:
    known, table = set(qids), matchups.reset_index(drop=True)
    for side in ("left", "right"):
        for row, qid in enumerate(table[side]):
            if qid not in known:
                raise ValueError(f"matchups row {row}, column {side!r}: {qid!r} is none of the {len(known)} answers")
    for row in np.flatnonzero(~table["outcome"].isin([0.0, 0.5, 1.0])):
        raise ValueError(f"matchups row {row}, column 'outcome': 0, 0.5 or 1 is needed; got {table['outcome'][row]}")
    if "parse_status" not in table:
        table = table.assign(parse_status=np.where(table["outcome"] == 0.5, "tie", "ok"))
    return table if "raw_text" in table else table.assign(raw_text="")
