"""The data stages of Step-DPO: wrong solutions, their first wrong step, and how the model goes on better from there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from workbench.kernels import sample
from workbench.models import Policy
from workbench.tasks.reasoning.solution_steps import cut_before, locate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Drawing:
    """How solutions are drawn: by whom, at which temperature, and with which seed."""

    policy: Policy
    temperature: float
    top_p: float
    max_new_tokens: int
    seed: int


def solutions(
    task: Any, how: Drawing, prompts: Sequence[str], n: int, *, stage: int, starts: Sequence[str] = ()
) -> list[list[tuple[str, bool]]]:
    """`n` solutions to each prompt, each with the beginning it was given: lists of (text, whether it ended by itself).

    Args:
        stage: another number draws other solutions.
        starts: given beginnings; by default the task's opening.
    """
    if not prompts:
        return []
    starts = starts or [task.opening] * len(prompts)
    samples = sample(
        how.policy,
        prompts,
        n=n,
        max_new_tokens=how.max_new_tokens,
        temperature=how.temperature,
        top_p=how.top_p,
        seed=how.seed * 10 + stage,
        prefix=[how.policy.encode_part(start) for start in starts],
    )
    return [
        [(text, reason == "stop") for text, reason in zip(texts, reasons, strict=True)]
        for texts, reasons in zip(samples.texts, samples.finish_reasons, strict=True)
    ]


def collect_errors(task: Any, how: Drawing, prompts: Sequence[str], *, n: int, most: int) -> pd.DataFrame:
    """Stage 1: columns prompt, text, ended of solutions whose final answer is wrong, at most `most` of a problem.

    Problems about a diagram that is not in their text are left out, as in the official code.
    """
    prompts = [prompt for prompt in prompts if "diagram" not in prompt.lower() or "[asy]" in prompt.lower()]
    rows = []
    for prompt, texts in zip(prompts, solutions(task, how, prompts, n, stage=1), strict=True):
        wrong = [(text, ended) for text, ended in dict.fromkeys(texts) if not task.verifier.is_right(prompt, text)]
        rows += [{"prompt": prompt, "text": text, "ended": ended} for text, ended in wrong[:most]]
    return pd.DataFrame(rows, columns=["prompt", "text", "ended"])


def localise(task: Any, errors: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Stage 2: the first wrong step of each, as prefix (label included) and rejected step; and those without one, with
    the reason and what the checker replied."""
    places, replies = locate(task.verifier, list(zip(errors["prompt"], errors["text"], strict=True)))
    rows = []
    for error, (step, reason), reply in zip(errors.to_dict("records"), places, replies, strict=True):
        if not error["ended"] and step is None:
            reason = f"{reason}, and cut off at max_new_tokens"
        prefix, rejected = ("", "") if step is None else cut_before(task.verifier.split(error["text"]), step)
        if step is not None and not rejected.strip():
            step, reason = None, "empty step"
        rows.append(
            {
                "prompt": error["prompt"],
                "text": error["text"],
                "step": -1 if step is None else step,
                "reason": reason,
                "prefix": prefix,
                "rejected": rejected,
                "reply": reply,
            }
        )
    table = pd.DataFrame(rows, columns=["prompt", "text", "step", "reason", "prefix", "rejected", "reply"])
    lost: Any = table[table["step"] < 0]
    if len(lost):
        reasons = ", ".join(f"{reason}: {n}" for reason, n in lost["reason"].value_counts().items())
        log.warning(
            "%d of %d wrong solutions have no located step and are left out (%s)", len(lost), len(table), reasons
        )
    located: Any = table[table["step"] >= 0]
    return located.reset_index(drop=True), lost.reset_index(drop=True)


def rectify(
    task: Any, how: Drawing, located: pd.DataFrame, *, n: int, most: int = 0, check_steps: bool = True
) -> pd.DataFrame:
    """Stage 3: the model goes on from the right beginning; first steps of continuations that end right are chosen.

    Args:
        n: continuations of each beginning.
        most: different chosen steps kept for each; 0 keeps all.
        check_steps: leave out chosen steps that are wrong themselves, where the task's verifier is an oracle: a right
            final answer can hide a wrong step.
    """
    rows, check = [], task.verifier
    starts = located["prefix"].tolist()
    continuations = solutions(task, how, located["prompt"].tolist(), n, stage=2, starts=starts)
    for error, texts in zip(located.to_dict("records"), continuations, strict=True):
        k, prompt, seen = error["step"], error["prompt"], {error["rejected"].strip()}
        for text, _ in texts:
            if not text.startswith(error["prefix"].lstrip()) or not check.is_right(prompt, text):
                continue
            steps = check.split(text)[: k + 1]
            chosen = cut_before(steps, k)[1] if len(steps) > k else ""
            if not chosen.strip() or chosen.strip() in seen:
                continue
            if check_steps and check.is_oracle and check.first_wrong(prompt, steps) is not None:
                continue
            seen.add(chosen.strip())
            rows.append(
                {
                    "prompt": prompt,
                    "prefix": error["prefix"],
                    "chosen": chosen,
                    "rejected": error["rejected"],
                    "full_rejected": error["text"],
                }
            )
            if most and len(seen) > most:
                break
    return pd.DataFrame(rows, columns=["prompt", "prefix", "chosen", "rejected", "full_rejected"])


def whole_answers(task: Any, how: Drawing, located: pd.DataFrame, *, n: int) -> pd.DataFrame:
    """For DPO on whole answers: independent right answers to the same problems, against the same wrong ones."""
    rows = []
    answers = solutions(task, how, located["prompt"].tolist(), n, stage=3) if n else []
    for error, texts in zip(located.to_dict("records"), answers, strict=False):
        prompt = error["prompt"]
        right = [text for text, ended in dict.fromkeys(texts) if ended and task.verifier.is_right(prompt, text)]
        rows += [{"prompt": prompt, "full_chosen": text, "full_rejected": error["text"]} for text in right]
    return pd.DataFrame(rows, columns=["prompt", "full_chosen", "full_rejected"])
