"""`serve run serve.app:build registry=URI name=NAME`, or `serve deploy serve/config.yaml`."""

# No `from __future__ import annotations` here: Serve recognises the typed argument of `build` by its annotation,
# and would hand over a plain dictionary if that were a string.

from typing import Any

from ray import serve
from ray.serve import Application

from s2s_ray import registry, storage
from s2s_ray.checkpoint import model_config, read_meta
from s2s_ray.data.views import ViewGeometry
from s2s_ray.index import read_info
from serve.deployments import SatelliteEmbedding, Search, StreetEmbedding, Synthesis
from serve.ingress import Ingress
from serve.schemas import (
    IndexDescription,
    Limits,
    ModelInfo,
    ModelScaling,
    Scaling,
    ServeArgs,
    ServedRelease,
    finite,
)


def build(args: ServeArgs) -> Application:
    """The application that serves one release.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: what is to be served is not there, or
            the index is of another checkpoint.
    """
    release = resolve(args)
    limits = Limits.of(args)
    street = _model(StreetEmbedding, args.street, args).bind(release, args.device, args.threads)
    satellite = _model(SatelliteEmbedding, args.satellite, args).bind(release, args.device, args.threads)
    synthesis = _model(Synthesis, args.synthesis, args).bind(release, args.device, args.threads)
    search = serve.deployment(**_options("Search", args.search, args))(Search).bind(release, args.threads)
    ingress = serve.deployment(**_options("Ingress", args.ingress, args))(Ingress)
    return ingress.bind(release, limits, args.decode_threads, street, satellite, synthesis, search)


def resolve(args: ServeArgs) -> ServedRelease:
    """What the arguments ask for, read once, so that all deployments serve the same. Raises as `build` does."""
    if args.registry is not None and args.name is not None:
        found = registry.resolve(storage.absolute(args.registry), args.name, args.release)
        if found.index_uri is None:
            raise registry.RegistryError(
                f"registry {args.registry}: release {found.id!r} of {args.name!r} has no index; attach one first"
            )
        checkpoint, index, mark, release = found.checkpoint_uri, found.index_uri, found.fingerprint, found.id
    else:
        assert args.checkpoint is not None
        assert args.index is not None, "ServeArgs has one or the other"
        checkpoint, index = storage.absolute(args.checkpoint), storage.absolute(args.index)
        mark = registry.fingerprint(checkpoint)
        release = registry.release_id(read_meta(checkpoint), mark)
    meta, info = read_meta(checkpoint), read_info(index)
    config = model_config(meta, checkpoint)
    info.require(config.descriptor_size, mark)
    geometry = ViewGeometry.of_checkpoint(config, meta)
    description = ModelInfo(
        release=release,
        run=meta.get("run"),
        step=meta.get("step"),
        epoch=meta.get("epoch"),
        metrics=finite(meta.get("metrics") or {}),
        height=config.height,
        width=config.width,
        descriptor_size=config.descriptor_size,
        panorama_rows=geometry.panorama_rows,
        index=IndexDescription(kind=info.kind, count=info.count, dataset=info.dataset, split=info.split),
    )
    return ServedRelease(release, checkpoint, index, info.count, geometry, description)


def _model(replica: type, scaling: ModelScaling, args: ServeArgs) -> serve.Deployment:
    batching = {"max_batch": scaling.max_batch, "batch_wait_s": scaling.batch_wait_s}
    return serve.deployment(**_options(replica.__name__, scaling, args), user_config=batching)(replica)


def _options(name: str, scaling: Scaling, args: ServeArgs) -> dict[str, Any]:
    return {
        "name": name,
        "ray_actor_options": {"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
        },
        "max_ongoing_requests": scaling.max_ongoing_requests,
        "max_queued_requests": scaling.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": args.retry_after_s},
        # A rolling update starts the new replica first: one replica alone would leave a gap.
        "max_surge_percent": 100,
    }
