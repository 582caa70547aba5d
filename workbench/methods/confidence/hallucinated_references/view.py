"""References side by side: the authors named each time, how far they agree, and whether the model says "it exists"."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.figures import Display, Look, Note, blank, look_of, plain
from workbench.methods.confidence.hallucinated_references.recorded import PUBLISHED
from workbench.methods.confidence.hallucinated_references.scores import RATES
from workbench.methods.views import curves, dots, named_lines, seed_folder, whiskers
from workbench.widgets.confidence_ranking import ConfidenceRanking
from workbench.widgets.paging import Paged

Results = Sequence[Mapping[str, Any]]

SCORES = {
    "IQ": Look("IQ: who wrote it?", "#0072B2"),
    "DQ1": Look("DQ1: does it exist?", "#D55E00"),
    "DQ2": Look("DQ2: in a dialogue", "#A6761D"),
    "DQ3": Look("DQ3: number k of the list", "#CC79A7"),
    "DQ": Look("DQ: mean of the direct ones", "#E69F00"),
    "IQ_DQ": Look("IQ+DQ", "#009E73"),
    "IQ_DQ1": Look("IQ+DQ1", "#56B4E9"),
    "IQ_DQ2": Look("IQ+DQ2", "#56B4E9"),
    "IQ_DQ3": Look("IQ+DQ3", "#56B4E9"),
    "IQ_jaccard": Look("IQ by Jaccard", "#999999"),
    "IQ_containment": Look("IQ by containment", "#999999"),
    "IQ_judge": Look("IQ by a judge", "#999999"),
    "authors_logp": Look("log-prob of the authors"),
}
ARMS = {
    "simulated": "a simulated model, told what it knows",
    "transformer": "a transformer that has read about books",
    "references": "real references",
    "gpt-4": "GPT-4 (recorded)",
    "gpt-3.5-turbo": "GPT-3.5 (recorded)",
    "text-davinci-003": "davinci-003 (recorded)",
}
LABELS = {**SCORES, **ARMS}
NO_LABELS = Note(
    "No reference of this run has a label, so there is nothing to measure; the scores are in scores.parquet."
)


def _parts(results: Results) -> dict[str, list[Mapping[str, Any]]]:
    """Measured results by arm: those of each seed that has the arm."""
    found: dict[str, list] = {}
    for result in results:
        for arm, part in result["arms"].items():
            if part.get("n_measured"):
                found.setdefault(arm, []).append(part)
    return found


def ensembles(results: Results) -> Display | Note:
    """AUROC for invented references of every score: over seeds, or over topics where results are recorded."""
    parts = _parts(results)
    if not parts:
        return NO_LABELS
    said = []
    for arm, each in parts.items():
        best = max(("IQ", "DQ", "IQ_DQ"), key=lambda name, of=each[0]["auroc"]: of.get(name, [-1])[0])
        area = np.mean([part["auroc"][best][0] for part in each])
        said.append(f"{SCORES[best].title.split(':')[0]} {area:.3f} ({_short(arm)})")
    rows = [
        {"panel": arm, "arm": name, "seed": seed, "value": area[0]}
        | {"mean": area[0], "lower": area[1], "upper": area[2], "n": part["n_topics"]}
        for arm, each in parts.items()
        for seed, part in enumerate(each)
        for name, area in part["auroc"].items()
    ]
    table = pd.DataFrame(rows).dropna(subset=["value"])
    if table.empty:
        return Note("AUROC is undefined here: all labelled references are real, or all are invented.")
    chance = {arm: {"chance": 0.5} for arm in parts}
    display = dots(table, f"Best score: {', '.join(said)}", "AUROC for invented references", LABELS, chance)
    if results[0]["replies"]:
        return display
    first: Any = table[table["seed"] == 0]  # nothing was drawn anew: the bars are over topics
    traces: Any = display.figure().data
    for trace, (_, rows) in zip(traces, first.groupby("panel", sort=False), strict=False):
        trace.error_x.update(whiskers(rows, "mean"))
        trace.customdata = rows[["lower", "upper", "n"]]
    return Display(first.drop(columns=["seed", "value"]), display.figure())


def over_topics(results: Results) -> pd.DataFrame | Note:
    """AUROC and gains of the first seed with 95 % intervals from a bootstrap over topics, one row a score."""
    rows = [
        {
            "of": ARMS.get(arm, arm),
            "score or gain": SCORES[name].title if name in SCORES else name.replace("_", "+"),
            **dict(zip(("AUROC", "lower", "upper"), area, strict=True)),
            "topics": first["n_topics"],
        }
        for arm, (first, *_) in _parts(results).items()
        for kind in ("auroc", "gains")
        for name, area in first[kind].items()
    ]
    return pd.DataFrame(rows).round(3) if rows else NO_LABELS


def roc_curves(results: Results) -> Display | Note:
    """Invented references found against real ones taken for invented, at every threshold; a tie is a straight line."""
    parts = _parts(results)
    rows = [
        {"panel": arm, "arm": name, "seed": seed, "false": x, "value": y}
        for arm, each in parts.items()
        for seed, part in enumerate(each)
        for name, ys in part["roc"].items()
        for x, y in zip(RATES, ys, strict=True)
    ]
    if not rows:
        return NO_LABELS
    areas = ", ".join(
        f"{np.mean([p['auroc']['IQ'][0] for p in each]):.3f} ({_short(arm)})" for arm, each in parts.items()
    )
    title = f"Area under the curve of IQ: {areas}"
    return curves(rows, "false", title, "real ones taken for invented", "invented ones found", LABELS)


def fdr_curves(results: Results) -> Display | Note:
    """Share of invented references among those kept, best score first, expected over ties.

    Bands are 95 % intervals over seeds; of recorded results, where nothing is drawn anew, a bootstrap over topics.
    """
    parts = _parts(results)
    rows = [
        {"panel": arm, "arm": name, "seed": seed, "kept": x, "value": y, "low": low, "high": high}
        for arm, each in parts.items()
        for seed, part in enumerate(each)
        for name, curve in part["curves"].items()
        for x, y, low, high in curve
    ]
    if not rows:
        return NO_LABELS
    table = pd.DataFrame(rows)
    above = []
    for arm, each in parts.items():
        share, fdr, rate = np.mean([[*part["kept"]["IQ"][2][2:], part["rate"][0]] for part in each], axis=0)
        above.append(f"{fdr:.0%} not {rate:.0%}, {share:.0%} kept ({_short(arm)})")
    title, axes = f"Invented above IQ .5: {'; '.join(above)}", ("share of references kept", "share of invented ones")
    display = curves(table, "kept", title, axes[0], f"{axes[1]} among them", LABELS)
    if results[0]["replies"]:
        return display
    first: Any = table[table["seed"] == 0]
    for column, (_, panel) in enumerate(first.groupby("panel", sort=False), start=1):
        for name, line in panel.groupby("arm", sort=False):
            outline = {"x": [*line["kept"], *line["kept"][::-1]], "y": [*line["high"], *line["low"][::-1]]}
            area = {"fill": "toself", "mode": "lines", "fillcolor": look_of(str(name), SCORES).colour, "opacity": 0.15}
            quiet = {"line": {"width": 0}, "hoverinfo": "skip", "showlegend": False, "legendgroup": str(name)}
            display.figure().add_trace(go.Scatter(**outline, **area, **quiet), row=1, col=column)
    return Display(first.drop(columns="seed"), display.figure())


def exposure(experiment: Any) -> Display | Note:
    """What the transformer says of a title against how often it read it; 0 are invented titles."""
    paths = {seed: seed_folder(experiment, seed) / "transformer" / "scores.parquet" for seed in experiment.seeds}
    tables = []
    for seed, path in paths.items():
        if path.is_file():
            read: Any = pd.read_parquet(path).groupby("exposure")[["IQ", "DQ1"]].mean()
            tables.append(read.reset_index().assign(seed=seed))
    if not tables:
        return Note("No seed of this run trains a transformer; see `book_seeds`.")
    table = pd.concat(tables).melt(["exposure", "seed"], ["IQ", "DQ1"], "arm", "value").assign(panel="transformer")
    table["place"] = table["exposure"].rank(method="dense") - 1
    means: Any = table.groupby(["arm", "exposure"])["value"].mean()
    seen = sorted(set(table["exposure"]))
    ends = {name: [f"{means[name, n]:.2f}" for n in (seen[0], seen[-1])] for name in ("IQ", "DQ1")}
    title = "Never read to most read: " + ", ".join(f"{name} {a} to {b}" for name, (a, b) in ends.items())
    x_title = "lines about the title in the corpus (relative; 0: never read)"
    display = curves(table, "place", title, x_title, "mean score", LABELS)
    display.figure().update_xaxes(tickvals=list(range(len(seen))), ticktext=[str(n) for n in seen])
    return display


def means(results: Results) -> pd.DataFrame | Note:
    """Mean of each score over real and over invented references, and its AUROC; mean over seeds."""
    rows = []
    for arm, each in _parts(results).items():
        for name in each[0]["auroc"]:
            real, invented = np.mean([part["means"][name] for part in each], axis=0)
            area = np.mean([part["auroc"][name][0] for part in each])
            label = {"of": ARMS.get(arm, arm), "score": look_of(name, SCORES).title}
            rows.append({**label, "real": real, "invented": invented, "AUROC": area})
    return pd.DataFrame(rows).round(3) if rows else NO_LABELS


def checks(results: Results) -> pd.DataFrame | Note:
    """What could not be read and was therefore left out, sums over seeds, one column an arm."""
    columns: dict[str, dict[str, Any]] = {}
    for arm in dict.fromkeys(arm for result in results for arm in result["arms"]):
        each = [result["arms"][arm] for result in results if arm in result["arms"]]
        if "n_author_samples" not in each[0]:
            continue

        def total(key: str, each: list = each) -> int:
            return sum(sum(part[key].values()) if isinstance(part[key], dict) else part[key] for part in each)

        columns[str(ARMS.get(arm, arm))] = {
            "references": total("n"),
            "with a title that stands there before": total("duplicates"),
            "topics without a title": sum(len(part["topics_without_titles"]) for part in each),
            "lists with more or fewer titles than asked": total("lists_of_another_length"),
            "author replies without names": f"{total('unread_authors')} of {total('n_author_samples')}",
            "references with fewer than two usable ones": total("below_two_usable"),
            "direct replies with neither yes nor no first": f"{total('unread_direct')} of {total('n_direct')}",
            "judgments that could not be read": f"{total('unread_judgments')} of {total('n_judgments')}",
            "labelled references left out for a missing score": total("n_labelled") - total("n_measured"),
        }
    return pd.DataFrame(columns) if columns else Note("Recorded results: nothing was asked.")


def experts(results: Results) -> pd.DataFrame | Note:
    """Labels of experts beside those of the search, where they are recorded."""
    found = results[0].get("experts")
    if not found:
        return Note(
            "The labels of experts are in the recorded results: give their .json as `dataset`, without a model."
        )
    low, high = found["pairwise"]
    agreement = {**found["with_search"], "any two, lowest": low, "any two, highest": high}
    agreement["all, Fleiss' kappa"] = found["fleiss_kappa"]
    table = pd.DataFrame(agreement.items(), columns=["expert", "agreement (experts: with the search)"])
    return table.assign(titles=found["n"]).round(3)


def published(results: Results) -> pd.DataFrame | Note:
    """Recorded models: the paper's figures and those that come out of its scores again."""
    rows = []
    for model, part in results[0]["arms"].items():
        again = {name: area[0] for name, area in part["auroc"].items()} | {"rate": part["rate"][0]}
        for name, value in PUBLISHED.get(model, {}).items():
            if name in again:
                figure = "share invented" if name == "rate" else f"AUROC, {SCORES[name].title}"
                numbers = {"paper": value, "again": round(again[name], 4)}
                rows.append({"model": ARMS.get(model, model), "figure": figure, **numbers})
    return pd.DataFrame(rows) if rows else Note("Nothing was recorded by others in this run.")


def _short(arm: str) -> str:
    return ARMS.get(arm, arm).split(",")[0].split(" that")[0].removeprefix("a ").removesuffix(" (recorded)")


def _tables(experiment: Any, seed: int | None, arm: str, name: str) -> list[Path]:
    """The stored tables of that name, of one seed (the first by default) and arm (each by default)."""
    return sorted(seed_folder(experiment, seed).glob(f"{arm or '*'}/{name}.parquet"))


def ranking(experiment: Any, *, seed: int | None = None, arm: str = "") -> ConfidenceRanking | Note:
    """The titles by how real they look, in the ranking inspector; those without every score are left out."""
    paths = _tables(experiment, seed, arm, "scores")
    table: Any = pd.read_parquet(paths[0]) if paths else pd.DataFrame()
    if "gen_title" not in table:
        return Note("The recorded results hold no titles, so there is nothing to rank by eye.")
    names = [name for name in ("IQ_DQ", "IQ", "DQ", "DQ1", "DQ2", "DQ3") if name in table]
    table = table.dropna(subset=names)
    columns = {"ref_id": "qid", "topic": "question", "gen_title": "answer", "grounded": "correct"}
    labels = {name: look.title for name, look in SCORES.items()}
    return ConfidenceRanking(table[[*columns]].rename(columns=columns), dict(table[names].items()), labels=labels)


class ReferenceCards(Paged):
    """Reference by reference: the authors named in each session, the overlap of each pair, and the shares of "yes".

    Args:
        tables: `references`, `samples`, `agreements` and `scores` of one seed and arm; see `cards`.
        shown: references on the static face.
    """

    noun = "reference"

    def __init__(self, tables: Mapping[str, pd.DataFrame], *, shown: int = 4):
        scores = tables["scores"]
        if scores.empty:
            raise ValueError("no references to show; look at the lists in samples.parquet and transcript.jsonl")
        self.tables, self.shown = tables, shown
        self.scores = scores.sort_values("IQ", ascending=False, na_position="last", ignore_index=True)

    @property
    def n_pages(self) -> int:
        return len(self.scores)

    def frame(self) -> pd.DataFrame:
        wanted = ["ref_id", "topic", "gen_title", "grounded", "duplicate_of", *SCORES]
        table: Any = self.scores[[name for name in wanted if name in self.scores]]
        return table.round(3)

    def figure(self) -> go.Figure:
        """All references, IQ against the mean direct question; the title where the mouse is."""
        direct = "DQ" if "DQ" in self.scores else "DQ1"
        title = "Every reference: agreement of its authors against the direct question"
        figure = blank(title, SCORES["IQ"].title, SCORES[direct].title)
        for label, name, shade in ((1, "real", "#0072B2"), (0, "invented", "#D55E00"), (None, "unknown", "#999999")):
            grounded = self.scores["grounded"]
            rows: Any = self.scores[grounded.isna() if label is None else grounded == label]
            if len(rows) and direct in rows:
                look: Any = {"mode": "markers", "marker": {"color": shade, "size": 7, "opacity": 0.6}}
                look |= {"text": [plain(title) for title in rows["gen_title"]], "hoverinfo": "text+x+y"}
                figure.add_scatter(x=rows["IQ"], y=rows[direct], name=name, **look)
        return figure

    def html(self, index: int) -> str:
        """One reference as HTML; a pure function of its number in the order of IQ."""
        row = self.scores.iloc[index]
        mine: Any = self.tables["samples"].query("ref_id == @row.ref_id")
        pairs = self.tables["agreements"].query("ref_id == @row.ref_id")
        label = {1.0: "exists", 0.0: "does not exist"}.get(row["grounded"], "not known whether it exists")
        said: Any = mine[mine["query"] == "IQ"].sort_values("sample_index")
        lines = [("title", str(row["gen_title"]), ""), ("topic", str(row["topic"]), ""), ("truth", label, "")]
        if row.get("duplicate_of"):
            lines.append(("note", f"the same title as {row['duplicate_of']}", ""))
        lines += [
            (f"authors, session {i + 1}", str(text), "" if value == value else "no names: left out")
            for i, text, value in zip(said["sample_index"], said["text"], said["value"], strict=True)
        ]
        for method, some in pairs.groupby("method", sort=False):
            each = ", ".join(
                f"{i + 1} and {j + 1}: {_number(overlap)}"
                for (i, j), overlap in zip(some["pair"], some["overlap"], strict=True)
            )
            lines.append((f"overlap by {method}", each, f"mean {_number(row.get(f'IQ_{method}'))}"))
        for kind, some in mine[mine["query"] != "IQ"].groupby("query"):
            unread, yes = int(some["value"].isna().sum()), f"yes {int(some['value'].sum())}"
            note = f"{unread} with neither left out" if unread else ""
            lines.append((look_of(str(kind), SCORES).title, f"{yes} of {int(some['value'].count())}", note))
        listed = (
            f"<details><summary>the whole list</summary><pre>{html.escape(str(row['list_text']))}</pre></details>"
            if row["list_text"]
            else ""
        )
        heading = f"{index + 1} of {self.n_pages}: IQ {_number(row['IQ'])}, IQ+DQ {_number(row.get('IQ_DQ'))}"
        table = named_lines([(name, html.escape(text), note) for name, text, note in lines], nowrap=True)
        return f'<div class="reference-card"><b>{heading}</b>{table}{listed}</div>'


def _number(value: Any) -> str:
    return "missing" if value is None or value != value else f"{value:.2f}"


def cards(experiment: Any, *, seed: int | None = None, arm: str = "") -> ReferenceCards | Note:
    """The references of one seed (the first) and arm (the first), in the order of their agreement."""
    paths = _tables(experiment, seed, arm, "samples")
    if not paths:
        return Note("Recorded results have scores alone; there are no replies to show.")
    names = ("references", "samples", "agreements", "scores")
    return ReferenceCards({name: pd.read_parquet(paths[0].parent / f"{name}.parquet") for name in names})
