"""Requests of the client against a server that sends what the test says: retries, patience and foreign responses."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from s2s_ray.client import Client, connection
from s2s_ray.errors import InputError, ServiceError
from tests.support.scripted_server import CUT, response, scripted

MODEL = response(200, b'{"release": "r"}')
BUSY = b'{"error": "The service is overloaded; try again later."}'


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses of the client, which pass at once."""
    pauses: list[float] = []
    monkeypatch.setattr(connection, "time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic))
    return pauses


@pytest.mark.parametrize(
    "asked",
    ["30", "3600", "9" * 400, "12.5", "Fri, 31 Dec 2199 23:59:59 GMT", "Fri, 31 Dec 2199 23:59:59 -0000"],
)
def test_a_service_that_asks_for_more_patience_than_is_left_is_reported_at_once(asked: str, waits: list[float]) -> None:
    with scripted(response(503, BUSY, Retry_After=asked), MODEL) as script, Client(script.url, timeout_s=3) as client:
        started = time.monotonic()
        with pytest.raises(ServiceError, match=r"responds 503: The service is overloaded; try again later\.") as error:
            client.model()
        assert time.monotonic() - started < 1
    assert (error.value.status, waits, len(script.requests)) == (503, [], 1)


@pytest.mark.parametrize(
    ("asked", "least"),
    [
        ("2", 2.0),
        ("Thu, 01 Jan 2026 00:00:04 GMT", 4.0),  # four seconds after the server's Date
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.2),
        ("-5", 0.2),
        ("soon", 0.2),
        ("", 0.2),
        ("nan", 0.2),
        ("1e3", 0.2),
        ("Thu, 99 Jan 2026 00:00:00 GMT", 0.2),
    ],
)
def test_the_client_waits_as_long_as_it_is_asked_to(asked: str, least: float, waits: list[float]) -> None:
    busy = response(503, BUSY, Retry_After=asked, Date="Thu, 01 Jan 2026 00:00:00 GMT")
    with scripted(busy, MODEL) as script, Client(script.url, timeout_s=20) as client:
        assert client.model() == {"release": "r"}
    [waited] = waits
    assert least <= waited <= 1.5 * least


def test_time_is_left_for_the_attempt_after_a_pause(waits: list[float]) -> None:
    busy = response(503, BUSY, Retry_After="9")
    with scripted(busy, MODEL) as script, Client(script.url, timeout_s=10) as client:
        assert client.model() == {"release": "r"}
    assert waits[0] < 9.6, "even if the pause is spread"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_what_may_pass_is_repeated(status: int, waits: list[float]) -> None:
    cut_in_the_body = response(200, b'{"release"', Content_Length="500")
    with (
        scripted(response(status, b"lost"), CUT, cut_in_the_body, b"HTTP/1.1 200 OK\r\nConte", MODEL) as script,
        Client(script.url) as client,
    ):
        assert client.model() == {"release": "r"}
    assert len(script.requests) == 5
    assert len(waits) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 504])
def test_what_stays_is_not_repeated(status: int, waits: list[float]) -> None:
    with (
        scripted(response(status, b'{"error": "No."}'), MODEL) as script,
        Client(script.url) as client,
        pytest.raises(ServiceError, match=rf"responds {status}: No\."),
    ):
        client.model()
    assert waits == []


CHANGES: list[Callable[[Client], Any]] = [lambda client: client.promote("x"), lambda client: client.rollback()]


@pytest.mark.parametrize("change", CHANGES, ids=["promote", "rollback"])
@pytest.mark.parametrize(
    ("first", "words"),
    [
        (CUT, "the change may have been made"),
        (response(200, b'{"current"', Content_Length="99"), "the change may have been made"),
        (response(503, BUSY), "responds 503: The service is overloaded.*: the change may have been made"),
        (response(500, b"lost"), "responds 500: lost: the change may have been made; list the releases before"),
        (response(502, b"lost"), "responds 502: lost: the change may have been made"),
        (response(504, b"late"), "responds 504: late: the change may have been made"),
        (response(408, b"late"), "responds 408: late: the change may have been made"),
        (
            response(504, b'{"error": "Late. The change may have been made."}'),
            r"Late\. The change may have been made\.$",
        ),
        (response(409, b'{"error": "Pinned."}'), r"responds 409: Pinned\.$"),
    ],
)
def test_a_change_is_sent_once(change: Any, first: bytes, words: str, waits: list[float]) -> None:
    second = response(200, b'{"current": "y"}')
    with (
        scripted(first, second) as script,
        Client(script.url) as client,
        pytest.raises(ServiceError, match=words),
    ):
        change(client)
    assert (len(script.requests), waits) == (1, [])


@pytest.mark.parametrize("change", CHANGES, ids=["promote", "rollback"])
def test_a_change_that_was_not_sent_is_tried_again(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    pauses: list[float] = []
    clock = (0.1 * n for n in range(1000))
    monkeypatch.setattr(connection, "time", SimpleNamespace(sleep=pauses.append, monotonic=lambda: next(clock)))
    nobody = pytest.raises(ServiceError, match="does not respond")
    with Client(f"http://127.0.0.1:{port}", timeout_s=2) as client, nobody:
        change(client)
    assert len(pauses) >= 2


def test_the_last_sentence_is_not_lost(waits: list[float]) -> None:
    last = pytest.raises(ServiceError, match=r"does not respond .*; before that, .* responds 503: The service is over")
    with scripted(response(503, BUSY)) as script, Client(script.url, timeout_s=0.5) as client, last:
        client.model()
    assert waits


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_named(status: int) -> None:
    moved = response(status, Location="https://elsewhere.example/v1/model")
    with scripted(moved) as script, Client(script.url) as client:
        with pytest.raises(ServiceError, match=r"redirects to https://elsewhere\.example/v1/model; give") as error:
            client.model()
        assert error.value.status == status


FOREIGN = [
    b"<html>",
    b"[]",
    b"5",
    b"null",
    b'"text"',
    b"",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"images": 5}',
    b'{"matches": [5]}',
]


@pytest.mark.parametrize("body", FOREIGN, ids=lambda body: repr(body[:12]))
def test_a_response_of_another_service_is_named(body: bytes) -> None:
    foreign = response(200, body)
    pixels = [np.zeros((4, 8, 3), np.uint8)]
    with scripted(*[foreign] * 5) as script, Client(script.url) as client:
        for use in (client.releases, client.embed_street, client.synthesize, client.localize):
            with pytest.raises(ServiceError, match=r"sent a response that is not this service's .*: check the URL"):
                use(*([] if use == client.releases else [pixels]))  # type: ignore[operator]


def npy(*shape: int, kind: str = "<f4") -> bytes:
    head = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00\x76\x00" + head.encode() + bytes(np.dtype(kind).itemsize * int(np.prod(shape)))


@pytest.mark.parametrize("body", [npy(2, 4), npy(4), npy(1, 4, kind="<f8"), b"PK\x03\x04damaged", npy(1, 4)[:-3]])
def test_descriptors_that_do_not_fit_the_images_are_refused(body: bytes) -> None:
    foreign = pytest.raises(ServiceError, match="not this service's")
    with scripted(response(200, body)) as script, Client(script.url) as client, foreign:
        client.embed_street([np.zeros((4, 8, 3), np.uint8)])
    with scripted(response(200, npy(1, 4))) as script, Client(script.url) as client:
        assert client.embed_street([np.zeros((4, 8, 3), np.uint8)]).shape == (1, 4)


def test_a_match_with_further_fields_is_read(waits: list[float]) -> None:
    match = {"rank": 1, "id": "t", "latitude": 1.0, "longitude": 2.0, "descriptor_distance": 0.5, "distance_m": None}
    body = json.dumps({"images": [{"name": "0", "matches": [{**match, "height_m": 3.0}]}]}).encode()
    with scripted(response(200, body)) as script, Client(script.url) as client:
        [[found]] = client.localize([np.zeros((4, 8, 3), np.uint8)])
    assert found._asdict() == {**match, "heading": None}


def test_a_body_that_trickles_in_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each read is in time, the whole is not."""
    clock = (0.5 * n for n in range(1000))
    monkeypatch.setattr(connection, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    late = pytest.raises(ServiceError, match="no complete response within 3 s")
    with scripted(response(200, b"x" * 5_000_000)) as script, Client(script.url, timeout_s=3) as client, late:
        client.model()


def test_a_service_on_ipv6() -> None:
    with scripted(MODEL, family=socket.AF_INET6) as script, Client(script.url) as client:
        assert client.model() == {"release": "r"}
    assert f"host: {script.url.removeprefix('http://')}".encode() in script.requests[0].lower()


def test_a_password_in_the_url_is_not_shown() -> None:
    with Client("http://me:hunter22@127.0.0.1:9", timeout_s=0.3) as client, pytest.raises(ServiceError) as error:
        client.model()
    assert "hunter22" not in str(error.value)
    with pytest.raises(InputError) as refused:
        Client("ftp://me:hunter22@host")
    assert "hunter22" not in str(refused.value)
