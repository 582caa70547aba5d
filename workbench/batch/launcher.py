"""Launcher: every system and study of the registry; its question, method and last verdicts; a button that runs it.

Three faces: alive in JupyterLab (run, stop, progress, a link to the page), the same view in a rendered page, where the
button is the command to type, and `frame()`, `figure()`, `run()`, `wait()`, `stop()` for scripts.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench import methods, runs
from workbench.batch import launches
from workbench.batch.launches import State
from workbench.share import notebook_story
from workbench.share.last_verdicts import Verdicts, decisive, verdicts_of
from workbench.widgets import scripted

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

log = logging.getLogger(__name__)

EVERY_S = 0.5  # between two looks at what goes on
AGAIN_S = 5.0  # a view is told again how long something takes, at the latest
CHECKOUT = runs.PACKAGE.parent
PUBLISHED = CHECKOUT / "figures" / "results"
_TOLD = ("status", "scale", "seeds", "reason", "cell", "cells", "done", "total", "stage", "ours", "reused", "verdicts")
# a state without what changes all the time
_NEWS = ("status", "reason", "folder", "cell", "done", "total", "stage", "verdicts")
_SHOWN = 20  # of the widgets made last, which are kept up to date


class Launcher:
    """All systems, searchable; pick one, read what it asks and what was found, run it.

    Args:
        root: folder of all runs; None takes `$WORKBENCH_RUNS` or `runs/`.
        chosen: the system that is opened first; "" takes one that is running, else the first.

    Raises:
        ValueError: `chosen` is no system of the registry.
    """

    def __init__(self, root: str | Path | None = None, *, chosen: str = ""):
        self.root = Path(root or runs.default_root()).expanduser().resolve()
        if chosen:
            launches.check(chosen, "tiny", 0)
        self._lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._widgets: list[Any] = []
        self._said: dict[str, str] = {}
        self._last = chosen
        self._states = {name: launches.state(name, self.root) for name in methods.REGISTRY}
        self._entries = {name: self._entry(method) for name, method in methods.REGISTRY.items()}
        going = [name for name, state in self._states.items() if state.goes_on]
        self.chosen = chosen or next(iter([*going, *self._states]), "")

    # -- faces
    def widget(self) -> Any:
        """Live face: `.chosen` is the name of the system that is open."""
        with self._lock:
            traits = {"chosen": self.chosen, "status": self._status()}
            shown = scripted.live("launcher", self.data(live=True), on_message=self._on_message, **traits)
            self._widgets = [*self._widgets, shown][-_SHOWN:]
        self._follow()
        return shown

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, Any]:
        state = {"chosen": self.chosen, "status": json.dumps({"states": {}, "said": {}})}
        if runs.in_batch():  # nobody is there to press anything
            static = {"view": "launcher", "state": {"data": self.data(), **state}}
            return {scripted.VIEW_MIME: static, "text/plain": repr(self)}
        return scripted.bundle("launcher", self.data(), self.widget(), repr(self), **state)

    def __repr__(self) -> str:
        going = [f"{name} {state.share:.0%}" for name, state in self._states.items() if state.goes_on]
        running = f"; running: {', '.join(going)}" if going else ""
        return f"Launcher of {len(self._states)} systems and studies{running}"

    def frame(self) -> pd.DataFrame:
        """One row a system, with the last `verdicts` and the run that they are `of`."""
        import pandas as pd

        told = ["name", "group", "title", "paper", "question", "cost"]
        last = [self.last(name) for name in methods.REGISTRY]
        said = [", ".join(f"{n} {verdict}" for verdict, n in one.counts.items()) if one else "" for one in last]
        table = pd.DataFrame([self._entries[name] for name in methods.REGISTRY], columns=told)
        return table.assign(verdicts=said, of=[one.label if one else "" for one in last])

    def figure(self, *names: str) -> go.Figure:
        """Effects and intervals of the last verdicts of these systems, or of all, in standard deviations over seeds.

        Raises:
            ValueError: an unknown system.
        """
        from workbench import figures

        for name in names:
            launches.check(name, "tiny", 0)
        found = [(name, self.last(name)) for name in names or methods.REGISTRY]
        records = [{**record, "system": name} for name, last in found if last for record in last.records]
        return figures.claims_forest(records).figure()

    def last(self, name: str) -> Verdicts | None:
        """The newest finished run here that decides anything, else what was published, else a smoke run, else None.

        Raises:
            ValueError: an unknown system.
        """
        return decisive(self.verdicts(name))

    def verdicts(self, name: str) -> list[Verdicts]:
        """What the newest finished runs of each scale and setting said, newest first, and what was published.

        Raises:
            ValueError: an unknown system.
        """
        launches.check(name, "tiny", 0)
        return verdicts_of(name, self.root, PUBLISHED)

    # -- what the button does
    def run(self, name: str, *, scale: str = "tiny", seeds: int = 0) -> State:
        """Starts a system in a process of its own and returns at once; one that is running is not started again.

        It goes on when this kernel ends; another Launcher finds it. In a batch run nothing is started. `seeds` is how
        many; 0 takes the number in the registry.

        Raises:
            ValueError: an unknown system or scale, or a wrong number of seeds.
            OSError: the runs folder cannot be written.
        """
        launches.check(name, scale, seeds)
        with self._lock:
            self._last = name
            self._said.pop(name, None)
            if not runs.in_batch():
                launches.start(name, self.root, scale=scale, seeds=seeds)
        return self._read(name)

    def stop(self, name: str = "") -> State:
        """Asks the run of a system, by default of the last one that was started, to end; what it has computed stays."""
        name = self._named(name)
        launches.stop(name, self.root)
        return self._read(name)

    def _read(self, name: str) -> State:
        with self._lock:
            self._states[name] = launches.state(name, self.root)
        self._show()
        self._follow()
        return self._states[name]

    def wait(self, name: str = "", *, timeout_s: float = 6 * 3600) -> State:
        """How a run ended, by default of the system that was started last; returns at once where nothing goes on.

        Raises:
            ValueError: nothing was started, or an unknown system.
            TimeoutError: it still goes on.
        """
        name = self._named(name)
        deadline = time.monotonic() + timeout_s
        while (state := launches.state(name, self.root)).goes_on:
            if time.monotonic() > deadline:
                so_far = f"{name} still goes on after {timeout_s:g} s: {state.share:.0%}"
                raise TimeoutError(f"{so_far}; stop({name!r}) ends it")
            time.sleep(0.1)
        self._look(name)
        return state

    def state(self, name: str = "") -> State:
        """Where the run of a system stands now, by default of the one that was started last."""
        return launches.state(self._named(name), self.root)

    def _named(self, name: str) -> str:
        if not (name or self._last):
            raise ValueError(f"nothing was started here; name a system: {', '.join(methods.REGISTRY)}")
        return launches.check(name or self._last, "tiny", 0).name

    # -- live
    @property
    def is_following(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _follow(self) -> None:
        """Watches, in the background, as long as something goes on."""
        with self._lock:
            if not self.is_following and any(state.goes_on for state in self._states.values()):
                self._thread = threading.Thread(target=self._watch, daemon=True, name="launcher")
                self._thread.start()

    def _watch(self) -> None:
        told = 0.0
        while True:
            try:
                changed = [self._look(name) for name, state in list(self._states.items()) if state.goes_on]
                if not any(changed) and time.monotonic() - told > AGAIN_S:
                    told = time.monotonic()
                    self._show()
            except (OSError, ValueError) as error:  # a file that goes while it is read: the next look finds out
                log.warning("launcher: %s", error)
            with self._lock:
                if not any(state.goes_on for state in self._states.values()):
                    self._thread = None
                    return
            time.sleep(EVERY_S)

    def _look(self, name: str) -> bool:
        """Reads again where a system stands and what its runs said; True where something changed."""
        state = launches.state(name, self.root)
        entry = self._entries[name] if state.goes_on else self._entry(methods.REGISTRY[name])
        with self._lock:
            before, is_new = self._states[name], entry != self._entries[name]
            changed = any(getattr(state, news) != getattr(before, news) for news in _NEWS)
            self._states[name], self._entries[name] = state, entry
        if changed or is_new:
            self._show(data=is_new)
        return changed

    def _show(self, *, data: bool = False) -> None:
        with self._lock:
            for widget in self._widgets:
                if data:
                    widget.data = self.data(live=True)
                widget.status = self._status()

    def _on_message(self, widget: Any, content: Mapping[str, Any]) -> None:
        name, kind = str(content.get("name", "")), content.get("kind")
        try:
            if kind == "run":
                self.run(name, scale=str(content.get("scale")), seeds=content.get("seeds", 0))
            elif kind == "stop":
                self.stop(name)
            elif kind == "look" and name in methods.REGISTRY:
                self._look(name)
                self._follow()
        except (ValueError, OSError) as error:
            with self._lock:
                self._said[name] = " ".join(str(error).split())
            self._show()

    # -- what the view draws
    def data(self, *, live: bool = False) -> dict[str, Any]:
        """What the view draws, JSON types only. Only the live face names places of this machine."""
        shown = {"systems": list(self._entries.values()), "scales": list(methods.SCALES)}
        return {**shown, "most_seeds": launches.MOST_SEEDS, **(_served(self.root) if live else {})}

    def _entry(self, method: methods.Method) -> dict[str, Any]:
        try:
            story, trouble = notebook_story.read(CHECKOUT / method.notebook), ""
        except (OSError, ValueError):
            story = notebook_story.Story("")
            trouble = f"{method.notebook} cannot be read: start this from a checkout of the project"
        known = verdicts_of(method.name, self.root, PUBLISHED)
        first = decisive(known)
        entry: dict[str, Any] = {name: getattr(method, name) for name in ("name", "title", "paper", "cost")}
        entry |= {"group": method.group or "study", "tags": list(method.tags), "notebook": method.notebook.as_posix()}
        entry |= {**vars(story), "trouble": trouble, "counts": first.counts if first else {}}
        entry["seeds"] = {scale: len(methods.default_seeds(method, scale)) for scale in methods.SCALES}
        entry |= {"first": known.index(first) if first else 0, "sources": []}
        for one in known:
            page = self._inside(one.folder and one.folder / "page.html")
            entry["sources"].append({"label": one.label, "page": page, "rows": one.rows, "counts": one.counts})
        return entry

    def _status(self) -> str:
        """Every state that a view has something to say about, as JSON text."""
        told = {}
        for name, state in self._states.items():
            # how a launch of long ago ended is told by its verdicts
            if state.status != "none" and (state.status != "done" or name == self._last):
                told[name] = {key: getattr(state, key) for key in _TOLD}
                told[name] |= {"share": round(state.share, 3), "elapsed_s": round(state.elapsed_s, 1)}
                told[name] |= {"page": self._inside(state.page), "folder": self._inside(state.folder)}
        return json.dumps({"states": told, "said": self._said})

    def _inside(self, path: Path | None) -> str:
        """A path as the view gets it: relative to the runs folder; "" for what is not there."""
        return path.relative_to(self.root).as_posix() if path and path.exists() else ""


# ------------------------------------------------------------------------------------------------- what a server shows
def _served(root: Path) -> dict[str, Any]:
    """Where the Jupyter server of this kernel shows runs and notebooks, below its root; None where it does not."""
    shown, base = None, "/"
    if pid := os.environ.get("JPY_PARENT_PID"):  # the server's own process number, by which it names its file of facts
        from jupyter_core.paths import jupyter_runtime_dir

        try:
            facts = runs.read_json(Path(jupyter_runtime_dir()) / f"jpserver-{int(pid)}.json")
            shown, base = Path(str(facts["root_dir"])).resolve(), str(facts["base_url"])
        except (OSError, ValueError, KeyError, TypeError):
            shown = None  # another kind of server: the view tells the path instead
    served = {"runs": _below(root, shown), "checkout": _below(CHECKOUT, shown)}
    return {"root": str(root), "base": base, "served": served}


def _below(path: Path, top: Path | None) -> str | None:
    """`path` relative to `top`; None where it is not inside, or is in a hidden folder, which a server does not show."""
    inside = path.relative_to(top) if top and path.is_relative_to(top) else None
    if inside is None or any(part.startswith(".") for part in inside.parts):
        return None
    return "" if inside == Path() else inside.as_posix()
