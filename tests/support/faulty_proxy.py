"""A server between a client and the S3 server that spoils some requests on purpose."""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from urllib.parse import urlsplit

Fault = Callable[[str, str], str]
_DENIED = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"


class FaultyProxy:
    """An S3 server's proxy that spoils requests; each connection is served by a thread.

    The next requests of a method are spoiled as `faults` lists for it; after that `choose(method, path)` returns a
    fault or "". `met` counts the faults. The faults listed for `CONDITIONAL` are for the next PUTs with a condition
    (`If-Match` or `If-None-Match`) alone.

    `refuse`: respond with 503. `forbid`: respond with 403, as if the permissions had been taken away. `drop`: close
    the connection without a response. `reset`: reset it. `lose`: forward the request and return half of the
    response (nothing of one to PUT or HEAD). `behead`: return the status line alone. `shorten`: return a
    `Content-Length` without its last digit, and as much of the content. `corrupt`: return the last byte changed.
    `stall`: stay silent until the client gives up. `spoil`: forward a PUT with its last byte changed, as a bad
    network card would.
    """

    def __init__(self, target: str) -> None:
        self.target = urlsplit(target)
        self.faults: dict[str, list[str]] = {"PUT": [], "HEAD": [], "GET": [], "CONDITIONAL": []}
        self.choose: Fault = lambda method, path: ""
        self.met: Counter[str] = Counter()
        self.requests = 0
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self.server = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.endpoint = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()

    def _listen(self) -> None:
        while True:
            client, _ = self.server.accept()
            if self._stopping.is_set():
                client.close()
                return
            thread = threading.Thread(target=self._serve, args=(client,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            client.settimeout(60)
            try:
                request = self._request(client)
                method, path = request.split(b" ", 2)[:2]
                self._answer(client, request, method.decode(), path.decode())
            except (OSError, ValueError):
                return  # the client has gone

    def _answer(self, client: socket.socket, request: bytes, method: str, path: str) -> None:
        with self._lock:
            self.requests += 1
            listed = self.faults["CONDITIONAL"] if method == "PUT" and _has_condition(request) else []
            listed = listed or self.faults.get(method, [])
            fault = listed.pop(0) if listed else self.choose(method, path)
            self.met[fault] += bool(fault)
        if fault == "refuse":
            client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        elif fault == "forbid":
            body = b"" if method == "HEAD" else _DENIED
            head = f"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)
        elif fault == "reset":
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault == "stall":
            while client.recv(1 << 16):  # b"" when the client hangs up
                pass
        elif fault != "drop":
            if fault == "spoil":
                request = request[:-1] + bytes([request[-1] ^ 1])
            answer = self._forward(request)
            client.sendall(_rest(answer, method, fault))

    @staticmethod
    def _request(client: socket.socket) -> bytes:
        data = b""
        while b"\r\n\r\n" not in data:
            data += _some(client)
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        wanted = int(lengths[0].partition(b":")[2]) if lengths else 0
        if b"100-continue" in head.lower() and len(body) < wanted:
            client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts = [body]
        missing = wanted - len(body)
        while missing > 0:
            parts.append(_some(client))
            missing -= len(parts[-1])
        return head + b"\r\nConnection: close\r\n\r\n" + b"".join(parts)

    def _forward(self, request: bytes) -> bytes:
        assert self.target.hostname is not None
        with socket.create_connection((self.target.hostname, self.target.port or 80), timeout=60) as server:
            server.sendall(request.replace(b"Expect: 100-continue\r\n", b""))
            parts = []
            while chunk := server.recv(1 << 16):
                parts.append(chunk)
        return b"".join(parts)

    def stop(self) -> None:
        self._stopping.set()
        socket.create_connection(("127.0.0.1", self.server.getsockname()[1])).close()
        self._listener.join()
        self.server.close()
        for thread in self._threads:
            thread.join()


def _rest(answer: bytes, method: str, fault: str) -> bytes:
    """Return the part of a response that reaches the client."""
    if fault == "behead":
        return answer[: answer.index(b"\r\n") + 2]
    if fault == "shorten":
        return re.sub(rb"(?i)(\r\ncontent-length: ?\d+)\d\r\n", rb"\1\r\n", answer, count=1)
    if fault == "corrupt":
        return answer[:-1] + bytes([answer[-1] ^ 1])
    if fault == "lose":
        return b"" if method in ("PUT", "HEAD") else answer[: len(answer) // 2]
    return answer


def _has_condition(request: bytes) -> bool:
    head = request.partition(b"\r\n\r\n")[0].lower()
    return b"\r\nif-match:" in head or b"\r\nif-none-match:" in head


def _some(client: socket.socket) -> bytes:
    data = client.recv(1 << 16)
    if not data:
        raise ConnectionError("the client has gone")
    return data
