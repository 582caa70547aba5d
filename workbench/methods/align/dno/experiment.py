"""The test of DNO: which arms are run at which scale, and what must hold. Every arm takes the same optimiser steps a
round."""

from __future__ import annotations

from typing import Any

from workbench.claims import Claims
from workbench.methods.align.dno.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
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

PAPER = {
    "C1": ("Rounds improve", "AlpacaEval 2 6.99 -> 24.97 in 3 rounds"),
    "C2": ("On-policy rounds beat offline training on the same prompts", "offline DPO 18.22, DNO 24.97"),
    "C3": ("Large-margin filtering helps", "42k filtered pairs 11.60, all 63k 9.60"),
    "C4": ("Student-over-teacher pairs matter", "SPIN 16.13, Restrictive 19.21, DNO 24.97"),
    "C5": ("The share of student-over-teacher pairs grows", "S>T 4.2k, 19.4k, 32.4k; T>S 30.7k, 20.3k, 7.1k"),
    "C6": ("Contrast beats imitation", "SFT on positives 7.96, offline DPO 18.22"),
    "C10": ("Monotone improvement, P(pi_{t+1} > pi_t) >= 1/2 + eta KL(pi_{t+1} || pi_t)", "section 3.1"),
}
BEYOND_SMALL = {
    "C7": ("Length jumps in round 1, then falls", "mean words 162, 671, 361", "needs responses whose length is free"),
    "C8": (
        "Batched rounds beat pooling everything offline",
        "Lookahead 18.28 against 24.97; MT-Bench 7.70, 7.48",
        "needs benchmarks",
    ),
    "C9": ("No harm on reasoning tasks", "Open LLM average 0.652 -> 0.668, 0.671, 0.675", "needs reasoning tasks"),
}


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control: as a rule the method with its labels shuffled."""
    found = Claims("dno", experiment.scale, experiment.seeds)
    arms = results.arms
    for id, told in BEYOND_SMALL.items():
        found.needs_full_scale(id, *told)
    if experiment.dataset:
        return _claims_on_text(found, results)
    shuffled: dict[str, Any] = {"control_is": "labels shuffled"}
    gains, control = (results(arm, "win_against_last")[:, 1:4] - 0.5 for arm in ("dno", "shuffled"))
    weakest = weakest_round(gains)
    found.test(
        "C1",
        "Each of the first rounds beats the one before",
        paper=PAPER["C1"][1],
        measured=gains[:, weakest],
        control=control[:, weakest],
        unit="win rate above one half",
        note=f"the weakest is round {weakest + 1}",
        also={"in every seed": gains.min() > 0},
        **shuffled,
    )
    final = {arm: results(arm, "win_against_gold")[:, -1] for arm in arms}

    def against(id: str, statement: str, ours: str, theirs: str, flat: str = "shuffled", note: str = "") -> None:
        found.test(
            id,
            statement,
            paper=PAPER[id.split()[0]][1],
            measured=final[ours] - final[theirs],
            unit="win rate against the teacher, after the last round",
            note=note,
            control=final[flat] - final[theirs],
            **shuffled,
        )

    if "offline" in arms:
        against("C2", "New pairs each round beat the pairs of round 1 for as many steps", "dno", "offline")
    if {"noisy", "noisy_all"} <= arms:
        right = {arm: results(arm, "sign_accuracy")[:, 0] for arm in ("noisy", "noisy_all")}
        quality = {arm: results(arm, "average_exploitability")[:, -1].mean() for arm in ("noisy", "noisy_all")}
        found.test(
            "C3",
            "Of noisily judged pairs, those with a margin are more often the right way round",
            paper=PAPER["C3"][1],
            measured=right["noisy"] - right["noisy_all"],
            control=results("noisy_all", "sign_accuracy_kept")[:, 0] - right["noisy_all"],
            control_is="as many pairs at random",
            unit="share of pairs, round 1, same samples",
            note=(
                f"averaged policy's exploitability at the end: margin {quality['noisy']:.3f}, none"
                f" {quality['noisy_all']:.3f}"
            ),
        )
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
        shares, control = results(ours, "student_over_teacher"), results(flat, "student_over_teacher")
        found.test(
            f"C5{end}",
            f"{PAPER['C5'][0]}; {how}",
            paper=PAPER["C5"][1],
            measured=shares[:, -1] - shares[:, 0],
            control=control[:, -1] - control[:, 0],
            unit="of pairs with the teacher, last round minus first",
            also={"Spearman > 0 in every seed": rank_correlations(shares).min() > 0},
            **shuffled,
        )
    if {"offline", "sft"} <= arms:
        contrast = "Offline contrast on the pairs of round 1 beats imitating the chosen responses of every round"
        against("C6", contrast, "offline", "sft")
    if "soft" in arms:
        eta = experiment.config.soft_eta
        slack, control = (
            results(arm, "win_against_last")[:, 1:4] - 0.5 - eta * results(arm, "kl_to_last")[:, 1:4]
            for arm in ("soft", "shuffled")
        )
        weakest = weakest_round(slack)
        found.test(
            "C10",
            PAPER["C10"][0],
            paper=PAPER["C10"][1],
            measured=slack[:, weakest],
            control=control[:, weakest],
            unit="left side minus right side, soft DNO",
            note=f"the weakest is round {weakest + 1}",
            also={"in every seed and round": slack.min() > 0},
            **shuffled,
        )
    return found


def _claims_on_text(found: Claims, results: Results) -> Claims:
    """On real text no truth is planted: what can be tested is whether the judge's taste carries over to new prompts."""
    for id, told in PAPER.items():
        found.needs_full_scale(id, *told, "needs a judge that nothing was trained on, and benchmarks")
    found.test(
        "H1",
        "On held-out prompts the training judge prefers the last round to the start",
        paper="not measured",
        measured=results("dno", "quality")[:, -1] - 0.5,
        control=results("shuffled", "quality")[:, -1] - 0.5 if "shuffled" in results.arms else None,
        control_is="labels shuffled",
        unit="win rate above one half",
    )
    return found
