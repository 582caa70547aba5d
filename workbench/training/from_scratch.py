"""Small models trained from scratch on a reader's own text, for machines that can reach no hub and have no GPU.

The result is a real folder that `--model` takes; it is far too small to answer questions, and big enough to see a
method move.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from workbench import data
from workbench.kernels import Group
from workbench.models import Policy, bpe_tokenizer, new_llama, pick_device
from workbench.runs.run import Run
from workbench.training.loop import TrainConfig, train
from workbench.training.reference import reference_logps
from workbench.training.steps import supervised_step


def new_model(
    dataset: str,
    folder: str | Path,
    *,
    vocab_size: int = 2_048,
    width: int = 128,
    layers: int = 3,
    max_length: int = 256,
    steps: int = 400,
    batch_size: int = 16,
    held_out: int = 500,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Trains tokenizer and model on the prompts and answers of `dataset` and saves both in `folder`.

    The first `held_out` rows in the order of `data.held_out` are left out, and that order is the one by which tasks
    choose their test rows: a method with `test_size` up to `held_out` is tested on text that no training saw.

    Args:
        dataset: hub id, folder or file with demonstrations or preferences (of these, the chosen responses).
        steps: optimiser steps of language modelling over whole conversations cut to `max_length` tokens.

    Returns:
        Parameters, rows, and the negative log-likelihood of an answer token in held-out rows before and after, nats.

    Raises:
        ValueError: fewer rows than `held_out` + 1; columns that are neither demonstrations nor preferences.
    """
    rows = data.load(dataset)
    columns = set(rows[0])
    if columns & {"chosen", "real", "p_b_preferred"}:
        rows = [{**row, "completion": row["chosen"]} for row in data.as_preferences(rows)]
    rows = data.as_demonstrations(rows)
    rows, test = data.held_out(rows, test_size=held_out)
    order = np.random.default_rng(seed).permutation(len(rows))[: steps * batch_size]  # no more than will be seen
    rows = [rows[i] for i in order]
    prompts = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    tokenizer = bpe_tokenizer([*prompts, *(row["completion"] for row in rows)], vocab_size=vocab_size)
    model = new_llama(
        tokenizer, width=width, layers=layers, heads=max(2, width // 32), max_length=max_length, seed=seed
    )
    policy = Policy(model.to(pick_device(device)), tokenizer, str(folder))

    def answers(some: list[data.Row]) -> list[Group]:
        return [policy.group(row["prompt"], [row["completion"]]) for row in some]

    # the whole conversation is learned: behind the start token everything is "response"
    whole = [Group(g.prompt_ids[:1], [g.prompt_ids[1:] + g.responses_ids[0]]) for g in answers(rows)]
    tested = answers(test[:200])
    before = _token_nll(policy, tested)
    config = TrainConfig(
        learning_rate=3e-3,
        batch_size=batch_size,
        max_steps=steps,
        schedule="cosine",
        epochs=math.ceil(steps * batch_size / len(whole)),
    )
    train(policy, whole, supervised_step, config, Run(Path(folder) / "training"), seed=seed)
    policy.save(folder)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "rows": len(rows),
        "held_out_token_nll_before": before,
        "held_out_token_nll": _token_nll(policy, tested),
    }


def _token_nll(policy: Policy, groups: list[Group]) -> float:
    lengths = np.array([len(group.responses_ids[0]) for group in groups])
    return float(-reference_logps(policy, groups)[:, 0].sum() / lengths.sum())
