"""The test of DPO: what a baseline must do before it may serve as one."""

from __future__ import annotations

from typing import Any

from workbench.claims import Claims
from workbench.methods.align.dpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results

ARMS: dict[str, Arm] = {
    "dpo": Arm("DPO", colour="#D55E00"),
    "sft": Arm("SFT on the chosen responses", learns="chosen", colour="#7F7F7F"),
    "shuffled": Arm("labels shuffled", labels="shuffled", colour="#A6761D"),
}
Config.presets(
    arms=ARMS,
    micro={"learning_rate": 1e-4, "n_pairs": 32, "test_size": 16, "batch_size": 16, "probe_every": 1}
    | {"world": {"pretrain_steps": 30, "sft_epochs": 1, "test_draws": 50}},
    smoke={"learning_rate": 1e-4, "n_pairs": 128, "test_size": 50, "probe_every": 1},
    tiny={"epochs": 2, "learning_rate": 1e-4, "n_pairs": 1_000, "test_size": 300, "probe_every": 8},
    full={"precision": "bf16", "probe_every": 100},
    on_text={
        "smoke": {"learning_rate": 3e-5, "n_pairs": 32, "max_length": 256, "test_size": 16, "probe_every": 1},
        "tiny": {"learning_rate": 3e-5, "n_pairs": 400, "test_size": 200, "probe_every": 3},
    },
)


def claims(experiment: Experiment, results: Results) -> Claims:
    """On real text only what is held out can be tested."""
    found = Claims("dpo", experiment.scale, experiment.seeds)
    if not {"dpo", "shuffled"} <= results.arms:
        raise ValueError("the claims need the arms 'dpo' and 'shuffled'; add them to `arms`")
    accuracy = {arm: results(arm, "reward_accuracy")[:, 1] - 0.5 for arm in ("dpo", "shuffled")}
    change = {key: {arm: results(arm, key) @ [-1, 1] for arm in accuracy} for key in ("held_out_loss", "quality")}
    blind: dict[str, Any] = {"control_is": "labels shuffled"}
    unstated = "not stated as a number"
    found.test(
        "D1",
        "Held-out chosen responses get the higher implicit reward",
        paper=unstated,
        measured=accuracy["dpo"],
        control=accuracy["shuffled"],
        unit="accuracy above one half",
        **blind,
    )
    found.test(
        "D2",
        "The loss on held-out pairs falls",
        paper=unstated,
        direction="less",
        measured=change["held_out_loss"]["dpo"],
        control=change["held_out_loss"]["shuffled"],
        unit="nats",
        **blind,
    )
    better = "Responses get better than those of the start"
    summaries = "61 % against 57 % (PPO) of summaries preferred by GPT-4"
    if experiment.dataset:
        found.needs_full_scale("D3", better, summaries, "needs a judge of whole responses")
        return found
    found.test(
        "D3",
        better,
        paper=summaries,
        measured=change["quality"]["dpo"],
        control=change["quality"]["shuffled"],
        unit="of responses without a defect",
        **blind,
    )
    return found
