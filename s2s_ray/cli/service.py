"""The verb that serves a release on this machine."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def serve(
    registry: Annotated[
        str | None, typer.Option(help="Root of the registry: a directory or an object-store URI.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the registry.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; beyond loopback give tokens (docs/service.md).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    settings: Annotated[
        Path | None, typer.Option(help="YAML with more of what serve/config.yaml has below `args`.")
    ] = None,
    haproxy: Annotated[
        bool, typer.Option(help="Answer through Ray's HAProxy, which adds less to a request than its Python proxy.")
    ] = False,
) -> None:
    """Serve the current release of NAME over HTTP, and whichever becomes current."""
    import yaml

    tree = yaml.safe_load(settings.read_text(encoding="utf-8")) if settings else None
    given = {key: value for key, value in (("registry", registry), ("name", name)) if value is not None}
    with ExitStack() as stack:
        if haproxy:
            from s2s_ray.service.deploy.haproxy import environment

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s2s-haproxy-"))
            os.environ.update(environment(Path(folder), free_ports=True))  # before Ray is imported, which reads it once
        from s2s_ray.runtime.cluster import ray_cluster

        stack.enter_context(ray_cluster())
        from s2s_ray.service.local import serving
        from s2s_ray.service.settings import ServeArgs

        args = ServeArgs.model_validate({**(tree or {}), **given})
        with serving(args, host, port) as url:
            typer.echo(f"serving {args.name or args.checkpoint} on {url} (interface: {url}/docs); Ctrl-C ends it")
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            stop.wait()
