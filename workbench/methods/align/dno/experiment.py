"""The test of DNO: which arms are run at which scale, and what must hold. Every arm takes the same optimiser steps a
round."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.dno.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated
from workbench.stats.trends import rank_correlations, weakest_round

ARMS: dict[str, Arm] = {
    "dno": Arm("DNO-Prct", colour="#009E73"),
    "restrictive": Arm("DNO-Restrictive: teacher over student only", pairs="restrictive"),
    "spin": Arm("SPIN: teacher always chosen", pairs="teacher", colour="#0072B2"),
    "offline": Arm("offline DPO on the pairs of round 1", fresh=False),
    "sft": Arm("SFT on the chosen responses", loss="sft", colour="#7F7F7F"),
    "noisy": Arm("DNO-Prct, sampled judgements", judgements="noisy"),
    "noisy_restrictive": Arm("DNO-Restrictive, sampled judgements", pairs="restrictive", judgements="noisy"),
    "noisy_shuffled": Arm("sampled judgements, labels shuffled", judgements="noisy", labels="shuffled"),
    "noisy_all": Arm("sampled judgements, no margin", pairs="all", judgements="noisy"),
    "soft": Arm("soft DNO, exact win rates", loss="soft", pairs="students"),
    "soft_noisy": Arm("soft DNO, sampled win rates", loss="soft", pairs="students", judgements="noisy"),
    "soft_scaled": Arm("soft DNO, reward scale 4", loss="soft", pairs="students", reward_scale=4.0),
    "sppo": Arm("SPPO on the same samples", loss="sppo", pairs="extremes", colour="#0072B2"),
    "shuffled": Arm("DNO-Prct, labels shuffled", labels="shuffled", colour="#A6761D"),
}

_WORLD: dict[str, Any] = {"eta": 1.0, "learning_rate": 3e-4, "schedule": "constant", "warmup_ratio": 0.0}
_WORLD |= {"batch_size": 96, "temperature": 1.0, "top_p": 1.0}
_WORLD |= {"max_new_tokens": 3, "max_length": 16, "max_prompt_length": 8}
_TEXT: dict[str, Any] = {"learning_rate": 1e-5}
Config.presets(
    arms=ARMS,
    micro=_WORLD
    | {"rounds": 1, "epochs": 1, "max_pairs": 96, "prompt_repeats": 1, "samples": 3, "world": {"start_steps": 20}}
    | {"arms": ["dno", "shuffled"]},
    smoke=_WORLD
    | {"rounds": 2, "epochs": 1, "max_pairs": 144, "prompt_repeats": 1, "world": {"start_steps": 40}}
    | {"arms": ["dno", "spin", "offline", "noisy", "soft", "shuffled"]},
    tiny=_WORLD | {"rounds": 5, "epochs": 5, "max_pairs": 576, "prompt_repeats": 4, "arms": list(ARMS)},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"rounds": 1, "n_prompts": 16, "samples": 3, "test_size": 8, "arms": ["dno", "shuffled"]}
        | {"max_new_tokens": 16, "max_length": 256, "max_prompt_length": 128},
        "tiny": _TEXT
        | {"rounds": 2, "n_prompts": 200, "test_size": 100, "arms": ["dno", "restrictive", "spin", "shuffled"]}
        | {"max_new_tokens": 128, "max_length": 512, "max_prompt_length": 256},
    },
)

TEXTS = {
    "C1": ("Rounds improve", "AlpacaEval 2 6.99 -> 24.97 in 3 rounds"),
    "C2": ("On-policy rounds beat offline training on the same prompts", "offline DPO 18.22, DNO 24.97"),
    "C3": ("Large-margin filtering helps", "42k filtered pairs 11.60, all 63k 9.60"),
    "C4": ("Student-over-teacher pairs matter", "SPIN 16.13, Restrictive 19.21, DNO 24.97"),
    "C5": ("The share of student-over-teacher pairs grows", "S>T 4.2k, 19.4k, 32.4k; T>S 30.7k, 20.3k, 7.1k"),
    "C6": ("Contrast beats imitation", "SFT on positives 7.96, offline DPO 18.22"),
    "C7": ("Length jumps in round 1, then falls", "mean words 162, 671, 361"),
    "C8": ("Batched rounds beat pooling everything offline", "Lookahead 18.28 against 24.97; MT-Bench 7.70, 7.48"),
    "C9": ("No harm on reasoning tasks", "Open LLM average 0.652 -> 0.668, 0.671, 0.675"),
    "C10": ("Monotone improvement, P(pi_{t+1} > pi_t) >= 1/2 + eta KL(pi_{t+1} || pi_t)", "section 3.1"),
    "H1": ("On held-out prompts the training judge prefers the last round to the start", "not measured"),
}
NEEDS = {
    "C7": "needs responses whose length is free",
    "C8": "needs benchmarks",
    "C9": "needs reasoning tasks",
}
IN_THE_WORLD = [id for id in TEXTS if id[0] == "C" and id not in NEEDS]
BLIND = "labels shuffled"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control: as a rule the method with its labels shuffled."""
    found = Stated("dno", experiment, TEXTS, NEEDS)
    arms = results.arms
    if experiment.dataset:
        # no truth is planted: what can be tested is whether the judge's taste carries over to new prompts
        found.needs(IN_THE_WORLD, "needs a judge that nothing was trained on, and benchmarks")
        control = results("shuffled", "quality")[:, -1] - 0.5 if "shuffled" in arms else None
        found.add("H1", (results("dno", "quality")[:, -1] - 0.5, control), BLIND, "win rate above one half")
        return found

    def weakest(id: str, both: list[np.ndarray], unit: str, where: str, **options: Any) -> None:
        """Every round must pass, so the weakest one speaks for all."""
        ours, blind = both
        t = weakest_round(ours)
        told = {"note": f"the weakest is round {t + 1}", "also": {where: ours.min() > 0}}
        found.add(id, (ours[:, t], blind[:, t]), BLIND, unit, **told, **options)

    gains = [results(arm, "win_against_last")[:, 1:4] - 0.5 for arm in ("dno", "shuffled")]
    first = "Each of the first rounds beats the one before"
    weakest("C1", gains, "win rate above one half", "in every seed", statement=first)
    final = {arm: results(arm, "win_against_gold")[:, -1] for arm in arms}

    def against(id: str, statement: str, ours: str, theirs: str, flat: str = "shuffled", note: str = "") -> None:
        both = final[ours] - final[theirs], final[flat] - final[theirs]
        unit = "win rate against the teacher, after the last round"
        found.add(id, both, BLIND, unit, statement=statement, note=note)

    if "offline" in arms:
        against("C2", "New pairs each round beat the pairs of round 1 for as many steps", "dno", "offline")
    if {"noisy", "noisy_all"} <= arms:
        right = {arm: results(arm, "sign_accuracy")[:, 0] for arm in ("noisy", "noisy_all")}
        kept, unkept = (results(arm, "average_exploitability")[:, -1].mean() for arm in right)
        options = {"statement": "Of noisily judged pairs, those with a margin are more often the right way round"}
        options["note"] = f"averaged policy's exploitability at the end: margin {kept:.3f}, none {unkept:.3f}"
        as_many = results("noisy_all", "sign_accuracy_kept")[:, 0]
        both = (share - right["noisy_all"] for share in (right["noisy"], as_many))
        found.add("C3", both, "as many pairs at random", "share of pairs, round 1, same samples", **options)
    for end, how, prefix in (
        ("", "points from exact win rates", ""),
        (" sampled", "points from single draws", "noisy_"),
    ):
        ours, flat = prefix.rstrip("_") or "dno", f"{prefix}shuffled"
        if not {ours, flat} <= arms:
            continue
        others = (f"{prefix}restrictive", "spin")
        if arms.issuperset(others):
            best = max(others, key=lambda arm: final[arm].mean())
            means = ", ".join(f"{ARMS[arm].title} {final[arm].mean():.3f}" for arm in (ours, *others))
            further = f"Pairs in which the student wins take it further past its teacher; {how}"
            against(f"C4{end}", further, ours, best, flat, means)
        shares, blind = (results(arm, "student_over_teacher") for arm in (ours, flat))
        both = shares[:, -1] - shares[:, 0], blind[:, -1] - blind[:, 0]
        unit, also = "of pairs with the teacher, last round minus first", rank_correlations(shares).min() > 0
        options = {"statement": f"{TEXTS['C5'][0]}; {how}", "also": {"Spearman > 0 in every seed": also}}
        found.add(f"C5{end}", both, BLIND, unit, **options)
    if {"offline", "sft"} <= arms:
        contrast = "Offline contrast on the pairs of round 1 beats imitating the chosen responses of every round"
        against("C6", contrast, "offline", "sft")
    if "soft" in arms:
        moved = {arm: experiment.config.soft_eta * results(arm, "kl_to_last")[:, 1:4] for arm in ("soft", "shuffled")}
        slack = [results(arm, "win_against_last")[:, 1:4] - 0.5 - kl for arm, kl in moved.items()]
        weakest("C10", slack, "left side minus right side, soft DNO", "in every seed and round")
    return found
