"""Satellite tiles cut out of a GeoTIFF, whatever its projection and pixel size. Needs rasterio."""

from __future__ import annotations

from typing import Any

import numpy as np

from s2s_ray import storage
from s2s_ray.errors import ConfigError, UnreadableImageError
from s2s_ray.geo.images import (
    Pixels,
)


class GeoTiff:
    """A georeferenced raster (GeoTIFF, VRT, or whatever else GDAL reads) with 8-bit bands: grey, RGB or RGBA."""

    def __init__(self, uri: str) -> None:
        try:
            import rasterio
        except ImportError:
            raise ConfigError(
                f"source.geotiff={uri!r} needs rasterio, which is not installed: pip install 's2s-ray[geotiff]'"
            ) from None
        self.uri = uri
        try:
            source = str(storage.local_path(uri)) if storage.is_local(uri) else storage.open_input(uri)
            self._raster: Any = rasterio.open(source)
        except rasterio.errors.RasterioIOError as error:
            raise ConfigError(f"source.geotiff={uri!r} cannot be read: {error}") from None
        if self._raster.crs is None:
            raise ConfigError(f"source.geotiff={uri!r} says nothing of where it is: it has no coordinate system")
        kinds = set(self._raster.dtypes[:3])
        if kinds != {"uint8"}:
            raise ConfigError(f"source.geotiff={uri!r} has pixels of {', '.join(sorted(kinds))}: expected 8 bits")

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """A north-up tile around a place; see `manifest.Imagery`.

        The raster is projected to a plane that touches the ground there, so the tile is in metres and true north is up,
        wherever the raster's own grid points. Pixels are averaged where the raster is finer than the tile, and
        interpolated where it is coarser.

        Raises:
            UnreadableImageError: a tile that reaches beyond the raster or over pixels without data.
        """
        from rasterio.enums import Resampling
        from rasterio.transform import from_bounds
        from rasterio.vrt import WarpedVRT

        plane = f"+proj=aeqd +lat_0={latitude!r} +lon_0={longitude!r} +datum=WGS84 +units=m"
        half = metres / 2
        frame = {"crs": plane, "transform": from_bounds(-half, -half, half, half, px, px), "width": px, "height": px}
        finer = self._pixel_m(latitude) < metres / px
        how = Resampling.average if finer else Resampling.bilinear
        with WarpedVRT(self._raster, resampling=how, add_alpha=self._raster.count != 4, **frame) as warped:
            colours = [1, 2, 3] if self._raster.count >= 3 else [1, 1, 1]
            pixels = warped.read(colours)
            missing = float((warped.dataset_mask() == 0).mean())
        if missing:
            raise UnreadableImageError(f"satellite tile: {missing:.0%} of it is outside {self.uri} or has no data")
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def _pixel_m(self, latitude: float) -> float:
        """About how many metres a pixel of the raster is wide."""
        width = abs(float(self._raster.transform.a)) or abs(float(self._raster.transform.b))
        metre = 111_320.0 * np.cos(np.radians(latitude)) if self._raster.crs.is_geographic else 1.0
        return float(width * metre)
