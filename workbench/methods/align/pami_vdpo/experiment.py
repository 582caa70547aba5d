"""The test of PaMi-VDPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.pami_vdpo.method import Arm, Config
from workbench.methods.align.pami_vdpo.world import GROUNDED
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

ARMS: dict[str, Arm] = {
    "pami": Arm("PaMi-VDPO"),
    "random": Arm("random alteration", choice="random", colour="#A6761D"),
    "shuffle": Arm("always shuffled", choice="shuffle"),
    "sft": Arm("SFT", learns="response", colour="#7F7F7F"),
    "untrained": Arm("selected by an untrained model", selector="untrained"),
    "shuffled": Arm("clips exchanged in half of the samples", sides="shuffled", colour="#A6761D"),
    "inverted": Arm("clips exchanged", sides="inverted"),
    "weighted": Arm("PaMi-VDPO, weighted", weighting="hard"),
    "soft": Arm("PaMi-VDPO, soft weights", weighting="soft"),
    "nll": Arm("PaMi-VDPO, eta 0.3", eta=0.3),
    "anchored": Arm("PaMi-VDPO, anchored", anchor=1.0),
    "promptless": Arm("selected without the prompt", selector="promptless"),
    "near": Arm("smallest divergence", choice="near"),
    "blank": Arm("always blank (mDPO)", choice="blank"),
    "dpo": Arm("DPO on annotated answers", learns="answers", colour="#D55E00"),
}

_WORLD: dict[str, Any] = {"learning_rate": 5e-4, "beta": 0.5, "selector": "reference", "weighting": "none"}
_BRIEF = _WORLD | {"max_steps": 2, "batch_size": 8, "n_rows": 16, "test_size": 8}
_BRIEF |= {"world": {"grounded_steps": 5, "habit_steps": 3, "width": 16}}
_TEXT: dict[str, Any] = {"kinds": ["shuffle", "drop", "crop", "mix"], "arms": ["pami", "random", "shuffled"]}
Config.presets(
    arms=ARMS,
    micro=_BRIEF | {"arms": ["pami", "random", "untrained", "shuffled"]},
    smoke=_BRIEF | {"arms": list(ARMS)},
    tiny=_WORLD
    | {"max_steps": 120, "schedule": "constant", "n_rows": 600, "test_size": 600}
    | {"arms": [arm for arm in ARMS if arm not in ("soft", "anchored", "near")]},
    full={"lora_rank": 64, "precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"max_steps": 2, "batch_size": 4, "learning_rate": 1e-3, "n_rows": 8, "test_size": 4, "max_length": 384},
        "tiny": _TEXT | {"epochs": 1, "learning_rate": 3e-5, "n_rows": 200, "test_size": 50, "max_length": 512},
    },
)

UNKNOWN = "ablation, figures not available"
TEXTS = {
    "C1": ("Paired-question accuracy rises over the start", "+5.3 points on VideoHallucer, 10k rows"),
    "C1 evidence": ("Held-out responses lean more on their evidence", "no number for this"),
    "C2": ("A 7B model passes GPT-4o on VideoHallucer", "stated"),
    "C3": ("With the habit, accuracy falls by no more than 0.03", "general benchmarks stay stable"),
    "C4": ("Prompt-aware selection beats a random alteration", UNKNOWN),
    "C4 fixed": ("PaMi-VDPO beats one fixed alteration", UNKNOWN),
    "C4 SFT": ("PaMi-VDPO beats supervised training", UNKNOWN),
    "C5": ("Selection lowers false rejections below 0.75 of a random choice's", "argued with examples"),
    "C6": ("VDPO beats DPO on annotated answers", "comparison, from memory"),
    "C7": ("Works across backbones and data", "stated"),
}
NEEDS = {
    "C2": "needs that model and benchmark",
    "C7": 'needs other backbones; a second size: overrides={"world": {"width": 64}}',
}
HALVES, BLIND = "clips exchanged in half of the samples", "selected by an untrained model"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims, in the embedded world over the seeds whose start was grounded before it got its habit."""
    kept = [i for i, result in enumerate(results) if math.isnan(result["grounded"]) or result["grounded"] >= GROUNDED]
    left_out = [seed for i, seed in enumerate(experiment.seeds) if i not in kept]
    if not kept or experiment.scale == "smoke":  # nothing is decided there
        kept, left_out = list(range(len(results))), []
    found = Stated("pami_vdpo", experiment, TEXTS, NEEDS, seeds=[experiment.seeds[i] for i in kept])
    arms, seen = results.arms, Results(results[i] for i in kept)
    note = f"seeds {left_out} left out: their start was not grounded" if left_out else ""

    def after(arm: str, key: str = "HAS against", when: int = 1) -> np.ndarray:
        return seen(arm, key)[:, when]

    def gain(arm: str, key: str = "HAS against") -> np.ndarray:
        return after(arm, key) - after(arm, key, 0)

    def false(arm: str) -> np.ndarray:
        return np.array([result["selection"][arm]["false_rejections"] for result in seen])

    if not {"pami", "shuffled"} <= arms:
        return found
    if "HAS against" not in results[0]["arms"]["pami"][1]:
        both = (gain(arm, "evidence_nats") for arm in ("pami", "shuffled"))
        found.add("C1 evidence", both, HALVES, "nats a response", note=note)
        return found
    also = {"exchanged clips end below the start": np.mean(gain("inverted")) < 0} if "inverted" in arms else {}
    base = after("pami", "paired", 0)
    both = (after(arm, "paired") - base for arm in ("pami", "shuffled"))
    found.add("C1", both, HALVES, "of pairs", also=also, note=note)
    if "untrained" in arms:
        found.add("C3", (gain("pami", "with"), gain("untrained", "with")), BLIND, margin=-0.03, note=note)
    against = "of questions against the habit"
    for id, other, control, control_is in (
        ("C4", "random", "untrained", BLIND),
        ("C4 fixed", "shuffle", "shuffled", HALVES),
        ("C4 SFT", "sft", "shuffled", HALVES),
        ("C6", "dpo", "shuffled", HALVES),
    ):
        if {other, control} <= arms:
            both = after("pami") - after(other), after(control) - after(other)
            found.add(id, both, control_is, against, note=note)
    if {"random", "untrained"} <= arms:
        apart = float(np.mean(np.abs(false("untrained") - false("random"))))
        also = {"an untrained selector is within 0.05 of random": apart <= 0.05}
        both = (0.75 * false("random") - false(arm) for arm in ("pami", "untrained"))
        found.add("C5", both, BLIND, "of rejections", also=also, note=note)
    return found
