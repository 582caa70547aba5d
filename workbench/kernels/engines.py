"""Engines: other programs that draw responses, behind the same call as our own loops.

vLLM reads models from folders, so this module may write one, which is temporary.

The numbers of every engine mean the same: log-probs under the policy come from a pass of the policy itself over the
finished responses, as `score` would give them, because an engine's own differ (other kernels, other precision). Engines
draw with generators of their own: a seed gives the same text again, but not the text of another engine.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteriaList

from workbench.kernels.decoding import Network, Row, Rules, Stem, batches


def decode_with(engine: str, policy: Any, stems: Sequence[Stem], rules: Rules, max_rows: int) -> None:
    """Completes the rows of all stems with engine "transformers" or "vllm".

    Raises:
        ImportError: the engine is not installed.
    """
    network = Network(policy if isinstance(policy, nn.Module) else policy.model)
    if engine == "transformers":
        _with_transformers(network, stems, rules, max_rows)
    else:
        _with_vllm(policy, network, stems, rules, max_rows)


def _with_transformers(network: Network, stems: Sequence[Stem], rules: Rules, max_rows: int) -> None:
    """`generate`, a batch after another. The seed gives the same text for the same call with the same `max_rows`.

    Log-probs under the sampling distribution are those of its own definition, from the same pass as the policy's.
    """
    law, model = rules.law, network.model.get_base_model() if hasattr(network.model, "peft_config") else network.model
    chance: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if law.temperature:
        chance = {"do_sample": True, "temperature": law.temperature, "top_p": law.top_p, "top_k": law.top_k}
    one_each = [Stem(stem.ids, stem.start, [row]) for stem in stems for row in stem.rows]
    for batch in batches(one_each, max_rows):
        width = max(len(stem.ids) for stem in batch)
        padding = [width - len(stem.ids) for stem in batch]
        ids = [[0] * pad + stem.ids for pad, stem in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        starts = [pad + stem.start for pad, stem in zip(padding, batch, strict=True)]

        def stops(sequences: Tensor, scores: Any, starts: list[int] = starts, **_: Any) -> Tensor:
            rows = zip(sequences.tolist(), starts, strict=True)
            return torch.tensor([rules.ends_with(row[start:]) for row, start in rows], device=sequences.device)

        longest = max(len(stem.rows[0].uniforms) - len(stem.ids) + stem.start for stem in batch)
        config = GenerationConfig(max_new_tokens=longest, pad_token_id=0, eos_token_id=None, **chance)
        before = model.generation_config
        try:
            model.generation_config = config  # or what the model's own says (a repetition penalty) would be mixed in
            with torch.random.fork_rng(devices=[network.device] if network.device.type == "cuda" else []):
                torch.manual_seed(_seed(batch[0].rows[0]))
                out = model.generate(
                    torch.tensor(ids, device=network.device),
                    attention_mask=torch.tensor(mask, device=network.device),
                    stopping_criteria=StoppingCriteriaList([stops]),  # type: ignore[list-item]
                )
        finally:
            model.generation_config = before
        responses = [sequence[start:] for sequence, start in zip(out.tolist(), starts, strict=True)]
        _keep(network, batch, responses, rules, max_rows)


def _with_vllm(policy: Any, network: Network, stems: Sequence[Stem], rules: Rules, max_rows: int) -> None:
    """vLLM on the policy's present weights, written to a temporary folder (an adapter merged) and loaded anew.

    A request a row: prefix caching computes a prompt once for its rows, and every row has a seed of its own.
    Log-probs under the sampling distribution are vLLM's own (`processed_logprobs`), those that its draws followed,
    which is what a correction for sampler and trainer being different needs; those of a given prefix are the policy's.
    """
    try:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    except ImportError as error:
        raise ImportError('engine="vllm" needs vLLM and a GPU: pip install vllm; or use engine="workbench"') from error
    model, tokenizer = network.model, getattr(policy, "tokenizer", None)
    law, pairs = rules.law, [(stem, row) for stem in stems for row in stem.rows]
    half = getattr(policy, "precision", "no") == "bf16"
    dtype = torch.bfloat16 if half else next(model.parameters()).dtype
    with tempfile.TemporaryDirectory() as folder:
        whole = copy.deepcopy(model).merge_and_unload() if hasattr(model, "peft_config") else model
        whole.save_pretrained(folder)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        free, total = torch.cuda.mem_get_info()  # the policy itself is on the GPU too
        llm = LLM(
            model=folder,
            dtype=str(dtype).removeprefix("torch."),
            skip_tokenizer_init=tokenizer is None,
            max_num_seqs=max_rows,
            gpu_memory_utilization=0.9 * free / total,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
        )
        asked = [
            SamplingParams(
                temperature=law.temperature,
                top_p=law.top_p,
                top_k=law.top_k,
                seed=_seed(row),
                logprobs=0,
                max_tokens=len(row.uniforms) - len(stem.ids) + stem.start,
                stop_token_ids=sorted(rules.ends),
                stop=rules.stop.texts if rules.stop else None,
                include_stop_str_in_output=True,
                detokenize=tokenizer is not None,
            )
            for stem, row in pairs
        ]
        answers = llm.generate([{"prompt_token_ids": stem.ids} for stem, _ in pairs], asked)
    drawn = [answer.outputs[0] for answer in answers]
    one_each = [Stem(stem.ids, stem.start, [row]) for stem, row in pairs]
    responses = [[*stem.ids[stem.start :], *out.token_ids] for stem, out in zip(one_each, drawn, strict=True)]
    _keep(network, one_each, responses, rules, max_rows)
    for (stem, row), out in zip(pairs, drawn, strict=True):
        row.finish_reason = "stop" if out.finish_reason == "stop" else row.finish_reason
        if law.temperature:
            given = len(stem.ids) - stem.start
            logps = [at[token].logprob for at, token in zip(out.logprobs, out.token_ids, strict=True)]
            row.sampling_logps[given:] = logps[: len(row.tokens) - given]


def _keep(network: Network, stems: Sequence[Stem], responses: list[list[int]], rules: Rules, max_rows: int) -> None:
    """Writes a response into the one row of each stem, up to where the rules end it, with its log-probs."""
    whole = []
    for stem, response in zip(stems, responses, strict=True):
        (row,) = stem.rows
        given = len(stem.ids) - stem.start
        end = next((i for i in range(given + 1, len(response) + 1) if rules.ends_with(response[:i])), None)
        row.finish_reason = "length" if end is None else "stop"
        whole.append(Stem(stem.ids[: stem.start] + response[: end or len(row.uniforms)], stem.start, [row]))
    for batch in batches(whole, max_rows):
        width = max(len(stem.ids) for stem in batch)
        ids = [stem.ids + stem.ids[-1:] * (width - len(stem.ids)) for stem in batch]  # on the right: never looked at
        hidden = network.body(input_ids=torch.tensor(ids, device=network.device), use_cache=False).last_hidden_state
        network.read_given(batch, hidden, [0] * len(batch), rules.law)


def _seed(row: Row) -> int:
    """A seed for another generator, from the row's own stream."""
    return int(row.uniforms[0] * 2**53)
