"""Satellite tiles stitched from the map tiles of a z/x/y folder (Web Mercator, as web maps use it)."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from s2s_ray import storage
from s2s_ray.data.sources.files import read_pixels, require_source
from s2s_ray.errors import ConfigError, NotFoundError, UnreadableImageError
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.offsets import east_north

Kind = TypeVar("Kind", np.uint8, np.bool_)
_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_KEPT = 256  # decoded map tiles to keep: neighbouring positions share them
_RADIUS, _ECCENTRICITY2 = 6_378_137.0, 0.00669437999014  # WGS 84
_LIMIT = 85.05  # of latitude in degrees, in Web Mercator


@dataclass(frozen=True, slots=True)
class _Tile:
    """A map tile: S S 3, and which of its pixels show anything, S S."""

    pixels: Pixels
    seen: Seen


class MapTiles:
    """A folder with `z/x/y.png` (or .jpg, .jpeg, .webp, also mixed), or a template with {z}, {x} and {y}.

    {-y} instead of {y} counts rows from the south, as TMS does. The tiles are square and of one size. If a tile exists
    in several kinds, the first of those above is used.

    Raises:
        ConfigError: a template without {x} or {y}.
    """

    def __init__(self, place: str, zoom: int) -> None:
        self.zoom = zoom
        self._kept: OrderedDict[tuple[int, int], _Tile | UnreadableImageError] = OrderedDict()
        place = storage.absolute(place)
        if "{" not in place:
            self._folder = place
            self._templates = [storage.join(place, f"{{z}}/{{x}}/{{y}}.{suffix}") for suffix in _SUFFIXES]
            return
        if "{x}" not in place or ("{y}" in place) == ("{-y}" in place):
            raise ConfigError(f"source.tiles={place!r}: a template needs {{x}} and either {{y}} or {{-y}}")
        self._folder = storage.parent(place.partition("{")[0] + "z")
        self._templates = [place]

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """Cut a north-up tile around a position by cubic interpolation with antialiasing; see `schema.Imagery`.

        Raises:
            UnreadableImageError: a map tile that is missing, damaged, of another size or transparent within the cut
                tile; a position beyond the map.
            StorageError: the map tiles cannot be reached.
        """
        pixels, seen, faults = self._cut(latitude, longitude, metres, px)
        if faults:
            raise faults[0]
        if not seen.all():
            raise UnreadableImageError(
                f"satellite tile: {1 - seen.mean():.0%} of it has no imagery (the map tiles are transparent there)"
            )
        return pixels

    def cut_seen(self, latitude: float, longitude: float, metres: float, px: int) -> tuple[Pixels, Seen]:
        """Cut a tile as `cut` does, and say which of its pixels the map tiles have.

        Raises:
            UnreadableImageError: map tiles of different sizes; a position beyond the map.
            StorageError: the map tiles cannot be reached.
        """
        pixels, seen, _ = self._cut(latitude, longitude, metres, px)
        # Any pixel that an unseen one has a part in is unseen.
        shown = Image.fromarray(np.where(seen, 255, 0).astype(np.uint8)).resize((px, px), Image.Resampling.BILINEAR)
        return pixels, np.asarray(shown) == 255

    @property
    def bounds(self) -> None:
        """None: a folder or a server is not asked for all of its map tiles."""
        return None

    def covers(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions, latitudes and longitudes in degrees, N 2, lie on the map, with map tiles or not."""
        on_map: NDArray[np.bool_] = np.abs(positions[:, 0]) <= _LIMIT
        return on_map

    def offsets(self, latitude: float, longitude: float, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return metres east and true north of a position, N 2, for latitudes and longitudes in degrees, N 2."""
        return east_north(latitude, longitude, *positions.T)

    def _cut(
        self, latitude: float, longitude: float, metres: float, px: int
    ) -> tuple[Pixels, Seen, list[UnreadableImageError]]:
        """Return a tile, px px 3, what the map tiles show of it, at their own resolution, and the faults of some."""
        if abs(latitude) > _LIMIT:
            raise UnreadableImageError(f"latitude {latitude:g} is beyond Web Mercator's {_LIMIT} degrees")
        count = 2**self.zoom
        column = (longitude + 180) / 360 * count
        row = (1 - math.asinh(math.tan(math.radians(latitude))) / math.pi) / 2 * count
        across, along = (metres / side / 2 for side in _sides_m(latitude, count))
        left, right = math.floor(column - across), math.floor(column + across)
        top, bottom = math.floor(row - along), math.floor(row + along)
        found = [[self._tile(x % count, y) for x in range(left, right + 1)] for y in range(top, bottom + 1)]
        faults = [tile for line in found for tile in line if isinstance(tile, UnreadableImageError)]
        shapes = {tile.pixels.shape for line in found for tile in line if isinstance(tile, _Tile)}
        size = max((shape[0] for shape in shapes), default=1)
        if shapes - {(size, size, 3)}:
            raise UnreadableImageError(f"map tiles have sizes {sorted(shapes)}, expected square tiles of one size")
        none = _Tile(np.zeros((size, size, 3), np.uint8), np.zeros((size, size), np.bool_))
        rows = [[tile if isinstance(tile, _Tile) else none for tile in line] for line in found]
        box = [(column - across - left), (row - along - top), (column + across - left), (row + along - top)]
        west, north, east, south = (edge * size for edge in box)
        seen = _joined([[tile.seen for tile in line] for line in rows])
        part = seen[math.floor(north) : math.ceil(south), math.floor(west) : math.ceil(east)]
        mosaic = Image.fromarray(_joined([[tile.pixels for tile in line] for line in rows]))
        pixels = np.asarray(mosaic.resize((px, px), Image.Resampling.BICUBIC, (west, north, east, south)))
        return pixels, part, faults

    def _tile(self, x: int, y: int) -> _Tile | UnreadableImageError:
        """Return a map tile, or why there is none."""
        if (x, y) in self._kept:
            self._kept.move_to_end((x, y))
            if isinstance(self._kept[x, y], UnreadableImageError):
                require_source(self._folder)
            return self._kept[x, y]
        tile: _Tile | UnreadableImageError
        try:
            tile = self._read(x, y)
        except UnreadableImageError as error:
            tile = error
        self._kept[x, y] = tile
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return tile

    def _read(self, x: int, y: int) -> _Tile:
        names = {"{z}": self.zoom, "{x}": x, "{y}": y, "{-y}": 2**self.zoom - 1 - y}
        for template in self._templates:
            uri = template
            for name, value in names.items():
                uri = uri.replace(name, str(value))
            try:
                pixels, seen = read_pixels(uri)
            except NotFoundError:
                continue
            except UnreadableImageError as error:
                raise UnreadableImageError(f"map tile {uri} {error}") from None
            return _Tile(pixels, np.ones(pixels.shape[:2], np.bool_) if seen is None else seen)
        require_source(self._folder)
        raise UnreadableImageError(f"map tile {self.zoom}/{x}/{y} is missing (tried {' or '.join(self._templates)})")


def _joined(rows: Sequence[Sequence[NDArray[Kind]]]) -> NDArray[Kind]:
    """Return the mosaic of rows of equal images."""
    return np.concatenate([np.concatenate(line, axis=1) for line in rows])


def _sides_m(latitude: float, count: int) -> tuple[float, float]:
    """Return the metres from west to east and from north to south that a map tile covers, on the ellipsoid."""
    sine, cosine = math.sin(math.radians(latitude)), math.cos(math.radians(latitude))
    bend = 1 - _ECCENTRICITY2 * sine * sine
    turn = 2 * math.pi * cosine / count
    return _RADIUS / math.sqrt(bend) * turn, _RADIUS * (1 - _ECCENTRICITY2) / bend**1.5 * turn
