"""Free ports of the loopback interface."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row, below the ranges of the system and of Ray's workers."""
    for first in range(4000 + os.getpid() % 100 * count, 9900, count):
        with ExitStack() as probes:
            try:
                for port in range(first, first + count):
                    probes.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            return first
    raise AssertionError(f"no {count} free ports in a row")
