"""Strict, frozen configurations: one preset a scale, blocks of fields that methods share, and what of them is in a key.

A wrong name, type or range fails here, before anything is loaded; nothing is converted silently. Beside each default
stands its source: the paper's place, the official code, or `ours`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, dataclass_transform, get_type_hints

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from workbench.runs.named_models import where

__all__ = ["Field", "Judged", "Presets", "Sampling", "Source", "Training", "listed", "neutral", "strict"]

T = TypeVar("T")
_NAMES_A_SOURCE = "a model, judge, checker, scorer or data file"
Source = Annotated[str, _NAMES_A_SOURCE]  # a folder, a file, a hub id or an address; "" for none
FILES = (".jsonl", ".json", ".gz", ".parquet", ".csv")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(Field,))
def strict(cls: type[T]) -> type[T]:
    """Class decorator: a frozen keyword-only dataclass that refuses `"false"`, `"1e-4"`, NaN and unknown names."""
    make: Callable = dataclass(
        frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    )
    return make(cls)


def listed(*values: Any) -> Any:
    """The default of a field that holds a list."""
    return Field(default_factory=lambda: list(values))


def neutral(value: Any, **limits: Any) -> Any:
    """A default at which all is as it was before the field existed: at this value the field is not part of a key."""
    return Field(default=value, json_schema_extra={"neutral": value}, **limits)


class Presets:
    """Gives a strict configuration `at(scale, **overrides)`; the class lists what differs from its defaults.

    `PRESETS` is for the embedded world; `ON_TEXT` replaces the preset of a scale on the user's own model and data;
    `ARMS` says what each name in a field `arms` stands for. A system's `experiment.py` sets them, by `presets`.
    """

    PRESETS: ClassVar[Mapping[str, Mapping[str, Any]]] = {"smoke": {}, "tiny": {}, "full": {}}
    ON_TEXT: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ARMS: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def presets(
        cls,
        *,
        arms: Mapping[str, Any] | None = None,
        on_text: Mapping[str, Mapping[str, Any]] | None = None,
        **scales: Mapping[str, Any],
    ) -> None:
        """Sets what the scales change, and the arms."""
        cls.PRESETS, cls.ON_TEXT, cls.ARMS = scales, on_text or {}, arms or {}

    def __post_init__(self):
        if unknown := [arm for arm in getattr(self, "arms", ()) if self.ARMS and arm not in self.ARMS]:
            raise ValueError(f"unknown arms {unknown}; known: {', '.join(self.ARMS)}")

    @classmethod
    def at(cls, scale: str, on_text: bool = False, /, **overrides: Any) -> Self:
        """The preset of "smoke", "tiny" or "full" with fields replaced.

        Args:
            on_text: take what the class says for real text at this scale, where it says something.

        Raises:
            ValueError: an unknown scale or field, or a value of the wrong type or out of range, in one line.
        """
        if scale not in cls.PRESETS:
            raise ValueError(f"scale must be one of {', '.join(cls.PRESETS)}; got {scale!r}")
        preset = cls.ON_TEXT.get(scale, cls.PRESETS[scale]) if on_text else cls.PRESETS[scale]
        try:
            return cls(**{**preset, **overrides})
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            known = ", ".join(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]
            neutral_of = _neutral_values(cls)
            at = f"{name} = {first['input']!r}: " if name else ""
            said = f"only {neutral_of[name]!r} is built so far" if name in neutral_of else first["msg"]
            raise ValueError(f"{at}{said}. Fields: {known}") from None


# ------------------------------------------------------------------------------------- blocks of fields that are shared
@strict
class Training:
    """How weights move; `TrainConfig.of(config)` reads it. A method repeats a field only where its paper has a
    value."""

    learning_rate: float = Field(default=1e-6, gt=0)  # peak
    epochs: int = Field(default=1, ge=1)  # over the rows of a round
    max_steps: int = Field(default=0, ge=0)  # optimiser steps a round; 0: all epochs
    batch_size: int = Field(default=64, ge=1)  # rows an optimiser step
    optimizer: Literal["rmsprop", "adamw"] = "rmsprop"
    warmup_ratio: float = Field(default=0.1, ge=0, le=1)  # share of all steps
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    micro_batch_size: int = Field(default=0, ge=0)  # rows held at once; 0: cut by tokens
    checkpoint_every: int = Field(default=0, ge=0)  # optimiser steps; 0: after each round only
    lora_rank: int = Field(default=0, ge=0)  # 0: all weights
    precision: Literal["no", "bf16"] = "no"  # autocast
    # how it is computed and not what: at these values nothing else is built yet
    processes: Literal[1] = neutral(1)
    micro_batch_tokens: Literal[0] = neutral(0)  # tokens held at once; 0: as many as the device takes well
    activation_checkpointing: Literal[False] = neutral(False)

    @property
    def lora(self) -> dict[str, Any] | None:
        """Options of the adapter that is trained; None where all weights are."""
        return {"r": self.lora_rank, "lora_alpha": 2 * self.lora_rank} if self.lora_rank else None


@strict
class Sampling:
    """How responses are drawn from the policy."""

    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=512, ge=1)
    # who draws: other engines and servers are not built yet
    engine: Literal["workbench"] = neutral("workbench")
    server: Literal[""] = neutral("")

    @property
    def sampling(self) -> dict[str, Any]:
        """What `kernels.sample` takes of them."""
        return {"temperature": self.temperature, "top_p": self.top_p, "max_new_tokens": self.max_new_tokens}


@strict
class Judged:
    """Who says which of two responses is better, on real text."""

    judge: Source = ""  # folder or hub id
    judge_kind: Literal["reward", "chat"] = "reward"  # a sequence-classification model, or one that is asked in words


# ------------------------------------------------------------------------------------------------ what a key is made of
def keyed(config: Any) -> dict[str, Any]:
    """Every field's value but those at their neutral one, and the arms that are named, as far as they differ from the
    method: what a run key holds of a configuration."""
    values = dataclasses.asdict(config)
    values = {name: value for name, value in values.items() if (name, value) not in _neutral_values(config).items()}
    arms = {name: config.ARMS[name] for name in values.get("arms", ()) if name in config.ARMS}
    return values | ({"arms": {name: _arm_values(arm) for name, arm in arms.items()}} if arms else {})


def _neutral_values(of: Any) -> dict[str, Any]:
    extras = {f.name: getattr(f.default, "json_schema_extra", None) or {} for f in dataclasses.fields(of)}
    return {name: extra["neutral"] for name, extra in extras.items() if "neutral" in extra}


def _arm_values(arm: Any) -> Any:
    """What an arm changes; a title and a colour are for the reader."""
    if not dataclasses.is_dataclass(arm):
        return str(arm)
    shown = ("title", "colour")
    fields = [field for field in dataclasses.fields(arm) if field.name not in shown]
    return {f.name: getattr(arm, f.name) for f in fields if getattr(arm, f.name) != f.default}


@cache
def source_fields(cls: type) -> tuple[str, ...]:
    """Fields of a configuration that name a model, judge, checker, scorer or data file."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(
        f.name for f in dataclasses.fields(cls) if _NAMES_A_SOURCE in getattr(hints[f.name], "__metadata__", ())
    )


def located(source: str) -> str:
    """A local path as an absolute one, because a notebook runs in a folder of its own; a hub id or an address as it is.

    Raises:
        FileNotFoundError: it is written as a path and nothing is there.
    """
    where(source)  # a named model that was not fetched yet is told before anything starts
    path = Path(source).expanduser()
    if source and "://" not in source and path.exists():
        return str(path.resolve())
    if source.startswith((".", "/", "~")) or ("://" not in source and path.suffix in FILES):
        raise FileNotFoundError(f"no file or folder {source!r}; give one that exists, or the id of a hub repository")
    return source
