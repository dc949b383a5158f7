"""Addresses of HTTP servers: a host may be a name, an IPv4 or an IPv6 address."""

from __future__ import annotations

_EVERY_INTERFACE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def bare_host(host: str) -> str:
    """Return a host as sockets expect it, an IPv6 address without the brackets that URLs put around it."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def authority(host: str, port: int) -> str:
    """Return HOST:PORT as it stands in a URL, where an IPv6 address is in brackets (RFC 3986, section 3.2.2)."""
    bare = bare_host(host)
    return f"[{bare}]:{port}" if ":" in bare else f"{bare}:{port}"


def http_url(host: str, port: int) -> str:
    """Return the URL of a server that listens on a host; one on every interface is reachable through loopback."""
    bare = bare_host(host)
    return f"http://{authority(_EVERY_INTERFACE.get(bare, bare), port)}"
