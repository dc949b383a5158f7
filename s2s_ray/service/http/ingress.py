"""The deployment that receives the requests: it decodes and prepares images, and calls the other deployments."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve

from s2s_ray.service.http.application import create_api
from s2s_ray.service.http.exchange import Service
from s2s_ray.service.rollout.rollout import Rollout
from s2s_ray.service.rollout.served_release import ServedRelease
from s2s_ray.service.settings import ServeArgs
from s2s_ray.service.telemetry import IngressMetrics, log_in_json


@serve.ingress()
class Ingress:
    """The application over the handles of the other deployments."""

    def __init__(self, args: ServeArgs, street: Any, satellite: Any, synthesis: Any, search: Any) -> None:
        started = time.monotonic()
        torch.set_num_threads(1)
        log_in_json(args.access_log)
        metrics = IngressMetrics()
        plain = {"request_serialization": "pickle", "response_serialization": "pickle"}  # faster than cloudpickle
        deployments = {"street": street, "satellite": satellite, "synthesis": synthesis, "search": search}
        handles = {name: handle.options(**plain) for name, handle in deployments.items()}

        def on_change(_release: ServedRelease, previous: str | None) -> None:
            if previous is None:
                metrics.started(time.monotonic() - started)
            else:
                metrics.changed(previous)

        def on_poll(release: ServedRelease) -> None:
            metrics.serving(release.id, release.description.index.count)

        decoders = ThreadPoolExecutor(args.decode_threads, thread_name_prefix="decode")
        self._service = Service(args, Rollout(args, handles, on_change, on_poll), handles, decoders, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application; Serve calls this after the constructor."""
        return create_api(self._service)
