"""PreferenceBrowser: pairs, rankings and rated rows to read, compare, filter, label anew and export.

In JupyterLab Python filters and only the rows in sight travel; on a page without a kernel the same script
(`js/browser.js`) filters the rows that the page carries; `frame()`, `figure()`, `relabel()`, `export()` serve scripts.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import data, runs
from workbench.figures import blank, colour, plain
from workbench.widgets import scripted
from workbench.widgets.preference_browser import labels as labelling
from workbench.widgets.preference_browser import rows as preference_rows
from workbench.widgets.preference_browser import sources
from workbench.widgets.preference_browser.labels import Labels
from workbench.widgets.preference_browser.rows import PLACES, SOURCES, VIEW, Origin, Row, Rows, plain_value

PAGE_LIMIT = 400_000  # characters of rows that a page carries
WINDOW = 200  # rows that travel at once to JupyterLab
SNIPPET = 160  # characters of a prompt in the list
ASKED_FIRST = 200  # rows whose log-ratios are computed unless others are named
_session: dict[str, Labels] = {}  # labels made in a live view, by content: they outlive a cell that is run again


class PreferenceBrowser:
    """Rows of preferences side by side, with what differs, how sure they are, and how the policy sees them.

    Args:
        rows: dicts or a frame: pairs (`prompt`, `chosen`, `rejected`), rankings (`prompt`, `responses`, `scores` or
            `ranks`, `names`), rated rows (`prompt`, `completion`, `score`), mixed as you like. Prompts are text or
            chats. Understood beside them: `p_chosen`, `margin` (or `chosen_rewards` and `rejected_rewards`), `source`,
            `source_chosen`, `source_rejected`, `iteration`, `arm`, `seed`, `task_id`; others are shown with the row.
        name: what the rows are called in exports.
        policy, reference: with both, an opened row gets its log-ratios in JupyterLab; see `with_log_ratios`.
        page_limit: characters of rows that a rendered page carries, in the order of the view, which says what it lacks.

    Raises:
        ValueError: a row of none of these kinds, a response that is no text, a margin that is no number. Row and column
            are named. Empty responses, identical pairs, repeated rows and unknown margins are legal and are marked.
    """

    def __init__(
        self,
        rows: Sequence[Row] | pd.DataFrame | Rows,
        *,
        name: str = "",
        policy: Any = None,
        reference: Any = None,
        page_limit: int = PAGE_LIMIT,
    ):
        if isinstance(rows, Rows):
            self.rows = rows
        else:
            table = sources.of_frame(rows) if isinstance(rows, pd.DataFrame) else list(rows)
            self.rows = Rows(table, [Origin(name or "rows given in Python")])
        self.name = name or Path(self.rows.origins[0].source).stem or "rows"
        self.page_limit = page_limit
        self.view = dict(VIEW)
        self._order: np.ndarray | None = None
        self._orders: weakref.WeakKeyDictionary[Any, np.ndarray] = weakref.WeakKeyDictionary()  # what each view shows
        self._labels = copy.deepcopy(_session[self._key]) if _session and self._key in _session else Labels()
        self._ratios: Any = None
        self._shown: weakref.WeakSet[Any] = weakref.WeakSet()
        _ = self.rows.light  # bad values are named here, not at the first filter
        if policy is not None:
            self._score_with(policy, reference, 0)

    @classmethod
    def of_dataset(cls, source: str, *, split: str = "train", **options: Any) -> PreferenceBrowser:
        """From a JSONL, JSON, CSV or Parquet file, a folder, or a hub id; other projects' column names are understood.

        Raises:
            FileNotFoundError, ValueError: as `workbench.data.load`, and as the class.
        """
        name = Path(source).name if Path(source).expanduser().exists() else source
        return cls(Rows(data.load(source, split=split), [Origin(name)]), **options)

    @classmethod
    def of_run(cls, folder: str | Path, *, tables: Sequence[str] = (), **options: Any) -> PreferenceBrowser:
        """From a run folder or a part of one: every table that holds rows of the three kinds.

        Seed, arm and iteration come from the folders' names where the table has none; `source` is the table's name.

        Args:
            tables: names of the tables to read (without `.parquet`); all by default.

        Raises:
            FileNotFoundError: no such folder.
            ValueError: no such rows below it.
        """
        return cls(sources.of_run(folder, tables), **options)

    # -- what is shown
    def filter(self, **changes: Any) -> PreferenceBrowser:
        """Sets what every face shows and in what order; returns the browser itself.

        Args:
            changes: `text` (in prompt or responses, whatever the case), `low` and `high` (margins, both included),
                `source` (of the row or of one of its responses), `iteration`, `arm`, `seed`, `state` (all, relabelled,
                not relabelled, left out, identical, tie, duplicate, margin unknown), `sort` (order, margin, length,
                iteration, score), `down` (largest first). What is not named stays; `filter(**VIEW)` takes all back.

        Raises:
            ValueError: an unknown name or value; says which there are.
        """
        self.view = preference_rows.checked_view(changes, self.view)
        self._order = None
        for widget in self._widgets():
            widget.state = json.dumps(self.view)
        return self

    @property
    def order(self) -> np.ndarray:
        """Row numbers that the view shows, in its order."""
        if self._order is None:
            self._order = self.rows.order(self.view, self._labels.values)
        return self._order

    def frame(self) -> pd.DataFrame:
        """The rows that the view shows, in its order, labels applied: `row` (number) and `label` beside the columns."""
        values, rows = self._labels.values, []
        for i in map(int, self.order):
            row, label = self.rows.raw[i], labelling.preferred(self.rows.raw[i], values[i]) if i in values else ""
            rows.append({"row": i, "label": label, **(labelling.relabelled(row, values[i]) if i in values else row)})
        return pd.DataFrame(rows, columns=None if rows else ["row", "label"])

    def figure(self) -> go.Figure:
        """Of the rows that the view shows: margins by source, iteration or arm; length difference against margin."""
        from plotly.subplots import make_subplots

        table = self.rows.light.iloc[self.order]
        known = table[table["margin"].notna()]
        by = next((name for name in ("iteration", "arm", "source", "seed") if 1 < known[name].nunique() <= 12), "kind")
        unknown = len(table) - len(known)
        longer = known["length"][known["length"] != 0] > 0
        title = f"No margin is known in {len(table)} rows"
        if len(known):
            title = f"{(known['margin'] > 0).mean():.0%} of {len(known)} margins are above 0"
        title += f"; in {longer.mean():.0%} the better response is longer" if len(longer) else ""
        title += f" ({unknown} unknown)" if unknown and len(known) else ""
        panels = (f"margin by {by}", "length difference against margin")
        figure = make_subplots(1, 2, subplot_titles=panels, figure=blank(title, "", "", showlegend=False))
        for value, part in known.groupby(by, sort=False):
            ink = colour(str(value))
            name = plain(str(value)) or "(none)"
            figure.add_trace(go.Box(y=part["margin"], name=name, marker_color=ink, boxpoints="outliers"), 1, 1)
            few = part.sample(min(len(part), 3_000), random_state=0)  # more points make a page heavy and show no more
            marker = {"color": ink, "opacity": 0.4, "size": 5}
            dots = go.Scattergl(x=few["length"], y=few["margin"], mode="markers", name=name, marker=marker)
            figure.add_trace(dots, 1, 2)
        figure.update_xaxes(title=by, type="category", row=1, col=1)
        figure.update_xaxes(title="best minus worst response, characters", row=1, col=2)
        figure.update_yaxes(title="margin", row=1, col=1)
        figure.add_hline(y=0, line={"color": "#888", "width": 1})
        return figure

    # -- labels
    @property
    def relabels(self) -> dict[int, str]:
        """Labels given so far, by row number: "left", "right", "tie", "out", or a place in a ranking."""
        words = {value: word for word, value in labelling.WORDS.items()}
        given, kinds = self._labels.values, self.rows.kinds
        return {row: words[label] if kinds[row] == "pair" or label in "0x" else label for row, label in given.items()}

    def relabel(self, row: int, label: str | int) -> None:
        """Labels a row: "left" (the chosen response is better), "right", "tie", "out"; in a ranking the best's place.

        Raises:
            IndexError: no such row.
            ValueError: a label that this row cannot have.
        """
        self._labels.set(row, labelling.checked(self.rows, row, label))
        self._tell([row])

    def undo(self) -> int:
        """Takes the last label back; returns its row, -1 where there is none."""
        row = self._labels.undo()
        self._tell([row] if row >= 0 else [])
        return row

    def labels(self) -> pd.DataFrame:
        """One row a label: `index` in the browser, `label`, from, to, when, and which row of which file it is."""
        columns = ["index", "label", "from", "to", "when", "view", "source", "table", "row", "fingerprint"]
        told, given = self.relabels, self._labels.given
        rows = [{"index": i, "label": told[i], **labelling.provenance(self.rows, i, *given[i])} for i in given]
        return pd.DataFrame(rows, columns=columns)

    def save_labels(self, path: str | Path) -> Path:
        """Writes the labels alone, so that another session can go on with them."""
        return labelling.save(path, self.rows, self._labels)

    def load_labels(self, path: str | Path) -> PreferenceBrowser:
        """Takes over the labels of a file that `save_labels` wrote; rows are found by their content.

        Raises:
            ValueError: a line that is no label, or whose row is not here.
        """
        before = set(self._labels.given)
        self._labels = labelling.load(path, self.rows)
        self._tell(sorted(before | set(self._labels.given)))
        return self

    def export(self, path: str | Path, *, changed_only: bool = False, left_out: bool = False) -> Path:
        """Writes the rows with their labels applied as JSONL; labelled ones carry `relabelled`, others are unchanged.

        Args:
            changed_only: only rows with a label, a confirmed one included.
            left_out: rows that were left out too, marked by `relabelled`.

        Raises:
            ValueError: another ending than `.jsonl`.
        """
        path = Path(path)
        if path.suffix != ".jsonl":
            raise ValueError(f"the file must end in .jsonl; got {path.name!r}")
        with runs.atomic(path) as file:
            for row in self._exported(changed_only, left_out):
                file.write((json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode())
        return path

    def _exported(self, changed_only: bool, left_out: bool) -> Iterator[Row]:
        for i, row in enumerate(self.rows.raw):
            value, when = self._labels.given.get(i, ("", ""))
            if (value == "x" and not left_out) or (changed_only and not value):
                continue
            row = labelling.relabelled(row, value) if value else plain_value(row)
            yield {**row, **({"relabelled": labelling.provenance(self.rows, i, value, when)} if value else {})}

    # -- log-ratios
    def with_log_ratios(
        self, policy: Any, reference: Any, rows: Sequence[int] | None = None, *, max_length: int = 0
    ) -> PreferenceBrowser:
        """Computes log p_policy - log p_reference of every token of these rows; returns the browser itself.

        What was computed before is dropped: call it again when the weights have changed.

        Args:
            policy: a `Policy`, a folder or a hub id.
            reference: the same, or `policy.without_adapter()`. Both see the very same tokens.
            rows: row numbers; by default the first 200 that the view shows.
            max_length: tokens of prompt and response together; 0 takes the policy's context.

        Raises:
            ValueError: different vocabularies.
            NanScore: a log-probability is NaN.
        """
        self._score_with(policy, reference, max_length)
        self._ratios.compute([int(i) for i in (self.order[:ASKED_FIRST] if rows is None else rows)], self._texts)
        return self

    def log_ratios(self) -> pd.DataFrame:
        """One row a token of what was computed: `row`, `response` (as shown), `token`, `text`, `log_ratio` (nats)."""
        found = []
        for row, parts in self._ratios.known.items() if self._ratios else ():
            for k, pieces in enumerate(parts):
                found += [(row, k, at, text, ratio) for at, (text, ratio, _) in enumerate(pieces) if ratio is not None]
        return pd.DataFrame(found, columns=["row", "response", "token", "text", "log_ratio"])

    def _score_with(self, policy: Any, reference: Any, max_length: int) -> None:
        from workbench.widgets.preference_browser.token_ratios import Ratios

        if reference is None:
            raise ValueError("log-ratios need a reference: a policy, a folder, a hub id, or policy.without_adapter()")
        self._ratios = Ratios(policy, reference, max_length=max_length)

    def _texts(self, row: int) -> tuple[Any, list[str]]:
        return self.rows.raw[row]["prompt"], preference_rows.responses(self.rows.raw[row])

    # -- the two faces that draw
    def data(self) -> dict[str, Any]:
        """What a page draws, JSON types only: as many rows as the limit allows, those that the view shows first."""
        first = self.order
        others = np.setdiff1d(np.arange(len(self.rows)), first)
        carried, size = [], 0
        for i in map(int, np.concatenate([first, others])):
            detail = self._detail(i)
            size += len(json.dumps(detail, ensure_ascii=False)) + 60  # 60: what its columns take
            if size > self.page_limit:
                break
            carried.append((i, detail))
        carried.sort(key=lambda entry: entry[0])
        table = self.rows.light.iloc[[i for i, _ in carried]]
        columns = {name: table[name].tolist() for name in ("kind", "copies", *SOURCES, *PLACES)}
        columns |= {name: table[name].astype(int).tolist() for name in ("identical", "empty", "tie")}
        columns |= {name: plain_value(table[name].tolist()) for name in ("margin", "length", "score")}
        labels = {i: list(self._labels.given[i]) for i, _ in carried if i in self._labels.given}
        return {**self._head(), "rows": [detail for _, detail in carried], "columns": columns, "labels": labels}

    def widget(self) -> Any:
        """Live face: `.chosen` is the opened row, `.state` what is shown; labels are in `relabels` at once."""
        head, state = {**self._head(), "remote": True, "policy": self._ratios is not None}, json.dumps(self.view)
        widget = scripted.live("browser", head, on_message=self._on_message, chosen=-1, state=state)
        self._shown.add(widget)
        return widget

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        some = self.rows.light.iloc[self.order[:20]][["kind", "margin", "length"]]
        return scripted.bundle("browser", self.data(), self.widget(), some.to_string(), state=json.dumps(self.view))

    def _head(self) -> dict[str, Any]:
        margins = self.rows.light["margin"]
        states = ("identical", "tie", "duplicate", "margin unknown")
        marked = [name for name in states if len(self.rows.order({**VIEW, "state": name}, {}))]
        said = {"name": self.name, "total": len(self.rows), "facets": self.rows.facets}
        said |= {"kinds": sorted(set(self.rows.kinds)), "range": plain_value([margins.min(), margins.max()])}
        said |= {"n_labels": len(self._labels.given), "undo": len(self._labels.past), "marked": marked}
        return {**said, "origins": [[origin.source, origin.table] for origin in self.rows.origins]}

    def _detail(self, i: int) -> dict[str, Any]:
        row = self.rows.raw[i]
        at = [int(self.rows.origin_of[i]), int(self.rows.number[i])]
        found = {"i": i, "raw": plain_value(row), "print": labelling.fingerprint(row), "at": at}
        if "responses" in row and "chosen" not in row:
            found["order"] = preference_rows.shown_order(row)
        if self._ratios is not None and i in self._ratios.known:
            found["tokens"] = self._ratios.known[i]
        return found

    def _window(self, order: np.ndarray, first: int, last: int) -> list[list[Any]]:
        """What the list shows at these places: number, kind, margin, prompt, marks, copies, label, first response."""
        places = order[max(0, first) : max(0, min(last, first + WINDOW))]
        part: Any = self.rows.light.iloc[places]
        amounts = np.where(part["kind"] == "rated", part["score"], part["margin"])
        found = []
        for number, row, amount in zip(places, part.to_dict("records"), amounts, strict=True):
            i = int(number)
            raw, marks = self.rows.raw[i], [name for name in ("identical", "tie", "empty") if row[name]]
            words = raw["prompt"] if isinstance(raw["prompt"], str) else raw["prompt"][-1]["content"]  # asked last
            label, answer = self._labels.given.get(i, ("",))[0], preference_rows.responses(raw)[0]
            found.append([i, row["kind"], amount, words[:SNIPPET], marks, row["copies"], label, answer[:80]])
        return plain_value(found)

    # -- the conversation with the script in JupyterLab
    def _widgets(self) -> list[Any]:
        return [widget for widget in self._shown if widget.comm is not None]

    def _tell(self, changed: Sequence[int]) -> None:
        """Every view of these rows learns which labels they have now. What it lists stays until it filters anew."""
        self._order = None
        given, past = self._labels.given, self._labels.past
        changes = {i: given.get(i, ("",))[0] for i in changed}
        for widget in self._widgets():
            widget.send({"kind": "labels", "changes": changes, "n": len(given), "undo": len(past)})

    def _on_message(self, widget: Any, content: Any) -> None:
        """One answer to each question; what a reader did wrong is said in the view."""
        try:
            answer = self._answer(widget, content)
        except Exception as error:  # an error in a message handler would only stand in a log
            answer = {"kind": "problem", "text": f"{type(error).__name__}: {error}"}
        if answer:
            widget.send({"query": content.get("query"), **answer})
        if content.get("kind") == "query":
            self.rows.prepare_search()  # while the reader looks at the first rows

    def _answer(self, widget: Any, content: Mapping[str, Any]) -> dict[str, Any] | None:
        kind = content["kind"]
        if kind == "query":
            begun = time.perf_counter()
            self.view = preference_rows.checked_view(content["view"], self.view)
            self._order = None
            self._orders[widget] = order = self.order
            unknown = int(np.isnan(self.rows.light["margin"].to_numpy()[order]).sum())
            at = next(iter(np.flatnonzero(order == content.get("chosen", -1)).tolist()), -1)
            near = max(0, at - WINDOW // 2)
            found = {"count": len(order), "unknown": unknown, "at": at, "first": near}
            rows = self._window(order, near, near + WINDOW)
            return {"kind": "answer", **found, "rows": rows, "ms": round(1000 * (time.perf_counter() - begun), 1)}
        order = self._orders.get(widget, self.order)
        if kind == "window":
            first = content["first"]
            return {"kind": "window", "first": first, "rows": self._window(order, first, content["last"])}
        if kind == "open":
            place = content["place"]
            there = 0 <= place < len(order)
            return {"kind": "row", "place": place, "row": self._detail(int(order[place]))} if there else None
        if kind == "tokens":
            row = int(content["row"])
            self._ratios.compute([row], self._texts)
            return {"kind": "tokens", "row": row, "tokens": self._ratios.known[row]}
        if kind == "export":
            names = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
            paths = (Path(f"{self.name}-relabelled{number}.jsonl").resolve() for number in names)
            path = next(path for path in paths if not path.exists())  # nothing is overwritten
            self.export(path, changed_only=bool(content["changed_only"]))
            n = path.read_bytes().count(b"\n")
            return {"kind": "said", "text": f"{n} rows are in {path}"}
        if kind == "label":
            self.relabel(int(content["row"]), content["label"])
        elif kind != "undo":
            return None
        answer = {"kind": "undone", "row": self.undo()} if kind == "undo" else None
        _session[self._key] = copy.deepcopy(self._labels)
        return answer

    @cached_property
    def _key(self) -> str:
        """A name for these rows by their content."""
        digest = hashlib.blake2b(digest_size=16)
        for row in self.rows.raw:
            digest.update(preference_rows.search_text(row).encode("utf-8", "surrogatepass") + b"\0")
        return digest.hexdigest()
