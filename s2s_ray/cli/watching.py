"""Verbs that show and export the state of runs, sweeps, releases and deployments."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from s2s_ray.errors import OptionError

app = typer.Typer()

_LONGEST_S = 604_800  # a wait for much longer overflows


@app.command()
def status(
    roots: Annotated[
        list[str] | None, typer.Argument(help="Roots of runs, sweeps and registries; default: the current folder.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Dashboard of a Ray cluster whose deployments to list; default: RAY_DASHBOARD_ADDRESS."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show runs, sweeps, releases and deployments."""
    from dataclasses import asdict

    from s2s_ray.monitoring.inventory import take_inventory
    from s2s_ray.monitoring.status import dashboard_address, deployments, show

    inventories = [take_inventory(root) for root in roots or ["."]]
    dashboard = dashboard_address(address)
    served = deployments(dashboard) if dashboard else None
    if as_json:
        rows = None if served is None else [asdict(item) for item in served]
        typer.echo(json.dumps({"roots": [item.as_dict() for item in inventories], "deployments": rows}, indent=2))
    else:
        from rich.console import Console

        show(inventories, served, Console())


@app.command()
def exporter(
    roots: Annotated[list[str], typer.Argument(help="Roots of runs, sweeps and registries.")],
    host: Annotated[str, typer.Option(help="Address to listen on; the port is unauthenticated.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 9105,
    every_s: Annotated[float, typer.Option(help="Scan interval in seconds.")] = 30.0,
) -> None:
    """Serve metrics of runs, sweeps, releases and checkpoints to Prometheus until Ctrl-C."""
    import signal
    import threading
    from contextlib import ExitStack

    from s2s_ray.monitoring.exporter import exporting
    from s2s_ray.runtime.addresses import http_url

    if not 1 <= every_s <= _LONGEST_S:
        raise OptionError(f"--every-s {every_s:g}: expected seconds, from 1 to {_LONGEST_S}, a week")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with ExitStack() as stack:
        try:
            collector = stack.enter_context(exporting(roots, host, port))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OptionError(f"--host {host} --port {port}: cannot listen there ({reason})") from None
        typer.echo(f"Serving metrics for {', '.join(roots)} at {http_url(host, port)}/metrics; press Ctrl-C to stop")
        while not stop.wait(every_s):
            collector.scan()
