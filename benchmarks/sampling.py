"""Sampling: workbench against `generate` of transformers and its continuous batching, on the same prompts and lengths.

    python benchmarks/sampling.py            K=1 with skewed lengths, K=8 on eight prompts, about a minute
    python benchmarks/sampling.py --full     all cases; `generate` alone takes half a minute a round in the largest
    python benchmarks/sampling.py --model smollm2-135m-instruct-q4     a real model, every response of equal length

A random Llama (4 layers, width 256) answers random prompts. How long each response becomes is drawn beforehand,
log-normal and capped, and no token ends one, so every side writes the same number of useful tokens:
- `workbench`: the loop below `sample`, which takes a length for each row;
- `generate`: one batch, left-padded; it runs until the longest response is done, because it has one limit for all;
- `generate_batch`: continuous batching, a request for each response with its own limit; prompts share their blocks.
Before a ratio is printed, the greedy tokens of all sides must be the same: those of the timed run where it is greedy,
else those of an untimed run on the first prompts. Workbench also returns log-probs under policy and sampler, the peers
do not. `waste` is what running every row to the longest costs: rows times longest over useful tokens.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from typing import Any

import harness
import numpy as np
import results

OURS, GENERATE, BATCH = "workbench", "generate", "generate_batch"
SHORT, LONG = {"prompt": (16, 64), "k": 1}, {"prompt": (128, 256), "k": 8}
# `must`: the ratio to reach, per peer (issue 3); the ratio is the peer's time over that of workbench
CASES: dict[str, dict] = {
    "K=1, 64 prompts, greedy": {
        **SHORT,
        "n": 64,
        "cap": 256,
        "median": 50,
        "greedy": True,
        "must": {GENERATE: 2.2, BATCH: 1.5},
    },
    "K=1, 64 prompts": {**SHORT, "n": 64, "cap": 256, "median": 50, "must": {GENERATE: 2.2, BATCH: 1.5}},
    "K=8, 8 prompts": {**LONG, "n": 8, "cap": 64, "median": 20, "must": {BATCH: 3.0}},
    "K=8, 32 prompts": {**LONG, "n": 32, "cap": 64, "median": 20, "rounds": 3, "must": {GENERATE: 7.0, BATCH: 3.0}},
    "K=8, 64 prompts": {**LONG, "n": 64, "cap": 96, "median": 25, "rounds": 2, "must": {GENERATE: 7.0, BATCH: 3.0}},
}
# of a real model: rows of equal length, so nothing is won by leaving early (issue 16)
REAL_CASES: dict[str, dict] = {
    "1 row": {"prompt": (20, 20), "n": 1, "k": 1, "cap": 48, "must": {GENERATE: 1.35}},
    "10 rows": {"prompt": (20, 20), "n": 10, "k": 1, "cap": 48, "must": {GENERATE: 1.8}},
    "8 prompts, K=4": {"prompt": (20, 20), "n": 8, "k": 4, "cap": 32, "must": {GENERATE: 1.75}},
    "32 rows": {"prompt": (20, 20), "n": 32, "k": 1, "cap": 32, "must": {GENERATE: 1.55}},
    "4 long prompts, K=8": {"prompt": (430, 430), "n": 4, "k": 8, "cap": 16, "must": {GENERATE: 6.0}},
}
DEFAULTS = {"vocab": 4096, "width": 256, "layers": 4, "seed": 0, "greedy": False, "must": {}}
QUICK = ("K=1, 64 prompts, greedy", "K=8, 8 prompts")
SMOKE = {"smoke": {"prompt": (4, 9), "n": 3, "k": 2, "cap": 6, "median": 4, "vocab": 64, "width": 32, "layers": 2}}


# ---------------------------------------------------------------------------------------------------------- the inputs
def make_prompts(case: dict) -> tuple[list[list[int]], np.ndarray]:
    """Random prompts, and the length of each of their K responses, [prompt, k]; the longest has the cap."""
    rng = np.random.default_rng(case["seed"])
    low, high = case["prompt"]
    prompts = [rng.integers(2, case["vocab"], rng.integers(low, high + 1)).tolist() for _ in range(case["n"])]
    if "median" not in case:
        return prompts, np.full((case["n"], case["k"]), case["cap"])
    lengths = np.exp(rng.normal(np.log(case["median"]), 0.8, (case["n"], case["k"])))
    lengths = lengths.astype(int).clip(1, case["cap"])
    lengths.flat[lengths.argmax()] = case["cap"]
    return prompts, lengths


def make_model(case: dict) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if "model" in case:
        from workbench.models import Policy

        model = Policy.load(case["model"], device=case["device"]).model.eval()
        model.generation_config.eos_token_id = model.config.eos_token_id = None
        return model
    torch.manual_seed(case["seed"])
    config = LlamaConfig(
        vocab_size=case["vocab"],
        hidden_size=case["width"],
        intermediate_size=8 * case["width"] // 3,
        num_hidden_layers=case["layers"],
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        max_position_embeddings=case["prompt"][1] + case["cap"],
        bos_token_id=0,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = LlamaForCausalLM(config).to(case["device"]).eval()
    model.generation_config.eos_token_id = None
    return model


def side(case: dict, *, draw: Callable[..., list[list[int]]], sabotage: int = 0) -> Callable[[], Any]:
    """`draw(model, prompts, lengths, greedy)` gives the tokens of all rows, prompt by prompt. `sabotage` changes
    some."""
    import torch

    model = make_model(case)
    prompts, lengths = make_prompts(case)
    few = 3 if case["greedy"] else min(3, len(prompts))
    known: dict[str, float] = {}

    def checksum(tokens: list[list[int]]) -> float:
        return float(zlib.crc32(repr([[token + sabotage for token in row] for row in tokens]).encode()))

    def run() -> Callable[[], dict[str, float]]:
        with torch.no_grad():
            tokens = draw(model, prompts, lengths, case["greedy"])

        def numbers() -> dict[str, float]:
            if not known:
                with torch.no_grad():
                    greedy = tokens if case["greedy"] else draw(model, prompts[:few], lengths[:few], True)
                known["greedy tokens"] = checksum(greedy)
            return {"useful tokens": sum(map(len, tokens)), **known}

        return numbers

    return run


# ----------------------------------------------------------------------------------------------------------- the sides
def by_workbench(model: Any, prompts: list[list[int]], lengths: np.ndarray, greedy: bool) -> list[list[int]]:
    from workbench.kernels.decoding import Network, Prefix, Row, Rules
    from workbench.kernels.drawing import SamplingParams
    from workbench.kernels.slots import decode

    rng = np.random.default_rng(0)
    prefixes = [
        Prefix(ids, len(ids), [Row(i, k, rng.random(int(length))) for k, length in enumerate(lengths[i])])
        for i, ids in enumerate(prompts)
    ]
    decode(Network(model), prefixes, Rules(SamplingParams(0.0 if greedy else 1.0)), max_rows=256)
    return [row.tokens for prefix in prefixes for row in prefix.rows]


def by_generate(model: Any, prompts: list[list[int]], lengths: np.ndarray, greedy: bool) -> list[list[int]]:
    import torch

    width, k = max(map(len, prompts)), lengths.shape[1]
    chance: dict[str, Any] = (
        {"do_sample": False} if greedy else {"do_sample": True, "top_k": 0, "num_return_sequences": k}
    )
    each = k if greedy else 1  # greedy search gives one response a row
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts for _ in range(each)], device=model.device)
    mask = torch.tensor(
        [[0] * (width - len(p)) + [1] * len(p) for p in prompts for _ in range(each)], device=model.device
    )
    out = model.generate(ids, attention_mask=mask, max_new_tokens=int(lengths.max()), **chance)
    return [row[width:][:length] for row, length in zip(out.tolist(), lengths.flatten().tolist(), strict=True)]


def by_generate_batch(model: Any, prompts: list[list[int]], lengths: np.ndarray, greedy: bool) -> list[list[int]]:
    from transformers import ContinuousBatchingConfig, GenerationConfig

    config = GenerationConfig(do_sample=not greedy, top_k=0, pad_token_id=0, eos_token_id=-1)
    pages = sum(-(-(len(p) + int(length)) // 32) for p, line in zip(prompts, lengths, strict=True) for length in line)
    # the fastest settings found for it here: all requests at once for short prompts, 16 for long ones, because without
    # FlashAttention every token of a pass gets a mask over the tokens of all its requests
    most = 16 if lengths.shape[1] > 1 else None
    blocks = ContinuousBatchingConfig(
        page_size=32, num_blocks=pages + 8, max_batch_tokens=512, max_requests_per_batch=most
    )
    asked = [(p, int(length)) for p, line in zip(prompts, lengths, strict=True) for length in line]
    found: dict[str, list[int]] = {}
    with model.continuous_batching_context_manager(
        generation_config=config, continuous_batching_config=blocks, block=True, timeout=5
    ) as manager:
        names = [manager.add_request(ids, max_new_tokens=length) for ids, length in asked]
        while len(found) < len(asked):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = result.generated_tokens
            elif result is None and not manager.is_running():
                raise RuntimeError("continuous batching ended before its requests did")
    return [found[name] for name in names]


# ------------------------------------------------------------------------------------------------------------ the table
def time_rows(result: harness.Result) -> list[dict]:
    """Checks that the sides agree, prints a table, and returns its rows for the results file."""
    result.check({"useful tokens": 0.0, "greedy tokens": 0.0})
    _, lengths = make_prompts(result.case)
    useful, waste = int(lengths.sum()), lengths.size * lengths.max() / lengths.sum()
    print(
        f"\n{result.case['name']}: {useful:,} useful tokens, waste {waste:.1f}; greedy tokens are the same on all sides"
    )
    rows, table = [], []
    for name in result.sides:
        ratio = result.ratios(name, OURS)
        must = result.case["must"].get(name)
        rows.append(
            {
                "case": result.case["name"],
                "side": name,
                "seconds": result.seconds[name],
                "must": must,
                "ratio": ratio if name != OURS else None,
            }
        )
        table.append(
            {
                "side": name,
                "CPU s": results.spread(result.seconds[name]),
                "tokens/s": f"{useful / np.median(result.seconds[name]):.0f}",
                "over workbench": results.spread(ratio),
                "must": must or "",
            }
        )
    results.print_table(table)
    for name, reason in result.missing.items():
        print(f"  {name}: {reason}")
        rows.append({"case": result.case["name"], "side": name, "missing": reason})
    return rows


def contestants(sabotage: int) -> dict[str, harness.Side]:
    return {
        OURS: functools.partial(side, draw=by_workbench, sabotage=sabotage),
        GENERATE: functools.partial(side, draw=by_generate),
        BATCH: functools.partial(side, draw=by_generate_batch),
    }


def options(parser: Any) -> None:
    parser.add_argument("--sabotage", type=int, default=0, help="added to tokens; the check must fail")
    parser.add_argument("--model", default="", help="folder, hub id or named model in the place of the random one")


def time_real_model(given: Any) -> None:
    """Cases of a real model against `generate`, which writes all rows to the same length too."""
    rounds = {"smoke": 1, "quick": 3, "full": 7}[given.size]
    cases = dict(list(REAL_CASES.items())[:1]) if given.size == "smoke" else REAL_CASES
    sides = {name: side for name, side in contestants(given.sabotage).items() if name != BATCH}
    rows: list[dict] = []
    with harness.Contest(sides, device=given.device) as contest:
        for name, case in cases.items():
            case = {**DEFAULTS, **case, "name": name, "model": given.model, "greedy": True}
            rows += time_rows(contest.run(case, rounds=rounds, limit_s=600))
    title = f"Sampling with {given.model}: workbench against transformers"
    results.write("sampling-real-model", rows, given, title, "time of the peer over time of workbench")


def main() -> None:
    given = harness.arguments(
        __doc__,
        extra=options,
    )
    if given.model:
        return time_real_model(given)
    cases = {"smoke": SMOKE, "quick": {name: CASES[name] for name in QUICK}, "full": CASES}[given.size]
    rounds, limit_s = {"smoke": (1, 120), "quick": (3, 120), "full": (7, 300)}[given.size]
    rows: list[dict] = []
    with harness.Contest(contestants(given.sabotage), device=given.device) as contest:
        for name, case in cases.items():
            most = min(rounds, case.get("rounds", rounds))
            rows += time_rows(contest.run({**DEFAULTS, **case, "name": name}, rounds=most, limit_s=limit_s))
    axis = "time of the peer over time of workbench"
    results.write("sampling", rows, given, "Sampling: workbench against transformers", axis)


if __name__ == "__main__":
    main()
