"""The vocabulary of `s2s_ray.data`: records, pairs, splits and sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from s2s_ray.geo.camera import Projection
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.prior import Box
from s2s_ray.geo.views import ViewGeometry

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
Metres = Literal["geodesic", "utm"]
"""How metres between places are measured. `geodesic`: along the ellipsoid. `utm`: in the plane of each UTM zone, never
between zones, which is the rule of data sets and runs that were begun before there was another."""


@dataclass(frozen=True, slots=True)
class Record:
    """One pair of a source, without its images.

    Latitude and longitude are WGS 84 degrees. Easting and northing are UTM metres in float64, in `zone` (EPSG
    code of the UTM zone, 326xx or 327xx), which ends at 80 degrees south and 84 north. Unknown values are None.

    Attributes:
        heading: compass bearing of the panorama's middle column in degrees (0: north in the middle); `auto`: its file
            says it; `unknown`, in the test split only.
        fov: degrees of the horizon that the panorama shows; `auto`: its file says it.
        projection, pitch, roll: as in `geo.query.Query`.
        place: name of the place; pictures with one name were taken at one place.
    """

    id: str
    split: Split
    latitude: float | None = None
    longitude: float | None = None
    easting: float | None = None
    northing: float | None = None
    zone: int | None = None
    heading: float | Literal["auto", "unknown"] = 0.0
    fov: float | Literal["auto"] = 360.0
    projection: Projection | Literal["auto"] = "equirectangular"
    pitch: float | None = None
    roll: float | None = None
    place: str | None = None

    @property
    def is_panorama(self) -> bool:
        """True for the whole horizon as a level panorama, which no metadata describe."""
        level = self.projection == "equirectangular" and self.pitch is None and self.roll is None
        return level and self.fov == 360 and self.heading != "auto"

    @property
    def bearing(self) -> float:
        """The heading as a number: 0 where only the file says it, and where it is unknown."""
        return 0.0 if isinstance(self.heading, str) else self.heading

    @property
    def reads_metadata(self) -> bool:
        """True if the file of the panorama says something that is needed."""
        return "auto" in (self.heading, self.fov, self.projection)


class Pair(NamedTuple):
    """The two images of a record: `satellite` S S 3 (square, north up) and `street` h w 3, both uint8 RGB."""

    satellite: Pixels
    street: Pixels


class TileSize(NamedTuple):
    """The side of a source's satellite tiles, in metres on the ground and in pixels."""

    metres: float
    px: int

    def with_margin(self, px: int) -> TileSize:
        """Return the size with so many pixels more on each side."""
        return TileSize(self.metres + 2 * px * self.metres / self.px, self.px + 2 * px)


class Imagery(Protocol):
    """Imagery of a region, from which tiles are cut."""

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """Cut a north-up tile, px px 3, `metres` wide and high, at a WGS 84 position. Raises UnreadableImageError."""

    def cut_seen(self, latitude: float, longitude: float, metres: float, px: int) -> tuple[Pixels, Seen]:
        """Cut a tile as `cut` does, and say which of its pixels the imagery has. Raises UnreadableImageError."""

    @property
    def bounds(self) -> Box | None:
        """A box around the imagery; None if it may be anywhere."""

    def covers(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions, latitudes and longitudes in degrees, N 2, the imagery may have, by its outline."""

    def offsets(self, latitude: float, longitude: float, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return metres east and north of a position, N 2, along the edges of a tile that is cut around it.

        Args:
            positions: latitudes and longitudes in degrees, N 2.
        """


class Source(Protocol):
    """A provider of pairs. Instances are pickled into workers, so they hold settings and no open files."""

    def views(self, height: int, width: int) -> ViewGeometry:
        """Return how this source's images become views of a model with this resolution."""

    def records(self) -> Sequence[Record]:
        """Return all records, in a fixed order.

        Raises:
            InputError: the source cannot be used.
            StorageError: its files cannot be read.
        """

    @property
    def tile_size(self) -> TileSize | None:
        """The size of the tiles if they are cut out of larger imagery or rendered, else None."""

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        """Return the images of one record, the tile with so many pixels more of its imagery on each side.

        A margin needs `tile_size`. Raises `UnreadableImageError`.
        """

    def photo(self, record: Record) -> PhotoMetadata:
        """Return what the file of a record's panorama says of it; needed where `record.reads_metadata`."""
