"""The test of FLR: which arms are run at which scale, and what must hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.experiment import Experiment, Results
from workbench.methods.reward.flr.method import Arm, Config
from workbench.methods.stated import Stated

ARMS: dict[str, Arm] = {
    "ranking": Arm("ranking test", "ranking"),
    "dpo_flr": Arm("DPO on FLR pairs", colour="#0072B2"),
    "dpo_tuned": Arm("DPO, tuned scorer", reward="tuned", colour="#009E73"),
    "sft_flr": Arm("SFT on chosen", "chosen", colour="#7F7F7F"),
    "sft_tuned": Arm("SFT on chosen, tuned scorer", "chosen", reward="tuned", colour="#B0B0B0"),
    "kto_flr": Arm("KTO on FLR pairs", "single", colour="#CC79A7"),
    "dpo_fast": Arm("DPO on FLR pairs, rate x 3", lr_ratio=3.0, colour="#E69F00"),
    "dpo_inverted": Arm("DPO, reward inverted", labels="inverted", colour="#D55E00"),
    "dpo_shuffled": Arm("DPO, sides shuffled", labels="shuffled", colour="#A6761D"),
    "dpo_mistuned": Arm("DPO, scorer tuned on shuffled feedback", reward="mistuned", colour="#A6761D"),
}
SYSTEMS = [arm for arm in ARMS if arm != "ranking"]

# the ranking test tunes with swapped roles too; what is tuned and mined with is the listener's own place
_WORLD: dict[str, Any] = {"max_new_tokens": 6, "learning_rate": 1e-4, "tuning_learning_rate": 1e-3}
_BRIEF: dict[str, Any] = _WORLD | {"max_steps": 3, "batch_size": 8, "samples": 3}
_BRIEF_WORLD = {"start_steps": 8, "feedback_steps": 2, "n_pairs": 20, "repetitions": 1, "draws": 2}
_TEXT: dict[str, Any] = {"learning_rate": 1e-5, "arms": ["ranking", "dpo_flr", "dpo_shuffled"]}
Config.presets(
    arms=ARMS,
    micro=_BRIEF
    | {"max_steps": 2, "arms": ["ranking", "dpo_flr", "dpo_shuffled"]}
    | {"world": _BRIEF_WORLD | {"start_steps": 4, "n_pairs": 10, "draws": 1, "width": 16}},
    smoke=_BRIEF | {"world": _BRIEF_WORLD, "arms": ["ranking", "dpo_flr", "dpo_tuned", "dpo_shuffled"]},
    tiny=_WORLD | {"max_steps": 80, "batch_size": 32, "tuned_layout": "next_turn", "arms": list(ARMS)},
    full={"precision": "bf16", "arms": list(ARMS)},
    on_text={
        "smoke": _TEXT
        | {"max_new_tokens": 8, "max_length": 256, "n_prompts": 4, "samples": 3, "batch_size": 4, "max_steps": 2}
        | {"test_size": 6, "phrases": 2, "dimensions": ["following"]},
        "tiny": _TEXT
        | {"max_new_tokens": 128, "max_length": 512, "n_prompts": 200, "batch_size": 16}
        | {"test_size": 100, "phrases": 5, "dimensions": ["understanding", "engagingness", "following"]},
    },
)

UNSEEN, UNMEASURED = "tables not available", "not measured"
TEXTS = {
    "C1": (
        "Without labels FLR ranks pairs right, more than 0.7 of them",
        "on a par with strong reward models on 8 pair sets; " + UNSEEN,
    ),
    "C2": ("Without labels FLR agrees with human ratings like strong reward models", UNSEEN),
    "C3": ("Pairs mined with FLR raise the policy by 0.1 or more", "more helpful; " + UNSEEN),
    "C4": ("Tuning the scorer on written feedback raises its accuracy by 0.05 or more", "better ranking; " + UNSEEN),
    "C4 policy": ("... and raises the policy that learns from its pairs", "better policy; " + UNSEEN),
    "C5": ("Mean FLR ranks systems, Spearman above 0.8", "30 models against an arena's Elo"),
    "C6": ("Five phrases are better than one", "ablation; from memory"),
    "W1": ("With a listener who does not listen FLR knows nothing", UNMEASURED),
    "W2": ("With the reward inverted the policy ends below its start", UNMEASURED),
    "H1": ("FLR orders held-out pairs better than chance", UNSEEN),
    "H2": ("DPO on FLR pairs raises the mean FLR of answers", UNMEASURED),
}
RATED = "needs rated responses and a trained reward model; the correlation with planted quality stands in the results"
# thresholds of the pilot
ACCURACY, GAIN_BY_TUNING, GAIN_OF_POLICY, SYSTEMS_AGREE = 0.7, 0.05, 0.1, 0.8
DEAF, MISTUNED, SHUFFLED = "a listener who does not listen", "tuned on shuffled feedback", "sides shuffled"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control. Quality: share of right symbols in samples."""
    found = Stated("flr", experiment, TEXTS, {"C2": RATED})

    def ranked(key: str) -> np.ndarray:
        return results("ranking", key)[:, 0]

    def gain(arm: str, key: str = "quality") -> np.ndarray:
        return results(arm, key)[:, 1] - results(arm, key)[:, 0]

    if experiment.dataset:
        return _claims_on_text(found, results, ranked, gain)
    if "ranking" in results.arms:
        flr, deaf, own, tuned = (ranked(key) for key in ("flr", "deaf", "own_likelihood", "tuned"))
        raw, raw_tuned = (ranked(f"{key}_official_raw_logit").mean() for key in ("flr", "tuned"))
        levels = f"FLR {flr.mean():.2f}, own likelihood {own.mean():.2f}"
        levels += f", positive phrases only {ranked('flr_positive').mean():.2f}, raw logits {raw:.2f}"
        options: dict[str, Any] = {"note": f"{levels}; parity with a trained reward model is not tested"}
        options["also"] = {"above the model's own likelihood in every seed": (flr > own).all()}
        found.add("C1", (flr - ACCURACY, deaf - ACCURACY), DEAF, "of pairs, above 0.7", **options)
        note = f"tuned {tuned.mean():.2f}, raw logits {raw_tuned:.2f}"
        if "swapped" in results[0]["arms"]["ranking"][0]:
            note += f", roles swapped {ranked('swapped').mean():.2f}"
        both = tuned - flr, ranked("mistuned") - flr
        found.add("C4", both, MISTUNED, "of pairs", margin=GAIN_BY_TUNING, note=note)
        calmer = ranked("flr_half_phrases_sd").mean() < ranked("flr_one_phrase_sd").mean()
        both = flr - ranked("flr_one_phrase"), deaf - ranked("deaf_one_phrase")
        found.add("C6", both, DEAF, "of pairs", also={"larger subsets of phrases vary less": calmer})
        options = {"direction": "equivalent", "margin": 0.05}
        found.add("W1", (deaf - 0.5, flr - 0.5), "the weak listener", "accuracy above one half", **options)
    share = "of right symbols in samples"
    if {"dpo_flr", "dpo_shuffled"} <= results.arms:
        found.add("C3", (gain("dpo_flr"), gain("dpo_shuffled")), SHUFFLED, share, margin=GAIN_OF_POLICY)
    if {"dpo_flr", "dpo_tuned", "dpo_mistuned"} <= results.arms:
        both = (gain(arm) - gain("dpo_flr") for arm in ("dpo_tuned", "dpo_mistuned"))
        found.add("C4 policy", both, MISTUNED, share)
    if {"dpo_flr", "dpo_inverted"} <= results.arms:
        found.add("W2", (gain("dpo_inverted"), gain("dpo_flr")), "reward as it is", share, direction="less")
    if set(SYSTEMS) <= results.arms:
        both = (over_systems(results, key) - SYSTEMS_AGREE for key in ("flr", "flr_deaf"))
        unit = "rank correlation over policies, above 0.8"
        found.add("C5", both, f"scored with {DEAF}", unit)
    return found


def over_systems(results: Results, key: str) -> np.ndarray:
    """Spearman's correlation, over the start and the trained policies, of mean score with quality; one a seed."""
    from scipy import stats

    ends = {
        name: np.stack([results(SYSTEMS[0], name)[:, 0], *(results(arm, name)[:, 1] for arm in SYSTEMS)], axis=1)
        for name in (key, "quality")
    }
    tests: list[Any] = [stats.spearmanr(*pair) for pair in zip(ends[key], ends["quality"], strict=True)]
    return np.array([0.0 if math.isnan(test.statistic) else test.statistic for test in tests])


def _claims_on_text(found: Stated, results: Results, ranked: Any, gain: Any) -> Claims:
    """On real text: does FLR order held-out pairs, and do policies trained on its pairs score higher by it?"""
    in_the_world = ("C1", "C3", "C4", "C4 policy", "C5", "C6")
    found.needs(in_the_world, "needs chat models that hear their users, and their benchmarks")
    if "ranking" in results.arms:
        both = ranked("flr") - 0.5, ranked("own_likelihood") - 0.5
        found.add("H1", both, "the model's own likelihood", "accuracy above one half")
    if {"dpo_flr", "dpo_shuffled"} <= results.arms:
        found.add("H2", (gain("dpo_flr", "flr"), gain("dpo_shuffled", "flr")), SHUFFLED, "nats a token")
    return found
