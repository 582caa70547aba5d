"""The test of LOGO: which arms are run at which scale, and what must hold.

Part A begins with a clean start and reads longer documents than it was trained on: what do synthetic positions give?
Part B (arms `b_`) begins with a start that finds the right value and writes another: what do preferences give?
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.logo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

_MISALIGNED: Any = partial(Arm, start="misaligned")
ARMS: dict[str, Arm] = {
    "logo": Arm("LOGO", needles=True, colour="#0072B2"),
    "logo_real": Arm("LOGO, real positions", positions="real", colour="#56B4E9"),
    "logo_unpassed": Arm("LOGO, positions not passed", positions="unpassed", colour="#999999"),
    "sft": Arm("SFT on chosen", learns="chosen", colour="#7F7F7F"),
    "sft_real": Arm("SFT, real positions", learns="chosen", positions="real", colour="#B0B0B0"),
    "sft_unpassed": Arm("SFT, positions not passed", learns="chosen", positions="unpassed", colour="#444444"),
    "swapped": Arm("LOGO, roles swapped", labels="swapped", colour="#E6AB02"),
    "shuffled": Arm("LOGO, labels shuffled", labels="shuffled", colour="#A6761D"),  # real text; Part B has its own
    "b_logo": _MISALIGNED("LOGO", colour="#0072B2"),
    "b_one": _MISALIGNED("LOGO, M = 1", m=1, colour="#56B4E9"),
    "b_no_sft": _MISALIGNED("LOGO, lambda 0", sft=False, colour="#009E73"),
    "b_beta10": _MISALIGNED("LOGO, beta 10", beta=10.0, colour="#E69F00"),
    "b_sft": _MISALIGNED("SFT on chosen", learns="chosen", colour="#7F7F7F"),
    "b_swapped": _MISALIGNED("LOGO, roles swapped", labels="swapped", colour="#D55E00"),
    "b_shuffled": _MISALIGNED("LOGO, labels shuffled", labels="shuffled", colour="#A6761D"),
    "b_copied": _MISALIGNED("LOGO, M = 1, the answer twice", m=1, copied=True, colour="#CC79A7"),
}

_LOSS: dict[str, Any] = {"beta": 2.5, "gamma_beta_ratio": 0.1}
_WORLD: dict[str, Any] = _LOSS | {"learning_rate": 5e-4, "schedule": "constant", "warmup_ratio": 0.0}
_WORLD |= {"weight_decay": 0.0, "batch_size": 8, "window": 112, "qa": 7, "stop": "", "max_new_tokens": 3}
_TEXT: dict[str, Any] = _LOSS | {"learning_rate": 2e-5}
Config.presets(
    arms=ARMS,
    micro=_WORLD
    | {"max_steps": 2, "misaligned_steps": 2, "max_variants": 1, "test_size": 4}
    | {"arms": ["logo", "b_logo", "b_sft", "b_shuffled"]}
    | {"world": {"steps": 10, "misaligned_steps": 2, "n_documents": 8, "n_test": 4, "lengths": (6,)}},
    smoke=_WORLD
    | {"max_steps": 4, "misaligned_steps": 4, "max_variants": 2, "test_size": 12}
    | {"arms": [arm for arm in ARMS if arm not in ("shuffled", "sft_unpassed", "b_beta10")]}
    | {"world": {"steps": 20, "misaligned_steps": 5, "n_documents": 24, "n_test": 12, "lengths": (6, 12)}},
    # the question of the world's start is learned in 5 variants a document
    tiny=_WORLD | {"max_steps": 250, "max_variants": 5, "arms": [arm for arm in ARMS if arm != "shuffled"]},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"batch_size": 2, "max_steps": 2, "window": 2048, "qa": 400, "max_length": 512, "max_variants": 1}
        | {"n_documents": 4, "test_size": 2, "max_new_tokens": 12},
        "tiny": _TEXT
        | {"batch_size": 8, "max_steps": 50, "window": 4096, "qa": 320, "max_length": 1024, "max_variants": 4}
        | {"n_documents": 60, "test_size": 20, "max_new_tokens": 64},
    },
)

TEXTS = {
    "C1": ("Better than supervised training on the same chosen answers", "LongBench: tuned 41.8 and 42.8, LOGO 47.0"),
    "C1 base": ("A misaligned model writes more right values in documents of {} records", "42.3 -> 47.0"),
    "C1 swapped": ("With chosen and rejected swapped it falls below the start", "not stated"),
    "C2": ("Holds for other backbones", "Llama-2-7B-80K 29.0 -> 36.1; Mistral-7B-32K 31.1 -> 40.1"),
    "C3": (
        "{} with synthetic positions reads {} records better than with real ones",
        "Llama-3-8B-8K 40.7 -> 43.9 at 64K",
    ),
    "C3 baselines": (
        "Extends short windows better than YaRN, and YaRN better than random positions",
        "Llama-3-8B-8K 40.7; YaRN 40.9, RandPOS 36.8, LOGO 43.9",
    ),
    "C4": (
        "Gains are largest on synthetic tasks and summaries",
        "synthetic 46.3 -> 53.0, summaries 22.2 -> 28.1, QA 43.0 -> 44.0",
    ),
    "C5": ("Recall improves, by more than retrieval changes in either direction", "Fig. 1, no numbers"),
    "C6": ("Short documents do not suffer (not worse by more than 0.03)", "Fig. 4, no numbers"),
    "C7": ("Two rejected answers are better than one, and the SFT term does not harm", "Fig. 6, no numbers"),
    "C8": ("Cheap, and near GPT-4 on real tasks", "0.3B tokens, one 8 x A800 node, 16 h"),
}
NEEDS = {
    "C2": "needs other pretrained models",
    "C3 baselines": "needs a pretrained short model and LongBench",
    "C4": "needs LongBench's groups of tasks",
    "C8": "needs an 8B model and real tasks",
}
LONGER = (24, 44)  # records of the documents at which Part A is judged
SHORTER = (6, 12)  # ... and Part B
BLIND = "labels shuffled"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds. Part A judges greedy answers, Part B drawn ones."""
    found = Stated("logo", experiment, TEXTS, NEEDS)
    arms = results.arms
    b = "b_" if "b_logo" in arms else ""
    if f"{b}logo" not in arms:
        raise ValueError("the claims need the arm 'logo' or 'b_logo'; add one to `arms`")

    def after(arm: str, *keys: str, when: int = 1) -> np.ndarray:
        return np.mean([results(arm, key)[:, when] for key in keys], axis=0)

    def gain(arm: str, *keys: str) -> np.ndarray:
        return after(arm, *keys) - after(arm, *keys, when=0)

    numbers = results[0]["arms"][f"{b}logo"][1]
    if {f"{b}sft", f"{b}shuffled"} <= arms:
        both = (after(f"{b}{arm}", "quality") - after(f"{b}sft", "quality") for arm in ("logo", "shuffled"))
        found.add("C1", both, BLIND, "recall" if b else "nats a token")
    if {"b_logo", "b_shuffled", "b_swapped"} <= arms:
        for n in SHORTER:
            both = (gain(arm, f"recall_{n}") for arm in ("b_logo", "b_shuffled"))
            found.add(f"C1 base {n}", both, BLIND, "recall", statement=TEXTS["C1 base"][0].format(n))
        both = gain("b_swapped", "quality"), gain("b_logo", "quality")
        found.add("C1 swapped", both, "roles as they are", "recall", direction="less")
        retrieval, recall = ([f"{what}_{n}" for n in SHORTER] for what in ("retrieval", "recall"))
        both = (gain(arm, *recall) - np.abs(gain(arm, *retrieval)) for arm in ("b_logo", "b_shuffled"))
        also = {"retrieval does not fall by more than 0.03": gain("b_logo", *retrieval).mean() >= -0.03}
        found.add("C5", both, BLIND, "recall", also=also)
    greedy = "of values, greedy"
    for kind in ("logo", "sft"):
        if {kind, f"{kind}_real", f"{kind}_unpassed"} <= arms:
            for key in (f"retrieval_{n}" for n in LONGER if f"retrieval_{n}" in numbers):
                n, real = key.removeprefix("retrieval_"), after(f"{kind}_real", key)
                both = (after(arm, key) - real for arm in (kind, f"{kind}_unpassed"))
                statement, unpassed = TEXTS["C3"][0].format(kind.upper(), n), "positions not passed to the model"
                found.add(f"C3 {kind} {n}", both, unpassed, greedy, statement=statement)
    if {"logo", "sft", "swapped"} <= arms and "retrieval_6" in numbers:
        both = (gain(arm, "retrieval_6") for arm in ("logo", "swapped"))
        also = {"nor by SFT with the same positions": gain("sft", "retrieval_6").mean() > -0.03}
        found.add("C6", both, "roles swapped", greedy, margin=-0.03, also=also)
    if {"b_logo", "b_one", "b_copied", "b_no_sft"} <= arms:
        two, one, copied, bare = (after(arm, "quality") for arm in ("b_logo", "b_one", "b_copied", "b_no_sft"))
        also = {"lambda 0.1 not below lambda 0": np.mean(two - bare) >= 0}
        found.add("C7", (two - one, copied - one), "the one answer twice", "recall", also=also)
    return found
