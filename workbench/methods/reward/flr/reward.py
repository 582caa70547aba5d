"""The reward made of follow-ups, over a task: who scores, tuning on written feedback, the ranking test, and real text.

`config` is that of the method.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench import data, runs
from workbench.methods.reward.flr.conversations import ACCEPT, as_feedback, read_accept_reject
from workbench.methods.reward.flr.follow_ups import (
    POSE,
    STATISTICS,
    FollowUps,
    Scored,
    before_follow_up,
    fits,
    follow_up_scores,
    pairwise_accuracy,
    rating_agreement,
)
from workbench.models import Policy
from workbench.runs.run import Run
from workbench.tasks.protocols import FollowUpTask
from workbench.tasks.real import TextTask
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import reference_logps
from workbench.training.steps import supervised_step

log = logging.getLogger(__name__)


# ------------------------------------------------------------------------------------------------------------ scorers
def score_rows(
    task: FollowUpTask,
    config: Any,
    scorer: str,
    seed: int,
    shared: Run,
    rows: Sequence[data.Row],
    statistic: str = "",
    policy: Policy | None = None,
) -> Scored:
    """Follow-up scores of rows with `prompt` and `response`; each different row is scored once.

    Args:
        statistic: "" takes the configuration's.
        policy: the model behind the scorer, where it is at hand.
    """
    places: dict[str, int] = {}
    index = [places.setdefault(f"{row['prompt']}\n{row['response']}", len(places)) for row in rows]
    first = [rows[index.index(i)] for i in range(len(places))]
    scored = follow_up_scores(
        policy or policy_of(task, config, scorer, seed, shared),
        first,
        follow_ups_of(task, config),
        layout=layout_of(config, scorer),
        statistic=statistic or config.statistic,
        pose=getattr(task, "pose", POSE),
        max_length=config.max_length,
    )
    return Scored(scored.follow_ups, scored.likelihoods[index], scored.key, scored.cut_share)


def follow_ups_of(task: FollowUpTask, config: Any) -> FollowUps:
    found = FollowUps.of(getattr(task, "follow_ups", None) or FollowUps.of().sets, config.dimensions)
    n = config.phrases or None
    return FollowUps({d: {p: phrases[:n] for p, phrases in both.items()} for d, both in found.sets.items()})


def layout_of(config: Any, scorer: str) -> Any:
    """Where a scorer expects the follow-up; "swapped" is a scorer tuned with the roles swapped, whatever the others
    do."""
    return {"tuned": config.tuned_layout, "mistuned": config.tuned_layout, "swapped": "swapped"}.get(
        scorer, "next_turn"
    )


def policy_of(task: Any, config: Any, scorer: str, seed: int, shared: Run) -> Policy:
    """The model behind a scorer: the start, the start of a world whose listener is deaf, or one tuned on feedback."""
    if scorer == "deaf":
        return task.deaf(seed)
    if scorer == "flr":
        return (
            Policy.load(config.scorer, device=getattr(task, "device", "auto"), precision=config.precision)
            if config.scorer
            else task.start(seed)
        )
    key = {"kind": scorer, "code": runs.code_hash(__name__)}
    folder = runs.cached_folder(
        key, lambda folder: tuned(task, config, seed, shared, scorer).save(folder), root=shared.folder
    )
    return Policy.load(folder, device=getattr(task, "device", "auto"), dtype="float32")


def tuned(task: Any, config: Any, seed: int, shared: Run, scorer: str) -> Policy:
    """The scorer after supervised learning on dialogues with written feedback; only the feedback is learned."""
    policy, pose = policy_of(task, config, "flr", seed, shared), getattr(task, "pose", POSE)
    groups = []
    for row in task.feedback(seed, shuffled=scorer == "mistuned"):
        ids, _ = before_follow_up(policy, row["prompt"], row["response"], layout=layout_of(config, scorer), pose=pose)
        groups.append(policy.group(ids, [row["feedback"]], max_length=config.max_length))
    settings = TrainConfig(
        learning_rate=config.tuning_rate, batch_size=config.tuning_batch, schedule="cosine", warmup_ratio=0.02
    )
    train(policy, groups, supervised_step, settings, shared.child(scorer), seed=seed)
    return policy


# ----------------------------------------------------------------------------------------------------- the ranking test
def ranking_test(task: Any, config: Any, seed: int, run: Run, shared: Run) -> dict[str, float]:
    """Pairwise accuracy of the reward and of its controls on held-out pairs; ties count half."""
    start = task.start(seed)
    pairs = _that_fit(start, task, config, task.preferences("test", seed))
    rows = [{"prompt": row["prompt"], "response": row[side]} for side in ("chosen", "rejected") for row in pairs]

    def accuracy(values: np.ndarray) -> float:
        return pairwise_accuracy(values[: len(pairs)], values[len(pairs) :])

    start = task.start(seed)
    groups = [
        start.group(row["prompt"], [row["chosen"], row["rejected"]], max_length=config.max_length) for row in pairs
    ]
    own = reference_logps(start, groups) / [[len(ids) for ids in group.responses_ids] for group in groups]
    numbers = {
        "pairs": len(pairs),
        "own_likelihood": pairwise_accuracy(own[:, 0], own[:, 1]),
        "length": accuracy(np.array([len(row["response"].split()) for row in rows], float)),
    }
    scorers = ["flr", *(["deaf"] if hasattr(task, "deaf") else [])]
    if hasattr(task, "feedback") and (config.feedback or hasattr(task, "deaf")):
        scorers += ["tuned", "mistuned", *(["swapped"] if config.tuned_layout != "swapped" else [])]
    run.cached("phrases", lambda: follow_ups_of(task, config).table)
    for scorer in scorers:
        policy = start if scorer == "flr" and not config.scorer else policy_of(task, config, scorer, seed, shared)
        for statistic in STATISTICS:
            scored = score_rows(task, config, scorer, seed, shared, rows, statistic, policy)
            numbers[f"{scorer}_{statistic}"] = accuracy(scored.flr)
            if statistic != config.statistic:
                continue
            numbers |= {scorer: accuracy(scored.flr), f"{scorer}_positive": accuracy(scored.dimension("", "positive"))}
            few = min(len(phrases) for both in scored.follow_ups.sets.values() for phrases in both.values())
            ones = [accuracy(scored.of_phrases([i])) for i in range(few)]
            some = [accuracy(scored.of_phrases([(i + k) % few for k in range(max(few // 2, 1))])) for i in range(few)]
            numbers |= {
                f"{scorer}_one_phrase": float(np.mean(ones)),
                f"{scorer}_one_phrase_sd": float(np.std(ones)),
                f"{scorer}_half_phrases_sd": float(np.std(some)),
            }
            if hasattr(task, "deaf"):  # a world knows the quality of every response
                truth = task.score([row["prompt"] for row in rows], [row["response"] for row in rows])
                numbers |= {f"{scorer}_{name}": value for name, value in rating_agreement(scored.flr, truth).items()}
            if scorer in ("flr", "tuned"):
                run.table(f"scores-{scorer}", partial(_table, rows, len(pairs), scored))
    return numbers


def _that_fit(policy: Policy, task: Any, config: Any, pairs: Sequence[data.Row]) -> list[data.Row]:
    """Pairs whose responses can be scored whole in every layout that is used; the others are left out and counted.

    Raises:
        ValueError: none is left.
    """
    follow, pose = follow_ups_of(task, config), getattr(task, "pose", POSE)
    layouts = {"next_turn", config.tuned_layout}
    fine = [
        row
        for row in pairs
        if all(
            fits(
                policy,
                {"prompt": row["prompt"], "response": row[side]},
                follow,
                layout=layout,
                pose=pose,
                max_length=config.max_length,
            )
            for side in ("chosen", "rejected")
            for layout in layouts
        )
    ]
    if not fine:
        raise ValueError(
            f"none of {len(pairs)} pairs fits into max_length={config.max_length or policy.max_length} with its"
            " follow-ups"
        )
    if len(fine) < len(pairs):
        log.warning(
            "%d of %d pairs have a response too long to be scored whole: left out", len(pairs) - len(fine), len(pairs)
        )
    return fine


def _table(rows: Sequence[data.Row], n: int, scored: Scored) -> pd.DataFrame:
    """Every scored response with the likelihoods of all its phrases, in the order of the set."""
    return pd.DataFrame(
        {
            "prompt": [str(row["prompt"]) for row in rows],
            "response": [row["response"] for row in rows],
            "side": ["chosen"] * n + ["rejected"] * (len(rows) - n),
            "flr": scored.flr,
            "key": scored.key,
            "likelihoods": scored.likelihoods.tolist(),
        }
    )


# ---------------------------------------------------------------------------------------------------------- real text
class FollowUpText(TextTask):
    """Pairs of a data set (or of two aligned files), a starting model, and feedback in words where there is some."""

    feedback_source = ""

    def read(self) -> list[data.Row]:
        return read_accept_reject(self.dataset) if ACCEPT in Path(self.dataset).name else super().read()

    def feedback(self, seed: int, *, shuffled: bool = False) -> list[data.Row]:
        if not self.feedback_source:
            raise ValueError(
                "the arms with a tuned scorer need rows with prompt, response and feedback: give `feedback`, or leave"
                " them out"
            )
        rows = as_feedback(data.load(self.feedback_source))
        order = np.random.default_rng([seed, 3]).permutation(len(rows)) if shuffled else range(len(rows))
        return [{**row, "feedback": rows[i]["feedback"]} for row, i in zip(rows, order, strict=True)]
