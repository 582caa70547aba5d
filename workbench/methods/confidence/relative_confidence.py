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
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from workbench import metrics, ranking
from workbench.claims import Claims, p_value
from workbench.config import Field, Presets, listed, strict
from workbench.feedback import chat
from workbench.feedback.matchups import Schedule, schedule, to_matches
from workbench.feedback.questions import (
    Question,
    QuestionFile,
    ask_answers,
    ask_samples,
    by_data_set,
    neutral,
    self_consistency,
    shown,
    shown_answer,
)  # fmt: skip
from workbench.runs import Run
from workbench.worlds.known_questions import KnownQuestions

if TYPE_CHECKING:
    from workbench.methods import Experiment

Z_ALPHA = 0.01  # specification: in regime Z, where there is no signal, "no method differs from direct at p < .01"
ELO_K_PAPER = 400.0  # "K 400" (tables 8, 9), read as the update size
COVERAGE = np.arange(1, 21) / 20  # where the accuracy-coverage curve is kept
SCORERS = ("direct", "sc", "hybrid_sc", "elo", "trueskill", "bt")  # whose scores and curves are kept
# Shares of the text and of the options that stay, tried in this order while a prompt is too long.
SHORTEN = ((1.0, 1.0), (0.5, 1.0), (0.25, 1.0), (0.1, 1.0), (0.1, 0.5), (0.1, 0.25), (0.1, 0.1))


@strict
class Config(Presets):
    """Settings of one experiment. Tables are the paper's; "specification" is the project's page about it."""

    n_questions: int = Field(
        default=150, ge=2
    )  # of the embedded world; of a file at most so many a data set, drawn by seed
    opponents: int = Field(default=15, ge=1)  # "5, 10, 15" (tables 8, 9); also self-consistency's samples a question
    budgets: list[int] = listed(5, 10)  # smaller numbers of opponents, of the same judgments
    schedule: Schedule = "random_opponents"  # the paper's; the others are in `feedback.matchups.schedule`
    cot: bool = False  # let the judge explain itself first; the paper tries both
    sc_temperature: float = Field(default=0.7, gt=0)  # specification; the paper's value is unknown
    max_tokens: int = Field(default=64, ge=8)  # of a reply; ours, too few for `cot` with a wordy model
    l2: float = Field(default=0.01, ge=0)  # "lambda 0.01" (tables 8, 9), per squared nat, without a factor 1/2
    elo_k: float = Field(
        default=32.0, gt=0
    )  # rating points; specification, as chess has it. K 400 is computed beside it
    elo_passes: int = Field(default=1, ge=1)  # "1 iteration" (tables 8, 9)
    shuffles: int = Field(default=20, ge=2)  # random orders of the matches, to see what order alone does to Elo; ours
    on_missing: Literal["stop", "drop"] = "drop"  # a question without a readable answer cannot play
    max_unparsed: float = Field(default=0.05, ge=0, le=1)  # share of unreadable judgments above which the run stops
    garbled: float = Field(default=0.02, ge=0, le=1)  # share of broken replies of the simulated model; specification

    # N = 250 a data set: the specification's full experiment. A real model's unread answers should be looked at.
    PRESETS: ClassVar = {"smoke": {"n_questions": 40}, "tiny": {}, "full": {"n_questions": 250, "on_missing": "stop"}}

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
        `{"arms": {regime: {data set: measurements}}, "replies": n}`. The run folder gets the transcript and, for each
        data set, the tables `matchups` and `scores`; a killed run goes on from them.
    """
    transcript = chat.Transcript(run.folder / "transcript.jsonl", keep_requests=not task.is_simulated)
    arms: dict[str, Any] = {arm: {} for arm in task.arms}
    for arm in task.arms:
        model = task.subject(arm, seed)
        sensed = task.sensed(arm, seed) if isinstance(task, KnownQuestions) else {}
        for place, (name, questions) in enumerate(by_data_set(task.questions(seed)).items()):
            part = run.child(arm).child(f"{place}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)}")
            arms[arm][name] = rank_questions(questions, model, transcript, config, seed, part, sensed)
    return {"arms": arms, "replies": len(transcript)}


def rank_questions(
    questions: list[Question], model: chat.ChatModel, transcript: chat.Transcript, config: Config, seed: int, run: Run,
    sensed: Mapping[str, float],
) -> dict[str, Any]:  # fmt: skip
    """The paper's procedure on one data set: answer, sample, compare, rank; then measure."""
    ask = partial(transcript.ask, model)
    rng = np.random.default_rng([seed, zlib.crc32(questions[0]["dataset"].encode())])
    players, dropped = ask_answers(questions, ask, max_tokens=config.max_tokens, on_missing=config.on_missing)
    n, qids = len(players), [p["qid"] for p in players]
    pairs = schedule(n, config.opponents, config.schedule, rng)
    k = math.ceil(len(pairs) / n)  # self-consistency gets as many calls as there are judgments
    agree, stated = ask_samples(players, ask, k, temperature=config.sc_temperature, max_tokens=config.max_tokens)
    matchups = run.table("matchups", lambda: ask_judgments(players, pairs, model, ask, config, seed))
    status = matchups["parse_status"].tolist()
    unparsed = status.count("unparsed")
    if unparsed > config.max_unparsed * len(matchups):
        raise ValueError(
            f"{unparsed} of {len(matchups)} judgments of {model.name} could not be read, more than max_unparsed = "
            f"{config.max_unparsed:g} allows; see raw_text in {run.folder / 'matchups.parquet'}"
        )
    matches, rounds = to_matches(matchups, qids), matchups["round"].to_numpy()
    ratings = aggregate(matches, n, config)
    direct = np.array([p["confidence"] for p in players])
    scores = {"direct": neutral(direct), **self_consistency(agree, stated), **{m: r.scores for m, r in ratings.items()}}
    for few in config.budgets:  # every host's first opponents, every question's first samples
        scores[f"bt_n{few}"] = _bradley_terry(matches[rounds < few], n, config)
        scores[f"hybrid_sc_n{few}"] = self_consistency(agree[:, :few], stated[:, :few])["hybrid_sc"]
    scores |= controls(matches, rounds, n, config, rng)
    run.table("scores", lambda: score_table(players, scores, ratings))
    felt = [sensed[qid] for qid in qids] if sensed else []
    return {
        "dropped": dropped, "n_judgments": len(matches), "n_samples": agree.size, "rounds": int(rounds.max()) + 1,
        "unparsed_stated": int(np.isnan(direct).sum()), "unparsed_samples": int(np.isnan(agree).sum()),
        "unparsed_judgments": unparsed,
        "ties": status.count("tie"), "transitivity": ranking.transitivity(matches, n),
        "position": ratings["bt_position"].position,
        "sensed_correlation": float(np.corrcoef(felt, scores["bt"])[0, 1]) if sensed else None,
        **measure(scores, np.array([p["correct"] for p in players], dtype=float), matches, config, rng),
    }  # fmt: skip


def ask_judgments(
    players: list[Question], pairs: pd.DataFrame, model: chat.ChatModel, ask: Callable, config: Config, seed: int
) -> pd.DataFrame:
    """Every pair shown with the model's own answers, at temperature 0: the matchups table."""
    left, right = pairs["left"].to_numpy(), pairs["right"].to_numpy()
    requests = [compare_request(players[i], players[j], model, config) for i, j in zip(left, right, strict=True)]
    texts = [reply.text for reply in ask(requests)]
    read = [chat.preference(text, "More confident") for text in texts]
    qids = np.array([p["qid"] for p in players])
    return pd.DataFrame(
        {"match_id": [f"m{i}" for i in range(len(pairs))], "round": pairs["round"], "host": qids[pairs["host"]],
         "left": qids[left], "right": qids[right], "outcome": [r.outcome for r in read], "raw_text": texts,
         "parse_status": [r.status for r in read], "model": model.name, "seed": seed}
    )  # fmt: skip


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


def score_table(
    players: list[Question], scores: Mapping[str, np.ndarray], ratings: Mapping[str, ranking.Ratings]
) -> pd.DataFrame:
    """Columns `qid`, `method`, `score`, `rank` (1: surest), `lower`, `upper`, `n_matches`; question and answer."""
    asked = pd.DataFrame(
        {"qid": [p["qid"] for p in players], "question": [p["question"] for p in players],
         "answer": [shown_answer(p["answer"], p) for p in players], "correct": [p["correct"] for p in players]}
    )  # fmt: skip
    parts = []
    for method in SCORERS:
        rated, unknown = ratings.get(method), np.full(len(players), math.nan)
        parts.append(
            asked.assign(
                method=method, score=scores[method],
                rank=(-asked.assign(s=scores[method].round(9))["s"]).rank(method="min").astype(int),
                lower=rated.lower if rated else unknown, upper=rated.upper if rated else unknown,
                n_matches=rated.n_matches if rated else 0,
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


# ------------------------------------------------------------------------------------------------------ measurements
def measure(
    scores: Mapping[str, np.ndarray], correct: np.ndarray, matches: np.ndarray, config: Config, rng: np.random.Generator
) -> dict[str, Any]:
    """What the scores are worth on the questions whose answer is known to be right (1) or wrong (0)."""
    known = np.isfinite(correct)
    y, kept = correct[known], {name: values[known] for name, values in scores.items()}
    if not len(y):
        return {"n": len(correct), "n_labelled": 0}

    def each(metric: Callable, names: Sequence[str] = tuple(kept), **options: Any) -> dict[str, Any]:
        return {name: metric(kept[name], y, **options) for name in names}

    def reordered(k: float) -> list[float]:
        """Elo's AUC with the same matches in other orders."""
        elo = partial(ranking.elo, n_players=len(correct), k=k, passes=config.elo_passes, intervals="none")
        orders = [elo(rng.permutation(matches)).scores[known] for _ in range(config.shuffles)]
        return [metrics.accuracy_coverage_auc(order, y) for order in orders]

    return {
        "n": len(correct), "n_labelled": len(y), "accuracy": float(y.mean()), "oracle": metrics.oracle_auc(y),
        "auc": each(metrics.accuracy_coverage_auc), "auroc": each(metrics.auroc),
        "accuracy_at_0.5": each(metrics.accuracy_at_coverage, coverage=0.5),
        "accuracy_at_0.8": each(metrics.accuracy_at_coverage, coverage=0.8),
        "curves": each(_curve, SCORERS), "calibration": each(calibration, ("direct", "bt"), rng=rng),
        "gain_se": each(partial(_gain_se, kept["bt"]), ("direct", "hybrid_sc"), rng=rng),
        "elo_orders": {"elo": reordered(config.elo_k), "elo_k400": reordered(ELO_K_PAPER)},
    }  # fmt: skip


def _curve(scores: np.ndarray, y: np.ndarray) -> list[float]:
    return [metrics.accuracy_at_coverage(scores, y, coverage) for coverage in COVERAGE]


def calibration(scores: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> dict[str, float]:
    """ECE and Brier score after isotonic regression, fitted on one half of the labels and read on the other, both ways.

    Scores as they come, stated numbers or strengths, are no probabilities; labels can make them some.
    """
    first, p = rng.permutation(len(y)) < (len(y) + 1) // 2, np.zeros(len(y))
    for fit in (first, ~first) if len(y) > 1 else ():
        knots, place, count = np.unique(scores[fit], return_inverse=True, return_counts=True)
        levels = isotonic_regression(np.bincount(place, y[fit]) / count, weights=count).x
        p[~fit] = np.interp(scores[~fit], knots, levels)
    return {"ece": metrics.expected_calibration_error(p, y), "brier": metrics.brier(p, y)}


def _gain_se(scores: np.ndarray, baseline: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> float:
    """Standard error over questions of the difference in AUC: paired bootstrap, 100 rounds."""
    auc = metrics.accuracy_coverage_auc
    draws = rng.integers(len(y), size=(100, len(y)))
    return float(np.std([auc(scores[drawn], y[drawn]) - auc(baseline[drawn], y[drawn]) for drawn in draws], ddof=1))


def values(results: Sequence[Mapping[str, Any]], arm: str, metric: str, name: str = "") -> np.ndarray:
    """[seeds, ...] of `metric` (of scorer `name`) in a regime: the plain mean over the data sets with gold answers.

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
        means.append(np.mean([part[metric][name] if name else part[metric] for part in parts], axis=0))
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
            "measured": gain("bt", baseline, main, metric), "control": gain(off[0], baseline, off[1], metric),
            "control_is": off[2], "control_alpha": Z_ALPHA if world else 0.05, "test": "wilcoxon",
            "unit": "points of AUROC" if metric == "auroc" else "points",
        }  # fmt: skip

    def over_questions(baseline: str) -> dict[str, bool]:
        parts = [] if world else [part for part in results[0]["arms"][main].values() if part["n_labelled"]]
        error = 100 * math.sqrt(sum(part["gain_se"][baseline] ** 2 for part in parts)) / max(len(parts), 1)
        return (
            {"above 1.96 standard errors over questions": gain("bt", baseline).mean() > 1.96 * error} if parts else {}
        )

    also = {f"{name} ahead too": gain(name, "direct").mean() > 0 for name in ("trueskill", "elo")}
    found.test(
        "C1", "Bradley-Terry on confidence preferences beats the stated confidence", paper=".839 against .805",
        paper_effect=3.4, **beats("direct"), also={**also, **over_questions("direct")},
    )  # fmt: skip

    c2 = {"statement": "It beats hybrid self-consistency on average, not everywhere", "paper": ".839 against .824"}
    c3 = {"statement": "The gain over hybrid self-consistency depends on the domain",
          "paper": "STEM .803 against .772, commonsense .875 against .894"}  # fmt: skip
    if world:
        found.needs_full_scale("C2", **c2, why="the embedded world plants which of the two wins (C3)")
        sides = {arm: gain("bt", "hybrid_sc", arm) for arm in "RSZ"}
        signs = {"ahead in R": sides["R"].mean() > 0, "behind in S": sides["S"].mean() < 0}
        found.test(
            "C3", c3["statement"] + " (planted: on which signal is good, R minus S)", paper=c3["paper"],
            measured=sides["R"] - sides["S"], control=sides["Z"], control_is="the gain in regime Z, no signal",
            control_alpha=Z_ALPHA,
            also=signs, test="wilcoxon", unit="points",
        )  # fmt: skip
    else:
        found.test("C2", **c2, paper_effect=1.5, **beats("hybrid_sc"), also=over_questions("hybrid_sc"))
        found.needs_full_scale("C3", **c3, why="needs the paper's 14 data sets by domain")
    found.needs_full_scale(
        "C4", "The gain over direct depends on the model: Llama 3.1 405B most, Claude 3.5 Sonnet least",
        paper="+6.1 and +1.1 points", why="a run has one model; the order needs five large ones",
    )  # fmt: skip

    everyone = min(part["rounds"] for result in results for part in result["arms"][main].values())
    steps = [few for few in sorted(experiment.config.budgets) if few < everyone]
    c5 = {"statement": f"More opponents help, with saturation: {everyone} against {min(steps, default='fewer')}",
          "paper": "gain at 5, 10, 15: 0.9, 1.8, 1.8 % (GPT-4o), 2.2, 3.2, 4.9 % (Llama)"}  # fmt: skip
    if steps:
        auc = [values(results, main, "auc", name).mean() for name in (*(f"bt_n{few}" for few in steps), "bt")]
        slopes = np.diff(auc) / np.diff([*steps, everyone])
        found.test(
            "C5", c5["statement"], paper=c5["paper"], measured=gain("bt", f"bt_n{steps[0]}"), test="wilcoxon",
            control=gain("bt_shuffled", f"bt_shuffled_n{steps[0]}"), control_is="outcomes shuffled", unit="points",
            also={"monotone in the mean": all(slopes >= 0), "later opponents add less": all(np.diff(slopes) <= 0)},
        )  # fmt: skip
    else:
        found.needs_full_scale(
            "C5", **c5, why=f"budgets={experiment.config.budgets} has no smaller number of opponents"
        )

    pairs = (("bt", "trueskill"), ("trueskill", "elo"))
    close = {f"{a} and {b}": p_value(gain(a, b), "equivalent", margin=1.0) < 0.05 for a, b in pairs}
    found.test(
        "C6", "The aggregators are close: Bradley-Terry and Elo (K 32) within one point",
        paper=".839 and .836 (TrueSkill .840)", paper_effect=0.3, measured=gain("bt", "elo"), direction="equivalent",
        margin=1.0, unit="points", also=close, control=gain("bt", "elo_shuffled"), control_is="Elo, outcomes shuffled",
    )  # fmt: skip

    c7 = {"statement": "AUROC tells the same: Bradley-Terry beats the stated confidence", "paper": ".749 against .645"}
    auroc = beats("direct", "auroc")
    if np.isfinite([auroc["measured"], auroc["control"]]).all():
        found.test("C7", **c7, paper_effect=10.4, **auroc)
    else:
        found.needs_full_scale("C7", **c7, why="the answers of a seed are all right or all wrong: AUROC is undefined")
    return found
