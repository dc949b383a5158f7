"""The Serve application.

serve run s2s_ray.service.app:build registry=URI name=NAME
serve deploy serve/config.yaml
"""

# No `from __future__ import annotations` here: Serve recognises the typed argument of `build` by its annotation,
# and would pass a plain dictionary if that were a string.

from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import RequestRouterConfig

from s2s_ray.service.http.ingress import Ingress
from s2s_ray.service.replicas.models import SatelliteEmbedding, StreetEmbedding, Synthesis
from s2s_ray.service.replicas.search import Search
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.settings import ModelScaling, Scaling, ServeArgs

# Behind HAProxy, calls between deployments use gRPC (s2s_ray.service.deploy.haproxy). There, Serve's default router by
# queue lengths sent five times as many requests to one of two replicas as to the other.
ROUND_ROBIN = RequestRouterConfig(
    request_router_class="ray.serve.experimental.round_robin_router:RoundRobinRouter"  # type: ignore[arg-type]  # its validator accepts an import path
)


def build(args: ServeArgs) -> Application:
    """Build the application, which serves one release at a time.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: the release does not exist or cannot be
            read, or the index was built with another checkpoint.
    """
    args = args.located()  # replicas may run in another directory
    resolve(args)  # reports a release that cannot be served here, rather than in each replica
    street = _model(StreetEmbedding, args.street, args).bind(args, args.street)
    satellite = _model(SatelliteEmbedding, args.satellite, args).bind(args, args.satellite)
    synthesis = _model(Synthesis, args.synthesis, args).bind(args, args.synthesis)
    search = serve.deployment(**_options("Search", args.search, args))(Search).bind(args)
    ingress = serve.deployment(**_options("Ingress", args.ingress, args))(Ingress)
    return ingress.bind(args, street, satellite, synthesis, search)


def _model(replica: type, scaling: ModelScaling, args: ServeArgs) -> serve.Deployment:
    batching = {"max_batch": scaling.max_batch, "batch_wait_s": scaling.batch_wait_s}
    options = _options(replica.__name__, scaling, args)
    return serve.deployment(**options, user_config=batching, request_router_config=ROUND_ROBIN)(replica)


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
        "health_check_period_s": 2,  # requests to a dead replica wait until a health check notices it
        # A rolling update starts the new replica first, so that a single replica leaves no gap.
        "max_surge_percent": 100,
    }
