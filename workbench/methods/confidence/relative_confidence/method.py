"""Relative confidence: ask a model which of two questions it is surer of, and rank its answers by many such matches.

Asked for a number, models say 0.9 almost everywhere. Here every question of one data set is a player, every judgment
"I am surer of my answer to this one" a match, and the strengths that the matches imply are the confidence scores:

    P(i surer than j) = sigma(theta_i - theta_j),   theta = argmin  sum over matches of -log P + l2 sum_i theta_i^2

**Source**: Shrivastava, Kumar and Liang, arXiv 2502.01126, tables 1 to 9 and its figures. No official code is known;
prompts, the hybrid self-consistency formula (Xiong et al. 2023, average confidence) and the sampling temperature were
filled in from memory of the field.

What differs, and why:
- Elo with "K 400" is ambiguous (update size or logistic scale): `elo` is K 32 at scale 400, `elo_k400` takes 400 as
  the update size.
- Bradley-Terry runs to convergence: it is convex, a stop after 5 steps would only add error.
- One greedy reply gives both the answer and the stated confidence: at temperature 0 nothing is gained by asking twice.
- Ties in a score count as their expectation over random orders, so that file order decides nothing.
- A stated confidence that cannot be read ranks as the mean of those that can (it tells nothing), and is counted. A
  judgment that cannot be read enters as 0.5 and is counted; more than 5 % of them stop the run.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd

from workbench import ranking
from workbench.claims import Claims, p_value
from workbench.config import Field, Presets, listed, strict
from workbench.feedback import chat, replies
from workbench.feedback.transcript import Transcript
from workbench.methods.confidence.relative_confidence import published as published_confidence
from workbench.methods.confidence.relative_confidence.exposed_facts import ExposedFacts
from workbench.methods.confidence.relative_confidence.measures import elo_orders, measure, over_rounds, score_table
from workbench.methods.confidence.relative_confidence.opponents import count_unread, next_pairs, schedule, to_matches
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
    shown,
    shown_answer,
)

if TYPE_CHECKING:
    from workbench.methods.experiment import Experiment

Z_ALPHA = 0.01  # specification: in regime Z, where there is no signal, "no method differs from direct at p < .01"
ELO_K_PAPER = 400.0  # "K 400" (tables 8, 9), read as the update size
SCORERS = ("direct", "sc", "hybrid_sc", "elo", "trueskill", "bt", "option_logp")  # whose scores and curves are kept
# Shares of the text and of the options that stay, tried in this order while a prompt is too long.
SHORTEN = ((1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.1, 1.0), (0.1, 0.5), (0.1, 0.25), (0.1, 0.1))


@strict
class Config(Presets):
    """Settings of one experiment. Tables are the paper's; "specification" is the project's page about it."""

    n_questions: int = Field(default=150, ge=2)  # of the embedded world; of a file at most so many a data set
    opponents: int = Field(default=15, ge=1)  # "5, 10, 15" (tables 8, 9); also self-consistency's samples a question
    budgets: list[int] = listed(5, 10)  # smaller numbers of opponents, of the same judgments
    # The paper's first; the others are explained in `feedback.matchups` and `feedback.active`.
    schedule: Literal["random_opponents", "round_robin", "both_orders", "active"] = "random_opponents"
    compare_active: bool = True  # ask as many judgments of actively chosen pairs beside the random ones; ours
    facts: bool = True  # level B of the specification: a small trained transformer beside the simulated model
    grid: bool = True  # level C: what opponents, noise, ties and Elo's settings change
    cot: bool = False  # let the judge explain itself first; the paper tries both
    sc_temperature: float = Field(default=0.7, gt=0)  # specification; the paper's value is unknown
    max_tokens: int = Field(default=64, ge=8)  # of a reply; ours, too few for `cot` with a wordy model
    l2: float = Field(default=0.01, ge=0)  # "lambda 0.01" (tables 8, 9), per squared nat, without a factor 1/2
    elo_k: float = Field(default=32.0, gt=0)  # rating points; specification, as in chess. K 400 is computed beside it
    elo_passes: int = Field(default=1, ge=1)  # "1 iteration" (tables 8, 9)
    shuffles: int = Field(default=20, ge=2)  # random orders of the matches, to see what order alone does to Elo; ours
    on_missing: Literal["stop", "drop"] = "drop"  # a question without a readable answer cannot play
    max_unparsed: float = Field(default=0.05, ge=0, le=1)  # share of unreadable judgments above which the run stops
    garbled: float = Field(default=0.02, ge=0, le=1)  # share of broken replies of the simulated model; specification
    published: str = ""  # JSON file with the paper's own tables: its claims are then computed again beside ours

    # N = 250 a data set: the specification's full experiment. A real model's unread answers should be looked at.
    PRESETS: ClassVar = {
        "smoke": {"n_questions": 40},
        "tiny": {},
        "full": {"n_questions": 250, "on_missing": "stop", "compare_active": False},
    }
    ON_TEXT: ClassVar = {"tiny": {"compare_active": False}, "smoke": {"compare_active": False, "n_questions": 12}}

    def __post_init__(self):
        if not self.budgets or min(self.budgets) < 1:
            raise ValueError(f"budgets needs at least one number of opponents, 1 or more; got {self.budgets}")


# ------------------------------------------------------------------------------------------------- task and prompts
def open_task(
    config: Config, *, model: str = "", dataset: str = "", device: str = "auto"
) -> KnownQuestions | QuestionFile:
    """The embedded world, or the questions of a file or hub data set with a model to ask.

    Raises:
        ValueError: one of model and dataset without the other; a bad row (see `questions.check_questions`).
    """
    if not model and not dataset:
        return KnownQuestions(n_questions=config.n_questions, garbled=config.garbled)
    if not model or not dataset:
        raise ValueError(
            f"model={model!r} and dataset={dataset!r}: give both for real questions, or neither for the embedded world"
        )
    return QuestionFile.load(dataset, model=model, device=device, n_questions=config.n_questions)


def compare_prompt(left: str, right: str, cot: bool) -> str:
    """Asks which of two answered questions the model is surer of."""
    reasons = "You may explain your choice in a sentence or two first." if cot else "Give no reasons."
    return (
        "Here are two questions, each with the answer that you gave. Which of your two answers are you more confident "
        f'is right?\n\nQuestion 1: {left}\n\nQuestion 2: {right}\n\n{reasons} End with the line "More confident: 1" or '
        '"More confident: 2".'
    )


def compare_request(left: Question, right: Question, model: chat.ChatModel, config: Config) -> chat.Request:
    """The prompt for two players. One that is too long loses question text first, options last, answers never."""
    for text_share, option_share in SHORTEN:
        first, second = (
            f"{shown(p, text_share=text_share, option_share=option_share)}\nYour answer: {shown_answer(p['answer'], p)}"
            for p in (left, right)
        )
        request = chat.Request(chat.user(compare_prompt(first, second, config.cot)), max_tokens=config.max_tokens)
        if model.fits(request):
            return request
    raise ValueError(
        f"questions {left['qid']!r} and {right['qid']!r} are too long for the context of {model.name}, even shortened; "
        "leave one of them out"
    )


# -------------------------------------------------------------------------------------------------------- algorithm
def run(task: KnownQuestions | QuestionFile, config: Config, seed: int, run: Run) -> dict[str, Any]:
    """Every scorer on every regime and data set of the task, for one seed. Rankings never leave a data set.

    Returns:
        `{"arms": {regime: {data set: measurements}}, ...}`. The run folder gets the transcript and, for each data set,
        the tables `matchups` and `scores`; a killed run goes on from them.
    """
    transcript = Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)
    found: dict[str, Any] = {"arms": {}}
    tasks: list[Any] = [task]
    if isinstance(task, KnownQuestions):
        found["grid"] = run.cached("grid", lambda: sensitivity(task, seed)) if config.grid else []
        tasks += [ExposedFacts(config.n_questions, config.garbled)] if config.facts else []
    for own, arm in ((each, arm) for each in tasks for arm in each.arms):
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
    """The paper's procedure on one data set: answer, sample, compare, rank; then measure."""
    ask = partial(transcript.ask, model)

    def rng(purpose: str) -> np.random.Generator:
        """Draws of one purpose: what a resumed run need not do again must not move what it does."""
        return np.random.default_rng(
            [seed, *(zlib.crc32(text.encode()) for text in (questions[0]["dataset"], purpose))]
        )

    players, dropped = ask_answers(questions, ask, max_tokens=config.max_tokens, on_missing=config.on_missing)
    n, qids = len(players), [p["qid"] for p in players]
    judge = partial(ask_judgments, players, model=model, ask=ask, config=config, seed=seed)
    opponents = min(config.opponents, n - 1)
    if config.schedule == "active":
        matchups = run.table("matchups", lambda: ask_actively(n, n * opponents, judge, config, rng("active")))
    else:
        pairs = schedule(n, config.opponents, config.schedule, rng("schedule"))
        matchups = run.table("matchups", lambda: judge(pairs))
    k = math.ceil(len(matchups) / n)  # self-consistency gets as many calls as there are judgments
    agree, stated = ask_samples(players, ask, k, temperature=config.sc_temperature, max_tokens=config.max_tokens)
    unparsed = count_unread(matchups, model.name, config.max_unparsed, run.folder)
    matches, rounds = to_matches(matchups, qids), matchups["round"].to_numpy()
    ratings = aggregate(matches, n, config)
    direct = np.array([p["confidence"] for p in players])
    scores = {"direct": neutral(direct), **self_consistency(agree, stated), **{m: r.scores for m, r in ratings.items()}}
    for few in config.budgets:  # every host's first opponents, every question's first samples
        scores[f"bt_n{few}"] = _bradley_terry(matches[rounds < few], n, config)
        scores[f"hybrid_sc_n{few}"] = self_consistency(agree[:, :few], stated[:, :few])["hybrid_sc"]
    scores |= controls(matches, rounds, n, config, rng("controls"))
    by_option = option_confidence(players, model, max_tokens=config.max_tokens)
    if by_option is not None and np.isfinite(by_option).any():
        scores["option_logp"] = neutral(by_option)
    kept = [name for name in SCORERS if name in scores]
    run.table("scores", lambda: score_table(answer_table(players), {name: scores[name] for name in kept}, ratings))
    felt = np.array([sensed[qid] for qid in qids] if sensed else [])
    correct = np.array([p["correct"] for p in players], dtype=float)
    by_rounds: dict[str, Any] = {}
    if config.compare_active and config.schedule == "random_opponents":
        chosen = run.table("active_matchups", lambda: ask_actively(n, len(matches), judge, config, rng("active")))
        for name, table in (("random", matchups), ("active", chosen)):
            by_rounds[name] = over_rounds(
                to_matches(table, qids), table["round"].to_numpy(), correct, felt, l2=config.l2
            )
    return {
        "dropped": dropped,
        "n_judgments": len(matches),
        "n_samples": agree.size,
        "rounds": int(rounds.max()) + 1,
        "unparsed_stated": int(np.isnan(direct).sum()),
        "unparsed_samples": int(np.isnan(agree).sum()),
        "unparsed_judgments": unparsed,
        "ties": matchups["parse_status"].tolist().count("tie"),
        "transitivity": ranking.transitivity(matches, n),
        "position": ratings["bt_position"].position,
        "by_rounds": by_rounds,
        "sensed_correlation": float(np.corrcoef(felt, scores["bt"])[0, 1]) if sensed else None,
        **measure(
            scores,
            correct,
            rng("measure"),
            curves=kept,
            calibrated=("direct", "bt"),
            against=("direct", "hybrid_sc"),
            main="bt",
        ),
        "elo_orders": elo_orders(
            matches,
            correct,
            rng("orders"),
            ks={"elo": config.elo_k, "elo_k400": ELO_K_PAPER},
            passes=config.elo_passes,
            orders=config.shuffles,
        ),
    }


def ask_judgments(
    players: list[Question], pairs: pd.DataFrame, *, model: chat.ChatModel, ask: Callable, config: Config, seed: int
) -> pd.DataFrame:
    """Every pair shown with the model's own answers, at temperature 0: the matchups table."""
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    requests = [compare_request(players[i], players[j], model, config) for i, j in zip(left, right, strict=True)]
    texts = [reply.text for reply in ask(requests)]
    read = [replies.preference(text, "More confident") for text in texts]
    qids = np.array([p["qid"] for p in players])
    return pd.DataFrame(
        {
            "match_id": [f"m{i}" for i in range(len(pairs))],
            "round": pairs["round"],
            "host": qids[pairs["host"]],
            "left": qids[left],
            "right": qids[right],
            "outcome": [r.outcome for r in read],
            "raw_text": texts,
            "parse_status": [r.status for r in read],
            "model": model.name,
            "seed": seed,
        }
    )


def ask_actively(
    n: int, total: int, judge: Callable[[pd.DataFrame], pd.DataFrame], config: Config, rng: np.random.Generator
) -> pd.DataFrame:
    """Up to `total` judgments, batch by batch, each batch chosen by what the judgments before it left open."""
    judged, matches = [], np.empty((0, 3))
    while len(matches) < total:
        pairs = next_pairs(matches, n, rng, l2=config.l2)[: total - len(matches)]
        if not len(pairs):
            break  # every pair was judged
        numbers = len(matches) + np.arange(len(pairs))
        table = judge(
            pd.DataFrame({"round": numbers // n, "host": pairs[:, 0], "left": pairs[:, 0], "right": pairs[:, 1]})
        )
        judged.append(table.assign(match_id=[f"a{number}" for number in numbers]))
        matches = np.vstack([matches, np.column_stack([pairs, table["outcome"]])])
    return pd.concat(judged, ignore_index=True)


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


def controls(
    matches: np.ndarray, rounds: np.ndarray, n: int, config: Config, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Scores that must carry no signal (outcomes shuffled over the matches) or the opposite one (outcomes negated)."""
    shuffled, negated = matches.copy(), matches.copy()
    shuffled[:, 2], negated[:, 2] = rng.permutation(matches[:, 2]), 1 - matches[:, 2]
    few = {f"bt_shuffled_n{few}": _bradley_terry(shuffled[rounds < few], n, config) for few in config.budgets}
    elo = ranking.elo(shuffled, n, k=config.elo_k, passes=config.elo_passes, intervals="none").scores
    full = {"bt_shuffled": _bradley_terry(shuffled, n, config), "bt_negated": _bradley_terry(negated, n, config)}
    return {**few, **full, "elo_shuffled": elo}


def _bradley_terry(matches: np.ndarray, n: int, config: Config) -> np.ndarray:
    return ranking.bradley_terry(matches, n, l2=config.l2, intervals="none").scores


def values(results: Sequence[Mapping[str, Any]], arm: str, metric: str, *names: str) -> np.ndarray:
    """[seeds, ...] of `metric` (of scorer `names`) in a regime: the plain mean over the data sets with gold answers.

    Raises:
        ValueError: no question has a gold answer.
    """
    means = []
    for result in results:
        parts = [part for part in result["arms"][arm].values() if part["n_labelled"]]
        if not parts:
            raise ValueError(
                "no question has a gold answer, so nothing can be measured; the rankings are in scores.parquet"
            )
        means.append(np.mean([reduce(getitem, names, part[metric]) for part in parts], axis=0))
    return np.array(means, dtype=float)


# ----------------------------------------------------------------------------------------------------------- claims
def claims(experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> Claims:
    """The claims of the specification page, in points: 0.01 of the area under accuracy-coverage.

    Where the questions are real, the seeds share them and differ in opponents, sides and samples; a gain must then also
    be larger than its standard error over questions allows for.
    """
    world, main = experiment.task.is_simulated, experiment.task.arms[0]
    # A simulated model shows that a pipeline works in small, whatever its size; "full" is for real models.
    scale = "tiny" if world and experiment.scale == "full" else experiment.scale
    found = Claims("relative_confidence", scale, experiment.seeds)

    def gain(method: str, baseline: str, arm: str = main, metric: str = "auc") -> Any:  # array [seeds]
        return 100 * (values(results, arm, metric, method) - values(results, arm, metric, baseline))

    def beats(baseline: str, metric: str = "auc") -> dict[str, Any]:
        """Bradley-Terry's gain over a baseline, beside the same gain where there is no signal."""
        off = ("bt", "Z", "the same in regime Z, no signal") if world else ("bt_shuffled", main, "outcomes shuffled")
        return {
            "measured": gain("bt", baseline, main, metric),
            "control": gain(off[0], baseline, off[1], metric),
            "control_is": off[2],
            "control_alpha": Z_ALPHA if world else 0.05,
            "test": "wilcoxon",
            "unit": "points of AUROC" if metric == "auroc" else "points",
        }

    def over_questions(baseline: str) -> dict[str, bool]:
        parts = [] if world else [part for part in results[0]["arms"][main].values() if part["n_labelled"]]
        error = 100 * math.sqrt(sum(part["gain_se"][baseline] ** 2 for part in parts)) / max(len(parts), 1)
        return (
            {"above 1.96 standard errors over questions": gain("bt", baseline).mean() > 1.96 * error} if parts else {}
        )

    also = {f"{name} ahead too": gain(name, "direct").mean() > 0 for name in ("trueskill", "elo")}
    found.test(
        "C1",
        "Bradley-Terry on confidence preferences beats the stated confidence",
        paper=".839 against .805",
        paper_effect=3.4,
        **beats("direct"),
        also={**also, **over_questions("direct")},
    )

    c2 = {"statement": "It beats hybrid self-consistency on average, not everywhere", "paper": ".839 against .824"}
    c3 = {
        "statement": "The gain over hybrid self-consistency depends on the domain",
        "paper": "STEM .803 against .772, commonsense .875 against .894",
    }
    if world:
        found.needs_full_scale("C2", **c2, why="the embedded world plants which of the two wins (C3)")
        sides = {arm: gain("bt", "hybrid_sc", arm) for arm in "RSZ"}
        signs = {"ahead in R": sides["R"].mean() > 0, "behind in S": sides["S"].mean() < 0}
        found.test(
            "C3",
            c3["statement"] + " (planted: on which signal is good, R minus S)",
            paper=c3["paper"],
            measured=sides["R"] - sides["S"],
            control=sides["Z"],
            control_is="the gain in regime Z, no signal",
            control_alpha=Z_ALPHA,
            also=signs,
            test="wilcoxon",
            unit="points",
        )
    else:
        found.test("C2", **c2, paper_effect=1.5, **beats("hybrid_sc"), also=over_questions("hybrid_sc"))
        found.needs_full_scale("C3", **c3, why="needs the paper's 14 data sets by domain")
    found.needs_full_scale(
        "C4",
        "The gain over direct depends on the model: Llama 3.1 405B most, Claude 3.5 Sonnet least",
        paper="+6.1 and +1.1 points",
        why="a run has one model; the order needs five large ones",
    )

    everyone = min(part["rounds"] for result in results for part in result["arms"][main].values())
    steps = [few for few in sorted(experiment.config.budgets) if few < everyone]
    c5 = {
        "statement": f"More opponents help, with saturation: {everyone} against {min(steps, default='fewer')}",
        "paper": "gain at 5, 10, 15: 0.9, 1.8, 1.8 % (GPT-4o), 2.2, 3.2, 4.9 % (Llama)",
    }
    if steps:
        auc = [values(results, main, "auc", name).mean() for name in (*(f"bt_n{few}" for few in steps), "bt")]
        slopes = np.diff(auc) / np.diff([*steps, everyone])
        found.test(
            "C5",
            c5["statement"],
            paper=c5["paper"],
            measured=gain("bt", f"bt_n{steps[0]}"),
            test="wilcoxon",
            control=gain("bt_shuffled", f"bt_shuffled_n{steps[0]}"),
            control_is="outcomes shuffled",
            unit="points",
            also={"monotone in the mean": all(slopes >= 0), "later opponents add less": all(np.diff(slopes) <= 0)},
        )
    else:
        found.needs_full_scale(
            "C5", **c5, why=f"budgets={experiment.config.budgets} has no smaller number of opponents"
        )

    pairs = (("bt", "trueskill"), ("trueskill", "elo"))
    close = {f"{a} and {b}": p_value(gain(a, b), "equivalent", margin=1.0) < 0.05 for a, b in pairs}
    found.test(
        "C6",
        "The aggregators are close: Bradley-Terry and Elo (K 32) within one point",
        paper=".839 and .836 (TrueSkill .840)",
        paper_effect=0.3,
        measured=gain("bt", "elo"),
        direction="equivalent",
        margin=1.0,
        unit="points",
        also=close,
        control=gain("bt", "elo_shuffled"),
        control_is="Elo, outcomes shuffled",
    )

    c7 = {"statement": "AUROC tells the same: Bradley-Terry beats the stated confidence", "paper": ".749 against .645"}
    if world:
        found_in_worlds(found, experiment, results)
    if experiment.config.published:
        published_confidence.rederive(found, published_confidence.load(experiment.config.published))
    auroc = beats("direct", "auroc")
    if np.isfinite([auroc["measured"], auroc["control"]]).all():
        found.test("C7", **c7, paper_effect=10.4, **auroc)
    else:
        found.needs_full_scale("C7", **c7, why="the answers of a seed are all right or all wrong: AUROC is undefined")
    return found


def found_in_worlds(found: Claims, experiment: Experiment, results: Sequence[Mapping[str, Any]]) -> None:
    """What the embedded worlds add to the paper's claims: active matchups (ours), and level B of the specification."""
    config, (main, *_) = experiment.config, experiment.task.arms
    few = min(config.budgets)

    def active_gain(arm: str) -> Any:
        return (
            100
            * np.diff(
                [values(results, arm, "by_rounds", name, "auc")[:, few - 1] for name in ("random", "active")], axis=0
            )[0]
        )

    if config.compare_active and config.schedule == "random_opponents":
        found.test(
            "A1",
            f"Opponents chosen by expected information beat random ones at {few} judgments a question",
            paper="not in the paper",
            measured=active_gain(main),
            control=active_gain("Z"),
            test="wilcoxon",
            unit="points",
            control_is="regime Z, no signal",
            control_alpha=Z_ALPHA,
        )
    several = "bt_n10" if 10 in config.budgets else "bt"
    read = {"F": ("1", "at temperature 0"), "FT": ("2", "at temperature 0.7")}
    for arm, (number, how) in read.items() if config.facts else ():
        area = partial(values, results, arm, "auc")
        shuffled = area(several.replace("bt", "bt_shuffled"))
        stated, raw = area("direct"), area("option_logp")
        found.test(
            f"B{number}a",
            f"A trained transformer judged {how}: comparisons rank better than its coarse stated number",
            paper="expected by the specification (level B)",
            measured=100 * (area(several) - stated),
            test="wilcoxon",
            unit="points",
            control=100 * (shuffled - stated),
            control_is="outcomes shuffled",
            also={"the stated number above the accuracy": bool((stated > values(results, arm, "accuracy")).all())},
        )
        found.test(
            f"B{number}b",
            f"A trained transformer judged {how}: comparisons come within one point of its raw probability",
            paper="expected by the specification (level B)",
            measured=100 * (area(several) - raw),
            direction="equivalent",
            margin=1.0,
            unit="points",
            control=100 * (shuffled - raw),
            control_is="outcomes shuffled",
        )
