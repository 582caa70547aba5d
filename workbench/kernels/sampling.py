"""Sampling: K responses to each prompt, with their log-probabilities.

Every response has a random stream of its own, so its text does not depend on what else is in the batch. Ids for which
the tokenizer has no token are never drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from workbench.kernels import engines
from workbench.kernels.decoding import Network, Prefix, Row, Rules, StopTexts
from workbench.kernels.drawing import SamplingParams
from workbench.kernels.meter import add_cost
from workbench.kernels.slots import decode

ENGINES = ("workbench", "transformers", "vllm")


@dataclass(frozen=True)
class Samples:
    """K responses a prompt; every field is indexed [prompt][k].

    Attributes:
        tokens: response ids, with the end token where the response ended by itself.
        texts: decoded without special tokens, leading white space stripped; empty strings for a bare model.
        token_logps: log-probability of each token under the policy (temperature 1, nothing cut off), nats.
        sampling_token_logps: the same under the distribution it was drawn from; 0 for greedy decoding.
        finish_reasons: "stop" (end token or stop string) or "length".
    """

    tokens: list[list[list[int]]]
    texts: list[list[str]]
    token_logps: list[list[list[float]]]
    sampling_token_logps: list[list[list[float]]]
    finish_reasons: list[list[str]]


@torch.no_grad()
def sample(
    policy: Any,
    prompts: Sequence[Any],
    *,
    n: int = 1,
    max_new_tokens: int | Sequence[int] = 256,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    stop: str | Sequence[str] = (),
    stop_tokens: Sequence[int] = (),
    seed: int | Sequence[int] = 0,
    prefix: Sequence[Sequence[Any]] | None = None,
    max_rows: int = 256,
    engine: str = "workbench",
) -> Samples:
    """Draws `n` responses to every prompt.

    Args:
        policy: a `Policy`, or a bare transformers model with prompts as token ids.
        prompts: texts, chats or lists of token ids, as `Policy.encode_prompt` takes them; one too long for the context
            keeps its end.
        n: responses a prompt (K).
        max_new_tokens: that a response may have behind its prefix; a list has one number a prompt.
        temperature: 0 is greedy; 1 samples the policy itself.
        top_p, top_k: keep the smallest set with this much probability / this many tokens; 1.0 and 0 keep all.
        stop: texts that end a response (they stay in it); they are not looked for in the prompt or the prefix.
        stop_tokens: ids that end a response beside the end tokens of model and tokenizer (they stay in it).
        seed: the same seed gives the same text for prompt number i and response number k whatever `max_rows` is, up
            to rounding differences between batch shapes, which matter once in about 10^6 tokens in float32. A list has
            one seed a prompt: the text then does not depend on the prompt's number either.
        prefix: token ids that responses begin with: a list for each prompt, or for each prompt a list of `n` lists.
            They are part of the tokens and log-probs returned, and random numbers belong to positions in the response:
            the beginning of a sample, given as its prefix with its seed, goes on as the sample did.
        max_rows: responses decoded side by side; one that ends leaves its place to the next.
        engine: "workbench"; "transformers", the model's own `generate`; "vllm", where it is installed. See `engines`
            for what their seeds and log-probs are.

    Raises:
        ValueError: an option out of its range, an empty prompt (named by number), a prefix that does not fit its prompt
            or contains an end token, or a stop text without a tokenizer.
        FloatingPointError: the model's logits are NaN or infinite; the prompt is named.
        ImportError: `engine="vllm"` where it is not installed.
    """
    is_bare = isinstance(policy, nn.Module)
    model: Any = policy if is_bare else policy.model
    tokenizer: Any = None if is_bare else policy.tokenizer
    lengths = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(lengths) != len(prompts):
        raise ValueError(f"max_new_tokens needs one number a prompt; got {len(lengths)} for {len(prompts)} prompts")
    _check_options(n, min(lengths, default=1), temperature, top_p, top_k, stop, tokenizer, max_rows, engine)
    given = _prefixes(prefix, len(prompts), n)
    seeds = _seeds(seed, len(prompts))
    ends = end_tokens(model, tokenizer) | {int(token) for token in stop_tokens} | getattr(policy, "end_ids", set())
    encode: Any = getattr(policy, "encode_prompt", None)
    prefixes: list[Prefix] = []
    for i, prompt in enumerate(prompts):
        room = lengths[i] + max(map(len, given[i]))
        ids = [] if not prompt else list(prompt) if encode is None else encode(prompt, room=room)
        if not ids:
            raise ValueError(f"prompt {i} has no tokens; a response needs at least a start token before it")
        for start in dict.fromkeys(map(tuple, given[i])):
            if found := ends.intersection(start):
                raise ValueError(
                    f"the prefix of prompt {i} contains token {min(found)}, which ends a response; cut it there"
                )
            rows = [_row(*seeds[i], i, k, len(start) + lengths[i]) for k in range(n) if tuple(given[i][k]) == start]
            prefixes.append(Prefix([*ids, *start], len(ids), rows))

    params = SamplingParams(temperature, top_p, top_k, _without_token(model, tokenizer))
    rules = Rules(params, ends, StopTexts(stop, tokenizer) if stop else None)
    was_training = model.training
    model.eval()
    try:
        with nullcontext() if is_bare else policy.autocast():
            if prefixes and engine == "workbench":
                decode(Network(model), prefixes, rules, max_rows)
            elif prefixes:
                engines.decode_with(engine, policy, prefixes, rules, max_rows)
    finally:
        model.train(was_training)

    rows = {(row.prompt, row.k): row for prefix in prefixes for row in prefix.rows}
    add_cost(generated_tokens=sum(len(row.tokens) - len(given[i][k]) for (i, k), row in rows.items()))
    table = [[rows[i, k] for k in range(n)] for i in range(len(prompts))]

    def text(row: Row) -> str:
        return tokenizer.decode(row.tokens, skip_special_tokens=True).lstrip() if tokenizer else ""

    return Samples(
        [[row.tokens for row in line] for line in table],
        [[text(row) for row in line] for line in table],
        [[row.logps for row in line] for line in table],
        [[row.sampling_logps for row in line] for line in table],
        [[row.finish_reason for row in line] for line in table],
    )


def _row(seed: int, number: int, prompt: int, k: int, length: int) -> Row:
    """A response to be written. Its uniforms come from a counter, so no other row can shift them."""
    stream = np.random.Philox(key=seed % 2**64, counter=[0, 0, k, number])
    return Row(prompt, k, np.random.Generator(stream).random(length))


def _seeds(seed: int | Sequence[int], n_prompts: int) -> list[tuple[int, int]]:
    """For each prompt its seed and the number that it has within the streams of that seed."""
    if not isinstance(seed, Sequence | np.ndarray):
        return [(seed, i) for i in range(n_prompts)]
    if len(seed) != n_prompts:
        raise ValueError(f"seed needs one number a prompt; got {len(seed)} for {n_prompts} prompts")
    return [(int(one), 0) for one in seed]


def _prefixes(prefix: Sequence[Sequence[Any]] | None, n_prompts: int, n: int) -> list[list[list[int]]]:
    """The given beginning of each response, indexed [prompt][k]."""
    if prefix is None:
        return [[[]] * n] * n_prompts
    if len(prefix) != n_prompts:
        raise ValueError(f"prefix needs one entry a prompt; got {len(prefix)} for {n_prompts} prompts")
    found: list[list[list[int]]] = []
    for i, entry in enumerate(prefix):
        each = [list(ids) for ids in entry] if len(entry) and isinstance(entry[0], Sequence) else [list(entry)] * n
        if len(each) != n or isinstance(entry, str):
            raise ValueError(f"the prefix of prompt {i} must be token ids, or n={n} lists of token ids; got {entry!r}")
        found.append(each)
    return found


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every id that ends a response: the tokenizer's, and those of the model's own generation settings."""
    found: set[int] = set()
    for owner in (tokenizer, getattr(model, "generation_config", None), model.config):
        value = getattr(owner, "eos_token_id", None)
        found |= set(value) if isinstance(value, (list, tuple)) else {value} if value is not None else set()
    return frozenset(found)


_barred: WeakKeyDictionary[Any, Tensor | None] = WeakKeyDictionary()


def _without_token(model: Any, tokenizer: Any) -> Tensor | None:
    """True, [vocab], for the ids of the model's output for which the tokenizer has no token (its matrix is often wider,
    for speed); None where every id has one."""
    if not hasattr(tokenizer, "get_vocab"):
        return None
    if tokenizer not in _barred:
        head = model.get_output_embeddings()
        barred = torch.ones(head.weight.shape[0], dtype=torch.bool)
        ids = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
        barred[ids[ids < len(barred)]] = False
        _barred[tokenizer] = barred if barred.any() else None
    return _barred[tokenizer]


def _check_options(n, max_new_tokens, temperature, top_p, top_k, stop, tokenizer, max_rows, engine) -> None:
    if n < 1 or max_new_tokens < 1 or max_rows < 1:
        raise ValueError(
            f"n and max_new_tokens must be at least 1, and max_rows too; got n={n}, max_new_tokens={max_new_tokens}, "
            f"max_rows={max_rows}"
        )
    if not temperature >= 0 or not 0 < top_p <= 1 or top_k < 0:
        raise ValueError(f"need temperature >= 0, 0 < top_p <= 1, top_k >= 0; got {temperature}, {top_p}, {top_k}")
    if stop and tokenizer is None:
        raise ValueError("stop texts need a tokenizer: pass a Policy instead of a bare model")
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {', '.join(ENGINES)}; got {engine!r}")
