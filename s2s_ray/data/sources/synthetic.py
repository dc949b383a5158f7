"""The procedural city as a source of pairs."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from s2s_ray.city import surface
from s2s_ray.city.aerial import render_tile
from s2s_ray.city.camera import VIEW_M
from s2s_ray.city.city import City
from s2s_ray.city.flight import Flight
from s2s_ray.city.light import SHADOW_REACH_M, draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.panorama import SHADE_M, render_panorama
from s2s_ray.city.positions import GAP_M, positions
from s2s_ray.city.positions import Region as Half
from s2s_ray.city.scene import SIDE, Atlas, Scene
from s2s_ray.city.things import Table
from s2s_ray.city.traffic import REACH_M as TRAFFIC_M
from s2s_ray.city.traffic import draw_traffic
from s2s_ray.config import SyntheticSourceConfig
from s2s_ray.data.schema import Pair, Record, TileSize
from s2s_ray.errors import InputError, UnreadableImageError
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.metadata import PhotoMetadata
from s2s_ray.geo.prior import Box
from s2s_ray.geo.region import Region
from s2s_ray.geo.utm import to_degrees, to_utm
from s2s_ray.geo.views import ViewGeometry

ZONE = 32755
ORIGIN = (692_000.0, 6_090_000.0)  # easting and northing of the city's origin in the zone
_CLEAR_M = 1.2  # the camera keeps this far from walls and trunks
_PEOPLE = (surface.ASPHALT, surface.MARKING, surface.PAVEMENT, surface.PLAZA, surface.PATH, surface.PARKING)
_TRIES = 10_000  # points without a place for a picture before a region is given up
_MERIDIAN, _ZONE_DEGREES = 147.0, 4.0  # of the UTM zone, with a margin


class Picture(NamedTuple):
    """A panorama taken in the city, h w 3 uint8 RGB, and the record of where and how."""

    record: Record
    panorama: Pixels


class SyntheticSource:
    """Pairs of the procedural city; see `SyntheticSourceConfig`.

    Test pairs come from a separate region, `positions.GAP_M` away from the training region. Raising the number of pairs
    of a split adds pairs and leaves the first ones unchanged.
    """

    def __init__(self, config: SyntheticSourceConfig) -> None:
        self.config = config

    def views(self, height: int, width: int) -> ViewGeometry:
        """Keep the configured rows: by default all, as the renderer draws no rows that the model does not see."""
        return ViewGeometry(height, width, self.config.panorama_rows, default_heading=self.config.query_heading)

    def __getstate__(self) -> dict[str, Any]:
        return {"config": self.config}  # the world is cheap to make again and large to send

    @cached_property
    def city(self) -> City:
        return City(self.config.seed, self.config.occlusion)

    @cached_property
    def atlas(self) -> Atlas:
        """Rasters of the city, with cells of half a tile's pixel as far as memory allows."""
        pixel = self.config.tile_m / self.config.tile_px
        return Atlas(self.city, max(min(pixel / 2, 0.5), 0.125, self._radius / (6 * SIDE)))

    @property
    def _radius(self) -> float:
        """Metres around a position that its two images show, or from which shadows fall into them."""
        config = self.config
        shaded = max(SHADE_M + config.jitter_m, config.tile_m / 2) + SHADOW_REACH_M
        return max(VIEW_M + config.jitter_m, shaded) + 2.0

    def records(self) -> Sequence[Record]:
        """Return the training pairs, then the test pairs; neighbours in the list are neighbours in the city."""
        return self._split("train", self.config.train_pairs) + self._split("test", self.config.test_pairs)

    def _split(self, split: Half, count: int) -> list[Record]:
        points = np.array(positions(self.city.plan, self.config.spacing_m, count, split)) + np.array(ORIGIN)
        longitude, latitude = Transformer.from_crs(ZONE, 4326, always_xy=True).transform(*points.T)
        return [
            Record(
                id=f"{split}-{k:05d}",
                split=split,
                latitude=float(latitude[k]),
                longitude=float(longitude[k]),
                easting=float(points[k, 0]),
                northing=float(points[k, 1]),
                zone=ZONE,
                heading=self.config.panorama_heading,
            )
            for k in range(count)
        ]

    @property
    def tile_size(self) -> TileSize:
        """The size of the rendered tiles."""
        return TileSize(self.config.tile_m, self.config.tile_px)

    def read(self, record: Record, margin_px: int = 0) -> Pair:
        """Return the tile, with its margin, and the panorama of one record.

        Raises:
            InputError: a record without a position in the city's zone.
        """
        if record.easting is None or record.northing is None or record.zone != ZONE:
            raise InputError(f"{record.id}: easting, northing and zone={ZONE}, the city's, must be given")
        config = self.config
        x, y = record.easting - ORIGIN[0], record.northing - ORIGIN[1]
        size = self.tile_size.with_margin(margin_px)
        scene = self.atlas.scene(x, y, max(self._radius, size.metres / 2 + SHADOW_REACH_M + 2.0))
        rng = [generator(config.seed, 5, zlib.crc32(record.id.encode()), view) for view in range(3)]
        spots = self.city.things(x - TRAFFIC_M, y - TRAFFIC_M, 2 * TRAFFIC_M).spots
        east, north = _stand(scene, rng[2], x, y, config.jitter_m)
        tile = render_tile(
            scene,
            draw_light(rng[0]),
            draw_traffic(rng[0], spots, x, y, config.occlusion),
            x,
            y,
            size.px,
            size.metres,
        )
        return Pair(tile, self._panorama(scene, spots, rng[1], east, north, record.bearing))

    def photo(self, record: Record) -> PhotoMetadata:
        """Return nothing: the records say all of their panoramas."""
        return PhotoMetadata()

    def _panorama(
        self, scene: Scene, spots: Table, rng: np.random.Generator, x: float, y: float, heading: float
    ) -> Pixels:
        config = self.config
        return render_panorama(
            scene,
            draw_light(rng),
            draw_traffic(rng, spots, x, y, config.occlusion),
            x,
            y,
            config.panorama_height,
            config.panorama_width,
            heading=heading,
            fine=config.panorama_rays,
        )

    def pictures(self, region: Region, count: int, *, anywhere: bool = False, seed: int = 0) -> Iterator[Picture]:
        """Yield panoramas taken at random points of a region, off any grid.

        A smaller count gives the first pictures of a larger one.

        Args:
            region: where they are taken; the whole of it in the city's zone.
            anywhere: take them wherever there is nothing solid; by default only where the city places people: on
                streets, pavements, paths, squares and parking spaces.
            seed: of the points; light, season and traffic follow from it, too.

        Raises:
            InputError: a region beyond the city's zone, or without such a point.
        """
        rng = generator(self.config.seed, 7, seed, int(anywhere))
        box, found, tried = region.bounds, 0, 0
        across = (box.east - box.west) % 360
        while found < count:
            if tried > _TRIES * (found + 1):
                raise InputError(f"no place for a picture was found in the region around {box}: choose another region")
            tried += 1
            latitude, longitude = rng.uniform(box.south, box.north), box.west + across * rng.random()
            if not region.mask(np.array([latitude]), np.array([longitude]))[0]:
                continue
            x, y = _city_metres(latitude, longitude)
            if not anywhere and self.city.plan.locate(np.array([[x]]), np.array([[y]])).ground[0, 0] not in _PEOPLE:
                continue
            scene = self.atlas.scene(x, y, self._radius)
            if not _is_clear(scene, x, y):
                continue
            record = Record(
                id=f"picture-{found:05d}",
                split="test",
                latitude=latitude,
                longitude=longitude,
                easting=x + ORIGIN[0],
                northing=y + ORIGIN[1],
                zone=ZONE,
                heading=self.config.panorama_heading,
            )
            spots = self.city.things(x - TRAFFIC_M, y - TRAFFIC_M, 2 * TRAFFIC_M).spots
            own = generator(self.config.seed, 8, seed, int(anywhere), found)
            yield Picture(record, self._panorama(scene, spots, own, x, y, record.bearing))
            found += 1


class CityImagery:
    """Imagery of the procedural city, cut at any position; see `schema.Imagery`.

    All of it is of one flight, `city.flight.Flight`.
    """

    def __init__(self, config: SyntheticSourceConfig) -> None:
        self._config = config
        source = SyntheticSource(config)
        self._flight = Flight(source.city, source.atlas)

    def __reduce__(self) -> tuple[type[CityImagery], tuple[SyntheticSourceConfig]]:
        return CityImagery, (self._config,)

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """Cut a north-up tile around a position, px px 3; north is that of the city's UTM grid.

        Raises:
            UnreadableImageError: a position beyond the city's zone.
        """
        try:
            x, y = _city_metres(latitude, longitude)
        except InputError as error:
            raise UnreadableImageError(str(error)) from None
        return self._flight.cut(x, y, metres, px)

    def cut_seen(self, latitude: float, longitude: float, metres: float, px: int) -> tuple[Pixels, Seen]:
        """Cut a tile as `cut` does; the imagery has all of its pixels. Raises UnreadableImageError."""
        return self.cut(latitude, longitude, metres, px), np.ones((px, px), np.bool_)

    @property
    def bounds(self) -> Box:
        """The box of the city's zone."""
        return Box(_MERIDIAN - _ZONE_DEGREES, -80.0, _MERIDIAN + _ZONE_DEGREES, 0.0)

    def covers(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions, latitudes and longitudes in degrees, N 2, lie in the city's zone."""
        return _in_zone(positions[:, 0], positions[:, 1])

    def offsets(self, latitude: float, longitude: float, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return metres east and north of a position in the city's UTM grid, N 2, for latitudes and longitudes, N 2."""
        origin = np.array(to_utm(latitude, longitude, ZONE))
        return np.stack(to_utm(positions[:, 0], positions[:, 1], ZONE), axis=-1) - origin


def unseen_region(side_m: float) -> Region:
    """Return a square region of the city that no training pair shows, for an index and pictures taken in it."""
    west, south = GAP_M / 2, -side_m / 2
    eastings = np.array([west, west + side_m]) + ORIGIN[0]
    northings = np.array([south, south + side_m]) + ORIGIN[1]
    latitudes, longitudes = to_degrees(np.repeat(eastings, 2), np.tile(northings, 2), ZONE)
    # The box of degrees inside the square, whose sides are not quite those of the grid.
    south, north = max(latitudes[0], latitudes[2]), min(latitudes[1], latitudes[3])
    west, east = max(longitudes[:2]), min(longitudes[2:])
    return Region.of_box(Box(float(west), float(south), float(east), float(north)))


def _city_metres(latitude: float, longitude: float) -> tuple[float, float]:
    """Return metres east and north of the city's origin. Raises `InputError` beyond its UTM zone."""
    if not _in_zone(np.array([latitude]), np.array([longitude]))[0]:
        raise InputError(f"latitude {latitude:g}, longitude {longitude:g} is beyond the city's UTM zone, {ZONE}")
    easting, northing = to_utm(latitude, longitude, ZONE)
    return float(easting) - ORIGIN[0], float(northing) - ORIGIN[1]


def _in_zone(latitudes: NDArray[np.float64], longitudes: NDArray[np.float64]) -> NDArray[np.bool_]:
    inside: NDArray[np.bool_] = np.abs(longitudes - _MERIDIAN) <= _ZONE_DEGREES
    inside &= (latitudes >= -80) & (latitudes <= 0)
    return inside


def _stand(scene: Scene, rng: np.random.Generator, x: float, y: float, jitter: float) -> tuple[float, float]:
    """Return the camera's position: up to `jitter` metres from the tile's centre, not inside anything."""
    for _ in range(20 if jitter else 0):
        angle, distance = rng.uniform(0, 2 * np.pi), jitter * np.sqrt(rng.random())
        u, v = x + distance * np.cos(angle), y + distance * np.sin(angle)
        if _is_clear(scene, u, v):
            return u, v
    return x, y


def _is_clear(scene: Scene, x: float, y: float) -> bool:
    around = np.arange(-_CLEAR_M, _CLEAR_M + 0.01, scene.cell)
    cells = scene.flat(scene.rows(y + around)[:, None], scene.columns(x + around)[None, :])
    return not (scene.rasters.height.ravel()[cells].any() or scene.rasters.canopy.ravel()[cells].any())
