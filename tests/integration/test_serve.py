"""`serve run` of the real configuration on a private local cluster: every endpoint over HTTP, overload, shutdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from s2s_ray.client import parameters
from s2s_ray.geo.images import decode, encode
from s2s_ray.geo.query import Query
from s2s_ray.inference import Synthesizer
from tests.support.callers import settled
from tests.support.served import SCARCE, TILES, TINY, Running, noise, replicas, running_in
from tests.support.uploads import uploads

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Start the service with a queue short enough to overflow."""
    synthesis = {**SCARCE, "max_batch": 1, "max_ongoing_requests": 1, "max_queued_requests": 1}
    with running_in(tmp_path_factory.mktemp("service"), max_upload_mb=0.5, synthesis=synthesis) as service:
        yield service


def post(running: Running, path: str, pixels: NDArray[np.uint8], **options: Any) -> httpx2.Response:
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
    response = post(running, "/v1/localize", panorama, params={"k": 4, "rows": "0,1"}).json()
    [expected] = running.localizer.street([panorama], k=4, rows=(0.0, 1.0))
    assert response["release"] == running.release.id
    assert [found["id"] for found in response["matches"]] == [match.id for match in expected]
    assert [found["latitude"] for found in response["matches"]] == [match.latitude for match in expected]
    distances = [found["descriptor_distance"] for found in response["matches"]]
    np.testing.assert_allclose(distances, [match.descriptor_distance for match in expected], atol=1e-5)
    assert len(post(running, "/v1/localize", panorama).json()["matches"]) == TILES


def test_fixes_are_those_of_the_plain_class(running: Running) -> None:
    """Heading known, unknown, and a photograph of a part of the horizon, at the same time."""
    pictures = [(noise(60, 120, seed), Query(heading)) for seed, heading in enumerate((20.0, "unknown", "unknown"))]
    pictures.append((noise(60, 80, 9), Query("unknown", 70.0)))

    def ask(picture: tuple[NDArray[np.uint8], Query]) -> Any:
        return post(running, "/v1/localize", picture[0], params=parameters.picture(picture[1])).json()

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(ask, 2 * pictures))
    for (pixels, query), response in zip(2 * pictures, responses, strict=True):
        [found] = running.localizer.locate([pixels], query)
        assert found.fix is not None
        assert [match["id"] for match in response["matches"]] == [match.id for match in found.matches]
        position = response["fix"]["position"]
        assert (position["latitude"], position["longitude"]) == pytest.approx(found.fix[:2], abs=1e-6)
        assert response["fix"]["heading"]["degrees"] == pytest.approx(found.fix.heading, abs=1e-2)
        assert response["query"]["heading_origin"] == ("given" if query.heading == 20.0 else "estimated")
    files = [("image", (str(number), encode(pixels, "png"))) for number, (pixels, _) in enumerate(pictures[:2])]
    tree = running.http.post("/v1/localize?together=true&heading=unknown", files=files).json()
    [found] = running.localizer.locate([pixels for pixels, _ in pictures[:2]], Query("unknown"), together=True)
    assert [match["id"] for match in tree["matches"]] == [match.id for match in found.matches]


def test_synthesis_is_that_of_the_plain_class(running: Running) -> None:
    tile = noise(48, 48, 4)
    response = post(running, "/v1/synthesize", tile)
    assert response.headers["content-type"] == "image/png"
    expected = Synthesizer(running.localizer.embedder.model).street([tile])[0]
    assert np.abs(decode(response.content).astype(int) - expected.astype(int)).max() <= 1
    webp = post(running, "/v1/synthesize", tile, headers={"accept": "image/webp"})
    assert webp.headers["content-type"] == "image/webp"


def test_the_model_describes_the_release(running: Running) -> None:
    model = running.http.get("/v1/model").json()
    assert model["release"] == running.release.id
    assert (model["run"], model["step"], model["metrics"]) == ("tiny", 3, {"recall_at_1": 0.5})
    assert (model["height"], model["width"], model["descriptor_size"]) == (32, 72, TINY.descriptor_size)
    assert model["panorama_rows"] == [0.25, 0.75]
    assert (model["elevations"], model["default_heading"], model["calibrated"]) == ([45.0, -45.0], 0.0, False)
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
def test_bad_requests_get_a_sentence(running: Running, path: str, body: bytes, kind: str, status: int) -> None:
    response = running.http.post(path, content=body, headers={"content-type": kind})
    assert response.status_code == status
    assert response.json()["error"].endswith(".")
    assert response.headers["s2s-release"] == running.release.id


def test_parallel_requests_are_batched_and_each_gets_its_own_result(running: Running) -> None:
    panoramas = [noise(60, 120, seed) for seed in range(16)]
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda panorama: post(running, "/v1/embed/street", panorama).json(), panoramas))
    expected = running.localizer.embedder.street(panoramas)
    np.testing.assert_allclose([response["descriptor"] for response in responses], expected, atol=1e-6)


def test_overload_is_rejected_at_once_and_the_service_continues(running: Running) -> None:
    tile = noise(48, 48, 0)
    with ThreadPoolExecutor(24) as pool:
        responses = list(pool.map(lambda _: post(running, "/v1/synthesize", tile), range(48)))
    statuses = {response.status_code for response in responses}
    assert statuses == {200, 503}, statuses
    for response in responses:
        if response.status_code == 503:
            assert response.headers["retry-after"] == "1"
            assert "try again later" in response.json()["error"]
    assert post(running, "/v1/synthesize", tile).status_code == 200


def totals(running: Running) -> Counter[tuple[str, ...]]:
    """Return sums over all replicas: requests by path and status, latencies by path, batched images."""
    sums: Counter[tuple[str, ...]] = Counter()
    for family in text_string_to_metric_families(running.http.get("/metrics").text):
        for sample in family.samples:
            label = sample.labels.get
            if label("endpoint") == "/metrics":  # reading the metrics is counted, too
                continue
            if sample.name == "ray_s2s_requests_total":
                sums["requests", label("endpoint", ""), label("status", "")] += int(sample.value)
            elif sample.name == "ray_s2s_request_seconds_count":
                sums["timed", label("endpoint", "")] += int(sample.value)
            elif sample.name == "ray_s2s_batched_images_total":
                sums["batched", label("deployment", "")] += int(sample.value)
            elif sample.name == "ray_s2s_pictures_total":
                sums["pictures", label("heading", "")] += int(sample.value)
            elif sample.name == "ray_s2s_fixes_total":
                sums["fixes", label("in_region", "")] += int(sample.value)
            elif sample.name == "ray_s2s_release" and sample.value == 1:
                sums["release", label("release", "")] = 1
            elif sample.name == "ray_s2s_index_tiles":
                sums["tiles",] = max(sums["tiles",], int(sample.value))
    return sums


def test_the_metrics_agree_with_what_clients_count(running: Running) -> None:
    before = settled(totals, running)
    panorama, tile = noise(60, 120, 1), noise(48, 48, 2)
    sent = [("/v1/localize", panorama)] * 12 + [("/v1/embed/satellite", tile)] * 9 + [("/v1/embed/street", tile)] * 5
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda one: (one[0], post(running, *one).status_code), sent))
    counted = Counter(("requests", path, str(status)) for path, status in responses)
    assert counted["requests", "/v1/embed/street", "422"] == 5
    after = settled(totals, running)
    growth = {key: after[key] - before[key] for key in counted}
    assert growth == dict(counted)
    for path in ("/v1/localize", "/v1/embed/satellite", "/v1/embed/street"):
        total = sum(count for key, count in counted.items() if key[1] == path)
        assert after["timed", path] - before["timed", path] == total
    batched = {
        name: after["batched", name] - before["batched", name] for name in ("StreetEmbedding", "SatelliteEmbedding")
    }
    assert batched == {"StreetEmbedding": 12, "SatelliteEmbedding": 9}
    # the release has a default heading and no calibration
    assert {key: count - before[key] for key, count in after.items() if key[0] in ("pictures", "fixes")} == {
        **{key: 0 for key in before if key[0] in ("pictures", "fixes")},
        ("pictures", "release"): 12,
        ("fixes", "unknown"): 12,
    }
    assert after["release", running.release.id] == 1
    assert after["tiles",] == TILES


def test_damaged_uploads_kill_no_process(running: Running) -> None:
    names = ("Ingress", "StreetEmbedding", "SatelliteEmbedding", "Synthesis", "Search")
    before = {name: replicas(running, name) for name in names}
    statuses: Counter[int] = Counter()
    for path, params, headers, content in uploads(7, 500):
        statuses[running.http.post(path, params=params, headers=headers, content=content).status_code] += 1
    print(f"\n500 damaged uploads through Serve: {dict(sorted(statuses.items()))}")
    assert set(statuses) <= {200, 400, 406, 413, 415, 422}
    assert {name: replicas(running, name) for name in names} == before


def test_a_deadline_drops_work_that_has_not_started(running: Running) -> None:
    """Twenty requests with a short deadline, then one with a long one: it does not wait for the twenty."""
    tile = noise(48, 48, 0)
    with ThreadPoolExecutor(20) as pool:
        short = list(
            pool.map(lambda _: post(running, "/v1/embed/satellite", tile, headers={"s2s-timeout": "0.002"}), range(20))
        )
    assert {response.status_code for response in short} <= {200, 504}
    assert 504 in {response.status_code for response in short}
    assert post(running, "/v1/embed/satellite", tile).status_code == 200
