"""Small random models in the hub's format, one seed of a system, and an experiment of which only results matter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from workbench.methods.experiment import run_seed
from workbench.models import Policy, bpe_tokenizer, new_llama
from workbench.runs.run import Run

APPLES = "How many apples are left? Give three tips for a good day."


class Told:
    """An experiment of which only the results matter."""

    scale, seeds, dataset = "tiny", [0, 1, 2, 3, 4], ""

    def __init__(self, **facts: Any):
        vars(self).update(facts)


def tokenizer_of(texts: str | Sequence[str], vocab_size: int = 300) -> Any:
    return bpe_tokenizer([texts] * 3 if isinstance(texts, str) else texts, vocab_size=vocab_size)


def save_policy(folder: Path, texts: str | Sequence[str] = APPLES, *, max_length: int = 1024, **options: int) -> str:
    """A random Llama that can write any text, in a folder of its own; returns the folder's path as a user gives it."""
    tokenizer = tokenizer_of(texts, **options)
    Policy(new_llama(tokenizer, width=16, layers=1, heads=2, max_length=max_length, seed=0), tokenizer).save(folder)
    return str(folder)


def save_judge(
    folder: Path,
    texts: str | Sequence[str] = APPLES,
    *,
    max_length: int = 256,
    layers: int = 1,
    seed: int = 0,
    opinion: float = 1.0,
) -> str:
    """A random reward model for the same texts; `opinion` stretches its scores."""
    from transformers import LlamaConfig, LlamaForSequenceClassification

    from workbench.training.reward_model import RewardModel

    torch.manual_seed(seed)
    tokenizer = tokenizer_of(texts)
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    special = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": max_length}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **shape, **special))
    model.score.weight.data *= opinion
    RewardModel(model, tokenizer).save(folder)
    return str(folder)


def play(module: Any, settings: Any, seed: int, folder: Path) -> tuple[Any, Any, Run, dict[str, Any]]:
    """One seed of a system: its task, its settings, its run and the result."""
    task, run = module.open_task(settings), Run(folder / f"seed-{seed}")
    return task, settings, run, run_seed(module, task, settings, seed, run)
