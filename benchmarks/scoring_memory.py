"""The output head alone: log-probs of given tokens and their gradients, in time and in memory.

    python benchmarks/scoring_memory.py            seconds to a minute
    python benchmarks/scoring_memory.py --full     more rounds, vocabulary up to 128,000

Hidden states [tokens, 256] in float32, a random head, a random weight on each token, forward and backward. The head is
trained (its gradient is wanted) or frozen (as under LoRA). Sides:
- `workbench`: `kernels.token_logps`;
- `plain logits`: hidden @ W.T, log_softmax, gather, autograd: what a textbook does; it holds [tokens, vocabulary];
- `TRL`: the function of its fused head, log-probs only;
- `TRL as in DPO`: the same with the entropy, mean logit and top-1 flag that DPOTrainer always asks it for.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from statistics import median
from typing import Any

import harness
import results

OURS, PLAIN, TRL, TRL_DPO = "workbench", "plain logits", "TRL", "TRL as in DPO"
WIDTH = 256


def head_side(case: dict, *, how: str, sabotage: float = 0.0) -> Callable[[], Any]:
    """`sabotage` is added to the log-probs of workbench: the checks must notice."""
    import torch

    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(case["tokens"], WIDTH, generator=generator)
    targets = torch.randint(case["vocab"], (case["tokens"],), generator=generator).to(case["device"])
    weights = torch.randn(case["tokens"], generator=generator).to(case["device"])
    head = torch.nn.Linear(WIDTH, case["vocab"], bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(head.weight.shape, generator=generator) / WIDTH**0.5)
    head.to(case["device"]).weight.requires_grad_(case["trained"])
    hidden = hidden.to(case["device"]).requires_grad_()
    if how == OURS:
        from workbench.kernels import token_logps

        def logps() -> torch.Tensor:
            return token_logps(hidden, targets, head) + sabotage
    elif how == PLAIN:

        def logps() -> torch.Tensor:
            return head(hidden).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    else:
        from trl.kernels.chunked_logprob import OPTIONAL_OUTPUTS, ChunkedLogProbFunction

        # what DPOTrainer asks for, and its chunk size
        outputs = tuple(o for o in OPTIONAL_OUTPUTS if o != "log_sum_sq_probs") if how == TRL_DPO else ()

        def logps() -> torch.Tensor:
            return ChunkedLogProbFunction.apply(
                hidden, head.weight, None, targets, 1.0, 32_768, None, 1.0, ("log_probs", *outputs)
            )[0]

    def call() -> Callable[[], dict[str, Any]]:
        found = logps()
        (found * weights).sum().backward()

        def numbers() -> dict[str, Any]:
            gradients: Any = hidden.grad, head.weight.grad
            numbers = {"logps": found.detach().cpu().numpy(), "hidden gradient": gradients[0].cpu().numpy()}
            if case["trained"]:
                numbers["head gradient"] = gradients[1].flatten()[::97].cpu().numpy()
            hidden.grad = head.weight.grad = None
            return numbers

        return numbers

    return call


def check(result: harness.Result) -> float:
    names = ["logps", "hidden gradient", *(["head gradient"] if result.case["trained"] else [])]
    return result.check(dict.fromkeys(names, 1e-4))


def make_case(tokens: int, vocab: int, trained: bool, **more: Any) -> dict:
    name = f"{'trained' if trained else 'frozen'} head, V={vocab:,}, {tokens:,} tokens"
    return {"name": name, "tokens": tokens, "vocab": vocab, "trained": trained, "must": {}, **more}


def time_rows(result: harness.Result) -> list[dict]:
    worst, case = check(result), result.case
    rows = [
        {
            "case": case["name"],
            "side": side,
            "ratio": result.ratios(side, OURS),
            "must": case["must"].get(side),
            "seconds": result.seconds[side],
            "ours_s": result.seconds[OURS],
            "difference": worst,
        }
        for side in result.sides[1:]
    ]
    results.print_table(
        [
            {
                "case": row["case"],
                "side": row["side"],
                "CPU s": f"{median(row['seconds']):.4f}",
                "workbench": f"{median(row['ours_s']):.4f}",
                "ratio (range)": results.spread(row["ratio"]),
                "to reach": row["must"] or "",
                "differ": f"{worst:.0e}",
            }
            for row in rows
        ]
    )
    return rows


def memory_rows(result: harness.Result) -> list[dict]:
    check(result)
    peaks = {side: result.peak_mib[side][0] for side in result.sides}
    rows = [
        {
            "case": result.case["name"],
            "side": side,
            "peak_mib": peaks[side],
            "ours_mib": peaks[OURS],
            "of peer": peaks[OURS] / peaks[side],
            "at most": result.case["must"].get(side),
        }
        for side in result.sides[1:]
    ]
    results.print_table(
        [
            {
                "case": row["case"],
                "side": row["side"],
                "MiB": f"{row['peak_mib']:.0f}",
                "workbench": f"{row['ours_mib']:.0f}",
                "of peer": f"{row['of peer']:.2f}",
                "at most": row["at most"] or "",
            }
            for row in rows
        ]
    )
    return rows


def main() -> None:
    harness.require_trl()
    given = harness.arguments(
        __doc__, extra=lambda p: p.add_argument("--sabotage", type=float, default=0.0, help="nats; the check must fail")
    )
    sides = {how: functools.partial(head_side, how=how) for how in (OURS, PLAIN, TRL, TRL_DPO)}
    sides[OURS] = functools.partial(head_side, how=OURS, sabotage=given.sabotage)
    rounds, tokens, many = {"smoke": (1, 16, 64), "quick": (3, 256, 1024), "full": (9, 768, 4096)}[given.size]
    vocabularies = (64, 2048) if given.size == "smoke" else (4096, 32_000)
    goals = dict(zip(vocabularies, (0.85, 1.2), strict=True))  # issue 3: frozen head, against plain logits
    rows: list[dict] = []
    with harness.Contest(sides, device=given.device) as contest:
        for trained, vocab in itertools.product((False, True), vocabularies):
            case = make_case(tokens, vocab, trained, must={} if trained else {PLAIN: goals[vocab]})
            rows += time_rows(contest.run(case, rounds=rounds))
    if harness.MEASURES_MEMORY:
        print("\nPeak of one forward and backward pass beyond hidden states and head, gradients included")
        with harness.Contest(sides, memory=True, device=given.device) as contest:
            for trained, vocab in itertools.product((False, True), vocabularies[given.size == "quick" :]):
                case = make_case(many, vocab, trained, must={PLAIN: 0.25} if vocab == 32_000 else {})
                rows += memory_rows(contest.run(case, rounds=1))
            contest.sides.pop(PLAIN)  # it would take 6 GB here
            for trained in (False, True) if given.size == "full" else ():
                rows += memory_rows(contest.run(make_case(many, 128_000, trained), rounds=1))
    axis = "time of the peer over time of workbench"
    results.write("scoring_memory", rows, given, "The output head: workbench against others", axis)


if __name__ == "__main__":
    main()
