"""The bodies of requests: images and forms, their limits, and the bytes that are held."""

from __future__ import annotations

import asyncio
import io
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2s_ray.errors import UnreadableImageError
from s2s_ray.geo.images import encode
from s2s_ray.service.http.application import create_api
from s2s_ray.service.http.form import Form
from tests.support.fake_service import GEOMETRY, Fakes, flat
from tests.support.http_requests import form, request, sentence


@pytest.mark.parametrize("path", ["/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "The image is empty"),
        (b"not an image", {"content-type": "image/png"}, 400, "The image is not a JPEG"),
        (encode(flat(60, 60), "png")[:120], {"content-type": "image/png"}, 400, "damaged or cut short"),
        (encode(flat(400, 400), "webp"), {}, 413, "400 x 400 pixels, more than 100,000"),
        (b"x" * 10_001, {}, 413, "larger than 10,000 bytes"),
        (b"{}", {"content-type": "application/json"}, 415, "Unsupported Content-Type 'application/json'"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 400, "The form is cut short"),
        (b"--b\r\n\r\nx--b--", {"content-type": "multipart/form-data; boundary=b"}, 400, "The form is cut short"),
        (b"x\r\n--b--", {"content-type": "multipart/form-data; boundary=b"}, 400, "The form cannot be parsed"),
        (b"x", {"content-type": "multipart/form-data"}, 400, "no boundary"),
        (b"--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}, 400, "The form has no image"),
        (encode(flat(60, 40), "png"), {}, 422, "40 x 60 pixels"),
        (encode(flat(8, 16), "png"), {}, 422, "at least 16"),
    ],
)
def test_bad_uploads(fakes: Fakes, path: str, body: bytes, headers: Any, status: int, words: str) -> None:
    response = request(fakes, "POST", path, content=body, headers=headers)
    assert response.status_code == status
    assert words in sentence(response)
    assert fakes.street.calls == fakes.satellite.calls == fakes.synthesis.calls == []


def test_the_default_content_type_of_curl_is_accepted(fakes: Fakes) -> None:
    """`curl --data-binary @file` without a header sends application/x-www-form-urlencoded."""
    kind = {"content-type": "application/x-www-form-urlencoded"}
    assert request(fakes, "POST", "/v1/localize", content=encode(flat(40, 100), "png"), headers=kind).status_code == 200


def test_a_body_without_content_length_is_counted(fakes: Fakes) -> None:
    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 4_000

    response = request(fakes, "POST", "/v1/embed/street", content=chunks())
    assert "content-length" not in response.request.headers
    assert response.status_code == 413


def test_rejected_forms(fakes: Fakes) -> None:
    response = form(fakes, "/v1/localize", *[flat(20, 50)] * 4)
    assert (response.status_code, "more than 3 images" in sentence(response)) == (413, True)
    files = [("image", ("good.png", encode(flat(40, 100), "png"))), ("image", ("bad.png", b"nothing"))]
    response = request(fakes, "POST", "/v1/localize", files=files)
    assert response.status_code == 400
    assert sentence(response).startswith("Image 2 ('bad.png') is not a JPEG")
    response = request(fakes, "POST", "/v1/localize", files=files[:1], data={"k": "3"})
    assert (response.status_code, "parameters go into the URL" in sentence(response)) == (400, True)
    assert not fakes.search.calls


@pytest.mark.parametrize(
    "image",
    [
        Image.new("L", (80, 40), 9),
        Image.new("CMYK", (80, 40)),
        Image.new("I;16", (80, 40), 4000),
        Image.new("RGBA", (80, 40), (9, 8, 7, 90)),
        Image.new("P", (80, 40)),
        Image.new("LA", (80, 40), (9, 90)),
        Image.new("1", (80, 40)),
    ],
    ids=lambda image: image.mode,
)
def test_every_kind_of_pixel_is_accepted(fakes: Fakes, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG" if image.mode == "CMYK" else "PNG")
    assert request(fakes, "POST", "/v1/localize", content=buffer.getvalue()).status_code == 200


def test_the_first_frame_of_an_animation_counts_and_orientation_is_applied(fakes: Fakes) -> None:
    frames = [Image.fromarray(flat(40, 90)), Image.fromarray(255 - flat(40, 90))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert request(fakes, "POST", "/v1/embed/street", content=buffer.getvalue()).status_code == 200
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # display rotated by 90 degrees
    Image.fromarray(np.rot90(flat(40, 90)).copy()).save(turned, "PNG", exif=exif)
    assert request(fakes, "POST", "/v1/embed/street", content=turned.getvalue()).status_code == 200
    for view, _seen, _turned in fakes.street.calls:
        np.testing.assert_array_equal(view, GEOMETRY.street(flat(40, 90)))


def part(name: str, content: bytes = b"x", filename: str | None = "a.png") -> bytes:
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([part("mask")], "Unknown field 'mask' of the form: name each image 'image'"),
        ([part("image"), part("Image")], "Unknown field 'Image'"),
        ([part("image[]")], r"Unknown field 'image[]'"),
        ([part("image"), part("heading", b"90", None)], "The form has a field 'heading' that is not a file"),
        ([part("n" * 900)], "..."),
    ],
)
def test_unknown_fields_of_a_form_are_named(fakes: Fakes, parts: list[bytes], words: str) -> None:
    kind = {"content-type": "multipart/form-data; boundary=b"}
    response = request(fakes, "POST", "/v1/localize", content=b"".join(parts) + b"--b--\r\n", headers=kind)
    assert response.status_code == 400
    assert words in sentence(response)
    assert len(response.content) < 300


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_form_is_the_same_in_chunks_of_any_size(size: int) -> None:
    contents = [bytes([number]) * 50 + b"\r\n--" for number in range(3)]
    body = b"".join(part("image", content, f"{n}.png") for n, content in enumerate(contents)) + b"--b--"
    held: list[int] = []
    parsed = Form(b"b", 3, held.append)
    for start in range(0, len(body), size):
        parsed.write(body[start : start + size])
    assert [(image.name, image.content) for image in parsed.images()] == [
        (f"{n}.png", content) for n, content in enumerate(contents)
    ]
    assert sum(held) == sum(map(len, contents))


class Sending:
    """A request whose body arrives in chunks that it makes one by one, straight into the application."""

    def __init__(self, fakes: Fakes, chunks: int, *, is_form: bool = False, ends: bool = True) -> None:
        self.decoders = ThreadPoolExecutor(1)
        self.service = fakes.service(self.decoders)
        self.most_held = 0
        self.status = 0
        self._api = create_api(self.service)
        self._kind = b"multipart/form-data; boundary=b" if is_form else b"image/png"
        self._ends = ends
        self._chunks = self._form(chunks) if is_form else (b"x" * 65_536 for _ in range(chunks))

    @staticmethod
    def _form(chunks: int) -> Iterator[bytes]:
        for name in "ab":
            yield part("image", b"", f"{name}.png")[:-2]
            for _ in range(chunks // 2):
                yield b"x" * 65_536
            yield b"\r\n"
        yield b"--b--"

    async def receive(self) -> dict[str, Any]:
        self.most_held = max(self.most_held, self.service.held_bytes)
        chunk = next(self._chunks, None)
        if chunk is None:
            return (
                {"type": "http.request", "body": b"", "more_body": False} if self._ends else {"type": "http.disconnect"}
            )
        return {"type": "http.request", "body": chunk, "more_body": True}

    async def send(self, message: dict[str, Any]) -> None:
        self.status = message.get("status", self.status)

    async def run(self, timeout: str = "30") -> None:
        headers = [(b"content-type", self._kind), (b"s2s-timeout", timeout.encode())]
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/embed/street", "raw_path": b"/v1/embed/street", "query_string": b"", "root_path": "",
            "headers": headers, "server": ("service", 80), "client": ("caller", 1),
        }  # fmt: skip
        await self._api(scope, self.receive, self.send)


@pytest.mark.parametrize(("chunks", "others", "status"), [(2, 0, 400), (2, 200_000, 503), (4, 0, 413), (4, 1, 413)])
def test_the_total_size_of_pending_bodies_is_bounded(fakes: Fakes, chunks: int, others: int, status: int) -> None:
    """A caller with a 503 finds room later; a body that does not fit even alone is a 413, which is not retried."""
    fakes.settings = {"max_upload_mb": 0.262150, "max_pending_mb": 0.262150}  # 4 chunks, without what memory adds
    sending = Sending(fakes, chunks)
    sending.service.held_bytes = others
    asyncio.run(sending.run())
    assert sending.status == status
    assert sending.service.held_bytes == others


LARGE = {"max_upload_mb": 32.0}
CHUNKS = 128


@pytest.mark.parametrize("is_form", [False, True])
def test_bodies_are_held_once_and_counted_as_they_are_held(fakes: Fakes, is_form: bool) -> None:
    fakes.settings = LARGE
    asyncio.run(Sending(fakes, 1, is_form=is_form).run())  # imports what is needed
    sending = Sending(fakes, CHUNKS, is_form=is_form)
    size = CHUNKS * 65_536
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        asyncio.run(sending.run())
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert sending.status == 400, "no image"
    assert size <= sending.most_held <= 1.15 * size
    assert peak < sending.most_held + 1_000_000, "what is not counted is small"
    assert sending.service.held_bytes == 0


@pytest.mark.parametrize("is_form", [False, True])
def test_nothing_is_held_after_a_connection_that_closed(fakes: Fakes, is_form: bool) -> None:
    fakes.settings = LARGE
    sending = Sending(fakes, 4, is_form=is_form, ends=False)
    asyncio.run(sending.run())
    assert sending.status == 400
    assert sending.most_held > 0
    assert sending.service.held_bytes == 0


def test_an_image_is_held_as_long_as_a_thread_works_on_it(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request ends at its deadline, but a thread cannot be stopped; images that wait for one are dropped."""
    started, finish = threading.Event(), threading.Event()

    def decode_slowly(_content: bytes, _max_pixels: int) -> Any:
        started.set()
        finish.wait(10)
        raise UnreadableImageError("is no image")

    monkeypatch.setattr("s2s_ray.service.http.pictures.decode_seen", decode_slowly)
    fakes.settings = LARGE
    first, second = Sending(fakes, 2), Sending(fakes, 3)
    second.service = first.service
    second._api = first._api

    async def scenario() -> None:
        running = asyncio.create_task(first.run("0.2"))
        await asyncio.to_thread(started.wait, 10)
        await second.run("0.1")  # waits for the only thread
        await running
        assert (first.status, second.status) == (504, 504)
        assert first.service.held_bytes == 2 * 65_536

    asyncio.run(scenario())
    finish.set()
    first.decoders.shutdown()
    assert first.service.held_bytes == 0


def test_a_caller_who_goes_away_leaves_nothing_behind(fakes: Fakes) -> None:
    fakes.settings = LARGE
    sending = Sending(fakes, 2)

    async def wait_for_ever() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError

    async def scenario() -> None:
        original, count = sending.receive, iter(range(2))

        async def receive() -> dict[str, Any]:
            return await (original() if next(count, None) is not None else wait_for_ever())

        sending.receive = receive  # type: ignore[method-assign]
        task = asyncio.create_task(sending.run())
        while sending.service.held_bytes < 65_536:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())
    assert sending.service.held_bytes == 0
