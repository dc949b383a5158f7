"""Verbs that show and export what there is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def status(
    roots: Annotated[list[str] | None, typer.Argument(help="Places of runs, sweeps and registries; default: .")] = None,
    address: Annotated[
        str | None, typer.Option(help="A cluster's dashboard, to list what it serves; default: RAY_DASHBOARD_ADDRESS.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the runs, sweeps, releases and deployments that there are."""
    from dataclasses import asdict

    from rich.console import Console

    from s2s_ray.monitoring.inventory import take_inventory
    from s2s_ray.monitoring.status import dashboard_address, deployments, show

    found = [take_inventory(root) for root in roots or ["."]]
    asked = dashboard_address(address)
    served = deployments(asked) if asked else None
    if as_json:
        rows = None if served is None else [asdict(item) for item in served]
        typer.echo(json.dumps({"roots": [item.as_dict() for item in found], "deployments": rows}, indent=2))
    else:
        show(found, served, Console())


@app.command()
def exporter(
    roots: Annotated[list[str], typer.Argument(help="Places of runs, sweeps and registries.")],
    host: Annotated[
        str, typer.Option(help="Address to listen on; the port has no protection of its own.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 9105,
    every_s: Annotated[float, typer.Option(help="Seconds between two looks at the storage.", min=1.0)] = 30.0,
) -> None:
    """Tell Prometheus of the runs, sweeps, releases and checkpoints at some places, until Ctrl-C."""
    import signal
    import threading

    from s2s_ray.monitoring.exporter import exporting

    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    try:
        with exporting(roots, host, port) as collector:
            typer.echo(f"http://{host}:{port}/metrics tells of {', '.join(roots)}; Ctrl-C ends it")
            while not stop.wait(every_s):
                collector.scan()
    except OSError as error:
        raise typer.BadParameter(f"{host}:{port} cannot be listened on: {error}") from None
