"""The procedural city as a source of pairs."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from pyproj import Transformer

from s2s_ray.city.aerial import render_tile
from s2s_ray.city.camera import VIEW_M
from s2s_ray.city.city import City
from s2s_ray.city.light import SHADOW_REACH_M, draw_light
from s2s_ray.city.noise import generator
from s2s_ray.city.panorama import SHADE_M, render_panorama
from s2s_ray.city.positions import Region, positions
from s2s_ray.city.scene import SIDE, Atlas, Scene
from s2s_ray.city.traffic import REACH_M as TRAFFIC_M
from s2s_ray.city.traffic import draw_traffic
from s2s_ray.config import SyntheticSourceConfig
from s2s_ray.data.schema import Pair, Record, TileSize
from s2s_ray.errors import InputError
from s2s_ray.geo.views import ViewGeometry

ZONE = 32755
ORIGIN = (692_000.0, 6_090_000.0)  # easting and northing of the city's origin in the zone
_CLEAR_M = 1.2  # the camera keeps this far from walls and trunks


class SyntheticSource:
    """Pairs of the procedural city; see `SyntheticSourceConfig`.

    Test pairs come from a separate region, `positions.GAP_M` away from the training region. Raising the number of pairs
    of a split adds pairs and leaves the first ones unchanged.
    """

    def __init__(self, config: SyntheticSourceConfig) -> None:
        self.config = config

    def views(self, height: int, width: int) -> ViewGeometry:
        """Keep the configured rows: by default all, as the renderer draws no rows that the model does not see."""
        return ViewGeometry(height, width, self.config.panorama_rows)

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

    def _split(self, split: Region, count: int) -> list[Record]:
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
        street = render_panorama(
            scene,
            draw_light(rng[1]),
            draw_traffic(rng[1], spots, east, north, config.occlusion),
            east,
            north,
            config.panorama_height,
            config.panorama_width,
            heading=record.heading,
            fine=config.panorama_rays,
        )
        return Pair(tile, street)


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
