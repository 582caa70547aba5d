"""The test of LongPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.longpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results

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

# statement, paper's figures, and what is missing to test it here
BEYOND_SMALL = {
    "C1": (
        "Better on long text than SFT, and SFT better than DPO",
        "InfiniteBench 39.27, 30.03, 25.56 (base 13.82)",
        "the chosen answers of this world are nearly perfect and lam is tiny, so SFT and LongPO are the same here",
    ),
    "C2": (
        "Beats GPT-4-128K on InfiniteBench, and not on RULER or LongBench-Chat",
        "39.27 and 34.81; 86.06 and 88.53; 5.42 and 8.40",
        "needs a 7B model at 128K tokens",
    ),
    "C6": ("Transfers to another model", "Qwen2.5-7B 27.12 -> 40.48", "needs another pretrained model"),
}


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds. On real text `quality` stands for accuracy on long documents."""
    tested = Claims("longpo", experiment.scale, experiment.seeds)
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
        other = "imitation of its long-context answers"
        tested.test(
            "C1 gain",
            "On long documents LongPO gains at least 0.15 on the start",
            paper="InfiniteBench 13.82 -> 39.27",
            measured=gain("longpo", long),
            control=gain("rejected", long),
            control_is=other,
            margin=0.15 if lengths else 0.0,
            unit=unit,
        )
        key = "short_to_long_kl"
        kl = {arm: np.log(after(arm, key, 0) / after(arm, key)) for arm in ("longpo", "rejected")}
        tested.test(
            "C7 KL",
            "The policy on long text comes near the model on short text: their KL falls to a quarter or less",
            paper="Fig. 4, no numbers",
            measured=kl["longpo"],
            control=kl["rejected"],
            control_is=other,
            margin=float(np.log(4)),
            unit="log of the factor",
        )
    if "second_task" in numbers and {"sft", "sft_fast", "alone"} <= arms:
        fast = "SFT at ten times the rate"
        for id, what, key, control, title in (
            ("C3 short", "Accuracy on short documents", short, "alone", "no NLL"),
            ("C3 second", "A task that only the start was taught", "second_task", "sft_fast", fast),
        ):
            tested.test(
                id,
                f"{what} is kept (not worse by more than 0.03)",
                paper="MMLU 59.15 -> 59.99, ARC-C 59.26 -> 59.34",
                margin=-0.03,
                measured=gain("longpo", key),
                control=gain(control, key),
                control_is=title,
                unit=unit,
            )
        fastest = gain("longpo_fast", "second_task").mean() if "longpo_fast" in arms else None
        tested.test(
            "C4",
            "SFT forgets at ten times the rate (by more than 0.05), which is the rate that the paper gives it",
            paper="MMLU -14 (SFT), -26 (DPO)",
            direction="less",
            margin=-0.05,
            measured=gain("sft_fast", "second_task"),
            control=gain("sft", "second_task"),
            control_is="SFT at LongPO's rate",
            unit=unit,
            note=f"LongPO at that rate: {fastest:+.2f}" if fastest is not None else "",
        )
    if {"iterated", "iterated_off"} <= arms:
        second = {arm: after(arm, longest, 2) - after(arm, longest, 1) for arm in ("iterated", "iterated_off")}
        tested.test(
            "C5",
            "A second round on longer documents improves again",
            paper="39.27 -> 39.65 (256K) -> 41.21 (512K)",
            measured=second["iterated"],
            control=second["iterated_off"],
            control_is="second round on its long-context answers",
            unit=unit,
        )
    for arm, what in (("dpo", "DPO"), ("alone", "LongPO")):
        if arm in arms and lengths:
            tested.test(
                f"C7 {arm}",
                f"{what} without the NLL ends below the start on long documents",
                paper="Fig. 4, no numbers",
                direction="less",
                measured=gain(arm, long),
                control=gain("longpo", long),
                control_is="LongPO with the NLL",
                unit=unit,
            )
    if {"lam1", "swapped", "sft"} <= arms:
        apart = {arm: after(arm, "margin") - after("sft", "margin") for arm in ("lam1", "swapped")}
        accuracy = f"chosen above rejected in {after('lam1', 'reward_accuracy').mean():.0%} of held-out documents"
        figure = "Fig. 6: rewards part, accuracy above 0.9"
        options: dict[str, Any] = {"paper": figure, "unit": "nats a document", "note": accuracy}
        tested.test(
            "C8",
            "The margin ends above that of SFT where the preference term has weight 1",
            measured=apart["lam1"],
            control=apart["swapped"],
            control_is="chosen and rejected swapped",
            **options,
        )
        tested.test(
            "C8 swapped",
            "... and below it where chosen and rejected are swapped",
            direction="less",
            measured=apart["swapped"],
            control=apart["lam1"],
            control_is="sides as they are",
            **options,
        )
    if "dpo" in arms and "start_loss" in results[0]["arms"]["dpo"][1]:
        start = {arm: np.abs(after(arm, "start_loss") - np.log(2)) for arm in ("longpo", "dpo")}
        tested.test(
            "C9",
            "Before training the loss is not log 2, because the reference reads the short text",
            paper="eq. 12",
            measured=start["longpo"],
            control=np.round(start["dpo"], 5),
            control_is="reference reads the long text",
            unit="nats",
        )
    for id, told in BEYOND_SMALL.items():
        tested.needs_full_scale(id, *told)
    return tested
