"""The service on the connected Ray cluster for the length of a block: for one machine, tests and the demo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve

from serve.app import build
from serve.schemas import ServeArgs


@contextmanager
def serving(registry: str, name: str, host: str, port: int) -> Iterator[str]:
    """Serve the current release of a name; gives the base URL once all deployments are ready.

    Raises: what `build` raises.
    """
    application = build(ServeArgs(registry=registry, name=name))
    serve.start(http_options={"host": host, "port": port}, proxy_location="HeadOnly")
    try:
        serve.run(application, name="s2s", route_prefix="/")
        yield f"http://{host}:{port}"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]
