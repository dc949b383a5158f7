"""Satellite tiles stitched from the map tiles of a z/x/y folder (Web Mercator, as web maps use it)."""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np
from PIL import Image

from s2s_ray import storage
from s2s_ray.errors import ConfigError, NotFoundError, UnreadableImageError
from s2s_ray.geo.images import Pixels, decode

_SUFFIXES = ("png", "jpg", "jpeg", "webp")
_KEPT = 256  # decoded map tiles to keep: neighbouring positions share them
_RADIUS, _ECCENTRICITY2 = 6_378_137.0, 0.00669437999014  # WGS 84
_LIMIT = 85.05  # of latitude in degrees, in Web Mercator


class MapTiles:
    """A folder with `z/x/y.png` (or .jpg, .jpeg, .webp), or a template with {z}, {x} and {y}.

    {-y} instead of {y} counts rows from the south, as TMS does. The tiles are square and of one size.

    Raises:
        ConfigError: a template without {x} or {y}.
    """

    def __init__(self, place: str, zoom: int) -> None:
        self.zoom = zoom
        self._kept: OrderedDict[tuple[int, int], Pixels] = OrderedDict()
        place = storage.absolute(place)
        if "{" not in place:
            self._templates = [storage.join(place, f"{{z}}/{{x}}/{{y}}.{suffix}") for suffix in _SUFFIXES]
            return
        if "{x}" not in place or ("{y}" in place) == ("{-y}" in place):
            raise ConfigError(f"source.tiles={place!r}: a template needs {{x}} and either {{y}} or {{-y}}")
        self._templates = [place]

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """Cut a north-up tile around a position by cubic interpolation with antialiasing; see `manifest.Imagery`.

        Raises:
            UnreadableImageError: a map tile that is missing, damaged or of another size; a position beyond the map.
        """
        if abs(latitude) > _LIMIT:
            raise UnreadableImageError(f"latitude {latitude:g} is beyond Web Mercator's {_LIMIT} degrees")
        count = 2**self.zoom
        column = (longitude + 180) / 360 * count
        row = (1 - math.asinh(math.tan(math.radians(latitude))) / math.pi) / 2 * count
        across, along = (metres / side / 2 for side in _sides_m(latitude, count))
        left, right = math.floor(column - across), math.floor(column + across)
        top, bottom = math.floor(row - along), math.floor(row + along)
        rows = [[self._tile(x % count, y) for x in range(left, right + 1)] for y in range(top, bottom + 1)]
        shapes = {tile.shape for line in rows for tile in line}
        if len(shapes) > 1 or rows[0][0].shape[0] != rows[0][0].shape[1]:
            raise UnreadableImageError(f"map tiles have sizes {sorted(shapes)}, expected square tiles of one size")
        size = rows[0][0].shape[0]
        box = [(column - across - left), (row - along - top), (column + across - left), (row + along - top)]
        mosaic = Image.fromarray(np.concatenate([np.concatenate(line, axis=1) for line in rows]))
        west, north, east, south = (edge * size for edge in box)
        return np.asarray(mosaic.resize((px, px), Image.Resampling.BICUBIC, (west, north, east, south)))

    def _tile(self, x: int, y: int) -> Pixels:
        if (x, y) in self._kept:
            self._kept.move_to_end((x, y))
            return self._kept[x, y]
        tile = self._read(x, y)
        self._kept[x, y] = tile
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return tile

    def _read(self, x: int, y: int) -> Pixels:
        names = {"{z}": self.zoom, "{x}": x, "{y}": y, "{-y}": 2**self.zoom - 1 - y}
        for template in self._templates:
            uri = template
            for name, value in names.items():
                uri = uri.replace(name, str(value))
            try:
                tile = decode(storage.read_bytes(uri))
            except NotFoundError:
                continue
            except UnreadableImageError as error:
                raise UnreadableImageError(f"map tile {uri} {error}") from None
            self._templates = [template]  # a folder has files of one kind
            return tile
        raise UnreadableImageError(f"map tile {self.zoom}/{x}/{y} is missing (tried {' or '.join(self._templates)})")


def _sides_m(latitude: float, count: int) -> tuple[float, float]:
    """Return the metres from west to east and from north to south that a map tile covers, on the ellipsoid."""
    sine, cosine = math.sin(math.radians(latitude)), math.cos(math.radians(latitude))
    bend = 1 - _ECCENTRICITY2 * sine * sine
    turn = 2 * math.pi * cosine / count
    return _RADIUS / math.sqrt(bend) * turn, _RADIUS * (1 - _ECCENTRICITY2) / bend**1.5 * turn
