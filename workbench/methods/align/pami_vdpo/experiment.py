"""The test of PaMi-VDPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.pami_vdpo.method import Arm, Config
from workbench.methods.align.pami_vdpo.world import GROUNDED
from workbench.methods.experiment import Experiment, Results

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


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims, in the embedded world over the seeds whose start was grounded before it got its
    habit."""
    kept = [i for i, result in enumerate(results) if math.isnan(result["grounded"]) or result["grounded"] >= GROUNDED]
    left_out = [seed for i, seed in enumerate(experiment.seeds) if i not in kept]
    if not kept or experiment.scale == "smoke":  # nothing is decided there
        kept, left_out = list(range(len(results))), []
    found = Claims("pami_vdpo", experiment.scale, [experiment.seeds[i] for i in kept])
    arms, seen = results.arms, Results(results[i] for i in kept)
    note = f"seeds {left_out} left out: their start was not grounded" if left_out else ""

    def after(arm: str, key: str = "HAS against", when: int = 1) -> np.ndarray:
        return seen(arm, key)[:, when]

    def false(arm: str) -> np.ndarray:
        return np.array([result["selection"][arm]["false_rejections"] for result in seen])

    halves: dict[str, Any] = {"control_is": "clips exchanged in half of the samples", "note": note}
    blind: dict[str, Any] = {"control_is": "selected by an untrained model", "note": note}
    in_world = "HAS against" in results[0]["arms"]["pami"][1] if "pami" in arms else False
    if in_world and {"pami", "shuffled"} <= arms:
        base = after("pami", "paired", 0)
        inverted = (
            {"exchanged clips end below the start": bool(np.mean(after("inverted") - after("inverted", when=0)) < 0)}
            if "inverted" in arms
            else {}
        )
        found.test(
            "C1",
            "Paired-question accuracy rises over the start",
            paper="+5.3 points on VideoHallucer, 10k rows",
            unit="of pairs",
            measured=after("pami", "paired") - base,
            control=after("shuffled", "paired") - base,
            also=inverted,
            **halves,
        )
        if "untrained" in arms:
            found.test(
                "C3",
                "With the habit, accuracy falls by no more than 0.03",
                paper="general benchmarks stay stable",
                margin=-0.03,
                measured=after("pami", "with") - after("pami", "with", 0),
                control=after("untrained", "with") - after("untrained", "with", 0),
                **blind,
            )
        if {"random", "untrained"} <= arms:
            found.test(
                "C4",
                "Prompt-aware selection beats a random alteration",
                paper=UNKNOWN,
                measured=after("pami") - after("random"),
                control=after("untrained") - after("random"),
                unit="of questions against the habit",
                **blind,
            )
        for id, what, other in (
            ("C4 fixed", "one fixed alteration", "shuffle"),
            ("C4 SFT", "supervised training", "sft"),
        ):
            if other in arms:
                found.test(
                    id,
                    f"PaMi-VDPO beats {what}",
                    paper=UNKNOWN,
                    measured=after("pami") - after(other),
                    control=after("shuffled") - after(other),
                    unit="of questions against the habit",
                    **halves,
                )
        if {"random", "untrained"} <= arms:
            apart = float(np.mean(np.abs(false("untrained") - false("random"))))
            found.test(
                "C5",
                "Selection lowers false rejections below 0.75 of a random choice's",
                paper="argued with examples",
                measured=0.75 * false("random") - false("pami"),
                control=0.75 * false("random") - false("untrained"),
                unit="of rejections",
                also={"an untrained selector is within 0.05 of random": apart <= 0.05},
                **blind,
            )
        if "dpo" in arms:
            found.test(
                "C6",
                "VDPO beats DPO on annotated answers",
                paper="comparison, from memory",
                measured=after("pami") - after("dpo"),
                control=after("shuffled") - after("dpo"),
                unit="of questions against the habit",
                **halves,
            )
    elif {"pami", "shuffled"} <= arms:
        key = "evidence_nats"
        found.test(
            "C1 evidence",
            "Held-out responses lean more on their evidence",
            paper="no number for this",
            unit="nats a response",
            measured=after("pami", key) - after("pami", key, 0),
            control=after("shuffled", key) - after("shuffled", key, 0),
            **halves,
        )
    found.needs_full_scale(
        "C2", "A 7B model passes GPT-4o on VideoHallucer", "stated", "needs that model and benchmark"
    )
    found.needs_full_scale(
        "C7",
        "Works across backbones and data",
        "stated",
        'needs other backbones; a second size: overrides={"world": {"width": 64}}',
    )
    return found
