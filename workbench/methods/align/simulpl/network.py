"""Simultaneous translation with a decoder-only model: a confidence head, states behind a source prefix, read or write.

State (i, j): i - 1 target tokens are written and j source words are read. The model then sees the prompt of the first j
words and the written tokens, nothing else: the source behind word j is not in its input. Its confidence c_ij is a
linear layer and a sigmoid on the hidden state that predicts token i.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from workbench import objectives
from workbench.kernels import Group
from workbench.kernels.batching import tokens_per_microbatch
from workbench.kernels.heads import token_logps
from workbench.kernels.meeting import parts_of
from workbench.methods.align.simulpl.translations import usable
from workbench.models import Policy
from workbench.stats.latency import Unit, words_of
from workbench.tasks.protocols import TranslationTask

HEAD_FILE = "confidence.safetensors"
EDGE = 1e-6  # confidences stay this far from 0 and 1, where log(1 - c) has no gradient


# ---------------------------------------------------------------------------------------------------------- the head
def add_confidence(policy: Policy, *, seed: int = 0) -> Policy:
    """Gives the policy's model a confidence head (a part of it: trained and stored with it); returns the policy."""
    width = policy.model.config.get_text_config().hidden_size
    head = nn.Linear(width, 1)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, width**-0.5, generator=generator)
        head.bias.zero_()
    policy.model.confidence = head.to(policy.device)
    return policy


def save(policy: Policy, folder: str | Path) -> None:
    """The policy in the hub's format, and its confidence head beside it as safetensors."""
    from safetensors.torch import save_file

    head = confidence_head(policy)
    with _detached(policy):
        policy.save(folder)
    save_file(
        {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}, Path(folder) / HEAD_FILE
    )


def load(source: str | Path, **options: Any) -> Policy:
    """A policy with its confidence head, as `save` left them; options are those of `Policy.load`.

    Raises:
        FileNotFoundError: no such model, or one without a confidence head.
    """
    from safetensors.torch import load_file

    path = Path(source) / HEAD_FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"{source} has no {HEAD_FILE}: this checkpoint has no confidence head, so it cannot decide between read and"
            " write; train one (`add_confidence`, then multi-task fine-tuning), or decode with wait-k"
        )
    policy = add_confidence(Policy.load(source, **options))
    policy.model.confidence.load_state_dict(load_file(path))
    return policy


def confidence_head(policy: Policy) -> nn.Module:
    """The head.

    Raises:
        ValueError: the policy has none.
    """
    head = getattr(policy.model, "confidence", None)
    if head is None:
        raise ValueError(f"{policy.name} has no confidence head; give it one with `network.add_confidence`")
    return head


@contextmanager
def _detached(policy: Policy):
    head = policy.model.confidence
    del policy.model.confidence
    try:
        yield
    finally:
        policy.model.confidence = head


# -------------------------------------------------------------------------------------------------------- the states
class States(NamedTuple):
    """What the model says of every target token behind its prompt; rows are padded on the right.

    Attributes:
        logps: log-probabilities, nats: of the target (one column), or of the whole vocabulary.
        targets: columns of the target tokens in `logps`.
        confidence: c of each state, inside (0, 1); its gradient reaches head and model.
    """

    logps: Float[Tensor, "row tok vocab"]
    targets: Int[Tensor, "row tok"]
    confidence: Float[Tensor, "row tok"]
    is_token: Bool[Tensor, "row tok"]

    @property
    def token_logps(self) -> Float[Tensor, "row tok"]:
        return self.logps.gather(-1, self.targets[..., None]).squeeze(-1) * self.is_token


def states(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    whole_vocabulary: bool = False,
) -> States:
    """All states of given translations, each behind its own prompt; differentiable.

    Args:
        prompts: token ids of the source prefixes.
        responses: token ids of the translations, EOS token included.
        whole_vocabulary: keep log-probs of all tokens, which label smoothing needs; else those of the targets alone.
    """
    head = confidence_head(policy)
    body, output, finish, _ = parts_of(policy.model)
    with policy.autocast():
        hidden = _hidden(policy, body, [[*p, *r] for p, r in zip(prompts, responses, strict=True)])
        starts = torch.tensor([len(prompt) for prompt in prompts], device=policy.device)
        lengths = torch.tensor([len(response) for response in responses], device=policy.device)
        columns = torch.arange(int(lengths.max()), device=policy.device)
        is_token = columns < lengths[:, None]
        places = (starts[:, None] - 1 + columns).clamp(max=hidden.shape[1] - 1)
        at = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        confidence = torch.sigmoid(head(at).squeeze(-1).float()).clamp(EDGE, 1 - EDGE)
        targets = torch.tensor([[*r, *[0] * (len(columns) - len(r))] for r in responses], device=policy.device)
        if whole_vocabulary:
            return States(finish(output(at).float()).log_softmax(-1), targets, confidence, is_token)
        flat = token_logps(at[is_token], targets[is_token], output, finish=finish)
    logps = flat.new_zeros(is_token.shape).masked_scatter(is_token, flat)
    return States(logps[..., None], torch.zeros_like(targets), confidence, is_token)


def _hidden(policy: Policy, body: nn.Module, rows: Sequence[Sequence[int]]) -> Float[Tensor, "row seq d_model"]:
    """Right padding without a mask: under causal attention no real token sees what stands behind it."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[row[-1]] * (width - len(row))] for row in rows], device=policy.device)
    return body(input_ids=ids, use_cache=False).last_hidden_state


# -------------------------------------------------------------------------------------------------- pairs in training
class Pair(NamedTuple):
    """A row as tokens: `prompts` after 1, 2, ..., J source words, and both translations with their EOS tokens."""

    id: str
    prompts: list[list[int]]
    chosen: list[int]
    rejected: list[int]

    @property
    def group(self) -> Group:
        return Group(self.prompts[-1], [self.chosen, self.rejected])


def token_pairs(task: TranslationTask, policy: Policy, seed: int, unit: Unit) -> list[Pair]:
    """The training pairs of a task.

    Raises:
        ValueError: none can be used.
    """
    rows, _ = usable(task.pairs("train", seed), unit)
    if not rows:
        raise ValueError("no pair is left to train on; the log says what was wrong with them")
    return [
        Pair(
            f"row {i}",
            prefix_prompts(policy, task.prompt, words_of(row["source"], unit)),
            policy.encode_response(row["chosen"]),
            policy.encode_response(row["rejected"]),
        )
        for i, row in enumerate(rows)
    ]


def drawn_prefixes(batch: Sequence[Pair], min_prefix: int, seed: int) -> list[int]:
    """One prefix for the whole batch, as a share of the source: words of each row. A function of the batch alone, so
    that a resumed training draws the same."""
    share = 1.0 - np.random.default_rng([seed, 7, *_numbers(batch)]).random()  # in (0, 1]
    return [min(len(row.prompts), max(min_prefix, math.ceil(share * len(row.prompts)))) for row in batch]


def expected_lagging(
    policy: Policy,
    batch: Sequence[Pair],
    side: Sequence[list[int]],
    *,
    n_prefixes: int = 0,
    scrambled: int | None = None,
) -> Float[Tensor, " row"]:
    """Lat(y) of each row's translation: the expected lagging of the confidences, differentiable in them.

    Args:
        side: the translations.
        n_prefixes: how many prefixes, evenly spaced, stand for all; 0: a state behind every word.
        scrambled: seed of a control in which the delay of a prefix is that of another one.
    """
    longest = max(len(row.prompts) for row in batch)
    kept = np.unique(np.ceil(np.linspace(0, longest, (n_prefixes or longest) + 1)[1:]).astype(int))
    # what is longer than a source is that source again: the last confidence counts as 1 either way
    lengths = np.array([[min(j, len(row.prompts)) for j in kept] for row in batch])
    pairs = [(b, j) for b, row in enumerate(lengths) for j in sorted(set(row.tolist()))]
    place = {pair: i for i, pair in enumerate(pairs)}
    at = states(policy, [batch[b].prompts[j - 1] for b, j in pairs], [side[b] for b, _ in pairs])
    index = torch.tensor([[place[b, j] for j in row.tolist()] for b, row in enumerate(lengths)], device=policy.device)
    counted = lengths.astype(np.float32)
    if scrambled is not None:
        counted = np.random.default_rng([scrambled, 8, *_numbers(batch)]).permuted(counted, axis=1)
    confidence, is_token = at.confidence[index].transpose(1, 2), at.is_token[index[:, 0]]
    delays = objectives.expected_delays(confidence, torch.from_numpy(counted).to(confidence))
    sources = torch.tensor([float(len(row.prompts)) for row in batch], device=policy.device)
    return objectives.delay_penalty(delays, sources, is_token)


def _numbers(batch: Sequence[Pair]) -> list[int]:
    return [int.from_bytes(row.id.encode()[-7:], "big") for row in batch]


@torch.no_grad()
def check_nothing_moved(policy: Policy, step: Any, rows: Sequence[Pair], loss_type: str) -> None:
    """Before any update policy and reference are the same weights behind the same prefixes: every log-ratio is 0."""
    if loss_type == "simpo":
        return
    _, logged = step(policy, rows)
    worst = max(float(logged[name].abs().max()) for name in ("chosen_rewards", "rejected_rewards"))
    if not worst < (1e-3 if policy.precision == "no" else 5e-2):
        raise RuntimeError(
            f"step-0 check: a reward is {worst:.2g} before any update and should be 0; the reference is not the MSFT"
            " model, or reads other prefixes than the policy"
        )


# ----------------------------------------------------------------------------------------------------- read or write
@dataclass(frozen=True)
class Reader:
    """When to read. A source that is read whole is always written from.

    Attributes:
        kind: "confidence", write where c >= `value` (the threshold tau: larger is later); "wait_k", write target word n
            once `value` + n - 1 source words are read; "random", as "confidence" with a random number for c.
    """

    kind: Literal["confidence", "wait_k", "random"] = "confidence"
    value: float = 0.7
    seed: int = 0

    def __post_init__(self):
        if self.kind == "wait_k" and (self.value < 1 or self.value != int(self.value)):
            raise ValueError(f"wait-k needs a whole number k of at least 1; got {self.value}")
        if self.kind != "wait_k" and not 0 <= self.value <= 1:
            raise ValueError(f"the threshold tau is compared with probabilities: between 0 and 1; got {self.value}")


class Step(NamedTuple):
    """One decision: at (written, read), with this confidence, the token that was or would have been written."""

    read: int
    written: int
    action: Literal["READ", "WRITE"]
    confidence: float
    token: int


class Translation(NamedTuple):
    """What was written: token ids with the EOS token if it ended, source words read before each, and all decisions.

    `early_ends`: how often the end was proposed before the source was read (and refused, unless early stops are
    allowed).
    """

    ids: list[int]
    delays: list[int]
    ended: bool
    early_ends: int
    steps: list[Step]


@torch.no_grad()
def translate(
    policy: Policy,
    prompts: Sequence[Sequence[Sequence[int]]],
    reader: Reader,
    *,
    max_new_tokens: int,
    allow_early_stop: bool = False,
    unit: Unit = "word",
) -> list[Translation]:
    """Greedy streaming translation of every sentence; each is read and written word by word, side by side with the
    others.

    Args:
        prompts: for each sentence the token ids of its prompts after 1, 2, ..., J source words.
        allow_early_stop: accept the EOS token before the source is read; else it means READ.
        unit: what wait-k counts.

    Notes:
        A READ changes the prompt, so every state is computed anew from its tokens: exact, and of quadratic cost.
    """
    head = confidence_head(policy)
    body, output, finish, _ = parts_of(policy.model)
    end = policy.end_id
    n = len(prompts)
    read, ids, delays = [1] * n, [[] for _ in range(n)], [[] for _ in range(n)]
    early, steps, ended = [0] * n, [[] for _ in range(n)], [False] * n
    draws = [np.random.default_rng([reader.seed, i]) for i in range(n)]
    live = list(range(n))
    while live:
        waiting: list[int] = []
        for together in _parts(
            live,
            [len(prompts[i][read[i] - 1]) + len(ids[i]) for i in range(n)],
            2 * tokens_per_microbatch(policy.device),
        ):
            rows = [[*prompts[i][read[i] - 1], *ids[i]] for i in together]
            with policy.autocast():
                hidden = _hidden(policy, body, rows)
                last = hidden[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
                tokens = finish(output(last).float()).argmax(-1).tolist()
                confidences = torch.sigmoid(head(last).squeeze(-1).float()).tolist()
            for i, token, confidence in zip(together, tokens, confidences, strict=True):
                whole = read[i] == len(prompts[i])
                seen = float(draws[i].random()) if reader.kind == "random" else confidence
                is_early = token == end and not whole
                early[i] += is_early
                writes = whole or _writes(policy, reader, seen, ids[i], token, read[i], unit)
                if is_early and not allow_early_stop:
                    writes = False
                steps[i].append(Step(read[i], len(ids[i]), "WRITE" if writes else "READ", confidence, token))
                if not writes:
                    read[i] += 1
                else:
                    ids[i].append(token)
                    delays[i].append(read[i])
                    ended[i] = token == end
                if not ended[i] and len(ids[i]) < max_new_tokens:
                    waiting.append(i)
        live = waiting
    return [Translation(*parts) for parts in zip(ids, delays, ended, early, steps, strict=True)]


def _writes(
    policy: Policy, reader: Reader, confidence: float, ids: list[int], token: int, read: int, unit: Unit
) -> bool:
    if reader.kind != "wait_k":
        return confidence >= reader.value
    end = policy.end_id
    now = len(words_of(policy.decode(ids), unit))
    after = now + 1 if token == end else max(1, len(words_of(policy.decode([*ids, token]), unit)))
    return read >= reader.value + after - 1


def _parts(numbers: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Rows of like length together, at most so many tokens at once."""
    parts: list[list[int]] = [[]]
    longest = 0
    for number in sorted(numbers, key=sizes.__getitem__):
        longest = max(longest, sizes[number])
        if parts[-1] and longest * (len(parts[-1]) + 1) > most:
            parts.append([])
            longest = sizes[number]
        parts[-1].append(number)
    return parts


Prompter = Callable[[Sequence[str]], Any]  # the source words read so far -> prompt


def prefix_prompts(policy: Policy, prompter: Prompter, words: Sequence[str], *, room: int = 0) -> list[list[int]]:
    """Token ids of the prompts after 1, 2, ..., J source words; each is made from its own words alone."""
    return [policy.encode_prompt(prompter(words[:j]), room=room) for j in range(1, len(words) + 1)]
