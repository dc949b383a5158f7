"""The verb that serves a release on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from s2s_ray.errors import OptionError

app = typer.Typer()


@app.command()
def serve(
    registry: Annotated[
        str | None, typer.Option(help="Root of the registry: a directory or an object-store URI.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the model in the registry.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; give tokens if it is not loopback (docs/service.md).")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    settings: Annotated[
        str | None, typer.Option(help="YAML file with more settings: those below `args` in serve/config.yaml.")
    ] = None,
    haproxy: Annotated[
        bool, typer.Option(help="Use Ray's HAProxy instead of its Python proxy; it adds less latency.")
    ] = False,
) -> None:
    """Serve the current release of NAME over HTTP, and follow promotions."""
    import os
    import signal
    import tempfile
    import threading
    from contextlib import ExitStack

    from s2s_ray.service.settings import ServeArgs

    if settings is None and (registry is None or name is None):
        raise OptionError("give --registry and --name, or --settings with a release")
    given = {key: value for key, value in (("registry", registry), ("name", name)) if value is not None}
    args = ServeArgs.parse({**({} if settings is None else _read(settings)), **given})
    with ExitStack() as stack:
        if haproxy:
            from s2s_ray.service.deploy.haproxy import environment

            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="s2s-haproxy-"))
            os.environ.update(environment(Path(folder), free_ports=True))  # Ray reads it once, when it is imported
        from s2s_ray.runtime.cluster import ray_cluster

        stack.enter_context(ray_cluster())
        from s2s_ray.service.local import serving

        with serving(args, host, port) as url:
            typer.echo(f"serving {args.name or args.checkpoint} on {url} (API: {url}/docs); press Ctrl-C to stop")
            stop = threading.Event()
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stop.set())
            stop.wait()


def _read(path: str) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises OptionError."""
    from s2s_ray.config import notation

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise OptionError(f"--settings {path}: {getattr(error, 'strerror', None) or error}") from None
    tree = notation.parse(text, f"--settings {path}", OptionError)
    if not isinstance(tree, dict | None):
        raise OptionError(f"--settings {path} holds {type(tree).__name__}, expected a mapping")
    return tree or {}
