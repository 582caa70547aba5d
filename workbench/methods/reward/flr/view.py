"""Follow-ups: how likely each phrase is behind a response, the ranking test, mined pairs, what policies learned."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.figures import Display, Note, blank, dots_in_panels, plain
from workbench.methods.experiment import Experiment, Results
from workbench.methods.views import TablePages, curves, ends_figure, seed_folder, start_means
from workbench.runs.files import read_json
from workbench.runs.run import Run

MEASURES = {"quality": "quality of samples", "greedy": "quality of greedy answers", "flr": "mean FLR (nats a token)"}
RANKERS = {
    "flr": "FLR",
    "flr_one_phrase": "FLR, one phrase",
    "flr_positive": "FLR, positive phrases only",
    "flr_sum": "FLR, sum over words",
    "flr_official_raw_logit": "raw logits of the released script",
    "tuned": "FLR, tuned on feedback",
    "swapped": "FLR, tuned with roles swapped",
    "tuned_official_raw_logit": "raw logits, tuned on feedback",
    "mistuned": "FLR, tuned on shuffled feedback",
    "deaf": "FLR, listener who does not listen",
    "own_likelihood": "own likelihood",
    "length": "length",
}
SCORERS = {"flr": "start as scorer", "tuned": "tuned scorer", "mistuned": "tuned on shuffled feedback"}
SIDES = {"positive": "#0072B2", "negative": "#D55E00"}


def ranking_figure(experiment: Experiment, results: Results) -> Display | Note:
    """Pairwise accuracy of the reward and of its controls on held-out pairs."""
    if "ranking" not in results.arms:
        return Note("This run has no ranking test; add the arm 'ranking'.")
    test = "held-out pairs in the right order"
    rows = [
        {"test": test, "arm": name, "seed": seed, "accuracy": result["arms"]["ranking"][0][name]}
        for seed, result in zip(experiment.seeds, results, strict=True)
        for name in RANKERS
        if name in result["arms"]["ranking"][0]
    ]
    flr, own = (results("ranking", name).mean() for name in ("flr", "own_likelihood"))
    title = f"FLR orders {flr:.0%} of the pairs, the model's own likelihood {own:.0%}"
    titles: Any = {"title": title, "x_title": "share of pairs", "labels": RANKERS, "lines": {test: {"chance": 0.5}}}
    return dots_in_panels(pd.DataFrame(rows), panel="test", y="accuracy", **titles)


def policies_figure(experiment: Experiment, table: pd.DataFrame) -> Display | Note:
    """What every policy ends with, one panel a measure; the dotted line is the start."""
    trained: Any = table[table["arm"] != "ranking"]
    if trained.empty:
        return Note("This run trained no policy; add arms beside 'ranking'.")
    measures = [key for key in MEASURES if key in trained and trained[key].notna().all()]
    ends, starts = trained[trained["round"] == 1], start_means(trained, measures)
    mean, arms = ends.groupby("arm")["quality"].mean(), experiment.config.ARMS
    arm = "dpo_flr" if "dpo_flr" in mean else str(mean.index[0])
    title = f"{arms[arm].title}: quality {mean[arm]:.2f}, from {starts['quality']:.2f} at the start"
    return ends_figure(ends, measures, title, {**arms, **MEASURES}, starts=starts)


def margins_figure(experiment: Experiment, *, seed: int | None = None) -> Display | Note:
    """How far apart the reward holds the chosen and the rejected sample of each mined pair."""
    paths = sorted((seed_folder(experiment, seed) / "shared").glob("pairs-*/pairs.parquet"))
    if not paths:
        return Note("This run mined no pairs.")
    tables = [pd.read_parquet(path).assign(scorer=path.parent.name.removeprefix("pairs-")) for path in paths]
    table: Any = pd.concat(tables, ignore_index=True)[["scorer", "prompt", "chosen", "rejected", "margin"]]
    title = "Mined pairs: FLR of the chosen minus the rejected sample"
    figure = blank(title, "margin (nats a token)", "pairs", barmode="overlay")
    for scorer, rows in table.groupby("scorer", sort=False):
        figure.add_histogram(x=rows["margin"], name=SCORERS[str(scorer)], opacity=0.55, nbinsx=40)
    return Display(table, figure)


def overshoot_figure(experiment: Experiment) -> Display | Note:
    """The training margin of DPO at the common learning rate and at three times it."""
    rows = [
        {"measure": "margin", "arm": arm, "seed": seed, "step": step["step"], "value": step["margins"]}
        for seed in experiment.seeds
        for arm in ("dpo_flr", "dpo_fast")
        for step in Run(seed_folder(experiment, seed) / arm / "round-1").metrics()
    ]
    if not rows:
        return Note("This run has neither dpo_flr nor dpo_fast.")
    title, labels = "The margin of rewards grows with either rate", {"margin": "training pairs"}
    labels = {**experiment.config.ARMS, **labels}
    return curves(rows, "step", title, "step", "margin (nats x beta)", labels, panel="measure")


def mining(experiment: Experiment) -> pd.DataFrame:
    """What became of the prompts, and whether the reward favours long responses, by seed and scorer."""
    rows = [
        {"seed": seed, "scorer": path.parent.name.removeprefix("pairs-"), **read_json(path)}
        for seed in experiment.seeds
        for path in sorted((seed_folder(experiment, seed) / "shared").glob("pairs-*/report.json"))
    ]
    return pd.DataFrame(rows).fillna(0).round(3)


def scored(experiment: Experiment, *, seed: int | None = None, scorer: str = "flr") -> tuple[pd.DataFrame, list]:
    """Responses of the ranking test of one seed with the likelihoods of all phrases; and the phrases in that order."""
    folder = seed_folder(experiment, seed) / "ranking"
    return pd.read_parquet(folder / f"scores-{scorer}.parquet"), read_json(folder / "phrases.json")


class FollowUpBrowser(TablePages):
    """Response by response: the likelihood of every phrase, positive beside negative.

    Live, a list to pick from (arrow keys) and the phrases of the picked response; without a kernel the first responses.

    Args:
        table: columns prompt, response, side, flr, likelihoods; see `scored`.
        phrases: (dimension, polarity, phrase) of every likelihood.
    """

    def __init__(self, table: pd.DataFrame, phrases: Sequence[Sequence[str]], *, shown: int = 3):
        if table.empty:
            raise ValueError("no scored responses to show; add the arm 'ranking'")
        if (n := len(table["likelihoods"].iloc[0])) != len(phrases):
            raise ValueError(f"{len(phrases)} phrases for {n} likelihoods: not the set they were scored with")
        super().__init__(table.drop_duplicates(["prompt", "response"], ignore_index=True), shown)
        self.phrases = [tuple(row) for row in phrases]

    def frame(self) -> pd.DataFrame:
        """One row a response and phrase."""
        return pd.concat([self._phrases(i) for i in range(len(self.table))], ignore_index=True)

    def _phrases(self, index: int) -> pd.DataFrame:
        row = self.table.iloc[index]
        rows = pd.DataFrame(self.phrases, columns=["dimension", "polarity", "phrase"])
        return rows.assign(prompt=row["prompt"], response=row["response"], likelihood=list(row["likelihoods"]))

    def figure(self, index: int = 0):
        """Bars of the picked response's phrases, less likely to the left."""
        rows, row = self._phrases(index), self.table.iloc[index]
        title = f"FLR {row['flr']:+.3f}: {plain(str(row['response'])[:60])}"
        figure = blank(title, "log-likelihood (nats a token)", "", height=120 + 20 * len(rows))
        for polarity, part in rows.groupby("polarity", sort=False):
            names = [plain(f"{d}: {phrase}") for d, phrase in zip(part["dimension"], part["phrase"], strict=True)]
            look = {"orientation": "h", "name": str(polarity), "marker_color": SIDES[str(polarity)]}
            figure.add_bar(x=part["likelihood"], y=names, **look)
        figure.update_yaxes(autorange="reversed")
        return figure

    def length_figure(self) -> Display:
        """FLR against the number of words, one point a response: a reward that follows length is a warning."""
        table: Any = self.table.assign(words=[len(str(text).split()) for text in self.table["response"]])
        figure = blank("FLR against the length of the response", "words", "FLR (nats a token)")
        for side, rows in table.groupby("side", sort=False):
            where = np.random.default_rng(0).uniform(-0.2, 0.2, len(rows))  # so that points of one length stay apart
            marker = {"size": 5, "color": SIDES["positive" if side == "chosen" else "negative"]}
            look = {"mode": "markers", "name": plain(str(side)), "opacity": 0.6, "marker": marker}
            figure.add_scatter(x=rows["words"] + where, y=rows["flr"], **look)
        return Display(table[["prompt", "response", "side", "words", "flr"]], figure)

    def html(self, index: int) -> str:
        """One response and its phrases as HTML, positive beside negative; a pure function of its number."""
        row, rows = self.table.iloc[index], self._phrases(index)
        ordered = rows.sort_values("likelihood", ascending=False)
        sides: Any = {p: ordered[ordered["polarity"] == p] for p in SIDES}
        columns = "".join(
            f'<td style="vertical-align:top;text-align:left"><b style="color:{SIDES[p]}">{p}</b>'
            + "".join(
                f"<div>{r['likelihood']:.3f} {html.escape(str(r['phrase']))}"
                f" <small>{html.escape(str(r['dimension']))}</small></div>"
                for r in part.to_dict("records")
            )
            + "</td>"
            for p, part in sides.items()
        )
        heading = f"<b>{index + 1} of {len(self.table)}, FLR {row['flr']:+.3f}</b>"
        said = f"{html.escape(str(row['prompt']))} → {html.escape(str(row['response']))}"
        return f'<div class="follow-ups">{heading} {said}<table><tr>{columns}</tr></table></div>'

    def widget(self):
        """Live face: a list of responses and the phrases of the one picked."""
        import ipywidgets as w

        entries: Any = self.table.itertuples()
        options = [(f"{row.flr:+.3f}  {str(row.response)[:60]}", i) for i, row in enumerate(entries)]
        pick, view = w.Select(options=options, value=0, rows=8, layout={"width": "100%"}), w.HTML(self.html(0))
        pick.observe(lambda change: setattr(view, "value", self.html(change["new"])), names="value")
        return w.VBox([pick, view])


def browser(experiment: Experiment, *, seed: int | None = None, scorer: str = "flr") -> FollowUpBrowser:
    """The browser over one seed's ranking test."""
    return FollowUpBrowser(*scored(experiment, seed=seed, scorer=scorer))
