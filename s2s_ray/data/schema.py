"""What a source yields and what a shard holds: the one vocabulary of `s2s_ray.data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Pixels = NDArray[np.uint8]


class UnreadableImage(ValueError):  # noqa: N818 - what is listed, more than an error
    """An image that is missing or cannot be decoded; the message is the reason, without the id."""


@dataclass(frozen=True, slots=True)
class Record:
    """One pair of a source, without its images.

    Latitude and longitude are WGS 84 degrees. Easting and northing are UTM metres in float64, in `zone` (EPSG
    code of the UTM zone, 326xx or 327xx); distances are never taken across zones. `heading` is the compass
    bearing of the panorama's middle column in degrees (0: north in the middle). Unknown values are None.
    """

    id: str
    split: Split
    latitude: float | None = None
    longitude: float | None = None
    easting: float | None = None
    northing: float | None = None
    zone: int | None = None
    heading: float = 0.0


class Pair(NamedTuple):
    """The two images of a record: `satellite` S S 3 (square, north up) and `street` h w 3, both uint8 RGB."""

    satellite: Pixels
    street: Pixels


class Source(Protocol):
    """Where pairs come from. Instances are pickled into workers, so they hold settings and no open files."""

    @property
    def panorama_rows(self) -> tuple[float, float]:
        """Rows of the panorama to keep, as fractions from the top."""

    def records(self) -> Sequence[Record]:
        """All records, in a fixed order. Raises ValueError for a source that cannot be used."""

    def read(self, record: Record) -> Pair:
        """Images of one record. Raises `UnreadableImage`."""
