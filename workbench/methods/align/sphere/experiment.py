"""The test of SPHERE: which arms are run at which scale, and what must hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.claims import Claims
from workbench.methods.align.sphere.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

ARMS: dict[str, Arm] = {
    "sphere": Arm("SPHERE, stages 1+2+3"),
    "stage1": Arm("stage 1", (1,)),
    "stage12": Arm("stages 1+2", (1, 2)),
    "stage13": Arm("stages 1+3", (1, 3)),
    "random": Arm("random right and wrong samples", (0,), colour="#A6761D"),
    "exact": Arm("stage 1, PRM without noise", (1,), noise=0.0),
    "noisy": Arm("stage 1, PRM with much noise", (1,), noise=3.0),
    "coin": Arm("stage 1, PRM is a coin", (1,), noise=math.inf),
    "unchecked": Arm("stage 1, rejected need not be wrong", (1,), checked=False),
    "shuffled": Arm("SPHERE, labels shuffled", labels="shuffled", colour="#A6761D"),
    "cross": Arm("the smaller model on the same pairs", learner="small"),
    "cross_shuffled": Arm("the smaller model, labels shuffled", labels="shuffled", learner="small"),
}

_WORLD: dict[str, Any] = {"beta": 0.4, "max_step_tokens": 4}
# three numbers and a start that knows little
_QUICK = _WORLD | {"width": 3, "depth": 5, "learning_rate": 1e-4, "batch_size": 16}
_QUICK |= {"max_new_tokens": 12, "max_length": 40}
_SMALL = {"k_min": 3, "k_max": 3, "n_test": 60, "sft_steps": 250, "width": 48, "layers": 1}
_SMALL |= {"small_width": 32, "small_steps": 150}
_TEXT: dict[str, Any] = {"learning_rate": 3e-5}
Config.presets(
    arms=ARMS,
    micro=_QUICK
    | {"n_problems": 30, "arms": ["sphere", "shuffled"]}
    | {"world": _SMALL | {"n_test": 20, "sft_steps": 150, "small_steps": 80}},
    smoke=_QUICK
    | {"n_problems": 60, "world": _SMALL}
    | {"arms": [arm for arm in ARMS if arm not in ("stage12", "stage13", "exact", "noisy")]},
    tiny=_WORLD
    | {"width": 4, "depth": 9, "learning_rate": 3e-5, "epochs": 4, "batch_size": 32, "n_problems": 600}
    | {"max_new_tokens": 24, "max_length": 64, "arms": list(ARMS), "world": {"k_min": 5, "n_test": 500}},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"width": 2, "depth": 2, "n_problems": 8, "test_size": 8, "batch_size": 8, "n_random": 2}
        | {"max_step_tokens": 6, "max_new_tokens": 16, "max_length": 512, "arms": ["stage1", "shuffled"]},
        "tiny": _TEXT | {"depth": 8, "n_problems": 200, "test_size": 100, "max_step_tokens": 64, "max_new_tokens": 256},
    },
)

BANDS = ("easy", "middle", "hard")
UNREAD, DESIGN = "direction only; figures not readable", "by design, no figure"
COIN, BLIND = "stage 1 with a coin for process rewards", "labels shuffled"
TEXTS = {
    "C1": ("Trained models beat their start", UNREAD),
    "C2": ("Matches or passes GPT-4o on some benchmarks", "abstract"),
    "C3": ("Another model gains from the same data", UNREAD),
    "C4": ("Best against worst trains better than random right and wrong samples", DESIGN),
    "C4 errors": ("Rejected chains have more wrong steps than random wrong samples", DESIGN),
    "C4 yield": ("More pairs from as many tokens than random samples", DESIGN),
    "C4 noise": ("A noisy process reward model trains better than a coin", DESIGN),
    "C5": ("Stages 2 and 3 do not harm: at most 2 points below stage 1 alone", DESIGN),
    "C5 yield": ("Stages 2 and 3 find pairs where stage 1 finds none, each on its own kind of problems", DESIGN),
    "C6": ("Cost is linear in depth: 2 E D samples, not E^D", DESIGN),
}


def dependence(stages: Sequence[int], bands: Sequence[str]) -> float:
    """Chi-square of stage against band a pair, less its mean if they are independent: 0 on average without a link."""
    from scipy.stats import chi2_contingency

    table = pd.crosstab(pd.Series(list(stages)), pd.Series(list(bands))).to_numpy()
    if min(table.shape) < 2:
        return 0.0
    chi_square: Any = chi2_contingency(table, correction=False)
    return float((chi_square.statistic - chi_square.dof) / table.sum())


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control."""
    found = Stated("sphere", experiment, TEXTS, {"C2": "needs benchmarks and models of 7B"})
    arms, main, share = results.arms, "sphere" if "sphere" in results.arms else "stage1", "of problems, greedy"

    def after(arm: str) -> np.ndarray:
        return results(arm, "quality")[:, 1]

    def made(arm: str, key: str) -> np.ndarray:
        return np.array([result["search"][arm][key] for result in results], dtype=float)

    start = results(next(iter(results[0]["arms"])), "quality")[:, 0]
    if "shuffled" in arms:
        found.add("C1", (after(main) - start, after("shuffled") - start), BLIND, share)
    if {"cross", "cross_shuffled"} <= arms:
        both = (after(arm) - results(arm, "quality")[:, 0] for arm in ("cross", "cross_shuffled"))
        own = {"the model that made the data gains": np.mean(after(main) - start) > 0}
        found.add("C3", both, BLIND, share, also=own)
    if {"stage1", "random", "coin"} <= arms:
        trio = ("stage1", "random", "coin")

        def against_random(id: str, unit: str, of: dict[str, np.ndarray]) -> None:
            found.add(id, (of["stage1"] - of["random"], of["coin"] - of["random"]), COIN, unit)

        against_random("C4", share, {arm: after(arm) for arm in trio})
        errors = {arm: made(arm, "wrong_steps") for arm in trio}
        if np.isfinite(list(errors.values())).all():
            against_random("C4 errors", "steps", errors)
        cheap = {arm: 1e3 * made(arm, "pairs_found") / made(arm, "tokens") for arm in trio}
        against_random("C4 yield", "pairs in 1,000 tokens", cheap)
        if {"exact", "noisy", "shuffled"} <= arms:
            also = {"without noise not below much noise": after("exact").mean() >= after("noisy").mean()}
            both = after("noisy") - after("coin"), after("shuffled") - start
            found.add("C4 noise", both, "labels shuffled, against the start", share, also=also)
    if {"sphere", "stage1", "shuffled"} <= arms:
        others = [arm for arm in ("stage12", "stage13") if arm in arms]
        note = ", ".join(f"{ARMS[arm].title} {after(arm).mean() - after('stage1').mean():+.3f}" for arm in others)
        both = (after(arm) - after("stage1") for arm in ("sphere", "shuffled"))
        found.add("C5", both, "SPHERE with labels shuffled", share, margin=-0.02, note=note)
        if len(results[0]["search"]["sphere"]["problems"]) > 1:
            columns: Any = ["stage", "band"]
            tables: Any = [pd.DataFrame(result["search"]["sphere"]["table"], columns=columns) for result in results]
            rng: Any = np.random.default_rng(0)
            pairs = [
                {(s, b): int(((t.stage == s) & (t.band == b)).sum()) for s in (1, 2, 3) for b in BANDS} for t in tables
            ]
            of_first = {band: sum(counts[1, band] for counts in pairs) for band in BANDS}
            also = {
                "stage 2 has pairs on hard problems": all(counts[2, "hard"] > 0 for counts in pairs),
                "stage 3 has pairs on easy problems": all(counts[3, "easy"] > 0 for counts in pairs),
                "stage 1 has most on middle problems": max(of_first, key=lambda b: of_first[b]) == "middle",
            }
            measured = [dependence(t["stage"], t["band"]) for t in tables]
            control = [dependence(t["stage"], rng.permutation(t["band"])) for t in tables]
            found.add("C5 yield", (measured, control), "difficulty shuffled", "of chi-square a pair", also=also)
    if len(results[0]["search"][main].get("routes", {})):
        few, whole = {"never more than 2 E D": (made(main, "most_of_2ED") <= 1).all()}, np.zeros(len(results))
        options: dict[str, Any] = {"direction": "less", "also": few}
        of_tree = made(main, "log10_of_tree")
        found.add("C6", (of_tree, whole), "every node expanded", "powers of ten of a whole tree", **options)
    return found
