"""Engines: other programs that draw responses, behind the same call as our own loops.

vLLM reads models from folders, so this module may write one, which is temporary.

The numbers of every engine mean the same: log-probs under the policy come from a pass of the policy itself over the
finished responses, as `score` would give them, because an engine's own differ (other kernels, other precision). Engines
draw with generators of their own: a seed gives the same text again, but not the text of another engine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, StoppingCriteriaList

from workbench.kernels.decoding import Network, Prefix, Row, Rules, batches
from workbench.kernels.heads import merged


def decode_with(engine: str, policy: Any, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
    """Completes the rows of all prefixes with engine "transformers" or "vllm".

    Raises:
        ImportError: the engine is not installed.
    """
    network = Network(policy if isinstance(policy, nn.Module) else policy.model)
    if engine == "transformers":
        _with_transformers(network, prefixes, rules, max_rows)
    else:
        _with_vllm(policy, network, prefixes, rules, max_rows)


def _with_transformers(network: Network, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
    """`generate`, a batch after another. The seed gives the same text for the same call with the same `max_rows`.

    Log-probs under the sampling distribution are those of its own definition, from the same pass as the policy's.
    """
    params, model = (
        rules.params,
        network.model.get_base_model() if hasattr(network.model, "peft_config") else network.model,
    )
    chance: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if params.temperature:
        chance = {"do_sample": True, "temperature": params.temperature, "top_p": params.top_p, "top_k": params.top_k}
    if params.barred is not None:
        chance["suppress_tokens"] = params.barred.nonzero()[:, 0].tolist()
    one_each = [Prefix(prefix.ids, prefix.start, [row]) for prefix in prefixes for row in prefix.rows]
    for batch in batches(one_each, max_rows):
        width = max(len(prefix.ids) for prefix in batch)
        padding = [width - len(prefix.ids) for prefix in batch]
        ids = [[0] * pad + prefix.ids for pad, prefix in zip(padding, batch, strict=True)]
        mask = [[0] * pad + [1] * (width - pad) for pad in padding]
        starts = [pad + prefix.start for pad, prefix in zip(padding, batch, strict=True)]

        def stops(sequences: Tensor, scores: Any, starts: list[int] = starts, **_: Any) -> Tensor:
            rows = zip(sequences.tolist(), starts, strict=True)
            return torch.tensor([rules.ends_with(row[start:]) for row, start in rows], device=sequences.device)

        longest = max(len(prefix.rows[0].uniforms) - len(prefix.ids) + prefix.start for prefix in batch)
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


def _with_vllm(policy: Any, network: Network, prefixes: Sequence[Prefix], rules: Rules, max_rows: int) -> None:
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
    params, pairs = rules.params, [(prefix, row) for prefix in prefixes for row in prefix.rows]
    half = getattr(policy, "precision", "no") == "bf16"
    dtype = torch.bfloat16 if half else next(model.parameters()).dtype
    with tempfile.TemporaryDirectory() as folder:
        whole = merged(model) if hasattr(model, "peft_config") else model
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
                temperature=params.temperature,
                top_p=params.top_p,
                top_k=params.top_k,
                seed=_seed(row),
                logprobs=0,
                max_tokens=len(row.uniforms) - len(prefix.ids) + prefix.start,
                stop_token_ids=sorted(rules.ends),
                stop=rules.stop.texts if rules.stop else None,
                include_stop_str_in_output=True,
                detokenize=tokenizer is not None,
                allowed_token_ids=(~params.barred).nonzero()[:, 0].tolist() if params.barred is not None else None,
            )
            for prefix, row in pairs
        ]
        answers = llm.generate([{"prompt_token_ids": prefix.ids} for prefix, _ in pairs], asked)
    drawn = [answer.outputs[0] for answer in answers]
    one_each = [Prefix(prefix.ids, prefix.start, [row]) for prefix, row in pairs]
    responses = [[*prefix.ids[prefix.start :], *out.token_ids] for prefix, out in zip(one_each, drawn, strict=True)]
    _keep(network, one_each, responses, rules, max_rows)
    for (prefix, row), out in zip(pairs, drawn, strict=True):
        row.finish_reason = "stop" if out.finish_reason == "stop" else row.finish_reason
        if params.temperature:
            given = len(prefix.ids) - prefix.start
            logps = [at[token].logprob for at, token in zip(out.logprobs, out.token_ids, strict=True)]
            row.sampling_logps[given:] = logps[: len(row.tokens) - given]


def _keep(
    network: Network, prefixes: Sequence[Prefix], responses: list[list[int]], rules: Rules, max_rows: int
) -> None:
    """Writes a response into the one row of each prefix, up to where the rules end it, with its log-probs."""
    whole = []
    for prefix, response in zip(prefixes, responses, strict=True):
        (row,) = prefix.rows
        given = len(prefix.ids) - prefix.start
        end = next((i for i in range(given + 1, len(response) + 1) if rules.ends_with(response[:i])), None)
        row.finish_reason = "length" if end is None else "stop"
        whole.append(Prefix(prefix.ids[: prefix.start] + response[: end or len(row.uniforms)], prefix.start, [row]))
    for batch in batches(whole, max_rows):
        width = max(len(prefix.ids) for prefix in batch)
        ids = [
            prefix.ids + prefix.ids[-1:] * (width - len(prefix.ids)) for prefix in batch
        ]  # on the right: never looked at
        hidden = network.body(input_ids=torch.tensor(ids, device=network.device), use_cache=False).last_hidden_state
        network.read_given(batch, hidden, [0] * len(batch), rules.params)


def _seed(row: Row) -> int:
    """A seed for another generator, from the row's own stream."""
    return int(row.uniforms[0] * 2**53)
