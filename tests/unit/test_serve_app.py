"""The HTTP interface in process: the real application over plain fakes of the deployments."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from ray.exceptions import RayActorError, RayTaskError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError
from ray.serve.schema import ServeDeploySchema

from s2s_ray import registry, storage
from s2s_ray.checkpoint import save_model
from s2s_ray.config import ModelConfig
from s2s_ray.data.images import decode, encode
from s2s_ray.data.views import ViewGeometry
from s2s_ray.index import IndexInfo, ReferenceIndex, ReferenceIndexError
from s2s_ray.model.s2s import S2S
from serve.app import build, resolve
from serve.deployments import StreetEmbedding, require_release
from serve.ingress import Service, create_api
from serve.requests import negotiate
from serve.schemas import (
    IndexDescription,
    Limits,
    ModelInfo,
    ModelScaling,
    ReleaseNotLoadedError,
    ServeArgs,
    ServedRelease,
    finite,
)

TINY = ModelConfig(
    height=32, width=72, channels=4, residual_blocks=1, discriminator_channels=4, street_blocks=(1, 1, 1), masks=2
)
HEIGHT, WIDTH, COUNT = 32, 72, 12
GEOMETRY = ViewGeometry(HEIGHT, WIDTH)
RELEASE = ServedRelease(
    id="run-7-abcdef01",
    checkpoint_uri="checkpoint",
    index_uri="index",
    index_count=COUNT,
    geometry=GEOMETRY,
    description=ModelInfo(
        release="run-7-abcdef01", run="run", step=7, epoch=1, metrics={"recall_at_1": None},
        height=HEIGHT, width=WIDTH, descriptor_size=4, panorama_rows=None,
        index=IndexDescription(kind="flat", count=COUNT, dataset="d", split="test"),
    ),
)  # fmt: skip


class Fake:
    """A deployment handle that answers from a function and remembers what it was asked."""

    def __init__(self, answer: Callable[..., Any]) -> None:
        self.answer = answer
        self.calls: list[tuple[Any, ...]] = []

    async def remote(self, release: str, *args: Any) -> Any:
        require_release(release, RELEASE.id)
        self.calls.append(args)
        return self.answer(*args)


class Fakes:
    """All deployments: descriptors say which one made them, synthesis gives the view back."""

    def __init__(self) -> None:
        self.street = Fake(lambda _view: np.array([1, 0, 0, 0], np.float32))
        self.satellite = Fake(lambda _view: np.array([0, 1, 0, 0], np.float32))
        self.synthesis = Fake(lambda view: view.transpose(1, 2, 0))
        self.search = Fake(lambda _descriptor, k: [match(rank) for rank in range(1, k + 1)])


def match(rank: int) -> dict[str, Any]:
    place = {"latitude": 50.0, "longitude": None, "easting": 1.0, "northing": 2.0, "zone": 32632}
    return {"rank": rank, "id": f"tile-{rank}", **place, "descriptor_distance": 0.1 * rank}


@pytest.fixture
def fakes() -> Fakes:
    return Fakes()


def ask(fakes: Fakes, method: str, path: str, **options: Any) -> httpx.Response:
    """One request against a fresh application (10 kB and 0.1 megapixels are its limits)."""

    async def exchange() -> httpx.Response:
        with ThreadPoolExecutor(1) as decoders:
            limits = Limits(max_bytes=10_000, max_pixels=100_000, retry_after_s=1.5)
            service = Service(RELEASE, limits, fakes.street, fakes.satellite, fakes.synthesis, fakes.search, decoders)
            transport = httpx.ASGITransport(create_api(service), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
                return await client.request(method, path, **options)

    run: Coroutine[Any, Any, httpx.Response] = exchange()
    response = asyncio.run(run)
    assert response.headers["s2s-release"] == RELEASE.id
    return response


def post(fakes: Fakes, path: str, pixels: NDArray[np.uint8], **options: Any) -> httpx.Response:
    headers = {"content-type": "image/png", **options.pop("headers", {})}
    return ask(fakes, "POST", path, content=encode(pixels, "png"), headers=headers, **options)


def flat(height: int, width: int) -> NDArray[np.uint8]:
    """Compressible pixels that differ along both axes."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=-1).astype(np.uint8)


def sentence(response: httpx.Response) -> str:
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
    tile = {"latitude": 50.0, "longitude": None}
    assert response.json()["matches"] == [
        {"rank": 1, "id": "tile-1", **tile, "descriptor_distance": 0.1},
        {"rank": 2, "id": "tile-2", **tile, "descriptor_distance": 0.2},
    ]
    [(descriptor, k)] = fakes.search.calls
    assert (descriptor.tolist(), k) == ([1, 0, 0, 0], 2)


def test_k_is_ten_by_default(fakes: Fakes) -> None:
    assert len(post(fakes, "/v1/localize", flat(40, 100)).json()["matches"]) == 10


def test_model_health_and_documentation(fakes: Fakes) -> None:
    model = ask(fakes, "GET", "/v1/model").json()
    assert (model["release"], model["height"], model["index"]["count"]) == (RELEASE.id, HEIGHT, COUNT)
    assert ask(fakes, "GET", "/healthz").json() == {"status": "ok", "release": RELEASE.id}
    paths = ask(fakes, "GET", "/openapi.json").json()["paths"]
    assert {"/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"} <= set(paths)
    assert "image/jpeg" in paths["/v1/localize"]["post"]["requestBody"]["content"]


@pytest.mark.parametrize("path", ["/v1/embed/street", "/v1/embed/satellite", "/v1/synthesize", "/v1/localize"])
@pytest.mark.parametrize(
    ("body", "headers", "status", "words"),
    [
        (b"", {}, 400, "The image is empty"),
        (b"not an image", {"content-type": "image/png"}, 400, "The image is not a JPEG"),
        (encode(flat(60, 60), "png")[:120], {"content-type": "image/png"}, 400, "damaged or cut short"),
        (encode(flat(400, 400), "webp"), {}, 400, "400 x 400 pixels, more than 100,000"),
        (b"x" * 10_001, {}, 413, "larger than 10,000 bytes"),
        (b"{}", {"content-type": "application/json"}, 415, "'application/json' is not taken"),
        (b"x", {"content-type": "multipart/form-data; boundary=b"}, 415, "one image as the raw body"),
        (encode(flat(60, 40), "png"), {}, 422, "40 x 60 pixels"),
        (encode(flat(8, 8), "png"), {}, 422, "at least 16"),
    ],
)
def test_bad_uploads(fakes: Fakes, path: str, body: bytes, headers: Any, status: int, words: str) -> None:
    response = ask(fakes, "POST", path, content=body, headers=headers)
    assert response.status_code == status
    assert words in sentence(response)
    assert fakes.street.calls == fakes.satellite.calls == fakes.synthesis.calls == []


def test_a_body_without_its_length_is_counted(fakes: Fakes) -> None:
    async def chunks() -> Any:
        for _ in range(3):
            yield b"x" * 4_000

    response = ask(fakes, "POST", "/v1/embed/street", content=chunks())
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
        ("rows=nan,1", "expected 0 <= first < last <= 1"),
        ("k=0", "k='0'"),
        ("k=101", "k='101'"),
        ("k=13", "k=13: the index of this release has 12 tiles"),
    ],
)
def test_bad_parameters(fakes: Fakes, query: str, words: str) -> None:
    response = post(fakes, f"/v1/localize?{query}", flat(40, 100))
    assert response.status_code == 400
    assert words in sentence(response)
    assert not fakes.street.calls


def test_bad_layout_and_accept(fakes: Fakes) -> None:
    response = post(fakes, "/v1/embed/satellite?layout=sideways", flat(50, 50))
    assert (response.status_code, "layout='sideways'" in sentence(response)) == (400, True)
    response = post(fakes, "/v1/synthesize", flat(50, 50), headers={"accept": "text/html"})
    assert (response.status_code, "image/webp" in sentence(response)) == (406, True)
    assert not fakes.synthesis.calls


def test_unknown_paths_and_methods_answer_in_json(fakes: Fakes) -> None:
    response = ask(fakes, "GET", "/v1/nothing")
    assert response.status_code == 404
    sentence(response)
    response = ask(fakes, "GET", "/v1/localize")
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    sentence(response)


@pytest.mark.parametrize("deployment", ["street", "search"])
@pytest.mark.parametrize(
    "fault",
    [
        BackPressureError(9, 8),
        RayActorError(),
        # as Ray raises in the caller what a replica raised
        RayTaskError("call", "traceback", ReleaseNotLoadedError("release x is not loaded here")).as_instanceof_cause(),
    ],
)
def test_overload_and_lost_replicas_are_503_with_retry_after(fakes: Fakes, deployment: str, fault: Exception) -> None:
    def fail(*_args: Any) -> None:
        raise fault

    getattr(fakes, deployment).answer = fail
    response = post(fakes, "/v1/localize", flat(40, 100))
    assert (response.status_code, response.headers["retry-after"]) == (503, "2")
    assert "try again later" in sentence(response)


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
    assert negotiate(accept) == kind


def test_arguments_from_the_command_line_are_text() -> None:
    args = ServeArgs.model_validate({"registry": "r", "name": "n", "threads": "2", "max_upload_mb": "8"})
    assert (args.threads, Limits.of(args).max_bytes) == (2, 8_000_000)


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
    ],
)
def test_arguments_that_contradict(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        ServeArgs.model_validate(arguments)


def test_serve_recognises_the_typed_argument_of_build() -> None:
    """A string annotation would make Serve hand over a dictionary."""
    assert build.__annotations__["args"] is ServeArgs


def stored_model(folder: Path, dimension: int = TINY.descriptor_size, mark: str | None = None) -> tuple[str, str]:
    """URIs of a checkpoint and of an index that says it was built with it, unless told otherwise."""
    checkpoint, index = str(folder / "checkpoint"), str(folder / "index")
    meta = {"run": "city", "step": 4, "metrics": {"psnr": float("inf")}}
    save_model(S2S(TINY), meta, folder / "local")
    storage.publish(folder / "local", checkpoint)
    info = IndexInfo(
        dimension=dimension, count=1, checkpoint=mark or registry.fingerprint(checkpoint),
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
    assert (by_name.checkpoint_uri, by_name.index_uri) == (release.checkpoint_uri, release.index_uri)
    assert by_name.geometry == ViewGeometry(TINY.height, TINY.width)
    assert by_name.description.metrics == {"psnr": None}
    assert isinstance(build(ServeArgs(registry=root, name="demo")), Application)


def test_build_refuses_an_index_of_another_model(tmp_path: Path) -> None:
    checkpoint, index = stored_model(tmp_path / "a", mark="0" * 64)
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
    assert application.import_path == "serve.app:build"
    args = ServeArgs.model_validate(application.args)
    assert args == ServeArgs(registry="registry", name="default")
    assert args.street == ModelScaling()


def test_metrics_that_json_does_not_have_become_null() -> None:
    assert finite({"a": float("nan"), "b": [1.0, float("inf")], "c": "x"}) == {"a": None, "b": [1.0, None], "c": "x"}


def test_accelerator_faults_fail_the_health_check() -> None:
    replica = StreetEmbedding.__new__(StreetEmbedding)
    replica._fault = None
    replica.check_health()

    def lost(_views: torch.Tensor) -> Any:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)

    replica._infer = lost  # type: ignore[method-assign]
    unbatched = StreetEmbedding._batched.__wrapped__  # type: ignore[attr-defined]
    with pytest.raises(torch.AcceleratorError):
        asyncio.run(unbatched(replica, [np.zeros((3, HEIGHT, WIDTH), np.uint8)]))
    with pytest.raises(RuntimeError, match=r"the accelerator failed: .*CUDA error"):
        replica.check_health()
