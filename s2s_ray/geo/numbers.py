"""Numbers that callers pass: Python's and NumPy's scalars alike; anything else is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from numbers import Integral, Real
from typing import SupportsFloat, TypeGuard

import numpy as np

from s2s_ray.errors import InputError


def is_number(value: object) -> TypeGuard[SupportsFloat]:
    """Return whether a value is a real number; a truth value is none."""
    zero_dimensional = isinstance(value, np.ndarray) and value.ndim == 0 and value.dtype.kind in "iuf"
    return zero_dimensional or (isinstance(value, Real) and not isinstance(value, bool | np.bool_))


def real(name: str, value: object, error: type[InputError] = InputError) -> float:
    """Return a number as a float, which may be NaN or infinite. Raises `error`."""
    try:
        if is_number(value):
            return float(value)
    except OverflowError:
        pass
    raise error(f"{name}={_shown(value)}: expected a number")


def finite(name: str, value: object, error: type[InputError] = InputError, expected: str = "a finite number") -> float:
    """Return a number as a float. Raises `error` for NaN and infinity as well."""
    number = real(name, value, error)
    if not np.isfinite(number):
        raise error(f"{name}={number}: expected {expected}")
    return number


def whole(name: str, value: object, expected: str = "a whole number") -> int:
    """Return an integer of up to 64 bits as an int. Raises InputError."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if not isinstance(value, bool) and isinstance(value, Integral) and abs(int(value)) < 2**63:
        return int(value)
    raise InputError(f"{name}={_shown(value)}: expected {expected}")


def pair(name: str, value: object, error: type[InputError] = InputError) -> tuple[float, float]:
    """Return two finite numbers. Raises `error`."""
    numbers = elements(value)
    if numbers is None or len(numbers) != 2:
        raise error(f"{name}={_shown(value)}: expected two numbers")
    return finite(f"{name}[0]", numbers[0], error), finite(f"{name}[1]", numbers[1], error)


def elements(value: object) -> list[object] | None:
    """Return the elements of a list, tuple, array or the like; None for anything else, such as a text or a mapping."""
    if not isinstance(value, Iterable) or isinstance(value, str | bytes | bytearray | Mapping | Set):
        return None
    try:
        return list(value)
    except TypeError:  # an array without dimensions
        return None


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python refuses to write integers of thousands of digits
        text = "a huge number"
    return text if len(text) <= 60 else f"{text[:57]}..."
