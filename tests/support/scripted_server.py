"""A server that sends what a test has written down, byte for byte, and keeps what it was sent."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

CUT = b""
"""Instead of a response: the connection is closed."""


def response(status: int, body: bytes = b"", **headers: str) -> bytes:
    """Return the bytes of a response; underscores in the names of headers stand for hyphens."""
    lines = {"Content-Length": str(len(body)), "Connection": "close"}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode() + body


class Script:
    """The responses that are left, and the requests that have come."""

    def __init__(self, responses: Sequence[bytes]) -> None:
        self.left = list(responses)
        self.requests: list[bytes] = []
        self.url = ""


@contextmanager
def scripted(*responses: bytes, family: socket.AddressFamily = socket.AF_INET) -> Iterator[Script]:
    """Serve each response once, in their order, on loopback; further connections are closed at once."""
    script = Script(responses)
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=family) as listener:
        port = listener.getsockname()[1]
        script.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # the test is over
                    return
                with connection, suppress(ConnectionError):
                    request = _read(connection)
                    if request:
                        script.requests.append(request)
                        connection.sendall(script.left.pop(0) if script.left else CUT)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield script
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _read(connection: socket.socket) -> bytes:
    """Return a whole request, or less if the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data and (chunk := connection.recv(65_536)):
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    while length and len(body) < int(length[1]) and (chunk := connection.recv(65_536)):
        body += chunk
    return head + b"\r\n\r\n" + body if head else b""
