"""The test of MPO: which arms are run at which scale, and what must hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from workbench.claims import Claims
from workbench.methods.align.mpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

ARMS: dict[str, Arm] = {
    "mpo": Arm("MPO", colour="#0072B2"),
    "dpo": Arm("DPO on all pairs", first="all", second="", colour="#D55E00"),
    "dpo_easy": Arm("DPO on easy pairs", second=""),
    "dpo_hard": Arm("DPO on hard pairs", first="hard", second=""),
    "dpo_random": Arm("DPO on as many random pairs", second="", split="random"),
    "ppo": Arm("PPO, all prompts", first="", second="all", colour="#D55E00"),
    "ppo_hard": Arm("PPO, hard prompts", first=""),
    "ppo_long": Arm("PPO, all prompts, longer", first="", second="all", longer=True),
    "mpo_easy": Arm("DPO on easy, PPO on easy prompts", second="easy"),
    "mpo_all": Arm("DPO on easy, PPO on all prompts", second="all"),
    "dpo_dpo": Arm("DPO on easy, then on hard pairs", second_by="dpo"),
    "reversed": Arm("DPO on hard, PPO on easy prompts", first="hard", second="easy"),
    "random": Arm("MPO, split at random", split="random", colour="#A6761D"),
    "random_reversed": Arm("random split, halves exchanged", first="hard", second="easy", split="random"),
    "shuffled": Arm("MPO, labels shuffled", labels="shuffled", colour="#A6761D"),
    "dpo_easy_30": Arm("DPO on easy pairs, gamma at 0.3", second="", quantile=0.3),
    "dpo_easy_70": Arm("DPO on easy pairs, gamma at 0.7", second="", quantile=0.7),
    "no_kl": Arm("MPO without KL penalty", kl=False),
}
_ORDER = ("reversed", "random", "random_reversed")
_MOST = [arm for arm in ARMS if arm != "no_kl"]

_SHORT: dict[str, Any] = {"inner_epochs": 1, "learning_rate": 1e-4, "temperature": 1.0, "max_new_tokens": 9}
_SHORT |= {"dpo_learning_rate": 1e-4, "reward_learning_rate": 3e-3, "max_length": 64}
_TEXT: dict[str, Any] = {"learning_rate": 3e-5, "dpo_learning_rate": 3e-5, "reward_learning_rate": 3e-5}
Config.presets(
    arms=ARMS,
    # five passes over 96 pairs: a reward model below a coin's accuracy would be refused
    micro=_SHORT
    | {"updates": 1, "batch_size": 8, "reward_epochs": 5, "n_pairs": 96, "test_size": 8}
    | {"arms": ["mpo", "dpo_dpo", "random", "shuffled"]}
    | {"world": {"n_pairs": 96, "sft_steps": 20, "test_draws": 8, "width": 32}},
    smoke=_SHORT
    | {"updates": 2, "batch_size": 16, "reward_epochs": 6, "n_pairs": 192, "test_size": 16}
    | {"arms": ["mpo", "dpo", "dpo_easy", "dpo_random", "ppo", "dpo_dpo", *_ORDER, "shuffled"]}
    | {"world": {"n_pairs": 192, "sft_steps": 40, "test_draws": 64, "width": 32}},
    tiny={"updates": 30, "batch_size": 128, "minibatch_size": 64, "inner_epochs": 2, "critic_lr_ratio": 3.0}
    | {"learning_rate": 3e-4, "temperature": 1.0, "max_new_tokens": 9, "max_length": 64, "n_pairs": 3_000}
    | {"dpo_learning_rate": 1e-4, "epochs": 2, "reward_learning_rate": 1e-3, "reward_epochs": 5, "folds": 3}
    | {"test_size": 320, "arms": _MOST},
    full={"precision": "bf16", "lora_rank": 64, "n_pairs": 20_000, "arms": _MOST},
    on_text={
        "smoke": _TEXT
        | {"updates": 1, "batch_size": 8, "inner_epochs": 1, "n_pairs": 64, "test_size": 8}
        | {"max_length": 256, "max_new_tokens": 12, "arms": ["mpo"]},
        "tiny": _TEXT
        | {"updates": 20, "batch_size": 32, "n_pairs": 400, "test_size": 64, "max_length": 512}
        | {"arms": ["mpo", "dpo", "ppo", "dpo_easy", "dpo_random", "shuffled"]},
    },
)

UNSEEN = "abstracts, no figures"
TEXTS = {
    "C1 DPO": ("MPO beats DPO on all pairs", UNSEEN),
    "C1 PPO": ("MPO beats PPO on all prompts, equal PPO updates", UNSEEN),
    "C2": ("DPO on the easy pairs beats DPO on all, with fewer pairs", UNSEEN),
    "C3": ("pi_DPO is a better start and reference for PPO than pi_SFT", UNSEEN),
    "C4": ("The hard prompts suffice: no worse than all prompts by more than 0.1", UNSEEN),
    "C5": ("Stage 2 raises the reward of sampled responses", UNSEEN),
    "C6": ("Order matters: easy pairs by DPO first, hard prompts by PPO second", "design"),
    "S1": ("More labels are wrong among hard pairs than among easy ones (else the experiment is void)", "presumed"),
}


def claims(experiment: Experiment, results: Results) -> Claims:
    """The claims of the abstracts over the seeds. Rewards are true ones in units of the start's standard deviation."""
    found = Stated("mpo", experiment, TEXTS)
    arms = results.arms
    key = "proxy" if experiment.dataset else "quality"
    unit = "reward of the model" if experiment.dataset else "standard deviations of true reward"

    def end(arm: str) -> np.ndarray:
        return results(arm, key)[:, -1]

    def versus(id: str, better: str, worse: str, control: str, **more: Any) -> None:
        """Tests `better` minus `worse`, beside `control` minus `worse`, where the run has the three arms."""
        if {better, worse, control} <= arms:
            both = end(better) - end(worse), end(control) - end(worse)
            found.add(id, both, ARMS[control].title, unit, **more)

    longer = f"; PPO with stage 1's steps on top {end('ppo_long').mean():+.2f}" if "ppo_long" in arms else ""
    levels = ", ".join(f"{ARMS[a].title} {end(a).mean():+.2f}" for a in ("mpo", "dpo", "ppo") if a in arms)
    versus("C1 DPO", "mpo", "dpo", "shuffled")
    versus("C1 PPO", "mpo", "ppo", "shuffled", note=levels + longer)
    also = {}
    if {"dpo_hard", "dpo"} <= arms:
        also = {"DPO on hard pairs is worse than on all": end("dpo_hard").mean() < end("dpo").mean()}
    versus("C2", "dpo_easy", "dpo", "dpo_random", also=also)
    spreads = [a for a in ("mpo", "ppo_hard") if a in arms and len(results) > 1]
    deviations = ", ".join(f"{ARMS[a].title} {end(a).std(ddof=1):.2f}" for a in spreads)
    versus("C3", "mpo", "ppo_hard", "shuffled", note=f"standard deviation over seeds: {deviations}")
    versus("C4", "mpo", "mpo_all", "shuffled", margin=-0.1)
    if {"mpo", "shuffled"} <= arms:
        rise = (np.diff(results(arm, key)[:, 1:])[:, -1] for arm in ("mpo", "shuffled"))
        accuracy = results("mpo", "implicit_accuracy")[:, 1].mean()
        note = f"implicit accuracy on held-out pairs after stage 1: {accuracy:.2f}"
        found.add("C5", rise, ARMS["shuffled"].title, unit, note=note)
    if {"mpo", *_ORDER} <= arms:
        both = end("mpo") - end("reversed"), end("random") - end("random_reversed")
        found.add("C6", both, "halves drawn at random and exchanged", unit)
    if not experiment.dataset and {"mpo", "random"} <= arms:
        wrong, at_random = (
            np.array([label_errors(experiment, arm, seed) for seed in experiment.seeds]) for arm in ("mpo", "random")
        )
        note = "wrong: easy {:.3f}, hard {:.3f}".format(*wrong.mean(0))
        both = (np.diff(shares)[:, 0] for shares in (wrong, at_random))
        found.add("S1", both, "split at random", "of labels", note=note)
    return found


def label_errors(experiment: Experiment, arm: str, seed: int) -> tuple[float, float]:
    """Share of wrong labels among an arm's easy and hard pairs; true ties are no error."""
    table = pd.read_parquet(experiment.run.folder / f"seed-{seed}" / arm / "split.parquet")
    wrong: Any = (table.true_gap < 0).groupby(table.part).mean()
    return float(wrong["easy"]), float(wrong["hard"])
