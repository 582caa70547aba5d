"""Read or write: the path of a simultaneous translator over the grid of source and target, and curves of SimulPL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, blank, look_of, plain
from workbench.methods.experiment import Experiment, Results
from workbench.methods.views import ends_figure, seed_folder

MEASURES = {
    "quality": "quality",
    "monotonicity": "words in source order",
    "key_points": "key points kept",
    "words_per_clause": "words a clause",
    "AL": "AL (source words)",
}
READERS = {"confidence": ("", "solid"), "wait_k": (", wait-k", "dash"), "random": (", random decisions", "dot")}


def curves(experiment: Experiment, results: Results) -> pd.DataFrame:
    """One row for each arm, seed, reader and setting, with all that was measured there."""
    rows = [
        {"arm": arm, "seed": seed, **point}
        for seed, result in zip(experiment.seeds, results, strict=True)
        for arm, curve in result["curves"].items()
        for point in curve
    ]
    return pd.DataFrame(rows)


def curve_figure(
    experiment: Experiment,
    results: Results,
    arms: Sequence[str] = ("simul_dpo", "msft", "dpo", "preferred", "offline"),
) -> Display:
    """Quality against latency, one line an arm and reader: means over seeds at each setting of the sweep."""
    rows: Any = curves(experiment, results)
    rows = rows[rows["arm"].isin(list(arms))]
    means: Any = rows.groupby(["arm", "reader", "value"], sort=False)[["AL", "quality"]].mean().reset_index()
    best = means[means["arm"] == "simul_dpo"].nlargest(1, "quality")
    title = "Quality against latency"
    if len(best):
        title += f": SimulDPO reaches {best['quality'].iloc[0]:.0%} at AL {best['AL'].iloc[0]:.2f}"
    figure = blank(title, "AL (source words)", "quality")
    for (arm, reader), points in means.groupby(["arm", "reader"], sort=False):
        ordered, look = points.sort_values("value"), look_of(str(arm), experiment.config.ARMS)
        suffix, dash = READERS[str(reader)]
        line: Any = {"line": {"color": look.colour, "dash": dash}, "mode": "lines+markers"}
        line |= {"name": plain(look.title + suffix), "text": ordered["value"].astype(str)}
        line["hovertemplate"] = "%{text}: AL %{x:.2f}, %{y:.3f}<extra></extra>"
        figure.add_scatter(x=ordered["AL"], y=ordered["quality"], **line)
    return Display(means, figure)


def aspect_figure(experiment: Experiment, results: Results) -> Display:
    """The five preferences apart, at the threshold of the comparison: one panel each, one dot an arm."""
    table, tau = curves(experiment, results), experiment.config.tau
    rows: Any = table[(table["reader"] == "confidence") & (table["value"] == tau)]
    measures = [key for key in MEASURES if key in rows and rows[key].notna().all()]
    title = f"What listeners prefer, aspect by aspect, at tau {tau:g}"
    return ends_figure(rows, measures, title, {**experiment.config.ARMS, **MEASURES})


def counted(experiment: Experiment, results: Results) -> pd.DataFrame:
    """Latencies, truncated texts and refused ends at the threshold compared, and over wait-k's sweep; seeds' means."""
    table = curves(experiment, results)
    rows: Any = table[(table["value"] == experiment.config.tau) | (table["reader"] == "wait_k")]
    names = ["AL", "LAAL", "AP", "DAL", "length", "truncated", "early_ends"]
    return rows.groupby(["arm", "reader", "value"], sort=False)[names].mean().round(3)


def decisions(experiment: Experiment, *, arm: str = "simul_dpo", seed: int | None = None) -> pd.DataFrame:
    """Every decision of one arm on the sentences that were kept."""
    return pd.read_parquet(seed_folder(experiment, seed) / arm / "steps.parquet")


class ReadWritePath:
    """The path of one sentence: to the right is READ, upwards is WRITE; a slider moves the threshold.

    The figure holds every threshold, so its slider works without a kernel. Live, a second slider picks the sentence.

    Args:
        table: see `decisions`.
        tau: the threshold that is shown first, or the nearest there is.
    """

    def __init__(self, table: pd.DataFrame, *, tau: float = 0.7):
        kept: Any = table[table["reader"] == "confidence"]
        if kept.empty:
            raise ValueError("no decisions of a confidence policy to show; take an arm decoded with a threshold")
        self.table, self.tau = kept, tau

    def frame(self) -> pd.DataFrame:
        return self.table

    def figure(self, sentence: int = 0):
        """One path a threshold; colours are confidences, the title is the AL meter. A pure function of the sentence."""
        rows: Any = self.table[self.table["sentence"] == sentence]
        if rows.empty:
            raise ValueError(f"sentence {sentence} was not kept; kept are {sorted(set(self.table['sentence']))}")
        source = str(rows["source"].iloc[0])
        values = sorted(rows["value"].unique())
        figure = blank("", "source words read", "target words written", height=520)
        titles, first = [], min(range(len(values)), key=lambda i: abs(values[i] - self.tau))
        for value in values:
            path = rows[rows["value"] == value]
            written = path[path["action"] == "WRITE"]
            titles.append(f"tau {value:g}: AL {path['AL'].iloc[0]:.2f} ({plain(' '.join(written['text']))[:80]})")
            marker = {"size": 12, "color": path["confidence"], "colorscale": "Viridis", "cmin": 0, "cmax": 1}
            marker["symbol"] = ["square" if a == "WRITE" else "circle-open" for a in path["action"]]
            marker["colorbar"] = {"title": "confidence"}
            look: dict[str, Any] = {"mode": "lines+markers+text", "visible": bool(value == values[first])}
            look |= {"showlegend": False, "line": {"color": "#888", "shape": "linear"}, "textposition": "top left"}
            look["text"] = [plain(t) if a == "WRITE" else "" for t, a in zip(path["text"], path["action"], strict=True)]
            look["hovertemplate"] = "%{customdata[0]}, c = %{customdata[1]:.2f}<extra></extra>"
            decided = path[["action", "confidence"]]
            figure.add_scatter(x=path["read"], y=path["written"], marker=marker, customdata=decided, **look)
        steps = [
            {"label": f"{value:g}", "method": "update"}
            | {"args": [{"visible": [v == value for v in values]}, {"title.text": title}]}
            for value, title in zip(values, titles, strict=True)
        ]
        words = source.split()
        slider = {"active": first, "steps": steps, "currentvalue": {"prefix": "tau "}, "pad": {"t": 60}}
        figure.update_layout(title={"text": titles[first]}, sliders=[slider])
        figure.update_xaxes(tickvals=list(range(1, len(words) + 1)), ticktext=[plain(word) for word in words])
        return figure

    def widget(self):
        """Live face: a slider picks the sentence, the figure's own slider the threshold."""
        import ipywidgets as w
        import plotly.graph_objects as go
        from IPython.display import display

        kept = sorted({int(number) for number in self.table["sentence"]})
        slider, view = w.SelectionSlider(options=kept, description="sentence"), w.Output()

        def show(number: int) -> None:
            view.clear_output(wait=True)
            with view:
                display(go.Figure(self.figure(number)))

        slider.observe(lambda change: show(change["new"]), names="value")
        show(kept[0])
        return w.VBox([slider, view])

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        """The static face: the first kept sentence, with its slider of thresholds."""
        first = self.figure(int(self.table["sentence"].min()))
        return Display(self.table, first)._repr_mimebundle_()
