"""The HTTP API in process: the real application over fake deployments."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import hashlib
import io
import math
import re
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ServeDeploySchema

from s2s_ray import registry, storage
from s2s_ray.errors import ConfigError, DescriptorError, ReferenceIndexError, ReleaseNotLoadedError, StorageError
from s2s_ray.geo.images import decode, encode
from s2s_ray.geo.prior import Box, Circle
from s2s_ray.geo.views import ViewGeometry
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.model.checkpoint import save_model
from s2s_ray.model.s2s import S2S
from s2s_ray.service.app import build
from s2s_ray.service.http import responses
from s2s_ray.service.http.application import create_api
from s2s_ray.service.http.negotiation import negotiate
from s2s_ray.service.replicas.models import StreetEmbedding
from s2s_ray.service.rollout.releases import ReleaseKey
from s2s_ray.service.rollout.served_release import resolve
from s2s_ray.service.schemas import finite
from s2s_ray.service.settings import ModelScaling, ServeArgs
from tests.support.fake_service import COUNT, GEOMETRY, HEIGHT, RELEASE, WIDTH, Fakes, flat
from tests.support.models import tiny_model

TINY = tiny_model(width=72)
SECRET = "correct-horse"
TOKEN = {"name": "a", "sha256": "0" * 64}


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


def request(fakes: Fakes, method: str, path: str, **options: Any) -> httpx2.Response:
    """Send one request to a new application, whose limits are 10 kB and 0.1 megapixels."""

    async def exchange() -> httpx2.Response:
        with ThreadPoolExecutor(1) as decoders:
            api = create_api(fakes.service(decoders))
            transport = httpx2.ASGITransport(api, raise_app_exceptions=False)
            async with httpx2.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

    run: Coroutine[Any, Any, httpx2.Response] = exchange()
    response = asyncio.run(run)
    assert response.headers.get("s2s-release") == (fakes.current and fakes.current.id)
    assert response.headers["x-request-id"]
    return response


def post(fakes: Fakes, path: str, pixels: NDArray[np.uint8], **options: Any) -> httpx2.Response:
    headers = {"content-type": "image/png", **options.pop("headers", {})}
    return request(fakes, "POST", path, content=encode(pixels, "png"), headers=headers, **options)


def form(fakes: Fakes, path: str, *images: NDArray[np.uint8], **options: Any) -> httpx2.Response:
    files = [("image", (f"{number}.png", encode(pixels, "png"))) for number, pixels in enumerate(images)]
    return request(fakes, "POST", path, files=files, **options)


def sentence(response: httpx2.Response) -> str:
    assert response.headers["content-type"] == "application/json"
    assert list(response.json()) == ["error"]
    text = response.json()["error"]
    assert text.endswith(".")
    return str(text)


def test_street_embedding(fakes: Fakes) -> None:
    panorama = flat(40, 100)
    response = post(fakes, "/v1/embed/street", panorama, params={"heading": 90, "rows": "0.1,0.6"})
    assert response.status_code == 200
    assert response.json() == {"release": RELEASE.id, "descriptor": [1.0, 0.0, 0.0, 0.0]}
    [(view,)] = fakes.street.calls
    np.testing.assert_array_equal(view, GEOMETRY.street(panorama, 90, (0.1, 0.6)))


def test_json_descriptors_equal_those_of_the_model_exactly(fakes: Fakes) -> None:
    descriptor = np.array([0.1, -1e-38, 1 / 3, np.nextafter(np.float32(0.5), np.float32(1))], np.float32)
    fakes.street.function = lambda _view: descriptor
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert response.headers["content-type"] == "application/json"
    np.testing.assert_array_equal(np.array(response.json()["descriptor"], np.float32), descriptor)
    assert b"[0.1," in response.content, "no more digits than float32 needs"


@pytest.mark.parametrize("accept", ["application/json", "application/x-npy"])
def test_a_descriptor_that_is_not_finite_is_an_error(fakes: Fakes, accept: str) -> None:
    fakes.street.function = lambda _view: np.array([0.5, np.nan, 0, 0], np.float32)
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"accept": accept})
    assert response.status_code == 500
    assert response.headers["x-request-id"] in sentence(response)


@pytest.mark.parametrize("layout", [None, "auto", "north-up", "polar"])
def test_satellite_embedding(fakes: Fakes, layout: str | None) -> None:
    tile = flat(50, 50)
    response = post(fakes, "/v1/embed/satellite", tile, params={"layout": layout} if layout else {})
    assert response.json() == {"release": RELEASE.id, "descriptor": [0.0, 1.0, 0.0, 0.0]}
    [(view,)] = fakes.satellite.calls
    expected = GEOMETRY.satellite(tile, "polar" if layout == "polar" else "north-up")
    np.testing.assert_array_equal(view, expected)


@pytest.mark.parametrize(
    ("accept", "kind", "encoding"),
    [
        (None, "image/png", "PNG"),
        ("image/jpeg", "image/jpeg", "JPEG"),
        ("image/webp, image/png;q=0.5", "image/webp", "WEBP"),
    ],
)
def test_synthesis_by_accept(fakes: Fakes, accept: str | None, kind: str, encoding: str) -> None:
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": accept} if accept else {})
    assert (response.status_code, response.headers["content-type"]) == (200, kind)
    assert Image.open(io.BytesIO(response.content)).format == encoding
    expected = np.asarray(GEOMETRY.satellite(flat(50, 50))).transpose(1, 2, 0)
    error = np.abs(decode(response.content).astype(int) - expected.astype(int)).mean()
    assert error < 6 if encoding == "JPEG" else error == 0


def test_localisation(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2})
    assert response.status_code == 200
    assert response.json()["release"] == RELEASE.id
    unknown = {"longitude": None, "distance_m": None}
    assert response.json()["matches"] == [
        {"rank": 1, "id": "tile-1", "latitude": 50.0, **unknown, "descriptor_distance": 0.1},
        {"rank": 2, "id": "tile-2", "latitude": 50.0, **unknown, "longitude": 7.0, "descriptor_distance": 0.2},
    ]
    [(descriptor, k, prior)] = fakes.search.calls
    assert (descriptor.tolist(), k, prior) == ([1, 0, 0, 0], 2, None)


def test_metres_from_the_true_position(fakes: Fakes) -> None:
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2, "true": "50.001,7.002"})
    unknown, known = response.json()["matches"]
    assert unknown["distance_m"] is None
    assert known["distance_m"] == pytest.approx(math.hypot(111.23, 143.4), abs=0.1)  # of latitude, of longitude


@pytest.mark.parametrize(
    ("query", "prior"),
    [("near=48,11.5,2000", Circle(48, 11.5, 2000)), ("bbox=170,-10,-170,10", Box(170, -10, -170, 10))],
)
def test_the_prior_reaches_the_search(fakes: Fakes, query: str, prior: Circle | Box) -> None:
    assert post(fakes, f"/v1/localize?{query}", flat(40, 100)).status_code == 200
    assert fakes.search.calls[0][2] == prior


def test_geojson(fakes: Fakes) -> None:
    headers = {"accept": "application/geo+json"}
    response = post(fakes, "/v1/localize", flat(40, 100), params={"k": 2, "true": "50,7"}, headers=headers)
    assert response.headers["content-type"] == "application/geo+json"
    tree = response.json()
    assert (tree["type"], tree["release"]) == ("FeatureCollection", RELEASE.id)
    assert [feature["geometry"] for feature in tree["features"]] == [
        None,
        {"type": "Point", "coordinates": [7.0, 50.0]},
    ]
    assert tree["features"][1]["properties"]["id"] == "tile-2"
    assert tree["features"][1]["properties"]["distance_m"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("images", [1, 3])
def test_forms_get_a_result_for_each_image_by_name(fakes: Fakes, images: int) -> None:
    pixels = [flat(40, 100 + number) for number in range(images)]
    tree = form(fakes, "/v1/localize", *pixels, params={"k": 1}).json()
    assert [(one["name"], len(one["matches"])) for one in tree["images"]] == [(f"{i}.png", 1) for i in range(images)]
    views = [view for (view,) in fakes.street.calls]
    for image, view in zip(pixels, views, strict=True):
        np.testing.assert_array_equal(view, GEOMETRY.street(image))
    tree = form(fakes, "/v1/embed/satellite", *[flat(50, 50)] * images).json()
    assert [one["descriptor"] for one in tree["images"]] == [[0.0, 1.0, 0.0, 0.0]] * images
    tree = form(fakes, "/v1/localize", *pixels, headers={"accept": responses.GEOJSON}, params={"k": 1}).json()
    assert [feature["properties"]["query"] for feature in tree["features"]] == [f"{i}.png" for i in range(images)]
    assert {stage: fakes.recorder.stages[stage] for stage in ("model", "search")} == {"model": 0.25, "search": 0.25}
    assert fakes.recorder.requests[0] == ("/v1/localize", 200, images)


@pytest.mark.parametrize("several", [False, True])
def test_descriptors_as_npy(fakes: Fakes, several: bool) -> None:
    headers = {"accept": "application/x-npy"}
    if several:
        response = form(fakes, "/v1/embed/street", flat(40, 100), flat(40, 100), headers=headers)
    else:
        response = post(fakes, "/v1/embed/street", flat(40, 100), headers=headers)
    assert response.headers["content-type"] == "application/x-npy"
    descriptors = np.load(io.BytesIO(response.content), allow_pickle=False)
    assert (descriptors.shape, descriptors.dtype) == ((1 + several, 4), np.float32)


def test_synthesis_in_json_has_the_polar_image(fakes: Fakes) -> None:
    expected = np.asarray(GEOMETRY.satellite(flat(50, 50))).transpose(1, 2, 0)
    one = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "application/json"}).json()
    two = form(fakes, "/v1/synthesize", flat(50, 50), flat(50, 50)).json()
    assert [len(tree["images"]) for tree in (one, two)] == [1, 2]
    for image in (*one["images"], *two["images"]):
        for picture in (image["polar"], image["street"]):
            np.testing.assert_array_equal(decode(base64.b64decode(picture)), expected)


def test_k_is_ten_by_default(fakes: Fakes) -> None:
    assert len(post(fakes, "/v1/localize", flat(40, 100)).json()["matches"]) == 10


def test_model_health_and_documentation(fakes: Fakes) -> None:
    model = request(fakes, "GET", "/v1/model").json()
    assert (model["release"], model["height"], model["index"]["count"]) == (RELEASE.id, HEIGHT, COUNT)
    assert request(fakes, "GET", "/healthz").json() == {"status": "ok", "release": RELEASE.id}
    ready = request(fakes, "GET", "/readyz")
    assert (ready.status_code, ready.json()["status"], ready.json()["fault"]) == (200, "ready", None)
    assert set(ready.json()["deployments"].values()) == {1}
    paths = request(fakes, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"} <= set(paths)
    assert "image/jpeg" in paths["/v1/localize"]["post"]["requestBody"]["content"]


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


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("heading=400", "heading='400'"),
        ("heading=nan", "heading='nan'"),
        ("heading=north", "heading='north'"),
        ("rows=0.5", "rows='0.5'"),
        ("rows=0.8,0.2", "expected 0 <= first < last <= 1"),
        ("rows=nan,1", "expected 2 numbers such as 0.25,0.75"),
        ("k=0", "k='0'"),
        ("k=101", "k='101'"),
        ("k=13", "k=13: the index of this release has 12 tiles"),
        ("near=1,2", "near='1,2': expected 3 numbers"),
        ("near=91,2,5", "near: latitude 91: expected -90 to 90"),
        ("near=1,2,0", "near: radius 0 m"),
        ("near=1,2,nan", "expected 3 numbers"),
        ("bbox=1,5,2,4", "bbox: south=5 is above north=4"),
        ("bbox=1,2,3", "expected 4 numbers"),
        ("bbox=1,2,3,4&near=1,2,3", "exclude each other"),
        ("true=1", "true='1': expected 2 numbers"),
        ("true=1,181", "true: longitude 181"),
    ],
)
def test_bad_parameters(fakes: Fakes, query: str, words: str) -> None:
    response = post(fakes, f"/v1/localize?{query}", flat(40, 100))
    assert response.status_code == 400
    assert words in sentence(response)
    assert not fakes.street.calls


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


def test_bad_layout_and_accept(fakes: Fakes) -> None:
    response = post(fakes, "/v1/embed/satellite?layout=sideways", flat(50, 50))
    assert (response.status_code, "layout='sideways'" in sentence(response)) == (400, True)
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "text/html"})
    assert (response.status_code, "image/webp" in sentence(response)) == (406, True)
    assert not fakes.synthesis.calls


def test_unknown_paths_and_methods_get_json(fakes: Fakes) -> None:
    response = request(fakes, "GET", "/v1/nothing")
    assert response.status_code == 404
    sentence(response)
    response = request(fakes, "GET", "/v1/localize")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    sentence(response)


@pytest.mark.parametrize("deployment", ["street", "search"])
@pytest.mark.parametrize(
    "fault",
    [
        BackPressureError(9, 8),
        # as Ray raises the error of a replica in the caller
        RayTaskError("call", "traceback", ReleaseNotLoadedError("release x cannot be loaded")).as_instanceof_cause(),
    ],
)
def test_overload_and_damaged_releases_are_503_with_retry_after(
    fakes: Fakes, deployment: str, fault: Exception
) -> None:
    def fail(*_args: Any) -> None:
        raise fault

    getattr(fakes, deployment).function = fail
    response = post(fakes, "/v1/localize", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "try again later" in sentence(response)


def test_a_call_to_a_lost_replica_is_retried(fakes: Fakes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("s2s_ray.service.http.exchange._FIRST_PAUSE_S", 0.001)
    faults = [RayActorError(), ObjectLostError("ab", None, "")]

    def fail_twice(_view: Any) -> Any:
        if faults:
            raise faults.pop()
        return np.array([1, 0, 0, 0], np.float32)

    fakes.street.function = fail_twice
    assert post(fakes, "/v1/embed/street", flat(40, 100)).json()["descriptor"] == [1, 0, 0, 0]
    assert fakes.recorder.retries == ["street", "street"]

    def lost(_view: Any) -> Any:
        raise RayActorError()

    fakes.street.function = lost
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def test_deadlines(fakes: Fakes) -> None:
    cancelled: list[bool] = []

    async def slow() -> Any:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    fakes.street.function = lambda _view: slow()
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": "0.4"})
    assert (response.status_code, "not completed within 0.4 s" in sentence(response)) == (504, True)
    fakes.settings = {"timeout_s": 0.5}
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": "900"})
    assert (response.status_code, "not completed within 0.5 s" in sentence(response)) == (504, True)
    assert cancelled == [True, True]
    for text in ("0", "-1", "nan", "soon"):
        assert post(fakes, "/v1/embed/street", flat(40, 100), headers={"s2s-timeout": text}).status_code == 400


def test_the_total_size_of_pending_bodies_is_bounded(fakes: Fakes) -> None:
    fakes.settings = {"max_pending_mb": 0.0001}
    response = post(fakes, "/v1/embed/street", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")


def test_an_internal_error_is_one_sentence_with_the_request_id(fakes: Fakes) -> None:
    def fail(_view: Any) -> Any:
        raise KeyError("a defect")

    fakes.street.function = fail
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"x-request-id": "mine-1"})
    assert (response.status_code, response.headers["x-request-id"]) == (500, "mine-1")
    assert "under mine-1" in sentence(response)
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers={"x-request-id": "no good\ttext"})
    assert "text" not in response.headers["x-request-id"]


def test_an_error_of_a_replica_is_never_the_mistake_of_the_caller(fakes: Fakes) -> None:
    """Even of a class whose status is 4xx: the ingress has validated the request."""
    error = RayTaskError("call", "traceback", DescriptorError("not finite")).as_instanceof_cause()

    def fail(*_args: Any) -> Any:
        raise error

    fakes.search.function = fail
    response = post(fakes, "/v1/localize", flat(40, 100))
    assert response.status_code == 500
    assert response.headers["x-request-id"] in sentence(response)


def test_requests_before_a_release_is_loaded_get_a_503(fakes: Fakes) -> None:
    fakes.current = None
    assert post(fakes, "/v1/embed/street", flat(40, 100)).status_code == 503
    response = request(fakes, "GET", "/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "not ready")
    assert request(fakes, "GET", "/healthz").status_code == 200


def test_tokens(fakes: Fakes, caplog: pytest.LogCaptureFixture) -> None:
    assert post(fakes, "/v1/releases/rollback", flat(2, 2)).status_code == 403, "without tokens nobody is allowed to"
    hashes = [hashlib.sha256(secret.encode()).hexdigest() for secret in (SECRET, "admin-secret")]
    fakes.settings = {
        "tokens": [{"name": "app", "sha256": hashes[0]}, {"name": "ops", "sha256": hashes[1], "admin": True}]
    }
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {SECRET}"}):
        response = post(fakes, "/v1/embed/street", flat(40, 100), headers=headers)
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Bearer")
        assert SECRET not in sentence(response)
    assert request(fakes, "GET", "/v1/model").status_code == 401
    with caplog.at_level("INFO", logger="s2s_ray.service.access"):
        bearer = {"authorization": f"Bearer {SECRET}"}
        assert post(fakes, "/v1/embed/street", flat(40, 100), headers=bearer).status_code == 200
    fields = caplog.records[-1].__dict__["fields"]
    assert (fields["caller"], fields["status"], fields["path"]) == ("app", 200, "/v1/embed/street")
    assert SECRET not in str(fields)
    response = request(fakes, "POST", "/v1/releases/x/promote", headers=bearer)
    assert (response.status_code, "'app'" in sentence(response)) == (403, True)
    response = request(fakes, "POST", "/v1/releases/x/promote", headers={"authorization": "Bearer admin-secret"})
    assert response.status_code == 409, "this service is pinned to two URIs"
    for path in ("/healthz", "/readyz", "/", "/docs", "/openapi.json", "/static/page.js"):
        assert request(fakes, "GET", path).status_code == 200


def test_releases_are_listed_promoted_and_rolled_back(fakes: Fakes, tmp_path: Path) -> None:
    root, secret = str(tmp_path / "registry"), {"authorization": f"Bearer {SECRET}"}
    checkpoint, index = stored_model(tmp_path)
    for name in ("first", "second"):
        registry.publish(root, "demo", checkpoint, index, release=name)
    registry.promote(root, "demo", "first")
    token = {"name": "ops", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "admin": True}
    fakes.settings = {"registry": root, "name": "demo", "checkpoint": None, "index": None, "tokens": [token]}
    response = request(fakes, "POST", "/v1/releases/second/promote", headers=secret)
    assert (response.status_code, response.json()) == (200, {"release": RELEASE.id, "current": "second"})
    listed = request(fakes, "GET", "/v1/releases", headers=secret).json()["releases"]
    assert [(one["release"], one["current"], one["indexed"]) for one in listed] == [
        ("first", False, True),
        ("second", True, True),
    ]
    assert request(fakes, "POST", "/v1/releases/rollback", headers=secret).json()["current"] == "first"
    assert registry.current(root, "demo") == "first"
    for path in ("/v1/releases/rollback", "/v1/releases/third/promote", "/v1/releases/.hidden/promote"):
        response = request(fakes, "POST", path, headers=secret)
        assert response.status_code == 404, path
        sentence(response)


def test_a_registry_that_cannot_be_read_is_a_503_that_hides_its_location(
    fakes: Fakes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> Any:
        raise StorageError("s3://secret-bucket cannot be reached")

    monkeypatch.setattr(registry, "list_releases", fail)
    fakes.settings = {"registry": "r", "name": "demo", "checkpoint": None, "index": None}
    response = request(fakes, "GET", "/v1/releases")
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "secret-bucket" not in sentence(response)


def test_other_web_pages_are_allowed_only_if_configured(fakes: Fakes) -> None:
    origin = {"origin": "https://elsewhere.example"}
    assert "access-control-allow-origin" not in post(fakes, "/v1/embed/street", flat(40, 100), headers=origin).headers
    fakes.settings = {"cors_origins": ["https://elsewhere.example"]}
    response = post(fakes, "/v1/embed/street", flat(40, 100), headers=origin)
    assert response.headers["access-control-allow-origin"] == "https://elsewhere.example"


def test_images_of_the_index(fakes: Fakes) -> None:
    assert request(fakes, "GET", "/v1/thumbnail", params={"id": "tile-1"}).content == b"jpeg"
    assert request(fakes, "GET", "/v1/thumbnail", params={"id": "tile-9"}).status_code == 404
    [place] = request(fakes, "GET", "/v1/examples").json()["examples"]
    assert request(fakes, "GET", f"/{place['street']}").content == b"street"
    assert request(fakes, "GET", f"/{place['tile']}").headers["content-type"] == "image/jpeg"
    assert request(fakes, "GET", "/v1/examples/1/tile").status_code == 404


def test_the_page_and_the_documentation_use_no_other_host(fakes: Fakes) -> None:
    for path in ("/", "/docs", "/static/page.js", "/static/page.css"):
        text = request(fakes, "GET", path).text
        assert not re.findall(r"https?://(?!www\.w3\.org)[a-z]", text), path
    assert request(fakes, "GET", "/").headers["content-security-policy"].startswith("default-src 'self'")
    fakes.settings = {
        "base_map_url": "https://tiles.example/{z}/{x}/{y}.png",
        "base_map_attribution": 'a "map" <of> us',
    }
    page = request(fakes, "GET", "/")
    assert "https://tiles.example;" in page.headers["content-security-policy"]
    assert "&lt;of&gt;" in page.text


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("*/*", "image/png"),
        ("image/*", "image/png"),
        ("image/*;q=0.2, image/webp", "image/webp"),
        ("image/png;q=0.5, image/jpeg;q=0.9", "image/jpeg"),
        ("text/html, */*;q=0.1", "image/png"),
        ("image/png;q=0, image/*", "image/jpeg"),
        ("image/png;q=x", None),
        ("image/png;q=nan", None),
        ("text/html", None),
        ("", None),
    ],
)
def test_negotiation(accept: str, kind: str | None) -> None:
    assert negotiate(accept, responses.SYNTHESIS_TYPES) == kind


def test_arguments_from_the_command_line_are_parsed() -> None:
    args = ServeArgs.model_validate({"registry": "r", "name": "n", "threads": "2", "max_upload_mb": "8"})
    assert (args.threads, args.max_upload_mb) == (2, 8.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "give registry=URI and name=NAME, or checkpoint=URI and index=URI"),
        ({"registry": "r"}, "give registry=URI"),
        ({"registry": "r", "name": "n", "checkpoint": "c", "index": "i"}, "give registry=URI"),
        ({"checkpoint": "c", "index": "i", "release": "x"}, "give registry=URI"),
        ({"registry": "r", "name": "n", "devise": "cpu"}, "devise"),
        ({"registry": "r", "name": "n", "street": {"max_batch": 64}}, "max_batch=64"),
        ({"registry": "r", "name": "n", "search": {"min_replicas": 3}}, "min_replicas=3"),
        ({"registry": "r", "name": "n", "ingress": {"min_replicas": 0}}, "ingress.min_replicas=0"),
        ({"registry": "r", "name": "n", "tokens": [{"name": "a", "sha256": "secret"}]}, "sha256"),
        ({"registry": "r", "name": "n", "tokens": [TOKEN, TOKEN]}, "a different name"),
        ({"checkpoint": "c", "index": "i", "follow": "best"}, "follow=best"),
        ({"registry": "r", "name": "n", "base_map_url": "ftp://a/{z}"}, "base_map_url='ftp://a/{z}': expected a URL"),
        ({"registry": "r", "name": "n", "base_map_url": "https://[::1/{z}"}, "base_map_url='https"),
        ({"registry": "r", "name": "n", "base_map_url": "https://a; img-src *"}, "expected a URL"),
    ],
)
def test_invalid_settings(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ServeArgs.parse(arguments)


def test_serve_recognises_the_typed_argument_of_build() -> None:
    """With a string annotation, Serve would pass a dictionary."""
    assert build.__annotations__["args"] is ServeArgs


def stored_model(
    folder: Path, dimension: int = TINY.descriptor_size, fingerprint: str | None = None
) -> tuple[str, str]:
    """Store a checkpoint and an index, by default of that checkpoint; return their URIs."""
    checkpoint, index = str(folder / "checkpoint"), str(folder / "index")
    meta = {"run": "city", "step": 4, "metrics": {"psnr": float("inf")}}
    save_model(S2S(TINY), meta, folder / "local")
    storage.publish(folder / "local", checkpoint)
    info = IndexInfo(
        dimension=dimension, count=1, checkpoint=fingerprint or registry.fingerprint(checkpoint),
        dataset="d", dataset_digest="x", split="test",
    )  # fmt: skip
    columns = {"id": ["t"], "latitude": [1.0], "longitude": [2.0], "easting": [3.0], "northing": [4.0]}
    table = pa.table({**columns, "zone": pa.array([32632], pa.int32())})
    ReferenceIndex.build(info, np.ones((1, dimension), np.float32), table).save(index)
    return checkpoint, index


def test_build_serves_a_release_of_a_registry_or_two_uris(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path)
    root = str(tmp_path / "registry")
    release = registry.promote(root, "demo", registry.publish(root, "demo", checkpoint, index).id)
    by_name = resolve(ServeArgs(registry=root, name="demo"))
    by_uri = resolve(ServeArgs(checkpoint=checkpoint, index=index))
    assert by_name.id == by_uri.id == release.id
    assert by_name.key == ReleaseKey(release.id, release.checkpoint_uri, str(release.index_uri))
    assert by_name.geometry == ViewGeometry(TINY.height, TINY.width)
    assert by_name.description.metrics == {"psnr": None}
    assert isinstance(build(ServeArgs(registry=root, name="demo")), Application)


def test_build_rejects_an_index_of_another_model(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path / "a", fingerprint="0" * 64)
    with pytest.raises(ReferenceIndexError, match="built with checkpoint 00000000"):
        build(ServeArgs(checkpoint=checkpoint, index=index))
    checkpoint, index = stored_model(tmp_path / "b", dimension=3)
    with pytest.raises(ReferenceIndexError, match="descriptors of 3 numbers"):
        build(ServeArgs(checkpoint=checkpoint, index=index))


def test_the_deployed_configuration_is_valid() -> None:
    path = Path(__file__).resolve().parents[2] / "serve" / "config.yaml"
    schema = ServeDeploySchema.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert schema.http_options.host == "127.0.0.1"
    [application] = schema.applications
    assert application.import_path == "s2s_ray.service.app:build"
    args = ServeArgs.model_validate(application.args)
    assert args == ServeArgs(registry="registry", name="default")
    assert args.street == ModelScaling()


def test_metrics_that_json_cannot_represent_become_null() -> None:
    assert finite({"a": float("nan"), "b": [1.0, float("inf")], "c": "x"}) == {"a": None, "b": [1.0, None], "c": "x"}


def test_accelerator_errors_fail_the_health_check() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    replica._fault, replica._metrics = None, SimpleNamespace(batch=lambda _size: None)
    replica._slots = SimpleNamespace(release_idle=lambda _seconds: None)
    replica.check_health()

    def lost(_model: Any, _views: torch.Tensor) -> Any:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)

    replica._infer = lost
    with pytest.raises(torch.AcceleratorError):
        asyncio.run(replica._run_batch([(None, np.zeros((3, HEIGHT, WIDTH), np.uint8))]))
    with pytest.raises(RuntimeError, match=r"the accelerator failed: .*CUDA error"):
        replica.check_health()


def test_each_call_of_a_batch_uses_its_own_release() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    sizes: list[int] = []
    replica._metrics = SimpleNamespace(batch=sizes.append)
    replica._infer = lambda model, views: np.stack([views[:, 0, 0, 0].numpy(), np.full(len(views), model)], axis=1)
    calls = [(model, np.full((3, 2, 2), number, np.uint8)) for number, model in enumerate((10, 20, 10, 20, 20))]
    found = asyncio.run(replica._run_batch(calls))
    assert [one.result.tolist() for one in found] == [[number, model] for number, (model, _) in enumerate(calls)]
    assert sizes == [2, 3]


def test_a_release_without_a_generator_synthesises_nothing(fakes: Fakes) -> None:
    description = RELEASE.description.model_copy(update={"synthesizes": False})
    fakes.current = dataclasses.replace(RELEASE, description=description)
    response = post(fakes, "/v1/synthesize", flat(50, 50))
    assert response.status_code == 409
    assert response.json() == {
        "error": f"Release {RELEASE.id} was trained without a generator: it synthesises no views."
    }
    assert post(fakes, "/v1/embed/satellite", flat(50, 50)).status_code == 200
