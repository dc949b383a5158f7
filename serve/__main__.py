"""`python -m serve --registry URI --name NAME`: serve a release on this machine until Ctrl-C."""

from __future__ import annotations

import signal
import threading
from typing import Annotated

import typer

from s2s_ray.cli import run
from s2s_ray.cluster import ray_cluster


def main(
    registry: Annotated[str, typer.Option(help="Root of the registry: a directory or an object-store URI.")],
    name: Annotated[str, typer.Option(help="Name of the model in the registry.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the port has no protection of its own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
) -> None:
    """Serve the current release of NAME over HTTP."""
    with ray_cluster():
        from serve.local import serving

        with serving(registry, name, host, port) as url:
            typer.echo(f"serving {name} on {url} (interface: {url}/docs); Ctrl-C ends it")
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            stop.wait()


if __name__ == "__main__":
    run("serve", lambda: typer.run(main))
