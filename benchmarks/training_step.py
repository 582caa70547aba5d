"""One optimiser step of a preference loss: workbench against TRL's DPOTrainer, in time and in memory.

    python benchmarks/training_step.py            long and short prompts, under a minute
    python benchmarks/training_step.py --full     all cases, K = 4 and 8, memory
    python benchmarks/training_step.py --grid     shapes from 16 to 1,024 prompt tokens: is it ever slower?

Forward, loss, backward, clipping and AdamW of a random Llama on random tokens, with reference log-probs computed
before.
Sides:
- `workbench`: `training.train` with `preference_step(dpo)`, as a method calls it; on a CPU it holds 2,048 tokens
  at a time, so that a step with more is cut into parts;
- `workbench padded`: the same with `score(route="padded")`, one row a response;
- `TRL`: DPOTrainer.train with precomputed reference log-probs and no gradient checkpointing, as it comes on a CPU;
- `compact TRL`: the same with its output head on completion positions only, as TRL does by itself on a GPU. On a CPU it
  scores prompts and padding too, so this is the fair peer, and the two rows are always printed together.
With K > 2 responses TRL has no list loss: it takes the K-1 pairs of the best response with another, workbench takes a
Plackett-Luce loss on the K responses. Then only the log-probs before the first update can be compared.

Beside each ratio stands what sharing a prompt gives at best: `tokens`, K(P+R)/(P+KR), is K rows over a shared prompt,
and `of pairs` is TRL's 2(K-1) rows over a shared prompt (the same for K = 2). Padding and the head come on top of
either.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import tempfile
import zlib
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import harness
import numpy as np
import results

TRL, COMPACT, OURS, PADDED = "TRL", "compact TRL", "workbench", "workbench padded"
BETA, LEARNING_RATE = 0.1, 1e-4
LONG, MIDDLE, SHORT, LONG_RESPONSES = (
    {"prompt": (256, 512), "response": (32, 64)},
    {"prompt": (64, 128), "response": (64, 128)},
    {"prompt": (8, 32), "response": (32, 64)},
    {"prompt": (64, 128), "response": (256, 512)},
)
# `must`: the ratio to reach, per peer (issue 3); the ratio is the peer's time over that of workbench
CASES = {
    "long, V=4,096": {**LONG, "must": {TRL: 3.0, COMPACT: 1.8}},
    "long, V=32,000": {**LONG, "vocab": 32_000, "groups": 4, "must": {TRL: 12.0, COMPACT: 1.8}},
    "long, K=4": {**LONG, "k": 4, "groups": 2, "must": {COMPACT: 3.8}},
    "long, K=8": {**LONG, "k": 8, "groups": 2, "must": {COMPACT: 6.5, PADDED: 3.0}},
    "short, V=4,096": {**SHORT, "must": {COMPACT: 1.25}},
    "short, V=32,000": {**SHORT, "vocab": 32_000, "must": {COMPACT: 1.25}},
    "middle, V=4,096": {**MIDDLE, "must": {COMPACT: 1.3}},
    "long responses, V=4,096": {**LONG_RESPONSES, "groups": 4, "must": {COMPACT: 1.2}},
}
DEFAULTS = {"k": 2, "groups": 8, "vocab": 4096, "width": 256, "layers": 4, "seed": 0, "must": {}}
MEMORY_MUST = {COMPACT: 0.6}


# ---------------------------------------------------------------------------------------------------------- the inputs
def make_groups(case: dict) -> list[tuple[list[int], list[list[int]]]]:
    """Random prompts with K responses each, the best first; every response ends with the end token 1."""
    rng = np.random.default_rng(case["seed"])

    def tokens(bounds: Sequence[int], ended: bool) -> list[int]:
        length = int(rng.integers(bounds[0], bounds[1] + 1))
        return [*rng.integers(2, case["vocab"], length - ended).tolist(), *([1] if ended else [])]

    return [
        (tokens(case["prompt"], False), [tokens(case["response"], True) for _ in range(case["k"])])
        for _ in range(case["groups"])
    ]


def token_ratios(case: dict) -> tuple[float, float]:
    """Tokens of K padding-free rows over those of a shared prompt, K(P+R)/(P+KR); and of TRL's 2(K-1) rows over
    them."""
    groups = make_groups(case)
    shared = sum(len(p) + sum(map(len, rs)) for p, rs in groups)
    rows = sum(len(p) * len(rs) + sum(map(len, rs)) for p, rs in groups)
    pairs = sum(2 * len(p) + len(rs[0]) + len(r) for p, rs in groups for r in rs[1:])
    return rows / shared, pairs / shared


def checksum(rows: Sequence[tuple[Any, Any, Any]]) -> float:
    """Of prompts, best and other responses, in any order of the rows."""
    return float(zlib.crc32(repr(sorted((list(p), list(c), list(r)) for p, c, r in rows)).encode()))


def make_model(case: dict) -> Any:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(case["seed"])
    length = case["prompt"][1] + case["response"][1] + 1
    config = LlamaConfig(
        vocab_size=case["vocab"],
        hidden_size=case["width"],
        intermediate_size=8 * case["width"] // 3,
        num_hidden_layers=case["layers"],
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return LlamaForCausalLM(config).to(case["device"])


def make_tokenizer(case: dict) -> Any:
    from workbench.worlds.language import word_tokenizer

    return word_tokenizer([f"t{i}" for i in range(2, case["vocab"])])


# ----------------------------------------------------------------------------------------------------------- the sides
class Weights:
    """How far the weights have moved, to compare updates, and resident gradients for the memory contest."""

    def __init__(self, model: Any):
        self.parameters = list(model.parameters())
        self.start = [p.detach().clone() for p in self.parameters]

    def moved(self) -> np.ndarray:
        """Change of every 97th weight since the start."""
        import torch

        pairs = zip(self.parameters, self.start, strict=True)
        return torch.cat([(p.detach() - s).flatten()[::97] for p, s in pairs]).cpu().numpy()

    def hold_gradients(self) -> None:
        """Gradients stand before the step, so that its growth is activations and scratch alone."""
        import torch

        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)


def workbench_side(case: dict, *, route: str = "auto", sabotage: float = 0.0) -> Callable[[], Any]:
    """`sabotage` shifts the reference log-prob of the best responses: the checks must notice."""
    import torch

    from workbench.kernels import Group
    from workbench.models import Policy
    from workbench.training.loop import TrainConfig, train
    from workbench.training.reference import PairRow, reference_logps
    from workbench.training.steps import preference_step

    policy = Policy(make_model(case), make_tokenizer(case))
    groups = [Group(*group) for group in make_groups(case)]
    weights, logged_last = Weights(policy.model), {}
    found = reference_logps(policy, groups)
    found[:, 0] += sabotage
    rows = [PairRow(str(i), group, tuple(logps)) for i, (group, logps) in enumerate(zip(groups, found, strict=True))]
    if case["k"] > 2:
        objective_step = functools.partial(plackett_luce_step, route=route)
    elif route == "auto":
        from workbench import objectives

        objective_step = preference_step(objectives.dpo, beta=BETA)
    else:
        objective_step = functools.partial(dpo_step, route=route)

    def run(pause: Callable[[], None]) -> None:
        seen: list[dict[str, torch.Tensor]] = []  # of this optimiser step, which may hold its rows in several parts

        def step(live: Policy, batch: Sequence[PairRow]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            if not seen:
                pause()
            losses, logged = objective_step(live, batch)
            seen.append({**logged, "losses": losses.detach()})
            if sum(len(part["losses"]) for part in seen) == len(rows):
                logged_last.update({name: torch.cat([part[name] for part in seen]) for name in seen[0]})
                seen.clear()
            return losses, logged

        config = TrainConfig(
            learning_rate=LEARNING_RATE,
            batch_size=len(rows),
            epochs=case["rounds"] + 2,
            schedule="constant",
            warmup_ratio=0.0,
        )
        train(policy, rows, step, config)

    tokens = checksum([(g.prompt_ids, g.responses_ids[0], other) for g in groups for other in g.responses_ids[1:]])

    def numbers() -> dict[str, Any]:
        names = {"loss": "losses", "best logps": "chosen_logps", "other logps": "rejected_logps"}
        means = {name: float(logged_last[key].mean()) for name, key in names.items()}
        return {"tokens": tokens, **means, "moved": weights.moved()}

    return _rounds(harness.Loop(run), weights, numbers, case)


def dpo_step(policy: Any, batch: Sequence[Any], *, route: str) -> tuple[Any, dict]:
    """`preference_step(dpo)` with the route of our choice."""
    import torch

    from workbench import objectives
    from workbench.kernels import score

    sums = score(policy, [row.group for row in batch], route=route).sums
    reference = torch.tensor([row.reference_logps for row in batch], dtype=sums.dtype, device=sums.device)
    losses, logged = objectives.dpo(sums[:, 0], sums[:, 1], reference[:, 0], reference[:, 1], beta=BETA)
    return losses, {**logged, "chosen_logps": sums[:, 0].detach(), "rejected_logps": sums[:, 1].detach()}


def plackett_luce_step(policy: Any, batch: Sequence[Any], *, route: str) -> tuple[Any, dict]:
    """-log of the probability of the given order: at each place the best of those left wins the softmax of rewards."""
    import torch

    from workbench.kernels import score

    sums = score(policy, [row.group for row in batch], route=route).sums
    reference = torch.tensor([row.reference_logps for row in batch], dtype=sums.dtype, device=sums.device)
    rewards = BETA * (sums - reference)
    losses = (rewards.flip(1).logcumsumexp(1).flip(1) - rewards).sum(1)
    return losses, {"chosen_logps": sums[:, 0].detach(), "rejected_logps": sums[:, 1:].mean(1).detach()}


def trl_side(case: dict, *, compact: bool) -> Callable[[], Any]:
    import trl.trainer.utils as trl_utils
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    if compact:
        # The name as the trainer's head sees it, and only there: the head's arithmetic stays the one for CPUs.
        if not hasattr(trl_utils, "_use_triton"):
            raise RuntimeError("trl.trainer.utils has no _use_triton any more; adapt the compact row to this TRL")
        trl_utils._use_triton = lambda device: True  # type: ignore[attr-defined]

    model, tokenizer = make_model(case), make_tokenizer(case)
    weights = Weights(model)

    def text(ids: Sequence[int]) -> str:
        return " ".join(f"t{i}" for i in ids)

    folder = tempfile.TemporaryDirectory()
    # The end token is left to TRL, which adds it.
    table = [
        {"prompt": text(prompt) + " ", "chosen": text(best[:-1]), "rejected": text(other[:-1])}
        for prompt, (best, *others) in make_groups(case)
        for other in others
    ]
    config = DPOConfig(
        output_dir=folder.name,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        per_device_train_batch_size=len(table),
        num_train_epochs=case["rounds"] + 2,
        precompute_ref_log_probs=True,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=case["device"] == "cpu",
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = DPOTrainer(model, args=config, train_dataset=Dataset.from_list(table), processing_class=tokenizer)
    train_rows: Any = trainer.train_dataset
    tokens = checksum([(r["prompt_ids"], r["chosen_ids"], r["rejected_ids"]) for r in train_rows])
    losses: list[Any] = []
    plain_step = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        loss = plain_step(*args, **kwargs)
        losses.append(loss)
        return loss

    trainer.training_step = training_step

    def run(pause: Callable[[], None]) -> None:
        class Pause(TrainerCallback):
            def on_step_begin(self, *_: Any, **__: Any) -> None:
                pause()

        trainer.add_callback(Pause())
        trainer.train()

    def numbers(folder: Any = folder) -> dict[str, Any]:  # the folder lives as long as the rounds
        logged = {name: values[-1] for name, values in trainer._metrics["train"].items() if values}
        return {
            "tokens": tokens,
            "loss": float(losses[-1]),
            "best logps": logged["logps/chosen"],
            "other logps": logged["logps/rejected"],
            "moved": weights.moved(),
        }

    return _rounds(harness.Loop(run), weights, numbers, case)


def _rounds(loop: harness.Loop, weights: Weights, numbers: Callable[[], dict], case: dict) -> Callable[[], Any]:
    """What a round runs: one step of the loop."""
    if case["memory"]:
        weights.hold_gradients()

    def call() -> Callable[[], dict[str, float]]:
        loop()

        def after() -> dict[str, Any]:
            found = numbers()
            if case["memory"]:
                weights.hold_gradients()
            return found

        return after

    call.close = loop.close  # type: ignore[attr-defined]
    return call


SIDES = {
    OURS: workbench_side,
    PADDED: functools.partial(workbench_side, route="padded"),
    TRL: functools.partial(trl_side, compact=False),
    COMPACT: functools.partial(trl_side, compact=True),
}


# ---------------------------------------------------------------------------------------------------------- the report
def check(result: harness.Result) -> float:
    """The sides saw the same tokens and, with K = 2, made the same first updates; largest relative difference."""
    result.check({"tokens": 0.0})
    if result.case["k"] == 2:
        # AdamW divides by the size of the gradient: where that is rounding only, the weight may move either way. So the
        # weights are compared as one vector, and only for two steps.
        numbers = result.check({"loss": 1e-4, "best logps": 1e-4, "other logps": 1e-4}, rounds=2)
        return max(numbers, result.check({"moved": 1e-2}, rounds=2))
    return result.check({"best logps": 1e-4, "other logps": 1e-4}, rounds=1)


def time_rows(result: harness.Result) -> list[dict]:
    worst, case = check(result), result.case
    sharing, pairs = token_ratios(case)
    floors = {}
    if "rates" in case:
        operations, moved = step_floors(case)
        floors = {"floor operations s": operations / case["rates"][0], "floor bytes s": moved / case["rates"][1]}
    return [
        {
            "case": case["name"],
            "side": side,
            "ratio": result.ratios(side, OURS),
            "must": case["must"].get(side),
            "seconds": result.seconds[side],
            "ours_s": result.seconds[OURS],
            "tokens": sharing,
            "tokens of pairs": pairs,
            "difference": worst,
            **floors,
        }
        for side in result.sides[1:]
    ]


def memory_rows(result: harness.Result) -> list[dict]:
    check(result)
    return [
        {
            "case": result.case["name"],
            "side": side,
            "peak_mib": median(result.peak_mib[side]),
            "ours_mib": median(result.peak_mib[OURS]),
            "of peer": median(result.ratios(OURS, side, "peak_mib")),
            "at most": MEMORY_MUST.get(side) if result.case["name"].startswith("long,") else None,
        }
        for side in result.sides[1:]
    ]


def step_floors(case: dict) -> tuple[float, float]:
    """Operations and bytes that a step of the shared form cannot do without, whatever the code.

    Six operations a weight and token (two forward, four backward), the head on response tokens only; attention is left
    out. Each weight is read forward and backward, its gradient written, and AdamW reads four numbers and writes three.
    """
    groups, width = make_groups(case), case["width"]
    tokens = sum(len(p) + sum(map(len, rs)) for p, rs in groups)
    scored = sum(len(r) for _, rs in groups for r in rs)
    layer = 4 * width**2 + 3 * width * (8 * width // 3)
    weights = case["layers"] * layer + 2 * case["vocab"] * width
    return 6.0 * (case["layers"] * layer * tokens + case["vocab"] * width * scored), 4.0 * 10 * weights


def grid() -> dict[str, dict]:
    """Shapes from the smallest to the largest; a step has at most about 8,000 tokens of peer rows, and a group at
    least."""
    cases = {}
    for prompt, response, k, vocab in itertools.product((16, 128, 1024), (8, 64, 512), (2, 8), (512, 32_000)):
        groups = max(1, min(8, 8_000 // (2 * (k - 1) * (prompt + response))))
        cases[f"prompt {prompt}, response {response}, K={k}, V={vocab:,}"] = {
            "prompt": (prompt // 2, prompt),
            "response": (response // 2, response),
            "k": k,
            "vocab": vocab,
            "groups": groups,
        }
    return cases


def main() -> None:
    harness.require_trl()

    def extra(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--grid", action="store_true", help="many shapes against compact TRL; a quarter of an hour")
        parser.add_argument("--case", action="append", help="only cases whose name contains this; repeatable")
        parser.add_argument(
            "--sabotage", type=float, default=0.0, help="nats put on our reference: the check must fail"
        )

    given = harness.arguments(__doc__, extra=extra)
    sides = {**SIDES, OURS: functools.partial(workbench_side, sabotage=given.sabotage)}
    cases, rounds, memory = dict(CASES), 7, harness.MEASURES_MEMORY
    if given.grid:
        cases, rounds, memory = grid(), 2, False
        sides = {OURS: sides[OURS], COMPACT: sides[COMPACT]}
    elif given.size == "quick":
        cases = {"long, V=4,096": {**CASES["long, V=4,096"], "groups": 2}, "short, V=4,096": CASES["short, V=4,096"]}
        rounds, memory = 3, False
    elif given.size == "smoke":
        tiny = {"prompt": (4, 8), "response": (2, 4), "vocab": 64, "width": 16, "layers": 1, "groups": 2}
        cases, rounds = {"tiny": tiny, "tiny, K=4": {**tiny, "k": 4}}, 1
    if given.case:
        cases = {name: case for name, case in cases.items() if any(part in name for part in given.case)}
    cases = {name: {"name": name, **DEFAULTS, **case} for name, case in cases.items()}
    if given.device == "cuda":
        rates = harness.device_rates()
        cases = {name: {**case, "rates": rates} for name, case in cases.items()}

    rows: list[dict] = []
    with harness.Contest(sides, device=given.device) as contest:
        for case in cases.values():
            found = time_rows(contest.run(case, rounds=rounds))
            print_rows(found)
            rows += found
    if given.grid:
        below = sorted((median(row["ratio"]), row["case"]) for row in rows)
        print(
            f"worst of {len(rows)} shapes against {COMPACT}: {below[0][0]:.2f} ({below[0][1]}); "
            f"{sum(ratio < 1 for ratio, _ in below)} below 1"
        )
    if memory:
        print("\nPeak of a step beyond weights, gradients and moments: activations and scratch, MiB")
        with harness.Contest(sides, memory=True, device=given.device) as contest:
            for case in cases.values():
                found = memory_rows(contest.run(case, rounds=1))
                results.print_table(
                    [
                        {
                            "case": row["case"],
                            "side": row["side"],
                            "MiB": f"{row['peak_mib']:.1f}",
                            "workbench": f"{row['ours_mib']:.1f}",
                            "of peer": f"{row['of peer']:.2f}",
                            "at most": row["at most"] or "",
                        }
                        for row in found
                    ]
                )
                rows += found
    results.write(
        "training_grid" if given.grid else "training_step",
        rows,
        given,
        "An optimiser step: workbench against TRL",
        "time of the peer over time of workbench",
    )


def print_rows(rows: Sequence[dict]) -> None:
    """Sides of one case. The ratio is how many times as long the side takes as workbench."""
    results.print_table(
        [
            {
                "case": row["case"],
                "side": row["side"],
                "CPU s": f"{median(row['seconds']):.3f}",
                "workbench": f"{median(row['ours_s']):.3f}",
                "ratio (range)": results.spread(row["ratio"]),
                "to reach": row["must"] or "",
                "tokens": f"{row['tokens']:.2f}",
                "of pairs": f"{row['tokens of pairs']:.2f}",
                "differ": f"{row['difference']:.0e}",
                **{n: f"{row[n]:.1e}" for n in row if n.startswith("floor")},
            }
            for row in rows
        ]
    )


if __name__ == "__main__":
    main()
