"""The test of DPO: what a baseline must do before it may serve as one."""

from __future__ import annotations

from workbench.claims import Claims
from workbench.methods.align.dpo.method import Arm, Config
from workbench.methods.experiment import Experiment, Results
from workbench.methods.stated import Stated

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

TEXTS = {
    "D1": ("Held-out chosen responses get the higher implicit reward", "not stated as a number"),
    "D2": ("The loss on held-out pairs falls", "not stated as a number"),
    "D3": (
        "Responses get better than those of the start",
        "61 % against 57 % (PPO) of summaries preferred by GPT-4",
    ),
}


def claims(experiment: Experiment, results: Results) -> Claims:
    """On real text only what is held out can be tested."""
    found = Stated("dpo", experiment, TEXTS)
    arms, blind = ("dpo", "shuffled"), "labels shuffled"
    if not set(arms) <= results.arms:
        raise ValueError("the claims need the arms 'dpo' and 'shuffled'; add them to `arms`")
    accuracy = (results(arm, "reward_accuracy")[:, 1] - 0.5 for arm in arms)
    found.add("D1", accuracy, blind, "accuracy above one half")
    loss, quality = ([results(arm, key) @ [-1, 1] for arm in arms] for key in ("held_out_loss", "quality"))
    found.add("D2", loss, blind, "nats", direction="less")
    if experiment.dataset:
        found.needs(["D3"], "needs a judge of whole responses")
    else:
        found.add("D3", quality, blind, "of responses without a defect")
    return found
