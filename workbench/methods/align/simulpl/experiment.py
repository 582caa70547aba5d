"""The test of SimulPL: which arms are run at which scale, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.simulpl.method import Arm, Config
from workbench.methods.align.simulpl.world import LOWEST_AL
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated
from workbench.stats.latency import lag_difference, quality_at

ARMS: dict[str, Arm] = {
    "msft": Arm("MSFT", learns="nothing"),
    "simul_dpo": Arm("SimulDPO", readers=("confidence", "random")),
    "alpha_0": Arm("SimulDPO, alpha 0", alpha=0.0),
    "alpha_5": Arm("SimulDPO, alpha 5", alpha=5.0),
    "scrambled": Arm("SimulDPO, alpha 5, delays scrambled", alpha=5.0, delays="scrambled"),
    "dpo": Arm("DPO on full sources", learns="text", colour="#D55E00"),
    "swapped": Arm("SimulDPO, roles swapped", labels="swapped", colour="#E6AB02"),
    "shuffled": Arm("SimulDPO, labels shuffled", labels="shuffled", colour="#A6761D"),
    "dpo_shuffled": Arm("DPO on full sources, labels shuffled", learns="text", labels="shuffled", colour="#A6761D"),
    "preferred": Arm("MSFT on preferred translations", "chosen", "nothing", readers=("confidence", "wait_k")),
    "offline": Arm("offline start, wait-k", "task", "nothing", readers=("wait_k",)),
    "ipo": Arm("Simul-IPO", loss_type="ipo"),
    "ipo_text": Arm("IPO on full sources", learns="text", loss_type="ipo"),
    "ipo_shuffled": Arm("Simul-IPO, labels shuffled", loss_type="ipo", labels="shuffled"),
    "ipo_text_shuffled": Arm("IPO on full sources, labels shuffled", learns="text", loss_type="ipo", labels="shuffled"),
}
LEVELS = (2.0, 2.5, 3.0, 4.0)  # AL at which curves are compared; the first decides

_WORLD: dict[str, Any] = {"msft_learning_rate": 1e-3, "confidence_weight": 0.5, "token_means": True}
_WORLD |= {"learning_rate": 5e-4, "max_new_tokens": 12, "arms": list(ARMS)}
_BRIEF = _WORLD | {"msft_steps": 8, "max_steps": 3, "taus": [0.3, 0.7], "waits": [1, 3], "n_pairs": 64, "test_size": 8}
Config.presets(
    arms=ARMS,
    micro=_BRIEF
    | {"msft_steps": 3, "max_steps": 2, "n_pairs": 32, "test_size": 4}
    | {"world": {"start_steps": 2, "width": 16, "layers": 1}, "arms": ["msft", "simul_dpo", "shuffled"]},
    smoke=_BRIEF | {"world": {"start_steps": 8, "width": 32, "layers": 1}},
    tiny=_WORLD
    | {"msft_steps": 500, "max_steps": 150, "schedule": "constant", "waits": [1, 2, 3, 4, 5, 7], "n_pairs": 4_000},
    full={"lora_rank": 64, "precision": "bf16", "micro_batch_size": 4},
    on_text={
        "smoke": {"msft_learning_rate": 1e-3, "learning_rate": 1e-4, "msft_batch_size": 4, "batch_size": 4}
        | {"n_pairs": 8, "test_size": 4, "delay_prefixes": 3, "max_new_tokens": 8, "taus": [0.5, 0.7], "waits": [2]}
        | {"arms": ["msft", "simul_dpo", "dpo"]},
        "tiny": {"msft_learning_rate": 3e-5, "learning_rate": 3e-5, "micro_batch_size": 4, "n_pairs": 200}
        | {"test_size": 50, "delay_prefixes": 6, "max_new_tokens": 64, "taus": [0.3, 0.5, 0.7, 0.9]},
    },
)

UNKNOWN = "figures not available"
TEXTS = {
    "C1": (f"Better translations than wait-k at AL {LEVELS[0]:g}", UNKNOWN),
    "C2": ("SimulDPO reads less than DPO on full sources at the same quality", UNKNOWN),
    "C2 alpha": ("A larger weight of latency lowers AL at tau {:g}", UNKNOWN),
    "C3": ("DPO on finished sentences raises AL at tau {:g}", "argued"),
    "C4": ("Better than MSFT alone at tau {:g}", UNKNOWN),
    "C4 order": ("More in source order than MSFT", UNKNOWN),
    "C4 key points": ("More key points than MSFT", UNKNOWN),
    "C4 length": ("Shorter than MSFT", UNKNOWN),
    "C4 fixed AL": (f"Better than MSFT alone at AL {LEVELS[0]:g}", UNKNOWN),
    "C5": ("Human raters see gains on several aspects", UNKNOWN),
    "C6": ("IPO becomes latency-aware the same way: less AL than plain IPO at the same quality", UNKNOWN),
}
BLIND, WORDS = "labels shuffled", "words of AL"


def claims(experiment: Experiment, results: Results) -> Claims:
    """Controls are the same difference between arms with shuffled labels, unless named."""
    arms, tau = results.arms, experiment.config.tau
    texts = {id: (statement.format(tau), paper) for id, (statement, paper) in TEXTS.items()}
    found = Stated("simulpl", experiment, texts, {"C5": "needs human raters"})

    def at(arm: str, key: str = "quality") -> np.ndarray:
        return results(arm, key)[:, 0]

    def curves(arm: str) -> list[list[dict]]:
        return [result["curves"][arm] for result in results]

    def fixed(arm: str, lag: float = LEVELS[0], reader: str = "confidence") -> np.ndarray:
        return np.array([quality_at(curve, lag, reader) for curve in curves(arm)])

    def lags(a: str, b: str) -> np.ndarray:
        return np.array([lag_difference(x, y) for x, y in zip(curves(a), curves(b), strict=True)])

    if {"simul_dpo", "preferred"} <= arms and not experiment.dataset:
        waits = {level: fixed("preferred", level, "wait_k") for level in LEVELS}
        reached = [
            [p["AL"] for p in curve if p["reader"] == "wait_k" and p["quality"] >= 0.95]
            for curve in curves("preferred")
        ]
        apart = [np.mean(fixed("simul_dpo", level) - waits[level]) for level in LEVELS]
        also = {
            "at no AL up to 4 worse by more than 0.01": min(apart) >= -0.01,
            "0.95 exact at AL 2": np.mean(fixed("simul_dpo")) >= 0.95,
            "wait-k needs AL 2.6 for 0.95": np.mean([min(lags, default=math.inf) for lags in reached]) >= 2.6,
        }
        both = (fixed("simul_dpo", reader=reader) - waits[LEVELS[0]] for reader in ("confidence", "random"))
        found.add("C1", both, "SimulDPO's text, random decisions", "of sentences", also=also)
    if {"simul_dpo", "dpo", "shuffled", "dpo_shuffled"} <= arms:
        also = {
            f"lower AL at tau {tau:g}": np.mean(at("simul_dpo", "AL") - at("dpo", "AL")) < 0,
            f"no lower quality at tau {tau:g}": np.mean(at("simul_dpo") - at("dpo")) >= 0,
        }
        found.add("C2", (lags("dpo", "simul_dpo"), lags("dpo_shuffled", "shuffled")), BLIND, WORDS, also=also)
        found.add("C3", (at(arm, "AL") - at("msft", "AL") for arm in ("dpo", "dpo_shuffled")), BLIND, WORDS)
    if {"alpha_0", "alpha_5", "scrambled"} <= arms:
        points = [p for result in results for curve in result["curves"].values() for p in curve]
        also = {
            "alpha 1 not above alpha 0": np.mean(at("simul_dpo", "AL") - at("alpha_0", "AL")) <= 0.05,
            "no perfect quality below the lowest possible AL": all(
                p["quality"] < 1 for p in points if p["AL"] < LOWEST_AL - 1e-6
            ),
        }
        both = (at("alpha_0", "AL") - at(arm, "AL") for arm in ("alpha_5", "scrambled"))
        found.add("C2 alpha", both, "alpha 5, delays scrambled", WORDS, also=also)
    if {"msft", "simul_dpo", "shuffled"} <= arms:
        swapped = "swapped" in arms and not experiment.dataset
        roles = {"roles swapped: 0": np.all(at("swapped") == 0)} if swapped else {}
        swaps: dict[str, Any] = {"also": roles}
        for id, key, options in (
            ("C4", "quality", swaps),
            ("C4 order", "monotonicity", {}),
            ("C4 key points", "key_points", {}),
            ("C4 length", "length", {"direction": "less"}),
        ):
            both = [at(arm, key) - at("msft", key) for arm in ("simul_dpo", "shuffled")]
            if np.isfinite(both).all():
                found.add(id, both, BLIND, **options)
        found.add("C4 fixed AL", (fixed(arm) - fixed("msft") for arm in ("simul_dpo", "shuffled")), BLIND)
    if {"ipo", "ipo_text", "ipo_shuffled", "ipo_text_shuffled"} <= arms:
        found.add("C6", (lags("ipo_text", "ipo"), lags("ipo_text_shuffled", "ipo_shuffled")), BLIND, WORDS)
    return found
