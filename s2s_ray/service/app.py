"""`serve run s2s_ray.service.app:build registry=URI name=NAME`, or `serve deploy serve/config.yaml`."""

# No `from __future__ import annotations` here: Serve recognises the typed argument of `build` by its annotation,
# and would hand over a plain dictionary if that were a string.

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from s2s_ray.service.http.ingress import Ingress
from s2s_ray.service.replicas.models import SatelliteEmbedding, StreetEmbedding, Synthesis
from s2s_ray.service.replicas.search import Search
from s2s_ray.service.rollout.served import resolve
from s2s_ray.service.settings import ModelScaling, Scaling, ServeArgs

# Behind HAProxy calls travel by gRPC (s2s_ray.service.deploy.haproxy). There, Serve's own choice by queue lengths gave
# one of two replicas five times the requests of the other.
IN_TURN = RequestRouterConfig(
    request_router_class="ray.serve.experimental.round_robin_router:RoundRobinRouter"  # type: ignore[arg-type]  # a path, which its validator takes
)


def build(args: ServeArgs) -> Application:
    """The application that serves one release at a time.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: what is to be served is not there, or
            the index is of another checkpoint.
    """
    resolve(args)  # a deployment that cannot work is refused here, with a sentence
    street = _model(StreetEmbedding, args.street, args).bind(args, args.street)
    satellite = _model(SatelliteEmbedding, args.satellite, args).bind(args, args.satellite)
    synthesis = _model(Synthesis, args.synthesis, args).bind(args, args.synthesis)
    search = serve.deployment(**_options("Search", args.search, args))(Search).bind(args)
    ingress = serve.deployment(**_options("Ingress", args.ingress, args))(Ingress)
    return ingress.bind(args, street, satellite, synthesis, search)


def _model(replica: type, scaling: ModelScaling, args: ServeArgs) -> serve.Deployment:
    batching = {"max_batch": scaling.max_batch, "batch_wait_s": scaling.batch_wait_s}
    options = _options(replica.__name__, scaling, args)
    return serve.deployment(**options, user_config=batching, request_router_config=IN_TURN)(replica)


def _options(name: str, scaling: Scaling, args: ServeArgs) -> dict[str, Any]:
    return {
        "name": name,
        "ray_actor_options": {"num_cpus": scaling.num_cpus, "num_gpus": scaling.num_gpus},
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
            "look_back_period_s": scaling.look_back_s,
        },
        "max_ongoing_requests": scaling.max_ongoing_requests,
        "max_queued_requests": scaling.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": args.retry_after_s},
        "health_check_period_s": 2,  # how a replica that died is noticed; what waits for it waits for this, too
        # A rolling update starts the new replica first: one replica alone would leave a gap.
        "max_surge_percent": 100,
    }
