"""`s2s status`: inventories, and the deployments of Ray Serve, as tables in a terminal."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2s_ray.config.protocol import RECALL
from s2s_ray.errors import ClusterError
from s2s_ray.monitoring.inventory import Inventory, RunStatus, SweepStatus
from s2s_ray.runtime.cluster import auth_token
from s2s_ray.runtime.terminal import as_typed

ADDRESS_VARIABLES = ("RAY_DASHBOARD_ADDRESS", "RAY_API_SERVER_ADDRESS")
_APPLICATIONS = "/api/serve/applications/"  # Ray Serve's REST API, `ray.serve.schema.ServeInstanceDetails`
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class DeploymentStatus:
    """The state of one deployment of an application of Ray Serve."""

    application: str
    release: str | None
    deployment: str
    state: str
    replicas: int
    target: int
    message: str


def dashboard_address(given: str | None) -> str | None:
    """Return the given address, or the one that Ray's own commands would use, or None."""
    return given or next((os.environ[name] for name in ADDRESS_VARIABLES if os.environ.get(name)), None)


def deployments(address: str) -> list[DeploymentStatus]:
    """Return the deployments that Ray Serve runs on a cluster.

    Args:
        address: URL of the cluster's dashboard.

    Raises:
        ClusterError: the dashboard cannot be reached, refuses the request, or responds with something else.
    """
    import httpx2  # not needed for local folders

    token = auth_token()
    headers = {"authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx2.get(address.rstrip("/") + _APPLICATIONS, headers=headers, timeout=_TIMEOUT_S)
        if response.status_code in (401, 403):
            raise ClusterError(
                f"{address} refused the request ({response.text.strip()}): set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
                response.status_code,
            )
        if response.status_code != 200:
            reason = f"HTTP {response.status_code}: {response.text.strip()[:200]}"
            raise ClusterError(f"no list of deployments from {address} ({reason})", response.status_code)
        return [_deployment(*item) for item in _each(response.json())]
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ClusterError(f"no response from {address}: {error}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(f"{address} is not the dashboard of a Ray cluster ({error})") from None


def show(inventories: list[Inventory], served: list[DeploymentStatus] | None, console: Console) -> None:
    """Print tables of inventories and deployments; tables without rows are left out.

    Args:
        inventories: one for each root.
        served: the deployments; None if no cluster was queried.
        console: the terminal.
    """
    for inventory in inventories:
        console.print(as_typed(inventory.root, style="bold"))
        tables = [table for table in (_runs(inventory), _sweeps(inventory), _names(inventory)) if table.row_count]
        for table in tables:
            console.print(table)
        if not tables:
            console.print("  no run, sweep or registry")
        for fault in inventory.faults:
            console.print(Text("not readable: ", style="red") + as_typed(fault))
    if served is not None:
        console.print(_served(served) if served else "Ray Serve runs no application")


def _runs(inventory: Inventory) -> Table:
    table = Table("run", "epochs", "step", "R@1", "best", "pairs/s", "checkpoint", "state", title="runs")
    for run in inventory.runs:
        written = run.checkpoint_time
        table.add_row(
            as_typed(inventory.path(run.uri)),
            f"{run.epochs_done} of {run.epochs}",
            str(run.step),
            _percent(run.recall),
            _percent(run.best_recall),
            "" if run.pairs_per_second is None else f"{run.pairs_per_second:.1f}",
            "none" if written is None else f"step {run.checkpoint_step}, {age(time.time() - written)} ago",
            _state(run),
        )
    return table


def _state(run: RunStatus) -> Text:
    if run.diverged is not None:
        return as_typed(f"diverged at {run.diverged}", style="red")
    return Text("complete" if run.complete else "unfinished")


def _best(sweep: SweepStatus) -> Text:
    if sweep.metric == RECALL or sweep.best_value is None:
        return Text(_percent(sweep.best_recall))
    return as_typed(f"{sweep.best_value:.4g} {sweep.metric}")


def _sweeps(inventory: Inventory) -> Table:
    table = Table("sweep", "finished", "failed", "running", "best R@1", "of trial", title="sweeps")
    for sweep in inventory.sweeps:
        finished = sweep.states["complete"] + sweep.states["failed"]
        table.add_row(
            as_typed(inventory.path(sweep.uri)),
            f"{finished} of {sweep.requested}",
            str(sweep.states["failed"]),
            str(sweep.states["running"]),
            _best(sweep),
            "" if sweep.best_trial is None else str(sweep.best_trial),
        )
    return table


def _names(inventory: Inventory) -> Table:
    table = Table("name", "releases", "current", "promoted", title="releases")
    for name in inventory.names:
        promoted = "" if name.promoted is None else f"{age(time.time() - name.promoted)} ago"
        path, current = as_typed(inventory.path(name.uri)), as_typed(name.current or "none")
        table.add_row(path, str(name.releases), current, promoted)
    return table


def _served(served: list[DeploymentStatus]) -> Table:
    table = Table("application", "serves", "deployment", "state", "replicas", "", title="deployments")
    for item in served:
        row = (item.application, item.release or "", item.deployment, item.state, f"{item.replicas} of {item.target}")
        table.add_row(*(as_typed(text) for text in (*row, item.message)))
    return table


def age(seconds: float) -> str:
    """Return a duration in the unit that suits it: 40 s, 12 min, 5 h, 3 d."""
    for unit, length, limit in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172800)):
        if seconds < limit:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{fraction:.1%}"


def _each(details: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str, dict[str, Any]]]:
    for name, application in (details.get("applications") or {}).items():
        for deployment, state in (application.get("deployments") or {}).items():
            yield name, application, deployment, state


def _deployment(name: str, application: dict[str, Any], deployment: str, state: dict[str, Any]) -> DeploymentStatus:
    args = (application.get("deployed_app_config") or {}).get("args") or {}
    release = args.get("release") or args.get("name") or args.get("checkpoint")
    running = sum(replica.get("state") == "RUNNING" for replica in state.get("replicas") or [])
    target = state.get("target_num_replicas") or 0
    return DeploymentStatus(
        name, release, deployment, str(state["status"]), running, target, state.get("message") or ""
    )
