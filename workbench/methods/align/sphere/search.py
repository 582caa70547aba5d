"""Pruned search over steps: two chains a problem, always the best and always the worst of a few candidate steps.

All problems of a call are searched side by side, depth by depth. At every depth each chain gets E candidates; the "max"
chain goes on with the one of the highest reward, the "min" chain with the one of the lowest. At depth 0 both choose
among the same candidates. So a problem costs at most 2 E D short samples, where a whole tree has E^D leaves.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd

from workbench.kernels import sample
from workbench.tasks.reasoning.process_reward import Scores, check_scores
from workbench.tasks.reasoning.step_pairs import Drawing

log = logging.getLogger(__name__)

SHOWN = 12  # problems of a call whose whole trees are kept for the eye
NODE = ("number", "problem", "depth", "chain", "step", "score", "reward", "picked")  # columns of a candidate
Reward = Literal["progress", "score"]


@dataclass
class Chain:
    """One chain of one problem while it grows."""

    side: str  # "max" or "min"
    steps: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    ended: bool = False
    collapsed: int = 0  # depths at which all candidates were the same

    @property
    def text(self) -> str:
        return "".join(self.steps)


@dataclass(frozen=True)
class Found:
    """What a search leaves: one row a problem, and one row a candidate of the first problems."""

    chains: pd.DataFrame
    nodes: pd.DataFrame


def search(
    how: Drawing,
    asked: Sequence[str],
    problems: Sequence[str],
    scores: Scores,
    *,
    width: int,
    depth: int,
    stop: Sequence[str],
    judge: Callable[[str, str], bool | None],
    reward: Reward = "progress",
    offset: int = 0,
) -> Found:
    """Searches every problem.

    Args:
        how: the policy and how it draws; `max_new_tokens` is of one step.
        asked: what the policy is given (the problem, or a request to correct); one seed each, so that a problem's
            chains do not depend on which other problems are searched beside it.
        problems: what steps are scored and answers judged against.
        scores: process rewards of the steps of a chain, each given all earlier ones.
        stop: texts that end a step; a line break with the label of the next step is not kept.
        judge: whether a final answer is right; None where that cannot be said.
        reward: "progress" is R = s_t + (s_t - s_(t-1)), "score" is R = s_t. Within a chain s_(t-1) is the same for all
            candidates, so both pick the same step; they differ in the numbers kept.
        offset: number of the first problem, for the seeds.

    Returns:
        Chains with columns number, problem, sol_max, sol_min (lists of steps), prm_max, prm_min, correct_max,
        correct_min ("right", "wrong", "unsure"), truncated_max, truncated_min, collapsed, depth, samples, tokens.
    """
    chains = [[Chain("max"), Chain("min")] for _ in problems]
    samples, tokens = np.zeros(len(problems), int), np.zeros(len(problems), int)
    nodes: list[tuple] = []
    for t in range(depth):
        # at depth 0 the two chains are the same, and share their candidates
        live = [(i, c) for i, both in enumerate(chains) for c in range(2 if t else 1) if not both[c].ended]
        if not live:
            break
        options: dict[str, Any] = {"n": width, "stop": list(stop), **_law(how)}
        options["seed"] = [_seed(how.seed, offset + i, t, c) for i, c in live]
        options["prefix"] = [how.policy.encode_part(chains[i][c].text) for i, c in live]
        candidates = sample(how.policy, [asked[i] for i, _ in live], **options)
        for place, (i, c) in enumerate(live):
            chain = chains[i][c]
            given = len(how.policy.encode_part(chain.text))
            samples[i] += width
            tokens[i] += sum(len(ids) - given for ids in candidates.tokens[place])
            texts = candidates.texts[place]
            ends = [ids[-1] in how.policy.end_ids for ids in candidates.tokens[place]]
            steps = (_step(text, chain.text, stop) for text in texts)
            offered = list(dict.fromkeys(zip(steps, ends, strict=True)))
            longer = [[*chain.steps, step] for step, _ in offered]
            values = [check_scores(problems[i], of, scores(problems[i], of))[-1] for of in longer]
            for grown in chains[i] if t == 0 else [chain]:
                before = grown.scores[-1] if grown.scores else None
                gains = [_reward(value, before, reward) for value in values]
                pick = _pick(grown, [step for step, _ in offered], gains)
                if i < SHOWN:
                    nodes += [
                        (offset + i, problems[i], t, grown.side, step, value, gain, k == pick)
                        for k, ((step, _), value, gain) in enumerate(zip(offered, values, gains, strict=True))
                    ]
                grown.collapsed += len(offered) == 1
                grown.steps.append(offered[pick][0])
                grown.scores.append(values[pick])
                grown.ended = offered[pick][1]
    rows = []
    for i, (best, worst) in enumerate(chains):
        row: dict[str, Any] = {"number": offset + i, "problem": problems[i]}
        for side, chain in (("max", best), ("min", worst)):
            said = verdict(judge, problems[i], chain.text, chain.ended)
            row |= {f"sol_{side}": chain.steps, f"prm_{side}": chain.scores}
            row |= {f"correct_{side}": said, f"truncated_{side}": not chain.ended}
        row |= {"collapsed": best.collapsed == len(best.steps), "depth": max(len(best.steps), len(worst.steps))}
        rows.append({**row, "samples": int(samples[i]), "tokens": int(tokens[i])})
    table = pd.DataFrame(rows)
    _warn(table, stop)
    return Found(table, pd.DataFrame(nodes, columns=[*NODE]))


def verdict(judge: Callable[[str, str], bool | None], problem: str, text: str, ended: bool) -> str:
    """ "right", "wrong" (or cut off), or "unsure" where the answers cannot be compared: the problem is set aside."""
    return {True: "right", False: "wrong", None: "unsure"}[judge(problem, text) if ended else False]


def _reward(score: float, before: float | None, reward: Reward) -> float:
    return score if before is None or reward == "score" else score + (score - before)


def _pick(chain: Chain, steps: Sequence[str], rewards: Sequence[float]) -> int:
    """The best candidate; or the worst that is plausible: it says something and repeats no earlier step."""
    if chain.side == "max":
        return int(np.argmax(rewards))
    said = {step.strip() for step in chain.steps}
    plausible = [k for k, step in enumerate(steps) if step.strip() and step.strip() not in said] or range(len(steps))
    return min(plausible, key=lambda k: rewards[k])


def _step(text: str, before: str, stop: Sequence[str]) -> str:
    """The new part of a text; the beginning of the next step's label, where that ended the step, goes."""
    new = text[len(before) :] if text.startswith(before) else text
    for ending in stop:
        if ending.strip() and ending.startswith("\n") and new.endswith(ending):
            new = new.removesuffix(ending)
    return new


def _law(how: Drawing) -> dict[str, Any]:
    return {"max_new_tokens": how.max_new_tokens, "temperature": how.temperature, "top_p": how.top_p}


def _seed(seed: int, number: int, depth: int, chain: int) -> int:
    return ((seed * 1_000_003 + number) * 64 + depth) * 2 + chain


def _warn(table: Any, stop: Sequence[str]) -> None:
    if not len(table):
        return
    if (table["depth"] == 1).mean() > 0.5:
        told = "most solutions are one giant step; steps end at %s: does the model write these?"
        log.warning(told, " or ".join(map(repr, stop)))
    if (share := float(table["collapsed"].mean())) > 0.3:
        told = "%.0f %% of the chains collapsed (all candidates the same at every depth): the temperature is too low"
        log.warning(told, 100 * share)


def random_pairs(
    how: Drawing,
    problems: Sequence[str],
    *,
    n: int,
    judge: Callable[[str, str], bool | None],
    opening: str = "",
    offset: int = 0,
) -> pd.DataFrame:
    """What the search is compared with: of `n` whole samples of each problem one right and one wrong, at random.

    Returns:
        Rows number, problem, chosen, rejected ("" where there is no such sample), ended, tokens.
    """
    seeds = [_seed(how.seed, offset + i, 63, 0) for i in range(len(problems))]
    prefixes = [how.policy.encode_part(opening)] * len(problems)
    samples = sample(how.policy, problems, n=n, seed=seeds, prefix=prefixes, **_law(how))
    rows = []
    for i, problem in enumerate(problems):
        ended = [reason == "stop" for reason in samples.finish_reasons[i]]
        verdicts = [verdict(judge, problem, text, end) for text, end in zip(samples.texts[i], ended, strict=True)]
        rng = np.random.default_rng([how.seed, offset + i])
        sides: dict[str, Any] = {}
        for side, wanted in (("chosen", "right"), ("rejected", "wrong")):
            places = [k for k, said in enumerate(verdicts) if said == wanted]
            place = int(rng.choice(places)) if places else -1
            sides |= {side: samples.texts[i][place] if places else "", f"{side}_ended": bool(places) and ended[place]}
        rows.append({"number": offset + i, "problem": problem, **sides, "tokens": sum(map(len, samples.tokens[i]))})
    return pd.DataFrame(rows)
