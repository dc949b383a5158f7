"""The client and the verbs of `s2s` against the real application, and against the same model without it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from s2s_ray import registry, storage
from s2s_ray.cli import main
from s2s_ray.client import (
    Client,
)
from s2s_ray.data.dataset import PairDataset
from s2s_ray.data.prepare import prepare
from s2s_ray.errors import InputError, NotFoundError, ServiceError
from s2s_ray.geo.images import decode, encode
from s2s_ray.geo.metadata import read_metadata
from s2s_ray.geo.prior import Box, Circle, FileCircle, distances_m
from s2s_ray.geo.query import Query
from s2s_ray.index.build import build_index
from s2s_ray.inference import Localizer, Synthesizer
from s2s_ray.service.settings import ServeArgs
from tests.support.in_process_service import application, listening
from tests.support.pair_folder import PairFolder
from tests.support.photographs import photograph
from tests.support.served import noise, save_tiny

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

TILES = 5


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> ServeArgs:
    """A random model and an index of a few places."""
    folder = tmp_path_factory.mktemp("client")
    pairs = PairFolder(folder / "pairs")
    for number in range(TILES):
        pairs.add(f"place-{number}", "test", latitude=48.1 + 0.001 * number, longitude=11.5)
    for split in ("train", "train", "val"):
        pairs.add(f"{split}-{len(pairs.rows)}", split)
    config = pairs.config(folder / "data")
    prepare(config)
    model = save_tiny(folder / "local", config.model.height, config.model.width)
    storage.publish(folder / "local", str(folder / "checkpoint"))
    fingerprint = registry.fingerprint(str(folder / "checkpoint"))
    index = build_index(model, PairDataset(config.data.uri, "test"), checkpoint_fingerprint=fingerprint, split="test")
    index.save(str(folder / "index"))
    return ServeArgs(checkpoint=str(folder / "checkpoint"), index=str(folder / "index"))


@pytest.fixture(scope="module")
def client(arguments: ServeArgs) -> Iterator[Client]:
    with listening(application(arguments)) as url, Client(url) as opened:
        yield opened


@pytest.fixture(scope="module")
def localizer(arguments: ServeArgs) -> Localizer:
    return Localizer.load(str(arguments.checkpoint), str(arguments.index))


@pytest.fixture(scope="module")
def panoramas() -> list[NDArray[np.uint8]]:
    """More than fit into one request of the client."""
    return [noise(40, 80 + place, place) for place in range(11)]


def test_the_client_gives_what_the_plain_classes_give(
    client: Client, localizer: Localizer, panoramas: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    found = client.embed_street(panoramas, heading=30, rows=(0.1, 0.8))
    np.testing.assert_allclose(found, localizer.embedder.street(panoramas, 30, (0.1, 0.8)), atol=5e-5)
    tiles = [noise(48, 48, place) for place in range(3)]
    # alone or three at a time, the sums of a convolution differ in their last bits
    np.testing.assert_allclose(client.embed_satellite(tiles), localizer.embedder.satellite(tiles), atol=5e-5)
    drawn = Synthesizer(localizer.embedder.model, localizer.embedder.geometry).street(tiles[:1])[0]
    assert np.abs(client.synthesize(tiles[:1])[0].astype(int) - drawn.astype(int)).max() <= 1
    path = tmp_path / "panorama.png"
    path.write_bytes(encode(panoramas[0], "png"))
    [expected] = localizer.street(panoramas[:1], k=TILES)
    for image in (panoramas[0], path, str(path), path.read_bytes()):
        [matches] = client.localize([image], k=TILES, heading=0, true=(48.1, 11.5))
        assert [match.id for match in matches] == [match.id for match in expected]
        nearest = next(match for match in matches if match.id == "place-1")
        assert nearest.distance_m == pytest.approx(111.2, abs=0.1)
    assert client.release == client.model()["release"]
    assert client.embed_street([]).shape == (0, localizer.embedder.model.config.descriptor_size)


def test_a_heading_that_is_given_has_the_same_descriptors_and_matches_as_ever(
    client: Client, localizer: Localizer, panoramas: list[NDArray[np.uint8]]
) -> None:
    view = localizer.embedder.geometry.street(panoramas[0], 0.0)
    descriptor = localizer.embedder.embed_street(view[None])
    np.testing.assert_array_equal(client.embed_street(panoramas[:1], heading=0), descriptor)
    [expected] = localizer.index.search(descriptor, TILES)
    [found] = client.localize(panoramas[:1], k=TILES, heading=0)
    assert [(match.rank, match.id, match.descriptor_distance) for match in found] == [
        (match.rank, match.id, match.descriptor_distance) for match in expected
    ]


def test_the_answers_of_the_service_are_those_of_the_plain_class(client: Client, localizer: Localizer) -> None:
    photo = noise(60, 80, 6)
    file = photograph(photo, (48.102, 11.5), heading=30.0, reference="M", focal_mm=26)
    for query in (
        Query(),
        Query("unknown"),
        Query(12.0, 90.0, pitch=5.0, roll=-2.0),
        Query(fov=120.0, projection="cylindrical"),
    ):
        [location] = client.locate([file], query, k=TILES)
        pixels = decode(file)
        [found] = localizer.locate([pixels], query, TILES, photos=[read_metadata(file)])
        assert found.fix is not None
        assert location.fix is not None
        assert [match.id for match in location.matches] == [match.id for match in found.matches]
        np.testing.assert_allclose(location.fix[:2], found.fix[:2], atol=1e-7)
        assert location.fix.heading == pytest.approx(found.fix.heading, abs=1e-3)
        assert (location.fix.calibrated, location.fix.radius_m, location.fix.confidence) == (False, None, None)
        [metres] = distances_m(48.102, 11.5, np.array([location.fix.latitude]), np.array([location.fix.longitude]))
        assert location.fix.distance_m == pytest.approx(metres, abs=0.01)
        assert location.query.position == pytest.approx((48.102, 11.5), abs=1e-6)


def test_pictures_of_one_place_and_areas_around_their_positions(client: Client, localizer: Localizer) -> None:
    pictures = [noise(60, 80, seed) for seed in (7, 8)]
    files = [photograph(one, (48.1, 11.5), focal_mm=26) for one in pictures]
    [location] = client.locate(files, k=TILES, together=True)
    [found] = localizer.locate(
        [decode(file) for file in files], None, TILES, together=True, photos=[read_metadata(file) for file in files]
    )
    assert [match.id for match in location.matches] == [match.id for match in found.matches]
    assert [query.heading for query in location.queries] == [
        pytest.approx(heading[0], abs=1e-3) for heading in found.headings if heading is not None
    ]
    [near] = client.locate(files, k=TILES, together=True, prior=FileCircle(230))
    assert {match.id for match in near.matches} == {"place-0", "place-1", "place-2"}
    [nowhere] = client.locate([photograph(pictures[0], (10.0, 11.5), focal_mm=26)], k=TILES, prior=FileCircle())
    assert (nowhere.matches, nowhere.fix) == ([], None)
    assert client.locate([], together=True) == client.locate([]) == []


def test_priors_of_the_client(client: Client, panoramas: list[NDArray[np.uint8]]) -> None:
    [near] = client.localize(panoramas[:1], k=TILES, prior=Circle(48.1, 11.5, 230))
    assert {match.id for match in near} == {"place-0", "place-1", "place-2"}
    [box] = client.localize(panoramas[:1], k=TILES, prior=Box(11, 48.1025, 12, 49))
    assert {match.id for match in box} == {"place-3", "place-4"}


def test_refusals_of_the_client(client: Client, tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"responds 422: fov is missing: the picture is 20 x 40 pixels") as refused:
        client.localize([noise(40, 20, 0)], k=1)
    assert refused.value.status == 422
    with pytest.raises(ServiceError, match=r"responds 422: The heading of image 1 \('0'\) is unknown") as refused:
        client.embed_street([encode(noise(40, 80, 0), "png"), noise(40, 80, 1)])
    assert refused.value.status == 422
    with pytest.raises(ServiceError, match="responds 403: "):
        client.promote("x")
    with pytest.raises(NotFoundError, match="does not exist"):
        client.embed_street([tmp_path / "nothing.png"])
    with pytest.raises(InputError, match=r"image has shape \(40, 20\) and dtype uint8: expected h w 3"):
        client.embed_street([noise(40, 20, 0)[..., 0]])
    with Client("http://127.0.0.1:9", timeout_s=0.3) as nobody, pytest.raises(ServiceError, match="does not respond"):
        nobody.model()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_a_url_that_cannot_be_a_service(url: str) -> None:
    with pytest.raises(InputError, match=r"url='.*': expected http://HOST:PORT"):
        Client(url)


def test_another_service_is_named() -> None:
    with (
        responding([(200, b"<html>"), (200, b"[]")]) as url,
        Client(url) as client,
    ):
        with pytest.raises(ServiceError, match=r"sent a response that is not this service's .*: check the URL"):
            client.model()
        with pytest.raises(ServiceError, match=r"sent a response that is not this service's .*: check the URL"):
            client.releases()


def test_the_client_retries() -> None:
    """The server is overloaded, then lost, then available."""
    responses = [(503, b'{"error": "busy"}'), (500, b"lost"), (200, b'{"release": "r"}')]
    with responding(responses) as url, Client(url) as client:
        assert client.model() == {"release": "r"}
    assert responses == []


@contextmanager
def responding(responses: list[tuple[int, bytes]]) -> Iterator[str]:
    """Serve each response once, in their order."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = responses.pop(0)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("way", ["url", "checkpoint"])
def test_the_verbs(
    way: str, client: Client, arguments: ServeArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    panorama, tile = tmp_path / "panorama.png", tmp_path / "tile.png"
    panorama.write_bytes(encode(noise(40, 80, 1), "png"))
    tile.write_bytes(encode(noise(48, 48, 2), "png"))
    source = ["--url", client.url] if way == "url" else ["--checkpoint", str(arguments.checkpoint)]
    index = [] if way == "url" else ["--index", str(arguments.index)]
    localize = ["localize", str(panorama), "-k", "2", "--true", "48.1,11.5", "--near", "48.1,11.5,230"]
    run([*localize, *source, *index])
    printed = capsys.readouterr().out
    assert printed.startswith(str(panorama))
    assert " m away" in printed
    run([*localize, *source, *index, "--json"])
    [first, second] = json.loads(capsys.readouterr().out)["matches"]
    assert (first["rank"], second["rank"], first["id"] in printed) == (1, 2, True)
    run(["embed", "street", str(panorama), "--heading", "7", "--out", str(tmp_path / "d.npy"), *source])
    assert np.load(tmp_path / "d.npy").shape[0] == 1
    run(["embed", "satellite", str(tile), "--out", str(tmp_path / "d.npy"), *source])
    assert np.load(tmp_path / "d.npy").shape[0] == 1
    run(["synthesize", str(tile), "--out", str(tmp_path / "views"), *source])
    assert decode((tmp_path / "views" / "tile.png").read_bytes()).shape == (32, 40, 3)


@pytest.mark.parametrize(
    "options",
    [
        ["--heading", "0"],
        ["--heading", "unknown", "--true", "48.1,11.5"],
        ["--fov", "90", "--heading", "12.5", "--pitch", "-4", "--roll", "1.5", "--projection", "cylindrical"],
        ["--together"],
        ["--prior", "file,230"],
        ["--rows", "0.2,0.9", "--bbox", "11,48.1025,12,49"],
    ],
    ids=" ".join,
)
def test_a_service_and_a_checkpoint_give_the_same_answers(
    options: list[str], client: Client, arguments: ServeArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / f"{number}.jpg") for number in range(2)]
    for number, name in enumerate(names):
        Path(name).write_bytes(photograph(noise(40, 80, number), (48.1, 11.5), heading=30.0 + number))
    checkpoint = ["--checkpoint", str(arguments.checkpoint), "--index", str(arguments.index)]
    for kind in ("--json", "--geojson", None):
        printed = []
        for source in (["--url", client.url], checkpoint):
            run(["localize", *names, *source, *options, *([kind] if kind else [])])
            printed.append(capsys.readouterr().out)
        if kind is None:
            assert printed[0] == printed[1]
            continue
        served, local = ([json.loads(line) for line in text.splitlines()] for text in printed)
        assert same(served, local), (served, local)
        if kind == "--json":
            assert len(served) == (1 if "--together" in options else 2)


def same(one: Any, other: Any) -> bool:
    """Return whether two trees are equal but for the last digits of numbers."""
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float):
        return isinstance(other, float) and bool(np.isclose(one, other, rtol=1e-5, atol=1e-6))
    return bool(one == other)


def run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["localize", "a.png"], "give either --url of a service or --checkpoint"),
        (["localize", "a.png", "--url", "http://x", "--near", "1"], "--near 1: expected 3 numbers"),
        (["localize", "a.png", "--url", "http://x", "--true", "91,0"], "--true 91,0: latitude 91"),
        (["synthesize", "a/t.png", "b/t.png", "--out", "o", "--url", "http://x"], "the same file name"),
        (["embed", "satellite", "a.png", "--out", "o", "--url", "http://x", "--layout", "round"], "--layout round"),
    ],
)
def test_options_that_are_refused(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert words in capsys.readouterr().err


def test_tokens_are_made(capsys: pytest.CaptureFixture[str]) -> None:
    run(["token", "ops", "--admin"])
    printed = capsys.readouterr().out
    entry = json.loads(printed.partition("  - ")[2])
    assert ServeArgs(checkpoint="c", index="i", tokens=[entry]).tokens[0].admin  # type: ignore[list-item]
    assert printed.splitlines()[0].split(": ")[1] not in str(entry)
