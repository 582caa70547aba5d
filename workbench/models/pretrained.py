"""Loading and saving: folders in the hub's format and hub ids, plain or as an adapter over a base model.

A load that leaves a weight at its random start is refused: every such load would score differently, without a word.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from workbench.runs.named_models import where

Kind = Literal["policy", "reward model", "process reward model", "encoder"]
HEADS = ("score.", "classifier.", "v_head.", "reward_head.")  # of models that give numbers, not words
ADAPTER = "adapter_config.json"


def load_pretrained(source: str | Path, kind: Kind, *, dtype: torch.dtype) -> tuple[str, nn.Module, Any]:
    """Where it was found, the model (with its adapter, if it is one) and its tokenizer.

    Raises:
        FileNotFoundError: no such folder, and no such model on the hub (or no network).
        ValueError: weights are missing or left over; they are named, with the likely cause.
    """
    source = where(str(source))
    folder = Path(source).expanduser()
    if os.sep in source and source.startswith((".", "/", "~")) and not folder.is_dir():
        remedy = "give a folder with config.json, or a hub id such as org/name"
        raise FileNotFoundError(f"no model folder {source}; {remedy}")
    source = str(folder) if folder.is_dir() else source
    if (adapter := _adapter_of(source)) is not None:
        return source, *_load_adapter(source, adapter, kind, dtype)
    return source, _load_whole(source, kind, dtype), _tokenizer(source, kind)


def _tokenizer(source: str, kind: Kind) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _cannot_load(source, kind, error) from error


def _load_whole(
    source: str, kind: Kind, dtype: torch.dtype, *, trained_beside: Sequence[str] = (), **config: Any
) -> nn.Module:
    """A model with all of its weights; those of modules that an adapter brings itself may be missing."""
    import transformers

    try:
        found = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False, **config)
        if kind == "reward model":
            auto: Any = transformers.AutoModelForSequenceClassification
        elif hasattr(found, "vision_config"):
            auto = transformers.AutoModelForImageTextToText
        else:
            auto = transformers.AutoModelForCausalLM
        how: dict[str, Any] = {"dtype": dtype, "trust_remote_code": False, "use_safetensors": True}
        model, report = auto.from_pretrained(source, config=found, output_loading_info=True, **how)
    except (OSError, ValueError) as error:
        raise _cannot_load(source, kind, error) from error
    except RuntimeError as error:  # shapes that differ
        raise ValueError(f"the weights of {source!r} don't fit its config.json: {_first_line(error)}") from error
    check_report(source, kind, report, trained_beside=trained_beside)
    return model


def check_report(source: str, kind: Kind, report: dict[str, Any], *, trained_beside: Sequence[str] = ()) -> None:
    """Refuses a load that left weights at a random start, or a head unused.

    Args:
        report: what `from_pretrained(output_loading_info=True)` gives beside the model.
        trained_beside: modules that something else brings.

    Raises:
        ValueError: the weights are named, with the likely cause.
    """
    missing = [key for key in report["missing_keys"] if not any(name in key.split(".") for name in trained_beside)]
    missing += [key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"]]
    if missing:
        only_head = all(key.startswith((*HEADS, "lm_head.")) for key in missing)
        other = "a reward model" if kind == "policy" else "a language model"
        cause = (
            f"this is {other}, not a {kind}" if only_head else "the folder is incomplete, or of another architecture"
        )
        raise ValueError(
            f"{source!r} has no weights for {_named(missing)}: they would start at random and every load would give"
            f" other numbers; {cause}"
        )
    if kind == "policy" and (heads := [key for key in report["unexpected_keys"] if key.startswith(HEADS)]):
        raise ValueError(
            f"{source!r} has a head that gives numbers ({_named(heads)}): it is a reward model, not a policy"
        )


def _cannot_load(source: str, kind: Kind, error: Exception) -> FileNotFoundError:
    what = "model" if kind == "policy" else kind
    form = "a folder in the hub's format" + (" with a sequence-classification model" if kind != "policy" else "")
    return FileNotFoundError(
        f"cannot load a {what} from {source!r}: {_first_line(error)}. Give {form}, or a hub id that can be reached"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _named(keys: Sequence[str]) -> str:
    return ", ".join(sorted(keys)[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")


# ------------------------------------------------------------------------------------------------------------ adapters
def _adapter_of(source: str) -> Any:
    """The adapter's configuration where a source is an adapter, else None."""
    if Path(source).is_dir() and not (Path(source) / ADAPTER).is_file():
        return None
    if not Path(source).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from transformers.utils.hub import cached_file

        if isinstance(try_to_load_from_cache(source, "config.json"), str):
            return None
        try:  # no network and no such file are the same here: the model's own load says what is wrong
            if cached_file(source, ADAPTER, _raise_exceptions_for_missing_entries=False) is None:
                return None
        except OSError:
            return None
    from peft import PeftConfig

    return PeftConfig.from_pretrained(source)


def _load_adapter(source: str, adapter: Any, kind: Kind, dtype: torch.dtype) -> tuple[nn.Module, Any]:
    from peft import PeftModel, get_peft_model_state_dict
    from peft.utils.save_and_load import load_peft_weights

    base = _base_of(source, adapter)
    weights = load_peft_weights(source, device="cpu")
    own_tokenizer = not Path(source).is_dir() or (Path(source) / "tokenizer_config.json").is_file()
    tokenizer = _tokenizer(source if own_tokenizer else base, kind)
    beside = [*(adapter.modules_to_save or ()), *(("score", "classifier") if kind == "reward model" else ())]
    labels = [len(value) for key, value in weights.items() if key.endswith(("score.weight", "classifier.weight"))]
    model: Any = _load_whole(
        base,
        kind,
        dtype,
        trained_beside=beside,
        **({"num_labels": labels[0]} if kind == "reward model" and labels else {}),
    )
    # tokens that were added before training came with rows of the embedding; the adapter brings them whole
    rows = {len(value) for key, value in weights.items() if key.endswith(("embed_tokens.weight", "lm_head.weight"))}
    if rows and rows != {model.get_input_embeddings().weight.shape[0]}:
        model.resize_token_embeddings(max(rows))
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        raise ValueError(
            f"the tokenizer of {source!r} has {len(tokenizer)} tokens and the base model {base!r} embeds"
            f" {model.get_input_embeddings().weight.shape[0]}: this is another base than the adapter was trained on"
        )
    adapter.base_model_name_or_path = base
    model = PeftModel.from_pretrained(model, source, is_trainable=True, config=adapter)
    theirs, ours = set(weights), set(get_peft_model_state_dict(model))
    if theirs != ours:
        some = _named(sorted(theirs ^ ours))
        raise ValueError(f"the adapter {source!r} does not fit its base model {base!r}: they differ in {some}")
    return model, tokenizer


def _base_of(source: str, adapter: Any) -> str:
    """The base model's folder or hub id; a relative folder counts from here, then from the adapter."""
    name = str(adapter.base_model_name_or_path or "")
    for folder in (Path(name).expanduser(), Path(source) / name):
        if name and folder.is_dir():
            return str(folder)
    if not name or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise FileNotFoundError(
            f"the base model {name!r} of the adapter {source!r} is not on this machine; write its folder or hub id as"
            f" base_model_name_or_path into {Path(source) / ADAPTER}"
        )
    return name


def add_lora(model: nn.Module, **options: Any) -> nn.Module:
    """The model with a new LoRA adapter; all linear layers but the head unless `target_modules` says otherwise."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(**{"task_type": "CAUSAL_LM", "target_modules": "all-linear", **options})
    return get_peft_model(model, config)  # type: ignore[arg-type, return-value]


def save_pretrained(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Writes a model and its tokenizer in the hub's format, safetensors only.

    Of a model with an adapter the adapter is written, with the place of its base model; a base model that has none (it
    was made here) is written into the folder `base` beside it.
    """
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not hasattr(model, "peft_config"):
        return
    path = Path(folder) / ADAPTER
    settings = json.loads(path.read_text())
    base = model.get_base_model()
    place = settings.get("base_model_name_or_path") or base.config._name_or_path
    if not place:
        place = "base"
        plain = copy.deepcopy(model).unload()
        plain.save_pretrained(Path(folder) / place)
        tokenizer.save_pretrained(Path(folder) / place)
    elif Path(place).is_dir():
        place = str(Path(place).resolve())
    path.write_text(json.dumps(settings | {"base_model_name_or_path": place}, indent=2))
