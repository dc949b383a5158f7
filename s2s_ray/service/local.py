"""The service on the connected Ray cluster for the duration of a block: for one machine, tests and the demo."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from ray import serve
from ray.serve.schema import LoggingConfig

from s2s_ray.errors import NotReadyError
from s2s_ray.runtime.addresses import authority, bare_host, http_url
from s2s_ray.service.app import build
from s2s_ray.service.settings import ServeArgs

APPLICATION = "s2s"
READY_S = 120.0


@contextmanager
def serving(args: ServeArgs, host: str, port: int) -> Iterator[str]:
    """Serve a release, and yield the base URL once it is ready.

    Raises:
        RegistryError, StorageError, CheckpointError, ReferenceIndexError: as `build`.
        NotReadyError: Serve cannot listen on that address, a deployment cannot start, or the service does not become
            ready in time.
    """
    application = build(args)
    host = bare_host(host)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    try:
        serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly", logging_config=quiet)
    except RuntimeError as error:  # as RayTaskError, with the traceback of the proxy in the message
        raise NotReadyError(f"Serve could not start on {authority(host, port)}: {_last_line(str(error))}") from error
    try:
        try:
            serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)
        except RuntimeError as error:
            raise NotReadyError(f"the service could not start: {_reason(error)}") from error
        url = http_url(host, port)
        _wait_until_ready(url)
        yield url
    finally:
        serve.delete(APPLICATION)  # not `serve.shutdown`: a shared cluster may run other applications


def _reason(error: RuntimeError) -> str:
    """Return why an application could not be deployed; Serve's error names the deployments without the reasons."""
    application = serve.status().applications.get(APPLICATION)
    deployments = application.deployments.items() if application else ()
    reasons = [
        f"{name}: {_last_line(deployment.message)}"
        for name, deployment in deployments
        if deployment.status == "DEPLOY_FAILED"
    ]
    return "; ".join(reasons) or str(error)


def _last_line(text: str) -> str:
    """Return the last line of a traceback, which is its message."""
    return text.strip().splitlines()[-1].strip() if text.strip() else "unknown reason"


def _wait_until_ready(url: str) -> None:
    deadline = time.monotonic() + READY_S
    state = "no response"
    with httpx2.Client(base_url=url, timeout=10, trust_env=False) as http:
        while time.monotonic() < deadline:
            try:
                response = http.get("/readyz")
                if response.status_code == 200:
                    return
                state = response.text
            except httpx2.TransportError as error:
                state = str(error)
            time.sleep(0.1)
    raise NotReadyError(f"the service on {url} was not ready within {READY_S:.0f} s: {state}")
