"""The tiles of a region: those around every point of a lattice inside it, cut out of imagery.

Neighbouring tiles overlap, by seven eighths if they are 64 m wide and 8 m apart. So the imagery is read in blocks that
are several tiles wide, and the tiles are cropped out of them. The blocks belong to a lattice of their own: a tile has
the same pixels however the work is divided.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from s2s_ray import storage
from s2s_ray.config import ManifestSourceConfig, SourceConfig, SyntheticSourceConfig
from s2s_ray.data.entries import COLUMNS
from s2s_ray.data.schema import Imagery, TileSize
from s2s_ray.data.sources import open_imagery
from s2s_ray.errors import ConfigError, NotFoundError, PriorError, UnreadableImageError
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.lattice import Cells, Lattice
from s2s_ray.geo.region import Region
from s2s_ray.geo.utm import to_utm, utm_zone
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index.info import RegionInfo
from s2s_ray.index.pictures import write_thumbnails
from s2s_ray.secrets import masked_tree

THUMBNAILS_UP_TO = 50_000
"""Largest number of tiles with thumbnails, which take about as much space as descriptors."""
log = logging.getLogger(__name__)

NO_IMAGERY = "there is no imagery"
_BLOCK_TILES = 4  # side of a block, in tiles
_OVERLAP_FROM = 0.5  # spacing as a part of a tile's side from which tiles are cut one by one
_SIZES_DIFFER = 0.01
_SLACK = 1.01  # a lattice's columns are not quite as far apart everywhere as its rows


def read_region(text: str) -> Region:
    """Return the region of `WEST,SOUTH,EAST,NORTH` in degrees, or of a GeoJSON file at a path or URI.

    Raises:
        PriorError: neither of them, or a region that cannot be used.
        StorageError: the file cannot be read.
    """
    if not text.strip() or all(map(_is_number, text.split(","))):
        return Region.parse(text)
    try:
        content = storage.read_bytes(storage.absolute(text))
    except NotFoundError:
        raise PriorError(
            f"region={text}: expected WEST,SOUTH,EAST,NORTH in degrees or a GeoJSON file, and there is no such file"
        ) from None
    try:
        return Region.of_geojson(json.loads(content))
    except (ValueError, RecursionError) as error:
        if isinstance(error, PriorError):
            raise
        raise PriorError(f"region={text}: the file is not JSON ({error})") from None


def tile_size(source: SourceConfig, meta: Mapping[str, Any]) -> TileSize:
    """Return the size of the tiles for a model: as the source sets it, else as those that the model was trained on.

    Args:
        source: as the user wrote it, before its defaults are made explicit.
        meta: of the model's checkpoint.

    Raises:
        ConfigError: neither of them says it.
    """
    given, default = source.model_dump(exclude_unset=True), source.model_dump()
    trained = meta.get("dataset") or {}
    config = meta.get("config") or {}
    if "tile_m" not in trained and "augmentation" not in config:  # a run of an earlier version
        former = config.get("source") or {}
        trained = {} if former.get("kind") == "synthetic" else former  # the default, whatever the data set is made of
    metres, px = (given.get(key) or trained.get(key) or default.get(key) for key in ("tile_m", "tile_px"))
    if metres is None or px is None:
        raise ConfigError("source.tile_m is missing: the side of a tile in metres, as those the model was trained on")
    if abs(metres / (trained.get("tile_m") or metres) - 1) > _SIZES_DIFFER:
        log.warning(
            "source.tile_m=%g: the model was trained on tiles of %g m, and finds others less well",
            metres,
            trained["tile_m"],
        )
    return TileSize(metres, px)


def expected_tiles(imagery: Imagery, region: Region, every_m: float) -> float:
    """Return about how many points of a lattice are in a region and in the box around imagery."""
    return _overlap(imagery, region).area_m2 / every_m**2


class RegionTiles:
    """Tiles on the lattice of one spacing, inside a region, as far as there is imagery.

    The id of a tile is its cell of the lattice, such as `8m_-428190_136522`: the same for all regions.

    Attributes:
        outside: number of the region's points that lie beyond the outline of the imagery and are no tiles; estimated by
            area where the region is larger than the imagery.

    Raises:
        PriorError: no point of the lattice in the region, or none of them on the imagery; a spacing out of range.
        ConfigError, StorageError: the imagery cannot be used.
    """

    split = None

    def __init__(
        self,
        imagery: SourceConfig,
        region: Region,
        every_m: float,
        size: TileSize,
        views: ViewGeometry,
    ) -> None:
        """List the tiles.

        Args:
            imagery: what the tiles are cut from; its own size of tiles does not matter.
            every_m: spacing of the lattice.
            size: of a tile.
            views: those of the model's checkpoint.
        """
        self._config, self._size, self._views = imagery, size, views
        self._lattice = Lattice(every_m)
        self._block: tuple[tuple[float, float], tuple[Pixels, Seen]] | None = None
        self.region = RegionInfo.of(region, self._lattice.every_m, size.metres)
        self.uri = _address(imagery)
        cells, self.outside = self._find(region)
        positions = self._lattice.positions(cells)
        self._block_m = _BLOCK_TILES * size.metres if every_m <= _OVERLAP_FROM * size.metres else None
        self._starts = np.arange(len(cells))
        if self._block_m is not None:  # tiles of one block follow each other
            blocks = Lattice(self._block_m).nearest(positions[:, 0], positions[:, 1])
            order = np.lexsort((cells[:, 1], cells[:, 0], blocks[:, 1], blocks[:, 0]))
            cells, blocks = cells[order], blocks[order]
            self._starts = np.flatnonzero(np.any(np.diff(blocks, axis=0, prepend=blocks[:1] - 1), axis=1))
        self._cells: Cells = cells

    def blocks(self) -> list[range]:
        """Return the rows of the tiles of each block in which the imagery is read."""
        edges = [*self._starts.tolist(), len(self._cells)]
        return [range(first, last) for first, last in pairwise(edges)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what every process makes for itself: open imagery, its last block, positions and ids."""
        own = ("_imagery", "_positions", "ids")
        return {name: value for name, value in self.__dict__.items() if name not in own} | {"_block": None}

    @cached_property
    def _imagery(self) -> Imagery:
        return open_imagery(self._config)

    @cached_property
    def digest(self) -> str:
        description = {
            "imagery": masked_tree(self._config.model_dump(mode="json")),
            "region": self.region.model_dump(mode="json"),
            "tile_px": self._size.px,
        }
        return storage.sha256(json.dumps(description, sort_keys=True).encode())

    @property
    def fingerprint(self) -> str:
        return storage.sha256(f"{self.digest} {self._views!r} {self._block_m}".encode())

    @cached_property
    def ids(self) -> Sequence[str]:
        return [f"{self._lattice.every_m:g}m_{row}_{column}" for row, column in self._cells.tolist()]

    def polar(self, row: int) -> Tensor:
        """Return a tile, uint8 3 H W. Raises UnreadableImageError, ViewError."""
        return self._views.satellite(self.tile(row), "north-up")

    def tile(self, row: int) -> Pixels:
        """Return the north-up tile around a point, px px 3.

        It is cropped out of a block of imagery to the nearest whole pixel.

        Raises:
            UnreadableImageError: the imagery does not have all of it.
        """
        latitude, longitude = self._positions[row].tolist()
        pixels, seen = self._cropped(latitude, longitude)
        if not seen.all():
            raise UnreadableImageError(f"{NO_IMAGERY} of {1 - seen.mean():.0%} of the tile in {self.uri}")
        return pixels

    def entries(self, rows: Sequence[int]) -> pa.Table:
        """Return the rows of `entries.parquet` for some tiles."""
        chosen = np.asarray(rows, np.int64)
        latitudes, longitudes = self._positions[chosen].T
        zones = np.array(
            [utm_zone(*one) if -80 <= one[0] <= 84 else 0 for one in zip(latitudes, longitudes, strict=True)], np.int32
        )
        metres = np.full((2, len(chosen)), np.nan)
        for zone in np.unique(zones[zones > 0]).tolist():
            metres[:, zones == zone] = to_utm(latitudes[zones == zone], longitudes[zones == zone], zone)
        unknown = zones == 0
        columns = (
            [self.ids[row] for row in chosen.tolist()],
            latitudes,
            longitudes,
            *(pa.array(axis, pa.float64(), mask=unknown) for axis in metres),
            pa.array(zones, pa.int32(), mask=unknown),
        )
        return pa.table(dict(zip(COLUMNS.names, columns, strict=True)), schema=COLUMNS)

    def pictures(self, rows: Sequence[int]) -> Callable[[Path], None] | None:
        """Return the function that writes the thumbnails of some tiles; None if they are too many."""
        if len(rows) > THUMBNAILS_UP_TO:
            return None
        return partial(self._write_pictures, rows)

    def _write_pictures(self, rows: Sequence[int], folder: Path) -> None:
        write_thumbnails(map(self.tile, rows), folder)

    def _find(self, region: Region) -> tuple[Cells, int]:
        """Return the cells of a region that the imagery covers, and about how many it does not."""
        imagery, every_m = self._imagery, self._lattice.every_m
        searched = _overlap(imagery, region)
        cells = searched.grid_cells(every_m)
        positions = self._lattice.positions(cells)
        covered = region.mask(*positions.T) & imagery.covers(positions)
        if searched is region and not len(cells):
            raise PriorError(
                f"region: no point of a lattice of {every_m:g} m lies in it; reduce the spacing (--every) or enlarge it"
            )
        if not covered.any():
            raise PriorError(f"region {_bounds(self.region)}: {NO_IMAGERY} of it in {self.uri}")
        all_points = len(cells) if searched is region else round(region.area_m2 / every_m**2)
        return cells[covered], max(0, all_points - int(covered.sum()))

    @cached_property
    def _positions(self) -> Any:
        return self._lattice.positions(self._cells)

    def _cropped(self, latitude: float, longitude: float) -> tuple[Pixels, Seen]:
        """Return a tile and which of its pixels the imagery has."""
        size = self._size
        if self._block_m is not None:
            lattice = Lattice(self._block_m)
            cell = lattice.nearest(np.array([latitude]), np.array([longitude]))
            [(middle_latitude, middle_longitude)] = lattice.positions(cell).tolist()
            pixels, seen = self._block_around(middle_latitude, middle_longitude)
            position = np.array([(latitude, longitude)])
            [(east, north)] = self._imagery.offsets(middle_latitude, middle_longitude, position) * (
                size.px / size.metres
            )
            left, top = (round((len(pixels) - size.px) / 2 + offset) for offset in (east, -north))
            if min(left, top) >= 0 and max(left, top) + size.px <= len(pixels):
                window = slice(top, top + size.px), slice(left, left + size.px)
                return pixels[window], seen[window]
        return self._imagery.cut_seen(latitude, longitude, size.metres, size.px)

    def _block_around(self, latitude: float, longitude: float) -> tuple[Pixels, Seen]:
        """Return the block of a position, reading it unless it is the last that was read."""
        if self._block is None or self._block[0] != (latitude, longitude):
            assert self._block_m is not None
            step = self._size.metres / self._size.px
            px = self._size.px + 2 * math.ceil(self._block_m * _SLACK / 2 / step + 1)
            self._block = (latitude, longitude), self._imagery.cut_seen(latitude, longitude, px * step, px)
        return self._block[1]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _address(imagery: SourceConfig) -> str:
    """Return the URI of imagery, or what stands for it."""
    if isinstance(imagery, ManifestSourceConfig):
        return storage.absolute(imagery.geotiff or imagery.tiles or "")
    return f"{imagery.kind}:{imagery.seed}" if isinstance(imagery, SyntheticSourceConfig) else imagery.kind


def _overlap(imagery: Imagery, region: Region) -> Region:
    """Return the smaller one of a region and the box around imagery: both hold all tiles."""
    frame = region if imagery.bounds is None else Region.of_box(imagery.bounds)
    return frame if frame.area_m2 < region.area_m2 else region


def _bounds(region: RegionInfo) -> str:
    return ",".join(f"{edge:g}" for edge in region.bounds)
