"""A probe: what a policy says about held-out pairs, and what it writes itself, at some steps of a training.

A probe is what `training.train(watch=...)` calls. It takes no number from a global random generator and leaves the
policy as it found it, so weights and losses are bit for bit those without it. Its tables lie in `<run>/probe/`:

- `rows.parquet`: one row a held-out pair: `row`, `prompt`, `chosen`, `rejected` (texts), `chosen_length`,
  `rejected_length` (tokens)
- `scores.parquet`: `step`, `row`, `chosen_logp`, `rejected_logp` (nats, end token included; NaN as the model gives it)
- `samples.parquet`: `step`, `prompt`, `k`, `text`, `length` (tokens, end token included), `ended`, `logp` (nats),
  `quality`
- `about.json`: settings, seconds spent here and in training, seconds at each step

Each appears whole or not at all. Step n is the policy after n optimiser steps; 0 is the start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from workbench import runs
from workbench.kernels import Group, sample, score
from workbench.kernels.batching import microbatches, n_tokens, tokens_per_microbatch
from workbench.kernels.meter import without_cost
from workbench.models import Policy
from workbench.training import distributed

log = logging.getLogger(__name__)

FOLDER = "probe"
SCORES = ["step", "row", "chosen_logp", "rejected_logp"]
SAMPLES = ["step", "prompt", "k", "text", "length", "ended", "logp", "quality"]
Quality = Callable[[Sequence[Any], Sequence[str]], Sequence[float] | np.ndarray]


class Probe:
    """Measures `policy` at its start (`start`), every `every` optimiser steps (as `watch`), and at the end (`finish`).

    Without `start` the first step that it is called with serves as the beginning. A training that is killed and goes on
    from a checkpoint writes no step twice. On several processes all of them score, the first one writes, and nothing is
    sampled, because a sharded model is not whole enough to write.

    Args:
        policy: gives the texts of the tokens; measured is what the calls are given.
        pairs: held-out groups, chosen first; the first `n_rows` are scored. None: nothing is scored.
        run: the part of the run that holds this training's metrics.
        prompts: what the policy answers, the first `n_prompts` different ones. None: nothing is sampled.
        every: optimiser steps between two measurements.
        n_samples: responses a prompt. The same random numbers serve at every step, so two steps differ by the policy.
        quality: scores of responses to as many prompts, higher is better; None where nobody can tell.
        beta: of the implicit reward, 1/nat; 0 where there is none. Only written down.

    Raises:
        ValueError: a number below 1, a group without exactly two responses (its row is named).
    """

    def __init__(
        self,
        policy: Policy,
        pairs: Sequence[Group],
        run: runs.Run,
        prompts: Sequence[Any] = (),
        *,
        every: int = 50,
        n_samples: int = 1,
        max_new_tokens: int = 64,
        seed: int = 0,
        quality: Quality | None = None,
        n_rows: int = 64,
        n_prompts: int = 16,
        beta: float = 0.0,
    ):
        numbers = {"every": every, "n_samples": n_samples, "max_new_tokens": max_new_tokens}
        numbers |= {"n_rows": n_rows, "n_prompts": n_prompts}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1; got {value}; to measure nothing give no probe")
        for row, n in enumerate(len(group.responses_ids) for group in pairs):
            if n != 2:
                raise ValueError(f"pairs, row {row}: chosen and rejected are needed; got {n} responses")
        self.folder = run.folder / FOLDER
        self.pairs = list(pairs[:n_rows])
        self.prompts = list({json.dumps(runs.plain(prompt)): prompt for prompt in prompts}.values())[:n_prompts]
        self.every, self.seed, self.quality = every, seed, quality
        self.sampling: dict[str, Any] = {"n": n_samples, "max_new_tokens": max_new_tokens, "seed": seed}
        self.about = {**numbers, "seed": seed, "beta": beta, "rows": len(self.pairs), "prompts": self.prompts}
        self._rows = _texts(policy, self.pairs)
        self._last = -1  # the step that the training is at
        self._clock = time.monotonic()

    # -- what the training calls
    def start(self, policy: Policy) -> None:
        """Measures the policy before training; a resumed training finds this in its folder and goes on."""
        if not self._is_off and 0 not in self._known(math.inf):
            self._measure(policy, 0)
        self._clock = time.monotonic()

    def __call__(self, policy: Policy, step: int) -> None:
        if self._is_off:
            return
        steps = self._known(step)
        self._last = step
        if step % self.every == 0 or not steps:
            self._measure(policy, step)

    def finish(self, policy: Policy) -> None:
        """Measures the policy at the last step where `every` did not fall on it."""
        if not self._is_off and self._last > 0 and self._last not in self._known(math.inf):
            self._measure(policy, self._last)

    # -- inside
    @property
    def _is_off(self) -> bool:
        return not self.pairs and not self.prompts

    def _known(self, before: float) -> list[int]:
        """The steps that count as measured; at its first step a training forgets what a killed one saw since."""
        about = self._stored()
        steps = list(map(int, about.get("seconds_at", {})))
        if self._last >= 0 or not math.isfinite(before) or all(step < before for step in steps):
            return steps
        about["seconds_at"] = {step: second for step, second in about["seconds_at"].items() if int(step) < before}
        if distributed.rank() == 0:
            self._write_tables(about, [], [])
        return list(map(int, about["seconds_at"]))

    def _stored(self) -> dict[str, Any]:
        """What an earlier call with the same pairs, prompts and settings wrote."""
        path = self.folder / "about.json"
        about = runs.read_json(path) if path.is_file() else {}
        return about if about.get("key") == self._key else {}

    @property
    def _key(self) -> str:
        tokens = [(group.prompt_ids, *group.responses_ids) for group in self.pairs]
        return hashlib.sha256(json.dumps([tokens, runs.plain(self.about)]).encode()).hexdigest()[:12]

    def _measure(self, policy: Policy, step: int) -> None:
        begun = time.monotonic()
        about = self._stored() or {**self.about, "key": self._key, "probe_s": 0.0, "training_s": 0.0, "seconds_at": {}}
        with without_cost(), torch.no_grad():
            scores = self._score(policy, step) if self.pairs else []
            samples = self._sample(policy, step) if self.prompts and distributed.world() == 1 else []
        if step:
            about["training_s"] += begun - self._clock
        about["seconds_at"][str(step)] = round(about["training_s"], 3)
        self._clock = time.monotonic()
        about["probe_s"] += self._clock - begun
        if distributed.rank() == 0:
            self._write_tables(about, scores, samples)

    def _score(self, policy: Policy, step: int) -> list[list[Any]]:
        sizes = [n_tokens(group) for group in self.pairs]
        was_training = policy.model.training
        policy.model.eval()
        rows = []
        for batch in microbatches(range(len(self.pairs)), sizes, max_tokens=tokens_per_microbatch(policy.device)):
            sums = score(policy, [self.pairs[i] for i in batch], check=False).sums.double().cpu()
            if not bool(sums.isfinite().all()):  # a NaN spreads to what is packed with it: one row at a time
                alone = [score(policy, [self.pairs[i]], route="padded", check=False).sums for i in batch]
                sums = torch.cat(alone).double().cpu()
            rows += [[step, i, *logps] for i, logps in zip(batch, sums.tolist(), strict=True)]
        policy.model.train(was_training)
        return sorted(rows)

    def _sample(self, policy: Policy, step: int) -> list[list[Any]]:
        drawn = sample(policy, self.prompts, **self.sampling)
        places = [(i, k) for i in range(len(self.prompts)) for k in range(self.sampling["n"])]
        texts = [drawn.texts[i][k] for i, k in places]
        quality = [math.nan] * len(texts)
        if self.quality is not None:
            quality = np.asarray(self.quality([self.prompts[i] for i, _ in places], texts), dtype=float).tolist()
            if (n := len(quality)) != len(texts):
                raise ValueError(f"quality gave {n} scores for {len(texts)} responses; it must give one each")
        rows = []
        for (i, k), text, good in zip(places, texts, quality, strict=True):
            has_ended = drawn.finish_reasons[i][k] == "stop"
            rows.append([step, i, k, text, len(drawn.tokens[i][k]), has_ended, sum(drawn.token_logps[i][k]), good])
        return rows

    def _write_tables(self, about: dict[str, Any], scores: list, samples: list) -> None:
        """Adds rows, drops those of steps that `about` does not list; that list is written last and makes it valid."""
        kept = [int(step) for step in about["seconds_at"]]
        if not (self.folder / "rows.parquet").is_file() or not self._stored():
            _write(self.folder / "rows.parquet", self._rows)
        for name, columns, rows in (("scores", SCORES, scores), ("samples", SAMPLES, samples)):
            path, new = self.folder / f"{name}.parquet", pd.DataFrame(rows, columns=columns)
            if path.is_file() and self._stored():
                old: Any = pd.read_parquet(path)
                old = old[old["step"].isin(set(kept) - set(new["step"]))]
                new = pd.concat([part for part in (old, new) if len(part)] or [new])
            _write(path, new)
        runs.write_json(self.folder / "about.json", about)


def _texts(policy: Policy, pairs: Sequence[Group]) -> pd.DataFrame:
    texts = [[policy.decode(g.prompt_ids), *map(policy.decode, g.responses_ids)] for g in pairs]
    rows = [[i, *texts[i], *map(len, g.responses_ids)] for i, g in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["row", "prompt", "chosen", "rejected", "chosen_length", "rejected_length"])


def _write(path: Path, table: pd.DataFrame) -> None:
    with runs.atomic(path) as file:
        table.to_parquet(file, index=False)


# ------------------------------------------------------------------------------------------------------------- reading
def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, dict[str, Any]] | None:
    """Tables `rows`, `scores`, `samples` and settings that a probe left in `folder`, a part of a run; None without one.

    Only steps that were written whole are given. `about["share"]` is the probe's part of the time, 0 to 1.
    """
    path = folder / FOLDER / "about.json"
    if not path.is_file():
        return None
    about = runs.read_json(path)
    rows, scores, samples = (pd.read_parquet(path.parent / f"{name}.parquet") for name in ("rows", "scores", "samples"))
    steps = [int(step) for step in about["seconds_at"]]
    spent = about["probe_s"] + about["training_s"]
    about["share"] = about["probe_s"] / spent if about["training_s"] > 0 else math.nan
    texts = [text if isinstance(text, str) else json.dumps(text, ensure_ascii=False) for text in about["prompts"]]
    tables: Any = (scores, samples)
    scores, samples = (table[table["step"].isin(steps)].reset_index(drop=True) for table in tables)
    return rows, scores, samples.assign(prompt_text=[texts[i] for i in samples["prompt"]]), about
