"""Numbers of callers: NumPy's scalars are as good as Python's, and whatever is no number is refused by name."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from s2s_ray.errors import InputError, PriorError, ViewError
from s2s_ray.geo.numbers import finite, pair, real, whole
from s2s_ray.geo.prior import Box, Circle
from s2s_ray.geo.views import ViewGeometry

NUMBERS = [3, 3.0, np.float32(3), np.float64(3), np.float16(3), np.int8(3), np.uint64(3), np.array(3.0), Fraction(3)]
NO_NUMBERS = [True, np.True_, "3", None, [3.0], np.array([3.0]), 3j, 10**400, 10**9999, b"3", {}]


@pytest.mark.parametrize("value", NUMBERS)
def test_every_kind_of_number_is_a_float(value: Any) -> None:
    assert type(real("x", value)) is float
    assert real("x", value) == finite("x", value) == 3.0
    assert repr(Circle(value, value, value)) == "Circle(latitude=3.0, longitude=3.0, radius_m=3.0)"
    assert Box(value, value, value, value) == Box(3.0, 3.0, 3.0, 3.0)


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_whatever_is_no_number_is_refused(value: Any) -> None:
    for read in (real, finite, whole):
        with pytest.raises(InputError, match=r"^x=.*expected a"):
            read("x", value)
    for place in range(3):
        with pytest.raises(PriorError, match="expected a number"):
            Circle(*(value if k == place else 1.0 for k in range(3)))  # type: ignore[arg-type]
    with pytest.raises(PriorError, match=r"^north=.*expected a number"):
        Box(1.0, 1.0, 1.0, value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float32("nan")])
def test_numbers_that_are_not_finite_are_refused(value: Any) -> None:
    with pytest.raises(InputError, match=r"^x=(nan|-?inf): expected a finite number"):
        finite("x", value)
    with pytest.raises(PriorError):
        Circle(1.0, 1.0, value)
    panorama = np.zeros((40, 100, 3), np.uint8)
    with pytest.raises(ViewError, match=r"^heading=(nan|-?inf): expected a compass bearing"):
        ViewGeometry(32, 72).street(panorama, value)
    with pytest.raises(ViewError, match=r"^fov="):
        ViewGeometry(32, 72).street(panorama, fov=value)
    with pytest.raises(ViewError, match=r"^rows\[1\]="):
        ViewGeometry(32, 72).street(panorama, rows=(0.0, value))


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_whole_numbers(value: Any) -> None:
    assert type(whole("k", value)) is int
    assert whole("k", value) == 3


@pytest.mark.parametrize("value", [3.0, np.float32(3), math.nan])
def test_numbers_with_a_fraction_are_not_whole(value: Any) -> None:
    with pytest.raises(InputError, match=r"^k="):
        whole("k", value)


@pytest.mark.parametrize("value", [(0.25, 0.75), [0.25, 0.75], np.array([0.25, 0.75], np.float32)])
def test_two_numbers(value: Any) -> None:
    assert pair("rows", value) == (0.25, 0.75)
    panorama = np.random.default_rng(0).integers(0, 256, (40, 100, 3), np.uint8)
    expected = ViewGeometry(32, 72).street(panorama, rows=(0.25, 0.75))
    assert ViewGeometry(32, 72).street(panorama, np.float32(0), value).equal(expected)


ODD = [
    np.array(3.0),
    np.array("ab"),
    np.array(None),
    torch.tensor(3.0),
    {0.25: 0.5, 0.75: 1.0},
    {0.25, 0.75},
    bytearray(2),
]
"""Things that look as if they had elements in an order, and have none."""


@pytest.mark.parametrize("value", ["ab", 1.0, (1.0,), (1.0, 2.0, 3.0), (0.0, True), None, ("0", "1"), *ODD])
def test_what_is_not_two_numbers_is_refused(value: Any) -> None:
    with pytest.raises(ViewError, match=r"^rows"):
        pair("rows", value, ViewError)
