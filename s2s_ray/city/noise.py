"""Reproducible randomness: generators keyed by integers, and hashes of lattice points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.integer[Any]]


def generator(*key: int) -> np.random.Generator:
    """Return a generator that depends on `key` alone; negative integers are allowed."""
    return np.random.default_rng([2 * k if k >= 0 else -2 * k - 1 for k in key])


def lattice(x: Integers, y: Integers, salt: Integers | int = 0) -> NDArray[np.float32]:
    """Return independent uniform numbers in [0, 1) for integer points; shapes broadcast."""
    mixed = _word(x) * np.uint32(0x9E3779B1) + _word(y) * np.uint32(0x85EBCA77) + _word(salt) * np.uint32(0xC2B2AE3D)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x2C1B3C6D)
    mixed ^= mixed >> np.uint32(12)
    mixed *= np.uint32(0x297A2D39)
    mixed ^= mixed >> np.uint32(15)
    return np.asarray((mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24))


def _word(values: Integers | int) -> NDArray[np.uint32]:
    return np.atleast_1d(np.asarray(values)).astype(np.int64).astype(np.uint32)
