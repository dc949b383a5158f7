"""A release as the ingress uses it: how images become its views, and its public description."""

from __future__ import annotations

from dataclasses import dataclass, replace

from s2s_ray.geo.views import ViewGeometry
from s2s_ray.secrets import masked_address
from s2s_ray.service.rollout.releases import ReleaseKey, locate
from s2s_ray.service.schemas import IndexDescription, ModelInfo, finite
from s2s_ray.service.settings import ServeArgs


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release as the ingress uses it."""

    key: ReleaseKey
    geometry: ViewGeometry
    description: ModelInfo

    @property
    def id(self) -> str:
        return self.key.id


def resolve(args: ServeArgs, release: str | None = None) -> ServedRelease:
    """Return the release that the settings name, or another release of the same name. Raises what `locate` raises."""
    key, meta, config, info = locate(args, release)
    geometry = ViewGeometry.of_checkpoint(config, meta, key.checkpoint_uri)
    if args.default_heading is not None:
        heading = None if args.default_heading == "unknown" else args.default_heading
        geometry = replace(geometry, default_heading=heading)
    dataset = masked_address(info.dataset)  # earlier versions accepted a password in it
    description = ModelInfo(
        release=key.id,
        run=meta.get("run"),
        step=meta.get("step"),
        epoch=meta.get("epoch"),
        metrics=finite(meta.get("metrics") or {}),
        height=config.height,
        width=config.width,
        descriptor_size=config.descriptor_size,
        synthesizes=config.synthesizes,
        panorama_rows=geometry.panorama_rows,
        elevations=geometry.span,
        default_heading=geometry.default_heading,
        calibrated=key.calibration_uri is not None,
        index=IndexDescription(kind=info.kind, count=info.count, dataset=dataset, split=info.split),
    )
    return ServedRelease(key, geometry, description)
