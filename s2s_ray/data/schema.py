"""What a source yields and what a shard holds: the one vocabulary of `s2s_ray.data`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from s2s_ray.config import Contrast, Resize
from s2s_ray.geo.images import Pixels

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Record:
    """One pair of a source, without its images.

    Latitude and longitude are WGS 84 degrees. Easting and northing are UTM metres in float64, in `zone` (EPSG
    code of the UTM zone, 326xx or 327xx); distances are never taken across zones. `heading` is the compass
    bearing of the panorama's middle column in degrees (0: north in the middle); `fov` is how much of the horizon the
    panorama shows, in degrees. Unknown values are None.
    """

    id: str
    split: Split
    latitude: float | None = None
    longitude: float | None = None
    easting: float | None = None
    northing: float | None = None
    zone: int | None = None
    heading: float = 0.0
    fov: float = 360.0


class Pair(NamedTuple):
    """The two images of a record: `satellite` S S 3 (square, north up) and `street` h w 3, both uint8 RGB."""

    satellite: Pixels
    street: Pixels


@dataclass(frozen=True, slots=True)
class Treatment:
    """What is done to a source's images on their way to the model's resolution.

    Attributes:
        panorama_rows: rows of the panorama to keep, as fractions from the top. None goes by the image: a full 2:1
            sphere keeps its middle half, a wider one is cropped already.
        polar_size: rows and columns at which tiles are unrolled before the resize, as 8-bit pixels with fractions cut
            off; None unrolls at the model's own resolution.
        polar_contrast: `stretch` brings each polar image's least and greatest value to 0 and 255.
        resize: how both images come to the model's resolution: by `area` means, or `cubic` (a = -0.75, without
            antialiasing).
    """

    panorama_rows: tuple[float, float] | None
    polar_size: tuple[int, int] | None = None
    polar_contrast: Contrast = "none"
    resize: Resize = "area"


class Source(Protocol):
    """Where pairs come from. Instances are pickled into workers, so they hold settings and no open files."""

    @property
    def treatment(self) -> Treatment:
        """What is to be done with its images."""

    def records(self) -> Sequence[Record]:
        """All records, in a fixed order. Raises ValueError for a source that cannot be used."""

    def read(self, record: Record) -> Pair:
        """Images of one record. Raises `UnreadableImageError`."""
