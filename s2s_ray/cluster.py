"""The Ray cluster a command runs on: the one it was submitted to, or a private one on this machine."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray


@contextmanager
def ray_cluster(cpus: int | None = None) -> Iterator[None]:
    """Ray, connected, for the length of the block.

    Inside a job, or where `RAY_ADDRESS` is set, it is that cluster; where Ray is connected already, nothing is
    done. Otherwise a cluster is started on this machine, closed to others by a token of its own (Ray would write
    one to the home directory), and stopped at the end.

    Args:
        cpus: CPUs of a cluster started here; default: all.
    """
    if ray.is_initialized():
        yield
        return
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        if os.environ["RAY_AUTH_MODE"] == "token" and not _has_token():
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        ray.init(num_cpus=cpus, include_dashboard=False, configure_logging=False)
    else:
        ray.init(configure_logging=False)
    try:
        yield
    finally:
        ray.shutdown()


def _has_token() -> bool:
    default = Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")) or default.exists()
