"""Where pairs come from: each kind of `source` in the configuration has one class here."""

from __future__ import annotations

from s2s_ray.config import ManifestSourceConfig, SyntheticSourceConfig
from s2s_ray.data.schema import Source


def open_source(config: SyntheticSourceConfig | ManifestSourceConfig) -> Source:
    """The source that a configuration describes. Nothing is read until its records are asked for."""
    # a source's own dependencies load with it
    if isinstance(config, SyntheticSourceConfig):
        from s2s_ray.data.sources.synthetic import SyntheticSource

        return SyntheticSource(config)
    from s2s_ray.data.sources.manifest import ManifestSource

    return ManifestSource(config)
