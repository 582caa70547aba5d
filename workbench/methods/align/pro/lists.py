"""Ranked lists as rows that train, their task on real text, and how well a policy orders them."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from workbench import data
from workbench.data import Row
from workbench.feedback.judges import RealJudge
from workbench.kernels import Group, sample, score
from workbench.models import Policy
from workbench.stats.text_overlap import bleu
from workbench.tasks.real import TextTask
from workbench.training.reference import reference_logps

log = logging.getLogger(__name__)

WIDE = 20.0  # gaps of scores that saturate the exponentials of a ranking loss
ROLES = {"<|prompter|>": "user", "<|assistant|>": "assistant"}  # of the official files
MARKERS = re.compile(r"(Human|Assistant):|<\|prompter\|>|<\|assistant\|>")
HINTS = ("Give a bad answer.", "Give a good answer.")  # of chain of hindsight on real text


class RankRow(NamedTuple):
    """A tokenised list, best first, and its scores."""

    id: str
    group: Group
    scores: list[float]


def rank_rows(policy: Policy, lists: Sequence[Row], *, max_length: int = 0, answer_room: int = 128) -> list[RankRow]:
    """The lists as tokens: one group a list, its prompt shared by all answers.

    Args:
        max_length: of prompt and answer; 0 takes the context.
        answer_room: tokens that a prompt cut on the left leaves to the answers.

    Raises:
        ValueError: no room is left for an answer; the list and the lengths are named.
    """
    rows, length = [], min(max_length or policy.max_length, policy.max_length)
    for i, row in enumerate(lists):
        try:
            group = policy.group(
                row["prompt"], row["responses"], max_length=length, max_prompt_length=length - answer_room
            )
        except ValueError as error:
            raise ValueError(f"list {i}: {error}; an answer without tokens has no mean log-probability") from error
        rows.append(RankRow(f"list {i}", group, list(row["scores"])))
    return rows


def list_step(objective: Callable[..., Any], *, n: int, at_once: int = 0) -> Callable[..., Any]:
    """A step over `RankRow`s: one pass over all answers of lists held at once, or `at_once` of each list at a time."""

    def step(policy: Policy, batch: Sequence[RankRow]) -> tuple[Tensor, dict[str, Tensor]]:
        groups = [row.group for row in batch]
        k = max(len(group.responses_ids) for group in groups)
        parts = [range(start, min(start + (at_once or k), k)) for start in range(0, k, at_once or k)]
        if len(parts) == 1:
            sums = score(policy, groups).sums
        else:  # what one part needs for its gradient is thrown away and computed again in backward
            some = (partial(_sums, policy, groups, places) for places in parts)
            sums = torch.cat([checkpoint(part, use_reentrant=False) for part in some], 1)
        lengths = torch.tensor([_padded([len(ids) for ids in g.responses_ids], k) for g in groups], device=sums.device)
        scores = sums.new_tensor([_padded(row.scores, k) for row in batch])
        losses, logged = objective(sums, lengths, scores)
        # the same names for every batch, whatever the lengths of its lists
        names = [f"rank_{i}" for i in range(1, n)] if "rank_1" in logged else ["rank_loss"]
        none = torch.zeros_like(losses).detach()
        return losses, {name: logged.get(name, none) for name in (*names, "sft_nll", "agreement")}

    return step


def _sums(policy: Policy, groups: Sequence[Group], places: range) -> Tensor:
    """log p of some of each group's answers [group, place]; 0 where a group has none."""
    wanted = [i for i, group in enumerate(groups) if len(group.responses_ids) > places.start]
    some = [groups[i]._replace(responses_ids=groups[i].responses_ids[places.start : places.stop]) for i in wanted]
    sums = score(policy, some).sums
    whole, rows = sums.new_zeros(len(groups), len(places)), torch.tensor(wanted, device=sums.device)
    return whole.index_put((rows,), torch.nn.functional.pad(sums, (0, len(places) - sums.shape[1])))


def _padded(values: Sequence[Any], k: int) -> list[Any]:
    return [*values, *[type(values[0])(0)] * (k - len(values))]


def relabelled(lists: Sequence[Row], how: str, seed: int) -> list[Row]:
    """The lists with their scores dealt anew, or with the worst made the best; in the order of the new scores."""
    rng, relabelled_lists = np.random.default_rng([seed, 5]), []
    for row in lists:
        scores = np.array(row["scores"])
        new = -scores if how == "reversed" else rng.permutation(scores)
        order = np.argsort(-new, kind="stable").tolist()
        responses = [row["responses"][i] for i in order]
        relabelled_lists.append({**row, "responses": responses, "scores": new[order].tolist()})
    return relabelled_lists


# ----------------------------------------------------------------------------------------------------- measurements
def mean_reward(scores: np.ndarray) -> float:
    """Mean sigma(score): how the paper reports rewards."""
    return float(np.mean(1 / (1 + np.exp(-np.clip(scores, -500, 500)))))


def mean_logps(policy: Policy, rows: Sequence[RankRow]) -> list[list[float]]:
    """s of every answer of every list, nats a token."""
    sums = reference_logps(policy, [row.group for row in rows])
    return [
        [float(v) / len(ids) for v, ids in zip(line, row.group.responses_ids, strict=False)]
        for line, row in zip(sums, rows, strict=True)
    ]


def agreement(values: Sequence[Sequence[float]], rows: Sequence[RankRow]) -> float:
    """Share of pairs of answers with different scores that the policy orders as the scores do."""
    right = [
        0.5 + 0.5 * np.sign(line[i] - line[j])
        for line, row in zip(values, rows, strict=True)
        for i, high in enumerate(row.scores)
        for j, low in enumerate(row.scores)
        if high > low
    ]
    return float(np.mean(right)) if right else 0.5


def list_table(
    lists: Sequence[Row], before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> pd.DataFrame:
    """One row an answer of the held-out lists: its score and its mean log-probability before and after training."""
    return pd.DataFrame(
        {"list": i, "prompt": row["prompt"] if isinstance(row["prompt"], str) else json.dumps(row["prompt"])}
        | {"response": text, "score": value, "before": b, "after": a}
        for i, (row, befores, afters) in enumerate(zip(lists, before, after, strict=True))
        for text, value, b, a in zip(row["responses"], row["scores"], befores, afters, strict=True)
    )


# -------------------------------------------------------------------------------------------------------- real text
@dataclass
class RankedText(TextTask):
    """Lists of a data set and a starting model; scored anew by the judge where there is one.

    Attributes:
        dev_size: held-out lists that are for validation.
        evaluation_judge: another reward model, which scores the answers of policies.
    """

    kind: str = "ranking"
    dev_size: int = 0
    evaluation_judge: RealJudge | None = None
    hints: ClassVar = HINTS

    def read(self) -> list[Row]:
        return as_lists(data.load(self.dataset))[0]

    def rankings(self, split: str, seed: int) -> list[Row]:
        """Lists of a split; "validation" is the first `dev_size` of the held-out ones, "test" the others."""
        key = f"rankings {split} {seed}"
        if key not in self._loaded:
            rows = self.part("train" if split == "train" else "test", seed)
            wanted = {"train": rows, "validation": rows[: self.dev_size], "test": rows[self.dev_size :]}[split]
            self._loaded[key] = self._scored_anew(wanted) if self.judge else wanted
        return self._loaded[key]

    def _scored_anew(self, rows: list[Row]) -> list[Row]:
        prompts = [row["prompt"] for row in rows for _ in row["responses"]]
        flat = self.score(prompts, [text for row in rows for text in row["responses"]])
        ends = np.cumsum([len(row["responses"]) for row in rows])
        return [{**row, "scores": s.tolist()} for row, s in zip(rows, np.split(flat, ends[:-1]), strict=True)]

    def prompts(self, split: str, seed: int, part: int = 0, parts: int = 1) -> list:
        return [row["prompt"] for row in self.rankings(split, seed)][part::parts]

    def evaluate(
        self, policy: Policy, seed: int, ask: Callable[[Any], Any] = lambda prompt: prompt
    ) -> dict[str, float]:
        """Held-out negative log-likelihood a token of the best answers; with an evaluation judge the mean sigma(score)
        x 100 of greedy answers (`quality`) and their BLEU against the best answers, by characters and by words."""
        rows = [
            sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)[0]
            for row in self.rankings("test", seed)
        ]
        prompts, best = [ask(prompt) for prompt in self.prompts("test", seed)], [text for _, text in rows]
        groups = [policy.group(p, [text], max_length=self.max_length) for p, text in zip(prompts, best, strict=True)]
        nll = -float(reference_logps(policy, groups).sum()) / sum(len(group.responses_ids[0]) for group in groups)
        if not self.evaluation_judge:
            return {"quality": -nll, "token_nll": nll}
        greedy = sample(policy, prompts, temperature=0.0, max_new_tokens=self.max_new_tokens)
        texts = [cleaned(texts[0]) for texts in greedy.texts]
        scores = self.evaluation_judge.score(self.prompts("test", seed), texts)
        both = list(zip(texts, best, strict=True))
        return {
            "quality": 100 * mean_reward(scores),
            "token_nll": nll,
            "bleu_characters": float(np.mean([bleu(a, b) for a, b in both])),
            "bleu_words": float(np.mean([bleu(a.split(), b.split()) for a, b in both])),
        }


# ------------------------------------------------------------------------------------------------------- reading lists
def as_lists(rows: Sequence[Row], *, n: int = 0, strict: bool = False) -> tuple[list[Row], Counter]:
    """Rows with `prompt`, `responses` and `scores`, best first, and how many had to be mended or left out.

    Understands rankings (see `data.as_rankings`), the official PRO rows (`prefix`, `suffix`, `reward`) and preferences,
    which are lists of two with scores 1 and 0. `source` (who wrote each response) is kept where it is there.

    Args:
        n: take the first n responses of a row, as they stand in the data; 0 takes all.
        strict: refuse lists that are not in order instead of sorting them.

    Returns:
        The lists; counts of "sorted", "duplicates dropped", "one response left (skipped)", "all scores equal" and
        "gap above 20".

    Raises:
        ValueError: a list shorter than 2, another number of responses than scores, an empty response, a score that is
            not finite, or with `strict` a list out of order; the row is named.
    """
    kept: list[Row] = []
    counts: Counter = Counter()
    for index, row in enumerate(_as_rankings(rows)):
        responses, scores = row["responses"][: n or None], row["scores"][: n or None]
        if len(responses) < 2:
            raise ValueError(
                f"row {index}, column 'responses': a ranking needs at least 2 responses, this one has {len(responses)};"
                " add answers or remove the row"
            )
        for k, text in enumerate(responses):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"row {index}, column 'responses': response {k} is empty, so it has no mean log-probability; remove"
                    f" it and its score (got {text!r})"
                )
        sources = list(row.get("source", row.get("names", [""] * len(row["responses"]))))[: n or None]
        best: dict[str, tuple[float, str]] = {}
        for text, points, source in zip(responses, scores, sources, strict=True):
            if text not in best or points > best[text][0]:
                best[text] = (float(points), source)
        counts["duplicates dropped"] += len(responses) - len(best)
        if len(best) < 2:
            counts["one response left (skipped)"] += 1
            continue
        entries = sorted(best.items(), key=lambda entry: -entry[1][0])  # stable: equal scores stay as they stand
        if entries != list(best.items()):
            if strict:
                raise ValueError(
                    f"row {index}, column 'scores': {list(scores)} are not in falling order, which would turn the"
                    " contrast round; sort the list, or leave strict=False to have it sorted"
                )
            counts["sorted"] += 1
        values = [score for _, (score, _) in entries]
        counts["all scores equal"] += values[0] == values[-1]
        counts["gap above 20"] += values[0] - values[-1] > WIDE
        whole = {"prompt": row["prompt"], "responses": [text for text, _ in entries], "scores": values}
        kept.append({**whole, "source": [source for _, (_, source) in entries]})
    _warn(counts, len(rows))
    return kept, +counts


def _as_rankings(rows: Sequence[Row]) -> list[Row]:
    if rows and "suffix" in rows[0]:
        rows = [_official(row, index) for index, row in enumerate(rows)]
    elif rows and not {"responses", "scores"} & set(rows[0]) and not any(isinstance(v, dict) for v in rows[0].values()):
        pairs = data.as_preferences(_same_turns(rows))
        rows = [{"prompt": r["prompt"], "responses": [r["chosen"], r["rejected"]], "scores": [1.0, 0.0]} for r in pairs]
    return data.as_rankings(rows)


def _official(row: Row, index: int) -> Row:
    """A row of the official files: the turns of the first candidate's prefix as a chat."""
    turns = []
    for turn in row["prefix"][0]:
        tag = next((tag for tag in ROLES if turn.startswith(tag)), None)
        if tag is None:
            raise ValueError(
                f"row {index}, column 'prefix': every turn begins with one of {', '.join(ROLES)}; got {turn[:40]!r}"
            )
        if text := turn.removeprefix(tag).strip():
            turns.append({"role": ROLES[tag], "content": text})
    return {"prompt": turns, "responses": row["suffix"], "scores": row["reward"]}


def _same_turns(rows: Sequence[Row]) -> list[Row]:
    """Leaves out pairs of dialogues with different numbers of turns, as the official preprocessing does."""
    fine = [
        row
        for row in rows
        if not (isinstance(row.get("chosen"), list) and isinstance(row.get("rejected"), list))
        or len(row["chosen"]) == len(row["rejected"])
    ]
    if len(fine) < len(rows):
        log.warning("%d pairs have dialogues of different lengths: left out", len(rows) - len(fine))
    return fine


_warned = False  # of equal scores, once a process: every arm reads the same lists, and the counts say how many


def _warn(counts: Counter, n: int) -> None:
    global _warned
    if counts["all scores equal"] and not _warned:
        _warned = True
        told = "%d of %d lists have equal scores throughout: they carry the likelihood of their first response and no"
        log.warning(f"{told} ranking", counts["all scores equal"], n)
    if counts["gap above 20"]:
        told = "%d of %d lists have scores more than %g apart, which saturates the exponentials of the loss"
        log.warning(f"{told}: standardise the scores", counts["gap above 20"], n, WIDE)


def cleaned(text: str) -> str:
    """A generation cut where the model goes on with the next speaker's turn."""
    marker = MARKERS.search(text)
    return (text[: marker.start()] if marker else text).strip()
