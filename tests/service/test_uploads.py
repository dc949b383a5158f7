"""The bodies of requests: images and forms, their limits, and the bytes that are held."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from s2s_ray.geo.images import encode
from tests.support.fake_service import GEOMETRY, Fakes, flat
from tests.support.http_requests import form, post, request, sentence


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
        (encode(flat(8, 8), "png"), {}, 422, "at least 16"),
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
        Image.new("RGBA", (80, 40)),
        Image.new("P", (80, 40)),
        Image.new("LA", (80, 40)),
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
    for (view,) in fakes.street.calls:
        np.testing.assert_array_equal(view, GEOMETRY.street(flat(40, 90)))


def test_the_total_size_of_pending_bodies_is_bounded(fakes: Fakes) -> None:
    fakes.settings = {"max_pending_mb": 0.0001}
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
