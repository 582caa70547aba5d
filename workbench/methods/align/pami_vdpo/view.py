"""Clip bags: a clip beside its altered versions, with closeness, divergence and weight; and what each arm ends with."""

from __future__ import annotations

import html
import math
import zlib
from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, blank, plain
from workbench.methods.experiment import Experiment, Results
from workbench.methods.views import DOTTED, ends_figure, seed_folder, start_means
from workbench.widgets.paging import Paged

MEASURES = {
    "HAS against": "HAS, against the habit",
    "EARLY against": "EARLY, against the habit",
    "paired": "both of a pair right",
    "with": "with the habit",
    "yes_bias": "yes-bias",
    "evidence_nats": "nats that the evidence adds",
    "quality": "quality",
}


def accuracy_figure(experiment: Experiment, table: pd.DataFrame) -> Display:
    """What every arm ends with, one panel a measure; the dotted line is the start."""
    measures = [key for key in MEASURES if key in table and (key != "quality" or "paired" not in table)]
    ends, starts = table[table["round"] == 1], start_means(table, measures)
    main: Any = ends[ends["arm"] == "pami"]
    title, labels = "What every arm ends with", {**experiment.config.ARMS, **MEASURES}
    if len(main) and "paired" in measures:
        title = f"PaMi-VDPO answers {main['paired'].mean():.0%} of question pairs right, from {starts['paired']:.0%}"
    return ends_figure(ends, measures, title, labels, x_title="share", starts=starts)


def rejections(experiment: Experiment, results: Results) -> pd.DataFrame:
    """Share of false rejections by arm, question and alteration, with what was left out; means over seeds."""
    counted = ("false_rejections", "far", "close", "weight", "fell_back", "identical")
    rows = [
        {"arm": experiment.config.ARMS[arm].title, **{name: rates[name] for name in counted}}
        | {**rates["by_question"], **rates["by_kind"]}
        for result in results
        for arm, rates in result["selection"].items()
        if rates
    ]
    means: Any = pd.DataFrame(rows).groupby("arm", sort=False).mean()
    return means.round(3)


def likelihood(experiment: Experiment, table: pd.DataFrame) -> pd.DataFrame:
    """Mean log-probability of the training responses before and after: it may fall although the margin grows."""
    means: Any = table.groupby(["arm", "round"], sort=False)["chosen_logp"].mean()
    titles = {name: arm.title for name, arm in experiment.config.ARMS.items()}
    return means.unstack("round").rename(columns={0: "before", 1: "after"}, index=titles).round(3)


def bags(experiment: Experiment, *, arm: str = "pami", seed: int | None = None) -> ClipBags:
    """The view of one arm: candidates as its start selects them, and answers before and after training."""
    folder = seed_folder(experiment, seed) / arm
    return ClipBags(pd.read_parquet(folder / "selection.parquet"), answers=pd.read_parquet(folder / "answers.parquet"))


class ClipBags(Paged):
    """Sample by sample: the clip and its altered versions as strips of frames, the selected one marked.

    A frame is a square whose colour is a function of its name (a blank one is white), or its text where that is long.

    Args:
        table: the candidates of one arm, as `selection.parquet` in its run folder holds them.
        shown: samples on the static face.
        answers: optional probabilities of the response under the original and each altered clip: columns `sample`, `k`
            (-1 is the original), `p_before`, `p_after`.
    """

    noun = "sample"

    def __init__(self, table: pd.DataFrame, *, shown: int = 4, answers: pd.DataFrame | None = None):
        if table.empty:
            raise ValueError("no candidates to show; take an arm that rejects clips")
        self.table, self.shown = table, shown
        self.answers: Any = answers
        self.samples = [int(number) for number in dict.fromkeys(table["sample"])]

    @property
    def n_pages(self) -> int:
        return len(self.samples)

    def frame(self) -> pd.DataFrame:
        return self.table

    def figure(self):
        """Closeness and divergence of all candidates, false rejections in another colour, selected ones filled."""
        false: Any = self.table[self.table["weight"] > 0]["is_false"]
        share = float(false.mean())
        known = f"{share:.0%} of what is rejected has the same right answer"
        title = "What is rejected" if math.isnan(share) else known
        figure = blank(title, "closeness (cosine)", "divergence of the answer (nats)")
        table = self.table.assign(picked=self.table["weight"] > 0)
        for key, rows in table.groupby(["is_false", "picked"], dropna=False):
            is_false, picked = tuple(key)  # type: ignore[arg-type]
            texts = [plain(f"{prompt}: {kind}") for prompt, kind in zip(rows["prompt"], rows["candidate"], strict=True)]
            name = f"{'false' if is_false == 1 else 'true'} rejection{', selected' if picked else ''}"
            marker = {"color": "#D55E00" if is_false == 1 else "#0072B2", "size": 6}
            marker["symbol"] = "circle" if picked else "circle-open"
            told = {"name": name, "text": texts, "hovertemplate": "%{text}<br>%{x:.2f}, %{y:.3f} nats<extra></extra>"}
            figure.add_scatter(x=rows["close"], y=rows["far"], mode="markers", marker=marker, **told)
        figure.add_hline(y=math.log(2), line=DOTTED, annotation_text="log 2, the largest")
        return figure

    def html(self, index: int) -> str:
        """One bag as HTML; a pure function of its number."""
        number = self.samples[index]
        rows: Any = self.table[self.table["sample"] == number]
        first = rows.iloc[0]
        answers = {}
        if self.answers is not None:
            answers = {int(r["k"]): r for r in self.answers[self.answers["sample"] == number].to_dict("records")}
        lines = [_line("original", first["evidence"], "", "", "", answers.get(-1), False)]
        for k, row in enumerate(rows.to_dict("records")):
            mark = "" if math.isnan(row["is_false"]) else (" (same right answer)" if row["is_false"] else "")
            cells = (f"{row['close']:.2f}", f"{row['far']:.3f}", f"{row['weight']:.2f}")
            lines.append(_line(f"{row['candidate']}{mark}", row["altered"], *cells, answers.get(k), row["weight"] > 0))
        columns = ("clip", "frames", "close", "far (nats)", "weight", "p(response) before, after")
        head = "".join(f"<th>{name}</th>" for name in columns)
        asked = f"{html.escape(str(first['prompt']))} &rarr; {html.escape(str(first['response']))}"
        title = f"<b>{index + 1} of {len(self.samples)}: {asked}</b>"
        return f'<div class="clip-bag">{title}<table><tr>{head}</tr>{"".join(lines)}</table></div>'


def _line(name: str, frames: Sequence[str], close: str, far: str, weight: str, answer: Any, selected: bool) -> str:
    style = "background:#fff3d6" if selected else ""
    strip = "".join(_square(str(frame)) for frame in frames)
    p = "" if answer is None else f"{answer['p_before']:.2f}, {answer['p_after']:.2f}"
    told = f"{html.escape(name)}{' &#9664;' if selected else ''}"
    cells = "".join(f"<td>{value}</td>" for value in (told, strip, close, far, weight, p))
    return f'<tr style="{style}">{cells}</tr>'


def _square(frame: str) -> str:
    colour = "#fff" if frame in ("", "-") else f"hsl({zlib.crc32(frame.encode()) % 360},60%,70%)"
    return (
        "<span"
        ' style="display:inline-block;min-width:26px;height:24px;max-width:180px;overflow:hidden;margin:1px;padding:0'
        f' 3px;border:1px solid #999;background:{colour};text-align:center;font-size:12px">{html.escape(frame)}</span>'
    )
