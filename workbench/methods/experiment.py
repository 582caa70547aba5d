"""`Experiment`: one method, one task, several seeds, one run folder: the object that a notebook drives.

A system's `method.py` offers `Config`, `open_task(config, model=, dataset=, device=)` and one of

- `train_arm(task, config, arm, seed, run)`: trains (or asks, where nothing is trained) one arm of one seed and returns
  its evaluations. Arms are units of work of their own, each stored when it is done. What the seed's result holds beside
  its arms, if anything, comes from `beside_arms(task, config, seed, run)`.
- `run(task, config, seed, run)`: all of a seed at once, where arms share too much; `train_arm` may then prepare.

Its `experiment.py` holds the arms, what each scale changes, and `claims(experiment, results)`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from workbench import config as configs
from workbench import runs
from workbench.methods import DEVICES, SCALES, default_seeds, find
from workbench.runs.seeds import over_seeds


class Results(list):
    """The results of all seeds in their order; `results(arm, key)` is one number of an arm over seeds and rounds."""

    def __call__(self, arm: str, key: str) -> np.ndarray:
        """[seed, round]. Numbers that begin with a later round, as those of pairs do, begin there.

        Raises:
            KeyError: no such arm; the ones there are are named.
        """
        if arm not in self.arms:
            raise KeyError(f"no arm {arm!r} in these results; there are {', '.join(self[0]['arms'])}")
        return np.array([[numbers[key] for numbers in result["arms"][arm] if key in numbers] for result in self])

    @property
    def arms(self) -> set[str]:
        return set(self[0]["arms"])


class Experiment:
    """One method on one task over several seeds, in one run folder.

    Args:
        name: registry name.
        scale: "smoke", "tiny" or "full": which preset of `Config` the overrides start from.
        model: hub id or folder of the starting model; "" takes the embedded world's own.
        dataset: hub id, folder or JSONL/JSONL.gz/Parquet file; "" takes the embedded world.
        seeds: one run each.
        device: "auto", "cpu" or "cuda".
        overrides: fields of the method's `Config`, checked strictly.
        output: run folder; "" computes one from all of the above and the code.

    Raises:
        ValueError: an unknown scale, device or `Config` field, or a value of the wrong type; nothing was loaded yet.
        FileNotFoundError: a model, data set or judge is written as a path and nothing is there.
    """

    def __init__(
        self,
        name: str,
        *,
        scale: str = "tiny",
        model: str = "",
        dataset: str = "",
        seeds: Sequence[int] = (),
        device: str = "auto",
        overrides: Mapping[str, Any] | None = None,
        output: str = "",
    ):
        (self.method,) = find([name])
        for what, value, known in (("scale", scale, SCALES), ("device", device, DEVICES)):
            if value not in known:
                raise ValueError(f"{what} must be one of {', '.join(known)}; got {value!r}")
        self.scale, self.device = scale, device
        self.model, self.dataset = configs.located(model), configs.located(dataset)
        self.seeds = [int(seed) for seed in (seeds or default_seeds(self.method, scale))]
        cls = self.method.load().Config
        named = configs.source_fields(cls)
        self.overrides = {
            key: configs.located(value) if key in named and isinstance(value, str) else value
            for key, value in (overrides or {}).items()
        }
        self.config = cls.at(scale, bool(model or dataset), **self.overrides)
        self.parameters = {"config": dataclasses.asdict(self.config), "model": self.model, "dataset": self.dataset}
        self.parameters |= {"device": device, "seeds": self.seeds}
        self.parameters["inputs"] = [runs.fingerprint(path) for path in (self.model, self.dataset)]
        if given := {key: runs.fingerprint(value) for key in named if (value := getattr(self.config, key))}:
            self.parameters["sources"] = given
        self.keyed = {**self.parameters, "config": configs.keyed(self.config)}
        self.output = output

    @property
    def folder(self) -> Path:
        """Where this experiment's run lives, whether it was run yet or not."""
        return Path(self.output) if self.output else self.computed_folder()

    def computed_folder(self, root: Path | None = None) -> Path:
        return runs.run_folder(self.method.name, self.method.code, self.scale, self.keyed, root)

    @cached_property
    def run(self) -> runs.Run:
        of = self.method.name, self.method.code, self.scale
        return runs.open_run(*of, self.parameters, str(self.folder), keyed=self.keyed)

    @cached_property
    def task(self) -> Any:
        return self.method.load().open_task(self.config, model=self.model, dataset=self.dataset, device=self.device)

    def results(self, *, workers: int = 0) -> Results:
        """Runs every seed that has no stored result and returns all results in the order of the seeds.

        Args:
            workers: seeds side by side; 0 takes one for each core in the embedded world; one alone with a model of the
                user's, which may be too large to be held twice, and at "smoke", where starting a process costs more
                than a seed.
        """
        workers = workers or (1 if self.model or self.scale == "smoke" else 0)
        code = self.method.load().Config.__module__
        arms: dict[str, Any] = {}
        if hasattr(sys.modules[code], "train_arm"):
            arms = {"run_arm": partial(run_arm, code), "arms": self.config.arms}
        seed = partial(run_seed, code)
        stored = over_seeds(
            seed, self.task, self.config, self.seeds, self.run, workers=workers, all_threads=bool(self.model), **arms
        )
        return Results(stored)

    def claims(self, results: Results | None = None) -> Any:
        """The claims of the method, judged from its results: those that are stored, where none are given."""
        return self.method.load().claims(self, self.results() if results is None else results)


def run_arm(code: str | Any, task: Any, config: Any, arm: str, seed: int, run: runs.Run) -> Any:
    """One arm of one seed, stored in the seed's folder when it is done.

    Args:
        code: the module that holds `train_arm`, or its name, which can be sent to another process.
    """
    module = _module(code)
    train: Callable[..., Any] = partial(module.train_arm, task, config, config.ARMS.get(arm, arm), seed, run.child(arm))
    return train() if hasattr(module, "run") else run.cached(f"arm-{arm}", train)


def run_seed(code: str | Any, task: Any, config: Any, seed: int, run: runs.Run) -> dict[str, Any]:
    """All arms of one seed: `{"arms": {arm: evaluations}}` and what the method says beside them."""
    module = _module(code)
    if hasattr(module, "run"):
        return module.run(task, config, seed, run)
    arms = {arm: run_arm(module, task, config, arm, seed, run) for arm in config.arms}
    beside = module.beside_arms(task, config, seed, run) if hasattr(module, "beside_arms") else {}
    return {"arms": arms, **beside}


def _module(code: str | Any) -> Any:
    from importlib import import_module

    return import_module(code) if isinstance(code, str) else code


def evaluations(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Any:
    """Tidy table of results `{"arms": {arm: [numbers after 0, 1, ... rounds]}}`: arm, seed, round, numbers."""
    import pandas as pd

    return pd.DataFrame(
        {"arm": arm, "seed": seed, "round": t, **numbers}
        for seed, result in zip(experiment.seeds, results, strict=True)
        for arm, rounds in result["arms"].items()
        for t, numbers in enumerate(rounds)
    )
