"""The test of Step-DPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.step_dpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

_SWEPT = {
    "step_dpo": Arm("Step-DPO"),
    "dpo": Arm("DPO on whole answers", unit="answers", colour="#D55E00"),
    "shuffled": Arm("Step-DPO, labels shuffled", labels="shuffled", colour="#A6761D"),
    "dpo_shuffled": Arm("DPO on whole answers, labels shuffled", unit="answers", labels="shuffled", colour="#A6761D"),
}
FACTORS = {"": 1.0, "_slow": 1 / 3, "_fast": 10 / 3}  # learning rates 1e-5, 3e-5, 1e-4 in the small world
ARMS: dict[str, Arm] = {
    **_SWEPT,
    "sft_steps": Arm("SFT on chosen steps", learns="chosen"),
    "sft_answers": Arm("SFT on chosen answers", unit="answers", learns="chosen"),
    "ood": Arm("Step-DPO on outside corrections", outside=True),
    "ood_shuffled": Arm("outside corrections, labels shuffled", outside=True, labels="shuffled"),
    **{
        f"{name}{ending}": replace(arm, title=f"{arm.title}, rate x {factor:.2g}", lr_factor=factor, colour="")
        for name, arm in _SWEPT.items()
        for ending, factor in FACTORS.items()
        if ending
    },
}

_WORLD: dict[str, Any] = {"beta": 0.4, "max_length": 64, "max_prompt_length": 40, "temperature": 1.0, "top_p": 1.0}
_WORLD |= {"n_continuations": 8}
# three numbers and a start that knows little, so some chosen steps end right by chance: no check of steps
_QUICK = _WORLD | {"epochs": 1, "learning_rate": 1e-4, "batch_size": 16, "max_new_tokens": 12, "check_steps": False}
_QUICK |= {"pairs_per_prefix": 2, "n_answers": 16}
_SMALL = {"n_problems": 60, "n_test": 60, "sft_steps": 250, "k_min": 3, "k_max": 3, "width": 48, "layers": 1}
_TEXT: dict[str, Any] = {"learning_rate": 3e-5, "n_answers": 0}
Config.presets(
    arms=ARMS,
    micro=_QUICK
    | {"n_problems": 8, "test_size": 20, "max_steps": 4, "arms": ["step_dpo", "dpo", "shuffled"]}
    | {"world": _SMALL | {"n_problems": 20, "n_test": 20, "sft_steps": 120}},
    smoke=_QUICK
    | {"n_problems": 24, "test_size": 60, "world": _SMALL}
    | {"arms": [arm for arm in ARMS if ARMS[arm].lr_factor == 1.0]},
    tiny=_WORLD
    | {"epochs": 4, "learning_rate": 3e-5, "batch_size": 32, "max_new_tokens": 24, "pairs_per_prefix": 1}
    | {"n_problems": 300, "test_size": 200, "arms": list(ARMS), "world": {"n_problems": 400}},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"epochs": 1, "batch_size": 8, "n_problems": 8, "n_continuations": 2, "test_size": 8}
        | {"max_new_tokens": 16, "max_length": 256, "max_prompt_length": 192, "arms": ["step_dpo", "shuffled"]},
        "tiny": _TEXT
        | {"epochs": 2, "batch_size": 32, "n_problems": 200, "n_continuations": 8, "test_size": 100}
        | {"max_new_tokens": 256},
    },
)

TABLE_3 = "7B: 54.8 / DPO 55.0 / Step 55.8; 72B: 61.7 / 62.5 / 64.1"
FIGURE_2 = "64-84 % and 0.1-2.1 in Fig. 2"
SHARE, BLIND, BOTH_BLIND = "of problems, greedy", "labels shuffled", "both with labels shuffled"
TEXTS = {
    "C1": ("Step-DPO improves the start", "MATH: 61.7 -> 64.7 (72B), 54.8 -> 55.8 (7B); GSM8K +0.0 to +1.6"),
    "C2": ("Better than DPO on whole answers, each at its best learning rate", TABLE_3),
    "C2 steps": ("Against DPO on whole answers, more steps are right before the first wrong one", TABLE_3),
    "C2 same rate": (
        "Against DPO on whole answers, more final answers are right at the same learning rate",
        TABLE_3,
    ),
    "C3 accuracy": ("Against DPO on whole answers, more held-out pairs get the right order", FIGURE_2),
    "C3 margin": ("Against DPO on whole answers, the held-out reward margin is larger", FIGURE_2),
    "C4": ("The model's own corrections beat outside ones", "MATH: outside 55.1, own 55.8 (7B)"),
    "C5": ("Larger models gain more", "+1.0 (7B), +2.0 (32B), +2.6 and +3.0 (70B, 72B)"),
    "C6": (
        "Carries over to harder problems with the same data",
        "Odyssey-MATH 44.2 -> 47.0, 47.0 -> 50.1; AIME 1/30 -> 3/30, 5/30 -> 4/30",
    ),
    "C7": ("Half of the updates already improve the start", "10k pairs, fewer than 500 updates"),
}
NEEDS = {"C5": "needs models of several sizes", "C6": "needs competition problems"}
AGAINST_DPO = (  # id, number, unit
    ("C3 accuracy", "reward_accuracy", "of pairs"),
    ("C3 margin", "margin", "nats x beta"),
    ("C2 steps", "valid_steps", "of steps, greedy"),
    ("C2 same rate", "quality", SHARE),
)


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds. Controls: the same difference between arms whose labels are shuffled."""
    found = Stated("step_dpo", experiment, TEXTS, NEEDS)
    arms = results.arms

    def after(arm: str, key: str = "quality") -> np.ndarray:
        return results(arm, key)[:, -1]

    def best(arm: str) -> np.ndarray:
        """Accuracy of each seed at the rate that is best on its validation problems."""
        rated = [f"{arm}{ending}" for ending in FACTORS if f"{arm}{ending}" in arms]
        chosen = np.argmax([after(name, "validation") for name in rated], axis=0)
        return np.array([after(name) for name in rated])[chosen, np.arange(len(chosen))]

    start = results("step_dpo", "quality")[:, 0]
    found.add("C1", (after("step_dpo") - start, after("shuffled") - start), BLIND, SHARE)
    if {"dpo", "dpo_shuffled"} <= arms:
        measured = results[0]["arms"]["dpo"][1]
        for id, key, unit in AGAINST_DPO:
            if key in measured:
                both = after("step_dpo", key) - after("dpo", key), after("shuffled", key) - after("dpo_shuffled", key)
                found.add(id, both, BOTH_BLIND, unit)
        if "validation" in measured:
            both = best("step_dpo") - best("dpo"), best("shuffled") - best("dpo_shuffled")
            also = {"DPO not below the start": np.mean(after("dpo") - start) >= 0}
            found.add("C2", both, BOTH_BLIND, SHARE, also=also)
    if {"ood", "ood_shuffled"} <= arms:
        rarer = after("ood", "chosen_logp") < after("step_dpo", "chosen_logp")
        also = {
            "outside corrections beat the start": np.mean(after("ood") - start) > 0,
            "outside corrections are less likely under the start": rarer.all(),
        }
        both = after("step_dpo") - after("ood"), after("shuffled") - after("ood_shuffled")
        found.add("C4", both, BOTH_BLIND, SHARE, also=also)
    half, control = (after(arm, "quality_half") for arm in ("step_dpo", "shuffled"))
    if np.isfinite([half, control]).all():
        pairs, gain = after("step_dpo", "train_pairs").mean(), np.mean(after("step_dpo") - start)
        note = f"{pairs:.0f} pairs; after all updates {gain:+.3f}"
        found.add("C7", (half - start, control - start), BLIND, SHARE, note=note)
    return found
