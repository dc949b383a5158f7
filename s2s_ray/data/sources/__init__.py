"""Sources of pairs: one class for each kind of `source` in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2s_ray.config import (
    CvactSourceConfig,
    CvusaSourceConfig,
    ManifestSourceConfig,
    SourceConfig,
    SyntheticSourceConfig,
)
from s2s_ray.data.schema import Imagery, Source, Split
from s2s_ray.errors import ConfigError, InputError
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.uri import Uri


def open_source(config: SourceConfig) -> Source:
    """Return the source that a configuration describes. Nothing is read until its records are needed."""
    # each source imports its own dependencies
    if isinstance(config, SyntheticSourceConfig):
        from s2s_ray.data.sources.synthetic import SyntheticSource

        return SyntheticSource(config)
    if isinstance(config, CvusaSourceConfig):
        from s2s_ray.data.sources.cvusa import CvusaSource

        return CvusaSource(config)
    if isinstance(config, CvactSourceConfig):
        from s2s_ray.data.sources.cvact import CvactSource

        return CvactSource(config)
    from s2s_ray.data.sources.manifest import ManifestSource

    return ManifestSource(config)


def open_imagery(config: SourceConfig) -> Imagery:
    """Return the imagery of a region that a source cuts its tiles from: map tiles, a raster, or the procedural city.

    Raises:
        ConfigError: the tiles of this source are files, or the imagery cannot be used.
        StorageError: it cannot be read.
    """
    if isinstance(config, SyntheticSourceConfig):
        from s2s_ray.data.sources.synthetic import CityImagery

        return CityImagery(config)
    if isinstance(config, ManifestSourceConfig) and config.tiles is not None and config.zoom is not None:
        from s2s_ray.data.sources.map_tiles import MapTiles

        return MapTiles(config.tiles, config.zoom)
    if isinstance(config, ManifestSourceConfig) and config.geotiff is not None:
        from s2s_ray.data.sources.geotiff import GeoTiff

        return GeoTiff(config.geotiff)
    raise ConfigError(
        f"source.kind={config.kind} has no imagery to cut tiles from: set source.tiles or source.geotiff of a manifest "
        "source, or use source.kind=synthetic"
    )


def published_geometry(kind: str, height: int, width: int) -> ViewGeometry:
    """Return how the images of a published data set are treated by default. Raises `InputError` for another kind."""
    # Their images are treated in the same way wherever they are, and no file is read here.
    cvusa, cvact = CvusaSourceConfig(uri=Uri("cvusa")), CvactSourceConfig(uri=Uri("cvact"))
    sources: dict[str, SourceConfig] = {"cvusa": cvusa, "cvact": cvact}
    if kind not in sources:
        raise InputError(f"{kind!r} is not a published data set: expected {' or '.join(sources)}")
    return open_source(sources[kind]).views(height, width)


def published_counts(source: Mapping[str, Any]) -> Mapping[Split, int] | None:
    """Return the numbers of pairs of a published data set by split, or None for any other data set.

    Pairs held out for validation count as training pairs.

    Args:
        source: the source as stored in `dataset.json`.
    """
    if source.get("kind") == "cvusa":
        from s2s_ray.data.sources import cvusa

        return cvusa.PUBLISHED
    if source.get("kind") == "cvact":
        from s2s_ray.data.sources import cvact

        return cvact.PUBLISHED.get(source.get("test", ""))
    return None
