"""Strict, frozen configurations with one preset a scale.

What may live here: the decorator and the base class that every `Config` is made with. What may not: any field of any
method. A wrong name, type or range fails here, before anything is loaded; nothing is converted silently.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

__all__ = ["Field", "Presets", "listed", "strict"]

T = TypeVar("T")


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


class Presets:
    """Gives a strict configuration `at(scale, **overrides)`; the class lists what differs from its defaults.

    `PRESETS` is for the embedded world; `ON_TEXT` replaces the preset of a scale on the user's own model and data.
    """

    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {"smoke": {}, "tiny": {}, "full": {}}
    ON_TEXT: ClassVar[dict[str, dict[str, Any]]] = {}

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
            raise ValueError(f"{name} = {first['input']!r}: {first['msg']}. Fields: {known}") from None
