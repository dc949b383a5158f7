"""The service on the connected Ray cluster for the length of a block: for one machine, tests and the demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve
from ray.serve.schema import LoggingConfig

from serve.app import build
from serve.schemas import ServeArgs

APPLICATION = "s2s"


@contextmanager
def serving(registry: str, name: str, host: str, port: int) -> Iterator[str]:
    """Serve the current release of a name; gives the base URL once all deployments are ready.

    Raises: what `build` raises.
    """
    application = build(ServeArgs(registry=registry, name=name))
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly", logging_config=quiet)
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)
        yield f"http://{host}:{port}"
    finally:
        serve.delete(APPLICATION)  # not all of Serve: on a cluster of others it may not be ours alone
