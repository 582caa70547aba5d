"""The test of LongPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.longpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

ARMS: dict[str, Arm] = {
    "longpo": Arm("LongPO", colour="#0072B2"),
    "sft": Arm("SFT on short-context answers", learns="chosen", colour="#7F7F7F"),
    "rejected": Arm("SFT on long-context answers", learns="rejected", colour="#A6761D"),
    "lam1": Arm("LongPO, lam 1", lam=1.0, colour="#56B4E9"),
    "swapped": Arm("LongPO, lam 1, roles swapped", lam=1.0, labels="swapped", colour="#E6AB02"),
    "dpo": Arm("DPO, no NLL", lam=1.0, nll=0.0, reference="long", colour="#D55E00"),
    "alone": Arm("LongPO, no NLL", lam=1.0, nll=0.0, colour="#E69F00"),
    "sft_fast": Arm("SFT, rate x 10", learns="chosen", lr_factor=10.0, colour="#444444"),
    "longpo_fast": Arm("LongPO, rate x 10", lr_factor=10.0, colour="#009E73"),
    "iterated": Arm("LongPO, two rounds", rounds=2, colour="#0072B2"),
    "iterated_off": Arm("LongPO, then SFT on long-context answers", rounds=2, later="rejected", colour="#A6761D"),
    "dpo_nll": Arm("DPO with NLL", reference="long", colour="#CC79A7"),
}

_WORLD: dict[str, Any] = {"rope_theta": 0.0, "learning_rate": 5e-4, "optimizer": "adamw", "schedule": "constant"}
_WORLD |= {"warmup_ratio": 0.0, "questions": "task", "max_new_tokens": 3}
_TEXT: dict[str, Any] = {"questions": "task", "rope_theta": 0.0}
Config.presets(
    arms=ARMS,
    # answers are drawn: the greedy ones of a start this untrained hardly ever end
    micro=_WORLD
    | {"max_steps": 1, "batch_size": 2, "lengths": [12, 18], "turns": 2, "test_size": 6, "temperature": 1.0}
    | {"arms": ["longpo", "rejected", "iterated"]}
    | {"world": {"steps": 20, "n_documents": 8, "n_test": 6, "lengths": (6, 12)}},
    smoke=_WORLD
    | {"max_steps": 2, "batch_size": 4, "lengths": [12, 18], "turns": 2, "test_size": 4}
    | {"arms": [arm for arm in ARMS if arm not in ("dpo_nll", "longpo_fast")]}
    | {"world": {"steps": 20, "n_documents": 8, "n_test": 8, "lengths": (6, 12)}},
    tiny=_WORLD
    | {"nll_scope": "answers", "max_steps": 150, "lengths": [40, 60]}
    | {"arms": [arm for arm in ARMS if arm != "dpo_nll"]},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"learning_rate": 1e-4, "lengths": [4], "max_new_tokens": 12, "n_documents": 4, "test_size": 2}
        | {"turns": 2, "batch_size": 2},
        "tiny": _TEXT
        | {"learning_rate": 1e-5, "lengths": [12], "max_new_tokens": 128, "n_documents": 60, "test_size": 10},
    },
)

KEPT = "MMLU 59.15 -> 59.99, ARC-C 59.26 -> 59.34"
FIGURE_4, FIGURE_6 = "Fig. 4, no numbers", "Fig. 6: rewards part, accuracy above 0.9"
TEXTS = {
    "C1": (
        "Better on long text than SFT, and SFT better than DPO",
        "InfiniteBench 39.27, 30.03, 25.56 (base 13.82)",
    ),
    "C1 gain": ("On long documents LongPO gains at least 0.15 on the start", "InfiniteBench 13.82 -> 39.27"),
    "C2": (
        "Beats GPT-4-128K on InfiniteBench, and not on RULER or LongBench-Chat",
        "39.27 and 34.81; 86.06 and 88.53; 5.42 and 8.40",
    ),
    "C3 short": ("Accuracy on short documents is kept (not worse by more than 0.03)", KEPT),
    "C3 second": ("A task that only the start was taught is kept (not worse by more than 0.03)", KEPT),
    "C4": (
        "SFT forgets at ten times the rate (by more than 0.05), which is the rate that the paper gives it",
        "MMLU -14 (SFT), -26 (DPO)",
    ),
    "C5": ("A second round on longer documents improves again", "39.27 -> 39.65 (256K) -> 41.21 (512K)"),
    "C6": ("Transfers to another model", "Qwen2.5-7B 27.12 -> 40.48"),
    "C7 KL": (
        "The policy on long text comes near the model on short text: their KL falls to a quarter or less",
        FIGURE_4,
    ),
    "C7 dpo": ("DPO without the NLL ends below the start on long documents", FIGURE_4),
    "C7 alone": ("LongPO without the NLL ends below the start on long documents", FIGURE_4),
    "C8": ("The margin ends above that of SFT where the preference term has weight 1", FIGURE_6),
    "C8 swapped": ("... and below it where chosen and rejected are swapped", FIGURE_6),
    "C9": ("Before training the loss is not log 2, because the reference reads the short text", "eq. 12"),
}
NEEDS = {
    "C1": "the chosen answers of this world are nearly perfect and lam is tiny, so SFT and LongPO are the same here",
    "C2": "needs a 7B model at 128K tokens",
    "C6": "needs another pretrained model",
}


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds. On real text `quality` stands for accuracy on long documents."""
    found = Stated("longpo", experiment, TEXTS, NEEDS)
    arms = results.arms
    if "longpo" not in arms:
        raise ValueError("the claims need the arm 'longpo'; add it to `arms`")
    numbers = results[0]["arms"]["longpo"][0]
    lengths = sorted(int(name.removeprefix("retrieval_")) for name in numbers if name.startswith("retrieval_"))
    short, long, longest = (f"retrieval_{lengths[i]}" for i in (0, 1, -1)) if lengths else ("", "quality", "quality")
    unit = "of values, greedy" if lengths else "nats a token"

    def after(arm: str, key: str, when: int = 1) -> np.ndarray:
        return np.array([result["arms"][arm][when][key] for result in results])

    def gain(arm: str, key: str) -> np.ndarray:
        return after(arm, key) - after(arm, key, 0)

    if "rejected" in arms:
        other, least = "imitation of its long-context answers", 0.15 if lengths else 0.0
        found.add("C1 gain", (gain("longpo", long), gain("rejected", long)), other, unit, margin=least)
        key = "short_to_long_kl"
        both = (np.log(after(arm, key, 0) / after(arm, key)) for arm in ("longpo", "rejected"))
        found.add("C7 KL", both, other, "log of the factor", margin=float(np.log(4)))
    if "second_task" in numbers and {"sft", "sft_fast", "alone"} <= arms:
        kept: dict[str, Any] = {"unit": unit, "margin": -0.03}
        found.add("C3 short", (gain("longpo", short), gain("alone", short)), "no NLL", **kept)
        second = {arm: gain(arm, "second_task") for arm in ("longpo", "sft", "sft_fast")}
        found.add("C3 second", (second["longpo"], second["sft_fast"]), "SFT at ten times the rate", **kept)
        note = ""
        if "longpo_fast" in arms:
            note = f"LongPO at that rate: {gain('longpo_fast', 'second_task').mean():+.2f}"
        options: dict[str, Any] = {"direction": "less", "margin": -0.05, "note": note}
        found.add("C4", (second["sft_fast"], second["sft"]), "SFT at LongPO's rate", unit, **options)
    if {"iterated", "iterated_off"} <= arms:
        both = (after(arm, longest, 2) - after(arm, longest, 1) for arm in ("iterated", "iterated_off"))
        found.add("C5", both, "second round on its long-context answers", unit)
    for arm in ("dpo", "alone"):
        if arm in arms and lengths:
            both = gain(arm, long), gain("longpo", long)
            found.add(f"C7 {arm}", both, "LongPO with the NLL", unit, direction="less")
    if {"lam1", "swapped", "sft"} <= arms:
        apart, swapped = (after(arm, "margin") - after("sft", "margin") for arm in ("lam1", "swapped"))
        accuracy = f"chosen above rejected in {after('lam1', 'reward_accuracy').mean():.0%} of held-out documents"
        options = {"unit": "nats a document", "note": accuracy}
        found.add("C8", (apart, swapped), "chosen and rejected swapped", **options)
        found.add("C8 swapped", (swapped, apart), "sides as they are", direction="less", **options)
    if "dpo" in arms and "start_loss" in results[0]["arms"]["dpo"][1]:
        start, control = (np.abs(after(arm, "start_loss") - np.log(2)) for arm in ("longpo", "dpo"))
        found.add("C9", (start, np.round(control, 5)), "reference reads the long text", "nats")
    return found
