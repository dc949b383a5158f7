"""The base class of the configuration's sections, and the types of their values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from s2s_ray.config.annotations import holds_misplaced_bool, is_finite, texts
from s2s_ray.config.frozen import FrozenDict
from s2s_ray.references import ADVICE
from s2s_ray.secrets import REFERENCE, holds_secret
from s2s_ray.uri import Uri

Fraction: TypeAlias = Annotated[float, Field(ge=0.0, le=1.0)]
BelowOne: TypeAlias = Annotated[float, Field(ge=0.0, lt=1.0)]
Positive: TypeAlias = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
NonNegative: TypeAlias = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Scalar: TypeAlias = bool | int | float | str | None

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
"""Pattern of the names of runs, sweeps and studies."""
STORED = {"stored": True}
"""Validation context for a configuration that some version of this program wrote: it may hold a secret."""


_NO_NUMBER = PydanticCustomError("bool_for_number", "expected a number, not true or false")


class Section(BaseModel):
    """A frozen part of a configuration that refuses unknown keys, and true and false in the place of numbers.

    It also refuses addresses with a password or a key, because a configuration is written to every run.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    PUBLIC: ClassVar[frozenset[str]] = frozenset()
    """Fields whose addresses everybody may know."""

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, tree: Any) -> Any:
        given = tree if isinstance(tree, Mapping) else {}
        faults = [
            InitErrorDetails(type=_NO_NUMBER, loc=(name,), input=given[name])
            for name, field in cls.model_fields.items()
            if name in given and holds_misplaced_bool(field.annotation, given[name])
        ]
        if faults:
            raise ValidationError.from_exception_data(cls.__name__, faults)
        return tree

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_stored(cls, value: Any, info: ValidationInfo) -> Any:
        for text in texts(value):
            if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
                raise ValueError("expected Unicode text")
        if not (info.context or {}).get("stored") and not is_finite(value):
            raise ValueError("expected finite numbers; quote text that looks like a number")
        if info.field_name not in cls.PUBLIC and not (info.context or {}).get("stored"):
            for text in texts(value):
                if holds_secret(text):
                    raise ValueError(ADVICE)
                if isinstance(text, Uri) and text.is_local and REFERENCE.search(text):
                    raise ValueError("a reference ${env:NAME} stands for a password or key in a URI, not in a path")
        return value

    def located(self) -> Self:
        """Return the same settings with absolute paths: other processes have other working directories."""
        return self.model_copy(update={name: _located(getattr(self, name)) for name in type(self).model_fields})


def _located(value: Any) -> Any:
    if isinstance(value, Uri):
        return value.absolute
    if isinstance(value, Section):
        return value.located()
    if isinstance(value, FrozenDict):
        return FrozenDict({key: _located(item) for key, item in value.items()})
    if isinstance(value, tuple):
        return tuple(_located(item) for item in value)
    return value
