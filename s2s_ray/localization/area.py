"""The area that is searched for pictures of one place."""

from __future__ import annotations

from collections.abc import Sequence

from s2s_ray.errors import InputError
from s2s_ray.geo.prior import Box, Circle, FileCircle, Prior
from s2s_ray.geo.query import Known

Position = tuple[float, float]
"""Latitude and longitude in degrees."""

NO_POSITION = "prior=file: the file has no position, so the whole index was searched"


def area(
    prior: Prior | FileCircle | None, pictures: Sequence[Known]
) -> tuple[Prior | None, Position | None, list[str]]:
    """Return the area to search for pictures of one place, the first position in their files, and warnings.

    Raises:
        InputError: a prior of another type.
    """
    if not isinstance(prior, Circle | Box | FileCircle | None):
        raise InputError(f"prior={prior!r}: expected a Circle, a Box, a FileCircle or None")
    position = next((known.position for known in pictures if known.position is not None), None)
    if not isinstance(prior, FileCircle):
        return prior, position, []
    if position is None:
        return None, None, [NO_POSITION]
    return prior.around(position), position, []
