"""Sources of pairs: one class for each kind of `source` in the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2s_ray.config import CvactSourceConfig, CvusaSourceConfig, SourceConfig, SyntheticSourceConfig
from s2s_ray.data.schema import Source, Split
from s2s_ray.errors import InputError
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
