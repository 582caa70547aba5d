"""The pruned search of SPHERE: a problem's tree with what was cut, the yield of each stage, what each arm ends with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.figures import Display, Look, blank, plain
from workbench.methods.align.sphere.experiment import ARMS
from workbench.methods.align.sphere.method import noise_of
from workbench.methods.align.sphere.pairs import KINDS
from workbench.methods.views import ends_figure, seed_folder, start_means

MEASURES = {
    "quality": "right answers, greedy",
    "valid_steps": "steps before the first wrong one",
    "closes": "ends as it should",
}
SIDES = {"max": Look("best chain", "#0072B2"), "min": Look("worst chain", "#D55E00")}


def accuracy_figure(table: pd.DataFrame) -> Display:
    """What every arm that trains the policy ends with, one panel a measure; the dotted line is the start."""
    arms = [arm for arm in ARMS if arm in set(table["arm"]) and ARMS[arm].learner == "policy"]
    rows: Any = table[table["arm"].isin(arms)]
    measures = [key for key in MEASURES if key in table]
    ends, starts = rows[rows["round"] == 1], start_means(rows, measures)
    main = ends[ends["arm"] == arms[0]]["quality"].mean()
    title = f"{ARMS[arms[0]].title}: {main:.1%} right answers, from {starts['quality']:.1%} at the start"
    return ends_figure(ends, measures, title, {**ARMS, **MEASURES}, x_title="share", starts=starts, shared=True)


def yield_table(results: Sequence[dict]) -> pd.DataFrame:
    """Pairs a 100 problems, for each stage and difficulty, of the arm with all stages; mean over seeds."""
    arm = "sphere" if "sphere" in results[0]["search"] else next(iter(results[0]["search"]))
    rows = []
    for result in results:
        problems, made = result["search"][arm]["problems"], result["search"][arm]["table"]
        rows += [
            {"stage": f"{stage} {KINDS[stage]}", "band": band, "pairs": 100 * made.count([stage, band]) / n}
            for stage in (1, 2, 3)
            for band, n in problems.items()
        ]
    means: Any = pd.DataFrame(rows).groupby(["stage", "band"], sort=False)["pairs"].mean()
    return means.reset_index()


def yield_figure(results: Sequence[dict]) -> Display:
    """The yield table as bars."""
    table = yield_table(results)
    figure = blank("Where each stage finds its pairs", "difficulty", "pairs from 100 problems", barmode="group")
    for stage, rows in table.groupby("stage", sort=False):
        figure.add_bar(x=rows["band"], y=rows["pairs"], name=plain(str(stage)))
    return Display(table, figure)


def cost_table(results: Sequence[dict]) -> pd.DataFrame:
    """Pairs, samples and tokens of every arm's data, and how wrong its rejected answers are; mean over seeds."""
    names = ["pairs", "pairs_found", "samples", "tokens", "most_of_2ED", "wrong_steps", "rejected_wrong"]
    rows = [
        {"arm": ARMS[arm].title, **{name: float(made.get(name, float("nan"))) for name in names}}
        for result in results
        for arm, made in result["search"].items()
        if ARMS[arm].learner == "policy" and ARMS[arm].labels == "true"
    ]
    means: Any = pd.DataFrame(rows).groupby("arm", sort=False).mean()
    return means.assign(tokens_a_pair=means["tokens"] / means["pairs_found"]).round(2)


def tree(experiment: Any, *, seed: int | None = None, number: int = 0, arm: str = "") -> Display:
    """The search of one problem: both chains, and the candidates that were cut at every depth (small, grey).

    Raises:
        ValueError: that problem's tree was not kept; the kept ones are named.
    """
    arm = arm or experiment.config.arms[0]
    nodes: Any = pd.read_parquet(f"{_searches(experiment, seed, arm)}-stage1-tree.parquet")
    rows = nodes[nodes["number"] == number]
    if rows.empty:
        raise ValueError(f"no tree of problem {number} was kept; kept are {sorted(set(nodes['number']))}")
    return tree_of(rows)


def tree_of(rows: Any) -> Display:
    """The drawing of a tree from its nodes: depth downwards, process reward from left to right."""
    rows = rows.reset_index(drop=True)
    picked = rows[rows["picked"]]
    ends = {side: picked[picked["chain"] == side]["score"].iloc[-1] for side in SIDES if side in set(picked["chain"])}
    title = "; ".join(f"{SIDES[side].title} ends at {score:.2f}" for side, score in ends.items())
    title = f"One search, {len(rows) - len(picked)} of {len(rows)} candidates cut: {title}"
    figure = blank(title, "process reward of the step", "depth (steps)")
    for side, look in SIDES.items():
        of_side = rows[rows["chain"] == side]
        chain = of_side[of_side["picked"]].sort_values("depth")
        parents = chain[["depth", "score"]].assign(depth=chain["depth"] + 1)
        cut = of_side[~of_side["picked"]].merge(parents, on="depth", suffixes=("", "_before"), how="left")
        xs, ys = [], []
        for node in cut.to_dict("records"):
            before = node["score_before"] if node["score_before"] == node["score_before"] else 0.5
            xs += [before, node["score"], None]
            ys += [node["depth"] - 1, node["depth"], None]
        thin = {"mode": "lines", "line": {"color": "#D0D0D0", "width": 1}, "hoverinfo": "skip", "showlegend": False}
        figure.add_scatter(x=xs, y=ys, **thin)
        grey = {"mode": "markers", "marker": {"color": "#B0B0B0", "size": 6}, "showlegend": False}
        told = {
            "text": [plain(step) for step in cut["step"]],
            "hovertemplate": "cut: %{text}<br>%{x:.2f}<extra></extra>",
        }
        figure.add_scatter(x=cut["score"], y=cut["depth"], **grey, **told)
        line: Any = {"mode": "lines+markers+text", "name": look.title, "line": {"color": look.colour}}
        line |= {"marker": {"size": 9}, "text": ["", *(plain(step.strip()[:24]) for step in chain["step"])]}
        xs, ys = [0.5, *chain["score"]], [-1, *chain["depth"]]
        figure.add_scatter(x=xs, y=ys, textposition="middle right", **line)
    figure.update_yaxes(autorange="reversed")
    figure.update_xaxes(range=[-0.02, 1.2])
    figure.update_layout(height=560)
    return Display(rows, figure)


def pairs(experiment: Any, *, seed: int | None = None, arm: str = "") -> pd.DataFrame:
    """The training pairs of one seed; `source` is the kind of pair."""
    arm = arm or experiment.config.arms[0]
    searches = _searches(experiment, seed, arm)
    tables = [pd.read_parquet(f"{searches}-pairs{stage}.parquet") for stage in ARMS[arm].stages]
    joined: Any = pd.concat(tables, ignore_index=True)
    return joined.rename(columns={"kind": "source"})[["source", "prompt", "chosen", "rejected"]]


def _searches(experiment: Any, seed: int | None, arm: str) -> str:
    """What the files of the searches with this arm's process reward model begin with."""
    return f"{seed_folder(experiment, seed)}/search/prm-{noise_of(experiment.config, ARMS[arm]):g}"
