"""Relative confidence: ask a model which of two answers it is surer of, and rank its answers by many such matches.

Asked for a number, models say 0.9 almost everywhere. Here every question of one data set is a player, and every
judgment "I am surer of my answer to this one" a match:

    1. answer      every question once, at temperature 0; all scorers below judge these same answers
    2. opponents   n distinct ones drawn for each question, sides by a fair coin                          opponents.py
    3. compare     "of which of your two answers are you more confident?", at temperature 0                 prompts.py
    4. aggregate   y = 1 (left surer), 0 (right), 1/2 (tie or unread) into strengths theta:        workbench.ranking

        Bradley-Terry   argmin  sum -y log p - (1 - y) log(1 - p) + l2 sum_i theta_i^2,
                        p = sigma(theta_left - theta_right)
        Elo             r_left += K (y - E), r_right -= K (y - E),  E = 1 / (1 + 10^((r_right - r_left) / 400))
        TrueSkill       one Gaussian belief a player, updated match by match

and theta is the confidence. How good an order is, the area under accuracy-coverage says: the mean over k of the
accuracy of the k most trusted answers (measures.py). Baselines are the stated number and self-consistency with as many
calls.

Needs questions and a chat model; gold answers only to measure. Rankings never leave a data set.

Source: Shrivastava, Kumar and Liang 2025, "Language Models Prefer What They Know: Relative Confidence Estimation via
Confidence Preferences", arXiv 2502.01126, tables 1 to 9 and its figures. No official code is known; prompts, the hybrid
self-consistency formula (Xiong et al. 2023, average confidence) and the sampling temperature were filled in from memory
of the field.

What differs, and why:
- Elo with "K 400" is ambiguous (update size or logistic scale): `elo` is K 32 at scale 400, `elo_k400` takes 400 as
  the update size.
- Bradley-Terry runs to convergence: it is convex, a stop after 5 steps would only add error.
- One greedy reply gives both the answer and the stated confidence: at temperature 0 nothing is gained by asking twice.
- Ties in a score count as their expectation over random orders, so that file order decides nothing.
- A stated confidence that cannot be read ranks as the mean of those that can (it tells nothing), and is counted. A
  judgment that cannot be read enters as 0.5 and is counted; more than 5 % of them stop the run.
- Opponents can also be chosen by expected information, which is ours; how much it saves is measured beside it.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from workbench import ranking, tasks
from workbench.config import Field, Presets, Source, listed, strict
from workbench.feedback import chat
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.relative_confidence.exposed_facts import ExposedFacts
from workbench.methods.confidence.relative_confidence.measures import (
    controls,
    elo_orders,
    measure,
    over_rounds,
    score_table,
    strengths,
)
from workbench.methods.confidence.relative_confidence.opponents import (
    ask_actively,
    ask_matchups,
    count_unread,
    to_matches,
)
from workbench.methods.confidence.relative_confidence.prompts import ask_judgments
from workbench.methods.confidence.relative_confidence.sensitivity import sensitivity
from workbench.methods.confidence.relative_confidence.world import KnownQuestions
from workbench.runs.run import Run
from workbench.tasks.questions import (
    Question,
    QuestionFile,
    answer_table,
    ask_answers,
    ask_samples,
    by_data_set,
    neutral,
    option_confidence,
    self_consistency,
)

ELO_K_PAPER = 400.0  # "K 400" (tables 8, 9), read as the update size
SCORERS = ("direct", "sc", "hybrid_sc", "elo", "trueskill", "bt", "option_logp")  # whose scores and curves are kept


@strict
class Config(Presets):
    """Defaults are the paper's where a table is named, else ours."""

    n_questions: int = Field(default=150, ge=2)  # of the embedded world; of a file at most so many a data set
    opponents: int = Field(default=15, ge=1)  # n; paper: 5, 10, 15 (tables 8, 9); also self-consistency's samples
    budgets: list[int] = listed(5, 10)  # smaller numbers of opponents, of the same judgments
    # paper: random opponents; the others are explained in `opponents.schedule` and `opponents.next_pairs`
    schedule: Literal["random_opponents", "round_robin", "both_orders", "active"] = "random_opponents"
    compare_active: bool = True  # ask as many judgments of actively chosen pairs beside the random ones
    facts: bool = True  # a small trained transformer beside the simulated model (exposed_facts.py)
    grid: bool = True  # what opponents, noise, ties and Elo's settings change (sensitivity.py)
    cot: bool = False  # let the judge explain itself first; the paper tries both
    sc_temperature: float = Field(default=0.7, gt=0)  # of self-consistency; the paper's value is unknown
    max_tokens: int = Field(default=64, ge=8)  # of a reply; too few for `cot` with a wordy model
    l2: float = Field(default=0.01, ge=0)  # paper: lambda 0.01 (tables 8, 9), per squared nat, without a factor 1/2
    elo_k: float = Field(default=32.0, gt=0)  # rating points, as in chess; K 400 is computed beside it
    elo_passes: int = Field(default=1, ge=1)  # paper: 1 iteration (tables 8, 9)
    shuffles: int = Field(default=20, ge=2)  # random orders of the matches, to see what order alone does to Elo
    on_missing: Literal["stop", "drop"] = "drop"  # a question without a readable answer cannot play
    max_unparsed: float = Field(default=0.05, ge=0, le=1)  # share of unreadable judgments above which the run stops
    garbled: float = Field(default=0.02, ge=0, le=1)  # share of broken replies of the simulated model
    published: Source = ""  # JSON file with the paper's own tables: its claims are then computed again beside ours

    def __post_init__(self):
        super().__post_init__()
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"budgets needs at least one number of opponents, 1 or more; got {self.budgets}")


def open_task(
    config: Config, *, model: str = "", dataset: str = "", device: str = "auto"
) -> KnownQuestions | QuestionFile:
    """The embedded world, or the questions of a file or hub data set with a model to ask; a bad row is named."""
    world = partial(KnownQuestions, n_questions=config.n_questions, garbled=config.garbled)
    real = partial(QuestionFile.load, dataset, model=model, device=device, n_questions=config.n_questions)
    return tasks.open_task(config, model=model, dataset=dataset, world=world, real=real)


def run(task: KnownQuestions | QuestionFile, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Every scorer on every regime and data set of the task, for one seed; all share one transcript.

    Returns:
        `{"arms": {regime: {data set: measurements}}, ...}`. The run folder gets the transcript and, for each data set,
        the tables `matchups` and `scores`; a killed run goes on from them.
    """
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)
    found: dict[str, Any] = {"arms": {}}
    parts: list[Any] = [task]
    if isinstance(task, KnownQuestions):
        found["grid"] = run.cached("grid", lambda: sensitivity(task, seed)) if config.grid else []
        parts += [ExposedFacts(config.n_questions, config.garbled)] if config.facts else []
    for own, arm in ((each, arm) for each in parts for arm in each.arms):
        model, found["arms"][arm] = own.subject(arm, seed), {}
        sensed = own.sensed(arm, seed) if own.is_simulated else {}
        for place, (name, questions) in enumerate(by_data_set(own.questions(seed)).items()):
            part = run.child(arm).child(f"{place}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}")
            found["arms"][arm][name] = rank_questions(questions, model, transcript, config, seed, part, sensed)
    return {**found, "replies": len(transcript), "usage": transcript.usage}


def rank_questions(
    questions: list[Question],
    model: chat.ChatModel,
    transcript: Transcript,
    config: Config,
    seed: int,
    run: Run,
    sensed: Mapping[str, float],
) -> dict[str, Any]:
    """The paper's procedure on one data set: answer, compare, aggregate; then the baselines, and what each is worth.

    Args:
        sensed: what a planted model senses of each question, by `qid`; empty where nobody knows.
    """
    ask = partial(transcript.ask, model)

    def rng(purpose: str) -> np.random.Generator:
        """Draws of one purpose: what a resumed run need not do again must not move what it does."""
        return np.random.default_rng(
            [seed, *(zlib.crc32(text.encode()) for text in (questions[0]["dataset"], purpose))]
        )

    players, dropped = ask_answers(questions, ask, max_tokens=config.max_tokens, on_missing=config.on_missing)
    n, qids = len(players), [p["qid"] for p in players]
    judge = partial(
        ask_judgments, players, model=model, ask=ask, cot=config.cot, max_tokens=config.max_tokens, seed=seed
    )
    draws = rng("active" if config.schedule == "active" else "schedule")
    matchups = run.table(
        "matchups", lambda: ask_matchups(n, config.opponents, config.schedule, judge, draws, l2=config.l2)
    )
    unparsed = count_unread(matchups, model.name, config.max_unparsed, run.folder)
    matches, rounds = to_matches(matchups, qids), matchups["round"].to_numpy()
    ratings = aggregate(matches, n, config)

    k = math.ceil(len(matchups) / n)  # self-consistency gets as many calls as there are judgments
    agree, stated = ask_samples(players, ask, k, temperature=config.sc_temperature, max_tokens=config.max_tokens)
    direct = np.array([p["confidence"] for p in players])
    scores = {"direct": neutral(direct), **self_consistency(agree, stated), **{m: r.scores for m, r in ratings.items()}}
    for few in config.budgets:  # every host's first opponents, every question's first samples
        scores[f"bt_n{few}"] = strengths(matches[rounds < few], n, config.l2)
        scores[f"hybrid_sc_n{few}"] = self_consistency(agree[:, :few], stated[:, :few])["hybrid_sc"]
    elo = {"k": config.elo_k, "passes": config.elo_passes}
    scores |= controls(matches, rounds, n, rng("controls"), budgets=config.budgets, l2=config.l2, elo=elo)
    by_option = option_confidence(players, model, max_tokens=config.max_tokens)
    if by_option is not None and np.isfinite(by_option).any():
        scores["option_logp"] = neutral(by_option)
    kept = [name for name in SCORERS if name in scores]
    run.table("scores", lambda: score_table(answer_table(players), {name: scores[name] for name in kept}, ratings))

    felt = np.array([sensed[qid] for qid in qids] if sensed else [])
    correct = np.array([p["correct"] for p in players], dtype=float)
    by_rounds: dict[str, Any] = {}
    if config.compare_active and config.schedule == "random_opponents":
        chosen = run.table("active_matchups", lambda: ask_actively(n, len(matches), judge, rng("active"), l2=config.l2))
        for name, table in (("random", matchups), ("active", chosen)):
            by_rounds[name] = over_rounds(to_matches(table, qids), table["round"], correct, felt, l2=config.l2)
    read: Any = {"curves": kept, "calibrated": ("direct", "bt"), "against": ("direct", "hybrid_sc")}
    worth = measure(scores, correct, rng("measure"), **read)
    sizes = {"elo": config.elo_k, "elo_k400": ELO_K_PAPER}
    orders = elo_orders(matches, correct, rng("orders"), ks=sizes, passes=config.elo_passes, orders=config.shuffles)
    said = {"n_judgments": len(matches), "n_samples": agree.size, "rounds": int(rounds.max()) + 1}
    unread = {"unparsed_stated": int(np.isnan(direct).sum()), "unparsed_samples": int(np.isnan(agree).sum())}
    unread |= {"unparsed_judgments": unparsed, "ties": matchups["parse_status"].tolist().count("tie")}
    checked = {"transitivity": ranking.transitivity(matches, n), "position": ratings["bt_position"].position}
    sensed_correlation = float(np.corrcoef(felt, scores["bt"])[0, 1]) if sensed else None
    checked |= {"sensed_correlation": sensed_correlation, "by_rounds": by_rounds, "elo_orders": orders}
    return {**worth, "dropped": dropped, **said, **unread, **checked}


def aggregate(matches: np.ndarray, n: int, config: Config) -> dict[str, ranking.Ratings]:
    """Every rating system on the same matches in the same order."""
    elo = partial(ranking.elo, matches, n, passes=config.elo_passes, intervals="none")
    return {
        "elo": elo(k=config.elo_k),
        "elo_k400": elo(k=ELO_K_PAPER),
        "trueskill": ranking.trueskill(matches, n),
        "bt": ranking.bradley_terry(matches, n, l2=config.l2),
        "bt_position": ranking.bradley_terry(matches, n, l2=config.l2, position=True, intervals="none"),
        "win_rate": ranking.win_rate_ranking(matches, n),
    }
