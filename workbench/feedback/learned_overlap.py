"""BLEURT as an optional measure of overlap: scores computed elsewhere, or a regressor in the hub's format.

What may live here: which texts are compared, and reading or computing the scores. What may not: training a scorer.
BLEURT-20 itself is a TensorFlow checkpoint; a version converted to transformers is a folder that works here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

_BATCH = 16  # BLEURT's own


def compared_texts(df: pd.DataFrame) -> tuple[list[str], list[str]]:
    """References and candidates: the whole text with its two second pieces; of a pair of sentences the second alone.

    Args:
        df: completions joined with `task`, `first_piece` and `second_piece` of their instances.
    """
    starts = np.where(df["task"] == "nli", "", df["first_piece"] + " ")
    return [*(starts + df["second_piece"])], [*(starts + df["text"])]


def bleurt(df: pd.DataFrame, source: str) -> np.ndarray:
    """One score a completion.

    Args:
        source: a CSV, JSON or Parquet file with `instance_id, instruction, score`, or a folder with a transformers
            sequence-classification model with one output.

    Raises:
        ValueError: no score for a completion (the first one is named); a model that gives more than one number.
    """
    path = Path(source).expanduser()
    if not path.is_file():
        return _regress(*compared_texts(df), str(path))
    readers: dict[str, Any] = {".csv": pd.read_csv, ".json": pd.read_json, ".parquet": pd.read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"bleurt={source!r}: give a .csv, .json or .parquet file with scores, or a model's folder")
    known = readers[path.suffix](path).set_index(["instance_id", "instruction"])["score"]
    keys = pd.MultiIndex.from_arrays([df["instance_id"], df["instruction"]])
    scores = known.reindex(keys).to_numpy(dtype=float)
    if np.isnan(scores).any():
        instance, instruction = keys[int(np.argmax(np.isnan(scores)))]
        raise ValueError(f"{path} has no score for the {instruction} completion of {instance!r}")
    return scores


def _regress(references: list[str], candidates: list[str], folder: str) -> np.ndarray:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=False, use_safetensors=True)
    if model.config.num_labels != 1:
        raise ValueError(f"{folder} gives {model.config.num_labels} numbers; a regressor with one is needed")
    scores = []
    with torch.no_grad():
        for at in range(0, len(references), _BATCH):
            pairs = (references[at : at + _BATCH], candidates[at : at + _BATCH])
            inputs = tokenizer(*pairs, padding=True, truncation=True, max_length=512, return_tensors="pt")
            scores += model.eval()(**inputs).logits[:, 0].tolist()
    return np.array(scores)
