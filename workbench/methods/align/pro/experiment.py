"""The test of PRO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.pro.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated
from workbench.stats.trends import slopes

ARMS: dict[str, Arm] = {
    "pro_2": Arm("PRO, 2 answers", n=2, colour="#0072B2"),
    "pro_3": Arm("PRO, 3 answers", n=3, colour="#56B4E9"),
    "pro_5": Arm("PRO, 5 answers", n=5, colour="#009E73"),
    "sft_2": Arm("SFT on the best of 2", "best", n=2, colour="#7F7F7F"),
    "bon_5": Arm("SFT on the best of 5 (BoN)", "best", n=5, colour="#E69F00"),
    "rrhf_2": Arm("RRHF, 2 answers", "hinge", n=2, colour="#D55E00"),
    "rrhf_5": Arm("RRHF, 5 answers", "hinge", n=5, colour="#CC79A7"),
    "coh_2": Arm("chain of hindsight, 2 answers", "chain", n=2, colour="#7B4173"),
    "plain_5": Arm("PRO without temperatures", n=5, temperature=False),
    "no_sft_5": Arm("PRO without SFT term", n=5, sft_weight=0.0),
    "shuffled_2": Arm("PRO, 2 answers, scores shuffled", n=2, scores="shuffled", colour="#A6761D"),
    "shuffled_3": Arm("PRO, 3 answers, scores shuffled", n=3, scores="shuffled", colour="#A6761D"),
    "shuffled_5": Arm("PRO, 5 answers, scores shuffled", n=5, scores="shuffled", colour="#A6761D"),
    "reversed_5": Arm("PRO, 5 answers, ranking reversed", n=5, scores="reversed", colour="#999999"),
    "pro": Arm("PRO, all answers", colour="#0072B2"),
    "bon": Arm("SFT on the best answer", "best", colour="#E69F00"),
    "rrhf": Arm("RRHF, all answers", "hinge", colour="#D55E00"),
    "shuffled": Arm("PRO, scores shuffled", scores="shuffled", colour="#A6761D"),
}

_WORLD: dict[str, Any] = {"learning_rate": 5e-4, "max_length": 64, "answer_room": 10, "max_new_tokens": 8}
_BRIEF: dict[str, Any] = _WORLD | {"max_steps": 4, "batch_size": 8, "select_every": 2, "candidates_at_once": 2}
_TEXT: dict[str, Any] = {"learning_rate": 3e-5, "select_every": 0}
Config.presets(
    arms=ARMS,
    micro=_BRIEF
    | {"max_steps": 2, "world": {"numbers": 5, "symbols": 12, "start_steps": 4, "n_rows": 40, "draws": 1, "width": 16}}
    | {"arms": ["pro_2", "sft_2", "shuffled_2"]},
    smoke=_BRIEF
    | {"world": {"start_steps": 8, "n_rows": 40, "draws": 2}}
    | {"arms": ["pro_2", "pro_5", "sft_2", "coh_2", "shuffled_2"]},
    tiny=_WORLD
    | {"max_steps": 120, "batch_size": 16, "select_every": 0}
    | {"arms": [arm for arm in ARMS if arm[-1].isdigit()]},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"max_steps": 2, "batch_size": 4, "n_lists": 8, "test_size": 6, "dev_size": 4}
        | {"max_length": 256, "max_new_tokens": 16},
        "tiny": _TEXT | {"batch_size": 32, "n_lists": 400, "test_size": 100, "dev_size": 50},
    },
)

TEXTS = {
    "C1": ("On pairs PRO gets more reward than SFT", "55.35 against 48.83; RRHF 52.25, CoH 45.00"),
    "C2": ("On longer lists PRO gets more reward than SFT on the best answer", "58.72 against BoN 57.66; RRHF 55.39"),
    "C3": (
        "With a strong source of answers the gap widens and nears it",
        "67.97 against BoN 63.83, RRHF 63.12; ChatGPT 68.48",
    ),
    "C4": ("BLEU does not follow reward over the methods", "CoH 24.06 BLEU and 45.00 reward, PRO 21.54 and 55.35"),
    "C5": ("The same on summaries", "89.71 (raw), 91.22 (3 answers); RRHF 83.64, 88.68"),
    "C6": ("Judges prefer it", "GPT-4: 60.62 won, 3.75 tied, 35.63 lost against RRHF"),
    "C7": ("Longer lists help", "curves, no figures available"),
    "C8": ("Leaving out the temperatures or the SFT term hurts", "ablation table, no figures available"),
    "W1": ("PRO orders answers of planted quality, more than 0.7 of the pairs", "not measured"),
    "W2": ("PRO orders them better than SFT", "not measured"),
    "W3": ("With the ranking reversed the policy ends below its start", "not measured"),
    "H1": ("PRO orders held-out lists better than the start", "not measured"),
}
NEEDS = {
    "C3": "the world's answers all come from one source",
    "C5": "needs summaries and a reward model",
    "C6": "needs a judge of whole answers",
}
IN_THE_WORLD = [id for id in TEXTS if id[0] == "C" and id not in NEEDS]
COMPARED = (  # id, arm, the one that it is compared with, control, statement if it is not that of the table
    ("C1", "pro_2", "sft_2", "shuffled_2", ""),
    ("C1 rrhf", "pro_2", "rrhf_2", "shuffled_2", "On pairs PRO gets more reward than RRHF"),
    ("C1 coh", "pro_2", "coh_2", "shuffled_2", "On pairs PRO gets more reward than chain of hindsight"),
    ("C2", "pro_5", "bon_5", "shuffled_5", ""),
    ("C2 rrhf", "pro_5", "rrhf_5", "shuffled_5", "On longer lists PRO gets more reward than RRHF"),
    ("C8 sft", "pro_5", "no_sft_5", "shuffled_5", "Leaving out the SFT term costs reward"),
    ("C8 temperature", "pro_5", "plain_5", "shuffled_5", "Leaving out the temperatures costs reward"),
)
METHODS = ("sft_2", "bon_5", "rrhf_2", "rrhf_5", "coh_2", "pro_2", "pro_5")  # those compared by BLEU and reward
BLIND = "scores shuffled"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control. Reward: of samples on held-out prompts."""
    found = Stated("pro", experiment, TEXTS, NEEDS)
    arms = results.arms

    def after(arm: str, key: str = "quality") -> np.ndarray:
        return results(arm, key)[:, 1]

    def start(key: str = "quality") -> np.ndarray:
        return results(next(iter(results[0]["arms"])), key)[:, 0]

    if experiment.dataset:
        # no truth is planted: what can be tested is whether the order of held-out lists was learned
        found.needs(IN_THE_WORLD, "needs a reward model that nothing was trained on, and the full budget")
        control = after("shuffled", "agreement") - start("agreement") if "shuffled" in arms else None
        found.add("H1", (after("pro", "agreement") - start("agreement"), control), BLIND, "rank agreement")
        return found
    for id, arm, other, blind, statement in COMPARED:
        if {arm, other, blind} <= arms:
            note = f"{after(arm).mean():+.2f} against {after(other).mean():+.2f}"
            both = after(arm) - after(other), after(blind) - after(other)
            found.add(id, both, BLIND, "reward", statement=statement, note=note)
    if set(METHODS) <= arms:
        by_characters, by_right, by_words = (
            correlations(after, f"bleu_{kind}") for kind in ("characters", "right", "words")
        )
        options: dict[str, Any] = {"direction": "less", "note": f"BLEU by words {by_words.mean():+.2f}"}
        unit = "rank correlation with greedy reward"
        found.add("C4", (by_characters, by_right), "BLEU against the right answer", unit, **options)
    if {f"{arm}_{n}" for arm in ("pro", "shuffled") for n in (2, 3, 5)} <= arms:
        both = (slopes(np.stack([after(f"{arm}_{n}") for n in (2, 3, 5)], 1)) for arm in ("pro", "shuffled"))
        found.add("C7", both, BLIND, "reward, from one length to the next")
    if {"pro_2", "sft_2", "shuffled_2"} <= arms:
        pro, sft, blind = (after(arm, "agreement") for arm in ("pro_2", "sft_2", "shuffled_2"))
        found.add("W1", (pro - 0.7, blind - 0.7), BLIND, "rank agreement above 0.7")
        found.add("W2", (pro - sft, blind - sft), BLIND, "rank agreement")
    if {"reversed_5", "pro_5"} <= arms:
        both = after("reversed_5") - start(), after("pro_5") - start()
        found.add("W3", both, "ranking as it is", "reward", direction="less")
    return found


def correlations(after: Callable[[str, str], np.ndarray], key: str) -> np.ndarray:
    """Spearman's correlation of greedy reward and a BLEU over the methods, one a seed; 0 where one does not vary."""
    from scipy import stats

    rewards, scores = (np.stack([after(arm, name) for arm in METHODS], 1) for name in ("greedy", key))
    pairs = zip(rewards, scores, strict=True)
    tests: list[Any] = [stats.spearmanr(a, b) if np.ptp(a) and np.ptp(b) else None for a, b in pairs]
    return np.array([test.statistic if test else 0.0 for test in tests], float)
