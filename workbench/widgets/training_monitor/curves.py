"""Curves of trainings for TrainingMonitor: panels of series, lines of a probe, means over seeds, and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from workbench.widgets import scripted

CUT, CUT_ROW = 2_000, 400  # characters of one sample, and of one text in a list of rows
PROMPTS, STEPS = 40, 60  # of one training's samples that a view carries


@dataclass(frozen=True)
class Panel:
    """One small chart: up to two series, the second one dashed. `log`: a logarithmic axis makes sense."""

    title: str
    unit: str
    series: tuple[str, ...]
    names: tuple[str, ...] = ("",)
    log: bool = False


_SIDES, _BY = ("chosen", "rejected"), ("by reward", "by likelihood")
PANELS = [
    Panel("Loss", "nats", ("loss",), log=True),
    Panel("Implicit rewards", "beta × nats", ("chosen_rewards", "rejected_rewards"), _SIDES),
    Panel("Reward margin", "beta × nats", ("margins",)),
    Panel("Accuracy on training pairs", "share", ("accuracies",)),
    Panel("Log-probs of training pairs", "nats a response", ("chosen_logps", "rejected_logps"), _SIDES),
    Panel("Held-out log-probs since the start", "nats a response", ("held_out_chosen", "held_out_rejected"), _SIDES),
    Panel("Held-out accuracy", "share", ("held_out_reward_accuracy", "held_out_accuracy"), _BY),
    Panel("Own samples: quality", "score", ("sample_quality",)),
    Panel("Own samples: length", "tokens", ("sample_length",)),
    Panel("Own samples: ended", "share", ("sample_ended",)),
    Panel("KL to the reference", "nats", ("kl", "kl_nats")),
    Panel("Entropy", "nats a token", ("entropy",)),
    Panel("Response length", "tokens", ("length", "mean_length")),
    Panel("Negative log-likelihood", "nats a token", ("token_nll",), log=True),
    Panel("Rollouts: score", "reward", ("score",)),
    Panel("Rollouts: length", "tokens", ("response_tokens",)),
    Panel("Rollouts without an end token", "share", ("missing_end",)),
    Panel("Rollouts that began in a reference", "share", ("reset_share",)),
    Panel("Reference tokens given", "tokens", ("reset_tokens",)),
    Panel("Variance that the critic explains", "share", ("explained_variance",)),
    Panel("Policy and value loss", "", ("policy_loss", "value_loss"), ("policy", "value")),
    Panel("Clipped", "share of tokens", ("policy_clipped", "value_clipped"), ("policy", "value")),
    Panel("Before the first update: ratio off by", "", ("first_ratio_error",)),
    Panel("Before the first update: clipped", "share of tokens", ("first_policy_clipped",)),
    Panel("Gradient norm", "before clipping", ("grad_norm",), log=True),
    Panel("Learning rate", "", ("learning_rate",)),
]


def panels_of(known: Sequence[str], wanted: Sequence[str]) -> list[Panel]:
    """Panels of the series that are wanted, in their order; of all that are known, if none is.

    Raises:
        ValueError: a wanted series is not known.
    """
    if unknown := [name for name in wanted if name not in known]:
        raise ValueError(f"unknown series {', '.join(map(repr, unknown))}; these runs hold {', '.join(known)}")
    here, panels = set(wanted or known), []
    for panel in PANELS:
        both = [(s, panel.names[min(k, len(panel.names) - 1)]) for k, s in enumerate(panel.series) if s in here]
        if both:
            panels.append(Panel(panel.title, panel.unit, *zip(*both, strict=True), log=panel.log))
    told = {name for panel in PANELS for name in panel.series}
    panels += [Panel(name, "", (name,)) for name in known if name in here and name not in told]
    if wanted:
        panels.sort(key=lambda panel: min(wanted.index(s) for s in panel.series))
    return panels


def probe_lines(probe: tuple[Any, Any, Any, dict]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Steps and values of what a probe measured, under `held_out_...` and `sample_...`; see `probes.read`."""
    _, scores, samples, _ = probe
    lines: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if len(scores):
        tables = {side: scores.pivot(index="step", columns="row", values=f"{side}_logp") for side in _SIDES}
        steps = tables["chosen"].index.to_numpy(dtype=float)
        now = {side: table.to_numpy(dtype=float) for side, table in tables.items()}
        change = {side: x - x[0] for side, x in now.items()}
        lines |= {f"held_out_{side}": (steps, _row_means(change[side])) for side in _SIDES}
        # at the first step every reward is 0 and every pair a tie
        lines["held_out_reward_accuracy"] = steps, _row_means(_right(change["chosen"] - change["rejected"]))
        lines["held_out_accuracy"] = steps, _row_means(_right(now["chosen"] - now["rejected"]))
    if len(samples):
        table = samples.assign(ended=samples["ended"].astype(float))
        means = table.groupby("step")[["length", "quality", "ended"]].mean().dropna(axis=1, how="all").astype(float)
        lines |= {f"sample_{name}": (means.index.to_numpy(dtype=float), y.to_numpy()) for name, y in means.items()}
    return lines


def _right(margin: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(margin), np.nan, 0.5 + 0.5 * np.sign(np.where(np.abs(margin) < 1e-9, 0, margin)))


def _row_means(table: np.ndarray) -> np.ndarray:
    fine = np.isfinite(table)
    return np.where(fine.any(1), np.where(fine, table, 0).sum(1) / np.maximum(1, fine.sum(1)), np.nan)


def seconds_at(clock: tuple[np.ndarray, np.ndarray] | None, x: np.ndarray) -> np.ndarray | None:
    """Seconds since the start at steps `x`, read off between the steps where the clock was looked at, else NaN."""
    return None if clock is None else np.interp(x, *clock, left=math.nan, right=math.nan)


def mean_line(lines: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray | None]]) -> dict[str, Any]:
    """Mean of lines (steps, values, seconds) at the steps that all of them have; NaN where one of them is NaN."""
    shared = reduce(np.intersect1d, (x for x, _, _ in lines))
    rows, times = [], []
    for x, y, t in lines:
        unique, first = np.unique(x, return_index=True)
        places = first[np.searchsorted(unique, shared)]
        rows.append(y[places])
        times += [] if t is None else [t[places]]
    timed = np.mean(times, axis=0) if len(times) == len(rows) else None
    return {"x": shared, "y": np.mean(rows, axis=0), "t": timed}


# ---------------------------------------------------------------------------------------------------------------- JSON
def cut(text: str, most: int, room: list[int]) -> str:
    """The text, or its beginning and how long it is; `room` counts down."""
    room[0] -= min(len(text), most)
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"


def records(table: pd.DataFrame, room: list[int]) -> list[dict[str, Any]]:
    """Rows as JSON; long texts are cut, and rows beyond the room are left out."""
    found: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        if room[0] <= 0:
            break
        found.append({})
        for name, value in row.items():
            if isinstance(value, str):
                value = cut(value, CUT_ROW, room)
            found[-1][str(name)] = scripted.short([value], 6)[0] if isinstance(value, float) else value
    return found


def sample_records(samples: Any, room: list[int]) -> dict[str, Any] | None:
    """`{"steps", "prompts": [{"text", "at": [[[text, tokens, ended, quality] for k] for step]}], "left_out"}`.

    Steps beyond `STEPS` are taken evenly, first and last included; prompts beyond `PROMPTS` or the room are left out.
    """
    steps = sorted({int(step) for step in samples["step"]})
    if len(steps) > STEPS:
        steps = [steps[round(k * (len(steps) - 1) / (STEPS - 1))] for k in range(STEPS)]
    prompts, left_out = [], 0
    for _, part in samples[samples["step"].isin(steps)].groupby("prompt", sort=True):
        if room[0] <= 0 or len(prompts) >= PROMPTS:
            left_out += 1
            continue
        at: dict[int, list[Any]] = {step: [] for step in steps}
        for row in part.sort_values(["step", "k"]).itertuples():
            quality = None if math.isnan(row.quality) else round(row.quality, 4)
            at[int(row.step)].append([cut(row.text, CUT, room), int(row.length), bool(row.ended), quality])
        prompts.append({"text": cut(part["prompt_text"].iloc[0], CUT, room), "at": list(at.values())})
    return {"steps": steps, "prompts": prompts, "left_out": left_out} if prompts else None
