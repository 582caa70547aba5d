"""The test of SPPO: which arms are run at which scale, and what must hold.

The small experiment follows the published pilot: eta = 1000 destroys a small policy, with 6 an epoch can reach its
targets.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from workbench.claims import Claims
from workbench.methods.align.sppo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated
from workbench.stats.trends import rank_correlations, slopes

ARMS: dict[str, Arm] = {
    "sppo": Arm("SPPO", colour="#0072B2"),
    "k2": Arm("SPPO with 2 samples", k=2, colour="#56B4E9"),
    "single": Arm("SPPO, P(winner beats loser) only", loss="sppo_single"),
    "hard": Arm("SPPO, hard labels", loss="sppo_hard"),
    "dno": Arm("soft DNO on the same pairs", loss="dno", colour="#009E73"),
    "dpo_0.3": Arm("iterative DPO, beta 0.3", loss="dpo", beta=0.3, colour="#D55E00"),
    "dpo_1": Arm("iterative DPO, beta 1", loss="dpo", beta=1.0, colour="#E69F00"),
    "ipo_0.25": Arm("iterative IPO, tau 0.25", loss="ipo", beta=0.25, colour="#CC79A7"),
    "ipo_1": Arm("iterative IPO, tau 1", loss="ipo", beta=1.0, colour="#7B4173"),
    "shuffled": Arm("SPPO, labels shuffled", labels="shuffled", colour="#A6761D"),
    "swapped": Arm("SPPO, winner and loser swapped", labels="swapped", colour="#E6AB02"),
    "first_reference": Arm("SPPO, reference stays the start", reference="first"),
    "complement": Arm("SPPO, loser's win rate read as 1 - the winner's", win_rates="complement"),
}
BASELINES = ("dpo_0.3", "dpo_1", "ipo_0.25", "ipo_1")  # those of claim C2


_WORLD: dict[str, Any] = {"eta": 6.0, "select_by": "win_rate", "learning_rate": 3e-4, "schedule": "constant"}
_WORLD |= {"warmup_ratio": 0.0, "batch_size": 96, "max_new_tokens": 3, "max_length": 16, "max_prompt_length": 8}
_TEXT: dict[str, Any] = {"eta": 30.0, "learning_rate": 1e-5}
Config.presets(
    arms=ARMS,
    micro=_WORLD
    | {"rounds": 1, "epochs": 1, "prompt_repeats": 1, "samples": 3, "world": {"start_steps": 20}}
    | {"arms": ["sppo", "shuffled", "swapped"]},
    smoke=_WORLD
    | {"rounds": 2, "epochs": 2, "prompt_repeats": 1, "world": {"start_steps": 40}}
    | {"arms": ["sppo", "k2", "dno", "dpo_0.3", "ipo_0.25", "shuffled", "swapped"]},
    tiny=_WORLD
    | {"rounds": 6, "epochs": 5, "prompt_repeats": 4}
    | {"arms": [arm for arm in ARMS if arm not in ("first_reference", "complement")]},
    full={"precision": "bf16"},
    on_text={
        "smoke": _TEXT
        | {"rounds": 1, "n_prompts": 16, "samples": 3, "test_size": 8, "arms": ["sppo", "shuffled"]}
        | {"max_new_tokens": 16, "max_length": 256, "max_prompt_length": 128},
        "tiny": _TEXT
        | {"rounds": 2, "n_prompts": 200, "test_size": 100, "arms": ["sppo", "dpo_0.3", "shuffled"]}
        | {"max_new_tokens": 128, "max_length": 512, "max_prompt_length": 256},
    },
)

TEXTS = {
    "C1": ("Every round gets better", "AlpacaEval 2 LC 17.11 -> 24.79 -> 26.89 -> 28.53"),
    "C2": ("Better than iterative DPO and IPO", "LC of round 3: DPO 22.30, IPO 20.06, SPPO 28.53"),
    "C3": ("Less length growth than IPO", "1676 -> 2163 (SPPO), 2189 (DPO), 2760 (IPO) characters"),
    "C4": ("Winners go up and losers go down", "section 4.5, an argument"),
    "C5": ("General skills are kept in round 1", "Open LLM average 65.74 -> 66.67; DPO 65.62"),
    "C6": ("Robust to few comparisons", "K = 2 against 5 in round 3: LC 28.26 against 28.53"),
    "C7": ("Under the training judge IPO can look better", "PairRM prefers IPO to SPPO in round 3, 0.552"),
    "C8": ("Arena-Hard and MT-Bench", "12.6 -> 18.7, 20.4, 23.3; MT-Bench 7.51 -> 7.21, 7.49, 7.59"),
    "C9": ("Best of 16 by the judge still helps", "LC 28.53 -> 32.13"),
    "H1": ("On held-out prompts the training judge prefers the last round to the start", "not measured"),
}
ON_GAMES = ("C1", "C2", "C4", "C6")
NEEDS = {
    "C3": "needs responses whose length is free",
    "C5": "needs benchmarks of general skills",
    "C7": "needs a learned judge that can be exploited; the table shows both of this world's judges",
    "C8": "needs these benchmarks",
    "C9": "needs a learned judge",
}
EXPL = "average_exploitability"
NOISE = 0.03  # exploitability; C6: about a tenth of the start's
BLIND = "labels shuffled"


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims over the seeds, each beside its control."""
    found = Stated("sppo", experiment, TEXTS, NEEDS)
    arms = results.arms
    if experiment.dataset:
        # no truth is planted: what can be tested is whether the judge's taste carries over to new prompts
        found.needs(ON_GAMES, "needs a judge that nothing was trained on, and benchmarks")
        control = results("shuffled", "quality")[:, -1] - 0.5 if "shuffled" in arms else None
        found.add("H1", (results("sppo", "quality")[:, -1] - 0.5, control), BLIND, "win rate above one half")
        return found
    if not {"shuffled", "swapped"} <= arms:
        raise ValueError("the claims need the arms 'shuffled' and 'swapped' beside 'sppo'; add them to `arms`")
    sppo, control, unit = results("sppo", EXPL), results("shuffled", EXPL), "exploitability of the averaged policy"
    falls = slopes(sppo[:, 1:])
    in_every_seed = {
        "Spearman correlation with the round < 0 in every seed": rank_correlations(sppo[:, 1:]).max() < 0,
        "it beats the start in every seed": results("sppo", "average_win_against_start")[:, -1].min() > 0.5,
        "falls faster than with labels shuffled in every seed": (falls - slopes(control[:, 1:])).max() < 0,
    }
    levels = f"{sppo[:, 0].mean():.3f} at the start, {sppo[:, -1].mean():.3f} at the end"
    options: dict[str, Any] = {"statement": "The averaged policy becomes harder to exploit round by round"}
    options |= {"also": in_every_seed, "note": f"{levels}; labels shuffled {control[:, -1].mean():.3f}"}
    both = falls, slopes(results("swapped", EXPL)[:, 1:])
    found.add("C1", both, "winner and loser swapped", f"{unit}, a round", direction="less", **options)
    if tried := [arm for arm in BASELINES if arm in arms]:
        best = min(tried, key=lambda arm: results(arm, EXPL)[:, -1].mean())
        last = {arm: results(arm, "exploitability")[:, -1].mean() for arm in ("sppo", *tried)}
        lowest = min(last[arm] for arm in tried)
        options = {"statement": "Harder to exploit at the end than the best setting of iterative DPO and IPO"}
        policies = f"last policies: SPPO {last['sppo']:.3f}, best of those {lowest:.3f}"
        options["note"] = f"best baseline: {ARMS[best].title}; {policies}"
        both = (results(best, EXPL)[:, -1] - expl[:, -1] for expl in (sppo, control))
        found.add("C2", both, "SPPO, labels shuffled", unit, **options)
    up, down = results("sppo", "winner_moved"), results("sppo", "loser_moved")
    shuffled = np.minimum(results("shuffled", "winner_moved"), -results("shuffled", "loser_moved"))
    options = {"statement": "The winner's log-prob goes up and the loser's goes down"}
    options["also"] = {"in every seed and every round": up.min() > 0 and down.max() < 0}
    both = np.minimum(up, -down)[:, 0], shuffled[:, 0]
    found.add("C4", both, BLIND, "nats, the smaller of both in round 1", **options)
    if {"dpo_0.3", "dpo_1"} <= arms:
        moved = {arm: results(arm, "winner_moved") for arm in ("dpo_0.3", "dpo_1")}
        lower, higher = sorted(moved, key=lambda arm: moved[arm][:, -1].mean())
        options = {"statement": "A loss on the gap alone raises winners less than SPPO", "test": "sign"}
        options["note"] = f"against {ARMS[higher].title}; in round 1 {(up - moved[higher])[:, 0].mean():+.2f}"
        both = (up - moved[higher])[:, -1], (moved[lower] - moved[higher])[:, -1]
        control_is = f"{ARMS[lower].title} minus {ARMS[higher].title}"
        found.add("C4 dpo", both, control_is, "nats, winner's log-ratio in the last round", **options)
    if "k2" in arms:
        options = {"statement": "Two samples a prompt end as close to the equilibrium as five"}
        both = results("k2", EXPL)[:, -1] - sppo[:, -1], control[:, -1] - sppo[:, -1]
        found.add("C6", both, BLIND, unit, direction="equivalent", margin=NOISE, **options)
    return found
