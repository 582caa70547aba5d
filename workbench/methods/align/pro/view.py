"""Ranked lists: where each answer stands under the policy before and after training; and curves of PRO."""

from __future__ import annotations

import html
import json
from typing import Any

import pandas as pd

from workbench.figures import Display, Note, blank, plain
from workbench.methods.align.pro.lists import as_lists, rank_rows
from workbench.methods.experiment import Experiment
from workbench.methods.views import curves, ends_figure, seed_folder, start_means
from workbench.runs.files import read_json
from workbench.runs.run import Run
from workbench.widgets.paging import Paged
from workbench.widgets.training_preview import TrainingPreview

MEASURES = {
    "quality": "reward of samples",
    "greedy": "reward of greedy answers",
    "agreement": "rank agreement",
    "token_nll": "nats a token",
}
STAGES = {"before": "policy before", "after": "policy after", "score": "score"}


def _ends(experiment: Experiment, table: pd.DataFrame, measures: list[str], title: str, **options: Any) -> Display:
    """What every arm ends with, one panel a measure on a scale of its own."""
    names = {name: name.replace("bleu_", "BLEU by ") for name in measures if name.startswith("bleu")}
    labels = {**experiment.config.ARMS, **MEASURES, **names}
    return ends_figure(table[table["round"] == 1], measures, title, labels, **options)


def rewards_figure(experiment: Experiment, table: pd.DataFrame) -> Display:
    """What every arm ends with, one panel a measure; the dotted line is the start."""
    measures = [key for key in MEASURES if key in table]
    mean: Any = table[table["round"] == 1].groupby("arm")["quality"].mean()
    first, other = next(
        (pair for pair in (("pro_2", "sft_2"), ("pro", "bon")) if set(pair) <= set(mean.index)), (mean.index[0],) * 2
    )
    arms = experiment.config.ARMS
    title = f"{arms[first].title} ends at {mean[first]:+.2f}, {arms[other].title} at {mean[other]:+.2f}"
    return _ends(experiment, table, measures, title, starts=start_means(table, measures))


def bleu_figure(experiment: Experiment, table: pd.DataFrame) -> Display | Note:
    """Greedy reward beside BLEU by characters and by words, one line an arm: does BLEU follow reward?"""
    if "bleu_characters" not in table:
        return Note("This run computed no BLEU: on real text it needs an evaluation_judge.")
    measures = ["greedy" if "greedy" in table else "quality", "bleu_characters", "bleu_words"]
    return _ends(experiment, table, measures, "Reward, and BLEU against the chosen answer")


def training_figure(experiment: Experiment, arm: str = "pro_5") -> Display | Note:
    """The loss of every rank over training: rank 1 is the best answer against all others."""
    rows = [
        {"arm": f"rank {name.removeprefix('rank_')}", "seed": seed, "step": row["step"] // 5 * 5, "value": value}
        for seed in experiment.seeds
        for row in Run(experiment.run.folder / f"seed-{seed}" / arm / "round-1").metrics()
        for name, value in row.items()
        if name.startswith("rank_")
    ]
    if not rows:
        return Note(f"This run has no arm {arm!r} with ranks; it has {', '.join(experiment.config.arms)}.")
    steps: Any = pd.DataFrame(rows).groupby(["arm", "seed", "step"])["value"].mean()
    steps, title = steps.reset_index(), f"{experiment.config.ARMS[arm].title}: the loss of each rank"
    return curves(steps.assign(measure="term of the loss"), "step", title, "step", "nats", None, panel="measure")


def preview(experiment: Experiment, *, arm: str = "") -> TrainingPreview:
    """What an arm that ranks (the first one) will be trained on, of the first seed: its lists, ordered and cut."""
    config, seed, arms = experiment.config, experiment.seeds[0], experiment.config.ARMS
    rule = arms[arm or next((arm for arm in config.arms if arms[arm].learns in ("lists", "hinge")), config.arms[0])]
    lists, _ = as_lists(experiment.task.rankings("train", seed), n=rule.n, strict=config.strict)
    policy = experiment.task.start(seed)
    return TrainingPreview(policy, rank_rows(policy, lists, **config.limits))


def counts(experiment: Experiment) -> pd.DataFrame:
    """Training lists of the first seed and arm by arm what was mended or left out of them."""
    paths = {arm: seed_folder(experiment) / arm / "counts.json" for arm in experiment.config.arms}
    rows = [
        {"arm": experiment.config.ARMS[arm].title, **read_json(path)} for arm, path in paths.items() if path.is_file()
    ]
    return pd.DataFrame(rows).fillna(0)


def held_out(experiment: Experiment, *, seed: int | None = None, arm: str = "") -> pd.DataFrame:
    """Held-out lists of one seed and one arm (the first by default): list, prompt, response, score, before, after."""
    arm = arm or experiment.config.arms[0]
    return pd.read_parquet(seed_folder(experiment, seed) / arm / "held_out_lists.parquet")


class ListBrowser(Paged):
    """List by list: a slope chart of the answers' positions under the policy before and after, and by score.

    Live, a slider that the arrow keys move goes through the lists; without a kernel the first lists stand below each
    other.

    Args:
        table: see `held_out`; `before` and `after` are mean log-probabilities a token.
        shown: lists on the static face.
    """

    def __init__(self, table: pd.DataFrame, *, shown: int = 3):
        if table.empty:
            raise ValueError("no lists to show; train an arm first")
        self.lists: list[Any] = [rows.reset_index(drop=True) for _, rows in table.groupby("list", sort=False)]
        self.shown = shown

    def positions(self, index: int) -> pd.DataFrame:
        """Position 1 is the best; equal values share their mean position."""
        rows = self.lists[index]
        places = {stage: rows[stage].rank(ascending=False) for stage in STAGES}
        return rows.assign(**{f"{stage}_position": place for stage, place in places.items()})

    @property
    def n_pages(self) -> int:
        return len(self.lists)

    def frame(self) -> pd.DataFrame:
        return pd.concat([self.positions(i) for i in range(len(self.lists))], ignore_index=True)

    def figure(self, index: int = 0):
        """One line an answer: its position before training, after it, and by score."""
        rows = self.positions(index)
        figure = blank(f"{plain(str(rows['prompt'][0])[:70])}: positions of its answers", "", "position, 1 is the best")
        for row in rows.itertuples():
            line: Any = row
            places = [line.before_position, line.after_position, line.score_position]
            told = {"name": plain(str(line.response)[:40]), "mode": "lines+markers"}
            values = [f"{value:.3f}" for value in (line.before, line.after, line.score)]
            figure.add_scatter(x=list(STAGES.values()), y=places, hovertext=values, **told)
        figure.update_yaxes(autorange="reversed", dtick=1)
        return figure

    def html(self, index: int) -> str:
        """One list as a table in the order of its scores; a pure function of its number."""
        rows = self.positions(index).sort_values("score_position")
        cells = "".join(
            f"<tr><td>{r['score']:+.2f}</td><td>{r['before_position']:g} ({r['before']:.2f})</td>"
            f"<td>{r['after_position']:g} ({r['after']:.2f})</td>"
            f'<td style="text-align:left;white-space:pre-wrap">{html.escape(str(r["response"]))}</td></tr>'
            for r in rows.to_dict("records")
        )
        head = "<tr><th>score</th><th>position before (nats a token)</th><th>position after</th><th>answer</th></tr>"
        prompt = html.escape(str(rows["prompt"].iloc[0]))
        heading = f"<b>{index + 1} of {len(self.lists)}: {prompt}</b>"
        return f'<div class="ranked-list">{heading}<table>{head}{cells}</table></div>'

    def widget(self):
        """Live face: a slider (arrow keys), the table and the slope chart."""
        import ipywidgets as w

        slider = w.IntSlider(value=0, min=0, max=len(self.lists) - 1, description="list")
        view, chart = w.HTML(), w.Output()

        def show(index: int) -> None:
            view.value = self.html(index)
            data = {"application/vnd.plotly.v1+json": json.loads(self.figure(index).to_json() or "{}")}
            chart.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)

        show(0)
        slider.observe(lambda change: show(change["new"]), names="value")
        return w.VBox([slider, view, chart])
