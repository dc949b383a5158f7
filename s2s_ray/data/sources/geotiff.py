"""Satellite tiles cut from a GeoTIFF of any projection and pixel size. Needs rasterio."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from s2s_ray import storage
from s2s_ray.data.sources.bands import colour_bands
from s2s_ray.data.sources.files import require_source
from s2s_ray.errors import ConfigError, PriorError, UnreadableImageError
from s2s_ray.geo.images import Pixels, Seen
from s2s_ray.geo.offsets import east_north
from s2s_ray.geo.prior import Box


class GeoTiff:
    """A georeferenced raster (GeoTIFF, VRT, or anything else that GDAL reads) with 8-bit bands, as `Bands` finds them.

    Raises:
        ConfigError: rasterio is not installed, or the raster cannot be used.
        StorageError: a remote raster cannot be read.
    """

    def __init__(self, uri: str) -> None:
        try:
            import rasterio
        except ImportError:
            raise ConfigError(
                f"source.geotiff={uri!r} needs rasterio, which is not installed: pip install 's2s-ray[geo]'"
            ) from None
        self.uri = uri
        try:
            source = str(storage.local_path(uri)) if storage.is_local(uri) else self._in_memory(uri)
            self._raster: Any = rasterio.open(source)
        except (rasterio.errors.RasterioError, rasterio.errors.CRSError) as error:
            raise ConfigError(f"source.geotiff={uri!r} cannot be read: {error}") from None
        if self._raster.crs is None:
            raise ConfigError(f"source.geotiff={uri!r} has no coordinate system: georeference it first")
        if not (self._raster.crs.is_geographic or self._raster.crs.is_projected):
            raise ConfigError(
                f"source.geotiff={uri!r} has a local coordinate system: reproject it to a geographic or projected one"
            )
        self._crs = self._continuous_crs()
        self._bands = colour_bands(self._raster, uri)

    def cut(self, latitude: float, longitude: float, metres: float, px: int) -> Pixels:
        """Cut a north-up tile around a position; see `schema.Imagery`.

        The raster is projected to the plane that touches the Earth there, so the tile is in metres and true north is
        up, whatever the orientation of the raster's own grid. Pixels are averaged if the raster is finer than the tile,
        and interpolated if it is coarser.

        Raises:
            UnreadableImageError: a tile that extends beyond the raster, over pixels without data or over damaged ones.
            StorageError: the raster has disappeared.
        """
        pixels, seen = self.cut_seen(latitude, longitude, metres, px)
        if not seen.all():
            raise UnreadableImageError(
                f"satellite tile: {1 - seen.mean():.0%} of it is outside {self.uri} or has no data"
            )
        return pixels

    def cut_seen(self, latitude: float, longitude: float, metres: float, px: int) -> tuple[Pixels, Seen]:
        """Cut a tile as `cut` does, and say which of its pixels the raster has.

        Raises:
            UnreadableImageError: a tile over damaged pixels.
            StorageError: the raster has disappeared.
        """
        from rasterio.enums import Resampling
        from rasterio.errors import RasterioError
        from rasterio.transform import from_bounds
        from rasterio.vrt import WarpedVRT

        plane = f"+proj=aeqd +lat_0={float(latitude)!r} +lon_0={float(longitude)!r} +datum=WGS84 +units=m"
        half = metres / 2
        frame = {
            "src_crs": self._crs,
            "crs": plane,
            "transform": from_bounds(-half, -half, half, half, px, px),
            "width": px,
            "height": px,
        }
        finer = self._pixel_m(latitude) < metres / px
        how = Resampling.average if finer else Resampling.bilinear
        missing = np.zeros((px, px), np.bool_)
        tiles = []
        try:
            for view in self._bands.views:
                with WarpedVRT(view.raster, resampling=how, add_alpha=not view.has_alpha, **frame) as warped:
                    tiles.append(warped.read(list(self._bands.colours)))
                    missing |= warped.dataset_mask() == 0
        except RasterioError as error:
            require_source(self.uri)
            raise UnreadableImageError(
                f"satellite tile: {self.uri} cannot be read there ({error.__cause__ or error})"
            ) from None
        return np.ascontiguousarray(tiles[0].transpose(1, 2, 0)), ~missing

    @property
    def bounds(self) -> Box | None:
        """The box around the raster; None if its corners have no position."""
        from rasterio.errors import RasterioError
        from rasterio.warp import transform_bounds

        try:
            west, south, east, north = transform_bounds(self._raster.crs, "EPSG:4326", *self._raster.bounds)
            if east - west >= 360:
                west, east = -180.0, 180.0
            west, east = (edge if abs(edge) <= 180 else (edge + 180) % 360 - 180 for edge in (west, east))
            return Box(west, max(south, -90.0), east, min(north, 90.0))
        except (RasterioError, PriorError):
            return None

    def covers(self, positions: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions, latitudes and longitudes in degrees, N 2, lie on the raster, with data or not."""
        crs = self._raster.crs.to_wkt() if self._crs is None else self._crs
        to_raster = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
        x, y = to_raster.transform(positions[:, 1], positions[:, 0])  # infinite where the projection has no point
        inside: NDArray[np.bool_] = np.isfinite(x) & np.isfinite(y)
        x, y = np.where(inside, x, 0.0), np.where(inside, y, 0.0)
        a, b, c, d, e, f = (~self._raster.transform)[:6]
        columns, rows = a * x + b * y + c, d * x + e * y + f
        inside &= (columns >= 0) & (columns <= self._raster.width) & (rows >= 0) & (rows <= self._raster.height)
        return inside

    def offsets(self, latitude: float, longitude: float, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return metres east and true north of a position, N 2, for latitudes and longitudes in degrees, N 2."""
        return east_north(latitude, longitude, *positions.T)

    def _continuous_crs(self) -> str | None:
        """Return the coordinate system with longitudes as a raster across the date line has them; None for others."""
        west, _, east, _ = self._raster.bounds
        if not self._raster.crs.is_geographic or (west >= -180 and east <= 180):
            return None
        return f"{self._raster.crs.to_proj4()} +lon_wrap={(west + east) / 2:g}"

    def _in_memory(self, uri: str) -> str:
        """Read a remote raster, retrying as for any file, and return its name in GDAL's memory."""
        from rasterio.io import MemoryFile

        self._memory = MemoryFile(storage.read_bytes(uri))
        return str(self._memory.name)

    def _pixel_m(self, latitude: float) -> float:
        """Return the approximate width of a pixel of the raster in metres."""
        width = abs(float(self._raster.transform.a)) or abs(float(self._raster.transform.b))
        metre = 111_320.0 * np.cos(np.radians(latitude)) if self._raster.crs.is_geographic else 1.0
        return float(width * metre)
