"""The routes for those who operate the service: liveness, readiness and metrics."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Response
from fastapi.responses import JSONResponse

from s2s_ray.service.http import openapi
from s2s_ray.service.http.metrics import scrape
from s2s_ray.service.http.route import StrictRoute
from s2s_ray.service.http.security import Api, authorized
from s2s_ray.service.schemas import Health, Readiness

router = APIRouter(tags=["service"], route_class=StrictRoute)


@router.get("/healthz")
async def healthz(api: Api) -> Health:
    """Report that the ingress is alive."""
    return Health(status="ok", release=None if api.stamp is None else api.stamp.id)


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not ready"}})
async def readyz(api: Api) -> Response:
    """Report whether a release is loaded on every deployment that may not scale to zero."""
    rollout = api.service.rollout
    ready = await rollout.ready()
    state = Readiness(
        status="ready" if ready else "not ready",
        release=None if rollout.current is None else rollout.current.id,
        next=rollout.next,
        fault=rollout.fault,
        deployments=await rollout.replicas() if rollout.current else {},
    )
    return JSONResponse(state.model_dump(), 200 if ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    dependencies=[Depends(authorized)],
    responses={
        **openapi.content("Prometheus' text format", **{"text/plain": {}}),
        **openapi.errors(openapi.UNAUTHORIZED),
    },
)
async def metrics() -> Response:
    """Return the metrics of all replicas on all nodes of the cluster."""
    return Response(await scrape(), media_type="text/plain; version=0.0.4")
