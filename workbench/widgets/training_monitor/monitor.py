"""TrainingMonitor: curves of running and finished trainings, what the policy writes meanwhile, and two diagnoses.

Alive in JupyterLab (`follow()` keeps it up to date while something trains, in this kernel or anywhere else), the same
view in a page (`js/monitor.js` draws both), and `frame()`, `figure()`, `diagnosis()` for scripts.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench import runs
from workbench.figures import PALETTE, TEMPLATE, Note, colour, plain
from workbench.objectives import AVERAGED, REFERENCE_FREE
from workbench.runs.run import is_locked
from workbench.training import probes
from workbench.widgets import scripted
from workbench.widgets.training_monitor import curves, diagnosis
from workbench.widgets.training_monitor.curves import Panel
from workbench.widgets.training_monitor.metric_files import CLOCKS, Files, Part, folders, manifest, thinned

log = logging.getLogger(__name__)

POINTS = 400  # of a line, at most; the lowest and highest of each stretch stay
ALL_POINTS = 30_000  # of all lines together, about 0.5 MB
LINES = 1_200  # beyond this many, only means over seeds are drawn
TEXT_LIMIT = 250_000  # characters of samples and rows that a view carries
REWARDS = "held_out_rewards.parquet"  # what finished runs of some methods leave
_SHOWN = 20  # of the widgets made last, which are kept up to date
_STATE = {"step": -1, "run": "", "prompt": 0, "look": -1, "smoothing": 0.0}


class TrainingMonitor:
    """Every `metrics.jsonl` below some folders: arms overlaid, seeds as thin lines, their mean as a bold one.

    Args:
        sources: run folders, parts of them, runs (`Run`, anything with `.folder`) or mappings from label to folder.
        series: columns to show, in this order; () takes all that the rows hold, the well-known ones first.

    Raises:
        ValueError: no source, a folder that does not exist, a label twice, an unknown series.
    """

    def __init__(self, *sources: Any, series: Sequence[str] = ()):
        self.files = Files(folders(sources))
        self.series = [series] if isinstance(series, str) else list(series)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._widgets: list[Any] = []
        self._diagnoses: dict[str, tuple[Any, Any]] = {}
        self._probes: dict[Path, tuple[Any, Any]] = {}
        self.refresh()

    def refresh(self) -> bool:
        """Reads what is new in the folders; True where something changed."""
        with self._lock:
            changed = self.files.refresh()
            for part in self._parts:
                changed |= self._read_probe(part)
            if changed and self._parts:
                self._panels()
            return changed

    # -- faces
    def widget(self) -> Any:
        """Live face: `.step`, `.run`, `.prompt`, `.look` (a probed step) and `.smoothing` follow the reader."""
        with self._lock:  # so that no news fall between what it is made from and its place among those that are told
            self.refresh()
            shown = scripted.live("monitor", self.data(), **_STATE)
            self._widgets = [*self._widgets, shown][-_SHOWN:]
        return shown

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        widget = self.widget()  # reads what is new
        return scripted.bundle("monitor", self.data(), widget, repr(self), **_STATE)

    def __repr__(self) -> str:
        if not self._parts:
            return f"TrainingMonitor: no metrics yet in {', '.join(map(str, self.files.sources.values()))}"
        last, arms = (
            max(int(part.columns()[0].max()) for part in self._parts),
            dict.fromkeys(p.arm for p in self._parts),
        )
        return f"TrainingMonitor of {len(self._parts)} trainings ({', '.join(arms)}), to step {last}"

    def frame(self) -> pd.DataFrame:
        """Every value logged or probed: `arm`, `seed`, `step` (rounds one behind the other), `series`, `value`.

        Raises:
            ValueError: no metrics were found.
        """
        self._need_metrics()
        tables = []
        for part in self._parts:
            of = {"arm": part.arm, "seed": math.nan if part.seed is None else part.seed}
            lines = self._lines_of(part).items()
            tables += [pd.DataFrame({**of, "step": x, "series": name, "value": y}) for name, (x, y) in lines]
        return pd.concat(tables, ignore_index=True)

    def figure(self, *series: str) -> go.Figure:
        """Small charts of these series, or of all: mean over the seeds of an arm, single seeds thin.

        Raises:
            ValueError: no metrics were found, or an unknown series.
        """
        from plotly.subplots import make_subplots

        self._need_metrics()
        panels, inks = self._panels(series), self._colours()
        rows = math.ceil(len(panels) / 3)
        titles = [f"{plain(panel.title)}<br><sup>{plain(panel.unit)}</sup>" for panel in panels]
        spacing = 0.3 / rows  # of the height, between two rows of charts
        figure = make_subplots(rows=rows, cols=min(3, len(panels)), subplot_titles=titles, vertical_spacing=spacing)
        told = set()
        for line in self._lines(panels):
            arm, is_bold = line["arm"], line["bold"]
            dash = "dash" if line["side"] else "solid"
            look: Any = {"line": {"color": inks[arm], "width": 2 if is_bold else 1, "dash": dash}, "mode": "lines"}
            look |= {"opacity": 1 if is_bold else 0.35, "showlegend": is_bold and arm not in told}
            trace = go.Scatter(x=line["x"], y=line["y"], name=plain(arm), legendgroup=arm, connectgaps=False, **look)
            figure.add_trace(trace, row=line["panel"] // 3 + 1, col=line["panel"] % 3 + 1)
            told |= {arm} if is_bold else set()
        legend = {"orientation": "h", "x": 0, "y": 1, "yref": "container", "yanchor": "top"}
        figure.update_layout(template=TEMPLATE, height=120 + 240 * rows, margin={"t": 100}, legend=legend)
        figure.update_annotations(font_size=13)
        figure.update_yaxes(exponentformat="e")
        figure.update_xaxes(title={"text": "optimiser step", "font": {"size": 11}, "standoff": 2})
        return figure

    def diagnosis(self, arm: str = "", seed: int | None = None) -> diagnosis.Diagnosis:
        """Is the falling chosen reward harmful, is length drifting? Of one training: the first that can tell.

        Raises:
            ValueError: no metrics, no such arm or seed, or neither a probe nor held-out rewards to tell from.
        """
        self._need_metrics()
        fitting = [part for part in self._parts if arm in ("", part.arm) and seed in (None, part.seed)]
        if not fitting:
            there = ", ".join(part.name for part in self._parts)
            raise ValueError(f"no training of arm {arm!r}, seed {seed}; there are {there}")
        if found := next(filter(None, map(self._diagnosis_of, fitting)), None):
            return found
        lacks = "neither two steps of a probe nor held_out_rewards.parquet"
        remedy = "pass workbench.training.probes.Probe as watch to train (dpo: probe_every)"
        raise ValueError(f"nothing to diagnose {', '.join(p.name for p in fitting)} from: {lacks}; {remedy}")

    # -- live
    def follow(self, every_s: float = 1.0, *, idle_s: float = 600.0) -> TrainingMonitor | Note:
        """Looks for news every `every_s` seconds, in the background, until the runs are done or `stop` is called.

        Done is what the manifest says; where there is none, `idle_s` seconds without news and without a lock on the
        folder. In a batch run nothing is followed, because nobody looks: show the monitor again behind the training.

        Raises:
            ValueError: a time that is not above 0.
        """
        if not every_s > 0 or not idle_s > 0:
            raise ValueError(f"every_s and idle_s are seconds above 0; got {every_s} and {idle_s}")
        if runs.in_batch():
            told = "In JupyterLab the curves grow here while the cells below train"
            return Note(f"{told}; the finished ones stand further down.")
        self.refresh()
        if not self.is_following and not self._is_done():
            self._stop.clear()
            self._thread = threading.Thread(None, self._watch, "training monitor", (every_s, idle_s), daemon=True)
            self._thread.start()
        return self

    def stop(self) -> None:
        """Ends `follow`; the curves stay."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(10)
        self._show()

    @property
    def is_following(self) -> bool:
        return self._thread is not None and self._thread.is_alive() and not self._stop.is_set()

    def _watch(self, every_s: float, idle_s: float) -> None:
        news, last = time.monotonic(), None
        while not self._stop.is_set():
            try:
                is_done = self._is_done()  # asked before reading, so that nothing written before the end is missed
                if self.refresh() or last is None:
                    news = time.monotonic()
                    self._show()
                is_idle = time.monotonic() - news > idle_s and not any(map(is_locked, self.files.sources.values()))
                last = is_done
            except (OSError, ValueError) as error:  # a file that goes while it is read: the next look finds out
                log.warning("training monitor: %s", error)
                is_done, is_idle = False, time.monotonic() - news > idle_s
            if is_done or is_idle:
                self._stop.set()
            else:
                self._stop.wait(every_s)
        self._show()

    def _show(self) -> None:
        with self._lock:
            if self._widgets:
                data = self.data()
                for widget in self._widgets:
                    widget.data = data

    def _is_done(self) -> bool:
        return all(manifest(folder).get("status") == "done" for folder in self.files.sources.values())

    # -- what the view draws
    def data(self) -> dict[str, Any]:
        """What the view draws, JSON types only."""
        with self._lock:
            parts, panels, inks = self._parts, self._panels() if self._parts else [], self._colours()
            whole = self._lines(panels)
            lines, numbers = _fewer(whole), {arm: k for k, arm in enumerate(inks)}
            loud = {line["panel"] for line in whole if np.nan_to_num(line["y"]).any()}
            notes, room = [], [TEXT_LIMIT]
            if sum(len(line["x"]) for line in lines) < sum(len(line["x"]) for line in whole):
                notes.append(f"a line has at most {POINTS} points: the lowest and highest of each stretch are kept")
            seeds = {arm: sum(part.arm == arm for part in parts) for arm in inks}
            told = [{"name": part.name, "arm": numbers[part.arm], **self._told(part, room)} for part in parts]
            for line in lines:
                line["arm"] = numbers[line["arm"]]
                line |= {axis: scripted.short(line[axis], 6) for axis in ("x", "y")}
                line["t"] = None if line["t"] is None else scripted.short(line["t"] / 60, 6)
            return {
                "arms": [{"name": arm, "colour": ink, "seeds": seeds[arm]} for arm, ink in inks.items()],
                "panels": [
                    {"title": p.title, "unit": p.unit, "names": list(p.names), "log": p.log, "quiet": k not in loud}
                    for k, p in enumerate(panels)
                ],
                "lines": lines,
                "borders": sorted({border for part in parts for border in part.borders}),
                "runs": told,
                "notes": notes + self._notes(room),
                "following": self.is_following,
                "folders": [str(path.name) for path in self.files.sources.values()],
            }

    def _told(self, part: Part, room: list[int]) -> dict[str, Any]:
        """Diagnosis and samples of one training, as long as there is room for their texts."""
        found, probe = self._diagnosis_of(part), self._probes.get(part.folders[-1], (None, None))[1]
        told: dict[str, Any] = {"diagnosis": None, "samples": None}
        if found is not None:
            told["diagnosis"] = {"verdicts": [vars(verdict) for verdict in found.verdicts], "notes": found.notes}
            lists = {"falls": found.falls, "alike": found.alike, "measures": found.table.drop(columns="verdict")}
            told["diagnosis"] |= {name: curves.records(table, room) for name, table in lists.items()}
        if probe is not None and len(probe[2]):
            told["samples"] = curves.sample_records(probe[2], room)
        return told

    def _notes(self, room: list[int]) -> list[str]:
        notes, empty = [], sum(part.n_rows == 0 for part in self.files.parts)
        for part in self._parts:
            if bad := part.columns()[2]:
                notes.append(f"{part.name}: {bad} logged values are not finite and drawn as gaps")
            if broken := sum(tail.broken for tail in part.tails):
                notes.append(f"{part.name}: {broken} broken lines of metrics.jsonl left out")
        if self._parts and not any(found for _, found in self._diagnoses.values()):
            notes.append("no diagnosis: no probe watched these trainings, and they left no held-out rewards")
        if empty:
            notes.append(f"{empty} metrics files are empty so far")
        shares = [probe[3]["share"] for _, probe in self._probes.values() if probe is not None]
        if shares := [share for share in shares if math.isfinite(share)]:
            notes.append(f"probing took {np.mean(shares):.0%} of the time of training and probing together")
        if room[0] <= 0:
            cut = f"texts beyond {TEXT_LIMIT:,} characters are left out here"
            notes.append(f"{cut}; a script has all, in the run's probe folder")
        return notes

    # -- lines
    @property
    def _parts(self) -> list[Part]:
        return [part for part in self.files.parts if part.n_rows]

    def _need_metrics(self) -> None:
        if not self._parts:
            below = ", ".join(map(str, self.files.sources.values()))
            how = "(training.train(..., run=...), or experiment.results() in a notebook)"
            raise ValueError(f"no metrics.jsonl with rows below {below}; a training writes it there {how}")

    def _colours(self) -> dict[str, str]:
        """One colour an arm: the project's own, unless another arm here looks nearly the same."""
        found: dict[str, str] = {}
        for arm in dict.fromkeys(part.arm for part in self._parts):
            wanted = colour(arm.rpartition(" · ")[2])
            apart = (ink for ink in (wanted, *PALETTE) if all(_apart(ink, other) for other in found.values()))
            found[arm] = next(apart, wanted)
        return found

    def _lines_of(self, part: Part) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Steps and values of every series of one training; the probe's are `held_out_...` and `sample_...`."""
        steps, columns, _ = part.columns()
        lines = {name: (steps, y) for name, y in columns.items() if name not in CLOCKS}
        for offset, folder in zip(part.offsets(), part.folders, strict=True):
            probe = self._probes.get(folder, (None, None))[1]
            for name, (x, y) in curves.probe_lines(probe).items() if probe else ():
                old = lines.get(name, (np.empty(0), np.empty(0)))
                lines[name] = np.concatenate([old[0], x + offset]), np.concatenate([old[1], y])
        return lines

    def _seconds(self, part: Part) -> tuple[np.ndarray, np.ndarray] | None:
        """Steps and seconds since the start, where a column or the probe's clock knows them."""
        steps, columns, _ = part.columns()
        for name in CLOCKS:
            if name in columns and np.isfinite(columns[name]).all():
                return steps, columns[name]
        probe = self._probes.get(part.folders[0], (None, None))[1]
        if probe and len(part.folders) == 1 and len(probe[3]["seconds_at"]) > 1:
            return tuple(np.array(sorted((float(s), t) for s, t in probe[3]["seconds_at"].items()), dtype=float).T)
        return None

    def _panels(self, series: Sequence[str] = ()) -> list[Panel]:
        known = list(dict.fromkeys(name for part in self._parts for name in self._lines_of(part)))
        return curves.panels_of(known, list(series) or self.series)

    def _lines(self, panels: Sequence[Panel]) -> list[dict[str, Any]]:
        """Lines of all panels: seeds, and the mean of an arm with several, as far as all of them came."""
        found: list[dict[str, Any]] = []
        by_part = [(part, self._lines_of(part), self._seconds(part)) for part in self._parts]
        for number, panel in enumerate(panels):
            for side, name in enumerate(panel.series):
                for arm in dict.fromkeys(part.arm for part, _, _ in by_part):
                    place = {"arm": arm, "panel": number, "side": side}
                    own = [(p.seed, lines, clock) for p, lines, clock in by_part if p.arm == arm and name in lines]
                    timed = [(*lines[name], curves.seconds_at(clock, lines[name][0])) for _, lines, clock in own]
                    for (seed, *_), (x, y, t) in zip(own, timed, strict=True):
                        found.append({**place, "seed": seed, "bold": len(own) == 1, "n": 1, "x": x, "y": y, "t": t})
                    if len(own) > 1:
                        found.append({**place, "seed": None, "bold": True, "n": len(own), **curves.mean_line(timed)})
        return found

    # -- probes and diagnoses
    def _read_probe(self, part: Part) -> bool:
        abouts = {folder: folder / probes.FOLDER / "about.json" for folder in part.folders}
        stamps = {folder: about.stat().st_mtime_ns if about.is_file() else 0 for folder, about in abouts.items()}
        new = [folder for folder, stamp in stamps.items() if self._probes.get(folder, (0, None))[0] != stamp]
        self._probes |= {folder: (stamps[folder], probes.read(folder)) for folder in new}
        return bool(new)

    def _diagnosis_of(self, part: Part) -> diagnosis.Diagnosis | None:
        """From the last round's probe, else from held-out rewards of the finished run; None where there is neither."""
        folder = part.folders[-1]
        stamp, probe = self._probes.get(folder, (0, None))
        path = next((p for p in (folder / REWARDS, folder.parent / REWARDS) if p.is_file()), None)
        key = (stamp, path and path.stat().st_mtime_ns)
        if self._diagnoses.get(part.name, (None, None))[0] != key:
            found = None
            if probe and len(probe[3]["seconds_at"]) > 1:
                found = diagnosis.of_probe(*probe[:3], beta=probe[3]["beta"])
            elif path is not None:
                config = manifest(folder).get("parameters", {}).get("config", {})
                beta, kind = config.get("beta", 0.0), config.get("loss_type", "")
                beta = beta if isinstance(beta, int | float) and kind not in AVERAGED else 0.0
                found = diagnosis.of_rewards(pd.read_parquet(path), beta=beta, is_change=kind not in REFERENCE_FREE)
            self._diagnoses[part.name] = key, found
        return self._diagnoses[part.name][1]


def _apart(one: str, other: str) -> bool:
    """Whether two colours, #rrggbb, can be told apart as thin lines."""
    pairs = [(int(one[k : k + 2], 16), int(other[k : k + 2], 16)) for k in (1, 3, 5)]
    return sum(weight * (a - b) ** 2 for weight, (a, b) in zip((2, 4, 3), pairs, strict=True)) > 130**2


def _fewer(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines with as many points as a view carries; of very many lines the means alone."""
    lines = lines if len(lines) <= LINES else [line for line in lines if line["bold"]]
    most, found = max(50, min(POINTS, ALL_POINTS // max(1, len(lines)))), []
    for line in lines:
        kept = thinned(line["x"], line["y"], most)
        found.append({**line, **{key: None if line[key] is None else line[key][kept] for key in ("x", "y", "t")}})
    return found
