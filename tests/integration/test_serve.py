"""`serve run` of the real configuration on a private local cluster: every endpoint over HTTP, overload, the end."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from numpy.typing import NDArray

from s2s_ray import registry, storage
from s2s_ray.checkpoint import save_model
from s2s_ray.config import ModelConfig
from s2s_ray.data.images import decode, encode
from s2s_ray.index import IndexInfo, ReferenceIndex
from s2s_ray.inference import Embedder, Localizer, Synthesizer
from s2s_ray.model.s2s import S2S

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
TINY = ModelConfig(
    height=32, width=72, channels=4, residual_blocks=1, discriminator_channels=4, street_blocks=(1, 1, 1), masks=2
)
TILES = 7


class Running(NamedTuple):
    """The service and what it serves."""

    http: httpx.Client
    release: registry.Release
    localizer: Localizer
    started_after_s: float


def noise(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def release_in(folder: Path) -> registry.Release:
    """A randomly initialised model with an index of noise tiles, published and promoted."""
    torch.manual_seed(5)
    model = S2S(TINY).eval()
    checkpoint, index = str(folder / "checkpoint"), str(folder / "index")
    geometry = {"height": 32, "width": 72, "panorama_rows": [0.25, 0.75]}
    meta = {"run": "tiny", "step": 3, "epoch": 1, "metrics": {"recall_at_1": 0.5}, "dataset": {"geometry": geometry}}
    save_model(model, meta, folder / "local")
    storage.publish(folder / "local", checkpoint)
    mark = registry.fingerprint(checkpoint)
    info = IndexInfo(
        dimension=TINY.descriptor_size, count=TILES, checkpoint=mark, dataset="noise", dataset_digest="-", split="test"
    )
    columns: dict[str, Any] = {"id": [f"tile-{row}" for row in range(TILES)]}
    columns |= {name: [50.0 + row for row in range(TILES)] for name in ("latitude", "longitude", "easting", "northing")}
    table = pa.table({**columns, "zone": pa.array([32632] * TILES, pa.int32())})
    descriptors = Embedder(model).satellite([noise(48, 48, row) for row in range(TILES)])
    ReferenceIndex.build(info, descriptors, table).save(index)
    release = registry.publish(str(folder / "registry"), "demo", checkpoint, index)
    return registry.promote(str(folder / "registry"), "demo", release.id)


def configuration(folder: Path, port: int) -> Path:
    """The project's own `serve/config.yaml`, on a free port, with queues short enough to overflow."""
    tree = yaml.safe_load((ROOT / "serve" / "config.yaml").read_text(encoding="utf-8"))
    tree["http_options"]["port"] = port
    [application] = tree["applications"]
    application["args"] |= {"registry": str(folder / "registry"), "name": "demo", "max_upload_mb": 0.5}
    application["args"]["synthesis"] = {
        "num_cpus": 0.2, "max_replicas": 1, "max_batch": 1, "max_ongoing_requests": 1, "max_queued_requests": 1,
    }  # fmt: skip
    application["runtime_env"] = {"env_vars": {"PYTHONPATH": str(ROOT)}}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("service")
    release = release_in(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ray_folder = tempfile.mkdtemp(prefix="s2s")  # short: Ray's socket names have a limit of 107 bytes
    environment = {
        **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": ray_folder,
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(ROOT),
    }
    command = [str(Path(sys.executable).with_name("serve")), "run", "--address", "local"]
    log = (folder / "serve.log").open("wb")
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, str(configuration(folder, port))],
        cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        # Ctrl-C is ignored in what a shell runs in the background, and that is inherited
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as http:
            wait_until_it_answers(http, process, folder / "serve.log")
            assert release.index_uri is not None
            localizer = Localizer.load(release.checkpoint_uri, release.index_uri)
            yield Running(http, release, localizer, time.monotonic() - started)
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        log.close()
        shutil.rmtree(ray_folder, ignore_errors=True)


def wait_until_it_answers(http: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(httpx.TransportError):
            if http.get("/readyz").status_code == 200:
                return
        time.sleep(0.3)
    raise AssertionError(f"no answer within 180 s:\n{log.read_text()}")


def post(running: Running, path: str, pixels: NDArray[np.uint8], **options: Any) -> httpx.Response:
    headers = {"content-type": "image/png", **options.pop("headers", {})}
    response = running.http.post(path, content=encode(pixels, "png"), headers=headers, **options)
    assert response.headers["s2s-release"] == running.release.id
    return response


def test_embeddings_are_those_of_the_plain_classes(running: Running) -> None:
    panorama, tile = noise(60, 120, 1), noise(48, 48, 2)
    street = post(running, "/v1/embed/street", panorama, params={"heading": 30}).json()
    satellite = post(running, "/v1/embed/satellite", tile).json()
    assert street["release"] == satellite["release"] == running.release.id
    embedder = running.localizer.embedder
    np.testing.assert_allclose(street["descriptor"], embedder.street([panorama], 30)[0], atol=1e-6)
    np.testing.assert_allclose(satellite["descriptor"], embedder.satellite([tile])[0], atol=1e-6)


def test_localisation_is_that_of_the_plain_class(running: Running) -> None:
    panorama = noise(60, 120, 3)
    answer = post(running, "/v1/localize", panorama, params={"k": 4, "rows": "0,1"}).json()
    [expected] = running.localizer.street([panorama], k=4, rows=(0.0, 1.0))
    assert answer["release"] == running.release.id
    assert [found["id"] for found in answer["matches"]] == [match.id for match in expected]
    assert [found["latitude"] for found in answer["matches"]] == [match.latitude for match in expected]
    distances = [found["descriptor_distance"] for found in answer["matches"]]
    np.testing.assert_allclose(distances, [match.descriptor_distance for match in expected], atol=1e-5)
    assert len(post(running, "/v1/localize", panorama).json()["matches"]) == TILES


def test_synthesis_is_that_of_the_plain_class(running: Running) -> None:
    tile = noise(48, 48, 4)
    response = post(running, "/v1/synthesize", tile)
    assert response.headers["content-type"] == "image/png"
    expected = Synthesizer(running.localizer.embedder.model).street([tile])[0]
    assert np.abs(decode(response.content).astype(int) - expected.astype(int)).max() <= 1
    webp = post(running, "/v1/synthesize", tile, headers={"accept": "image/webp"})
    assert webp.headers["content-type"] == "image/webp"


def test_model_says_what_is_served(running: Running) -> None:
    model = running.http.get("/v1/model").json()
    assert model["release"] == running.release.id
    assert (model["run"], model["step"], model["metrics"]) == ("tiny", 3, {"recall_at_1": 0.5})
    assert (model["height"], model["width"], model["descriptor_size"]) == (32, 72, TINY.descriptor_size)
    assert model["panorama_rows"] == [0.25, 0.75]
    assert model["index"] == {"kind": "flat", "count": TILES, "dataset": "noise", "split": "test"}


@pytest.mark.parametrize(
    ("path", "body", "kind", "status"),
    [
        ("/v1/localize", b"not an image", "image/png", 400),
        ("/v1/localize?k=8", encode(noise(60, 120, 0), "png"), "image/png", 400),
        ("/v1/localize", b"x" * 500_001, "image/png", 413),
        ("/v1/localize", b"x", "text/plain", 415),
        ("/v1/embed/street", encode(noise(60, 60, 0), "png"), "image/png", 422),
        ("/v1/synthesize", encode(noise(60, 40, 0), "png"), "image/png", 422),
    ],
)
def test_bad_requests_have_a_sentence(running: Running, path: str, body: bytes, kind: str, status: int) -> None:
    response = running.http.post(path, content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert response.json()["error"].endswith(".")
    assert response.headers["s2s-release"] == running.release.id


def test_parallel_requests_are_batched_and_each_gets_its_own_answer(running: Running) -> None:
    panoramas = [noise(60, 120, seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda panorama: post(running, "/v1/embed/street", panorama).json(), panoramas))
    expected = running.localizer.embedder.street(panoramas)
    np.testing.assert_allclose([answer["descriptor"] for answer in answers], expected, atol=1e-6)


def test_overload_is_answered_at_once_and_the_service_goes_on(running: Running) -> None:
    tile = noise(48, 48, 0)
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: post(running, "/v1/synthesize", tile), range(48)))
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 503}, statuses
    for answer in answers:
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            assert "try again later" in answer.json()["error"]
    assert post(running, "/v1/synthesize", tile).status_code == 200


def test_it_starts_in_well_under_a_minute(running: Running) -> None:
    print(f"\nservice ready after {running.started_after_s:.1f} s")
    assert running.started_after_s < 150  # shared machines: a guard against a hang, not a benchmark
